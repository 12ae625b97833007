r"""The inner loops of the simulator with noise: states in the Pauli basis, forward and in the adjoint sweep.

**States.** A state of n qubits is the real vector of the expectation values of its Pauli strings, up to :math:`4^n`
*entries*. Those that are zero whatever the angles are, or that nothing measured depends on, have no room in memory
(:mod:`qiskit_torch_bridge.simulator.density_plan`). Eight rows of the batch lie side by side, a *slab*: an entry is a vector
of eight numbers, and operations name the entries that they work on. One more entry, the last, is always zero. A map
writes a new state, in which other entries have room than before.

**Operations.** A *run* is all one-qubit rotations and channels that follow each other on a qubit, one matrix of 4 x 4 whose
first row is (1, 0, 0, 0). A *pairing* is the rotation by a Pauli string of several qubits, which mixes pairs of entries. A
*map* is everything without parameters between those: a sparse matrix, most often one number a row.

**Gradients.** With the dual state :math:`\lambda` (how the outputs depend on the entries behind an operation) and the state
:math:`x` before it, the derivatives by the angles of a run follow from the 12 sums of :math:`\lambda_i x_j` over its groups
of four entries, by the chain rule through the run's factors. States are not taken back, because channels have no inverse:
they are computed once more, and those before operations with angles are kept, all of them or a segment's between
checkpoints.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from .kernels import copied
from .machine_code import Use, entry, inner
from .vectors import WIDTH, at_address, get, load, pointer, put, splat, store

__all__ = ["BLOCKS_FORWARD", "backward", "blocks_backward", "forward", "room_of_coefficients"]

RUN, PAIRING, MAP = range(3)
# Fields of a row of the array of operations. INDEX: a run's groups of four entries, a pairing's pairs, a map's columns.
# BEFORE, AFTER: how many entries the state has, which only maps change.
# The last ones are of maps alone: where the rows' parts begin, and the same of the transposed matrix.
(
    KIND, FACTORS, FACTORS_END, INDEX, COUNT, BEFORE, AFTER,
    STARTS, WEIGHTS, INDEX_BACK, STARTS_BACK, WEIGHTS_BACK, NUM_FIELDS,
) = range(13)  # fmt: skip
# Of an array of factors: the column of the angles, or -1; a rotation's axis (1, 2, 3 for X, Y, Z), or where a constant is.
COLUMN, AXIS, FACTOR_FIELDS = range(3)
ONE_A_ROW = -1
"""In place of STARTS where a map has one number a row."""
BLOCKS_FORWARD = 2
TILE = 12 * WIDTH  # the matrix of a run without its first row

(
    _OPS, _FACTORS, _CONSTANTS, _INDICES, _NUMBERS, _FIRST, _LAST, _READS, _READ_FROM, _READ_BY, _BACK, _BACK_FROM, _BACK_BY,
) = range(13)  # fmt: skip
_INTEGERS, _ENTRIES = np.zeros(0, np.int64), np.zeros(0, np.uint32)
_SLABS = "int64[:,::1], int64, float64[:,::1]"


@inner
def _field(ops, k, name):
    return get(ops, k * NUM_FIELDS + name)


@inner
def _entry(indices, place):
    """Where the vector of an entry begins."""
    return np.int64(get(indices, place)) * WIDTH


# Coefficients


@inner
def _sines(angles, row0, seen, cosines, sines, changed, unseen):
    """Brings cosines and sines up to date for the rows from ``row0`` on, and says which columns have changed."""
    last, columns = angles.shape[0] - 1, angles.shape[1]
    for column in range(columns):
        changed[column] = unseen
        for lane in range(WIDTH):
            angle = angles[min(row0 + lane, last), column]
            at = column * WIDTH + lane
            if not unseen and angle == seen[at]:
                continue
            seen[at] = angle
            changed[column] = True
            if lane > 0 and angle == seen[at - 1]:
                cosines[at], sines[at] = cosines[at - 1], sines[at - 1]
            else:
                cosines[at], sines[at] = np.cos(angle), np.sin(angle)


@inner
def _turned(before, after, axis, cosine, sine, products):
    """The product of a rotation and the matrix at ``products[before]``."""
    u, v = axis % 3, (axis + 1) % 3
    w = 3 - u - v
    for j in range(0, 4 * WIDTH, WIDTH):
        p, q = load(products, before + u * 4 * WIDTH + j), load(products, before + v * 4 * WIDTH + j)
        store(products, after + u * 4 * WIDTH + j, cosine * p - sine * q)
        store(products, after + v * 4 * WIDTH + j, sine * p + cosine * q)
        store(products, after + w * 4 * WIDTH + j, load(products, before + w * 4 * WIDTH + j))


@inner
def _followed(before, after, constants, at, products):
    """The product of a constant and the matrix at ``products[before]``."""
    for i in range(3):
        a = splat(get(constants, at + 4 * i + 1))
        b = splat(get(constants, at + 4 * i + 2))
        c = splat(get(constants, at + 4 * i + 3))
        for j in range(0, 4 * WIDTH, WIDTH):
            total = a * load(products, before + j)
            total = total + b * load(products, before + 4 * WIDTH + j)
            total = total + c * load(products, before + 8 * WIDTH + j)
            if j == 0:
                total = total + splat(get(constants, at + 4 * i))
            store(products, after + i * 4 * WIDTH + j, total)


@inner
def _refresh(ops, num_ops, factors, constants, cosines, sines, changed, unseen, products):
    """Brings the runs' products up to date: that of all factors up to f is the tile f + 1; tile 0 is the identity."""
    for k in range(num_ops):
        if _field(ops, k, KIND) != RUN:
            continue
        first, stop = _field(ops, k, FACTORS), _field(ops, k, FACTORS_END)
        stale = unseen
        for f in range(first, stop):
            column = get(factors, f * FACTOR_FIELDS + COLUMN)
            stale = stale or (column >= 0 and changed[column])
            if not stale:
                continue
            before, after = (0 if f == first else f * TILE), (f + 1) * TILE
            axis = get(factors, f * FACTOR_FIELDS + AXIS)
            if column >= 0:
                c, s = load(cosines, column * WIDTH), load(sines, column * WIDTH)
                _turned(before, after, axis, c, s, products)
            else:
                _followed(before, after, constants, axis, products)


