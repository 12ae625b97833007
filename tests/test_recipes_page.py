"""The page of recipes for researchers: every block runs, and what it gives agrees with an independent answer."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from qiskit.quantum_info import DensityMatrix, Pauli, Statevector, partial_trace

from qiskit_torch_bridge import QuantumLayer

PAGE = (Path(__file__).parent.parent / "experiments" / "RECIPES.md").read_text(encoding="utf-8")
SECTIONS = {
    title: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
}
BOTH_Z = [Pauli("IZ"), Pauli("ZI")]
WEIGHTS = np.array([0.4, -0.9])


def run(section, index=0, *, code=None):
    namespace = {"__name__": "recipe"}
    exec(compile(code or SECTIONS[section][index], f"RECIPES.md: {section}", "exec"), namespace)
    return namespace


def state(circuit, values):
    """The state of a circuit with parameters ``values``, a mapping of parameters or vectors to numbers."""
    return Statevector(circuit.assign_parameters(values))


def expectations(circuit, names, weights=WEIGHTS):
    """<Z> of both qubits for each row of features, without noise."""

    def of_row(features):
        final = state(circuit, {names["x"]: features, names["w"]: weights})
        return [final.expectation_value(pauli).real for pauli in BOTH_Z]

    return np.array([of_row(row) for row in names["features"].detach().tolist()])


def with_noise(circuit, one, two):
    """The density matrix of two qubits after a circuit whose gates are depolarising."""
    density = DensityMatrix.from_label("00")
    for gate in circuit.data:
        qubits = [circuit.find_bit(qubit).index for qubit in gate.qubits]
        density = density.evolve(gate.operation, qubits)
        if len(qubits) == 1:
            mixed = sum(density.evolve(Pauli(label), qubits).data for label in "IXYZ") / 4
            density = DensityMatrix((1 - one) * density.data + one * mixed)
        else:
            density = DensityMatrix((1 - two) * density.data + two * np.eye(4) / 4)
    return density


def assert_standard(z_scores, *, spread=0.12):
    """Of mean 0 and standard deviation 1: the values are right, and so is the length of the error bars."""
    assert np.mean(z_scores) == pytest.approx(0, abs=5 / np.size(z_scores) ** 0.5)
    assert np.std(z_scores) == pytest.approx(1, abs=spread)


def test_the_page_reads_well():
    assert not [line for line in PAGE.splitlines() if len(line) >= 120]
    assert [len(blocks) for blocks in SECTIONS.values()] == [1, 1, 1, 1, 1, 1, 1, 2, 3]  # each is run below


@pytest.mark.slow
def test_own_noise_by_density_matrix_and_by_trajectories():
    names = run("A noise model of your own")
    circuit, features = names["circuit"], names["features"]
    bound = [circuit.assign_parameters({names["x"]: row, names["w"]: WEIGHTS}) for row in features.tolist()]
    densities = [with_noise(one, 0.01, 0.05) for one in bound]
    expected = np.array([[density.expectation_value(pauli).real for pauli in BOTH_Z] for density in densities])
    assert names["expected"] == pytest.approx(expected, abs=1e-6)
    assert np.abs(expectations(circuit, names) - expected).max() > 0.05  # the noise matters
    assert all(np.abs(scores).max() < 4 for scores in names["z_scores"])

    def total(weights):
        bound = [circuit.assign_parameters({names["x"]: row, names["w"]: weights}) for row in features.tolist()]
        densities = [with_noise(one, 0.01, 0.05) for one in bound]
        return sum(density.expectation_value(pauli).real for density in densities for pauli in BOTH_Z)

    slopes = [(total(WEIGHTS + s) - total(WEIGHTS - s)) / 2 for s in np.pi / 2 * np.eye(2)]
    assert names["exact"].weights.grad.numpy() == pytest.approx(slopes, abs=1e-5)

    for layer, repeats in ((names["sampled"], 40), (names["trajectories"], 10)):
        with torch.no_grad():
            values = layer(features.repeat(repeats, 1)).numpy()
        assert_standard((values - np.tile(expected, (repeats, 1))) / layer.last_run.standard_errors, spread=0.15)
    stated = re.search(r"\.circuits is ([\d,]+), \.shots is ([\d,]+)", PAGE).groups()
    assert (f"{names['quote'].circuits:,}", f"{names['quote'].shots:,}") == stated


def test_zero_noise_extrapolation():
    names = run("Zero-noise extrapolation")
    layer, features = names["layer"], names["features"]
    ideal = expectations(names["circuit"], names)
    # Two qubits, and noise on both: each of two CX multiplies every expectation value by 1 - p.
    survival = np.array([0.97 ** (2 * factor) for factor in names["method"].factors])
    left = survival @ [15 / 8, -5 / 4, 3 / 8]  # Lagrange's polynomial, at zero
    assert abs(left - 1) < 0.001 < 0.05 < 1 - survival[0]

    with torch.no_grad():
        values = layer(features.repeat(40, 1)).numpy()
    assert_standard((values - left * np.tile(ideal, (40, 1))) / layer.last_run.standard_errors)

    def total_at(weights):
        return expectations(names["circuit"], names, weights).sum()

    without_shots = run(None, code=SECTIONS["Zero-noise extrapolation"][0].replace("20_000", "None"))
    assert without_shots["values"].detach().numpy() == pytest.approx(left * ideal, abs=1e-6)
    slopes = [(total_at(WEIGHTS + s) - total_at(WEIGHTS - s)) / 2 for s in np.pi / 2 * np.eye(2)]
    measured = names["run"]
    assert np.abs((measured.gradients - left * np.array(slopes)) / measured.gradient_standard_errors).max() < 4
    assert np.all(measured.gradient_standard_errors < 0.05)
    plain = QuantumLayer(names["circuit"], **names["options"], shots=20_000, seed=1)
    plain(features)
    assert names["quote"].shots == 3 * plain.quote(batch_size=4).shots
    assert 2 < np.mean(measured.standard_errors / plain.last_run.standard_errors) < 2.6  # "about twice"
    exponential = names["ZeroNoiseExtrapolation"](fit="exponential")
    exact = QuantumLayer(names["circuit"], **names["options"], mitigation=[exponential])(features)
    assert exact.detach().numpy() == pytest.approx(ideal, abs=1e-6)


@pytest.mark.slow
def test_readout_correction():
    names = run("Readout correction")
    circuit, options = names["circuit"], names["options"]
    rows = names["features"].tolist()
    true = np.array([state(circuit, {names["x"]: row, names["w"]: WEIGHTS}).probabilities() for row in rows])
    with torch.no_grad():
        plain = QuantumLayer(circuit, **options)(names["features"]).numpy()
    assert np.abs(plain - true).max() > 0.02  # the errors matter
    assert np.abs((names["estimates"].detach().numpy() - true) / names["standard_errors"]).max() < 4
    assert sum(names["raw"].values()) == 4000
    layer = names["layer"]
    assert names["once"].shots == 0 < QuantumLayer(circuit, **options, mitigation=layer.mitigation).quote(4).once.shots

    z_scores = []
    layer.shots = 300
    with torch.no_grad():
        for _ in range(150):
            layer.mitigation = [names["ReadoutCorrection"](calibration_rows=1)]  # whose calibration matters
            estimates = layer(names["features"]).numpy()
            z_scores.append((estimates - true) / layer.last_run.standard_errors)
    assert_standard(z_scores)


OWN_METHOD = "A mitigation method of your own"


def test_own_method_of_mitigation():
    """Its values are those of the noisy state within the symmetry; its error bars and gradients fit."""
    code = SECTIONS[OWN_METHOD][0]
    method = re.search(r"@dataclass\(frozen=True\)\nclass .*?\n\n\n", code, flags=re.DOTALL)[0]
    assert len(method.strip().splitlines()) <= 40
    names = run(None, code=code.replace("shots=4000, seed=1, ", ""))  # exact values
    features, circuit = names["features"], names["circuit"]

    def values(rows, weights=(0.7, 0.4), noise=0.04):
        found = []
        for row in rows:
            bound = circuit.assign_parameters({names["x"]: row, names["w"]: weights})
            density = DensityMatrix.from_label("000")
            for gate in bound.data:
                qubits = [bound.find_bit(qubit).index for qubit in gate.qubits]
                density = density.evolve(gate.operation, qubits)
                if len(qubits) == 2:
                    (other,) = {0, 1, 2} - {*qubits}
                    rest = partial_trace(density, qubits).data
                    spread = np.eye(4) / 4
                    mixed = np.kron(spread, rest) if other == 0 else np.kron(rest, spread)
                    density = DensityMatrix((1 - noise) * density.data + noise * mixed)
            probabilities = density.probabilities()
            one = probabilities[[1, 2, 4]] / probabilities[[1, 2, 4]].sum()
            found.append([1 - 2 * one[2], 1 - 2 * one[1], 1 - 2 * one[0]])
        return np.array(found)

    exact = values(features.tolist())
    assert names["values"].detach().numpy() == pytest.approx(exact, abs=1e-6)
    ideal = values(features.tolist(), noise=0)
    plain = QuantumLayer(circuit, **names["options"], backend=names["backend"])(features).detach().numpy()
    assert np.abs(plain - ideal).max() > 1.5 * np.abs(exact - ideal).max() > 0

    layer = run(OWN_METHOD)["layer"]
    layer(features).sum().backward()
    run_with_shots = layer.last_run
    assert np.isfinite(run_with_shots.gradient_standard_errors).all()
    with torch.no_grad():
        measured = layer(features.repeat(150, 1)).numpy()
    assert_standard((measured - np.tile(exact, (150, 1))) / layer.last_run.standard_errors)
    options = names["options"] | {"observables": "XII", "mitigation": layer.mitigation}
    with pytest.raises(ValueError, match="needs measured bits of observables of Z only"):
        QuantumLayer(circuit, **options, backend=names["backend"])


def test_fidelity_kernel():
    names = run("A fidelity kernel for scikit-learn")
    encoding, points = names["encoding"], names["points"][:10]
    states = np.array([Statevector(encoding.assign_parameters(point)).data for point in points.tolist()])
    fidelities = np.abs(states.conj() @ states.T) ** 2
    assert names["kernel"](points, points) == pytest.approx(fidelities, abs=1e-9)
    above = np.triu_indices(10, k=1)
    z_scores = (names["values"].numpy() - fidelities)[above] / names["errors"][above]
    assert np.abs(z_scores).max() < 5
    assert str(names["price"].circuits) == re.search(r"\.circuits is (\d+): the pairs", PAGE)[1]
    unscaled = run(None, code=SECTIONS["A fidelity kernel for scikit-learn"][0].replace("0.3 * points", "points"))
    stated = re.search(r"the accuracy is ([\d.]+) with it and ([\d.]+) without", PAGE).groups()
    assert (f"{names['accuracy']:.2f}", f"{unscaled['accuracy']:.2f}") == stated


def test_fisher_information():
    names = run("Fisher information")
    encoding, ansatz = names["encoding"], names["ansatz"]
    weights, step = names["layer"].weights.detach().numpy(), 1e-5
    classical, quantum = np.zeros((4, 4)), np.zeros((4, 4))
    for row in names["features"].tolist():
        encoded = Statevector(encoding.assign_parameters(row))

        def amplitudes(weights, encoded=encoded):
            return encoded.evolve(ansatz.assign_parameters(weights)).data

        shifts = step * np.eye(4)
        ends = [(amplitudes(weights + shift), amplitudes(weights - shift)) for shift in shifts]
        roots = np.array([(np.abs(up) - np.abs(down)) / (2 * step) for up, down in ends])
        classical += 4 * roots @ roots.T / 5
        psi, slopes = amplitudes(weights), np.array([(up - down) / (2 * step) for up, down in ends])
        overlaps = slopes.conj() @ psi
        quantum += 4 * (slopes.conj() @ slopes.T - np.outer(overlaps, overlaps.conj())).real / 5
    assert names["classical"].numpy() == pytest.approx(classical, abs=1e-6)
    assert names["quantum"].numpy() == pytest.approx(quantum, abs=1e-6)
    assert np.linalg.eigvalsh(quantum - classical).min() > -1e-6  # no measurement says more than the state
    diagonal = np.diagonal(names["measured"].numpy(), axis1=1, axis2=2).mean(axis=0)
    errors = np.diagonal(names["errors"], axis1=1, axis2=2)
    assert np.abs(4 * diagonal - np.diag(quantum)).max() < 5 * 4 * (errors**2).sum(axis=0).max() ** 0.5 / 5


def test_records_of_variances():
    without_pandas, _ = SECTIONS["Variances of gradients in pandas"][0].split("import pandas\n")
    names = run(None, code=without_pandas)
    records, ansatz = names["records"], names["ansatz"]
    assert len(records) == 100 * 9
    pauli, shots = Pauli("ZZI"), 400

    def value(weights):
        return Statevector(ansatz.assign_parameters(weights)).expectation_value(pauli).real

    z_scores, expected_variances, variances = [], [], []
    for start in range(0, 180, 9):
        of_draw = records[start : start + 9]
        weights = np.array([record["weight"] for record in of_draw])
        for record, shift in zip(of_draw, np.pi / 2 * np.eye(9), strict=True):
            up, down = value(weights + shift), value(weights - shift)
            if record["name"] == "θ[6]":
                assert (record["gradient"], record["shot_variance"]) == (0, 0)
                assert up == pytest.approx(down)
                continue
            expected_variances.append((2 - up**2 - down**2) / (4 * shots))
            variances.append(record["shot_variance"])
            z_scores.append((record["gradient"] - (up - down) / 2) / record["shot_variance"] ** 0.5)
    assert_standard(z_scores, spread=0.2)
    assert sum(variances) == pytest.approx(sum(expected_variances), rel=0.02)
    assert ansatz.parameters[6].name == "θ[6]"


def test_the_table_of_variances_in_pandas():
    pytest.importorskip("pandas")
    names = run("Variances of gradients in pandas")
    by_draw = np.array([record["gradient"] for record in names["records"]]).reshape(100, 9)
    assert names["table"]["gradient"].to_numpy() == pytest.approx(by_draw.var(axis=0, ddof=1))
    assert list(names["table"].index) == [f"θ[{weight}]" for weight in range(9)]


def moons_in_plain_torch():
    """The model and the loss of the section on Lightning, by a plain loop."""
    from sklearn.datasets import make_moons

    from qiskit_torch_bridge.circuits import dressed

    points, labels = make_moons(64, noise=0.1, random_state=0)
    points, labels = torch.tensor(points, dtype=torch.float32), torch.tensor(labels)
    circuit, inputs, weights = dressed(2, 2)
    torch.manual_seed(0)
    layer = QuantumLayer(circuit, inputs=inputs, weights=weights, shots=200, seed=0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh(), layer, torch.nn.Linear(2, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(5):
        for batch in torch.arange(64).split(16):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(points[batch]), labels[batch]).backward()
            optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def test_fabric_takes_the_steps_of_a_plain_loop():
    model = run("Lightning", 0)["model"]
    for parameter, expected in zip(model.parameters(), moons_in_plain_torch(), strict=True):
        torch.testing.assert_close(parameter.detach(), expected)


def test_the_trainer_takes_the_steps_of_a_plain_loop(tmp_path, monkeypatch):
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its advice on workers of the loader
        names = run("Lightning", 1)
    for parameter, expected in zip(names["module"].model.parameters(), moons_in_plain_torch(), strict=True):
        torch.testing.assert_close(parameter.detach(), expected)
    assert float(names["trainer"].callback_metrics["gradient_standard_error"]) > 0


MOVING = "Moving from Qiskit Machine Learning or PennyLane"


def numbers(names):
    tensors = names["values"], names["probabilities"], *names["gradients"]
    return [tensor.detach().double().numpy() for tensor in tensors]


def test_moving_here_gives_what_the_page_says():
    names = run(MOVING, 0)
    values, probabilities, by_weights, by_features = numbers(names)
    circuit, shifts = names["circuit"], np.pi / 2 * np.eye(2)

    def sums(weights=WEIGHTS, shift=(0, 0)):
        """For each row of shifted features, what the loss adds up."""
        moved = {**names, "features": names["features"].detach().double() + torch.tensor(shift)}
        return expectations(circuit, moved, weights) @ [1, 2]

    assert values == pytest.approx(expectations(circuit, names), abs=1e-6)
    slopes = [(sums(WEIGHTS + shift) - sums(WEIGHTS - shift)).sum() / 2 for shift in shifts]
    assert by_weights == pytest.approx(slopes, abs=1e-5)
    slopes = [(sums(shift=shift) - sums(shift=-shift)) / 2 for shift in shifts]
    assert by_features == pytest.approx(np.transpose(slopes), abs=1e-5)
    finals = [state(circuit, {names["x"]: row, names["w"]: WEIGHTS}) for row in names["features"].tolist()]
    assert probabilities == pytest.approx(np.array([final.probabilities() for final in finals]), abs=1e-6)

    stated = [re.findall(r"-?\d\.\d{6}", line) for line in PAGE.splitlines() if re.search(r"\d\.\d{6}", line)]
    for line, measured in zip(stated, (values[0], probabilities[0], by_weights, by_features[0]), strict=True):
        assert [float(number) for number in line] == pytest.approx(measured.tolist(), abs=1e-6)


@pytest.mark.parametrize(("package", "index"), [("qiskit_machine_learning", 1), ("pennylane", 2)])
def test_both_sides_agree(package, index):
    pytest.importorskip(package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = numbers(run(MOVING, index))
    for ours, other in zip(numbers(run(MOVING, 0)), theirs, strict=True):
        assert other == pytest.approx(ours, abs=1e-5)
