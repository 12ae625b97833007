"""Names by which compiled graphs know quantum layers."""

from __future__ import annotations

from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary
from zlib import crc32

from ..program.compiled import Program
from ..shots.seeding import SeedStream
from .functional import Tally
from .method import Method

__all__ = ["Host", "host_of", "register"]


class Host(Protocol):
    """What an operator asks of the layer that it stands for."""

    program: Program
    seeds: SeedStream
    tally: Tally

    def method(self, shots: int | None = None) -> Method:
        """How a call with so many shots is measured."""


_hosts: WeakValueDictionary[str, Any] = WeakValueDictionary()
_numbers = count()


def register(host: Host) -> str:
    """A name for a layer, as long as it lives: the same in another process for the same circuit, made in the same order."""
    name = f"layer {next(_numbers)} ({_fingerprint(host.program):08x})"
    _hosts[name] = host
    return name


def _fingerprint(program: Program) -> int:
    """A number that tells circuits apart: gates, qubits, numbers, where angles come from, and how much is read."""
    circuit = program.circuit
    gates = [
        (
            i.operation.name,
            [circuit.find_bit(qubit).index for qubit in i.qubits],
            [str(p) for p in i.operation.params[:3]],
        )
        for i in circuit.data
    ]
    forms = [form for group in program.angle_map.groups for form in group.affine]
    return crc32(repr((gates, forms, program.angle_map.source_widths, program.num_outputs)).encode())


def host_of(name: str) -> Host:
    """The layer of that name.

    Raises:
        RuntimeError: If there is none in this process.
    """
    try:
        host: Host = _hosts[name]
    except KeyError:
        raise RuntimeError(
            f"A graph asks for the quantum {name}, which this process does not have, expected one of {sorted(_hosts)}. "
            "A graph holds no circuits: keep the model that it was made from; in another process make the same model first, "
            "before any other quantum layer, and keep it."
        ) from None
    return host