# Operations


@inner
def _run(work, x, indices, at, count, m, tile):
    m10, m11, m12, m13 = load(m, tile), load(m, tile + 8), load(m, tile + 16), load(m, tile + 24)
    m20, m21, m22, m23 = load(m, tile + 32), load(m, tile + 40), load(m, tile + 48), load(m, tile + 56)
    m30, m31, m32, m33 = load(m, tile + 64), load(m, tile + 72), load(m, tile + 80), load(m, tile + 88)
    for place in range(at, at + 4 * count, 4):
        i1, i2, i3 = x + _entry(indices, place + 1), x + _entry(indices, place + 2), x + _entry(indices, place + 3)
        x0, x1, x2, x3 = load(work, x + _entry(indices, place)), load(work, i1), load(work, i2), load(work, i3)
        store(work, i1, m10 * x0 + m11 * x1 + m12 * x2 + m13 * x3)
        store(work, i2, m20 * x0 + m21 * x1 + m22 * x2 + m23 * x3)
        store(work, i3, m30 * x0 + m31 * x1 + m32 * x2 + m33 * x3)


@inner
def _keep(work, g, entry_at, end, value):
    """Writes an entry of the dual, unless it is the one that stands for entries without room."""
    if entry_at != end:
        store(work, g + entry_at, value)


