r"""From the user's inputs and weights to the rotation angles of a circuit, in differentiable torch.

Every rotation of a canonical circuit has a parameter of its own, an *angle*. The expressions that the user wrote at the
gates (``theta``, ``2 * x[0] + 0.1``, ``x[1] * theta``, ``exp(c)``) say how the angles follow from the inputs and the
weights. They are translated once, when a layer is made:

* an expression that is affine in the parameters becomes a row of a small matrix, or, when it is a multiple of one
  parameter, an entry of a gather;
* any other expression becomes a torch function (through SymPy);
* the angles of an amplitude encoding are a torch function of the amplitudes, which are such expressions in turn
  (:mod:`qiskit_torch_bridge.program.amplitudes`).

Shared parameters, products and chain rules then cost no code of ours: torch differentiates the map.

Angles are kept in *groups* by what they depend on (the inputs alone, one group of weights alone, inputs and weights
...), each a tensor of its own. Autograd then knows for each group whether anyone needs its gradient, and frozen weights
or plain data cost no gradient circuit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, lru_cache, reduce
from itertools import pairwise
from operator import mul
from typing import Any

import numpy as np
import sympy
import torch
from qiskit.circuit import CircuitError, Parameter, ParameterExpression

from .amplitudes import Encoding, angles_of, derivatives_of

__all__ = ["Affine", "AngleGroup", "AngleMap", "SourceColumn", "as_affine", "batch_size"]

_EXACT: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}

SourceColumn = tuple[int, int]
"""Where a parameter's value comes from: (source, column). Source 0 is the inputs, source 1 + g is weight group g."""

_Tensors = Sequence[torch.Tensor] | Mapping[int, torch.Tensor]
"""By source."""


@dataclass(frozen=True)
class Affine:
    """``constant + sum of coefficient * parameter``, the terms sorted by source column."""

    terms: tuple[tuple[SourceColumn, float], ...]
    constant: float


def as_affine(expression: ParameterExpression, columns: dict[Parameter, SourceColumn]) -> Affine | None:
    """The expression as an affine form, or None if it is none."""
    if isinstance(expression, Parameter):
        return Affine(((columns[expression], 1.0),), 0.0)
    parameters = sorted(expression.parameters, key=lambda parameter: columns[parameter])
    probes = _probes(len(parameters))
    try:
        slopes = [_number(expression.gradient(parameter)) for parameter in parameters]
        values = [_number(expression.bind(dict(zip(parameters, probe, strict=True)))) for probe in probes]
    except (CircuitError, ArithmeticError, ValueError, RuntimeError, TypeError):
        return None
    # Symbolic derivatives of sign and abs are piecewise constant: the form counts only if it also gives the values.
    expected = (values[0] + sum(map(mul, probe, slopes)) for probe in probes)
    if not all(e == v or abs(e - v) <= 1e-12 * (1 + abs(v)) for e, v in zip(expected, values, strict=True)):
        return None
    return Affine(tuple(zip((columns[p] for p in parameters), slopes, strict=True)), values[0])


@lru_cache(maxsize=64)
def _probes(size: int) -> list[list[float]]:
    """Points at which a form of so many parameters is tried, the origin first."""
    probes = np.random.default_rng(0).uniform(-0.9, 0.9, (5, size))
    probes[0] = 0.0
    return probes.tolist()


def _number(expression: ParameterExpression | float) -> float:
    """The real number that the expression is.

    Raises:
        TypeError: If it still has parameters, or is complex.
    """
    if isinstance(expression, ParameterExpression):
        if expression.parameters:
            raise TypeError(f"{expression} has parameters.")
        return float(expression.numeric())
    return float(expression)


