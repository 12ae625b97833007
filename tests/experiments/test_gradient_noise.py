"""What a run logs of its gradients' noise: against what the layers say, scatter, and other ways to count."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from experiments.common.gradient_noise import COLUMNS, GradientNoise, columns, variances
from qiskit_torch_bridge import LayerwiseQuantumLayer, Phase, QuantumLayer
from qiskit_torch_bridge.circuits import dressed, ring_layers, textbook

SHOTS = 50
EMPTY = dict.fromkeys(COLUMNS, "")


def layer_of(**options: Any) -> QuantumLayer:
    circuit, inputs, weights = dressed(2, 1)
    options = {"shots": SHOTS, "gradient": "parameter_shift", "seed": 0, **options}
    return QuantumLayer(circuit, inputs=inputs, weights=weights, **options)


def step(model: nn.Module, batch: int = 3) -> None:
    """A backward of a loss, with a batch that is the same each time."""
    model.zero_grad()
    model(torch.linspace(0, 1, 2 * batch).reshape(batch, 2)).sum(dim=1).mean().backward()


def noise_of(model: nn.Module, steps: int = 4, every: int = 1) -> GradientNoise:
    noise = GradientNoise(model, every=every)
    for number in range(steps):
        step(model)
        noise.look(number)
    return noise


def test_columns_are_what_the_runs_say():
    model = nn.Sequential(nn.Linear(2, 2), layer_of(), layer_of(seed=1))
    noise, errors, ratios = GradientNoise(model, every=2), [], []
    for number in range(6):
        step(model)
        noise.look(number)
        if number % 2 == 0:
            runs = [layer.last_run for layer in model[1:]]
            errors.append(np.concatenate([run.gradient_standard_errors for run in runs]))
            ratios.append(np.concatenate([run.signal_to_noise for run in runs]))
    of_weights = np.median(ratios, axis=0)
    expected = (np.sqrt(np.mean(np.square(errors))), np.median(of_weights), of_weights.min())
    assert tuple(columns([noise.state()]).values()) == pytest.approx(expected)
    rows = variances([noise.state()])
    assert [row["variance"] for row in rows] == pytest.approx(np.mean(np.square(errors), axis=0))
    assert [(row["layer"], row["weight"], row["steps"]) for row in rows[:1]] == [("1.weights", 0, 3)]
    noise.clear()
    assert columns([noise.state()]) == EMPTY
    assert variances([noise.state()]) == []


def test_variances_are_the_scatter_of_gradients():
    layer, steps = layer_of(), 300
    noise, gradients = GradientNoise(layer, every=1), []
    for number in range(steps):
        step(layer)
        gradients.append(layer.weights.grad.numpy().copy())
        noise.look(number)
    told = np.array([row["variance"] for row in variances([noise.state()])])
    for ratio in np.var(gradients, axis=0, ddof=1) / told:
        chi_square = stats.chi2(steps - 1)
        assert 2 * min(chi_square.cdf(ratio * (steps - 1)), chi_square.sf(ratio * (steps - 1))) > 1e-4


def test_processes_have_the_noise_of_one():
    """Each has its share of the rows, and divides its losses by the rows of all."""
    one = layer_of(shots=4000)
    whole, shares = columns([noise_of(one, steps=40).state()]), []
    for rank, rows in enumerate((slice(0, 2), slice(2, 3))):
        layer = layer_of(shots=4000, seed=(1, rank))
        layer.load_state_dict(one.state_dict())
        noise = GradientNoise(layer, every=1)
        for number in range(40):
            layer.zero_grad()
            features = torch.linspace(0, 1, 6).reshape(3, 2)[rows]
            (layer(features).sum() / 3).backward()
            noise.look(number)
        shares.append(noise.state())
    together = columns(shares)
    assert together["gradient_standard_error"] == pytest.approx(whole["gradient_standard_error"], rel=0.03)
    assert together["gradient_snr_median"] == pytest.approx(whole["gradient_snr_median"], rel=0.1)
    alone = columns(shares[:1])  # which would be wrong
    assert alone["gradient_standard_error"] != pytest.approx(whole["gradient_standard_error"], rel=0.1)


def test_inputs_stand_in_where_there_are_no_trained_weights():
    circuit, inputs, weights = textbook()
    layer = QuantumLayer(circuit, inputs=inputs, weights=weights, probabilities=True, shots=SHOTS, seed=0)
    model = nn.Sequential(nn.Linear(2, 1), layer)
    noise = GradientNoise(model, every=1)
    model(torch.rand(3, 2))[:, 0].sum().backward()
    noise.look(0)
    error = layer.last_run.input_gradient_standard_errors
    (row,) = variances([noise.state()])
    assert (row["layer"], row["steps"]) == ("inputs of 1", 3)
    assert row["variance"] == pytest.approx((error**2).mean())
    frozen = nn.Sequential(nn.Linear(2, 2), layer_of().requires_grad_(False))
    assert [row["layer"] for row in variances([noise_of(frozen).state()])] == ["inputs of 1"] * 2


@pytest.mark.parametrize(
    "options",
    [{"shots": None}, {"shots": None, "gradient": "adjoint"}, {"shots": 1}],
    ids=["exact", "adjoint", "one shot"],
)
def test_what_no_step_tells_is_empty(options):
    told = columns([noise_of(layer_of(**options)).state()])
    assert told == EMPTY
    assert all(row["variance"] == "" for row in variances([noise_of(layer_of(**options)).state()]))


@pytest.mark.parametrize("gradient", ["parameter_shift", "finite_difference", "spsa"])
@pytest.mark.parametrize("backend", ["statevector", "aer"])
def test_rules_that_measure(gradient, backend):
    told = columns([noise_of(layer_of(gradient=gradient, backend=backend)).state()])
    assert all(isinstance(value, float) and 0 < value < np.inf for value in told.values())


def test_steps_without_noise_do_not_spoil_an_epoch():
    layer = layer_of()
    noise = noise_of(layer, steps=2)
    before = columns([noise.state()])
    layer.zero_grad()
    (layer(torch.rand(3, 2)).sum() * 0).backward()  # 0 / 0
    noise.look(2)
    layer(torch.rand(3, 2), shots=1).sum().backward()  # one shot: not known
    noise.look(3)
    after = columns([noise.state()])
    assert [after[name] for name in COLUMNS[1:]] == [before[name] for name in COLUMNS[1:]]
    assert after[COLUMNS[0]] == pytest.approx(before[COLUMNS[0]] * (2 / 3) ** 0.5)


def test_no_gradient_leaves_no_trace():
    layer = layer_of()
    noise = GradientNoise(layer, every=1)
    noise.look(0)  # never called
    with torch.no_grad():
        layer(torch.rand(3, 2))
    noise.look(1)
    weights = layer.weights.detach()
    features = torch.rand(3, 2)
    torch.func.grad(lambda w: torch.func.functional_call(layer, {"weights": w}, features).sum())(weights)
    noise.look(2)
    torch.func.vmap(
        torch.func.grad(lambda w, x: torch.func.functional_call(layer, {"weights": w}, x).sum()), (None, 0)
    )(weights, features)
    noise.look(3)
    assert noise.state() == {}


def test_of_several_calls_the_last_counts():
    layer = layer_of()
    noise = GradientNoise(layer, every=1)
    (layer(torch.rand(3, 2)).sum() + layer(torch.rand(2, 2)).sum()).backward()
    noise.look(0)
    (seen,) = noise.state().values()
    np.testing.assert_array_equal(seen["gradients"][0], layer.last_run.gradients)
    assert seen["steps"].tolist() == [0]


def test_layers_that_grow_and_groups_that_are_frozen():
    layer = LayerwiseQuantumLayer(lambda depth: ring_layers(2, depth), 1, init="uniform", shots=SHOTS, seed=0)
    assert {row["layer"] for row in variances([noise_of(layer).state()])} == {"quantum.layer0"}
    layer.enter(Phase("second", 2, (1,), 1))
    assert {row["layer"] for row in variances([noise_of(layer).state()])} == {"quantum.layer1"}


def test_a_state_goes_through_a_checkpoint(tmp_path: Path):
    def states(parts: Sequence[range]) -> dict[str, Any]:
        model = layer_of()
        noise = GradientNoise(model, every=2)
        for part in parts:
            torch.save(noise.state(), tmp_path / "state.pt")
            noise = GradientNoise(model, every=2)
            noise.restore(torch.load(tmp_path / "state.pt", weights_only=True))
            for number in part:
                step(model)
                noise.look(number)
        return noise.state()

    straight, broken = states([range(9)]), states([range(3), range(3, 9)])
    assert columns([straight]) == columns([broken])
    assert variances([straight]) == variances([broken])


def test_one_step_in_so_many_is_looked_at():
    (seen,) = noise_of(layer_of(), steps=7, every=3).state().values()
    assert seen["steps"].tolist() == [0, 3, 6]
