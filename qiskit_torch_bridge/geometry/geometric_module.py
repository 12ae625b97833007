"""What quantum layers say of their circuits' states beside what is measured; the methods of their own that need a state."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from qiskit.circuit import QuantumCircuit
from torch import nn

from ..bridge import transforms
from ..bridge.evaluation import NonFiniteAnglesError
from ..program.outcomes import QubitsLike, qubit_indices
from .metric import APPROXIMATIONS, TrainedAngles, metric_of
from .state_function import angles_of
from .state_source import ENTROPIES, StateSource, nats

if TYPE_CHECKING:
    from ..bridge.functional import Tally
    from ..bridge.method import Method
    from ..program.compiled import Program
    from ..shots.seeding import SeedStream

__all__ = ["GeometricModule"]

_Method = TypeVar("_Method", bound=Callable[..., Any])
_COMPLEX = {torch.float64: torch.complex128}


def _outside_graphs(method: _Method) -> _Method:
    """A method that torch.compile leaves out of its graphs, and that no trace can follow."""

    @functools.wraps(method)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(method)(self, *args, **kwargs)
        if transforms.count_modes():
            transforms.refuse_tracing()
        return method(self, *args, **kwargs)

    return checked  # type: ignore[return-value]


class GeometricModule(nn.Module):
    """The part of :class:`qiskit_torch_bridge.QuantumLayer` that is about states rather than measurements."""

    if TYPE_CHECKING:
        program: Program
        seeds: SeedStream
        tally: Tally
        _circuit: QuantumCircuit

        backend: Any
        method: Callable[..., Method]

        def _weight_list(self) -> list[torch.Tensor]: ...
        def _checked(self, features: torch.Tensor | None, weights: Sequence[torch.Tensor]) -> torch.Tensor: ...
        def _require_finite(self, features: torch.Tensor | None) -> None: ...

    @_outside_graphs
    def state(self, features: torch.Tensor | None = None) -> torch.Tensor:
        """The circuit's final states, exact whatever :attr:`shots` is; differentiable by features and weights, to any order.

        Amplitude b is that of outcome b: bit q of b is qubit q, as in Qiskit, and as the circuit had them before
        transpiling. States are known up to a global phase, which may depend on the parameters; gradients are right for every
        function that does not depend on it (probabilities, fidelities, expectation values ...).

        Args:
            features: As the layer takes them, shape (..., number of inputs); left out where the circuit has no inputs.

        Returns:
            Shape (..., 2**n) for n qubits: complex128 for features (or weights, where there are none) in double precision,
            else complex64.

        Raises:
            TypeError, ValueError: If the features do not fit, or the backend has no amplitudes (``"statevector"`` has).
        """
        return self._of_rows(self._source.states, features, is_complex=True)

    @_outside_graphs
    def density_matrix(self, features: torch.Tensor | None = None, qubits: QubitsLike | None = None) -> torch.Tensor:
        """The density matrix of some qubits, exact; differentiable by features and weights, to any order.

        On a ``DensityMatrixBackend`` (or ``"noisy:NAME"``) with its noise: the state that a measurement would meet, without
        errors of the readout.

        Args:
            features: As in :meth:`state`.
            qubits: The k qubits; the first is the least significant bit of rows and columns. None: all, in their order.

        Returns:
            Shape (..., 2**k, 2**k), complex.
        """
        places = self._places("qubits", qubits)
        return self._of_rows(lambda angles: self._source.density_matrix(angles, places), features, is_complex=True)

    @_outside_graphs
    def purity(self, features: torch.Tensor | None = None, qubits: QubitsLike | None = None) -> torch.Tensor:
        """The trace of the squared density matrix of some qubits, shape (...): 1 if pure, 2**-k if fully mixed.

        Args:
            features: As in :meth:`state`.
            qubits: The k qubits; None: all.
        """
        places = self._places("qubits", qubits)
        return self._of_rows(lambda angles: self._source.purity(angles, places), features)

    @_outside_graphs
    def entropy(
        self,
        features: torch.Tensor | None = None,
        qubits: QubitsLike | None = None,
        *,
        kind: str = "von_neumann",
        base: float = 2,
    ) -> torch.Tensor:
        r"""An entropy of some qubits' density matrix, shape (...): of a pure state, their entanglement with the others.

        Gradients are finite, at pure states and where eigenvalues are the same too.

        Args:
            features: As in :meth:`state`.
            qubits: The qubits; None: all.
            kind: ``"von_neumann"``, :math:`-\mathrm{tr}\,\rho\log\rho`, twice differentiable; or ``"renyi2"``,
                :math:`-\log\mathrm{tr}\,\rho^2`, differentiable to any order.
            base: Of the logarithm: 2 for bits, as in Qiskit; ``math.e`` for nats.
        """
        places, scale = self._places("qubits", qubits), nats(base)
        if kind not in ENTROPIES:
            raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(map(repr, ENTROPIES))}.")
        return self._of_rows(lambda angles: self._source.entropy(angles, places, kind) / scale, features)

    @_outside_graphs
    def mutual_information(
        self, features: torch.Tensor | None, first: QubitsLike, second: QubitsLike, *, base: float = 2
    ) -> torch.Tensor:
        """The quantum mutual information of two sets of qubits, ``S(A) + S(B) - S(AB)``, shape (...).

        Args:
            features: As in :meth:`state`; None where the circuit has no inputs.
            first: Qubits.
            second: Others.
            base: Of the logarithm: 2 for bits, as in Qiskit; ``math.e`` for nats.
        """
        one, other, scale = self._places("first", first), self._places("second", second), nats(base)
        if both := sorted(set(one) & set(other)):
            raise ValueError(f"first, second: got {one} and {other}, which share {both}, expected different qubits.")

        def information(angles: torch.Tensor) -> torch.Tensor:
            single = [self._source.entropy(angles, part, "von_neumann") for part in (one, other)]
            return (single[0] + single[1] - self._source.entropy(angles, [*one, *other], "von_neumann")) / scale

        return self._of_rows(information, features)

    @_outside_graphs
    def fidelity(self, features_a: torch.Tensor, features_b: torch.Tensor) -> torch.Tensor:
        r"""The fidelity of the states at two rows of features, shape (...), differentiable by both and the weights.

        Of pure states :math:`|\langle a|b\rangle|^2`, differentiable to any order; of mixed ones (with noise) Uhlmann's
        :math:`(\mathrm{tr}\sqrt{\sqrt\rho\sigma\sqrt\rho})^2`, once. All pairs of two batches: ``FidelityKernel``.

        Args:
            features_a: Shape (..., number of inputs).
            features_b: Likewise; leading dimensions are broadcast against those of the first.
        """
        for features in (features_a, features_b):
            like = self._checked(features, self._weight_list())
        states = [self._at(self._source.whole, features) for features in (features_a, features_b)]
        return self._source.fidelity(*states).to(like.device, torch.promote_types(features_a.dtype, features_b.dtype))

    def bind(self, row: torch.Tensor | Sequence[float] | None = None) -> QuantumCircuit:
        """The user's circuit, as it was given, at one row of features and the present weights: without parameters.

        Args:
            row: Shape (number of inputs,); left out where the circuit has none.

        Raises:
            ValueError: If it has another shape, or is not finite.
        """
        inputs, *groups = self.program.parameters
        given = np.zeros(0) if row is None else torch.as_tensor(row).detach().double().cpu().numpy()
        if given.shape != (len(inputs),) or not np.isfinite(given).all():
            raise ValueError(
                f"row: got {'none' if row is None else row}, expected {len(inputs)} finite numbers, shape ({len(inputs)},): "
                "one row of features."
            )
        values = dict(zip(inputs, given.tolist(), strict=True))
        for group, weights in zip(groups, self._weight_list(), strict=False):
            values.update(zip(group, weights.detach().double().cpu().tolist(), strict=True))
        return self._circuit.assign_parameters(values)

    @_outside_graphs
    def metric_tensor(self, features: torch.Tensor | None = None, *, approximation: str | None = None) -> torch.Tensor:
        r"""The Fubini-Study metric of the states in the space of the weights, which a natural gradient needs.

        .. math:: g_{ij} = \mathrm{Re}\left(\langle\partial_i\psi|\partial_j\psi\rangle -
            \langle\partial_i\psi|\psi\rangle\langle\psi|\partial_j\psi\rangle\right)

        The quantum Fisher information is four times it. Rows and columns are the trainable weights in the order of
        ``parameters()``; frozen ones (``requires_grad`` is False) are left out.

        Args:
            features: As in :meth:`state`.
            approximation: None for all entries; ``"block-diag"``: none between angles of different layers of the circuit
                (Stokes et al., arXiv:1909.02108); ``"diag"``: none between different angles. Where a weight sets one angle,
                these are the blocks and the diagonal of the matrix.

        Returns:
            Shape (..., W, W), differentiable by features and weights.
        """
        return self._of_rows_and_weights(features, approximation)

    def quantum_fisher(self, features: torch.Tensor | None = None, *, approximation: str | None = None) -> torch.Tensor:
        """The quantum Fisher information of the weights, shape (..., W, W): four times :meth:`metric_tensor`."""
        return 4.0 * self.metric_tensor(features, approximation=approximation)

    def _of_rows_and_weights(self, features: torch.Tensor | None, approximation: str | None) -> torch.Tensor:
        if approximation not in APPROXIMATIONS:
            raise ValueError(f"approximation: got {approximation!r}, expected None, 'block-diag' or 'diag'.")
        states, trained = self._source.pure, self._trained

        def metric(angles: torch.Tensor) -> torch.Tensor:
            jacobian = trained.jacobian(self._rows(features), self._double_weights, len(angles))
            return metric_of(states, angles, trained, jacobian, approximation)

        return self._of_rows(metric, features)

    @property
    def _trained(self) -> TrainedAngles:
        groups = tuple(g for g, weight in enumerate(self._weight_list()) if weight.requires_grad)
        kept: dict[Any, TrainedAngles] = self.__dict__.setdefault("_trained_angles", {})
        if groups not in kept:
            kept[groups] = TrainedAngles(self.program, groups)
        return kept[groups]

    @property
    def _double_weights(self) -> list[torch.Tensor]:
        return [weight.to("cpu", torch.float64) for weight in self._weight_list()]

    @property
    def _source(self) -> StateSource:
        """The states on the present backend."""
        source: StateSource | None = self.__dict__.get("_states")
        if source is None or source.backend is not self.backend:
            source = self.__dict__["_states"] = StateSource(self.program, self.backend)
        return source

    def _places(self, name: str, qubits: QubitsLike | None) -> list[int]:
        if qubits is None:
            return list(range(len(self.program.layout)))
        places = qubit_indices(self._circuit, qubits, len(self.program.layout), name)
        if not places:
            raise ValueError(f"{name}: got no qubits, expected at least one.")
        return places

    @staticmethod
    def _rows(features: torch.Tensor | None) -> torch.Tensor | None:
        """Shape (N, I), in double precision, on the CPU."""
        if features is None:
            return None
        return features.reshape(math.prod(features.shape[:-1]), features.shape[-1]).to("cpu", torch.float64)

    def _at(self, compute: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor | None) -> torch.Tensor:
        """What is computed from the angles, in double precision, in the shape of the features."""
        if features is not None and self.program.angle_map.has_idle_inputs:
            self._require_finite(features)
        try:
            result = compute(angles_of(self.program, self._rows(features), self._weight_list()))
        except NonFiniteAnglesError as error:
            cause = error
        else:
            return result.reshape((*(() if features is None else features.shape[:-1]), *result.shape[1:]))
        self._require_finite(features)
        raise cause

    def _of_rows(
        self,
        compute: Callable[[torch.Tensor], torch.Tensor],
        features: torch.Tensor | None,
        *,
        is_complex: bool = False,
    ) -> torch.Tensor:
        """:meth:`_at` for the user: in the precision of the features, and on their device."""
        like = self._checked(features, self._weight_list())
        result = self._at(compute, features)
        return result.to(like.device, _COMPLEX.get(like.dtype, torch.complex64) if is_complex else like.dtype)
