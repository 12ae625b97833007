"""How values and gradients are measured: on which backend, by which rule, with how many shots; found out once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..backends import Backend, check_shots, resolve_backend
from ..gradients.rules import Adjoint, GradientRule, ParameterShift, resolve_gradient
from ..mitigation.methods import Mitigation
from ..mitigation.mitigated import MitigatedBackend
from ..shots.allocation import ALLOCATIONS

__all__ = ["Method"]


@dataclass(frozen=True, eq=False)
class Method:
    """A backend, a rule and a number of shots that go together.

    Attributes:
        backend: Where circuits run.
        rule: How they are differentiated.
        shots: Shots a circuit, of values and gradients alike; None for exact values.
        by_sensitivity: Whether a gradient's shots go to the rows by their upstream gradient
            (:mod:`qiskit_torch_bridge.shots.allocation`), where nothing will differentiate it.
    """

    backend: Backend
    rule: GradientRule
    shots: int | None
    by_sensitivity: bool = False

    @classmethod
    def of(
        cls,
        backend: Any,
        shots: int | None,
        gradient: str | GradientRule | None,
        allocation: str,
        mitigation: Sequence[Mitigation] = (),
    ) -> Method:
        """What the arguments of a :class:`qiskit_torch_bridge.QuantumLayer` come to.

        Raises:
            TypeError, ValueError: If one of them is none of its kind, or they do not fit each other.
        """
        resolved = resolve_backend(backend)
        if mitigation:
            resolved = MitigatedBackend(resolved, mitigation)
        taken = resolved.resolve_shots(check_shots(shots))
        rule = _choose_rule(resolve_gradient(gradient), resolved, taken)
        _check_allocation(allocation, resolved)
        return cls(resolved, rule, taken, allocation == "sensitivity")


def _choose_rule(rule: GradientRule | None, backend: Backend, shots: int | None) -> GradientRule:
    """The rule asked for, or the best one for the backend: adjoint where it can, else parameter shift.

    Raises:
        ValueError: If the rule asked for needs exact simulation and this is not.
    """
    exact = backend.differentiates and shots is None
    if rule is None:
        return Adjoint() if exact else ParameterShift()
    if rule.exact_only and not exact:
        raise ValueError(
            f"gradient={rule.name!r} needs exact simulation, but got backend {backend.name!r} with shots={shots}; "
            "use backend='statevector' (with noise 'noisy:NAME') with shots=None, or gradient='parameter_shift'."
        )
    return rule


def _check_allocation(allocation: str, backend: Backend) -> None:
    """Refuses what is no way to share out shots, or none for the backend.

    Raises:
        ValueError: If it is unknown, or the backend is to measure the gradient together with the values.
    """
    if allocation not in ALLOCATIONS:
        raise ValueError(f"allocation: got {allocation!r}, expected one of {', '.join(map(repr, ALLOCATIONS))}.")
    if allocation != "uniform" and backend.queues:
        raise ValueError(
            f"allocation: got {allocation!r} for {backend.name!r}, which measures the gradient in one job with the values, "
            "before there is an upstream gradient; use 'uniform'."
        )
