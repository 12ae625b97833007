"""The notebooks of the course: they run, their solutions hold, and the outputs beside their code are its own.

``python tests/test_notebooks.py`` executes them where they are and keeps the new outputs; with names, only these.
"""

import ast
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import nbformat
import pytest
from ipykernel.kernelapp import IPKernelApp
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

import qiskit_torch_bridge

CHECKOUT = Path(__file__).resolve().parent.parent
FOLDER = CHECKOUT / "experiments" / "notebooks"
LESSONS = [
    "1-a-circuit-becomes-a-layer",
    "2-gradients-of-circuits",
    "3-a-hybrid-cnn-on-digits",
    "4-shot-noise",
    "5-to-real-hardware",
    "6-quantum-transfer-learning",
]
PACKAGES = {"copy", "matplotlib", "numpy", "pathlib", "qiskit", "qiskit_torch_bridge", "sklearn", "torch"}
PLACEHOLDER = "# Your solution"
SOLUTION = "<details><summary>Solution</summary>"
LARGEST = 200_000  # bytes: a code host renders that at once
WITHOUT_NETWORK = """
import socket


def refuse(*arguments, **options):
    raise OSError("lessons need no network")


socket.getaddrinfo = refuse
"""

every_lesson = pytest.mark.parametrize("lesson", LESSONS)


def read(lesson: str) -> Any:
    return nbformat.read(FOLDER / f"{lesson}.ipynb", as_version=4)


class ForkedKernel(AsyncKernelManager):
    """A kernel in a process that has the imports, which take as long as a lesson; see :func:`runs.forked`."""

    has_kernel = True

    def __init__(self) -> None:
        super().__init__(owns_kernel=False)  # its process is ours, and not the manager's to ask whether it lives

    @contextmanager
    def running(self, folder: Path) -> Iterator[None]:
        """Within it, the kernel runs; it starts in that folder."""
        from runs import start  # only pytest finds it

        self.write_connection_file()
        process = start(self.connection_file, str(folder), program=serve)
        try:
            yield
        finally:
            process.kill()
            process.join()
            self.cleanup_connection_file()


def serve(connection_file: str, folder: str) -> None:
    """A kernel, in its own process."""
    os.chdir(folder)
    matplotlib.use("module://matplotlib_inline.backend_inline")  # as a kernel tells those who import it later
    IPKernelApp.launch_instance(argv=["-f", connection_file])


def execute(notebook: Any, folder: Path, kernel: ForkedKernel | None = None) -> None:
    """Runs a notebook in a folder; leaves nothing in it that depends on the day or on the machine.

    Args:
        notebook: It gets the outputs.
        folder: Where a new kernel starts.
        kernel: In place of a new one.
    """
    metadata = nbformat.from_dict(notebook.metadata)
    resources = {"metadata": {"path": str(folder)}}
    options = {"timeout": 600, "record_timing": False, "coalesce_streams": True, "resources": resources}
    client = NotebookClient(notebook, km=kernel, **options)
    client.execute()
    if kernel is not None:
        client.kc.stop_channels()
    notebook.metadata = metadata  # without the version of Python
    for cell in notebook.cells:
        cell.metadata.clear()


def refresh(lessons: list[str]) -> None:
    """Executes lessons where they are, and keeps the outputs."""
    for lesson in lessons:
        notebook = read(lesson)
        execute(notebook, FOLDER)
        nbformat.write(notebook, FOLDER / f"{lesson}.ipynb")


def markdown(notebook: Any) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def solution_of(cell: Any) -> str | None:
    """The code of a hidden solution; None for a cell that is none."""
    if cell.cell_type != "markdown" or not cell.source.startswith(SOLUTION):
        return None
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", cell.source, re.MULTILINE | re.DOTALL))


def with_solutions(notebook: Any) -> Any:
    """The notebook with each solution as a code cell where a student would have written it, and without network."""
    cells = [nbformat.v4.new_code_cell(WITHOUT_NETWORK)]
    for cell in notebook.cells:
        cells.append(cell)
        if solution := solution_of(cell):
            cells.append(nbformat.v4.new_code_cell(solution))
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


def trees(notebook: Any) -> Iterator[ast.AST]:
    """The syntax of all code, that of the solutions included."""
    for cell in notebook.cells:
        yield ast.parse(cell.source if cell.cell_type == "code" else solution_of(cell) or "")


