"""One call of compiled code forward and one backward, for states that fit into a block.

What stays the same from call to call comes packed (:func:`packed`), because handing arrays over takes longer than
computing a small circuit. :func:`forward` goes from features and weights to angles (where they are affine in them), states
and expectation values; :func:`backward` from an upstream gradient to the gradient by the angles, and :func:`hand_out` from
there to the features and weights. Each works on *slabs*: ``lanes`` rows side by side
(:mod:`qiskit_torch_bridge.simulator.kernels`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import carray

from .kernels import (
    AXES,
    TILES,
    aligned,
    applied,
    begun,
    copied,
    differentiated_in,
    first_change,
    first_of,
    refresh,
    scratch_for,
    taken_back,
)
from .machine_code import entry, inner
from .pauli_kernels import FAMILY_FIELDS, add_expectations, effective_observable
from .vectors import WIDTH, at_address, get, pointer, put

__all__ = ["backward", "forward", "hand_out", "packed"]

(
    _OPS, _COLUMNS, _CONSTANTS, _PERMUTATIONS, _SIGNS, _DENSE_QUBITS, _DENSE,
    _FAMILIES, _OUTCOMES, _LOCAL_MASKS, _BLOCK_MASKS, _ENTRIES, _OUTPUTS, _COEFFICIENTS, _BASE,
    _STARTS, _SOURCES, _SLOPES, _OFFSETS, _SHARED,
) = range(20)  # fmt: skip
_INTEGERS, _MASKS, _NUMBERS, _SINGLES = (np.zeros(0, kind) for kind in (np.int64, np.uint32, np.float64, np.float32))
_STATIC, _ADDRESS = "int64[:,::1], int64, int64", "Tuple((int64, boolean))"
_SHORT = np.zeros(0, np.int32)


def packed(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Addresses and lengths of arrays, which must outlive what this returns.

    Args:
        arrays: The operations of a pass (seven), the observables (seven), what each output begins with (shape (M,); empty
            for probabilities); and the affine map, five arrays (:attr:`qiskit_torch_bridge.program.angles.AngleMap.table`;
            empty where there is none).
    """
    # Not ``array.ctypes``, at which torch.compile would stop where it looks into a call.
    return np.array([(array.__array_interface__["data"][0], len(array)) for array in arrays], np.int64)


@inner
def _array(static, number, like):
    return carray(at_address(static[number, 0], like), static[number, 1])


@inner
def _families(static):
    return carray(at_address(static[_FAMILIES, 0], _INTEGERS), (static[_FAMILIES, 1], FAMILY_FIELDS))


@inner
def _read(address, single, place):
    """A number of an array of float64, or of float32 (``single``)."""
    if single:
        return np.float64(get(at_address(address, _SINGLES), place))
    return get(at_address(address, _NUMBERS), place)


@inner
def _write(address, single, place, number):
    if single:
        put(at_address(address, _SINGLES), place, np.float32(number))
    else:
        put(at_address(address, _NUMBERS), place, number)


@inner
def _make_angles(static, features, weights, width, angles, first, stop):
    """Fills in rows of the angles; whether all are finite."""
    starts, sources = _array(static, _STARTS, _INTEGERS), _array(static, _SOURCES, _INTEGERS)
    slopes, offsets = _array(static, _SLOPES, _NUMBERS), _array(static, _OFFSETS, _NUMBERS)
    finite = True
    for a in range(angles.shape[1]):
        shared = True
        for row in range(first, stop):
            if shared and row > first:
                angles[row, a] = angles[row - 1, a]
                continue
            angle = 0.0
            for t in range(starts[a], starts[a + 1]):
                source = sources[t]
                if source < width:
                    shared = False
                    term = slopes[t] * _read(features[0], features[1], row * width + source)
                else:
                    term = slopes[t] * _read(weights[0], weights[1], source - width)
                angle = term if t == starts[a] else angle + term
            if offsets[a] != 0.0:
                angle += offsets[a]
            angles[row, a] = angle
            finite = finite and np.isfinite(angle)
    return finite


@inner
def _begin_with(base, first, stop, values):
    for row in range(first, stop):
        for output in range(len(base)):
            values[row, output] = base[output]


@inner
def _write_out(outputs, first, stop, values):
    for row in range(first, stop):
        for output in range(values.shape[1]):
            _write(outputs[0], outputs[1], row * values.shape[1] + output, values[row, output])


