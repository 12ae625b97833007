"""Tries what ``pyproject.toml`` declares: the lowest versions of the dependencies, or the newest that there are.

    python tests/environments.py floors     every ">=" of pyproject.toml becomes "==", with the lowest Python
    python tests/environments.py newest     what pip takes today, with the highest Python of the classifiers

Each makes a virtual environment in a folder of its own outside of the checkout, installs the checkout there as a user would
(``pip install -e``), runs the fast tests of gradients, backends, torch and circuits, and type-checks a user's script; the
floors once without the extra ``ibm`` and once with it, because it needs a newer Qiskit. The environment, some 6 GB with
PyTorch's CUDA packages, is deleted afterwards. Needs Python 3.11 and nothing but the standard library.
"""

import argparse
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tomllib

CHECKOUT = Path(__file__).resolve().parent.parent
WITH_TESTS = ("filelock", "mypy", "pytest", "pytest-xdist")
TESTS = (
    "backends/test_backends.py",
    "backends/test_labels.py",
    "backends/test_layouts.py",
    "backends/test_noise.py",
    "backends/test_noise_kept.py",
    "backends/test_noise_refused.py",
    "backends/test_other_backends.py",
    "backends/test_results_of_primitives.py",
    "backends/test_transpiler_options.py",
    "backends/test_words_and_objects.py",
    "bridge/test_small_steps.py",
    "bridge/test_stand_ins.py",
    "bridge/test_torch.py",
    "bridge/test_torch_func.py",
    "gradients",
    "program",
    "simulator",
    "test_errors.py",
    "test_half_precision.py",
    "test_layer.py",
    "test_layerwise.py",
    "test_misread_arguments.py",
    "test_replaced_parts.py",
    "test_schedules_of_exact_layers.py",
)
TESTS_WITH_IBM = (
    "backends/test_backends.py",
    "backends/test_layouts.py",
    "backends/test_noise.py",
    "backends/test_noise_refused.py",
    "backends/test_results_of_primitives.py",
    "backends/test_wide_circuits.py",
    "backends/test_words_and_objects.py",
    "commands",
    "experiments/test_experiments.py",
    "ibm/test_damage.py",
    "ibm/test_fake_devices.py",
    "ibm/test_faults.py",
    "ibm/test_fractional_gates.py",
    "ibm/test_ledger.py",
    "ibm/test_ledger_damage.py",
    "ibm/test_lost_ledgers.py",
    "ibm/test_nothing_left_behind.py",
    "ibm/test_options.py",
    "ibm/test_replay.py",
    "ibm/test_settings.py",
    "ibm/test_tokens.py",
    "ibm/test_wrong_results.py",
    "test_any_machine.py",
    "test_readme.py",
)
USERS_SCRIPT = """
from qiskit.circuit import Parameter, QuantumCircuit

from qiskit_torch_bridge import QuantumLayer

theta = Parameter("theta")
circuit = QuantumCircuit(1)
circuit.ry(theta, 0)
layer = QuantumLayer(circuit, weights=[theta], shots={shots})
"""


def requirements(project: dict[str, Any], *extras: str) -> dict[str, str]:
    """The requirements of the project with these extras and of its tests, by package; an extra's own word counts."""
    optional = project["optional-dependencies"]
    tools = [line for line in optional["dev"] if _name(line) in WITH_TESTS]
    lines = [*project["dependencies"], *tools, *(line for extra in extras for line in optional[extra])]
    return {_name(line): line for line in lines}


def floor_of(requirement: str) -> str:
    """``"qiskit>=2.1,<3"`` becomes ``"qiskit==2.1"``.

    Raises:
        ValueError: If the requirement has no lower end.
    """
    lowest = re.search(r">=\s*([\w.]+)", requirement)
    if lowest is None:
        raise ValueError(f"{requirement!r} declares no lowest version; write {_name(requirement)}>=VERSION.")
    return f"{_name(requirement)}=={lowest[1]}"


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return found[0].lower()


