"""Noise of the user's own: against closed forms, and density matrices with Kraus operators written by hand."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from qiskit.circuit import Parameter, QuantumCircuit
from qiskit.circuit.library import get_standard_gate_name_mapping
from qiskit.quantum_info import DensityMatrix, Kraus, Operator, Pauli
from qiskit_aer import AerSimulator
from runs import SMALL, assert_same_run

from experiments.__main__ import main
from experiments.common.noise_models import SIMULATIONS, ExactNoisyBackend, NoisyBackend
from experiments.common.noise_settings import GATES, NoiseSettings
from experiments.common.settings import TrainingSettings
from experiments.common.workplace import layer_options
from qiskit_torch_bridge import AerBackend, QuantumLayer
from qiskit_torch_bridge.circuits import dressed, random_rotations, ring_layers, textbook

pytestmark = pytest.mark.usefixtures("no_pictures")

FULL: dict[str, Any] = {
    "depolarizing": {"ry": 0.02, "1q": 0.05, "cx": 0.1},
    "t1": 50.0,
    "t2": 30.0,
    "durations": {"1q": 2000.0, "rz": 0.0, "2q": 9000.0},
}
SETTINGS: Mapping[str, dict[str, Any]] = {
    "depolarising": {"depolarizing": {"1q": 0.05, "cx": 0.1}},
    "beyond the mixture": {"depolarizing": {"1q": 4 / 3, "cx": 16 / 15}},
    "T1": {"t1": 50.0, "durations": {"1q": 3000.0, "2q": 9000.0}},
    "T2": {"t2": 50.0, "durations": {"1q": 3000.0, "2q": 9000.0}},
    "T2 above T1": {"t1": 30.0, "t2": 50.0, "durations": {"1q": 3000.0, "2q": 9000.0}},
    "all": FULL,
}
ANGLE, SLOPE = 0.7, np.pi / 2
EACH_SIMULATION = pytest.mark.parametrize("word", SIMULATIONS)

Channel = Callable[[DensityMatrix, list[int]], DensityMatrix]


def circuit_of(angle: Any) -> QuantumCircuit:
    circuit = QuantumCircuit(2)
    circuit.ry(angle, 0)
    circuit.cx(0, 1)
    circuit.rz(0.9, 1)
    circuit.h(0)
    circuit.ry(0.5, 1)
    return circuit


def layer_of(word: str, noise: NoiseSettings, **options: Any) -> QuantumLayer:
    angle, backend = Parameter("a"), SIMULATIONS[word](noise)
    return QuantumLayer(circuit_of(angle), inputs=[angle], observables=["ZI", "IZ", "ZZ"], backend=backend, **options)


def depolarized(state: DensityMatrix, p: float, qubits: list[int]) -> DensityMatrix:
    """By Kraus operators that are Paulis, or by its formula where they would have negative weights."""
    labels = [a + b for a in "IXYZ" for b in "IXYZ"] if len(qubits) == 2 else list("IXYZ")
    rest = p / len(labels)
    if rest > 1 / (len(labels) - 1) - 1e-12:  # no identity any more
        labels, rest = labels[1:], 1 / (len(labels) - 1)
    weights = [1 - rest * (len(labels) - 1) if set(label) == {"I"} else rest for label in labels]
    operators = [w**0.5 * Pauli(label).to_matrix() for w, label in zip(weights, labels, strict=True)]
    return state.evolve(Kraus(operators), qubits)


def relaxed(state: DensityMatrix, t1: float, t2: float, time: float, qubits: list[int]) -> DensityMatrix:
    """Amplitude damping, then the dephasing that is left."""
    lost = 1 - np.exp(-time / t1)
    kept = np.exp(-time / t2 + time / (2 * t1))
    damping = Kraus([np.diag([1, (1 - lost) ** 0.5]), np.array([[0, lost**0.5], [0, 0]])])
    dephasing = Kraus([((1 + kept) / 2) ** 0.5 * np.eye(2), ((1 - kept) / 2) ** 0.5 * np.diag([1, -1])])
    for qubit in qubits:
        state = state.evolve(damping, [qubit]).evolve(dephasing, [qubit])
    return state


def by_hand(settings: Mapping[str, Any], angle: float, *, relaxation_first: bool = False) -> np.ndarray:
    """<ZI>, <IZ> and <ZZ> of the circuit with noise after each of its gates."""
    state = DensityMatrix.from_label("00")
    circuit = circuit_of(angle)
    for instruction in circuit.data:
        qubits = [circuit.find_bit(qubit).index for qubit in instruction.qubits]
        state = state.evolve(Operator(instruction.operation), qubits)
        name, every = instruction.operation.name, f"{len(qubits)}q"
        p, time = (
            settings.get(of, {}).get(name, settings.get(of, {}).get(every, 0.0)) for of in ("depolarizing", "durations")
        )
        t1 = settings.get("t1", np.inf)
        steps = [
            lambda rho, p=p, q=qubits: depolarized(rho, p, q),
            lambda rho, t=time, q=qubits, t1=t1: (
                relaxed(rho, t1, settings.get("t2", 2 * t1), t / 1000, q) if t else rho
            ),
        ]
        for step in reversed(steps) if relaxation_first else steps:
            state = step(state)
    return np.array([state.expectation_value(Pauli(label)).real for label in ("ZI", "IZ", "ZZ")])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    ("word", "gradient"), [("aer", "parameter_shift"), ("noisy", "parameter_shift"), ("noisy", "adjoint")]
)
def test_exact_values_and_gradients_are_those_of_kraus_operators(word, gradient, name):
    layer = layer_of(word, NoiseSettings(**SETTINGS[name]), gradient=gradient)
    angle = torch.tensor([[ANGLE]], dtype=torch.float64, requires_grad=True)
    values = layer(angle)
    np.testing.assert_allclose(values.detach()[0], by_hand(SETTINGS[name], ANGLE), atol=1e-12)
    shifted = by_hand(SETTINGS[name], ANGLE + SLOPE) - by_hand(SETTINGS[name], ANGLE - SLOPE)
    gradient = torch.autograd.functional.jacobian(layer, angle)[0, :, 0, 0]
    np.testing.assert_allclose(gradient, shifted / 2, atol=1e-12)


@EACH_SIMULATION
def test_the_comparison_sees_other_noise(word):
    """Each variant is wrong on purpose in one thing."""
    right = layer_of(word, NoiseSettings(**FULL))(torch.tensor([[ANGLE]], dtype=torch.float64)).numpy()[0]
    wrong = [
        {**FULL, "depolarizing": {"1q": 0.05, "cx": 0.1}},
        {**FULL, "depolarizing": {"ry": 0.02, "1q": 0.05, "2q": 0.08}},
        {**FULL, "t2": 100.0},
        {**FULL, "durations": {**FULL["durations"], "rz": 2000.0}},
        {**FULL, "durations": {"1q": 2.0, "rz": 0.0, "2q": 9.0}},  # nanoseconds taken for microseconds
    ]
    distances = [np.abs(by_hand(settings, ANGLE) - right).max() for settings in wrong]
    distances.append(np.abs(by_hand(FULL, ANGLE, relaxation_first=True) - right).max())
    assert min(distances) > 1e-5


def after_readout(angle: float, e0: float, e1: float) -> np.ndarray:
    """The outputs by hand, of which 0 is read as 1 with probability e0, and 1 as 0 with e1."""
    a, b, both = by_hand(FULL, angle)
    k, d = 1 - e0 - e1, e1 - e0
    return np.array([k * a + d, k * b + d, k**2 * both + k * d * (a + b) + d**2])


@EACH_SIMULATION
def test_shots_with_readout_errors(word):
    """Values, gradients by parameter shift, and their standard errors: z-scores over many rows."""
    e0, e1, rows, shots = 0.02, 0.07, 400, 500
    noise = NoiseSettings(**FULL, zero_as_one=e0, one_as_zero=e1)
    layer = layer_of(word, noise, shots=shots, gradient="parameter_shift", seed=1)
    read = partial(after_readout, e0=e0, e1=e1)

    angles = torch.full((rows, 1), ANGLE, dtype=torch.float64, requires_grad=True)
    values = layer(angles)
    z = (values.detach().numpy() - read(ANGLE)) / np.sqrt((1 - read(ANGLE) ** 2) / shots)
    values[:, 0].sum().backward()
    slope = (read(ANGLE + SLOPE) - read(ANGLE - SLOPE))[0] / 2
    of_gradients = (angles.grad.numpy() - slope) / layer.last_run.input_gradient_standard_errors
    for scores in (*z.T, of_gradients[:, 0]):
        assert abs(scores.mean()) * rows**0.5 < 4
        assert abs((scores**2).mean() - 1) * (rows / 2) ** 0.5 < 4
    swapped = read(ANGLE) + 2 * (e0 - e1)  # readout errors the other way round
    assert np.abs((values.detach().numpy().mean(axis=0) - swapped)[0]) > 10 / (shots * rows) ** 0.5


@EACH_SIMULATION
def test_noise_acts_on_the_gates_that_are_named(word):
    """CZ on a machine that has CX alone: Z on the target shrinks by the noise of one CX, the gates around it have none."""
    angle = Parameter("a")
    circuit = QuantumCircuit(2)
    circuit.ry(angle, 1)
    circuit.cz(0, 1)
    backend = SIMULATIONS[word](NoiseSettings(depolarizing={"cx": 0.1}))
    layer = QuantumLayer(circuit, inputs=[angle], observables="ZI", backend=backend)
    value = layer(torch.tensor([[ANGLE]], dtype=torch.float64)).item()
    assert value == pytest.approx(0.9 * np.cos(ANGLE), abs=1e-12)


@pytest.mark.parametrize("circuit", [textbook(), ring_layers(3, 1), dressed(3, 1), random_rotations(3, 1, seed=0)])
@pytest.mark.parametrize("gates", [["1q", "2q"], ["rz", "sx", "cx"], ["u", "cz"], ["rx", "rz", "rzz"]])
def test_circuits_of_the_experiments_are_translated(circuit, gates):
    """Both simulations make the same of them."""
    noise = NoiseSettings(depolarizing=dict.fromkeys(gates, 0.01))
    features = torch.linspace(0.1, 0.9, len(circuit[1]), dtype=torch.float64)[None]
    values = []
    for word, simulation in SIMULATIONS.items():
        layer = QuantumLayer(circuit[0], inputs=circuit[1], weights=circuit[2], backend=simulation(noise), seed=0)
        assert isinstance(layer.backend, AerBackend) == (word == "aer")
        for weights in layer.parameters():
            torch.nn.init.constant_(weights, 0.4)
        values.append(layer.double()(features).detach())
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=1e-10)


@EACH_SIMULATION
def test_unreachable_gates_are_refused(word):
    angle, backend = Parameter("a"), SIMULATIONS[word](NoiseSettings(depolarizing={"ry": 0.1}))
    with pytest.raises(ValueError, match=r"noise: got the gates ry, expected .* \(cx, h, ry, rz;.*name more"):
        QuantumLayer(circuit_of(angle), inputs=[angle], backend=backend)


def test_readout_errors_in_exact_values():
    """This package's simulation has them there; Aer needs shots for them."""
    noise, angle = (
        NoiseSettings(**FULL, zero_as_one=0.02, one_as_zero=0.07),
        torch.tensor([[ANGLE]], dtype=torch.float64),
    )
    values = layer_of("noisy", noise)(angle)
    np.testing.assert_allclose(values[0], after_readout(ANGLE, 0.02, 0.07), atol=1e-12)
    with pytest.raises(ValueError, match="readout errors"):
        layer_of("aer", noise)(angle)