@entry(
    f"{_STATIC}, boolean, boolean, int64, {_ADDRESS}, {_ADDRESS}, float64[:,::1], real[:,:,::1], float64[:,::1], "
    f"{_ADDRESS}, int64, int64"
)
def forward(
    static, m, lanes, fresh, has_sources, width, features, weights,
    angles, states, values, outputs, first_slab, stop_slab,
):  # fmt: skip
    """Takes slabs through the operations and reads their expectation values.

    Args:
        static: From :func:`packed`.
        m: The number of qubits.
        lanes: The number of rows side by side.
        fresh: Whether the states are to be made, from all qubits in 0.
        has_sources: Whether the angles are to be made, from features and weights.
        width: The number of features.
        features: The address of an array of shape (N, width), and whether it is of float32 rather than float64.
        weights: That of the weights' array, likewise.
        angles: Shape (N, A); filled in, or given.
        states: Shape (slabs, planes, lanes * 2**m), filled in.
        values: Shape (N, M), float64, filled in unless the readout is of probabilities.
        outputs: Where they are written too: address and type of an array of shape (N, M); address 0 for nowhere.
        first_slab: The number of the first slab.
        stop_slab: That after the last.

    Returns:
        NaN if an angle is not finite (then nothing has been simulated), else any other number.
    """
    planes, stride = states.shape[1], states.shape[2]
    both = planes * stride
    rows, num_outputs = values.shape
    stop_row = min(stop_slab * lanes, len(angles))
    if has_sources and not _make_angles(static, features, weights, width, angles, first_slab * lanes, stop_row):
        return np.nan
    ops, columns = at_address(static[_OPS, 0], _INTEGERS), at_address(static[_COLUMNS, 0], _INTEGERS)
    constants = at_address(static[_CONSTANTS, 0], _NUMBERS)
    permutations, signs = at_address(static[_PERMUTATIONS, 0], _MASKS), at_address(static[_SIGNS, 0], states)
    dense_qubits, dense = at_address(static[_DENSE_QUBITS, 0], _INTEGERS), at_address(static[_DENSE, 0], _NUMBERS)
    num_ops, num_factors = static[_OPS, 1], static[_COLUMNS, 1]
    families, outcomes = _families(static), _array(static, _OUTCOMES, _SHORT)
    local_masks, block_masks = _array(static, _LOCAL_MASKS, _INTEGERS), _array(static, _BLOCK_MASKS, _INTEGERS)
    entries, of_outputs = _array(static, _ENTRIES, _INTEGERS), _array(static, _OUTPUTS, _INTEGERS)
    coefficients, base = _array(static, _COEFFICIENTS, _NUMBERS), _array(static, _BASE, _NUMBERS)
    lines = carray(pointer(values), (rows, 1, num_outputs))
    bins = aligned(1, max(WIDTH, stride), states)[0]
    scratch = scratch_for(num_ops, num_factors, both, states)
    flat, work = pointer(states), pointer(scratch)
    block, other, kept = np.int64(0), both, 2 * both
    coefs, axes = pointer(scratch[4 * both :]), pointer(scratch[4 * both + num_ops * TILES :])
    seen_values = np.zeros(max(1, 3 * num_factors * WIDTH))
    seen = pointer(seen_values)
    kept_at, change = -1, 0
    shared = _array(static, _SHARED, _INTEGERS)
    unseen = stop_slab > first_slab
    for slab in range(first_slab, stop_slab):
        row0 = slab * lanes
        refresh(num_ops, ops, columns, constants, angles, row0, lanes, seen, num_factors, coefs, axes, shared, unseen)
        unseen = False
        # Rows that follow each other may share their beginning (shifted circuits do): it is kept for the next.
        ahead = -1
        if fresh and slab + 1 < stop_slab:
            ahead = first_change(num_ops, ops, columns, angles, row0, row0 + lanes, lanes)
        first = 0
        if fresh and 0 <= kept_at <= change:
            first = kept_at
            copied(work, kept, work, block, both)
        elif fresh:
            begun(work, block, both, lanes)
            kept_at = -1
        else:
            copied(flat, slab * both, work, block, both)
        for k in range(first, num_ops):
            if k == ahead and k > 0:
                copied(work, block, work, kept, both)
                kept_at = k
            if applied(
                k, ops, work, block, other, planes, m, lanes, coefs, permutations, signs, dense_qubits, dense, False
            ):
                block, other = other, block
        if ahead < first:
            kept_at = -1
        change = ahead
        copied(work, block, flat, slab * both, both)
        if len(base):
            _begin_with(base, row0, min(row0 + lanes, rows), values)
            add_expectations(
                families, outcomes, local_masks, block_masks, entries, of_outputs, coefficients,
                m, 0, lanes, states[slab], row0, lines, bins,
            )  # fmt: skip
            if outputs[0] != 0:
                _write_out(outputs, row0, min(row0 + lanes, rows), values)
    return seen_values[0] + scratch[0]  # which keeps them alive until here: numba does not see through pointers