@inner
def _run_back(work, g, indices, at, count, m, tile, end):
    m10, m11, m12, m13 = load(m, tile), load(m, tile + 8), load(m, tile + 16), load(m, tile + 24)
    m20, m21, m22, m23 = load(m, tile + 32), load(m, tile + 40), load(m, tile + 48), load(m, tile + 56)
    m30, m31, m32, m33 = load(m, tile + 64), load(m, tile + 72), load(m, tile + 80), load(m, tile + 88)
    for place in range(at, at + 4 * count, 4):
        i0, i1 = _entry(indices, place), _entry(indices, place + 1)
        i2, i3 = _entry(indices, place + 2), _entry(indices, place + 3)
        g1, g2, g3 = load(work, g + i1), load(work, g + i2), load(work, g + i3)
        _keep(work, g, i0, end, load(work, g + i0) + m10 * g1 + m20 * g2 + m30 * g3)
        _keep(work, g, i1, end, m11 * g1 + m21 * g2 + m31 * g3)
        _keep(work, g, i2, end, m12 * g1 + m22 * g2 + m32 * g3)
        _keep(work, g, i3, end, m13 * g1 + m23 * g2 + m33 * g3)


@inner
def _sums_of_run(work, x, g, indices, at, count, products, sums):
    """The 12 sums of the dual times the state, row by row as the run's matrix."""
    zero = load(products, 0)  # of the identity
    s10, s11, s12, s13, s20, s21 = zero, zero, zero, zero, zero, zero
    s22, s23, s30, s31, s32, s33 = zero, zero, zero, zero, zero, zero
    for place in range(at, at + 4 * count, 4):
        i0, i1 = _entry(indices, place), _entry(indices, place + 1)
        i2, i3 = _entry(indices, place + 2), _entry(indices, place + 3)
        x0, x1, x2, x3 = load(work, x + i0), load(work, x + i1), load(work, x + i2), load(work, x + i3)
        g1, g2, g3 = load(work, g + i1), load(work, g + i2), load(work, g + i3)
        s10, s11, s12, s13 = s10 + g1 * x0, s11 + g1 * x1, s12 + g1 * x2, s13 + g1 * x3
        s20, s21, s22, s23 = s20 + g2 * x0, s21 + g2 * x1, s22 + g2 * x2, s23 + g2 * x3
        s30, s31, s32, s33 = s30 + g3 * x0, s31 + g3 * x1, s32 + g3 * x2, s33 + g3 * x3
    store(sums, 0, s10), store(sums, 8, s11), store(sums, 16, s12), store(sums, 24, s13)
    store(sums, 32, s20), store(sums, 40, s21), store(sums, 48, s22), store(sums, 56, s23)
    store(sums, 64, s30), store(sums, 72, s31), store(sums, 80, s32), store(sums, 88, s33)


@inner
def _pairing(work, x, indices, at, count, cosine, sine):
    for place in range(at, at + 2 * count, 2):
        u, v = x + _entry(indices, place), x + _entry(indices, place + 1)
        p, q = load(work, u), load(work, v)
        store(work, u, cosine * p - sine * q)
        store(work, v, sine * p + cosine * q)


@inner
def _zero(work, at):
    for i in range(at, at + WIDTH):
        put(work, i, 0.0)


@inner
def _map(work, source, zero, target, indices, at, numbers, weights, starts, count):
    """Writes the map of the entries at ``source``, the last of which is ``zero``, to ``target``, with a zero behind them."""
    if starts == ONE_A_ROW:
        for row in range(count):
            weight = splat(get(numbers, weights + row))
            store(work, target + row * WIDTH, weight * load(work, source + _entry(indices, at + row)))
        _zero(work, target + count * WIDTH)
        return
    for row in range(count):
        total = load(work, source + zero * WIDTH)
        for place in range(np.int64(get(indices, starts + row)), np.int64(get(indices, starts + row + 1))):
            total = total + splat(get(numbers, weights + place)) * load(work, source + _entry(indices, at + place))
        store(work, target + row * WIDTH, total)
    _zero(work, target + count * WIDTH)


