"""How the library is built: what holds for all its files, and would slip away one small change at a time."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

import pytest

import qiskit_torch_bridge

TESTS = Path(__file__).parent
ROOT = TESTS.parent
LIBRARY = ROOT / "qiskit_torch_bridge"
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
# Each stood for several things, where the fields that this library is about have a noun.
WORDS_WITHOUT_MEANING = re.compile(r"found|mine|theirs|wanted|unit|its_.*")


@cache
def library():
    """(place, node, the class around it) of each node of the library's Python files."""
    return list(_parsed())


def _parsed():
    for path in sorted(LIBRARY.rglob("*.py")):
        nodes = [(ast.parse(path.read_text(encoding="utf-8")), None)]
        for node, owner in nodes:
            if hasattr(node, "lineno"):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node, owner
            inner = node if isinstance(node, ast.ClassDef) else owner
            nodes += [(child, inner) for child in ast.iter_child_nodes(node)]


def functions_outside_the_simulator():
    """(place, name, node, the class around it)."""
    for place, node, owner in library():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "/simulator/" not in place:
            yield place, f"{owner.name}.{node.name}" if owner else node.name, node, owner


DEPRECATED = LIBRARY / "readout.py"  # the old place of program/readout.py


def positional_arguments(cls):
    if not {"__init__", "__new__"} & vars(cls).keys():  # the constructor is another's
        return []
    try:
        parameters = inspect.signature(cls).parameters.values()
    except ValueError:  # the constructor of a built-in type
        return []
    return [parameter.name for parameter in parameters if parameter.kind in POSITIONAL]


def test_no_test_file_is_long():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in TESTS.rglob("*.py")}
    long = [f"{path.relative_to(ROOT)}: {lines}" for path, lines in lengths.items() if lines > 700]
    assert not long, f"files of more than 700 lines, to be split: {long}"


def test_file_names_are_not_used_twice():
    for folders in ([LIBRARY, ROOT / "experiments"], [TESTS]):
        paths = [path for folder in folders for path in sorted(folder.rglob("*.py")) if path != DEPRECATED]
        counts = Counter(path.name for path in paths)
        allowed = {"__init__.py", "__main__.py", "conftest.py"}
        shared = [str(path.relative_to(ROOT)) for path in paths if counts[path.name] > 1 and path.name not in allowed]
        assert not shared, f"files that share a name: {sorted(shared, key=lambda path: path.rsplit('/', 1)[-1])}"


def test_constructors_take_four_positional_arguments_at_most():
    names = [module.name for module in pkgutil.walk_packages(qiskit_torch_bridge.__path__, "qiskit_torch_bridge.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    offenders = []
    for module in [qiskit_torch_bridge, *modules]:
        for cls in vars(module).values():
            if inspect.isclass(cls) and cls.__module__ == module.__name__:
                arguments = positional_arguments(cls)
                if len(arguments) > 4:
                    offenders.append(f"{module.__name__}.{cls.__name__}({', '.join(arguments)})")
    assert not offenders, "constructors of more than four positional arguments:\n" + "\n".join(offenders)


def test_functions_are_short():
    """Outside the simulator; docstrings count, decorators do not. Their complexity is ruff's rule C901."""
    long = [
        f"{place}: {name} has {node.end_lineno - node.lineno + 1}"
        for place, name, node, _ in functions_outside_the_simulator()
        if node.end_lineno - node.lineno >= 50
    ]
    assert not long, "functions of more than 50 lines:\n" + "\n".join(long)


def test_functions_of_many_parameters_say_why():
    """More than seven, outside the simulator; the reason stands in its docstring or its class's."""
    silent = []
    for place, name, node, owner in functions_outside_the_simulator():
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        count = len([parameter for parameter in parameters if parameter.arg not in ("self", "cls")])
        if count <= 7:
            continue
        docs = " ".join(" ".join((ast.get_docstring(item) or "").split()) for item in (node, owner) if item)
        if not re.search(r"many (parameters|options)\b[^.]*\bbecause\b", docs):
            silent.append(f"{place}: {name} has {count}")
    wording = 'a sentence with "many parameters ... because ..." or "many options ... because ..."'
    assert not silent, f"more than 7 parameters, and no reason ({wording}) in the docstring:\n" + "\n".join(silent)


def test_readme_names_the_import_layers():
    """The first block of the section "Where things are": a line for each layer, its modules before two spaces.

    Modules of one layer are separated by ``|`` or commas; indented lines go on with what a line says.
    """
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 does not read TOML")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    [layers] = [contract["layers"] for contract in contracts["contracts"] if contract["type"] == "layers"]
    expected = [{name.strip().removeprefix("qiskit_torch_bridge.") for name in layer.split("|")} for layer in layers]

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^#+ Where things are\n.*?^```\w*\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    assert section, 'README.md has no section "Where things are" with a block that lists the layers'
    lines = [line for line in section[1].splitlines() if re.match(r"\S", line)]
    stated = [set(re.findall(r"[\w.]+", re.split(r"\s\s+", line)[0].replace(".py", ""))) for line in lines]
    assert [{name.removeprefix("qiskit_torch_bridge.") for name in names} for names in stated] == expected


def test_the_library_does_not_send_its_users_to_the_experiments():
    """They are not installed with it."""
    named = []
    for path in sorted(LIBRARY.rglob("*.py")):
        lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        named += [f"{path.relative_to(ROOT)}:{n}" for n, line in lines if "python -m experiments" in line]
    assert not named, f"`python -m experiments` stands in {named}"


def test_names_say_what_a_value_is():
    named = defaultdict(set)
    for place, node, _ in library():
        path, line = place.split(":")
        for identifier in [getattr(node, field, None) for field in ("id", "arg", "attr", "name", "asname")]:
            if identifier and WORDS_WITHOUT_MEANING.fullmatch(str(identifier)):
                named[f"{path}: {identifier}"].add(int(line))
    offenders = [f"{place} in {sorted(lines)}" for place, lines in sorted(named.items())]
    assert not offenders, "identifiers that say nothing about their values:\n" + "\n".join(offenders)
