"""Regions of a device: where copies of a circuit fit, how well each would run them, and which are taken."""

import math
from functools import cache
from itertools import combinations

import numpy as np
import pytest
import rustworkx as rx
from qiskit import QuantumCircuit, transpile
from qiskit.providers.fake_provider import GenericBackendV2

pytest.importorskip("qiskit_ibm_runtime", reason="IBM devices need qiskit-ibm-runtime")
from qiskit_aer import AerSimulator
from qiskit_ibm_runtime.fake_provider import FakeGuadalupeV2, FakeSherbrooke

from qiskit_torch_bridge.backends.ibm.regions import chosen_regions


def line(qubits: int) -> QuantumCircuit:
    circuit = QuantumCircuit(qubits, qubits)
    for qubit in range(qubits):
        circuit.ry(0.3 + qubit, qubit)
    for qubit in range(qubits - 1):
        circuit.cx(qubit, qubit + 1)
    circuit.measure(range(qubits), range(qubits))
    return circuit


def star(qubits: int) -> QuantumCircuit:
    circuit = QuantumCircuit(qubits, qubits)
    for qubit in range(1, qubits):
        circuit.cx(0, qubit)
    circuit.measure(range(qubits), range(qubits))
    return circuit


def apart(qubits: int) -> QuantumCircuit:
    circuit = QuantumCircuit(qubits, qubits)
    circuit.h(range(qubits))
    circuit.measure(range(qubits), range(qubits))
    return circuit


def on(device, circuit: QuantumCircuit) -> QuantumCircuit:
    return transpile(circuit, device, optimization_level=2, seed_transpiler=0)


def pairs_of(circuit: QuantumCircuit) -> list[tuple[str, tuple[int, ...]]]:
    """Every gate of a circuit, and its qubits."""
    return [(i.operation.name, tuple(circuit.find_bit(q).index for q in i.qubits)) for i in circuit.data]


def fidelity_of(device, gates, places) -> float:
    """As the formula says, from the target, gate by gate."""
    target, fidelity = device.target, 1.0
    ends: dict[int, float] = {}
    busy: dict[int, float] = {}
    for name, qubits in gates:
        if name == "barrier":
            continue
        there = tuple(places[qubit] for qubit in qubits)
        errors = [target[name][pair].error for pair in {there, there[::-1]} if pair in target[name]]
        fidelity *= 1 - min(errors)
        length = target[name][qubits].duration or 0.0
        end = max(ends.get(qubit, 0.0) for qubit in qubits) + length
        for qubit in qubits:
            busy[qubit], ends[qubit] = busy.get(qubit, 0.0) + length, end
    for qubit, time in busy.items():
        idle, relaxation = max(ends.values()) - time, target.qubit_properties[places[qubit]]
        fidelity *= 0.5 + math.exp(-idle / relaxation.t1) / 6 + math.exp(-idle / relaxation.t2) / 3
    return fidelity


@cache
def sherbrooke() -> FakeSherbrooke:
    """A fake device of 127 qubits; nobody changes it."""
    return FakeSherbrooke()


CIRCUITS = {"one": line(1), "two": line(2), "four": line(4), "star": star(4), "apart": apart(3)}


@cache
def on_sherbrooke(name: str) -> QuantumCircuit:
    """One of ``CIRCUITS``, transpiled."""
    return on(sherbrooke(), CIRCUITS[name])


@pytest.mark.parametrize("name", CIRCUITS)
@pytest.mark.parametrize("spacing", [0, 1, 2])
def test_regions_are_apart_have_the_couplers_and_come_in_order(name, spacing):
    device, circuit = sherbrooke(), on_sherbrooke(name)
    regions = chosen_regions(circuit, device, spacing=spacing)
    gates = pairs_of(circuit)
    graph = device.coupling_map.graph.to_undirected(multigraph=False)
    distances = rx.distance_matrix(graph)
    assert len(regions) >= {"one": 20, "two": 12}.get(name, 5)
    for one, other in combinations(regions, 2):
        assert min(distances[a, b] for a in one.places.values() for b in other.places.values()) > spacing
    for region in regions:
        assert len(set(region.places.values())) == len(region.places) == CIRCUITS[name].num_qubits
        assert all(graph.has_edge(*(region.places[q] for q in qubits)) for _, qubits in gates if len(qubits) == 2)
        assert region.fidelity == pytest.approx(fidelity_of(device, gates, region.places))
    fidelities = [region.fidelity for region in regions]
    assert fidelities == sorted(fidelities, reverse=True)
    assert regions == chosen_regions(circuit, device, spacing=spacing)