@inner
def _applied(k, ops, factors, indices, numbers, products, cosines, sines, work, x, other):
    """Applies an operation to the state at ``work[x]``; whether the result is at ``work[other]``."""
    kind, at, count = _field(ops, k, KIND), _field(ops, k, INDEX), _field(ops, k, COUNT)
    if kind == RUN:
        _run(work, x, indices, at, count, products, _field(ops, k, FACTORS_END) * TILE)
    elif kind == PAIRING:
        column = get(factors, _field(ops, k, FACTORS) * FACTOR_FIELDS + COLUMN)
        _pairing(work, x, indices, at, count, load(cosines, column * WIDTH), load(sines, column * WIDTH))
    else:
        weights, starts, zero = _field(ops, k, WEIGHTS), _field(ops, k, STARTS), _field(ops, k, BEFORE)
        _map(work, x, zero, other, indices, at, numbers, weights, starts, count)
        return True
    return False


@inner
def _begun(work, x, size, first, num_first):
    for i in range(x, x + size):
        put(work, i, 0.0)
    for number in range(num_first):
        at = x + np.int64(get(first, number)) * WIDTH
        for i in range(at, at + WIDTH):
            put(work, i, 1.0)


@inner
def _numbers(static, number, like):
    return at_address(static[number, 0], like)


def room_of_coefficients(num_factors: int, num_columns: int) -> int:
    """How many numbers the products of runs, the sums, and the angles' cosines and sines take."""
    return (num_factors + 3) * TILE + 2 * num_columns * WIDTH


@inner
def _coefficients(scratch, start, num_factors, columns):
    """Where products and sums are in the scratch memory from a place on; and cosines and sines, as arrays."""
    products, sums = pointer(scratch[start:]), pointer(scratch[start + (num_factors + 1) * TILE :])
    for i in range(TILE):
        put(products, i, 0.0)
    for row in range(3):
        for lane in range(WIDTH):
            put(products, (row * 5 + 1) * WIDTH + lane, 1.0)
    trig = scratch[start + (num_factors + 3) * TILE :]
    return products, sums, trig[: columns * WIDTH], trig[columns * WIDTH : 2 * columns * WIDTH]


@inner
def _are_aligned(state_of, row0):
    """Whether the states that eight rows begin with lie side by side already."""
    first = state_of[row0]
    aligned = first % WIDTH == 0
    for lane in range(min(WIDTH, len(state_of) - row0)):
        aligned = aligned and state_of[row0 + lane] == first + lane
    return aligned


@inner
def _place_of(state_of, row, num_first):
    """Where a state's first number is among states that lie side by side."""
    state = state_of[min(row, len(state_of) - 1)]
    return state // WIDTH * num_first * WIDTH + state % WIDTH


@inner
def _continued(states, state_of, row0, first, num_first, work, x):
    """Puts the eight states that rows begin with side by side."""
    if _are_aligned(state_of, row0):
        at = state_of[row0] * num_first
        for number in range(num_first):
            store(work, x + _entry(first, number), load(states, at + number * WIDTH))
        return
    a, b = _place_of(state_of, row0, num_first), _place_of(state_of, row0 + 1, num_first)
    c, d = _place_of(state_of, row0 + 2, num_first), _place_of(state_of, row0 + 3, num_first)
    e, f = _place_of(state_of, row0 + 4, num_first), _place_of(state_of, row0 + 5, num_first)
    g, h = _place_of(state_of, row0 + 6, num_first), _place_of(state_of, row0 + 7, num_first)
    for number in range(num_first):
        at, i = x + _entry(first, number), number * WIDTH
        put(work, at, get(states, a + i)), put(work, at + 1, get(states, b + i))
        put(work, at + 2, get(states, c + i)), put(work, at + 3, get(states, d + i))
        put(work, at + 4, get(states, e + i)), put(work, at + 5, get(states, f + i))
        put(work, at + 6, get(states, g + i)), put(work, at + 7, get(states, h + i))


