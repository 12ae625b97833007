"""What the README and the pages that it leads to show runs, and gives what it says."""

import re
from pathlib import Path

import pytest
import torch

import qiskit_torch_bridge.backends.ibm as hardware
from experiments.catalogue import COMMANDS, TOOLS
from qiskit_torch_bridge import IBMBackend, QuantumLayer
from qiskit_torch_bridge.backends import resolve_backend
from qiskit_torch_bridge.circuits import dressed, textbook

CHECKOUT = Path(__file__).parent.parent
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "experiments").rglob("*.md"))]
ALL_PAGES = [*PAGES, *sorted((CHECKOUT / ".github").glob("*.md"))]
EXPERIMENTS_PAGES = "\n".join(page.read_text(encoding="utf-8") for page in PAGES[1:])


def test_the_readme_is_a_page():
    lines = README.splitlines()
    assert len(lines) <= 220
    assert len(README.split()) <= 2000


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_lines_are_short(page):
    """Only those of tables may be long."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) >= 120 and not line.startswith("|")]


def test_first_models_run():
    namespace: dict[str, object] = {}
    for block in BLOCKS[:2]:
        exec(block, namespace)
    assert namespace["accuracy"] > 0.85
    promised = re.search(r"\.circuits is (\d+), \.shots is ([\d,]+), in (\d) calls", BLOCKS[1])
    quote = namespace["layer"].quote(batch_size=8)
    assert (str(quote.circuits), f"{quote.shots:,}", str(quote.calls)) == promised.groups()
    assert namespace["parity"].num_outputs == 2


def test_hardware_lines_run_on_a_fake_device(tmp_path, monkeypatch, capsys):
    pytest.importorskip("qiskit_ibm_runtime")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    exec(BLOCKS[0], namespace)
    (lines,) = [block for block in BLOCKS if "IBMBackend" in block]
    exec(lines.replace("ibm_fez", "fake_manila").replace("shots=1000", "shots=20"), namespace)
    assert "jobs=1" in capsys.readouterr().out
    assert namespace["backend"].spent.jobs == 1
    assert not list(tmp_path.iterdir())


def _textbook(**options):
    circuit, inputs, weights = textbook()
    return QuantumLayer(circuit, inputs=inputs, weights=weights, probabilities=True, **options)


def _dressed(freeze=False, **options):
    circuit, inputs, weights = dressed(4, 2)
    groups = {"first": list(weights)[:4], "last": list(weights)[4:]}
    layer = QuantumLayer(circuit, inputs=inputs, weights=groups, **options)
    layer.weights["first"].requires_grad_(not freeze)
    return layer


PRICED = {
    "textbook's qubit, batch 1": lambda **o: _textbook(**o).quote(1),
    "the same, batch 50": lambda **o: _textbook(**o).quote(50),
    "dressed: 4 qubits": lambda **o: _dressed(**o).quote(4),
    "the same on plain data": lambda **o: _dressed(**o).quote(4, inputs_require_grad=False),
    "first half of the weights frozen": lambda **o: _dressed(freeze=True, **o).quote(4, inputs_require_grad=False),
    "spsa": lambda **o: _dressed(gradient="spsa", **o).quote(4),
}


@pytest.fixture(scope="module")
def fez():
    """The device that the word ``ibm:fake_fez`` opens, and the same with rows side by side; reading it takes a second."""
    pytest.importorskip("qiskit_ibm_runtime")
    alone = resolve_backend("ibm:fake_fez")
    return alone, IBMBackend(alone.device, packing="auto")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (place > 0)) for place, name in enumerate(PRICED)]
)
def test_prices_are_those_of_the_quotes(name, fez):
    lines = hardware.__doc__.splitlines()
    (line,) = [line for line in lines if line.startswith("|") and name in line and " s: " in line]
    circuits = int(re.search(r"\| (\d+) \|", line)[1])
    priced = re.findall(r"\| ([\d.]+) s: (\d+)", line)
    quotes = [PRICED[name](backend=backend, shots=shots) for shots in (100, 1000) for backend in fez]
    for quote, (seconds, steps) in zip(quotes, priced, strict=True):
        assert quote.circuits == circuits
        assert abs(quote.qpu_seconds - float(seconds)) < (0.5 if quote.qpu_seconds > 9 else 0.05)
        assert abs(600 / quote.qpu_seconds - int(steps)) < 1
    assert quotes[-1].qpu_seconds <= 4  # what packing is to reach for each of these


def test_error_bars_and_schedules_run(capsys):
    namespace: dict[str, object] = {}
    exec(BLOCKS[0], namespace)
    bars, schedules = (block for block in BLOCKS if "run.predicted" in block or "shot_gradcheck" in block)
    exec(bars, namespace)
    run = namespace["run"]
    assert run.predicted(shots=4000).gradient_standard_errors == pytest.approx(run.gradient_standard_errors / 2)
    assert (run.gradient_standard_errors > 0).all()
    exec(schedules, namespace)
    assert "agrees with the exact one" in capsys.readouterr().out


def test_layerwise_lines_run():
    blocks = re.findall(r"```python\n(.*?)```", EXPERIMENTS_PAGES, flags=re.DOTALL)
    (code,) = [block for block in blocks if "LayerwiseQuantumLayer" in block]
    namespace: dict[str, object] = {"torch": torch}
    exec(code, namespace)
    trained = [name for name, weight in namespace["grown"].named_parameters() if weight.requires_grad]
    assert len(trained) == 3  # the second half of six layers, in the last phase


def test_commands_name_what_there_is():
    commands = re.findall(r"python -m experiments ([\w-]+)", README + EXPERIMENTS_PAGES)
    assert len(commands) > 10
    assert set(commands) <= COMMANDS.keys() | TOOLS.keys() | {"NAME", "moons"}
    configurations = set(re.findall(r"([\w-]+\.yaml)", EXPERIMENTS_PAGES)) - {
        "FILE.yaml",
        "config.yaml",
        "NAME-small.yaml",
    }
    assert len(configurations) > 5
    assert all((CHECKOUT / "experiments" / "configs" / name).is_file() for name in configurations)


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_somewhere(page):
    """Files and pictures exist, and so do the headings of links into a page."""
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    for link in [link for link in links if not link.startswith("http")]:
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings], link
