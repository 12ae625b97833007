"""What a call of a layer measured, and the gradient that has come back through it since."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any

import numpy as np

from ..backends.base import Outcomes
from ..backends.passport import Passport
from ..gradients.rules import GradientRule, resolve_gradient
from ..program.readout import Probabilities, Samples, bits_of
from ..shots.covariance import Covariance
from ..shots.shadow import Shadow
from .error_bars import GradientEstimate, Sources

__all__ = ["MOST_SHOTS_COUNTED", "LayerResult"]

MOST_SHOTS_COUNTED = 2**22
"""Of more shots in a call, the bit strings are not kept for :attr:`LayerResult.counts`."""


@dataclass(frozen=True, eq=False)
class LayerResult:
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
        truncation_bounds: Shape (N, M): how far from exact the values are at most because something was left out of them
            (:class:`qiskit_torch_bridge.PauliBackend`); None from backends that leave nothing out, or cannot say.
    """

    values: np.ndarray
    standard_errors: np.ndarray
    circuits: int
    shots: int
    _: KW_ONLY
    passport: Passport | None = None
    shadow: Shadow | None = None
    truncation_bounds: np.ndarray | None = None
    _grouped: bool = field(default=False, repr=False)
    _sources: Sources | None = field(default=None, repr=False)
    _covariance: Covariance | None = field(default=None, repr=False)
    _predicted: GradientEstimate | None = field(default=None, repr=False)
    _outcomes: Any = field(default=None, repr=False)  # an Outcomes, or what makes it

    @property
    def counts(self) -> tuple[tuple[dict[str, int], ...], ...] | None:
        """The counts as they were measured, ``counts[row][group]`` a dictionary ``{"01": 490, ...}`` as Qiskit has it.

        There is one for each measurement group (``layer.program.readout.groups``) of each row of the flattened batch. Bits
        are little-endian: the last character is the first of the group's ``qubits``, measured in the first of its
        ``bases``. They are raw, whatever ``mitigation`` has made of them. They are made when they are looked at.

        None for exact values; beyond 4,194,304 shots in a call, which are not kept; from Estimators, which give no bits;
        where parts of a wide circuit are simulated by themselves; and after a mitigation method that measures several
        circuits in place of one.
        """
        if not self.shots or (measured := self._measured()) is None:
            return None
        groups = [_counts(each, self.shots // self.circuits) for each in measured]
        return tuple(zip(*groups, strict=True)) if groups else ((),) * len(self.values)

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

    def predicted(self, shots: int, gradient: str | GradientRule | None = None) -> LayerResult:
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
            A result with circuits and shots as they would be.

        Raises:
            ValueError: If the shots are not positive, the rule does not measure, the call had shots and a rule is given,
                this is a prediction itself, or the backend does not say how the outputs vary.
        """
        rule = resolve_gradient(gradient)
        sources, covariance = self._predictable(shots, rule)
        if self.shots:
            variances = self.standard_errors**2 * (self.shots / self.circuits) / shots
        elif isinstance(sources.program.readout, Probabilities) and not covariance.weighted:
            variances = self.values * (1 - self.values) / shots
        else:
            variances = covariance.of_outputs(self.values.shape[1], shots)
        return replace(
            self,
            standard_errors=np.sqrt(variances),
            shots=self.circuits * shots,
            _predicted=sources.predicted(shots, rule),
            _outcomes=None,
        )

    def _predictable(self, shots: int, rule: GradientRule | None) -> tuple[Sources, Covariance]:
        """What a prediction needs; refuses what cannot be predicted."""
        if isinstance(shots, bool) or not isinstance(shots, (int, np.integer)) or shots < 1:
            raise ValueError(f"shots: got {shots!r}, expected a positive integer.")
        if rule is not None and rule.exact_only:
            raise ValueError(f"gradient: got {rule.name!r}, which takes no shots; expected a rule that measures.")
        if self._sources is None or self._covariance is None:
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
        return self._sources, self._covariance

    def __deepcopy__(self, memo: dict[int, Any]) -> LayerResult:
        return self

    def __getstate__(self) -> dict[str, Any]:
        # What could measure or simulate stays here; the numbers leave.
        sources = None if self._sources is None else Sources(self._sources.program, frozenset())
        kept = {"_predicted": self._gradient(), "_outcomes": self._measured() if self.shots else None}
        return {**self.__dict__, "_sources": sources, "_covariance": None, **kept}

    def _measured(self) -> Outcomes | None:
        return self._outcomes() if callable(self._outcomes) else self._outcomes

    def _gradient(self) -> GradientEstimate | None:
        if self._predicted is not None:
            return self._predicted
        return None if self._sources is None else self._sources.measured()

    def _by_weights(self, part: int) -> Any:
        gradient = self._gradient()
        if gradient is None or self._sources is None:
            return None
        names = self._sources.program.group_names
        by_name = {names[s - 1]: pair[part] for s, pair in gradient.by_source.items() if s}
        return by_name if self._grouped else by_name.get(names[0])

    def _by_inputs(self, part: int) -> np.ndarray | None:
        gradient = self._gradient()
        pair = None if gradient is None else gradient.by_source.get(0)
        return None if pair is None else pair[part]


def _counts(measured: np.ndarray | Samples, shots: int) -> list[dict[str, int]]:
    """Of each row; a table of frequencies comes from so many shots of each."""
    if isinstance(measured, Samples):
        width, num_rows = measured.bits.shape[1], measured.num_rows
        rows, bits, numbers = measured.rows, measured.bits, measured.counts
    else:
        width, num_rows = measured.shape[1].bit_length() - 1, len(measured)
        rows, outcomes = np.nonzero(measured)
        bits, numbers = bits_of(outcomes, width), np.rint(measured[rows, outcomes] * shots).astype(np.int64)
    characters = np.ascontiguousarray(bits[:, ::-1] + np.uint8(ord("0")))
    words = characters.view(f"S{width}")[:, 0] if len(characters) else np.empty(0, "S1")
    counts: list[dict[str, int]] = [{} for _ in range(num_rows)]
    for row, word, number in zip(rows.tolist(), words.tolist(), numbers.tolist(), strict=True):
        key = word.decode()
        counts[row][key] = counts[row].get(key, 0) + number
    return [dict(sorted(each.items())) for each in counts]


def _ratio(values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: np.ndarray = np.abs(values) / errors
    return ratio
