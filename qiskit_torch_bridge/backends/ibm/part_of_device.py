"""Some qubits of a device as a device of its own, to be simulated alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from qiskit.providers import BackendV2, Options
from qiskit.transpiler import Target

__all__ = ["PartOfDevice"]

_ADDED_BY_CLIENTS = frozenset({"delay", "id", "measure", "reset", "rz", "sx", "x"})


class PartOfDevice(BackendV2):
    """Some qubits of a device, with its gates, couplers, durations and errors there.

    Args:
        device: The device.
        qubits: Which of its qubits, in the new order.
        gates: Which of its gates, beside those of single qubits that clients add: a noise model takes time for each.
    """

    def __init__(self, device: BackendV2, qubits: Sequence[int], gates: Collection[str]) -> None:
        super().__init__(name=f"{device.name} on {list(qubits)}", provider=None)
        self._target = _part_of(device.target, qubits, _ADDED_BY_CLIENTS.union(gates))

    @property
    def target(self) -> Target:
        """The gates of these qubits."""
        return self._target

    @property
    def max_circuits(self) -> None:
        """No limit."""
        return None

    @classmethod
    def _default_options(cls) -> Options:
        return Options()

    def run(self, run_input: Any, **options: Any) -> Any:
        """Nothing: it only says what is to be simulated.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("A part of a device is simulated by Aer, from its target.")


def _part_of(target: Target, qubits: Sequence[int], gates: frozenset[str]) -> Target:
    place = {qubit: number for number, qubit in enumerate(qubits)}
    properties = target.qubit_properties
    part = Target(
        num_qubits=len(place),
        dt=target.dt,
        granularity=target.granularity,
        min_length=target.min_length,
        pulse_alignment=target.pulse_alignment,
        acquire_alignment=target.acquire_alignment,
        qubit_properties=None if properties is None else [properties[qubit] for qubit in qubits],
    )
    for name in sorted(gates.intersection(target.operation_names)):
        operation, everywhere = target.operation_from_name(name), target[name]
        inside = {
            tuple(place[qubit] for qubit in where): there
            for where, there in everywhere.items()
            if where is not None and set(where) <= place.keys()
        }
        if inside or None in everywhere:
            part.add_instruction(operation, inside or None, name=name)
    return part
