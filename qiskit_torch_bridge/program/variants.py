"""Changes to a program's circuits that are made after transpiling, for the sake of their errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from qiskit import QuantumCircuit

__all__ = ["Variant"]


class Variant(ABC):
    """A change to circuits that a transpiler has finished, and that it therefore cannot undo.

    Subclass it as a frozen dataclass: ``repr`` and equality tell one variant from another, in ledgers too.
    """

    keeps_values: ClassVar[bool] = True
    """Whether the circuits give the same values as before on a device without errors."""

    @abstractmethod
    def apply(self, circuit: QuantumCircuit) -> QuantumCircuit:
        """The changed circuit; the given one stays as it is.

        Args:
            circuit: A circuit as it would be run: in the device's gates, where there is a device, with its measurements at
                its end. The classical registers, and which bit comes of which qubit, have to stay. A free argument of a gate
                is an affine function of the program's angles, and has to stay one.
        """
