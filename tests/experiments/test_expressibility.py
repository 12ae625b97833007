"""The study of expressibility: circuits of Sim et al., closed forms, and the published numbers of Abbas et al."""

import math

import numpy as np
import pytest
import torch
from qiskit.quantum_info import Statevector
from runs import assert_refused, result
from torch import nn

from experiments.__main__ import main
from experiments.common.runs import RunFolder
from experiments.expressibility.capacity_models import QUANTUM_MODELS, _fisher_of_network, dimension
from experiments.expressibility.expressibility_findings import _score
from experiments.expressibility.expressibility_study import STUDY, _of_few, _states
from experiments.expressibility.published_values import DATA, EFFECTIVE_DIMENSIONS, EXPRESSIBILITIES
from experiments.expressibility.sim_circuits import EXACT_ENTANGLEMENT, sim_circuit
from qiskit_torch_bridge import effective_dimension_of, entangling_capability
from qiskit_torch_bridge.descriptors import _divergence, _log_haar

pytestmark = pytest.mark.usefixtures("no_pictures")
TINY = ["--circuits", "1", "9", "--layers", "1", "--samples", "200", "--weight-samples", "2", "--input-samples", "2"]


def test_circuits_have_the_angles_and_gates_of_the_paper():
    """Its table of costs: parameters and gates of two qubits for one layer on four qubits."""
    angles = [8, 8, 11, 11, 28, 28, 19, 19, 4, 8, 12, 12, 16, 16, 8, 11, 11, 12, 12]
    pairs = [0, 3, 3, 3, 12, 12, 3, 3, 3, 4, 3, 3, 8, 8, 8, 3, 3, 4, 4]
    circuits = [sim_circuit(number, 1) for number in range(1, 20)]
    assert [len(circuit.parameters) for circuit in circuits] == angles
    assert [sum(len(gate.qubits) == 2 for gate in circuit.data) for circuit in circuits] == pairs
    assert len(sim_circuit(10, 3).parameters) == 16
    assert len(sim_circuit(6, 3).parameters) == 84
    ring = [gate for gate in sim_circuit(18, 1).data if gate.name == "crz"]
    indices = [tuple(sim_circuit(18, 1).find_bit(qubit).index for qubit in gate.qubits) for gate in ring]
    assert indices == [(3, 0), (2, 3), (1, 2), (0, 1)]


def state(number, values):
    """Of one layer, with the angles in the order of the gates."""
    circuit = sim_circuit(number, 1)
    ordered = sorted(circuit.parameters, key=lambda parameter: int(parameter.name[1:]))
    return Statevector(circuit.assign_parameters(dict(zip(ordered, values, strict=True)))).data


def test_gates_that_commute_make_circuits_3_and_16_the_same(rng):
    """In the order 1-0, 3-2, 2-1 (16) or 3-2, 2-1, 1-0 (3)."""
    values = rng.uniform(0, 6, size=11)
    brick = state(16, values)
    assert abs(np.vdot(state(3, values[[*range(8), 9, 10, 8]]), brick)) == pytest.approx(1)
    assert abs(np.vdot(state(3, values), brick)) < 0.999


def test_exact_entanglement_is_what_is_measured():
    scores = []
    for number, exact in EXACT_ENTANGLEMENT.items():
        measured = entangling_capability(sim_circuit(number, 1), samples=2000, seed=number)
        if exact in (0, 1):
            assert measured.value == pytest.approx(float(exact), abs=1e-12)
        else:
            scores.append((measured.value - float(exact)) / measured.standard_error)
    assert np.abs(scores).max() < 3.5
    assert sum(np.square(scores)) < 7 + 3 * math.sqrt(14)


def test_published_expressibilities_are_met():
    """Five that are quick; a circuit with another's number would be far off."""
    rows = {
        number: _states(sim_circuit(number, 1), None, 0, 5000, np.random.SeedSequence(number))
        for number in (2, 9, 12, 14, 15)
    }
    scores = np.array([_score(EXPRESSIBILITIES[1][number - 1], row) for number, row in rows.items()])
    assert np.square(scores).sum() < 5 + 3 * math.sqrt(10)
    assert abs(_score(EXPRESSIBILITIES[1][8], rows[14])) > 10


def test_few_fidelities_have_the_divergence_of_the_library():
    counts, log_haar = np.array([900, 70, 20, 9, 1]), _log_haar(5, 4)
    drawn = np.random.default_rng(1).multinomial(5000, counts / 1000, size=400)
    expected = [_divergence(each, log_haar).value for each in drawn]
    assert _of_few(counts, np.random.default_rng(1)) == pytest.approx(expected)


@pytest.mark.parametrize("model", [pytest.param("quantum", marks=pytest.mark.slow), "easy quantum"])
def test_published_effective_dimensions_are_repeated_to_all_digits(model):
    """From the same draws of weights and of inputs."""
    measured = dimension(model, data=list(DATA), highest=1.0, weight_samples=100, input_samples=100, seed=0)
    assert measured.normalized == pytest.approx(EFFECTIVE_DIMENSIONS[model], abs=1e-9)


def test_models_have_forty_weights_and_two_outputs():
    for make in QUANTUM_MODELS.values():
        layer = make()
        assert sum(weight.numel() for weight in layer.parameters()) == 40
        assert layer(torch.zeros(1, 4)).shape == (1, 2)


def test_the_classical_networks_fisher_information():
    """By PyTorch's own gradients of the logarithms, one input and one class at a time."""
    inputs = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    state = torch.random.get_rng_state()
    fisher = _fisher_of_network(5, inputs, 1.0)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    network = nn.ModuleList([nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)])
    for layer in network.double():
        layer.weight.data.uniform_(0, 1)
    expected = torch.zeros(40, 40, dtype=torch.float64)
    for row in inputs:
        hidden = nn.functional.leaky_relu(network[1](nn.functional.leaky_relu(network[0](row))))
        outputs = torch.softmax(torch.tanh(network[2](hidden)), dim=-1)
        for output in outputs:
            slopes = torch.autograd.grad(output.log(), list(network.parameters()), retain_graph=True)
            flat = torch.cat([slope.flatten() for slope in slopes])
            expected += output.detach() * torch.outer(flat, flat) / len(inputs)
    assert torch.allclose(fisher, expected)
    assert effective_dimension_of(torch.stack([fisher, fisher]), data=100).values[0] < 40
    torch.random.set_rng_state(state)


@pytest.mark.parametrize(
    "options", [["--circuits", "20"], ["--samples", "1"], ["--weight-samples", "1"], ["--data", "18"]]
)
def test_settings_that_cannot_be_are_refused(options, folder, capsys):
    assert_refused(capsys, folder, f"expressibility: {options[0]}: got", "expressibility", *options)


def test_cells_are_different_and_the_study_runs(folder):
    every = STUDY.cells(STUDY.settings())
    assert len(every) == 38 + 10 + 9
    assert main(["expressibility", *TINY, "--data", "100", "--workers", "0", "--run-dir", str(folder)]) == 0
    found = result(folder)
    assert found["published_expressibilities"] == 2
    assert found["largest_difference_of_dimensions"] == {}  # other draws than the published ones
    rows = RunFolder(folder).read_rows("circuits.csv")
    assert len(rows) == 2 + 5
    assert rows[1]["entangling capability"] == pytest.approx(1)
    assert rows[1]["published"] == 0.6773
    assert len(RunFolder(folder).read_rows("dimensions.csv")) == 9
    assert {path.name for path in folder.glob("*.png")} == {"circuits.png", "dimensions.png"}
