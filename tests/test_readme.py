"""What the README shows runs, and gives what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from experiments.__main__ import EXPERIMENTS, TOOLS

CHECKOUT = Path(__file__).parent.parent
README = (CHECKOUT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_first_models_run():
    first, second, *_ = BLOCKS
    namespace: dict[str, object] = {}
    exec(first, namespace)
    exec(second, namespace)
    promised = re.search(r"# (Quote\(.*?\))", second)
    assert promised is not None
    assert repr(namespace["layer"].quote(batch_size=8)) == promised[1]
    assert namespace["per_sample"].shape == (8, 8)
    assert namespace["parity"].num_outputs == 2


def test_first_model_has_ten_lines():
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 10


def test_hardware_lines_run_on_a_fake_device():
    """In IBM's local mode: the same Sampler, with a fake device in place of the service's."""
    pytest.importorskip("qiskit_ibm_runtime")
    from qiskit_ibm_runtime.fake_provider import FakeManilaV2

    from qiskit_torch_bridge.backends.ibm import sampler_for

    namespace: dict[str, object] = {"device": sampler_for(FakeManilaV2())}
    exec(BLOCKS[0], namespace)
    code = "\n".join(line for line in BLOCKS[2].splitlines() if "QiskitRuntimeService" not in line)
    exec(code, namespace)
    layer = namespace["layer"]
    assert layer.backend.device.name == "fake_manila"
    assert layer(torch.rand(1, 2)).shape == (1, 2)


def test_layerwise_lines_run():
    (code,) = [block for block in BLOCKS if "LayerwiseQuantumLayer" in block]
    namespace: dict[str, object] = {"torch": torch}
    exec(code, namespace)
    trained = [name for name, weight in namespace["grown"].named_parameters() if weight.requires_grad]
    assert len(trained) == 3  # the second half of six layers, in the last phase


def test_commands_name_what_there_is():
    commands = re.findall(r"python -m experiments (\w+)", README)
    assert len(commands) > 10
    assert set(commands) <= EXPERIMENTS.keys() | TOOLS.keys() | {"NAME"}
    configurations = set(re.findall(r"([\w-]+\.yaml)", README)) - {"FILE.yaml", "config.yaml"}
    assert len(configurations) > 5
    assert all((CHECKOUT / "experiments" / "configs" / name).is_file() for name in configurations)


def test_pictures_exist():
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((CHECKOUT / picture).is_file() for picture in pictures)