class _Translated:
    """Non-affine expressions as one torch function; compiled on first use, and again after unpickling."""

    def __init__(self, expressions: Sequence[ParameterExpression], columns: dict[Parameter, SourceColumn]) -> None:
        parameters = sorted(set().union(*(e.parameters for e in expressions)), key=lambda p: columns[p])
        self.columns = tuple(columns[p] for p in parameters)
        # A user may call a parameter "sin", or anything else that means something to the translator.
        plain = {parameter: Parameter(f"p{i}") for i, parameter in enumerate(parameters)}
        self._symbols = tuple(sympy.Symbol(parameter.name) for parameter in plain.values())
        self._expressions = tuple(
            _as_sympy(e.subs({p: plain[p] for p in e.parameters}), self._symbols) for e in expressions
        )
        self._function: Callable[..., list[torch.Tensor]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_function": None}

    def prepare(self) -> None:
        """Compiles the expressions, unless that has been done."""
        if self._function is None:
            self._function = sympy.lambdify(self._symbols, list(self._expressions), modules="torch", cse=True)

    def __call__(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        self.prepare()
        assert self._function is not None
        return self._function(*values)

    def evaluate(self, tensors: _Tensors) -> torch.Tensor:
        """The angles (:meth:`AngleGroup.evaluate`)."""
        values = [tensors[source][:, column] for source, column in self.columns]
        angles = torch.broadcast_tensors(*self(values), *values)[: -len(values)]
        return torch.stack(angles, dim=1)

    def slopes(self, source: int, tensors: Mapping[int, torch.Tensor], width: int) -> np.ndarray:
        """Their derivatives by one source's parameters (:meth:`AngleGroup.slopes`)."""
        values = [tensors[s][:, column].detach() for s, column in self.columns]
        rows = batch_size(values)
        slopes = np.zeros((rows, len(self._expressions), width))
        with torch.inference_mode(False), torch.enable_grad():  # whoever asks may be in a step of an optimizer
            values = [value.expand(rows).clone().requires_grad_() for value in values]
            angles = [angle.sum() for angle in self(values)]
        for angle, angle_sum in enumerate(angles):
            derivatives = torch.autograd.grad(angle_sum, values, retain_graph=True, allow_unused=True)
            for (s, column), derivative in zip(self.columns, derivatives, strict=True):
                if s == source and derivative is not None:
                    slopes[:, angle, column] = derivative.numpy()
        return slopes


def _as_sympy(expression: ParameterExpression, symbols: Sequence[sympy.Symbol]) -> sympy.Expr:
    """The expression for SymPy, with floating point numbers only (torch takes no others in ``exp(2)``)."""
    try:
        translated = sympy.sympify(expression.sympify())
    except (AttributeError, TypeError, sympy.SympifyError):
        # Qiskit 2.6 has no SymPy form of a number to the power of a parameter.
        names: dict[str, Any] = {symbol.name: symbol for symbol in symbols}
        translated = sympy.parse_expr(str(expression), local_dict={**names, "conj": sympy.conjugate})
    if translated.has(sympy.I):
        raise ValueError(f"Expression {expression} is complex, expected a real angle.")
    if translated.has(sympy.nan, sympy.oo, -sympy.oo, sympy.zoo):
        raise ValueError(f"Expression {expression} is not finite, expected a finite angle.")
    return translated.evalf(17)


@dataclass(frozen=True, eq=False)
class AngleGroup:
    """The angles that depend on the same sources.

    Attributes:
        sources: Indices of those sources (0: inputs, 1 + g: weight group g), ascending.
        affine: The affine angles, which come first.
        translated: The other angles, or None.
        expressions: The angles as the user wrote them, for messages.
        source_widths: The number of columns of every source.
        fixed: Whether these are no angles but inputs of input blocks, which have no gradient.
    """

    sources: tuple[int, ...]
    affine: tuple[Affine, ...]
    translated: _Translated | _Encoded | None
    expressions: tuple[ParameterExpression, ...]
    _: KW_ONLY
    source_widths: tuple[int, ...]
    fixed: bool = False
    _linear: _Linear = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # Made here once, not at the first call: a tensor that is made within a torch.func transform or in inference
        # mode belongs to it and cannot be used outside.
        with torch.inference_mode(False):
            object.__setattr__(self, "_linear", _Linear.of(self))

    def evaluate(self, tensors: _Tensors) -> torch.Tensor:
        """The angles, of shape (N, A_g), or (1, A_g) if no source has a batch.

        Args:
            tensors: Each source's values, of shape (N, columns) or (1, columns), float64, on the CPU.
        """
        if self.translated is None:
            return self._linear(tensors)
        translated = self.translated.evaluate(tensors)
        if not self.affine:
            return translated
        parts = (self._linear(tensors), translated)
        rows = batch_size(parts)
        return torch.cat([part.expand(rows, -1) for part in parts], dim=1)

    def slopes(self, source: int, tensors: Mapping[int, torch.Tensor]) -> np.ndarray:
        """The derivatives of the angles by one source's parameters, shape (N, A_g, columns) or (1, A_g, columns)."""
        width = self.source_widths[source]
        slopes = np.zeros((1, len(self.affine), width))
        for angle, form in enumerate(self.affine):
            for (s, column), slope in form.terms:
                if s == source:
                    slopes[:, angle, column] = slope
        if self.translated is None:
            return slopes
        translated = self.translated.slopes(source, tensors, width)
        return np.concatenate([np.broadcast_to(slopes, (len(translated), *slopes.shape[1:])), translated], axis=1)


@dataclass(frozen=True, eq=False)
class _Linear:
    """The affine angles of a group, as a gather where each is a multiple of one parameter, else as matrix products.

    ``columns`` is None also where the gather takes all columns in their order, as it does for most circuits.
    """

    sources: tuple[int, ...]
    gathers: bool
    columns: torch.Tensor | None
    slopes: tuple[torch.Tensor, ...]
    _: KW_ONLY
    offsets: torch.Tensor | None

    @classmethod
    def of(cls, group: AngleGroup) -> _Linear:
        forms = group.affine
        constants = torch.tensor([form.constant for form in forms], **_EXACT)
        offsets = constants if bool(constants.any()) else None
        if len(group.sources) == 1 and all(len(form.terms) == 1 for form in forms):
            chosen = [form.terms[0][0][1] for form in forms]
            whole = chosen == list(range(group.source_widths[group.sources[0]]))
            columns = None if whole else torch.tensor(chosen, dtype=torch.long, device="cpu")
            slopes = torch.tensor([form.terms[0][1] for form in forms], **_EXACT)
            return cls(group.sources, True, columns, () if bool((slopes == 1).all()) else (slopes,), offsets=offsets)
        matrices = {s: torch.zeros((group.source_widths[s], len(forms)), **_EXACT) for s in group.sources}
        for angle, form in enumerate(forms):
            for (source, column), slope in form.terms:
                matrices[source][column, angle] = slope
        return cls(group.sources, False, None, tuple(matrices.values()), offsets=offsets)

    def __call__(self, tensors: _Tensors) -> torch.Tensor:
        if self.gathers:
            angles = tensors[self.sources[0]]
            if self.columns is not None:
                angles = angles.index_select(1, self.columns)
            for slopes in self.slopes:
                angles = angles * slopes
        else:
            products = [tensors[s] @ matrix for s, matrix in zip(self.sources, self.slopes, strict=True)]
            angles = reduce(torch.add, products)
        return angles if self.offsets is None else angles + self.offsets


class _Encoded:
    """The angles of one amplitude encoding, as its gates have them.

    Args:
        encoding: The encoding.
        forms: The gates' expressions, affine in the encoding's angles, which are the columns of source 0.
        columns: Which source and column holds each of the user's parameters' values.
        source_widths: The number of columns of every source.
    """

    def __init__(
        self,
        encoding: Encoding,
        forms: Sequence[Affine],
        columns: dict[Parameter, SourceColumn],
        source_widths: tuple[int, ...],
    ) -> None:
        amplitudes = encoding.amplitudes
        parameters = {p for a in amplitudes if isinstance(a, ParameterExpression) for p in a.parameters}
        self.columns = tuple(sorted(columns[p] for p in parameters))
        self.sources = tuple(sorted({source for source, _ in self.columns}))
        affine, others = [], []
        for place, amplitude in enumerate(amplitudes):
            is_number = not isinstance(amplitude, ParameterExpression)
            form = Affine((), amplitude) if is_number else as_affine(amplitude, columns)
            if form is None:
                others.append(place)
            else:
                affine.append((place, form))
        translated = _Translated([amplitudes[place] for place in others], columns) if others else None
        forms_of_amplitudes = tuple(form for _, form in affine)
        self._amplitudes = AngleGroup(self.sources, forms_of_amplitudes, translated, (), source_widths=source_widths)
        self._order = np.argsort([*(place for place, _ in affine), *others]) if others else None
        self._angles = AngleGroup((0,), tuple(forms), None, (), source_widths=(len(encoding.angles),))

    def prepare(self) -> None:
        """Compiles the amplitudes' expressions, unless that has been done."""
        if self._amplitudes.translated is not None:
            self._amplitudes.translated.prepare()

    def evaluate(self, tensors: _Tensors) -> torch.Tensor:
        """The angles (:meth:`AngleGroup.evaluate`)."""
        return self._angles.evaluate([angles_of(self._amplitudes_in(tensors))])

    def slopes(self, source: int, tensors: Mapping[int, torch.Tensor], width: int) -> np.ndarray:
        """Their derivatives by one source's parameters (:meth:`AngleGroup.slopes`)."""
        slopes = self._amplitudes.slopes(source, tensors)
        if self._order is not None:
            slopes = slopes[:, self._order]
        return self._angles.slopes(0, {}) @ derivatives_of(self._amplitudes_in(tensors).detach().numpy()) @ slopes

    def _amplitudes_in(self, tensors: _Tensors) -> torch.Tensor:
        amplitudes = self._amplitudes.evaluate(tensors)
        return amplitudes if self._order is None else amplitudes[:, self._order]


def batch_size(groups: Sequence[torch.Tensor]) -> int:
    """The number of rows of tensors that have N rows or one."""
    rows = 1
    for group in groups:
        size = group.shape[0]
        if size == 0:
            return 0
        rows = max(rows, size)
    return rows


def _encoded_forms(encoding: Encoding, expressions: Sequence[ParameterExpression]) -> dict[int, Affine]:
    """Which expressions are made of the encoding's angles, and how; in the order of these, as most encodings have them."""
    columns = {parameter: (0, place) for place, parameter in enumerate(encoding.angles)}
    forms = {}
    for place, expression in enumerate(expressions):
        if not columns.keys().isdisjoint(expression.parameters):
            form = as_affine(expression, columns)
            assert form is not None  # also in controlled and inverted rotations
            forms[place] = form
    return dict(sorted(forms.items(), key=lambda entry: entry[1].terms))


@dataclass(frozen=True, eq=False)
class AngleMap:
    """The map from inputs and weight groups to all angles.

    Attributes:
        groups: The first group always belongs to the inputs alone (it may be empty), so that it carries the batch size.
        source_widths: Number of columns of the inputs and of each weight group.
        order: For each entry of the list of expressions that the map was made from, its angle (its column).
    """

    groups: tuple[AngleGroup, ...]
    source_widths: tuple[int, ...]
    order: tuple[int, ...]

    @classmethod
    def from_expressions(
        cls,
        expressions: Sequence[ParameterExpression],
        columns: dict[Parameter, SourceColumn],
        source_widths: Sequence[int],
        encodings: Sequence[Encoding] = (),
        fixed: Sequence[Parameter] = (),
    ) -> AngleMap:
        """Builds the map.

        Args:
            expressions: One an angle.
            columns: Which source and column holds each parameter's value.
            source_widths: The number of columns of every source.
            encodings: Amplitude encodings, whose angles are parameters of the expressions too; each is a group.
            fixed: Inputs to be handed on as they are, as a last group.
        """
        widths = tuple(source_widths)
        encoded = [_encoded_forms(encoding, expressions) for encoding in encodings]
        plain = set(range(len(expressions))).difference(*encoded)
        sources_of = {i: tuple(sorted({columns[p][0] for p in expressions[i].parameters})) for i in plain}
        affine_of = {i: as_affine(expressions[i], columns) for i in plain}
        ranking = sorted(plain, key=lambda i: (sources_of[i], affine_of[i] is None, i))
        groups = []
        for sources in sorted({(0,), *sources_of.values()}):
            members = [i for i in ranking if sources_of[i] == sources]
            affine = tuple(form for i in members if (form := affine_of[i]) is not None)
            angles = tuple(expressions[i] for i in members)
            others = angles[len(affine) :]
            translated = _Translated(others, columns) if others else None
            groups.append(AngleGroup(sources, affine, translated, angles, source_widths=widths))
        for encoding, of_encoding in zip(encodings, encoded, strict=True):
            one = _Encoded(encoding, [*of_encoding.values()], columns, widths)
            angles = tuple(expressions[i] for i in of_encoding)
            groups.append(AngleGroup(one.sources, (), one, angles, source_widths=widths))
            ranking += of_encoding
        if fixed:
            forms = tuple(Affine(((columns[parameter], 1.0),), 0.0) for parameter in fixed)
            groups.append(AngleGroup((0,), forms, None, tuple(fixed), source_widths=widths, fixed=True))
        return cls(tuple(groups), widths, tuple(np.argsort(ranking).tolist()))

    def prepare(self) -> None:
        """Does now what :meth:`__call__` needs once: a graph that PyTorch traces can call it, but not do that."""
        _ = self._weight_shapes, self._idle_sources, self.is_affine
        for group in self.groups:
            if group.translated is not None:
                group.translated.prepare()

    @cached_property
    def num_columns(self) -> int:
        """The number A of angles, and what is handed on after them."""
        return len(self.expressions)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The columns of each group among all angles."""
        edges = np.cumsum([0, *(len(group.expressions) for group in self.groups)]).tolist()
        return tuple(slice(start, stop) for start, stop in pairwise(edges))

    @cached_property
    def expressions(self) -> tuple[ParameterExpression, ...]:
        """The expression of each angle."""
        return tuple(expression for group in self.groups for expression in group.expressions)

    def encodes(self, column: int) -> bool:
        """Whether the angle is one of an amplitude encoding."""
        spans = zip(self.groups, self.slices, strict=True)
        return any(isinstance(g.translated, _Encoded) and span.start <= column < span.stop for g, span in spans)

    @cached_property
    def has_idle_inputs(self) -> bool:
        """Whether there are inputs that no angle depends on (they are in the global phase, say)."""
        affine = {column for group in self.groups for form in group.affine for column, _ in form.terms}
        used = affine.union(*(group.translated.columns for group in self.groups if group.translated is not None))
        return sum(source == 0 for source, _ in used) < self.source_widths[0]

    @cached_property
    def _idle_sources(self) -> tuple[int, ...]:
        """Sources with columns that no angle depends on."""
        used = {source for group in self.groups if group.expressions for source in group.sources}
        return tuple(source for source, width in enumerate(self.source_widths) if width and source not in used)

    @cached_property
    def ties(self) -> tuple[tuple[int, float], ...]:
        """For each angle the class of angles that move together with it, and its speed within that class.

        Two angles are tied when the derivative of one is a fixed multiple of the other's: ``theta``, ``-2 * theta +
        1``. A rule that may shift several angles at once (finite differences, SPSA) needs one direction a class instead
        of one an angle.
        """
        classes: dict[Any, int] = {}
        ties = []
        for group in self.groups:
            for form in group.affine:
                lead = next((slope for _, slope in form.terms if slope), 0.0)
                key: Any = (
                    tuple((c, slope / lead) for c, slope in form.terms if slope) if lead else ("constant", len(classes))
                )
                ties.append((classes.setdefault(key, len(classes)), lead or 1.0))
            for expression in group.expressions[len(group.affine) :]:
                ties.append((classes.setdefault(str(expression), len(classes)), 1.0))
        return tuple(ties)

    @cached_property
    def _weight_shapes(self) -> list[tuple[int]]:
        return [(width,) for width in self.source_widths[1:]]

    def __call__(self, inputs: torch.Tensor | None, weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """All angles, a tensor a group.

        Args:
            inputs: Shape (N, I), float64, on the CPU; None where the circuit has no inputs (then N = 1).
            weights: One tensor of shape (W_g,) a weight group, likewise; none where there are no weights.

        Returns:
            A tensor of shape (N, A_0) for the first group, and (N, A_g) or (1, A_g) for each other.

        Raises:
            ValueError: If a shape does not fit.
        """
        width = self.source_widths[0]
        if (inputs is None and width) or (inputs is not None and inputs.shape[1:] != (width,)):
            got = None if inputs is None else tuple(inputs.shape)
            raise ValueError(f"inputs: got shape {got}, expected (N, {width}).")
        shapes = [weight.shape for weight in weights]
        if shapes != self._weight_shapes and (shapes or any(self.source_widths[1:])):
            raise ValueError(f"weights: got shapes {[*map(tuple, shapes)]}, expected {self._weight_shapes}.")
        tensors: list[Any] = [inputs]  # no group looks at inputs that are None
        for weight in weights:
            tensors.append(weight.unsqueeze(0))
        first, *others = self.groups
        rows = 1 if inputs is None else inputs.shape[0]
        angles = [first.evaluate(tensors) if first.expressions else torch.zeros((rows, 0), **_EXACT)]
        if self._idle_sources:
            # Empty columns of what no angle depends on keep it in torch's graph, so that its gradient is zero, not an error.
            idle = [tensors[source][:, :0].expand(rows, -1) for source in self._idle_sources]
            angles = [torch.cat(angles + idle, dim=1)]
        for group in others:
            angles.append(group.evaluate(tensors))
        return tuple(angles)

    @cached_property
    def is_affine(self) -> bool:
        """Whether the angles' derivatives are the same whatever the inputs and weights."""
        return all(group.translated is None for group in self.groups)

    @cached_property
    def table(self) -> tuple[np.ndarray, ...] | None:
        """The map as five arrays, for compiled code; None if it is not affine, or does not look at all the inputs.

        The arrays are (starts, columns, slopes, offsets, shared): angle a is ``offsets[a]`` plus the sum of ``slopes[t]``
        times column ``columns[t]`` of the inputs and all weights side by side, over t from ``starts[a]`` to
        ``starts[a + 1]``; it is ``shared`` by all rows where no input is among them.
        """
        if not self.is_affine or self.has_idle_inputs or any(group.fixed for group in self.groups):
            return None
        first = np.cumsum([0, *self.source_widths]).tolist()
        forms = [form for group in self.groups for form in group.affine]
        terms = [(first[source] + column, slope) for form in forms for (source, column), slope in form.terms]
        return (
            np.cumsum([0, *(len(form.terms) for form in forms)], dtype=np.int64),
            np.array([column for column, _ in terms], np.int64),
            np.array([slope for _, slope in terms], np.float64),
            np.array([form.constant for form in forms], np.float64),
            np.array([all(source for (source, _), _ in form.terms) for form in forms], np.int64),
        )

    def slopes(self, source: int, columns: Sequence[int], tensors: Mapping[int, torch.Tensor]) -> np.ndarray:
        """The derivatives of angles by the parameters of one source, shape (N, W, width), or (1, W, width).

        Args:
            source: 0 for the inputs, 1 + g for weight group g.
            columns: Which W angles.
            tensors: Each source's values, shape (N, width) or (1, width), float64; not looked at where :attr:`is_affine`.
        """
        parts = [group.slopes(source, tensors) for group in self.groups]
        rows = max(len(part) for part in parts)
        whole = np.concatenate([np.broadcast_to(part, (rows, *part.shape[1:])) for part in parts], axis=1)
        return whole[:, list(columns)]