def outline(cell: Any) -> list[tuple[str, str]]:
    """What a cell's outputs show: their kinds, and texts with every number left open."""
    shown = []
    for output in cell.outputs:
        data = output.get("data", {})
        kind = "image/png" if "image/png" in data else output.output_type
        text = "" if kind == "image/png" else output.get("text", "") or data.get("text/plain", "")
        if output.get("name") == "stderr" and text.startswith("Compiling the simulator"):
            continue  # the first use on a machine says so, once
        numbers = re.sub(r"[-+]?(\d[\d,]*\.?\d*|\.\d+)(e[-+]?\d+)?", "#", text)
        # NumPy leaves room for a sign where a number of the array has one.
        shown.append((output.get("name", kind), " ".join(numbers.split()).replace("[ #", "[#")))
    return shown


def test_there_are_these_lessons():
    assert [path.stem for path in sorted(FOLDER.glob("*.ipynb"))] == LESSONS


@every_lesson
def test_linked_from_the_readme_and_from_each_other(lesson):
    assert f"(experiments/notebooks/{lesson}.ipynb)" in (CHECKOUT / "README.md").read_text(encoding="utf-8")
    text = markdown(read(lesson))
    links = [link.partition("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)]
    assert all((FOLDER / link).is_file() for link in links)
    following = LESSONS[LESSONS.index(lesson) + 1 :][:1]
    assert {f"{name}.ipynb" for name in following} <= set(links)


@every_lesson
def test_opens_with_what_will_be_learned_and_what_is_needed(lesson):
    title, setup = read(lesson).cells[:2]
    assert title.source.startswith(f"# Lesson {lesson[0]}: ")
    assert title.source.index("**What you will learn**") < title.source.index("**Before you start.**")
    assert "torch.manual_seed(" in setup.source


@every_lesson
def test_exercises_have_hidden_solutions(lesson):
    cells = read(lesson).cells
    asked = [n for n, cell in enumerate(cells) if cell.cell_type == "markdown" and "**Exercise" in cell.source]
    assert len(asked) >= 3
    for number, place in enumerate(asked, start=1):
        assert re.findall(r"\*\*Exercise (\d+)\.\*\*", cells[place].source) == [str(number)]
        assert cells[place + 1].source == PLACEHOLDER
        code = solution_of(cells[place + 2])
        assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(code)))
        assert cells[place + 2].source.endswith("</details>")
    assert len(asked) == sum(solution_of(cell) is not None for cell in cells)


@every_lesson
def test_uses_the_public_interface_only(lesson):
    for tree in trees(read(lesson)):
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= PACKAGES - {"qiskit_torch_bridge"}
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] in PACKAGES
                if (node.module or "").startswith("qiskit_torch_bridge"):
                    assert node.module == "qiskit_torch_bridge"
                    assert {alias.name for alias in node.names} <= set(qiskit_torch_bridge.__all__)
            elif isinstance(node, ast.Attribute):
                assert not re.match(r"_(?!_)", node.attr)


@every_lesson
def test_kept_with_outputs_that_suit_every_machine(lesson):
    path = FOLDER / f"{lesson}.ipynb"
    assert path.stat().st_size < LARGEST
    notebook = read(lesson)
    nbformat.validate(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata["language_info"]) == {"name"}  # no version of Python
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, 1 + len(code)))
    assert not any(cell.metadata for cell in notebook.cells)
    kinds = [kind for cell in code for kind, _ in outline(cell)]
    assert set(kinds) <= {"stdout", "execute_result", "image/png"}
    assert kinds.count("image/png") >= 3
    texts = " ".join(str(o) for cell in code for o in cell.outputs if "image/png" not in o.get("data", {}))
    assert not re.search(r"0x[0-9a-f]{6}|/(?:home|root|Users|tmp|usr)/|site-packages", texts)
    assert str(CHECKOUT) not in texts


@pytest.mark.slow
@every_lesson
def test_runs_with_its_solutions_as_it_is_kept(lesson, tmp_path):
    notebook = read(lesson)
    if "IBMBackend" in "".join(cell.source for cell in notebook.cells):
        pytest.importorskip("qiskit_ibm_runtime")
    workplace = tmp_path / "experiments" / "notebooks"
    workplace.mkdir(parents=True)
    shutil.copytree(CHECKOUT / "experiments" / "recordings", workplace.parent / "recordings")
    executed = with_solutions(notebook)
    kernel = ForkedKernel()
    with kernel.running(workplace):
        execute(executed, workplace, kernel)
    assert not list(workplace.iterdir())  # lessons leave nothing behind
    outputs = {cell.id: outline(cell) for cell in executed.cells if cell.cell_type == "code"}
    assert not any(kind in ("stderr", "error") for shown in outputs.values() for kind, _ in shown)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert outputs[cell.id] == outline(cell), cell.source


if __name__ == "__main__":
    refresh(sys.argv[1:] or LESSONS)