def interpreter(version: str) -> str:
    """A Python of this version (``"3.10"``), from the PATH or from pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for candidate in (shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))):
        if candidate is not None:
            # pyenv's stand-ins are on the PATH for versions that are not switched on, and fail.
            asked = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            if subprocess.run(asked, capture_output=True, text=True).stdout.strip() == version:
                return str(candidate)
    raise SystemExit(f"Python {version}: got none on the PATH or from pyenv; name one with --python.")


def lowest_and_highest_python(project: dict[str, Any]) -> tuple[str, str]:
    """Of the classifiers."""
    pattern = re.compile(r"Programming Language :: Python :: 3\.(\d+)")
    minors = sorted(int(found[1]) for line in project["classifiers"] if (found := pattern.fullmatch(line)))
    return f"3.{minors[0]}", f"3.{minors[-1]}"


def stages(project: dict[str, Any], which: str) -> Iterator[tuple[list[str], Sequence[str]]]:
    """What is installed, one after the other into the same environment, and which tests then run."""
    if which == "newest":
        packages = requirements(project, "experiments", "ibm")
        yield [*packages.values()], sorted({*TESTS, *TESTS_WITH_IBM})
        return
    for extras, tests in ((("experiments",), TESTS), (("experiments", "ibm"), TESTS_WITH_IBM)):
        yield [floor_of(line) for line in requirements(project, *extras).values()], tests


def check_types(python: Path, folder: Path) -> None:
    """A user's script outside of the checkout passes, and with a wrong argument it does not."""
    scripts = {"right.py": "100", "wrong.py": "'many'"}
    for name, shots in scripts.items():
        (folder / name).write_text(USERS_SCRIPT.format(shots=shots))
    # To read the types of PyTorch takes most of the time, and nothing here depends on them.
    (folder / "mypy.ini").write_text("[mypy]\nignore_missing_imports = true\n[mypy-torch.*]\nfollow_imports = skip\n")
    command = [python, "-m", "mypy", *scripts]
    said = subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True).stdout
    if '"shots" to "QuantumLayer"' not in said or "Found 1 error in 1 file (checked 2 source files)" not in said:
        raise SystemExit(f"mypy of a user's script, once with shots='many', says:\n{said}")
    print("mypy sees the types of the editable install", flush=True)


def _environment() -> dict[str, str]:
    """Ours, without what would have another Python, or another checkout, come in."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "MYPYPATH")}


def run(*command: str | Path) -> None:
    """Runs a command in the checkout, and says how long it took."""
    began = time.monotonic()
    status = subprocess.run(command, cwd=CHECKOUT, env=_environment()).returncode
    print(f"{time.monotonic() - began:.0f} s: {' '.join(map(str, command[:4]))} ...", flush=True)
    if status:
        raise SystemExit(status)


def main() -> None:
    """Tries one of the two environments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["floors", "newest"])
    parser.add_argument("--python", help="the interpreter; default: the lowest or highest of the classifiers")
    parser.add_argument("--list", action="store_true", help="only print what would be installed")
    given = parser.parse_args()
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if given.list:
        print(*(line for packages, _ in stages(project, given.which) for line in [*packages, ""]), sep="\n")
        return
    base = given.python or interpreter(lowest_and_highest_python(project)[given.which == "newest"])
    # Old versions warn of what newer Pythons and packages have deprecated since; new ones must not.
    warnings = ["-o", "filterwarnings=default"] if given.which == "floors" else []
    with tempfile.TemporaryDirectory(prefix=f"{given.which}-") as name:
        folder = Path(name)
        run(base, "-m", "venv", folder / "venv")
        python = folder / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
        for packages, tests in stages(project, given.which):
            run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages, "-e", CHECKOUT)
            run(python, "-m", "pip", "list", "--disable-pip-version-check")
            files = [f"tests/{test}" for test in tests]
            fast = ["-n", "auto", "-q", "-m", "not slow", "-p", "no:cacheprovider", *warnings]
            run(python, "-m", "pytest", *fast, *files)
        check_types(python, folder)


if __name__ == "__main__":
    main()