@entry(
    f"{_STATIC}, boolean[::1], Tuple((int64, boolean, int64, int64)), float64[:,::1], float64[:,::1], real[:,:,::1], "
    "real[:,:,::1], float64[:,::1], int64, int64"
)
def backward(static, m, lanes, selected, upstream, measured, angles, states, duals, gradients, first_slab, stop_slab):
    """The gradient by the selected angles, of slabs.

    Args:
        static: This and what is not named here: as in :func:`forward`.
        selected: Shape (A,), bool: by which angles.
        upstream: The gradient by the values: the address of its first number, whether it is of float32, and how far apart
            its rows and its columns are; address 0 where ``measured`` has it.
        measured: Shape (N, M), float64: it is copied there.
        states: The final states; they stay as they are.
        duals: Shaped like ``states``: the effective observable applied to them; empty where the observables say it.
        gradients: Shape (N, A), filled in.
    """
    planes, stride = states.shape[1], states.shape[2]
    both = planes * stride
    rows, num_outputs = measured.shape
    num_angles = gradients.shape[1]
    ops, columns = at_address(static[_OPS, 0], _INTEGERS), at_address(static[_COLUMNS, 0], _INTEGERS)
    constants = at_address(static[_CONSTANTS, 0], _NUMBERS)
    permutations, signs = at_address(static[_PERMUTATIONS, 0], _MASKS), at_address(static[_SIGNS, 0], states)
    dense_qubits, dense = at_address(static[_DENSE_QUBITS, 0], _INTEGERS), at_address(static[_DENSE, 0], _NUMBERS)
    num_ops, num_factors = static[_OPS, 1], static[_COLUMNS, 1]
    families, outcomes = _families(static), _array(static, _OUTCOMES, _SHORT)
    local_masks, block_masks = _array(static, _LOCAL_MASKS, _INTEGERS), _array(static, _BLOCK_MASKS, _INTEGERS)
    entries, of_outputs = _array(static, _ENTRIES, _INTEGERS), _array(static, _OUTPUTS, _INTEGERS)
    coefficients = _array(static, _COEFFICIENTS, _NUMBERS)
    bins = aligned(1, max(WIDTH, stride), states)[0]
    scratch = scratch_for(num_ops, num_factors, both, states)
    flat, flat_duals, work = pointer(states), pointer(duals), pointer(scratch)
    coefs, axes = pointer(scratch[4 * both :]), pointer(scratch[4 * both + num_ops * TILES :])
    sums = pointer(scratch[4 * both + num_ops * TILES + num_factors * AXES :])
    dual = carray(pointer(scratch[both:]), (planes, stride))
    seen_values = np.zeros(max(1, 3 * num_factors * WIDTH))
    seen = pointer(seen_values)
    lines = carray(pointer(gradients), (rows, 1, num_angles))
    differentiated = differentiated_in(num_ops, ops, columns, selected)
    stop = first_of(num_ops, differentiated)
    shared = _array(static, _SHARED, _INTEGERS)
    unseen = stop_slab > first_slab
    for slab in range(first_slab, stop_slab):
        row0 = slab * lanes
        for row in range(row0, min(row0 + lanes, rows)):
            if upstream[0] != 0:
                for output in range(num_outputs):
                    place = row * upstream[2] + output * upstream[3]
                    measured[row, output] = _read(upstream[0], upstream[1], place)
            for a in range(num_angles):
                gradients[row, a] = 0.0
        refresh(num_ops, ops, columns, constants, angles, row0, lanes, seen, num_factors, coefs, axes, shared, unseen)
        unseen = False
        copied(flat, slab * both, work, 0, both)
        if len(duals):
            copied(flat_duals, slab * both, work, both, both)
        else:
            effective_observable(
                families, outcomes, local_masks, block_masks, entries, of_outputs, coefficients,
                m, 0, lanes, states[slab], row0, measured, dual, bins,
            )  # fmt: skip
        taken_back(
            num_ops, stop, ops, columns, constants, permutations, signs, dense_qubits, dense, m, lanes,
            planes, work, 0, both, 2 * both, coefs, axes, sums, differentiated, selected, row0, lines, 0,
        )  # fmt: skip
    return seen_values[0] + scratch[0]  # which keeps them alive until here: numba does not see through pointers


@entry(f"int64[:,::1], int64, float64[:,::1], {_ADDRESS}, {_ADDRESS}, int64")
def hand_out(static, width, gradients, features, weights, num_weights):
    """The gradients by the features and the weights, from those by the angles, of shape (N, A).

    Args:
        static: From :func:`packed`.
        width: The number of features.
        gradients: Shape (N, A).
        features: Where the features' gradient is written, shape (N, width): address and type; address 0: it is not wanted.
        weights: Where the weights' is, likewise.
        num_weights: How many weights there are.
    """
    starts, sources = _array(static, _STARTS, _INTEGERS), _array(static, _SOURCES, _INTEGERS)
    slopes = _array(static, _SLOPES, _NUMBERS)
    rows, num_angles = gradients.shape
    if features[0] != 0:
        by_features = np.empty(width)
        for row in range(rows):
            by_features[:] = 0.0
            for a in range(num_angles):
                for t in range(starts[a], starts[a + 1]):
                    if sources[t] < width:
                        by_features[sources[t]] += slopes[t] * gradients[row, a]
            for column in range(width):
                _write(features[0], features[1], row * width + column, by_features[column])
    if weights[0] != 0:
        by_weights = np.zeros(num_weights)
        by_angles = np.zeros(num_angles)
        for row in range(rows):
            for a in range(num_angles):
                by_angles[a] += gradients[row, a]
        for a in range(num_angles):
            for t in range(starts[a], starts[a + 1]):
                if sources[t] >= width:
                    by_weights[sources[t] - width] += slopes[t] * by_angles[a]
        for w in range(num_weights):
            _write(weights[0], weights[1], w, by_weights[w])
