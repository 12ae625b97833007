"""What a call of a layer measured, and the gradient that has come back through it since."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..backends.base import Estimate
from ..backends.passport import Passport
from ..gradients.rules import GradientRule, ParameterShift, resolve_gradient
from ..gradients.stencil import Stencil
from ..program.compiled import Program
from ..program.readout import Probabilities
from ..shots.allocation import shots_by_sensitivity
from ..shots.covariance import Covariance
from ..shots.shadow import Shadow
from .function import GradientRecord, exact_values

__all__ = ["Call", "Run", "call_of"]

_MOST_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True, eq=False)
class _Gradient:
    """Gradients and their standard errors by each source (0: the inputs, 1 + g: weight group g) that has one.

    Attributes:
        by_source: For each source a pair of arrays of shape (W_g,), or (N, I) for the inputs.
        circuits: Circuits executed for them.
        shots: Shots spent on them.
    """

    by_source: dict[int, tuple[np.ndarray, np.ndarray]]
    circuits: int
    shots: int


@dataclass(eq=False)
class Call:
    """What a layer's call leaves behind to be looked at; backward adds to it.

    Attributes:
        program: The compiled circuit.
        grouped: Whether the layer's weights are a mapping of groups.
        tensors: Each source's values, shape (N, width) or (1, width), where the angles' derivatives depend on them.
        trained: The sources whose gradient torch wants.
        gradient: What the last backward was made of.
    """

    program: Program
    grouped: bool
    tensors: dict[int, torch.Tensor]
    trained: frozenset[int]
    gradient: GradientRecord | None = None
    _evaluated: tuple[GradientRecord, _Gradient] | None = None

    def note_gradient(self, record: GradientRecord) -> None:
        """Told by each backward."""
        self.gradient = record

    def measured(self) -> _Gradient | None:
        """The last gradient with its standard errors; None before there is one."""
        record = self.gradient
        if record is None:
            return None
        if self._evaluated is None or self._evaluated[0] is not record:
            self._evaluated = record, self._of(record)
        return self._evaluated[1]

    def predicted(self, shots: int, rule: GradientRule | None) -> _Gradient | None:
        """The gradient, as a rule and so many shots would give it: its expectation, with the standard errors."""
        record = self.gradient
        if record is None:
            return None
        if record.shots is not None or not record.selection.columns:
            return self._of(record, shots)
        if rule is None:
            rule = ParameterShift() if record.rule.exact_only else record.rule
        assert record.angles is not None
        rows = len(record.upstream)
        angles = np.broadcast_to(record.angles, (rows, record.angles.shape[1]))
        seeds = record.seeds.spawned(record.position)
        stencil = rule.stencil(self.program, record.selection.columns, rows=rows, shots=shots, seeds=seeds)
        (points,) = stencil.points([torch.from_numpy(np.array(angles))], [slice(None)], rows)
        estimate = exact_values(self.program, record.backend, rule, points.numpy())
        taken: np.ndarray | int = shots
        if record.by_sensitivity:
            shots_of_rows = shots_by_sensitivity(record.upstream, self.program.readout.scales, shots)
            taken = np.repeat(shots_of_rows, stencil.num_points)
        variances = _variances(estimate.covariance, record.upstream, stencil, np.maximum(taken, 1))
        of_each = estimate.circuits // len(estimate.values)
        circuits, total = (int(np.sum(np.broadcast_to(n, len(estimate.values)))) for n in (np.sign(taken), taken))
        return self._contracted(record, stencil, estimate, variances, of_each * circuits, of_each * total)

    def _of(self, record: GradientRecord, shots: int | None = None) -> _Gradient:
        estimate, stencil = record.estimate, record.stencil
        if stencil is not None and estimate is not None:
            if record.shots is None:
                variances = np.zeros(len(estimate.values))
                return self._contracted(record, stencil, estimate, variances, estimate.circuits, estimate.shots)
            # Other shots would go to the rows in the same proportions.
            more = 1.0 if shots is None else shots / record.shots
            variances = _variances(estimate.covariance, record.upstream, stencil, None) / more
            total = round(estimate.shots * more)
            return self._contracted(record, stencil, estimate, variances, estimate.circuits, total)
        assert record.gradient is not None
        gradient = record.gradient

        def chained(rows: slice, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            values = (gradient[rows, None] @ slopes)[:, 0]
            return values, np.zeros_like(values)

        return self._summed(record, chained, 0, 0)

    def _contracted(
        self,
        record: GradientRecord,
        stencil: Stencil,
        estimate: Estimate,
        variances: np.ndarray,
        circuits: int,
        shots: int,
    ) -> _Gradient:
        """The gradient from values at a table's points, and the variances along the upstream gradient there, (N * K,)."""
        count, points = len(record.upstream), stencil.num_points
        upstream = np.repeat(record.upstream, points, axis=0)
        along = (estimate.values * upstream).sum(axis=1).reshape(count, points)
        variances = variances.reshape(count, points)

        def chained(rows: slice, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            coefficients = stencil.coefficients if stencil.coefficients.ndim == 2 else stencil.coefficients[rows]
            # (n, K, width): what the value at each point adds to each parameter's gradient.
            shares = np.swapaxes(coefficients, -1, -2) @ slopes
            values = (along[rows, None] @ shares)[:, 0]
            return values, (variances[rows, None] @ shares**2)[:, 0]

        return self._summed(record, chained, circuits, shots, points)

    def _summed(
        self,
        record: GradientRecord,
        chained: Callable[[slice, np.ndarray], tuple[np.ndarray, np.ndarray]],
        circuits: int,
        shots: int,
        points: int = 1,
    ) -> _Gradient:
        """Gradients and variances of each source, from those of each row and the angles' slopes."""
        program, count = self.program, len(record.upstream)
        found = {}
        for source in sorted(self.trained):
            width = program.angle_map.source_widths[source]
            numbers = (points + len(record.selection.columns)) * max(1, width)
            size = max(1, _MOST_NUMBERS_AT_ONCE // numbers)
            values, variances = np.zeros((2, count, width) if source == 0 else (2, width))
            for start in range(0, count, size):
                rows = slice(start, min(start + size, count))
                tensors = {s: t if len(t) == 1 else t[rows] for s, t in self.tensors.items()}
                slopes = program.angle_map.slopes(source, record.selection.columns, tensors)
                its_values, its_variances = chained(rows, slopes)
                if source == 0:
                    values[rows], variances[rows] = its_values, its_variances
                else:
                    values += its_values.sum(axis=0)
                    variances += its_variances.sum(axis=0)
            found[source] = values, np.sqrt(variances)
        return _Gradient(found, circuits, shots)


def _variances(
    covariance: Covariance | None, upstream: np.ndarray, stencil: Stencil, shots: np.ndarray | float | None
) -> np.ndarray:
    """Shape (N * K,): along the upstream gradient of shape (N, M), at a table's points; NaN where nothing is known."""
    at_points = np.repeat(upstream, stencil.num_points, axis=0)
    return np.full(len(at_points), np.nan) if covariance is None else covariance.along(at_points, shots)


@dataclass(frozen=True, eq=False)
class Run:
    """What a forward call executed, and the gradient that has come back through it since.

    Arrays are NumPy's. Gradients are there after a backward through this call (``loss.backward()`` or
    ``torch.autograd.grad``, not the transforms of ``torch.func``), and are this call's share: where a layer is called twice
    before a backward, the weights' ``grad`` is the sum of both. (With ``torch.utils.checkpoint(use_reentrant=False)`` there
    are none: another call than the last is differentiated.) They are computed when they are looked at, and cost a training
    that does not look next to nothing.

    Attributes:
        values: Shape (N, M): the outputs, N the flattened batch.
        standard_errors: Shape (N, M): their standard errors from the shots; zero for exact values, NaN where one shot says
            nothing.
        circuits: How many circuits were executed for the values.
        shots: How many shots were spent on all of them.
        passport: Where and how they were measured, for backends that say so (IBM hardware, recordings of it).
        shadow: What the same circuits give without noise, where the backend has a shadow.
    """

    values: np.ndarray
    standard_errors: np.ndarray
    circuits: int
    shots: int
    passport: Passport | None = None
    shadow: Shadow | None = None
    _call: Call | None = field(default=None, repr=False)
    _covariance: Covariance | None = field(default=None, repr=False)
    _predicted: _Gradient | None = field(default=None, repr=False)

    @property
    def gradients(self) -> Any:
        """Shape (W,): the gradient by the weights, with the upstream gradient of the last backward; None before it.

        Of a layer with groups of weights a dictionary by their names, without frozen ones.
        """
        return self._by_weights(0)

    @property
    def gradient_standard_errors(self) -> Any:
        """Their standard errors from the shots, likewise: zero for exact values, NaN where the backend cannot say."""
        return self._by_weights(1)

    @property
    def signal_to_noise(self) -> Any:
        """``abs(gradients) / gradient_standard_errors``, likewise; infinite for exact values, NaN for 0 / 0."""
        values, errors = self.gradients, self.gradient_standard_errors
        if isinstance(values, dict):
            return {name: _ratio(values[name], errors[name]) for name in values}
        return None if values is None else _ratio(values, errors)

    @property
    def input_gradients(self) -> np.ndarray | None:
        """Shape (N, I): the gradient by the features, where torch wanted it."""
        return self._by_inputs(0)

    @property
    def input_gradient_standard_errors(self) -> np.ndarray | None:
        """Their standard errors."""
        return self._by_inputs(1)

    @property
    def gradient_circuits(self) -> int:
        """How many circuits were executed for the gradient."""
        gradient = self._gradient()
        return 0 if gradient is None else gradient.circuits

    @property
    def gradient_shots(self) -> int:
        """How many shots were spent on all of them."""
        gradient = self._gradient()
        return 0 if gradient is None else gradient.shots

    def predicted(self, shots: int, gradient: str | GradientRule | None = None) -> Run:
        """What this call and its gradient would be with another number of shots a circuit.

        After exact simulation it is the theory: the expectation of the values and of the gradient by a rule, with the
        standard errors that so many shots give. That plans a study before it is run. (The gradient costs an exact
        evaluation at the points of the rule, on the layer's backend.) After a call with shots it is an extrapolation from
        its counts.

        Args:
            shots: Shots a circuit.
            gradient: After exact simulation: the rule that the gradient would be measured by. None: the layer's, and
                parameter shift in place of adjoint.

        Returns:
            A run with circuits and shots as they would be.

        Raises:
            ValueError: If the shots are not positive, the rule does not measure, the call had shots and a rule is given, the
                run is a prediction itself, or the backend does not say how the outputs vary.
        """
        call, rule = self._call, resolve_gradient(gradient)
        if isinstance(shots, bool) or not isinstance(shots, (int, np.integer)) or shots < 1:
            raise ValueError(f"shots: got {shots!r}, expected a positive integer.")
        if rule is not None and rule.exact_only:
            raise ValueError(f"gradient: got {rule.name!r}, which takes no shots; expected a rule that measures.")
        if call is None or self._covariance is None:
            raise ValueError(
                "This run does not know how its outputs vary from shot to shot; take one of backend='statevector', or one "
                "with shots."
            )
        if self._predicted is not None:
            raise ValueError("This run is a prediction; predict from the run that it was made of.")
        if rule is not None and self.shots:
            raise ValueError(
                f"gradient: got {rule.name!r} for a run with shots, which knows only the circuits that were measured; "
                "predict from exact simulation."
            )
        if self.shots:
            variances = self.standard_errors**2 * (self.shots / self.circuits) / shots
        elif isinstance(call.program.readout, Probabilities):
            variances = self.values * (1 - self.values) / shots
        else:
            variances = self._covariance.of_outputs(self.values.shape[1], shots)
        return Run(
            self.values,
            np.sqrt(variances),
            self.circuits,
            self.circuits * shots,
            self.passport,
            self.shadow,
            call,
            self._covariance,
            call.predicted(shots, rule),
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Run:
        return self

    def __getstate__(self) -> dict[str, Any]:
        # What could measure or simulate stays here; the numbers leave.
        call = None if self._call is None else Call(self._call.program, self._call.grouped, {}, frozenset())
        return {**self.__dict__, "_call": call, "_covariance": None, "_predicted": self._gradient()}

    def _gradient(self) -> _Gradient | None:
        if self._predicted is not None:
            return self._predicted
        return None if self._call is None else self._call.measured()

    def _by_weights(self, which: int) -> Any:
        gradient = self._gradient()
        if gradient is None or self._call is None:
            return None
        names = self._call.program.group_names
        found = {names[s - 1]: pair[which] for s, pair in gradient.by_source.items() if s}
        return found if self._call.grouped else found.get(names[0])

    def _by_inputs(self, which: int) -> np.ndarray | None:
        gradient = self._gradient()
        pair = None if gradient is None else gradient.by_source.get(0)
        return None if pair is None else pair[which]


def _ratio(values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: np.ndarray = np.abs(values) / errors
    return ratio


def call_of(program: Program, inputs: torch.Tensor | None, weights: Sequence[torch.Tensor], *, grouped: bool) -> Call:
    """A call's inputs and weights, copied as far as its gradients' standard errors will need them.

    Args:
        program: The compiled circuit.
        inputs: Shape (N, I).
        weights: A tensor of shape (W_g,) a group.
        grouped: Whether the layer's weights are a mapping.
    """
    if not torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return Call(program, grouped, {}, frozenset())
    sources = {1 + g: weight for g, weight in enumerate(weights)}
    if inputs is not None:
        sources[0] = inputs
    trained = frozenset([source for source, tensor in sources.items() if tensor.requires_grad and tensor.shape[-1]])
    tensors = {}
    if not program.angle_map.is_affine:
        for source, tensor in sources.items():
            copied = tensor.detach().to("cpu", torch.float64, copy=True)
            tensors[source] = copied if source == 0 else copied.unsqueeze(0)
    return Call(program, grouped, tensors, trained)