@entry(f"{_SLABS}, real[:,::1], int64[::1], real[:,::1], float64[:,::1], real[::1], int64, int64", use=Use.NOISY)
def forward(static, size, angles, begin, begin_of, end, reads, scratch, first_slab, stop_slab):
    """Takes slabs through operations, and reads them.

    Args:
        static: The part's arrays: addresses and lengths.
        size: The number of entries of the largest state, without the zero.
        angles: Shape (N, R): the rotations' angles; radians.
        begin: Shape (slabs, 8 * B): states that rows begin with, side by side; empty for all qubits in 0.
        begin_of: Shape (N,): which of them each row begins with.
        end: Shape (slabs, 8 * E), to be filled with the rows' states, likewise; empty: no state is handed on.
        reads: Shape (N, K), to be filled: what is read; K may be 0.
        scratch: Room for :data:`BLOCKS_FORWARD` states and :func:`room_of_coefficients`; begins where a cache line does.
        first_slab: The number of the first slab.
        stop_slab: That after the last.
    """
    like = begin
    ops, factors = _numbers(static, _OPS, _INTEGERS), _numbers(static, _FACTORS, _INTEGERS)
    constants, numbers = _numbers(static, _CONSTANTS, like), _numbers(static, _NUMBERS, like)
    indices, beginning = _numbers(static, _INDICES, _ENTRIES), _numbers(static, _FIRST, _ENTRIES)
    read, read_from = _numbers(static, _READS, _INTEGERS), _numbers(static, _READ_FROM, _ENTRIES)
    read_by, ending = _numbers(static, _READ_BY, like), _numbers(static, _LAST, _ENTRIES)
    num_ops, num_factors, columns = static[_OPS, 1], static[_FACTORS, 1], angles.shape[1]
    block = (size + 1) * WIDTH
    work, (products, sums, cosine, sine) = pointer(scratch), _coefficients(scratch, 2 * block, num_factors, columns)
    cosines, sines = pointer(cosine), pointer(sine)
    seen, changed = np.empty(columns * WIDTH), np.empty(columns, np.bool_)
    unseen = stop_slab > first_slab
    for slab in range(first_slab, stop_slab):
        row0 = slab * WIDTH
        _sines(angles, row0, seen, cosine, sine, changed, unseen)
        _refresh(ops, num_ops, factors, constants, cosines, sines, changed, unseen, products)
        unseen = False
        x, other = np.int64(0), block
        _begun(
            work, x, (_field(ops, np.int64(0), BEFORE) + 1) * WIDTH if num_ops else block, beginning, static[_FIRST, 1]
        )
        if len(begin):
            _continued(pointer(begin), begin_of, row0, beginning, static[_FIRST, 1], work, x)
        for k in range(num_ops):
            if _applied(k, ops, factors, indices, numbers, products, cosines, sines, work, x, other):
                x, other = other, x
        for number in range(reads.shape[1]):
            total = load(products, 0)  # zero, of the identity
            for place in range(get(read, number), get(read, number + 1)):
                total = total + splat(get(read_by, place)) * load(work, x + _entry(read_from, place))
            store(sums, 0, total)
            for lane in range(min(WIDTH, len(angles) - row0)):
                reads[row0 + lane, number] = get(sums, lane)
        if len(end):
            states = pointer(end[slab])
            for number in range(static[_LAST, 1]):
                store(states, number * WIDTH, load(work, x + _entry(ending, number)))
    return scratch[0] + seen[:1].sum()  # which keeps them alive until here: numba does not see through pointers


# The adjoint sweep


@inner
def _add(gradients, row0, column, sums, at):
    for lane in range(min(WIDTH, gradients.shape[0] - row0)):
        gradients[row0 + lane, column] += get(sums, at + lane)