@pytest.mark.parametrize("name", ["one", "two", "four", "star"])
def test_the_best_region_is_the_best_that_there_is(name):
    """Of all that VF2 enumerates on a device of 16 qubits."""
    device = FakeGuadalupeV2()
    circuit = on(device, CIRCUITS[name])
    gates = pairs_of(circuit)
    used = sorted({qubit for _, qubits in gates for qubit in qubits})
    pattern = rx.PyGraph(multigraph=False)
    pattern.add_nodes_from(used)
    pattern.add_edges_from_no_data([tuple(map(used.index, qubits)) for _, qubits in gates if len(qubits) == 2])
    graph = device.coupling_map.graph.to_undirected(multigraph=False)
    mappings = rx.vf2_mapping(graph, pattern, subgraph=True, induced=False)
    all_places = [{used[there]: place for place, there in mapping.items()} for mapping in mappings]
    fidelities = [fidelity_of(device, gates, places) for places in all_places]
    assert len(fidelities) >= 16
    assert chosen_regions(circuit, device)[0].fidelity == pytest.approx(max(fidelities))


def test_what_is_out_of_order_is_left_out():
    device = FakeGuadalupeV2()
    circuit = on(device, line(2))
    best = chosen_regions(circuit, device)[0]
    pair = frozenset(best.places.values())
    one, other = pair
    without_coupler = chosen_regions(circuit, device, faulty=[pair])
    assert all(frozenset(region.places.values()) != pair for region in without_coupler)
    assert any(one in r.places.values() or other in r.places.values() for r in without_coupler)
    without_qubit = chosen_regions(circuit, device, faulty=[frozenset({one})])
    assert without_qubit
    assert all(one not in region.places.values() for region in without_qubit)


def test_conditions():
    device = FakeSherbrooke()
    circuit = on(device, line(4))
    every = chosen_regions(circuit, device)
    assert [r.fidelity for r in chosen_regions(circuit, device, most=3)] == [r.fidelity for r in every[:3]]
    near = chosen_regions(circuit, device, loss=0.05)
    assert 1 < len(near) < len(every)
    assert near == [region for region in every if region.fidelity >= every[0].fidelity - 0.05]
    worst = every[-1].places
    first = chosen_regions(circuit, device, first=worst)
    assert first[0].places == worst
    assert first[1].fidelity > first[0].fidelity
    assert first[0].fidelity == pytest.approx(every[-1].fidelity)


def test_qubits_that_only_an_observable_acts_on_have_a_place_of_their_own():
    device = FakeGuadalupeV2()
    circuit = QuantumCircuit(16)
    circuit.cx(0, 1)
    regions = chosen_regions(circuit, device, measured=[1, 5])
    assert all(sorted(region.places) == [0, 1, 5] for region in regions)
    assert all(len(set(region.places.values())) == 3 for region in regions)


def test_simulators():
    """One with connections takes gates everywhere by its target, but regions have its connections."""
    device = AerSimulator.from_backend(GenericBackendV2(8, coupling_map=[[q, q + 1] for q in range(7)], seed=1))
    circuit = on(device, line(3))
    regions = chosen_regions(circuit, device)
    gates = [qubits for _, qubits in pairs_of(circuit) if len(qubits) == 2]
    assert len(regions) == 2
    assert all(abs(r.places[a] - r.places[b]) == 1 for r in regions for a, b in gates)
    with pytest.raises(ValueError, match=r"packing: got a simulator without connections.*fake_fez"):
        chosen_regions(line(2), AerSimulator())


@pytest.mark.slow
def test_a_large_circuit_ends_in_bounded_time():
    device = FakeSherbrooke()
    regions = chosen_regions(on(device, line(20)), device)
    assert len(regions) >= 2
    assert np.isfinite([region.fidelity for region in regions]).all()