EXPERIMENTS = [
    [*("mnist01", "--dataset", "digits", "--shots", "10")],
    [*("mnist36", "--dataset", "digits", "--shots", "10")],
    [*("spirals", "--head", "quantum", "--gradient", "parameter_shift")],
    [*("recipes", "--question", "dropout", "--answer", "quantum-none", "--dataset", "digits")],
]


def words_and_experiments() -> Iterator[Any]:
    """Each experiment with one of the words; with the other it is slow."""
    for place, word in enumerate(("noisy", "noisy:guadalupe")):
        for number, experiment in enumerate(EXPERIMENTS):
            marks = [] if (number + place) % 2 == 0 else [pytest.mark.slow]
            yield pytest.param(word, experiment, marks=marks, id=f"{word}-{experiment[0]}")


@pytest.mark.parametrize(("word", "experiment"), list(words_and_experiments()))
def test_experiments_take_it(word, experiment, tmp_path, capsys):
    if word != "noisy":
        pytest.importorskip("qiskit_ibm_runtime")
    (tmp_path / "noise.yaml").write_text("depolarizing: {1q: 0.001, 2q: 0.01}")
    noise = ["--noise", str(tmp_path / "noise.yaml")] if word == "noisy" else []
    assert main([*experiment, "--backend", word, *noise, "--dry-run"]) == 0
    assert "circuits" in capsys.readouterr().out