@inner
def _gradients_of_run(k, ops, factors, constants, cosines, sines, products, selected, sums, row0, gradients):
    """Takes the sums back through the run's factors, and adds the derivatives by its selected angles."""
    first = _field(ops, k, FACTORS)
    for f in range(_field(ops, k, FACTORS_END) - 1, first - 1, -1):
        column, axis = get(factors, f * FACTOR_FIELDS + COLUMN), get(factors, f * FACTOR_FIELDS + AXIS)
        if column >= 0:
            before = 0 if f == first else f * TILE
            u, v = (axis % 3) * 4 * WIDTH, ((axis + 1) % 3) * 4 * WIDTH
            cosine, sine = load(cosines, column * WIDTH), load(sines, column * WIDTH)
            total = cosine - cosine
            for j in range(0, 4 * WIDTH, WIDTH):
                p, q = load(sums, u + j), load(sums, v + j)
                p, q = cosine * p + sine * q, cosine * q - sine * p
                store(sums, u + j, p)
                store(sums, v + j, q)
                total = total + q * load(products, before + u + j) - p * load(products, before + v + j)
            if selected[column]:
                store(sums, TILE, total)
                _add(gradients, row0, column, sums, TILE)
        else:
            for j in range(0, 4 * WIDTH, WIDTH):
                a, b, c = load(sums, j), load(sums, 4 * WIDTH + j), load(sums, 8 * WIDTH + j)
                for i in range(3):
                    by_a, by_b = splat(get(constants, axis + 1 + i)), splat(get(constants, axis + 5 + i))
                    by_c = splat(get(constants, axis + 9 + i))
                    store(sums, i * 4 * WIDTH + j, by_a * a + by_b * b + by_c * c)


@inner
def _gradient_of_pairing(work, x, g, indices, at, count, cosine, sine, sums):
    """Undoes the pairing on the dual, and leaves the derivative by its angle in ``sums``."""
    total = cosine - cosine
    for place in range(at, at + 2 * count, 2):
        u, v = _entry(indices, place), _entry(indices, place + 1)
        p, q = load(work, g + u), load(work, g + v)
        p, q = cosine * p + sine * q, cosine * q - sine * p
        store(work, g + u, p)
        store(work, g + v, q)
        total = total + q * load(work, x + u) - p * load(work, x + v)
    store(sums, 0, total)


@inner
def _taken_back(
    k, ops, factors, constants, indices, numbers, products, cosines, sines, is_wanted, selected,
    work, x, g, other, sums, row0, gradients,
):  # fmt: skip
    """Takes the dual back through an operation, with the state ``x`` before it; whether the result is at ``other``."""
    kind, at, count = _field(ops, k, KIND), _field(ops, k, INDEX), _field(ops, k, COUNT)
    if kind == RUN:
        if is_wanted:
            _sums_of_run(work, x, g, indices, at, count, products, sums)
            _gradients_of_run(k, ops, factors, constants, cosines, sines, products, selected, sums, row0, gradients)
        tile, end = _field(ops, k, FACTORS_END) * TILE, _field(ops, k, AFTER) * WIDTH
        _run_back(work, g, indices, at, count, products, tile, end)
    elif kind == PAIRING:
        column = get(factors, _field(ops, k, FACTORS) * FACTOR_FIELDS + COLUMN)
        cosine, sine = load(cosines, column * WIDTH), load(sines, column * WIDTH)
        if is_wanted:
            _gradient_of_pairing(work, x, g, indices, at, count, cosine, sine, sums)
            _add(gradients, row0, column, sums, 0)
        else:
            _pairing(work, g, indices, at, count, cosine, (sine - sine) - sine)
    else:
        starts, weights, size = _field(ops, k, STARTS_BACK), _field(ops, k, WEIGHTS_BACK), _field(ops, k, BEFORE)
        at = _field(ops, k, INDEX_BACK)
        _map(work, g, _field(ops, k, AFTER), other, indices, at, numbers, weights, starts, size)
        return True
    return False


def blocks_backward(has_selected: np.ndarray, segment: int) -> int:
    """How many states :func:`backward` has in memory: four to work with, the checkpoints, and those kept in a segment."""
    in_segments = [int(has_selected[start : start + segment].sum()) for start in range(0, len(has_selected), segment)]
    return 4 + max(1, len(in_segments)) + max(in_segments, default=0)


