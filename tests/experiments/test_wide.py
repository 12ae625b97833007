"""The experiment on all qubits of a device: its map and circuit, noise on parts of it, and the command."""

import re
from functools import partial, reduce

import numpy as np
import pytest
import torch
import yaml
from qiskit_aer.noise import NoiseModel
from runs import CONFIGS, assert_refused, assert_same_run, interrupted, metrics, parsed, result, spent_as_said

from experiments.__main__ import main
from experiments.common.options import flat
from experiments.common.runs import RunFolder
from experiments.wide import learning
from experiments.wide.chips import Chip, chip_of
from experiments.wide.kicked_ising import LEAST, MOST, hidden_weights, kicked_ising, layer_of, product_states
from experiments.wide.learning import EXPERIMENT, hidden_model, share_within, squared_error
from experiments.wide.on_device import noisy_magnetisations, quote_of_step
from qiskit_torch_bridge import DensityMatrixBackend, QuantumLayer, Quote

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = ["--chip", "manila", "--train", "6", "--test", "5", "--batch-size", "3", "--seed", "3"]
ONE = [*SMALL, "--model", "coupled"]
settings_of = partial(parsed, EXPERIMENT)


@pytest.fixture(scope="module")
def sherbrooke() -> Chip:
    return chip_of("sherbrooke")


@pytest.fixture(scope="module")
def manila() -> Chip:
    return chip_of("manila")


def run(*arguments: str) -> int:
    return main(["wide", *arguments])


class TestChips:
    def test_all_couplings_of_a_device(self, sherbrooke):
        pairs = {(min(pair), max(pair)) for pair in sherbrooke.device.coupling_map.get_edges()}
        assert sherbrooke.physical == tuple(range(127))
        assert (len(sherbrooke.couplings), set(sherbrooke.couplings)) == (144, pairs)

    def test_couplings_in_three_layers(self, sherbrooke):
        """As they stand, each qubit's couplings begin a new layer where it has had one in this: three are enough."""
        depth = np.zeros(127, dtype=int)
        for pair in map(list, sherbrooke.couplings):
            depth[pair] = depth[pair].max() + 1
        assert depth.max() == 3

    @pytest.mark.parametrize(("name", "count"), [("brisbane", 127), ("fez", 156), ("manila", 5)])
    def test_coupled_qubits_are_drawn_beside_each_other(self, name, count):
        chip = chip_of(name)
        places = np.array(chip.positions)
        assert (len(places), len(set(chip.positions))) == (count, count)
        assert all(abs(places[a] - places[b]).sum() == 1 for a, b in chip.couplings)

    def test_part_of_a_device(self, sherbrooke):
        part = chip_of("sherbrooke", 6)
        assert part.physical == (0, 1, 2, 3, 14, 18)  # 19 is as far from 0 as 3 is
        pairs = {tuple(part.physical[qubit] for qubit in pair) for pair in part.couplings}
        assert pairs == {pair for pair in sherbrooke.couplings if set(pair) <= set(part.physical)}
        assert part.positions == tuple(sherbrooke.positions[qubit] for qubit in part.physical)


class TestKickedIsing:
    def test_against_matrices(self):
        chip = chip_of("sherbrooke", 5)
        weights, states = hidden_weights(chip, torch.Generator().manual_seed(1)), states_of(chip, 3)
        layer = layer_of(chip, 2, {"init": weights}).to(torch.float64)
        with torch.no_grad():
            values = layer(states.double())
        np.testing.assert_allclose(values, by_matrices(chip, 2, weights.numpy(), states.numpy()), atol=1e-6)

    def test_without_couplings_a_qubit_stands_alone(self, manila):
        layer = layer_of(manila, 2, {}, coupled=False)
        states = states_of(manila, 4).requires_grad_()
        layer(states)[:, 2].sum().backward()
        assert states.grad is not None
        felt = (states.grad.abs() > 1e-6).any(dim=0).nonzero().flatten()
        assert (layer.weights.numel(), felt.tolist()) == (5, [4, 5])

    def test_two_kicks_on_all_qubits_are_light_cones_of_seven(self, sherbrooke):
        widths = set(map(int, re.findall(r" x (\d+) qubits", layer_of(sherbrooke, 2, {}).plan())))
        assert widths == {5, 6, 7}

    def test_states_are_uniform_on_the_sphere(self, sherbrooke):
        polar, azimuth = states_of(sherbrooke, 100).double().reshape(-1, 2).T
        vectors = torch.stack([polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()])
        assert (vectors.mean(dim=1).abs() < 4 * (1 / 3 / len(polar)) ** 0.5).all()
        assert ((vectors.square().mean(dim=1) - 1 / 3).abs() < 4 * (4 / 45 / len(polar)) ** 0.5).all()

    def test_hidden_weights_are_uniform(self, sherbrooke):
        weights = hidden_weights(sherbrooke, torch.Generator().manual_seed(0))
        assert len(weights) == 144 + 127
        uniform = (weights - LEAST) / (MOST - LEAST)
        assert 0 <= uniform.min() <= uniform.max() <= 1
        assert abs(uniform.mean() - 0.5) < 4 * (1 / 12 / len(weights)) ** 0.5


