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

from ..arguments import require_integer
from ..backends.base import Estimate
from ..bridge import transforms
from ..bridge.evaluation import NonFiniteAnglesError, require_finite
from ..bridge.functional import Tally
from ..bridge.method import Method
from ..bridge.result import LayerResult
from ..program.outcomes import QubitsLike, qubit_indices
from ..program.readout import Probabilities
from ..quote import Quote
from .fisher import classical_fisher_of
from .matrix_result import MatrixResult
from .measured_metric import measured_metric, num_points
from .metric import APPROXIMATIONS, TrainedAngles, metric_of
from .overlaps import Overlaps
from .state_function import groups_of
from .state_source import ENTROPIES, StateSource, nats
from .stochastic_metric import POINTS, default_perturbation, stochastic_metric

if TYPE_CHECKING:
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
            return torch.compiler.disable(untraced)(self, *args, **kwargs)
        return untraced(self, *args, **kwargs)

    def untraced(self: Any, *args: Any, **kwargs: Any) -> Any:
        if transforms.is_tracing():
            raise RuntimeError(
                f"{method.__name__} was called within a trace (make_fx, torch.export, fake tensors), which cannot follow "
                "it; call it outside."
            )
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

        On a ``DensityMatrixBackend`` (or ``"noisy:NAME"``) with its noise: the state that a measurement of these qubits
        would meet, in the circuit as it is transpiled for that, without errors of the readout.

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
        try:
            torch.broadcast_shapes(features_a.shape, features_b.shape)
        except RuntimeError:
            shapes = tuple(features_a.shape), tuple(features_b.shape)
            raise ValueError(
                f"features_a, features_b: got shapes {shapes[0]} and {shapes[1]}, expected leading dimensions that can be "
                "broadcast; for all pairs use FidelityKernel."
            ) from None
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
    def metric_tensor(
        self, features: torch.Tensor | None = None, *, approximation: str | None = None, shots: int | None = None
    ) -> torch.Tensor:
        r"""The Fubini-Study metric of the states in the space of the weights, which a natural gradient needs.

        .. math:: g_{ij} = \mathrm{Re}\left(\langle\partial_i\psi|\partial_j\psi\rangle -
            \langle\partial_i\psi|\psi\rangle\langle\psi|\partial_j\psi\rangle\right)

        The quantum Fisher information is four times it. Rows and columns are the trainable weights in the order of
        ``parameters()``; frozen ones (``requires_grad`` is False) are left out.

        It is exact on ``"statevector"`` without shots, and differentiable by features and weights. Otherwise it is measured,
        by parameter shift of the fidelity with the state itself, in one backend call; without gradient
        (:mod:`qiskit_torch_bridge.geometry.measured_metric` has the formula and the number of circuits;
        :meth:`quote_metric_tensor` the price; :attr:`last_metric` the standard errors). Noise makes fidelities smaller, and
        so the diagonal too large.

        Args:
            features: As in :meth:`state`.
            approximation: None for all entries; ``"block-diag"``: none between angles of different layers of the circuit
                (Stokes et al., arXiv:1909.02108); ``"diag"``: none between different angles. Where a weight sets one angle,
                these are the blocks and the diagonal of the matrix.
            shots: Shots a circuit; None: the layer's.

        Returns:
            Shape (..., W, W).
        """
        if approximation not in APPROXIMATIONS:
            raise ValueError(f"approximation: got {approximation!r}, expected None, 'block-diag' or 'diag'.")
        self._checked(features, self._weight_list())
        method, trained = self.method(shots), self._trained

        def exact(angles: torch.Tensor) -> torch.Tensor:
            jacobian = trained.jacobian(self._rows(features), self._double_weights, len(angles))
            return metric_of(self._source.pure, angles, trained, jacobian, approximation)

        def measured(groups: Sequence[torch.Tensor]) -> torch.Tensor:
            jacobian = trained.jacobian(self._rows(features), self._double_weights, len(groups[0]))
            result = measured_metric(
                self._overlaps, method, groups, trained, jacobian, approximation=approximation, seeds=self.seeds
            )
            self.tally.circuits += result.circuits
            self.tally.shots += result.shots
            self.__dict__["_last_metric"] = result
            return torch.from_numpy(result.values)

        if self._is_exact(shots):
            return self._of_rows(exact, features)
        self._require_measurable(shots)
        return self._of_groups(measured, features)

    def quantum_fisher(
        self, features: torch.Tensor | None = None, *, approximation: str | None = None, shots: int | None = None
    ) -> torch.Tensor:
        """The quantum Fisher information of the weights, shape (..., W, W): four times :meth:`metric_tensor`."""
        return 4.0 * self.metric_tensor(features, approximation=approximation, shots=shots)

    @property
    def last_metric(self) -> MatrixResult | None:
        """What the last :meth:`metric_tensor` measured, with standard errors; None before any (exact ones are not kept)."""
        return self.__dict__.get("_last_metric")

    def quote_metric_tensor(
        self, batch_size: int = 1, *, approximation: str | None = None, shots: int | None = None
    ) -> Quote:
        """What a :meth:`metric_tensor` costs, on a batch of so many rows; nothing where it is exact."""
        if approximation not in APPROXIMATIONS:
            raise ValueError(f"approximation: got {approximation!r}, expected None, 'block-diag' or 'diag'.")
        rows, method = require_integer("batch_size", batch_size, least=0), self.method(shots)
        if self._is_exact(shots):
            return Quote()
        self._require_measurable(shots)
        return self._overlaps.quote(method, rows * num_points(self._trained, approximation))

    @_outside_graphs
    def classical_fisher(self, features: torch.Tensor | None = None) -> torch.Tensor:
        r"""The classical Fisher information of the outcomes, :math:`\sum_m \partial_i p_m\,\partial_j p_m / p_m`.

        It is exact, whatever :attr:`shots` is: with shots the square of a noisy derivative is too large on average. Outcomes
        of probability 0 have no term. Rows and columns are those of :meth:`quantum_fisher`, which it never exceeds.

        Args:
            features: As in :meth:`state`.

        Returns:
            Shape (..., W, W), differentiable by features and weights.

        Raises:
            ValueError: If the layer reads observables, or the backend has no exact values.
        """
        if not isinstance(self.program.readout, Probabilities):
            raise ValueError(
                "classical_fisher: the layer reads observables, whose outcomes have no one distribution; make a layer with "
                "probabilities=[qubits] (and interpret=)."
            )
        method, trained = Method.of(self.backend, None, None, "uniform"), self._trained
        if method.shots is not None:
            raise ValueError(
                f"backend: got {self.backend.name!r}, which has no exact probabilities, expected one that has; set "
                "layer.backend = 'statevector' (with noise 'noisy:NAME')."
            )

        def fisher(groups: Sequence[torch.Tensor]) -> torch.Tensor:
            jacobian = trained.jacobian(self._rows(features), self._double_weights, len(groups[0]))
            return classical_fisher_of(self.program, method, groups, trained, jacobian)

        return self._of_groups(fisher, features)

    def _stochastic_metric(
        self,
        features: torch.Tensor | None,
        *,
        samples: int,
        perturbation: float | None,
        shots: int | None,
        rng: np.random.Generator,
    ) -> np.ndarray:
        """An estimate of the metric, averaged over the rows, shape (W, W), exactly or in one backend call.

        Args:
            features: As in :meth:`state`, with at least one row.
            samples: How many estimates a row are averaged over.
            perturbation: Their step in radians; None: the default.
            shots: Shots a circuit; None: the layer's.
            rng: Draws the directions.
        """
        self._checked(features, self._weight_list())
        method, still, inputs = self.method(shots), self._groups(features), self._rows(features)
        rows, width = max(len(group) for group in still), self._trained.num_weights
        if perturbation is None:
            perturbation = default_perturbation(method.shots, width)
        is_exact = self._is_exact(shots)
        self._require_measurable(shots)

        def fidelities(shifts: np.ndarray) -> np.ndarray:
            first = [_repeated(group, rows, shifts.shape[1]) for group in still]
            second = self._moved_groups(inputs, torch.from_numpy(shifts))
            if is_exact:
                return self._source.fidelity_at(torch.cat(first, dim=1), torch.cat(second, dim=1)).numpy()
            estimates: list[Estimate] = []
            tally = Tally(observe=lambda _, estimate: estimates.append(estimate))
            values = self._overlaps.measure(method, first, second, seeds=self.seeds, tally=tally).numpy()
            self.tally.circuits += sum(estimate.circuits for estimate in estimates)
            self.tally.shots += sum(estimate.shots for estimate in estimates)
            return values

        with torch.no_grad():
            return stochastic_metric(fidelities, (rows, samples, width), perturbation=perturbation, rng=rng)

    def _moved_groups(self, inputs: torch.Tensor | None, shifts: torch.Tensor) -> list[torch.Tensor]:
        """The angles, shape (N K, A_g) a group, at weights that are moved by so much, shape (N, K, W)."""
        rows, times, _ = shifts.shape
        trained, start = self._trained, 0
        tensors: list[Any] = [None if inputs is None else _repeated(inputs, rows, times)]
        for number, weights in enumerate(self._double_weights):
            moved = weights.detach().expand(rows * times, -1)
            if number in trained.groups:
                moved = moved + shifts[:, :, start : start + len(weights)].reshape(rows * times, -1)
                start += len(weights)
            tensors.append(moved)
        nothing = torch.zeros((rows * times, 0), dtype=torch.float64)
        groups = [g.evaluate(tensors) if g.expressions else nothing for g in self.program.angle_map.groups]
        return [group.expand(rows * times, -1) for group in groups]

    def _quote_stochastic_metric(self, rows: int, *, samples: int, shots: int | None) -> Quote:
        """What a :meth:`_stochastic_metric` costs."""
        if self._is_exact(shots) or not self._trained.num_weights:
            return Quote()
        self._require_measurable(shots)
        return self._overlaps.quote(self.method(shots), rows * samples * POINTS)

    def _is_exact(self, shots: int | None) -> bool:
        """Whether fidelities are computed from states, not measured."""
        return self.method(shots).shots is None and self._source.shows_amplitudes

    def _states_of(self, features: torch.Tensor) -> torch.Tensor:
        """:meth:`state`, in double precision."""
        self._checked(features, self._weight_list())
        return self._at(self._source.states, features)

    def _fidelities(
        self, rows: torch.Tensor, columns: torch.Tensor, pairs: tuple[torch.Tensor, torch.Tensor], shots: int | None
    ) -> tuple[torch.Tensor, LayerResult | None]:
        """Measured ones of P pairs, shape (P,), in one backend call; and what was measured, if there were any.

        Args:
            rows: Features of shape (N, number of inputs).
            columns: Of shape (M, number of inputs).
            pairs: Two tensors of shape (P,): which row, and which column.
            shots: Shots a circuit; None: the layer's.
        """
        sides = []
        for features, places in zip((rows, columns), pairs, strict=True):
            self._checked(features, self._weight_list())
            sides.append([group[places] for group in self._groups(features)])
        first, second = sides
        if not len(pairs[0]):
            return torch.cat([*first, *second], dim=1).sum(dim=1), None  # nothing, but with a gradient
        values = self._overlaps.measure(self.method(shots), first, second, seeds=self.seeds, tally=self.tally)
        return values, self.tally.last_result

    def _quote_fidelities(self, pairs: int, *, inputs_require_grad: bool, shots: int | None) -> Quote:
        """What those of so many pairs cost."""
        if self._is_exact(shots):
            return Quote()
        trained = [1 + group for group in self._trained.groups] + [0] * inputs_require_grad
        return self._overlaps.quote(self.method(shots), pairs, trained if torch.is_grad_enabled() else ())

    def _require_measurable(self, shots: int | None) -> None:
        """Refuses what cannot measure fidelities where they are not exact, and makes ready what can; nothing is run.

        Raises:
            ValueError: If the backend, or the error mitigation, has no probabilities; or the circuit has no inverse.
        """
        if self._is_exact(shots):
            return
        backend, program = self.method(shots).backend, self._overlaps.program
        try:
            backend.prepare(program)
        except ValueError as error:
            raise ValueError(
                f"backend: got {self.backend.name!r}, which cannot measure the fidelities of a metric (the probability of "
                f"zeros after the circuit and its inverse): {error}"
            ) from error

    @property
    def _overlaps(self) -> Overlaps:
        if "_overlap_program" not in self.__dict__:
            self.__dict__["_overlap_program"] = Overlaps(self.program)
        overlaps: Overlaps = self.__dict__["_overlap_program"]
        return overlaps

    def _of_groups(
        self, compute: Callable[[Sequence[torch.Tensor]], torch.Tensor], features: torch.Tensor | None
    ) -> torch.Tensor:
        """:meth:`_of_rows`, of the angles group by group, shape (N, A_g) each."""
        like = self._checked(features, self._weight_list())
        return self._shaped(compute(self._groups(features)), features).to(like.device, like.dtype)

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

    def _groups(self, features: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """The angles, a tensor of shape (N, A_g) a group.

        Raises:
            ValueError: If one is not finite, in terms of the features and weights.
        """
        if features is not None and self.program.angle_map.has_idle_inputs:
            self._require_finite(features)
        groups = groups_of(self.program, self._rows(features), self._weight_list())
        if transforms.transforms_are_active():
            return groups  # whose numbers nobody can look at here
        try:
            require_finite(self.program, torch.cat([group.detach() for group in groups], dim=1).numpy())
        except NonFiniteAnglesError as error:
            cause = error
        else:
            return groups
        self._require_finite(features)
        raise cause

    @staticmethod
    def _shaped(result: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        """With the leading dimensions of the features in place of the rows."""
        return result.reshape((*(() if features is None else features.shape[:-1]), *result.shape[1:]))

    def _at(self, compute: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor | None) -> torch.Tensor:
        """What is computed from the angles, shape (N, A), in double precision, in the shape of the features."""
        return self._shaped(compute(torch.cat(self._groups(features), dim=1)), features)

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


def _repeated(tensor: torch.Tensor, rows: int, times: int) -> torch.Tensor:
    """Shape (N K, ...): each of N rows K times, of a tensor with N rows or one."""
    return tensor.expand(rows, -1).repeat_interleave(times, dim=0)
