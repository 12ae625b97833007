"""``FidelityKernel``: how alike the states of two rows of features are, as a kernel for classical methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit
from torch import nn

from .arguments import explain_misfits, require_integer
from .backends import Backend
from .bridge import transforms
from .geometry.matrix_result import MatrixResult
from .gradients.rules import GradientRule
from .layer import Initializer, QuantumLayer
from .mitigation.methods import Mitigation
from .quote import Quote

__all__ = ["FidelityKernel"]


@explain_misfits
class FidelityKernel(nn.Module):
    r"""The kernel :math:`K(a, b) = |\langle\psi(a)|\psi(b)\rangle|^2` of a circuit that encodes features.

        encoding = zz_feature_map(4)
        kernel = FidelityKernel(encoding, inputs=encoding.parameters)
        kernel(rows, columns)  # shape (N, M); tensors, or NumPy's arrays
        classifier = sklearn.svm.SVC(kernel=kernel).fit(points, labels)

    On ``"statevector"`` without shots it is exact: one simulation for each row, and one matrix product. Elsewhere each pair
    is a circuit, the encoding of one row followed by the inverse encoding of the other, and the kernel is the probability to
    read zeros only, in one backend call for all pairs. ``kernel(rows)``, or the same object twice, measures the pairs above
    the diagonal only: the matrix is symmetric, and its diagonal is 1. A measured kernel may have negative eigenvalues, and
    with noise it is smaller than the fidelity.

    Weights make it trainable, as by kernel alignment; gradients go to features and weights, exact or by shots.

    There are many options because those of :class:`qiskit_torch_bridge.QuantumLayer` are here too.

    Args:
        circuit: Any parameterised ``QuantumCircuit`` of gates; its measurements are dropped.
        inputs: As in :class:`qiskit_torch_bridge.QuantumLayer`: the parameters that the features set.
        weights: The trainable parameters.
        backend: Where circuits run. Measured kernels have at most 20 qubits.
        shots: Shots a circuit; None: exact where the backend can, else its default.
        gradient: The gradient rule of measured kernels.
        seed: Makes initial weights and shots repeatable.
        mitigation: Methods of error mitigation, for measured kernels.
        init: Initial weights.

    Attributes:
        layer: The quantum layer that has the weights, and whose states these are.

    Raises:
        TypeError, ValueError: If anything does not fit, before anything runs.
    """

    def __init__(
        self,
        circuit: QuantumCircuit,
        *,
        inputs: Parameter | ParameterVector | Sequence[Parameter | ParameterVector],
        weights: Any = (),
        backend: Any = None,
        shots: int | None = None,
        gradient: str | GradientRule | None = None,
        seed: int | Sequence[int] | None = None,
        mitigation: Sequence[Mitigation] = (),
        init: Initializer = "uniform",
    ) -> None:
        super().__init__()
        width = len(circuit.layout.final_index_layout()) if getattr(circuit, "layout", None) else circuit.num_qubits
        self.layer = QuantumLayer(
            circuit,
            inputs=inputs,
            weights=weights,
            observables="I" * width,  # which costs nothing: what is measured is the fidelity
            backend=backend,
            shots=shots,
            gradient=gradient,
            seed=seed,
            mitigation=mitigation,
            init=init,
        )
        if not self.layer.program.num_inputs:
            raise ValueError("inputs: got none, expected the parameters that the features set.")
        self._prepare()
        self._last: MatrixResult | None = None

    def _prepare(self) -> None:
        if not self.layer._is_exact(None):
            self.layer.method().backend.prepare(self.layer._overlaps.program)

    @property
    def backend(self) -> Backend:
        """Where circuits run; can be set, to whatever the argument takes."""
        return self.layer.backend

    @backend.setter
    def backend(self, backend: Any) -> None:
        before = self.layer.backend
        self.layer.backend = backend
        try:
            self._prepare()
        except BaseException:
            self.layer.backend = before
            raise

    @property
    def shots(self) -> int | None:
        """Shots a circuit; None: exact where the backend can, else its default. Can be set."""
        return self.layer.shots

    @shots.setter
    def shots(self, shots: int | None) -> None:
        self.layer.shots = shots

    @property
    def weights(self) -> nn.Parameter | nn.ParameterDict | None:
        """As those of :class:`qiskit_torch_bridge.QuantumLayer`."""
        return self.layer.weights

    @property
    def last_run(self) -> MatrixResult | None:
        """What the last call measured, with standard errors; None before it."""
        return self._last

    @overload
    def __call__(
        self, rows: np.ndarray, columns: np.ndarray | None = None, *, shots: int | None = None
    ) -> np.ndarray: ...

    @overload
    def __call__(
        self, rows: torch.Tensor, columns: torch.Tensor | None = None, *, shots: int | None = None
    ) -> torch.Tensor: ...

    def __call__(self, rows: Any, columns: Any = None, *, shots: int | None = None) -> Any:
        """See :meth:`forward`; NumPy's arrays in, as scikit-learn has them, NumPy's arrays out, without gradients."""
        if not isinstance(rows, np.ndarray):
            return super().__call__(rows, columns, shots=shots)
        # Copied, because scikit-learn's may be read-only.
        first = torch.from_numpy(np.array(rows, np.float64))
        second = None if columns is None or columns is rows else torch.from_numpy(np.array(columns, np.float64))
        with torch.no_grad():
            return super().__call__(first, second, shots=shots).double().numpy()

    def forward(
        self, rows: torch.Tensor, columns: torch.Tensor | None = None, *, shots: int | None = None
    ) -> torch.Tensor:
        """The kernel's matrix.

        Args:
            rows: Shape (N, number of inputs).
            columns: Shape (M, number of inputs); None, or ``rows`` itself: the symmetric matrix of the rows.
            shots: Shots a circuit, for this call and its gradient; None: those of the kernel.

        Returns:
            Shape (N, M); dtype and device follow the rows.
        """
        both = rows if columns is None else columns
        for name, features in (("rows", rows), ("columns", both)):
            if isinstance(features, torch.Tensor) and features.dim() != 2:
                expected = self.layer.program.num_inputs
                raise ValueError(f"{name}: got shape {tuple(features.shape)}, expected (N, {expected}).")
        measure = self._exact if self.layer._is_exact(shots) else self._measured
        values = measure(rows, None if both is rows else both, shots)
        return values.to(rows.device, rows.dtype)

    def _exact(self, rows: torch.Tensor, columns: torch.Tensor | None, shots: int | None) -> torch.Tensor:
        first = self.layer._states_of(rows)
        second = first if columns is None else self.layer._states_of(columns)
        values = torch.view_as_real(first @ second.mH).square().sum(dim=-1)
        if not transforms.transforms_are_active():
            numbers = values.detach().numpy().copy()
            circuits = len(first) + (0 if columns is None else len(second))
            self._last = MatrixResult(numbers, np.zeros(numbers.shape), circuits, 0)
        return values

    def _measured(self, rows: torch.Tensor, columns: torch.Tensor | None, shots: int | None) -> torch.Tensor:
        shape = len(rows), len(rows if columns is None else columns)
        if columns is None:
            first, second = torch.triu_indices(*shape, offset=1)
        else:
            first, second = torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, 2).T
        values, result = self.layer._fidelities(rows, rows if columns is None else columns, (first, second), shots)

        def spread(pairs: torch.Tensor, diagonal: float) -> torch.Tensor:
            if columns is not None:
                return pairs.reshape(shape)
            matrix = torch.zeros(shape, dtype=pairs.dtype).index_put((first, second), pairs)
            return matrix + matrix.T + diagonal * torch.eye(len(rows), dtype=pairs.dtype)

        matrix = spread(values, 1.0)
        if result is None:
            self._last = MatrixResult(matrix.detach().numpy().copy(), np.zeros(shape), 0, 0)
        else:
            errors = spread(torch.from_numpy(result.standard_errors[:, 0]), 0.0).numpy()
            numbers = spread(torch.from_numpy(result.values[:, 0]), 1.0).numpy()
            self._last = MatrixResult(numbers, errors, result.circuits, result.shots, passport=result.passport)
        return matrix

    def quote(
        self,
        num_rows: int,
        num_columns: int | None = None,
        *,
        inputs_require_grad: bool = False,
        shots: int | None = None,
    ) -> Quote:
        """What a call costs, and under ``torch.enable_grad()`` a backward after it; nothing where it is exact.

        Args:
            num_rows: The number N of rows.
            num_columns: The number M of columns; None: the rows are the columns, as in ``kernel(rows)``.
            inputs_require_grad: Whether the gradient by the features is needed.
            shots: Shots a circuit; None: those of the kernel.
        """
        rows = require_integer("num_rows", num_rows, least=0)
        if num_columns is None:
            pairs = rows * (rows - 1) // 2
        else:
            pairs = rows * require_integer("num_columns", num_columns, least=0)
        return self.layer._quote_fidelities(pairs, inputs_require_grad=inputs_require_grad, shots=shots)

    def extra_repr(self) -> str:
        """What ``print(kernel)`` shows."""
        return f"inputs={self.layer.program.num_inputs}, qubits={len(self.layer.program.layout)}"
