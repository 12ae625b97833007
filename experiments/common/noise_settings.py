"""Noise of the user's own, in numbers that say nothing of who simulates it.

Without Qiskit and PyTorch, as all that makes options; :mod:`experiments.common.noise_models` makes a simulator of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

OWN_SIMULATION = "noisy"
"""The word of the backend that is this package's simulation of noise."""

ANY = {1: "1q", 2: "2q"}
"""What stands for all gates of so many qubits that are not named themselves."""

GATES: Mapping[int, tuple[str, ...]] = {
    1: (
        *("h", "id", "p", "r", "rx", "ry", "rz", "s", "sdg", "sx"),
        *("sxdg", "t", "tdg", "u", "u1", "u2", "u3", "x", "y", "z"),
    ),
    2: (
        *("cp", "crx", "cry", "crz", "csx", "cu", "cu1", "cu3"),
        *("cx", "cy", "cz", "ecr", "rxx", "ryy", "rzx", "rzz", "swap"),
    ),
}
"""The gates of one and of two qubits that can have noise, by Qiskit's names."""


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    r"""What is wrong with a simulated machine.

    In gates' names ``1q`` and ``2q`` stand for all gates of one or two qubits that are not named themselves. The gates that
    are named are those that the machine has: circuits are translated into them. Where no gate of one qubit is named, it has
    all of those, without noise; so with two. After a gate comes its depolarising channel, then the relaxation of its
    duration, on each of its qubits; idle qubits have no noise.

    Attributes:
        depolarizing: The probability p of the depolarising channel after each gate, such as {cx: 0.01, 1q: 0.001}: the state
            becomes 1 - p times itself, plus p times the maximally mixed state.
        t1: The relaxation time T1 in microseconds; null: none.
        t2: The dephasing time T2 in microseconds, at most twice T1; null: as long as T1 allows.
        durations: How long each gate takes in nanoseconds, such as {1q: 35, rz: 0, cx: 300}; where t1 or t2 is given, of
            every gate.
        zero_as_one: The probability to read 1 where there is 0, on each qubit.
        one_as_zero: The probability to read 0 where there is 1.

    Raises:
        ValueError: If there is no such noise.
    """

    depolarizing: dict[str, float] = field(default_factory=dict)
    t1: float | None = None
    t2: float | None = None
    durations: dict[str, float] = field(default_factory=dict)
    zero_as_one: float = 0.0
    one_as_zero: float = 0.0

    def __post_init__(self) -> None:
        for gate, probability in self.depolarizing.items():
            most = 4 ** _qubits_of("depolarizing", gate)
            _require(f"depolarizing.{gate}", probability, most / (most - 1), "a probability that the channel allows")
        for gate, duration in self.durations.items():
            _qubits_of("durations", gate)
            _require(f"durations.{gate}", duration, math.inf, "nanoseconds")
        for name in ("zero_as_one", "one_as_zero"):
            _require(name, getattr(self, name), 1.0, "a probability")
        if self.t1 is not None or self.t2 is not None:
            self._check_relaxation()
        elif self.durations:
            raise ValueError("noise.t1: got none with durations, expected t1 or t2, which need them; leave them out.")

    def _check_relaxation(self) -> None:
        for name in ("t1", "t2"):
            time = getattr(self, name)
            if time is not None and not 0 < time < math.inf:
                raise ValueError(f"noise.{name}: got {time}, expected microseconds above 0; null: no such limit.")
        t1, t2 = self.relaxation_times
        if t2 > 2 * t1:
            raise ValueError(f"noise.t2: got {t2} with t1={t1}, expected at most {2 * t1}: T2 is never above twice T1.")
        for qubits, every in ANY.items():
            without = [gate for gate in self.gates(qubits) if not {gate, every} & self.durations.keys()]
            if without:
                gates = f"{', '.join(without[:3])}{', ...' if len(without) > 3 else ''}"
                raise ValueError(
                    f"noise.durations: got none for {gates}, expected one for every gate where t1 or t2 is given; add "
                    f"{every!r} for all gates of {qubits} qubit(s) that are not named, with 0 for those that take no time."
                )

    @property
    def relaxation_times(self) -> tuple[float, float]:
        """T1 and T2 in microseconds; infinite where nothing limits them."""
        t1 = math.inf if self.t1 is None else self.t1
        return t1, 2 * t1 if self.t2 is None else self.t2

    @property
    def named(self) -> frozenset[str]:
        """The gates that are named, ``1q`` and ``2q`` among them."""
        return frozenset(self.depolarizing) | frozenset(self.durations)

    def gates(self, qubits: int) -> tuple[str, ...]:
        """The machine's gates of so many qubits (1 or 2)."""
        chosen = tuple(gate for gate in GATES[qubits] if gate in self.named)
        return GATES[qubits] if ANY[qubits] in self.named or not chosen else chosen

    def depolarizing_of(self, gate: str) -> float:
        """The depolarising probability after a gate."""
        return _of_gate(self.depolarizing, gate)

    def duration_of(self, gate: str) -> float:
        """How long a gate takes, in nanoseconds."""
        return _of_gate(self.durations, gate)


def _of_gate(values: Mapping[str, float], gate: str) -> float:
    return values.get(gate, values.get("1q" if gate in GATES[1] else "2q", 0.0))


def _qubits_of(name: str, gate: str) -> int:
    for qubits, gates in GATES.items():
        if gate in gates or gate == ANY[qubits]:
            return qubits
    near = get_close_matches(gate.lower(), [*GATES[1], *GATES[2]], n=1)
    meant = f"; did you mean {near[0]}?" if near else "."
    raise ValueError(f"noise.{name}: got a gate {gate!r}, expected Qiskit's name of one, or 1q or 2q{meant}")


def _require(name: str, number: float, most: float, what: str) -> None:
    if not 0 <= number <= most or math.isinf(number):
        upto = "finite, 0 or more" if math.isinf(most) else f"from 0 to {most:.6g}"
        raise ValueError(f"noise.{name}: got {number}, expected {what}, {upto}.")
