"""The command ``qtb`` itself: that it is there, answers at once, and ends as a program should."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import qiskit_torch_bridge
from qiskit_torch_bridge import HardwareError, __all__, commands
from qiskit_torch_bridge.commands import exit_status, main
from qiskit_torch_bridge.commands.parsers import COMMANDS

PACKAGE = Path(qiskit_torch_bridge.__file__).parent
HEAVY = "print(*sorted({'torch', 'qiskit', 'scipy', 'numba'} & sys.modules.keys()), file=sys.stderr)"


def in_a_process(*arguments: str, after: str = "") -> subprocess.CompletedProcess[str]:
    """``python -m qiskit_torch_bridge`` with these arguments, and a statement when it is done."""
    code = f"import atexit, runpy, sys; atexit.register(lambda: exec({after!r})); sys.argv[1:] = {list(arguments)!r}; "
    code += "runpy.run_module('qiskit_torch_bridge', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)


def test_the_script_is_installed_under_its_name():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read pyproject.toml")
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert EntryPoint("qtb", project["scripts"]["qtb"], "console_scripts").load() is main


@pytest.mark.parametrize("arguments", [[], ["--help"], ["jobs", "--help"], ["chek"], ["jobs", "--colect", "x"]])
def test_help_and_typing_errors_do_not_wait_for_pytorch(arguments):
    done = in_a_process(*arguments, after=HEAVY)
    is_help = arguments[-1:] in ([], ["--help"])
    assert done.returncode == (0 if is_help else 2)
    *said, heavy = done.stderr.split("\n")[:-1]
    assert heavy == ""
    assert (said, bool(done.stdout)) == ([], True) if is_help else (len(said), done.stdout) == (1, "")


def test_help_names_all_commands_and_each_explains_itself(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    for command, (summary, *_) in COMMANDS.items():
        assert f"{command} " in listed
        assert summary in listed
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert f"usage: qtb {command}" in capsys.readouterr().out


def test_a_mistyped_command_is_guessed(capsys):
    assert main(["recrod", "x"]) == 2
    assert capsys.readouterr().err.endswith("'replay'; did you mean 'record'?\n")


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (ValueError("one\n  line"), 1, "qtb x: one line\n"),
        (HardwareError("no device"), 1, "qtb x: no device\n"),
        (KeyboardInterrupt(), 130, "\nqtb x: interrupted\n"),
    ],
)
def test_what_fails_is_said_in_one_line(capsys, error, status, says):
    def fail() -> int:
        raise error

    assert exit_status("qtb x", fail) == status
    assert capsys.readouterr().err == says


def test_a_bug_is_not_explained_away():
    with pytest.raises(ZeroDivisionError):
        exit_status("qtb x", lambda: 1 // 0)


def test_a_reader_that_has_seen_enough_is_no_failure_to_talk_about():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "qiskit_torch_bridge"], cwd=PACKAGE.parent, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


# The package that the command comes with.


def test_the_library_does_not_name_the_experiments():
    named = re.compile(r"-m experiments|(from|import) experiments|experiments[./]\w")
    assert [path.name for path in PACKAGE.rglob("*.py") if named.search(path.read_text(encoding="utf-8"))] == []


def test_public_names_are_imported_on_first_use_and_modules_are_attributes():
    for name in __all__:
        assert getattr(qiskit_torch_bridge, name).__name__ == name
    assert qiskit_torch_bridge.circuits.textbook is not None
    assert qiskit_torch_bridge.commands is commands
    for name in ("nowhere", "__main__", "_LAZY"):
        with pytest.raises(AttributeError, match=name):
            getattr(qiskit_torch_bridge, name)


def test_type_checkers_see_the_names_that_users_see():
    (block,) = [node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If)]
    imported: dict[str, Any] = {
        alias.name: f".{node.module}" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert imported == qiskit_torch_bridge._MODULE_OF
    assert sorted(imported) == sorted(__all__)