def test_a_training_with_it_is_repeatable_and_says_so(folder, tmp_path):
    (tmp_path / "noise.yaml").write_text("depolarizing: {1q: 0.001, 2q: 0.01}\none_as_zero: 0.05")
    options = [*SMALL, "--epochs", "1", "--backend", "noisy", "--noise", str(tmp_path / "noise.yaml"), "--shots", "20"]
    assert main(["mnist01", *options, "--run-dir", str(folder)]) == 0
    assert main(["mnist01", "--config", str(folder / "config.yaml"), "--run-dir", str(tmp_path / "again")]) == 0
    assert_same_run(folder, tmp_path / "again")
    assert yaml.safe_load((folder / "config.yaml").read_text())["noise"]["one_as_zero"] == 0.05


def test_the_word_says_who_simulates():
    noise = NoiseSettings(depolarizing={"2q": 0.1})
    made = {word: layer_options(TrainingSettings(backend=word, noise=noise))["backend"] for word in SIMULATIONS}
    assert {word: type(backend) for word, backend in made.items()} == {"noisy": ExactNoisyBackend, "aer": NoisyBackend}
    with pytest.raises(ValueError, match="--noise: got it with --backend statevector, expected noisy, or aer"):
        TrainingSettings(noise=noise)
    with pytest.raises(ValueError, match="--backend: got noisy without noise, expected --noise FILE"):
        TrainingSettings(backend="noisy")


