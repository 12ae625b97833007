"""What the README shows runs, and gives what it says."""

import re
from pathlib import Path

import pytest
import torch

from experiments.__main__ import EXPERIMENTS, TOOLS
from qiskit_torch_bridge import QuantumLayer
from qiskit_torch_bridge.circuits import dressed, textbook

CHECKOUT = Path(__file__).parent.parent
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_first_models_run():
    first, second, *_ = BLOCKS
    namespace: dict[str, object] = {}
    exec(first, namespace)
    exec(second, namespace)
    promised = re.search(r"\.circuits is (\d+), \.shots is ([\d,]+), in (\d) calls", second)
    quote = namespace["layer"].quote(batch_size=8)
    assert (str(quote.circuits), f"{quote.shots:,}", str(quote.calls)) == promised.groups()
    assert namespace["per_sample"].shape == (8, 8)
    assert namespace["parity"].num_outputs == 2


def test_first_model_has_ten_lines():
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 10


def test_hardware_lines_run_on_a_fake_device(tmp_path, monkeypatch, capsys):
    pytest.importorskip("qiskit_ibm_runtime")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    exec(BLOCKS[0], namespace)
    (hardware,) = [b for b in BLOCKS if "from qiskit_torch_bridge import IBMBackend" in b and "ibm_fez" in b]
    exec(hardware.replace("ibm_fez", "fake_manila").replace("shots=1000", "shots=20"), namespace)
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
    "dressed circuit": lambda **o: _dressed(**o).quote(4),
    "the same on plain data": lambda **o: _dressed(**o).quote(4, inputs_require_grad=False),
    "first half of the weights frozen": lambda **o: _dressed(freeze=True, **o).quote(4, inputs_require_grad=False),
    "spsa": lambda **o: _dressed(gradient="spsa", **o).quote(4),
}


@pytest.mark.parametrize("name", PRICED)
def test_prices_are_those_of_the_quotes(name):
    pytest.importorskip("qiskit_ibm_runtime")
    (line,) = [line for line in README.splitlines() if line.startswith("|") and name in line and " s |" in line]
    circuits, *priced = re.findall(r"\| ([\d.]+)", line)
    for shots, seconds, steps in zip((100, 1000), priced[::2], priced[1::2], strict=True):
        quote = PRICED[name](backend="ibm:fake_fez", shots=shots)
        assert quote.circuits == int(circuits)
        assert abs(quote.qpu_seconds - float(seconds)) < (0.5 if quote.qpu_seconds > 9 else 0.05)
        assert abs(600 / quote.qpu_seconds - int(steps)) < 1


def test_error_bars_and_schedules_run(capsys):
    namespace: dict[str, object] = {}
    exec(BLOCKS[0], namespace)
    bars, schedules = (block for block in BLOCKS if "last_run.predicted" in block or "shot_gradcheck" in block)
    exec(bars, namespace)
    run = namespace["run"]
    assert run.predicted(shots=4000).gradient_standard_errors == pytest.approx(run.gradient_standard_errors / 2)
    assert (run.gradient_standard_errors > 0).all()
    exec(schedules, namespace)
    assert "agrees with the exact one" in capsys.readouterr().out


def test_layerwise_lines_run():
    (code,) = [block for block in BLOCKS if "LayerwiseQuantumLayer" in block]
    namespace: dict[str, object] = {"torch": torch}
    exec(code, namespace)
    trained = [name for name, weight in namespace["grown"].named_parameters() if weight.requires_grad]
    assert len(trained) == 3  # the second half of six layers, in the last phase


def test_commands_name_what_there_is():
    commands = re.findall(r"python -m experiments ([\w-]+)", README)
    assert len(commands) > 10
    assert set(commands) <= EXPERIMENTS.keys() | TOOLS.keys() | {"NAME"}
    configurations = set(re.findall(r"([\w-]+\.yaml)", README)) - {"FILE.yaml", "config.yaml", "NAME-small.yaml"}
    assert len(configurations) > 5
    assert all((CHECKOUT / "experiments" / "configs" / name).is_file() for name in configurations)


def test_pictures_exist():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((CHECKOUT / picture).is_file() for picture in pictures)
