"""The tests pass, and the package is what it says, whatever machine, shell and environment they meet."""

import json
import os
import re
import signal
import sqlite3
import sys
from importlib.metadata import distributions
from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib", reason="tests/environments.py needs Python 3.11")
from environments import check_types, floor_of, lowest_and_highest_python, requirements, stages  # noqa: E402

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project(pyproject):
    return pyproject["project"]


def test_ctrl_c_is_tested_where_the_shell_ignores_it(pytestconfig):
    """As a background job: there Python begins with the signal ignored, before pytest reads the settings of the tests."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pytestconfig.pluginmanager.get_plugin(str(CHECKOUT / "tests" / "conftest.py")).pytest_configure(pytestconfig)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_type_checkers_follow_the_editable_install(tmp_path):
    # All of that name: an .egg-info folder that setuptools once left in the checkout does not say where it comes from.
    origins = [each.read_text("direct_url.json") for each in distributions(name="qiskit-torch-bridge")]
    installed = [json.loads(origin) for origin in origins if origin]
    if not any(each["url"] == CHECKOUT.as_uri() and each["dir_info"].get("editable") for each in installed):
        pytest.skip("this checkout is not installed with pip install -e")
    check_types(Path(sys.executable), tmp_path)


def test_a_ledger_that_is_let_go_of_closes_its_file(tmp_path):
    """Python 3.13 warns where it does not."""
    pytest.importorskip("qiskit_ibm_runtime")
    from qiskit_torch_bridge import Ledger

    for path in (None, tmp_path / "jobs.sqlite"):
        connection = Ledger(path)._file._opened()
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("SELECT 1")


def test_every_requirement_has_a_floor(project):
    for extra, lines in project["optional-dependencies"].items():
        if extra not in ("all", "peers"):
            assert all(floor_of(line) for line in lines), extra
    with pytest.raises(ValueError, match="write numba>=VERSION"):
        floor_of("numba<2")


def test_floors_are_those_of_the_extras_where_they_have_their_own(project):
    (plain, _), (with_ibm, _) = stages(project, "floors")
    assert "qiskit==2.1" in plain
    assert "qiskit==2.3" in with_ibm
    assert {line.partition("==")[0] for line in plain} < {line.partition("==")[0] for line in with_ibm}
    assert "qiskit>=2.3,<3" in requirements(project, "ibm").values()


def test_the_long_description_has_no_link_to_a_file(pyproject):
    """What a package index shows: README.md after the substitutions of the build."""
    description = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    for each in pyproject["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        description = re.sub(each["pattern"], each["replacement"], description)
    links = re.findall(r"\]\(([^)]*)\)", description)
    assert "#two-commands" in links
    assert [link for link in links if not link.startswith(("#", "https://"))] == []
    assert "\nGradients of circuits,\n" in description


def test_pythons_are_those_of_the_classifiers(project):
    lowest, highest = lowest_and_highest_python(project)
    assert project["requires-python"] == f">={lowest}"
    assert highest == "3.13"