def states_of(chip: Chip, rows: int) -> torch.Tensor:
    return product_states(rows, chip, torch.Generator().manual_seed(7))


def by_matrices(chip: Chip, layers: int, weights: np.ndarray, states: np.ndarray) -> np.ndarray:
    """From the model's definition: diagonal couplings, a matrix of the field for each qubit; qubit 0 is the first factor."""
    n = chip.num_qubits
    bits = np.array(np.unravel_index(np.arange(2**n), (2,) * n))
    spins = 1 - 2 * bits
    energies = sum(J * spins[a] * spins[b] for J, (a, b) in zip(weights, chip.couplings, strict=False))
    fields = weights[len(chip.couplings) :] / 2
    kick = reduce(np.kron, [[[np.cos(h), -1j * np.sin(h)], [-1j * np.sin(h), np.cos(h)]] for h in fields])
    polar, azimuth = states.reshape(-1, n, 2).transpose(2, 0, 1)
    values = []
    for row in range(len(states)):
        each = np.stack([np.cos(polar[row] / 2), np.exp(1j * azimuth[row]) * np.sin(polar[row] / 2)], axis=1)
        state = reduce(np.kron, each)
        for _ in range(layers):
            state = kick @ (np.exp(-0.5j * energies) * state)
        values.append(spins @ abs(state) ** 2)
    return np.array(values)


class TestNoise:
    @pytest.mark.slow
    def test_all_qubits_together_are_the_whole_circuit(self, manila):
        weights, states = hidden_weights(manila, torch.Generator().manual_seed(1)), states_of(manila, 2)
        circuit, inputs, parameters = kicked_ising(manila, 2)
        options = {"device": manila.device, "initial_layout": manila.physical, "optimization_level": 1}
        whole = QuantumLayer(
            circuit, inputs=inputs, weights=parameters, init=weights, backend=DensityMatrixBackend(**options)
        )
        with torch.no_grad():
            expected = whole(states)
        all_of_them, nearest = (noisy_magnetisations(manila, 2, weights, states, most=most) for most in (5, 2))
        torch.testing.assert_close(all_of_them, expected, atol=1e-6, rtol=0)
        assert (nearest - expected).abs().max() > 0.05

    @pytest.mark.slow
    def test_fewer_qubits_than_noise_reaches(self, manila):
        """After one kick the qubits beside an output are all that it depends on but for noise, which is small."""
        weights, states = hidden_weights(manila, torch.Generator().manual_seed(1)), states_of(manila, 8)
        errors = [
            (noisy_magnetisations(manila, 1, weights, states, most=most) - whole).abs().max()
            for whole in [noisy_magnetisations(manila, 1, weights, states, most=5)]
            for most in (2, 3)
        ]
        assert errors[0] > 0.05 > 0.005 > errors[1]

    def test_noise_is_that_of_the_device(self, manila, monkeypatch):
        weights, states = hidden_weights(manila, torch.Generator().manual_seed(1)), states_of(manila, 2)
        monkeypatch.setattr(NoiseModel, "from_backend", lambda device: NoiseModel())
        noiseless = noisy_magnetisations(manila, 2, weights, states, most=5)
        expected = by_matrices(manila, 2, weights.numpy(), states.numpy())
        np.testing.assert_allclose(noiseless, expected, atol=1e-5)

    def test_quote_of_a_step_on_the_device(self, sherbrooke):
        quote = quote_of_step(sherbrooke, 1, rows=2, shots=100)
        assert (quote.shots, quote.jobs > 0, quote.qpu_seconds > 0) == (100 * quote.circuits, True, True)


