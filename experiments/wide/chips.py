"""IBM devices as graphs: their qubits, their couplings in an order for circuits, and where to draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import rustworkx as rx

from qiskit_torch_bridge.backends.ibm.device import fake_device

if TYPE_CHECKING:
    from qiskit.providers import BackendV2


@dataclass(frozen=True, eq=False)
class Chip:
    """Qubits of a device, numbered from 0 on.

    Attributes:
        device: The fake device that they are of.
        physical: The device's number of each qubit.
        couplings: Pairs of qubits that the device couples; in layers, in each of which a qubit is in one pair at most.
        positions: Of each qubit, to the right and downwards, in distances of neighbours.
    """

    device: BackendV2
    physical: tuple[int, ...]
    couplings: tuple[tuple[int, int], ...]
    positions: tuple[tuple[int, int], ...]

    @property
    def num_qubits(self) -> int:
        """How many there are."""
        return len(self.physical)


def chip_of(name: str, qubits: int | None = None) -> Chip:
    """The chip of a device of IBM's.

    Args:
        name: Of its fake, such as ``"sherbrooke"``.
        qubits: So many of its qubits, those that are fewest couplings from its first one; None: all.

    Raises:
        ImportError: If qiskit-ibm-runtime is not installed.
        ValueError: If there is no such fake device, it has fewer qubits, or they are not numbered in rows.
    """
    device = fake_device(name)
    if qubits is not None and not 2 <= qubits <= device.num_qubits:
        raise ValueError(f"--qubits: got {qubits}, expected 2 to {device.num_qubits}, which {device.name} has.")
    pairs = sorted({(min(pair), max(pair)) for pair in device.coupling_map.get_edges()})
    positions = _in_rows(device.num_qubits, pairs)
    if len(set(positions)) < len(positions):
        raise ValueError(
            f"--chip: got {name!r}, whose qubits are not numbered in rows, expected a device of which that is true; take "
            "sherbrooke, brisbane, fez or another one of 127 qubits or more."
        )
    graph = rx.PyGraph()
    graph.add_nodes_from(range(device.num_qubits))
    graph.add_edges_from_no_data(pairs)
    distances = rx.graph_distance_matrix(graph)[0]
    physical = tuple(sorted(sorted(range(device.num_qubits), key=lambda qubit: (distances[qubit], qubit))[:qubits]))
    number = {qubit: i for i, qubit in enumerate(physical)}
    part = graph.subgraph(list(physical))
    colours = rx.graph_bipartite_edge_color(part)
    in_layers = sorted(part.edge_indices(), key=lambda edge: (colours[edge], edge))
    ends = [part.get_edge_endpoints_by_index(edge) for edge in in_layers]
    couplings = [sorted((number[part[a]], number[part[b]])) for a, b in ends]
    return Chip(device, physical, tuple((a, b) for a, b in couplings), tuple(positions[qubit] for qubit in physical))


def _in_rows(num_qubits: int, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Qubits with successive numbers that are coupled make a row; other couplings lead from a row to the one below."""
    coupled, positions = set(pairs), list[tuple[int, int]]()
    while len(positions) < num_qubits:
        first = last = len(positions)
        while (last, last + 1) in coupled:
            last += 1
        above = [(a, b) for a, b in pairs if a < first <= b <= last]
        left, down = 0, 0
        for a, b in above[:1]:
            left, down = positions[a][0] - (b - first), positions[a][1] + 1
        positions += [(left + i, down) for i in range(last - first + 1)]
    return positions