def test_gates_are_those_that_aer_runs():
    standard, known = get_standard_gate_name_mapping(), set(AerSimulator().operation_names)
    for qubits, gates in GATES.items():
        others = {"delay", "measure", "reset"}
        assert set(gates) | others == {n for n, g in standard.items() if g.num_qubits == qubits and n in known} | others


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"depolarizing": {"cxx": 0.1}}, "noise.depolarizing: got a gate 'cxx', .*; did you mean cx"),
        ({"depolarizing": {"CX": 0.1}}, "did you mean cx"),
        ({"depolarizing": {"ry": 1.34}}, "noise.depolarizing.ry: got 1.34, .* from 0 to 1.33333"),
        ({"depolarizing": {"2q": 1.1}}, "from 0 to 1.06667"),
        ({"depolarizing": {"cx": -0.1}}, "got -0.1"),
        ({"depolarizing": {"cx": np.nan}}, "got nan"),
        ({"t1": 50, "t2": 101, "durations": {"1q": 1, "2q": 1}}, "noise.t2: got 101 with t1=50, expected at most 100"),
        ({"t1": 0, "durations": {"1q": 1, "2q": 1}}, "noise.t1: got 0"),
        ({"t1": np.inf, "durations": {"1q": 1, "2q": 1}}, "noise.t1: got inf"),
        ({"t1": 50}, "noise.durations: got none for h, id, p, ...,.* add '1q'"),
        ({"t1": 50, "durations": {"rx": 1, "2q": 1}, "depolarizing": {"ry": 0.1}}, "got none for ry"),
        ({"t1": 50, "durations": {"1q": 1, "2q": np.inf}}, "noise.durations.2q: got inf"),
        ({"durations": {"cx": 300}}, "noise.t1: got none with durations"),
        ({"zero_as_one": 1.1}, "noise.zero_as_one: got 1.1, expected a probability, from 0 to 1"),
        ({"one_as_zero": np.nan}, "noise.one_as_zero: got nan"),
    ],
)
def test_impossible_noise_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        NoiseSettings(**settings)


def parsed(*arguments: str) -> Any:
    """As the experiments' parser has the option."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--noise", type=NoiseSettings | None, default=None, sub_configs=True)
    return parser.instantiate(parser.parse_args(list(arguments))).noise


def test_a_file_of_its_own_and_a_part_of_a_larger_one_say_the_same(tmp_path: Path):
    noise = NoiseSettings(**FULL)
    own, whole, named = (tmp_path / name for name in ("noise.yaml", "whole.yaml", "named.yaml"))
    own.write_text(yaml.safe_dump(asdict(noise)))
    whole.write_text(yaml.safe_dump({"noise": asdict(noise)}))
    named.write_text(yaml.safe_dump({"noise": str(own)}))
    assert parsed("--noise", str(own)) == parsed("--config", str(whole)) == parsed("--config", str(named)) == noise
    assert parsed() is parsed("--noise", "null") is None
    assert parsed("--noise", str(own), "--noise.t2", "20").t2 == 20
