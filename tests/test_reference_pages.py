"""The API reference: it is built without a warning; its pages lead to each other, need no network, say each thing once."""

import inspect
import re
import textwrap
from pathlib import Path

import pytest
import torch
from qiskit.circuit import ParameterVector, QuantumCircuit

import qiskit_torch_bridge
from experiments.__main__ import main
from experiments.reference import with_formulas

CODE = re.compile(r"<pre>.*?</pre>|<code>.*?</code>|<script.*?</script>", re.DOTALL)
PAGES = {
    "gradients": ["Parameter shift", "Finite differences", "SPSA", "Adjoint", "Mitarai"],
    "shots": ["Shots and statistics", "standard error", "Prediction"],
    "backends": ["statevector", "Which one?"],
    "backends/ibm": ["One job a training step", "A ledger", "Recordings"],
    "simulator": ["Performance", "Rules of thumb"],
    "testing": ["Extending", "RandomAngles", "QuantumInfoBackend"],
}


@pytest.fixture(scope="session")
def reference_folder(made_once):
    pytest.importorskip("pdoc")

    def make(folder: Path) -> None:
        assert main(["reference", "--out", str(folder)]) == 0

    return made_once("reference", make)


@pytest.fixture(scope="module")
def pages(reference_folder):
    """The text of each page by its path."""
    return {path.resolve(): path.read_text(encoding="utf-8") for path in reference_folder.rglob("*.html")}


@pytest.mark.slow
def test_the_reference_is_built_without_a_warning(reference_folder):
    """Each would be an error."""
    for page, words in PAGES.items():
        text = (reference_folder / "qiskit_torch_bridge" / f"{page}.html").read_text()
        missing = [word for word in words if word not in text]
        assert not missing, f"{page}: {missing}"
        assert "`~" not in text
    front = (reference_folder / "qiskit_torch_bridge.html").read_text()
    for name in qiskit_torch_bridge.__all__:
        assert f'id="{name}"' in front, f"{name} is not documented"
    index = (reference_folder / "search.js").read_text()
    assert re.findall(r'"fullname":\s*"([\w.]+\.QuantumLayer)"', index) == ["qiskit_torch_bridge.QuantumLayer"]
    gradients = (reference_folder / "qiskit_torch_bridge" / "gradients.html").read_text()
    assert '<a href="../qiskit_torch_bridge.html#ParameterShift"><code>' in gradients
    assert '<code><a href="../qiskit_torch_bridge.html#Stencil">' in gradients


@pytest.mark.slow
def test_all_links_lead_to_something(pages):
    anchors = {path: set(re.findall(r'id="([^"]+)"', text)) for path, text in pages.items()}
    links = [
        (path, *link.partition("#")[::2])
        for path, text in pages.items()
        for link in re.findall(r'href="([^"]+)"', re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL))
        if not link.startswith(("http", "data:"))
    ]
    assert len(links) > 2000
    for path, file, anchor in links:
        target = (path.parent / file).resolve() if file else path
        assert target in pages, (path, file)
        assert not anchor or anchor in anchors[target], (path, file, anchor)


@pytest.mark.slow
def test_every_page_can_be_reached_from_the_first(pages):
    reached = [path for path in pages if path.name == "qiskit_torch_bridge.html"]
    for path in reached:
        links = re.findall(r'href="([^"#:]+\.html)', re.sub(r"<script.*?</script>", "", pages[path], flags=re.DOTALL))
        reached += {(path.parent / link).resolve() for link in links} - set(reached)
    assert {path.name for path in set(pages) - set(reached)} == {"index.html"}  # which leads to the first


@pytest.mark.slow
def test_sidebars_have_no_bare_headings_and_lines_of_code_are_not_cut(pages):
    for path, text in pages.items():
        sidebar = re.search(r"<nav.*?</nav>", text, re.DOTALL)
        if sidebar:
            headings = re.findall(r"<h2>(?!\w[^<]*</h2>\s*<ul[^>]*>\s*<li>).*", sidebar[0])
            assert not headings, path
            assert re.search(r"\.pdoc pre\b[^}]*\{\s*white-space: ?pre-wrap", text), path


@pytest.mark.slow
def test_what_the_package_exports_is_documented_on_its_page_alone(pages):
    (start,) = (path for path in pages if path.name == "qiskit_torch_bridge.html")
    documented = re.findall(r'<section id="(\w+)">', pages[start])
    assert documented == qiskit_torch_bridge.__all__
    assert documented[0] == "QuantumLayer"
    for path, text in pages.items():
        if path != start:
            assert not set(re.findall(r'<section id="(\w+)">', text)) & set(documented), path
    for page in ("gradients", "backends", "backends/ibm", "simulator", "testing", "layerwise", "schedules"):
        assert f'href="qiskit_torch_bridge/{page}.html"' in pages[start]


@pytest.mark.slow
def test_formulas_are_drawn_without_a_network(pages):
    for path, text in pages.items():
        assert not re.search(r'(src|<link[^>]*href)="https?:', text), path
        assert not re.search(r"\$\$|\\\(", CODE.sub("", text)), path
    assert sum(text.count("<math") for text in pages.values()) > 50


def test_only_formulas_are_taken_for_formulas():
    page = r"<p>\(x^2\) costs $5</p><pre>\(x\)</pre><code>$$</code><p>$$a &lt; b$$</p>"
    inline, code, block = re.split(r"(<pre>.*</code>)", with_formulas(page))
    assert "<msup>" in inline
    assert "costs $5" in inline
    assert code == r"<pre>\(x\)</pre><code>$$</code>"
    assert 'display="block"' in block
    assert "&#x0003C;" in block


@pytest.mark.parametrize("page", [qiskit_torch_bridge, qiskit_torch_bridge.QuantumLayer])
def test_help_begins_with_an_example_that_runs(page):
    text = inspect.cleandoc(page.__doc__ or "")
    assert 0 < text.index("layer = QuantumLayer(") < text.find("Args:") % len(text)
    lines = text.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("    "))
    last = next(place for place in range(first, len(lines)) if lines[place] and not lines[place].startswith("    "))
    names = {"torch": torch, "nn": torch.nn, "ParameterVector": ParameterVector, "QuantumCircuit": QuantumCircuit}
    names["QuantumLayer"] = qiskit_torch_bridge.QuantumLayer
    exec(textwrap.dedent("\n".join(lines[first:last])), names)
    assert names["layer"].weights.grad.abs().max() > 0
    assert names["layer"].last_run.standard_errors.shape == (8, 2)
