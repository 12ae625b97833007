"""Shots that are simulated here, at the price that an IBM device would ask for the very same evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from qiskit_torch_bridge import Charge, Estimate, IBMBackend, Program, StatevectorBackend
from qiskit_torch_bridge.backends.base import ProgramCache
from qiskit_torch_bridge.backends.ibm.fingerprints import fingerprint

__all__ = ["MeteredBackend"]


class _PriceList:
    """What a fake device asks, without sending anything; circuits that are alike are transpiled once in a process."""

    def __init__(self, device: str) -> None:
        self._device = IBMBackend(device, ledger=":memory:")
        self._alike: dict[str, Program] = {}

    def listed(self, program: Program) -> Program:
        """The first program of those that are like this one."""
        return self._alike.setdefault(fingerprint(program), program)

    def charge(self, work: Sequence[tuple[Program, int]], shots: int | None) -> Charge:
        """The price of listed programs at so many angle vectors each, in one job."""
        return self._device.charge(work, shots=shots)


_price_list = cache(_PriceList)


class MeteredBackend(StatevectorBackend):
    """Shots without noise from exact simulation; every evaluation is paid for as if a device had run it.

    Values and gradient of a step leave together, in one job, as they do with :class:`~qiskit_torch_bridge.IBMBackend`; each
    other evaluation (a metric, a point of a line search) is a job of its own. ``layer.quote`` is the device's.

    Args:
        device: A fake device, such as ``"fake_fez"``: its gate times and its delay between repetitions make the price.

    Attributes:
        executions: How often circuits have been executed so far.
        jobs: Jobs so far.
        qpu_seconds: The estimated time on the quantum processor so far.
    """

    queues = True

    def __init__(self, device: str) -> None:
        super().__init__()
        self.name = f"statevector at the price of {device}"
        self.executions, self.jobs, self.qpu_seconds = 0, 0, 0.0
        self._prices = _price_list(device)
        self._listed = ProgramCache()

    def prepare(self, program: Program) -> None:
        """See :class:`~qiskit_torch_bridge.Backend`; on the device too."""
        super().prepare(program)
        self.charge([(program, 1)], shots=1)

    def charge(self, work: Sequence[tuple[Program, int]], *, shots: int | None) -> Charge:
        """See :class:`~qiskit_torch_bridge.Backend`."""
        for program, _ in work:
            if program not in self._listed:
                self._listed[program] = self._prices.listed(program)
        return self._prices.charge([(self._listed[program], rows) for program, rows in work], shots)

    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        """See :class:`~qiskit_torch_bridge.Backend`.

        Raises:
            ValueError: If exact values are asked for, which no device has.
        """
        if shots is None:
            raise ValueError("shots: got None, expected a number, which is what is paid for.")
        charge = self.charge([(program, len(angles))], shots=shots)
        self.executions += charge.executions
        self.jobs += charge.jobs
        self.qpu_seconds += charge.qpu_seconds
        return super().evaluate(program, angles, shots=shots, seed=seed)
