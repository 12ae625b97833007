"""The API reference: the examples in its pages run."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import features, oracle, problem

import qiskit_torch_bridge.layer
import qiskit_torch_bridge.testing
from qiskit_torch_bridge import Backend, GradientRule, QuantumLayer
from qiskit_torch_bridge.testing import shot_gradcheck

EXAMPLES = re.findall(r"```python\n(.*?)```", qiskit_torch_bridge.testing.__doc__, re.DOTALL)


def defined_by(example: str) -> object:
    """The class that an example defines."""
    namespace: dict[str, object] = {"__name__": __name__}
    exec(compile(example, "example", "exec"), namespace)
    (name,) = (node.name for node in ast.parse(example).body if isinstance(node, ast.ClassDef))
    return namespace[name]


def test_examples_are_short():
    rule, backend, check = EXAMPLES
    assert "GradientRule" in rule
    assert "Backend" in backend
    assert "shot_gradcheck" in check
    assert max(len(example.splitlines()) for example in EXAMPLES) < 40


@pytest.mark.slow
def test_examples_have_types(tmp_path, monkeypatch):
    mypy = pytest.importorskip("mypy.api")
    typed = re.findall(r"```python\n(.*?)```", qiskit_torch_bridge.layer.__doc__, re.DOTALL)
    for number, example in enumerate([*EXAMPLES[:2], *typed]):
        (tmp_path / f"example_{number}.py").write_text(example)
    checkout = Path(qiskit_torch_bridge.__file__).parents[1]
    monkeypatch.setenv("MYPYPATH", str(checkout))
    # By the same rules and from the same cache as the library itself, which takes seconds where that has been checked.
    options = ["--config-file", str(checkout / "pyproject.toml"), "--cache-dir", str(checkout / ".mypy_cache")]
    said, _, status = mypy.run([*options, *map(str, tmp_path.glob("*.py"))])
    assert (status, said) == (0, "Success: no issues found in 3 source files\n")


def layer_of(name: str, **options: object) -> tuple[QuantumLayer, torch.Tensor | None]:
    return problem(name).layer(oracle(name).weights, **options), features(oracle(name))


@pytest.mark.parametrize("name", ["entangled_pair", "only_weights"])
def test_the_rule_is_right_in_the_mean(name):
    rule = defined_by(EXAMPLES[0])
    assert issubclass(rule, GradientRule)
    layer, inputs = layer_of(name, gradient=rule(1), shots=200, seed=1)
    assert shot_gradcheck(layer, *([] if inputs is None else [inputs]), repeats=400)
    costs, _ = layer_of(name, gradient="parameter_shift", shots=200)
    if layer.program.influential.sum() > 2:
        assert layer.quote(4).circuits < costs.quote(4).circuits


def test_the_rule_without_its_factor_would_be_seen():
    rule = defined_by(EXAMPLES[0].replace(" * len(columns) / count", ""))
    layer, inputs = layer_of("entangled_pair", gradient=rule(1), shots=200, seed=1)
    assert not shot_gradcheck(layer, inputs, repeats=200, raise_exception=False)


@pytest.mark.parametrize(
    "name",
    [
        "entangled_pair",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("shared_parameters", "weight_groups")),
    ],
)
def test_the_backend_measures_what_the_circuit_says(name):
    backend = defined_by(EXAMPLES[1])
    assert issubclass(backend, Backend)
    layer, inputs = layer_of(name, backend=backend(), shots=2000, seed=1)
    values = layer() if inputs is None else layer(inputs)
    found, errors = values.detach().numpy().reshape(oracle(name).values.shape), layer.last_run.standard_errors
    assert (np.abs(found - oracle(name).values) < 5 * errors + 1e-9).all()
    layer.shots = 1000
    assert shot_gradcheck(layer, *([] if inputs is None else [inputs]), repeats=20)


def test_the_backend_refuses_before_it_runs():
    from qiskit import QuantumCircuit

    with pytest.raises(ValueError, match="expected at most 12"):
        QuantumLayer(QuantumCircuit(13), backend=defined_by(EXAMPLES[1])())