class TestLearning:
    def test_targets_have_the_noise_of_their_shots(self):
        chip, options = chip_of("sherbrooke", 20), ["--qubits", "20", "--train", "40", "--target-shots"]
        (_, noisy, _), (weights, exact, _) = (
            hidden_model(settings_of(*options, shots), chip) for shots in ("100", "null")
        )
        torch.testing.assert_close(noisy.inputs, exact.inputs, atol=0, rtol=0)
        values = exact.magnetisations.double()
        scores = (noisy.magnetisations - values) / ((1 - values.square()) / 100).sqrt()
        assert abs(scores.mean()) < 4 / len(scores.flatten()) ** 0.5
        assert abs(scores.square().mean() - 1) < 4 * (2 / len(scores.flatten())) ** 0.5
        assert len(weights) == len(chip.couplings) + 20

    def test_error_and_share(self):
        outputs, expected = torch.tensor([[0.0, 0.02, 1.0, 0.5]]), torch.tensor([[0.04, 0.0, 1.0, 0.0]])
        torch.testing.assert_close(squared_error(outputs, expected), torch.tensor([(0.04**2 + 0.02**2 + 0.25) / 4]))
        assert share_within(0.05)(outputs, expected).tolist() == [0.75]

    @pytest.mark.slow
    def test_finds_the_couplings(self, folder, monkeypatch):
        """Of twelve qubits, which without couplings cannot follow."""
        monkeypatch.setattr(learning, "quote_of_step", lambda *arguments, **options: Quote())  # it takes the longest
        options = ["--qubits", "12", "--epochs", "12", "--noisy-states", "0", "--run-dir", str(folder)]
        assert run(*options) == 0
        coupled, uncoupled = (result(folder / model) for model in ("coupled", "uncoupled"))
        assert coupled["test_accuracy"] > 0.97
        assert max(coupled["coupling_error"], coupled["field_error"]) < 0.03
        assert uncoupled["test_accuracy"] < 0.3
        arrays = RunFolder(folder / "coupled").read_arrays("qubits.npz")
        off = arrays["found"] - arrays["hidden"]
        assert coupled["coupling_error"] == pytest.approx(np.sqrt(np.square(off[:11]).mean()), rel=1e-5)
        share = (abs(arrays["outputs"] - arrays["expected"]) <= 0.05).mean()
        assert coupled["test_accuracy"] == pytest.approx(share, rel=1e-6)


def test_dry_run_says_what_a_run_then_costs(tmp_path, capsys):
    spent, printed = spent_as_said(capsys, tmp_path / "run", "The run of 2 epochs", "wide", *ONE, "--epochs", "2")
    assert spent["circuits"] == 2 * (6 + 5)
    assert "A step on fake_manila with 1000 shots a circuit:" in printed


@pytest.mark.figures
@pytest.mark.usefixtures("one_picture_of_each")
@pytest.mark.slow
def test_run_folder(folder):
    assert run(*SMALL, "--epochs", "1", "--noisy-states", "2", "--run-dir", str(folder)) == 0
    coupled, uncoupled = (result(folder / model) for model in ("coupled", "uncoupled"))
    assert coupled["step_on_device"]["circuits"] > 0
    assert "noisy_accuracy" not in uncoupled
    arrays = RunFolder(folder / "coupled").read_arrays("qubits.npz")
    assert arrays["noisy"].shape == (2, 5)
    within = (abs(arrays["noisy"] - arrays["expected"][:2]) <= 0.05).mean()
    assert coupled["noisy_accuracy"] == pytest.approx(within)
    assert coupled["test_accuracy"] == pytest.approx(float(metrics(folder / "coupled")[-1]["test_accuracy"]))
    for model in ("coupled", "uncoupled"):
        (folder / model / "map.png").unlink()
    assert main(["plot", str(folder)]) == 0
    assert all(
        (folder / model / name).is_file() for model in ("coupled", "uncoupled") for name in ("map.png", "loss.png")
    )


def test_interrupted_run_resumes_to_the_last_bit(tmp_path):
    """Within the second epoch of two steps and a test."""
    options = ["wide", *ONE, "--epochs", "2", "--noisy-states", "0", "--shots", "20"]
    state = interrupted(tmp_path, options, 4, "mse_loss")
    assert (state["epoch"], state["step"]) == (1, 1)
    assert_same_run(tmp_path / "straight", tmp_path / "broken")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--chip", "sherlock"], "sherlock"),
        (["--qubits", "6"], "--qubits: got 6, expected 2 to 5"),
        (["--qubits", "1"], "--qubits: got 1, expected 2 to 5"),
        (["--chip", "cairo"], "--chip: got 'cairo', whose qubits are not numbered in rows"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(folder, capsys, arguments, said):
    assert_refused(capsys, folder, said, "wide", *SMALL, *arguments)


def test_configuration():
    file = CONFIGS / "wide-complete.yaml"
    settings = settings_of("--config", str(file))
    assert yaml.safe_load(file.read_text()).items() <= flat(settings).items()
    assert settings == settings_of()
