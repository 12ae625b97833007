"""What every backend does: evaluate a compiled circuit at many angle vectors in one call."""

from __future__ import annotations

import functools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from qiskit import ClassicalRegister, QuantumCircuit
from qiskit.circuit.library import Barrier

from ..arguments import instance_of
from ..program.compiled import Program
from ..program.readout import MeasurementGroup, Samples, outcomes_of_rows
from ..shots.covariance import Covariance
from ..shots.shadow import Shadow
from .passport import Passport

if TYPE_CHECKING:
    from ..simulator.final_states import MixedStates, PureStates
    from ..simulator.step import Step

__all__ = [
    "Backend",
    "Charge",
    "Estimate",
    "Outcomes",
    "Request",
    "check_shots",
    "circuit_on",
    "estimate_from_moments",
    "measured_circuit",
]


Outcomes: TypeAlias = tuple[np.ndarray | Samples, ...]
"""For each measurement group what was measured: the relative frequencies of the outcomes (or, for exact values, their
probabilities), shape (N, 2**k); or the bit strings."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """Values of a batch of circuits.

    Attributes:
        values: Shape (N, M).
        variances: Shape (N, M): the squared standard errors of the values; zero for exact ones, NaN where a single shot
            says nothing.
        circuits: How many circuits were executed: angle vectors, times the measurement groups.
        shots: How many shots were spent on all of them; 0 for exact values.
        state: What the backend wants to be handed back when these values are differentiated, or None.
        passport: Where and how the values were measured, for backends that say so.
        covariance: How the outputs of a row vary together; None where the backend cannot say.
        truncation_bounds: Shape (N, M): how far from exact the values are at most because something was left out of them;
            None from backends that leave nothing out, or cannot say.
        outcomes: Gives what was measured, or None where that is not known in the end; it is called when somebody looks at
            :attr:`measured`. None where the backend cannot say.
    """

    values: np.ndarray
    variances: np.ndarray
    circuits: int
    shots: int
    _: KW_ONLY
    state: Any = None
    passport: Passport | None = None
    covariance: Covariance | None = None
    truncation_bounds: np.ndarray | None = None
    outcomes: Callable[[], Outcomes | None] | None = None

    @cached_property
    def measured(self) -> Outcomes | None:
        """What each measurement group has measured, made when it is first looked at; None where that is not known."""
        return None if self.outcomes is None else self.outcomes()

    def of_rows(self, rows: slice) -> Estimate:
        """Those of some of its rows, which have cost as much as any others."""
        values = self.values[rows]
        circuits, shots = (total * len(values) // len(self.values) for total in (self.circuits, self.shots))
        covariance = None if self.covariance is None else self.covariance.of_rows(rows)
        bounds = None if self.truncation_bounds is None else self.truncation_bounds[rows]
        outcomes = None
        if (measured := self.measured) is not None:  # cut out now, so that those of other rows can be let go of
            cut = tuple(outcomes_of_rows(each, rows) for each in measured)
            outcomes = partial(_same, cut)
        return Estimate(
            values,
            self.variances[rows],
            circuits,
            shots,
            passport=self.passport,
            covariance=covariance,
            truncation_bounds=bounds,
            outcomes=outcomes,
        )


def _same(outcomes: Outcomes) -> Outcomes:
    return outcomes


@dataclass(frozen=True, eq=False)
class Request:
    """What is to be evaluated.

    Attributes:
        program: The compiled circuit.
        angles: Shape (N, A) with N > 0, finite, float64; radians.
        seed: The randomness of this evaluation; it also tells evaluations of the same angles apart.
    """

    program: Program
    angles: np.ndarray
    seed: np.random.SeedSequence


@dataclass(frozen=True)
class Charge:
    """What a backend asks for some evaluations.

    Attributes:
        jobs: Jobs that wait in a queue; 0 where there is none.
        executions: How often a circuit is executed, in all, repetitions that a mitigation method adds included; 0 for
            exact values. What is executed may have copies of a program's circuit for several angle vectors side by side
            (``packing`` of IBM's devices): once for all of them, so that there are fewer than shots.
        qpu_seconds: The estimated time on the quantum processor, in seconds; 0 where there is none.
    """

    jobs: int = 0
    executions: int = 0
    qpu_seconds: float = 0.0


class Backend(ABC):
    """Evaluates programs. Subclass it to add a backend; pass an instance as ``backend=``.

    A backend is a resource, like a file: copies of a layer share it. It may cache what it derives from a program
    (transpiled circuits), but it holds no random state: the seed comes with every call.
    """

    differentiates: ClassVar[bool] = False
    """Whether :meth:`evaluate_for_pullback` and :meth:`pullback` work (for the adjoint rule)."""
    queues: ClassVar[bool] = False
    """Whether a call waits in a queue, so that the circuits of a gradient had better leave with those of the values."""

    settings_may_change: ClassVar[bool] = True
    """Whether :meth:`resolve_shots` may answer otherwise later, because the user still holds what it wraps (the options of
    a primitive, a simulator's noise); layers then ask at each call. False: what they were told when they were made holds, so
    a subclass whose default can be changed sets it to True."""

    runs_variants: ClassVar[bool] = False
    """Whether circuits run with a program's :attr:`~qiskit_torch_bridge.Program.variants`, which mitigation needs."""

    name: str
    """What the backend is called in messages and in ``print(layer)``; a subclass must set it."""
    shadow: Backend | None = None
    """A backend without noise that is to evaluate everything too, to see what the noise does."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # The library's own do, and are in a hurry.
        if "evaluate" in vars(cls) and cls.__module__.partition(".")[0] != __name__.partition(".")[0]:
            cls.evaluate = _returning_an_estimate(cls.evaluate)  # type: ignore[method-assign]

    @abstractmethod
    def resolve_shots(self, shots: int | None) -> int | None:
        """The shots that a call would use: ``shots``, or the backend's default; None for exact values.

        Raises:
            ValueError: If the backend needs shots and there is no default, or cannot take any.
        """

    @abstractmethod
    def prepare(self, program: Program) -> None:
        """Checks that the program can run, and does once what need not be done at every call (transpiling).

        Raises:
            ValueError: If it cannot run.
        """

    @abstractmethod
    def evaluate(
        self, program: Program, angles: np.ndarray, *, shots: int | None, seed: np.random.SeedSequence
    ) -> Estimate:
        """Evaluates the program at each row of ``angles`` in one call.

        Args:
            program: The compiled circuit.
            angles: Shape (N, A) with N > 0, finite, float64; radians.
            shots: Shots a circuit, as :meth:`resolve_shots` gave them; None for exact values.
            seed: The randomness of this call.
        """

    def evaluate_all(self, requests: Sequence[Request], *, shots: int | None) -> list[Estimate]:
        """Evaluates several programs; in one job, where there are jobs."""
        return [self.evaluate(r.program, r.angles, shots=shots, seed=r.seed) for r in requests]

    @property
    def calibration(self) -> str | None:
        """What tells one calibration of the device from the next; None where there is no device that changes."""
        return None

    @property
    def extrapolates(self) -> bool:
        """Whether values are extrapolated to no noise already, by the primitive itself."""
        return False

    @property
    def twirls_readout(self) -> bool:
        """Whether it flips measured bits at random, before and after the measurement, by itself."""
        return False

    @property
    def modelled(self) -> Backend | None:
        """Beside a :attr:`shadow`: a backend with a model of the noise, to see how much of what it does that explains."""
        return None

    def circuits_per_row(self, program: Program) -> int:
        """How many circuits one angle vector costs."""
        return len(program.readout.groups)

    def shots_of_circuit(self, program: Program, shots: int | None) -> int:
        """How many shots a circuit really takes where so many are asked for; 0 for exact values."""
        return shots or 0

    def gives_outcomes(self, program: Program) -> bool:
        """Whether estimates of the program say what was measured (:attr:`Estimate.measured`)."""
        return False

    def charge(self, work: Sequence[tuple[Program, int]], *, shots: int | None) -> Charge:
        """What an :meth:`evaluate_all` of programs at so many angle vectors each would cost."""
        circuits = sum(rows * self.circuits_per_row(program) for program, rows in work)
        return Charge(executions=circuits * (shots or 0))

    def charge_once(
        self, work: Sequence[tuple[Program, int]], *, shots: int | None
    ) -> Mapping[Hashable, tuple[int, int, Charge]]:
        """What leaves along with such an :meth:`evaluate_all` the first time, and is not measured again: calibrations.

        Returns:
            For each thing that is measured once, by what tells it from others: its circuits, its shots, and what it adds to
            the charge.
        """
        return {}

    def describe(self, program: Program) -> str:
        """How a program is evaluated, in words."""
        circuits = self.circuits_per_row(program)
        return f"{circuits} circuit{'' if circuits == 1 else 's'} for each row of the batch, on {self.name}."

    def note_shadow(self, shadow: Shadow) -> None:  # noqa: B027 - most backends have nowhere to note it
        """Told what :attr:`shadow` has shown, after each evaluation."""

    def circuits(self, program: Program) -> Sequence[QuantumCircuit]:
        """The circuits of a program as they are run, where the backend :attr:`runs_variants`: with the program's variants.

        One a measurement group, with its measurements; of an Estimator one without any. In the device's gates, where there
        is a device. A program without anything to measure has none.

        Raises:
            ValueError: If the program cannot run.
        """
        raise NotImplementedError(f"Backend {self.name!r} runs no circuits that could be shown.")

    def step_of(self, program: Program) -> Step | None:
        """What takes inputs and weights to exact values in one call, and gradients back; None where nothing does."""
        return None

    def pure_states_of(self, program: Program) -> PureStates | None:
        """What gives the final states of a program without input blocks; None where there are none to be looked at."""
        return None

    def mixed_states_of(self, program: Program, qubits: tuple[int, ...]) -> MixedStates | None:
        """Likewise, with noise, of some of the program's qubits (as its canonical circuit numbers them)."""
        return None

    def evaluate_for_pullback(self, program: Program, angles: np.ndarray) -> Estimate:
        """Exact values as by :meth:`evaluate`, with what :meth:`pullback` can use again in :attr:`Estimate.state`."""
        raise NotImplementedError(f"Backend {self.name!r} does not differentiate itself.")

    def pullback(
        self, program: Program, angles: np.ndarray, upstream: np.ndarray, state: Any, selected: np.ndarray
    ) -> np.ndarray:
        """The vector-Jacobian product of exact values, shape (N, A), where the backend :attr:`differentiates`.

        Args:
            program: The compiled circuit.
            angles: Shape (N, A); radians.
            upstream: Shape (N, M): the gradient by the values.
            state: :attr:`Estimate.state` of the evaluation at the same angles, or None. It stays as it is.
            selected: Shape (A,), bool: the angles whose gradient is asked for; the others' may be anything finite.
        """
        raise NotImplementedError(f"Backend {self.name!r} does not differentiate itself.")

    def _warn_once(self, about: str, message: str | None) -> None:
        """Warns, unless this backend has done so about the same, or there is nothing to say."""
        said: set[str] = self.__dict__.setdefault("_said", set())
        if message is not None and about not in said:
            said.add(about)
            warnings.warn(message, stacklevel=2)

    def __deepcopy__(self, memo: dict[int, Any]) -> Backend:
        return self


class ProgramCache(WeakKeyDictionary[Program, Any]):
    """What a backend derives from programs, forgotten with them; empty again after pickling."""

    def of(self, program: Program) -> dict[Any, Any]:
        """The dictionary that belongs to the program, for backends that derive several things."""
        derived: dict[Any, Any] = self.setdefault(program, {})
        return derived

    def __reduce__(self) -> tuple[type[ProgramCache], tuple[()]]:
        return ProgramCache, ()


def __getattr__(name: str) -> Any:
    if name != "estimate_from_samples":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import results  # which needs this module

    message = f"{__name__}.{name} is now {results.__name__}.{name}; import it from there."
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return results.estimate_from_samples


def _returning_an_estimate(evaluate: Callable[..., Any]) -> Callable[..., Estimate]:
    """The method of a backend, which says so if it returns something else (None, where ``return`` was forgotten)."""

    @functools.wraps(evaluate)
    def checked(self: Backend, *args: Any, **kwargs: Any) -> Estimate:
        name, estimate = f"{type(self).__name__}.evaluate", evaluate(self, *args, **kwargs)
        return instance_of(name, estimate, Estimate, "an Estimate; return one")

    return checked


def check_shots(shots: Any) -> int | None:
    """Shots as a positive integer or None.

    Raises:
        TypeError, ValueError: If they are something else.
    """
    if shots is None:
        return None
    if isinstance(shots, bool) or not isinstance(shots, (int, np.integer)):
        raise TypeError(
            f"shots: got {shots!r} ({type(shots).__name__}), expected a positive integer, or None for the default."
        )
    if not 1 <= shots < 2**31:
        raise ValueError(f"shots: got {shots}, expected a positive integer below 2**31, or None for the default.")
    return int(shots)


def circuit_on(program: Program, *, compact: bool) -> tuple[QuantumCircuit, dict[int, int]]:
    """A copy of the program's circuit, and where each of its qubits is in the copy.

    Args:
        program: The compiled circuit.
        compact: Whether to leave out qubits that nothing touches, where qubit numbers mean nothing to the backend.
    """
    if not compact:
        return program.circuit.copy(), {qubit: qubit for qubit in range(program.circuit.num_qubits)}
    place = {qubit: i for i, qubit in enumerate(program.active_qubits)}
    circuit = QuantumCircuit(len(place))
    for instruction in program.circuit.data:
        qubits = [place.get(program.circuit.find_bit(qubit).index) for qubit in instruction.qubits]
        if kept := [qubit for qubit in qubits if qubit is not None]:
            whole = len(kept) == len(qubits)
            circuit.append(instruction.operation if whole else Barrier(len(kept)), kept, copy=False)
    return circuit, place


def measured_circuit(program: Program, group: MeasurementGroup, *, compact: bool) -> QuantumCircuit:
    """:func:`circuit_on`, then the group's basis changes and measurements into the register ``outcome``."""
    circuit, place = circuit_on(program, compact=compact)
    register = ClassicalRegister(len(group.qubits), "outcome")
    circuit.add_register(register)
    for bit, (qubit, basis) in enumerate(zip(group.qubits, group.bases, strict=True)):
        if basis == "Y":
            circuit.sdg(place[qubit])
        if basis != "Z":
            circuit.h(place[qubit])
        circuit.measure(place[qubit], register[bit])
    return circuit


def estimate_from_moments(
    program: Program,
    moments: Sequence[tuple[np.ndarray, np.ndarray]],
    rows: int,
    shots: int | None,
    covariance: Covariance | None = None,
    outcomes: Callable[[], Outcomes | None] | None = None,
) -> Estimate:
    """Values and variances from each group's first and second moments, of shape (N, M)."""
    readout = program.readout
    values = np.broadcast_to(readout.constants, (rows, readout.num_outputs)).copy()
    variances = np.zeros_like(values)
    for first, second in moments:
        values += first
        if shots is not None:
            variances += np.maximum(second - first**2, 0.0) / (shots - 1.0 if shots > 1 else np.nan)  # unbiased
    circuits = rows * len(moments)
    return Estimate(values, variances, circuits, circuits * (shots or 0), covariance=covariance, outcomes=outcomes)
