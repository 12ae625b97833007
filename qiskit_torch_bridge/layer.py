"""``QuantumLayer``: a parameterised Qiskit circuit as a torch module.

**Typed code.** This package has types that mypy reads. Qiskit has none: set ``ignore_missing_imports = true`` for
``qiskit.*`` in mypy's settings. ``last_run`` is None before the first call, and what ``weights`` is depends on the argument
of that name, so say which it is:

```python
import torch
from torch import nn

from qiskit_torch_bridge import QuantumLayer


def largest_error(layer: QuantumLayer, features: torch.Tensor) -> float:
    layer(features)
    assert layer.last_run is not None
    return float(layer.last_run.standard_errors.max())


def norm_of_weights(layer: QuantumLayer) -> float:
    assert isinstance(layer.weights, nn.Parameter)  # nn.ParameterDict, if weights= was a mapping
    return float(layer.weights.norm())
```
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from qiskit.circuit import Parameter, ParameterVector, QuantumCircuit
from torch import nn

from .arguments import explain_misfits, require_dense, require_integer
from .backends import Backend, check_shots
from .bridge import transforms
from .bridge.evaluation import NonFiniteAnglesError
from .bridge.functional import Tally, measure
from .bridge.method import Method
from .bridge.names import register
from .bridge.plain import measure_plainly
from .bridge.result import LayerResult
from .geometry.geometric_module import GeometricModule
from .gradients.rules import GradientRule, resolve_gradient
from .mitigation.methods import Mitigation
from .mitigation.mitigated import MitigatedBackend, checked_methods
from .program.compiled import Program
from .program.observables import ObservablesLike
from .program.outcomes import QubitsLike
from .quote import Quote, quote_step
from .shots.seeding import SeedStream

__all__ = ["QuantumLayer"]

_HALVES = (torch.float16, torch.bfloat16)
_FLOATS = (torch.float64, torch.float32, *_HALVES)
Initializer = str | torch.Tensor | Mapping[str, "str | torch.Tensor"]


@explain_misfits
class QuantumLayer(GeometricModule):
    """A parameterised Qiskit circuit as a torch module: features in, expectation values or probabilities out.

    This is a circuit between two linear layers.

        x, w = ParameterVector("x", 2), ParameterVector("w", 2)
        circuit = QuantumCircuit(2)
        for qubit in range(2):
            circuit.ry(x[qubit], qubit)
            circuit.rx(w[qubit], qubit)
        circuit.cx(0, 1)

        layer = QuantumLayer(circuit, inputs=x, weights=w, shots=1000)
        model = nn.Sequential(nn.Linear(4, 2), layer, nn.Linear(2, 3))
        model(torch.rand(8, 4)).sum().backward()  # layer.weights.grad; layer.last_run has the error bars

    Outputs have the features' precision, ``(..., n_inputs)`` in and ``(..., n_outputs)`` out. ``nn.Linear`` is in single
    precision; data from NumPy, pandas or scikit-learn mostly in double. Convert such data once,
    ``torch.tensor(data, dtype=torch.float32)``, or the whole model, ``model.double()``. Circuits are computed in double
    precision in either case.

    ``torch.compile(model, fullgraph=True)`` and ``torch.export`` take a model with layers whole: each is an operator in
    the graph, exact or with shots, on any backend. (``torch.compile`` itself costs some 0.1 ms a step: it pays where the
    rest of the model is large.)

    Qubits are numbered as in Qiskit (little-endian): the last character of a Pauli label acts on qubit 0, and of
    ``probabilities=[a, b]`` qubit ``a`` is the least significant bit of the outcome. If the circuit has been
    transpiled, the numbers are those of the circuit before transpiling.

    There are many options because each is a choice of its own; all are given by name and have a default.

    Args:
        circuit: Any parameterised ``QuantumCircuit`` of gates. Final measurements are dropped, or read with
            ``probabilities=True``. Features become amplitudes by :func:`qiskit_torch_bridge.circuits.amplitude_encoding`.
            Any other instruction that is only defined for numbers may take inputs, which then have no gradient, and
            costs a backend call for each distinct row.
        inputs: The parameters that the features set, in column order: Parameters, ParameterVectors.
        weights: The trainable parameters, likewise; or a mapping of names to such lists, each of which becomes a
            parameter of its own (``layer.weights["name"]``) that can be frozen, trained and saved apart.
        observables: What to measure, as Qiskit's primitives take it: a Pauli label (``0 1 + - r l`` in it are projectors),
            ``Pauli``, ``SparsePauliOp``, ``SparseObservable``, or a mapping of Paulis to coefficients
            (``{"ZZ": 0.5, "XX": 2.0}`` is one observable); or a list of them, a ``PauliList`` or an ``ObservablesArray``:
            one output each, in row-major order where they are nested. Default: Z on each qubit.
        probabilities: Instead, the qubits whose outcomes' probabilities are the outputs (2**k of them): a list of indices,
            qubits, registers, ranges and slices, or one of these; or True for those that the circuit measures, in the order
            of their classical bits.
        interpret: With ``probabilities``: maps an outcome (int) to a class (int from 0), such as
            ``lambda outcome: outcome.bit_count() % 2``; the outputs are then the classes' probabilities.
        backend: None or ``"statevector"`` (exact simulation), ``"noisy:NAME"`` (with a device's noise), ``"pauli"`` (wide
            circuits), ``"aer"``, ``"fake:NAME"``, an ``AerSimulator``, an IBM device (fake or real), any V2 Sampler or
            Estimator, or one of this package's backends.
        shots: Shots a circuit, for values and gradients alike; None: exact where the backend can, else its default.
        gradient: ``"adjoint"``, ``"parameter_shift"``, ``"finite_difference"``, ``"spsa"``, or a rule object; None: the
            best for the backend.
        seed: Makes initial weights and shots repeatable to the last bit (on the same kind of machine:
            :mod:`qiskit_torch_bridge.shots`); each call still draws fresh shots. None: taken from PyTorch's global
            generator, so that ``torch.manual_seed`` does the same. Processes and copies that share a seed share their
            noise: in distributed training give ``(seed, rank)``.
        allocation: How a gradient's shots are shared among the rows of a batch: ``"uniform"``; or ``"sensitivity"``: none
            for rows without upstream gradient, in proportion to it for the others, ``shots`` on average
            (:mod:`qiskit_torch_bridge.shots.allocation`).
        mitigation: Methods of error mitigation, of which the first is applied to what is measured, the next to what that
            gives, and so on (:mod:`qiskit_torch_bridge.mitigation`).
        init: Initial weights: ``"uniform"`` in [0, 2 pi), ``"zeros"``, ``"normal"`` (standard deviation 0.01), or a
            tensor of shape (W,); or a mapping of these by group.

    Attributes:
        weights: An ``nn.Parameter`` of shape (W,); an ``nn.ParameterDict`` of groups; None for a circuit without any
            (in typed code: :mod:`qiskit_torch_bridge.layer`).
        program: The compiled circuit.
        backend: Where it runs; can be set, to whatever the argument takes.
        mitigation: The methods of error mitigation, a tuple; can be set.
        allocation: How a gradient's shots are shared out; can be set.

    Raises:
        TypeError: If an argument has a wrong type.
        ValueError: If anything does not fit, before anything runs; the message names it and the remedy.
    """

    def __init__(
        self,
        circuit: QuantumCircuit,
        *,
        inputs: Parameter | ParameterVector | Sequence[Parameter | ParameterVector] = (),
        weights: Any = (),
        observables: ObservablesLike | None = None,
        probabilities: bool | QubitsLike | None = None,
        interpret: Callable[[int], int] | None = None,
        backend: Any = None,
        shots: int | None = None,
        gradient: str | GradientRule | None = None,
        seed: int | Sequence[int] | None = None,
        allocation: str = "uniform",
        mitigation: Sequence[Mitigation] = (),
        init: Initializer = "uniform",
    ) -> None:
        super().__init__()
        self.program = Program.compile(
            circuit,
            inputs=inputs,
            weights=weights,
            observables=observables,
            probabilities=probabilities,
            interpret=interpret,
        )
        self._shots, self._rule, self._allocation = check_shots(shots), resolve_gradient(gradient), allocation
        self._mitigation = checked_methods(mitigation)
        self.backend = backend
        self._circuit = circuit.copy()
        self.seeds = SeedStream(seed)
        grouped = isinstance(weights, Mapping) and bool(weights)
        self.tally, self._told_of_halves = Tally(grouped), False
        self._name = register(self)  # for graphs
        self.weights: nn.Parameter | nn.ParameterDict | None
        parameters = self._initial_weights(init)
        if grouped:
            self.weights = nn.ParameterDict(list(parameters.items()))  # which would sort a mapping
        else:
            self.register_parameter("weights", parameters["weights"] if self.program.num_weights[0] else None)

    @property
    def backend(self) -> Backend:
        """Where the layer runs."""
        backend = self._method.backend
        return backend.backend if self._mitigation and isinstance(backend, MitigatedBackend) else backend

    @backend.setter
    def backend(self, backend: Any) -> None:
        method = Method.of(backend, self._shots, self._rule, self._allocation, self._mitigation)
        method.backend.prepare(self.program.example())
        self._adopt(method)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._name = register(self)  # a copy is another layer
        self.program.angle_map.prepare()

    def _adopt(self, method: Method) -> None:
        self._method = method
        # Graphs that call the layer cannot do these.
        self.program.angle_map.prepare()
        self._is_plain = method.rule.exact_only and method.backend.step_of(self.program) is not None

    @property
    def shots(self) -> int | None:
        """Shots a circuit, for values and gradients; None: exact where the backend can, else its default. Can be set."""
        return self._shots

    @shots.setter
    def shots(self, shots: int | None) -> None:
        self._adopt(self._with(shots=shots))
        self._shots = check_shots(shots)

    @property
    def allocation(self) -> str:
        """How a gradient's shots are shared out."""
        return self._allocation

    @allocation.setter
    def allocation(self, allocation: str) -> None:
        self._adopt(self._with(allocation=allocation))
        self._allocation = allocation

    @property
    def mitigation(self) -> tuple[Mitigation, ...]:
        """The methods of error mitigation, of which the first is applied to what is measured."""
        return self._mitigation

    @mitigation.setter
    def mitigation(self, methods: Sequence[Mitigation]) -> None:
        backend, before = self.backend, self._mitigation
        self._mitigation = checked_methods(methods)
        try:
            self.backend = backend
        except BaseException:
            self._mitigation = before
            raise

    @property
    def gradient(self) -> GradientRule:
        """The gradient rule in force for :attr:`shots`."""
        return self.method().rule

    @property
    def num_outputs(self) -> int:
        """The number of outputs: the size of the last dimension of what the layer returns."""
        return self.program.num_outputs

    def forward(self, features: torch.Tensor | None = None, *, shots: int | None = None) -> torch.Tensor:
        """Evaluates the circuit for each row of features: one backend call.

        Args:
            features: Shape (..., number of inputs), floating point; left out where the circuit has no inputs. In half
                precision, as autocast makes them, angles have two or three digits: the layer warns once.
            shots: Shots for this call and its gradient; None: the layer's.

        Returns:
            Shape (..., number of outputs); dtype and device follow the features (or the weights, where there are none).

        Raises:
            TypeError, ValueError: If the features do not fit or are not finite; nothing has run then.
        """
        if torch.compiler.is_compiling() or (transforms.count_modes() and transforms.is_tracing()):
            if not transforms.transforms_are_active():
                return self._trace(features, shots)
            # Operators are not mapped, nor differentiated forward. (As a decorator this would import the compiler.)
            return torch.compiler.disable(self._measure)(features, shots)
        return self._measure(features, shots)

    def _trace(self, features: torch.Tensor | None, shots: int | None) -> torch.Tensor:
        """What :meth:`_measure` does, as nodes of the graph that PyTorch makes."""
        from .bridge.operators import measure_traced  # a module that is only needed here

        self._check_features(features)
        weights = self._weight_list()
        like = features if features is not None else weights[0] if weights else torch.empty(0)
        rows = None if features is None else features.unsqueeze(0) if features.dim() == 1 else features.flatten(0, -2)
        plain = shots is None and self._is_plain
        values = measure_traced(self, self._name, rows, weights, shots=shots, plain=plain)
        return values.reshape(*(() if features is None else features.shape[:-1]), values.shape[-1]).to(
            like.device, like.dtype
        )

    def _measure(self, features: torch.Tensor | None, shots: int | None) -> torch.Tensor:
        weights = self._weight_list()
        if shots is None and self._is_plain:
            values = measure_plainly(self, features, weights)
            if values is not None:
                return values if features is not None else values[0]
        like = self._checked(features, weights)
        rows = features
        if features is not None:
            # Of the shape that is needed already, as most are, they are left alone: every view costs time, backward too.
            if features.dim() != 2:
                rows = features.reshape(math.prod(features.shape[:-1]), features.shape[-1])
            if self.program.angle_map.has_idle_inputs:
                self._require_finite_features(features)
        try:
            values = measure(self.program, self.method(shots), rows, weights, seeds=self.seeds, tally=self.tally)
        except NonFiniteAnglesError as error:
            cause = error
        else:
            if features is None or features.dim() != 2:
                values = values.reshape(*(() if features is None else features.shape[:-1]), values.shape[-1])
            return values.to(like.device, like.dtype)
        # Outside the except block: one error, in terms of the columns that the user knows, where they can be seen.
        self._require_finite(features)
        raise cause

    def method(self, shots: int | None = None) -> Method:
        """How a call with so many shots is measured, None for the layer's: backend, gradient rule in force, shots."""
        if shots is None and not self.backend.settings_may_change:
            return self._method
        return self._with(shots=self._shots if shots is None else shots)

    def _with(self, **changed: Any) -> Method:
        """The layer's method with other shots or another allocation, on the very backend that has its calibrations."""
        choices = {"shots": self._shots, "gradient": self._rule, "allocation": self._allocation, **changed}
        return Method.of(self._method.backend, **choices)

    def quote(self, batch_size: int | None = None, *, inputs_require_grad: bool = True) -> Quote:
        """What a training step (forward and backward) on a batch costs, with the layer's present settings.

        Under ``torch.no_grad()``: what an evaluation (forward alone) costs.

        Args:
            batch_size: Rows of features; leading dimensions multiplied. May be left out where the circuit has no inputs, for
                the one row of a call without features.
            inputs_require_grad: Whether the gradient by the features is needed, as it is behind trainable layers; False
                for plain data.
        """
        if batch_size is None and not self.program.num_inputs:
            batch_size = 1
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 0:
            raise ValueError(f"batch_size: got {batch_size!r}, expected an integer from 0.")
        trained = {1 + g for g, weight in enumerate(self._weight_list()) if weight.requires_grad}
        if inputs_require_grad:
            trained.add(0)
        return quote_step(self.program, self.method(), int(batch_size), trained if torch.is_grad_enabled() else ())

    def plan(self) -> str:
        """How the backend evaluates the circuit, in words: the exact simulator, by which light cones or as one state."""
        return self._method.backend.describe(self.program)

    def get_rng_state(self) -> dict[str, Any]:
        """Where the layer's stream of shots stands; save it to continue a run to the last bit."""
        return self.seeds.state()

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Continues the stream of shots where :meth:`get_rng_state` found it."""
        self.seeds.restore(state)

    def draw(self, output: str = "text", **options: Any) -> Any:
        """Draws the user's circuit; takes what ``QuantumCircuit.draw`` takes (``output="mpl"`` gives a figure)."""
        return self._circuit.draw(output, **options)

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows."""
        if "_method" not in vars(self):
            return "not made yet"  # as tracebacks of what went wrong show it
        program = self.program
        groups = ", ".join(f"{n}={w}" for n, w in zip(program.group_names, program.num_weights, strict=True))
        return (
            f"inputs={program.num_inputs}, {groups}, outputs={program.num_outputs}, "
            f"qubits={program.circuit.num_qubits}, backend={self.backend.name!r}, shots={self._shots}, "
            f"gradient={self.gradient.name!r}"
        )

    def _weight_list(self) -> list[torch.Tensor]:
        weights = self.weights
        if isinstance(weights, nn.ParameterDict):
            return [weights[name] for name in self.program.group_names]
        return [] if weights is None else [weights]

    def _initial_weights(self, init: Initializer) -> dict[str, nn.Parameter]:
        names, sizes = self.program.group_names, self.program.num_weights
        if isinstance(init, torch.Tensor) and len(names) > 1:
            raise ValueError(
                f"init: got a tensor for the groups {list(names)}, expected a mapping of group names to tensors."
            )
        given = init if isinstance(init, Mapping) else dict.fromkeys(names, init)
        if strange := set(given) - set(names):
            raise ValueError(f"init: got groups {sorted(map(str, strange))}, expected some of {list(names)}.")
        words = np.random.SeedSequence(self.seeds.entropy).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(words[0] >> np.uint64(1)))
        return {
            name: nn.Parameter(_initial(given.get(name, "uniform"), name, size, generator))
            for name, size in zip(names, sizes, strict=True)
        }

    def _checked(self, features: torch.Tensor | None, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """What outputs follow in precision and device, once features and weights are what they should be."""
        self._check_features(features)
        like = features if features is not None else weights[0] if weights else torch.empty(0)
        for tensor in (like, *weights):
            if tensor.is_meta or tensor.dtype not in _FLOATS:
                _refuse_weights(tensor)
            if tensor.dtype in _HALVES:
                self._warn_of_half_precision(tensor.dtype)
        return like

    def _check_features(self, features: torch.Tensor | None) -> None:
        width = self.program.angle_map.source_widths[0]
        if features is None:
            if width:
                raise ValueError(f"features: got none, expected shape (..., {width}): the circuit has {width} inputs.")
            return
        if not isinstance(features, torch.Tensor):
            raise TypeError(f"features: got {type(features).__name__}, expected a torch.Tensor; use torch.as_tensor.")
        if features.dtype not in _FLOATS:
            remedy = (
                "an angle is real: give the real and imaginary parts to inputs of their own, as "
                "torch.view_as_real(features).flatten(-2) has them"
                if features.dtype.is_complex
                else "call features.float()"
            )
            raise TypeError(f"features: got dtype {features.dtype}, expected a floating point dtype; {remedy}.")
        if features.is_meta or features.is_nested or features.layout is not torch.strided:
            require_dense("features", features)
        if features.dim() == 0 or features.shape[-1] != width:
            raise ValueError(
                f"features: got shape {tuple(features.shape)}, expected (..., {width}): the last dimension holds the "
                f"inputs{'; call features.unsqueeze(-1)' if width == 1 else ''}."
            )

    def _warn_of_half_precision(self, dtype: torch.dtype) -> None:
        if self._told_of_halves:
            return
        self._told_of_halves = True
        kept = torch.tensor(3.1, dtype=dtype).item()
        warnings.warn(
            f"Got features or weights of dtype {dtype}, expected float32 or float64: an angle of 3.1 becomes {kept:.6g}. "
            "Keep the layer's weights in float32, and compute its features in it (where autocast is on, within "
            "torch.autocast(device_type, enabled=False)). Each layer says this once.",
            stacklevel=7,
        )

    def _require_finite(self, features: torch.Tensor | None) -> None:
        if features is not None:
            self._require_finite_features(features)
        self._require_finite_weights()

    def _require_finite_features(self, features: torch.Tensor) -> None:
        try:
            bad = ~torch.isfinite(features.detach().reshape(-1, self.program.num_inputs))
            if not bool(bad.any()):
                return
        except RuntimeError:
            return  # under torch.func.vmap no value can be looked at
        # Under torch.func.grad, torch up to 2.7 cannot give the list of a tensor, but a single number it can.
        row, column = divmod(int(bad.int().argmax()), self.program.num_inputs)
        value = features.detach().reshape(-1, self.program.num_inputs)[row, column].item()
        raise ValueError(
            f"features: column {column} is {value} in row {row} of the flattened batch, expected finite numbers "
            f"({int(bad.sum())} are not). No circuit was run."
        )

    def _require_finite_weights(self) -> None:
        for name, weight in zip(self.program.group_names, self._weight_list(), strict=False):
            try:
                bad = ~torch.isfinite(weight.detach())
                if not bool(bad.any()):
                    continue
            except RuntimeError:
                continue  # under torch.func.vmap no value can be looked at
            index = int(bad.nonzero()[0])
            raise ValueError(
                f"weights ({name}): entry {index} is {weight[index].item()}, expected finite numbers; training may have "
                "diverged (lower the learning rate). No circuit was run."
            )

    @property
    def last_run(self) -> LayerResult | None:
        """What the last forward call executed, and the gradient that has come back through it; None before it."""
        return self.tally.last_result

    @property
    def total_circuits(self) -> int:
        """Circuits executed so far, those of gradients included. Can be set, to go on counting from an earlier run."""
        return self.tally.circuits

    @total_circuits.setter
    def total_circuits(self, circuits: int) -> None:
        self.tally.circuits = require_integer("total_circuits", circuits, least=0)

    @property
    def total_shots(self) -> int:
        """Shots spent so far, likewise."""
        return self.tally.shots

    @total_shots.setter
    def total_shots(self, shots: int) -> None:
        self.tally.shots = require_integer("total_shots", shots, least=0)


def _refuse_weights(weights: torch.Tensor) -> None:
    require_dense("weights", weights)
    raise TypeError(
        f"weights: got dtype {weights.dtype}, expected a floating point dtype, which the outputs would have too."
    )


def _on_default_device(values: torch.Tensor) -> torch.Tensor:
    """Drawn on the CPU, so that a seed gives the same weights everywhere."""
    return values.to(torch.empty(0).device)


def _initial(how: str | torch.Tensor, name: str, size: int, generator: torch.Generator) -> torch.Tensor:
    dtype = torch.get_default_dtype()
    if isinstance(how, torch.Tensor):
        require_dense(f"init ({name})", how)
        if how.shape != (size,) or how.dtype not in _FLOATS or not bool(torch.isfinite(how).all()):
            raise ValueError(
                f"init ({name}): got a tensor of shape {tuple(how.shape)} and dtype {how.dtype}, expected finite floating "
                f"point numbers of shape ({size},)."
            )
        return how.detach().clone()
    if not isinstance(how, str):
        raise TypeError(
            f"init ({name}): got {how!r}, expected 'uniform', 'zeros', 'normal' or a tensor of shape ({size},)."
        )
    if how == "uniform":
        return _on_default_device(torch.rand(size, generator=generator, dtype=dtype, device="cpu") * (2 * torch.pi))
    if how == "zeros":
        return torch.zeros(size, dtype=dtype)
    if how == "normal":
        return _on_default_device(0.01 * torch.randn(size, generator=generator, dtype=dtype, device="cpu"))
    raise ValueError(
        f"init ({name}): got {how!r}, expected 'uniform', 'zeros', 'normal' or a tensor of shape ({size},)."
    )