@entry(
    f"{_SLABS}, float64[:,::1], boolean[::1], boolean[::1], int64, float64[:,::1], real[::1], int64, int64",
    use=Use.NOISY,
)
def backward(
    static, size, angles, upstream, selected, has_selected, segment, gradients, scratch, first_slab, stop_slab
):
    """The gradient by the selected angles, of slabs.

    Args:
        static: This and what is not named here: as in :func:`forward`.
        upstream: Shape (N, K): the gradient by what is read.
        selected: Shape (R,), bool: by which angles.
        has_selected: Shape (operations,), bool: which operations have one of them.
        segment: How many operations lie between two checkpoints.
        gradients: Shape (N, R), zero, to be filled.
        scratch: As in :func:`forward`, with room for :func:`blocks_backward` states.
    """
    like = scratch
    ops, factors = _numbers(static, _OPS, _INTEGERS), _numbers(static, _FACTORS, _INTEGERS)
    constants, numbers = _numbers(static, _CONSTANTS, like), _numbers(static, _NUMBERS, like)
    indices, beginning = _numbers(static, _INDICES, _ENTRIES), _numbers(static, _FIRST, _ENTRIES)
    back, back_from = (
        carray(_numbers(static, _BACK, _INTEGERS), static[_BACK, 1]),
        _numbers(static, _BACK_FROM, _ENTRIES),
    )
    back_by = _numbers(static, _BACK_BY, like)
    num_ops, num_factors, columns = static[_OPS, 1], static[_FACTORS, 1], angles.shape[1]
    block = (size + 1) * WIDTH
    segments = max(1, -(-num_ops // segment))
    stop = 0
    while stop < num_ops and not has_selected[stop]:
        stop += 1
    start = (len(scratch) - ((num_factors + 3) * TILE + 2 * columns * WIDTH)) // WIDTH * WIDTH
    work, (products, sums, cosine, sine) = pointer(scratch), _coefficients(scratch, start, num_factors, columns)
    cosines, sines = pointer(cosine), pointer(sine)
    seen, changed = np.empty(columns * WIDTH), np.empty(columns, np.bool_)
    unseen = stop_slab > first_slab
    for slab in range(first_slab, stop_slab):
        row0 = slab * WIDTH
        _sines(angles, row0, seen, cosine, sine, changed, unseen)
        _refresh(ops, num_ops, factors, constants, cosines, sines, changed, unseen, products)
        unseen = False
        # The first four blocks are the state and the dual, each with room to move; then checkpoints, then kept states.
        _begun(work, 0, 4 * block, beginning, static[_FIRST, 1])
        g, spare = 2 * block, 3 * block
        _dual(work, g, back, back_from, back_by, upstream, row0, sums)
        x, other = np.int64(0), block
        for number in range(segments):
            copied(work, x, work, (4 + number) * block, block)
            if number < segments - 1:
                for k in range(number * segment, (number + 1) * segment):
                    if _applied(k, ops, factors, indices, numbers, products, cosines, sines, work, x, other):
                        x, other = other, x
        for number in range(segments - 1, -1, -1):
            first, last = number * segment, min((number + 1) * segment, num_ops)
            if last <= stop:
                break
            copied(work, (4 + number) * block, work, x, block)
            kept = (4 + segments) * block
            for k in range(first, last):
                if has_selected[k]:
                    copied(work, x, work, kept, block)
                    kept += block
                if _applied(k, ops, factors, indices, numbers, products, cosines, sines, work, x, other):
                    x, other = other, x
            for k in range(last - 1, max(first, stop) - 1, -1):
                if has_selected[k]:
                    kept -= block
                if _taken_back(
                    k, ops, factors, constants, indices, numbers, products, cosines, sines, has_selected[k], selected,
                    work, kept, g, spare, sums, row0, gradients,
                ):  # fmt: skip
                    g, spare = spare, g
    return scratch[0] + seen[:1].sum()  # which keeps them alive until here: numba does not see through pointers


@inner
def _dual(work, g, back, back_from, back_by, upstream, row0, sums):
    """Adds the upstream gradient to the dual of the entries that are read; those are the first numbers of ``back_from``."""
    last = len(upstream) - 1
    num_entries = len(back) - 1
    for number in range(num_entries):
        for lane in range(WIDTH):
            row, total = min(row0 + lane, last), 0.0
            for place in range(back[number], back[number + 1]):
                total += get(back_by, place) * upstream[row, np.int64(get(back_from, num_entries + place))]
            put(work, g + _entry(back_from, number) + lane, total)
