r"""The simulator's inner loops, compiled by numba: gates on a block of amplitudes, forward and in the adjoint sweep.

**A block.** All work happens on blocks of :math:`2^m` amplitudes, small enough for the processor's cache; of one batch
row, or of eight rows side by side (``lanes``; together a *slab*). Amplitude ``b`` of lane ``l`` is element
``b * lanes + l``; real and imaginary parts are planes of their own, and circuits whose amplitudes are all real have one
plane. A gate on qubit q pairs elements whose indices differ by ``stride = lanes << q``: elements of two vectors of eight
where the stride is 8 or more, and elements of one vector below. So a gate is a few vector instructions, whatever qubit it
acts on.

**Operations.** A run of one-qubit gates is one rotation of the Bloch sphere, a unit quaternion ``(w, x, y, z)`` for
:math:`w - i (x X + y Y + z Z)`; global phases are dropped, because no expectation value sees them. Its matrix is
:math:`\begin{pmatrix} a & -b^* \\ b & a^* \end{pmatrix}` with :math:`a = w - iz`, :math:`b = y - ix`. The other
operations are diagonal matrices on two qubits, signed permutations of the amplitudes (any run of CNOT, CZ, SWAP,
Toffoli ... gates), and dense matrices.

**Gradients.** With :math:`f = \langle\psi|O|\psi\rangle` and :math:`\lambda = O\psi`, both taken back to the place
behind a run of one-qubit gates, the derivative by a rotation angle in it is :math:`\mathrm{Im}\langle\lambda|\,
\vec n\cdot\vec\sigma\,|\psi\rangle`, where :math:`\vec n` is the rotation's axis turned by the later gates of the run.
So three sums over the amplitudes serve all angles of the run (after Jones and Gacon, arXiv:2009.02823).

Coefficients are computed when an angle differs from the one before, so that weights, which all rows share, cost their
sines once a thread.
"""

from __future__ import annotations

import numpy as np

from .machine_code import Use, entry, inner
from .vectors import WIDTH, get, load, pointer, put, splat, store, swapped

__all__ = [
    "AXES",
    "TILES",
    "aligned",
    "applied",
    "begun",
    "copied",
    "differentiated_in",
    "first_change",
    "first_of",
    "forward",
    "refresh",
    "scratch_for",
    "sweep",
    "taken_back",
]

# Kinds of operations, and the fields of a row of the array of operations.
REAL, COMPLEX, DIAGONAL, MONOMIAL, DENSE = range(5)
KIND, FIRST, SECOND, FACTORS, FACTORS_END, OFFSET, FLAGS, WIDTH_OF_DENSE, NUM_FIELDS = range(9)
ODD = 1  # a real one-qubit run that is -i times a real matrix
HAS_PERMUTATION, HAS_SIGNS = 1, 2

TILES = 8 * WIDTH  # coefficients of one operation: eight vectors
AXES = 3 * WIDTH
_PASS = (  # a pass's arrays, and its block
    "int64[:,::1], int64[::1], float64[:,::1], uint32[::1], real[::1], int64[::1], float64[::1], "
    "int64[::1], int64[::1], int64, boolean"
)


@inner
def aligned(rows, size, like):
    """An array of shape (rows, size) that starts where a cache line does, of the type of ``like``."""
    line = 64 // like.itemsize
    raw = np.empty(rows * size + line, like.dtype)
    skip = (line - (raw.ctypes.data // like.itemsize) % line) % line
    return raw[skip : skip + rows * size].reshape(rows, size)


@inner
def field(ops, k, name):
    return get(ops, k * NUM_FIELDS + name)


# Coefficients


@inner
def _turned(w, x, y, z, ax, ay, az):
    """The vector a turned by the quaternion."""
    tx, ty, tz = 2 * (y * az - z * ay), 2 * (z * ax - x * az), 2 * (x * ay - y * ax)
    return ax + w * tx + y * tz - z * ty, ay + w * ty + z * tx - x * tz, az + w * tz + x * ty - y * tx


@inner
def _one_qubit(k, ops, columns, constants, seen, num_factors, lane, lanes, fill, coefs, axes):
    """Coefficients of a run of one-qubit gates for a lane (``fill``: for all of them), and the axes of its angles."""
    step = 1 if fill else lanes
    start = 0 if fill else lane
    w, x, y, z = 1.0, 0.0, 0.0, 0.0
    for f in range(field(ops, k, FACTORS_END) - 1, field(ops, k, FACTORS) - 1, -1):
        fw, fx = get(constants, 4 * f), get(constants, 4 * f + 1)
        fy, fz = get(constants, 4 * f + 2), get(constants, 4 * f + 3)
        if get(columns, f) >= 0:
            nx, ny, nz = _turned(w, x, y, z, fx, fy, fz)
            for e in range(start, WIDTH, step):
                put(axes, f * AXES + e, nx)
                put(axes, f * AXES + WIDTH + e, ny)
                put(axes, f * AXES + 2 * WIDTH + e, nz)
            sine = get(seen, (2 * num_factors + f) * WIDTH + lane)
            fw, fx, fy, fz = get(seen, (num_factors + f) * WIDTH + lane), sine * fx, sine * fy, sine * fz
        w, x, y, z = (
            w * fw - x * fx - y * fy - z * fz,
            w * fx + x * fw + y * fz - z * fy,
            w * fy - x * fz + y * fw + z * fx,
            w * fz + x * fy - y * fx + z * fw,
        )
    stride = lanes << field(ops, k, FIRST)
    inside = stride < WIDTH
    base = k * TILES
    for e in range(start, WIDTH, step):
        upper = inside and (e & stride) != 0
        if field(ops, k, KIND) == COMPLEX:
            put(coefs, base + e, w)
            put(coefs, base + WIDTH + e, z if upper else -z)
            put(coefs, base + 2 * WIDTH + e, -y if inside and not upper else y)
            put(coefs, base + 3 * WIDTH + e, -x)
        else:
            m00, m01, m10, m11 = (z, x, x, -z) if field(ops, k, FLAGS) == ODD else (w, -y, y, w)
            put(coefs, base + e, m11 if upper else m00)
            put(coefs, base + WIDTH + e, m10 if upper else m01)
            put(coefs, base + 2 * WIDTH + e, m10)
            put(coefs, base + 3 * WIDTH + e, m11)


@inner
def _two_qubit_phases(k, ops, columns, constants, angles, num_columns, row, lane, lanes, fill, coefs):
    step = 1 if fill else lanes
    start = 0 if fill else lane
    phases = np.zeros(4)
    for f in range(field(ops, k, FACTORS), field(ops, k, FACTORS_END)):
        angle = get(angles, row * num_columns + get(columns, f)) if get(columns, f) >= 0 else 1.0
        for corner in range(4):
            phases[corner] += angle * get(constants, 4 * f + corner)
    cosines, sines = np.cos(phases), np.sin(phases)
    first, second = lanes << field(ops, k, FIRST), lanes << field(ops, k, SECOND)
    for outer in range(4):
        for e in range(start, WIDTH, step):
            corner = _corner(outer, e, first, second)
            put(coefs, k * TILES + outer * 2 * WIDTH + e, cosines[corner])
            put(coefs, k * TILES + (outer * 2 + 1) * WIDTH + e, sines[corner])


@inner
def _corner(outer, e, first, second):
    """Which of the four entries applies: by the vector (``outer``), or by the element where a stride is below 8."""
    low = (outer & 1) if first >= WIDTH else (1 if e & first else 0)
    high = (outer >> 1) if second >= WIDTH else (1 if e & second else 0)
    return low + 2 * high


@inner
def refresh(num_ops, ops, columns, constants, angles, row0, lanes, seen, num_factors, coefs, axes, shared, everything):
    """Brings the coefficients up to date for the rows from ``row0`` on.

    Args:
        seen: Three numbers a factor and lane: the angle that the coefficients are of, and cosine and sine of its half.
        shared: For each column whether all rows have the same angle there; empty where nothing is known.
        everything: Whether nothing has been seen yet.
    """
    last, num_columns = angles.shape[0] - 1, angles.shape[1]
    values = pointer(angles)
    cosines, sines = num_factors * WIDTH, 2 * num_factors * WIDTH
    for k in range(num_ops):
        if field(ops, k, KIND) > DIAGONAL:
            continue
        changed, same = everything, lanes > 0
        for f in range(field(ops, k, FACTORS), field(ops, k, FACTORS_END)):
            column = get(columns, f)
            if column < 0 or (not everything and len(shared) > 0 and shared[column]):
                continue
            at = f * WIDTH
            for lane in range(lanes):
                angle = get(values, min(row0 + lane, last) * num_columns + column)
                if everything or angle != get(seen, at + lane):
                    put(seen, at + lane, angle)
                    changed = True
                    if lane > 0 and angle == get(seen, at):
                        put(seen, cosines + at + lane, get(seen, cosines + at))
                        put(seen, sines + at + lane, get(seen, sines + at))
                    elif field(ops, k, KIND) != DIAGONAL:
                        put(seen, cosines + at + lane, np.cos(0.5 * angle))
                        put(seen, sines + at + lane, np.sin(0.5 * angle))
                same = same and angle == get(seen, at)
        if not changed:
            continue
        for lane in range(1 if same else lanes):
            row = min(row0 + lane, last)
            if field(ops, k, KIND) == DIAGONAL:
                _two_qubit_phases(k, ops, columns, constants, values, num_columns, row, lane, lanes, same, coefs)
            else:
                _one_qubit(k, ops, columns, constants, seen, num_factors, lane, lanes, same, coefs, axes)


@inner
def first_change(num_ops, ops, columns, angles, row0, next0, lanes):
    """The first operation whose angles differ between the rows from ``row0`` and those from ``next0`` on."""
    last = angles.shape[0] - 1
    for k in range(num_ops):
        if field(ops, k, KIND) > DIAGONAL:
            continue
        for f in range(field(ops, k, FACTORS), field(ops, k, FACTORS_END)):
            column = get(columns, f)
            if column >= 0:
                for lane in range(lanes):
                    if angles[min(row0 + lane, last), column] != angles[min(next0 + lane, last), column]:
                        return k
    return num_ops


# Gates on one block.


@inner
def _apply_real(work, x, size, stride, coefs, base, inverse):
    if stride >= WIDTH:
        m00, m11 = load(coefs, base), load(coefs, base + 3 * WIDTH)
        m01 = load(coefs, base + (2 * WIDTH if inverse else WIDTH))
        m10 = load(coefs, base + (WIDTH if inverse else 2 * WIDTH))
        for start in range(0, size, 2 * stride):
            for i in range(start, start + stride, WIDTH):
                x0, x1 = load(work, x + i), load(work, x + i + stride)
                store(work, x + i, m00 * x0 + m01 * x1)
                store(work, x + i + stride, m10 * x0 + m11 * x1)
    else:
        same, other = load(coefs, base), load(coefs, base + WIDTH)
        if inverse:
            other = swapped(other, stride)
        for i in range(0, size, WIDTH):
            x0 = load(work, x + i)
            store(work, x + i, same * x0 + other * swapped(x0, stride))


@inner
def _apply_complex(work, re, im, size, stride, coefs, base, inverse):
    ar, ai = load(coefs, base), load(coefs, base + WIDTH)
    br, bi = load(coefs, base + 2 * WIDTH), load(coefs, base + 3 * WIDTH)
    if inverse:
        zero = ar - ar
        ai, br, bi = zero - ai, zero - br, zero - bi
    if stride >= WIDTH:
        for start in range(0, size, 2 * stride):
            for i in range(start, start + stride, WIDTH):
                j = i + stride
                x0r, x0i, x1r, x1i = load(work, re + i), load(work, im + i), load(work, re + j), load(work, im + j)
                store(work, re + i, ar * x0r - ai * x0i - br * x1r - bi * x1i)
                store(work, im + i, ar * x0i + ai * x0r - br * x1i + bi * x1r)
                store(work, re + j, ar * x1r + ai * x1i + br * x0r - bi * x0i)
                store(work, im + j, ar * x1i - ai * x1r + br * x0i + bi * x0r)
    else:
        for i in range(0, size, WIDTH):
            xr, xi = load(work, re + i), load(work, im + i)
            yr, yi = swapped(xr, stride), swapped(xi, stride)
            store(work, re + i, ar * xr - ai * xi + br * yr - bi * yi)
            store(work, im + i, ar * xi + ai * xr + br * yi + bi * yr)


@inner
def _apply_diagonal(work, re, im, size, first, second, coefs, base, inverse):
    for i in range(0, size, WIDTH):
        outer = (1 if i & first else 0) + (2 if i & second else 0)
        c = load(coefs, base + outer * 2 * WIDTH)
        d = load(coefs, base + (outer * 2 + 1) * WIDTH)
        if inverse:
            d = (d - d) - d
        xr, xi = load(work, re + i), load(work, im + i)
        store(work, re + i, c * xr - d * xi)
        store(work, im + i, c * xi + d * xr)


@inner
def _apply_signs(work, x, amplitudes, lanes, signs, at):
    if lanes == WIDTH:
        for b in range(amplitudes):
            store(work, x + b * WIDTH, splat(get(signs, at + b)) * load(work, x + b * WIDTH))
    else:
        for b in range(0, amplitudes, WIDTH):
            store(work, x + b, load(signs, at + b) * load(work, x + b))


@inner
def _permuted(work, source, target, amplitudes, lanes, permutation, signs, at, inverse):
    """``target[b] = signs[b] * source[permutation[b]]``, or the inverse of that."""
    if lanes == WIDTH:
        for b in range(amplitudes):
            here, there = b * WIDTH, np.int64(get(permutation, at + b)) * WIDTH
            if inverse:
                store(work, target + there, splat(get(signs, at + b)) * load(work, source + here))
            else:
                store(work, target + here, splat(get(signs, at + b)) * load(work, source + there))
    elif inverse:
        for b in range(amplitudes):
            put(work, target + np.int64(get(permutation, at + b)), get(signs, at + b) * get(work, source + b))
    else:
        for b in range(amplitudes):
            value = get(work, source + np.int64(get(permutation, at + b)))
            put(work, target + b, get(signs, at + b) * value)


@inner
def _apply_dense(work, block, planes, amplitudes, lanes, qubits, first, width, dense, at, inverse):
    """A matrix on some qubits of the block; of the qubits, the first is the least significant."""
    dim = 1 << width
    plane = amplitudes * lanes
    offsets = np.zeros(dim, np.int64)
    for bit in range(width):
        for j in range(dim):
            if (j >> bit) & 1:
                offsets[j] |= 1 << get(qubits, first + bit)
    mask = offsets[dim - 1]
    conjugate = -1.0 if inverse else 1.0
    before = np.empty((2, dim))
    for b in range(amplitudes):
        if b & mask:
            continue
        for lane in range(lanes):
            for j in range(dim):
                i = block + (b | offsets[j]) * lanes + lane
                before[0, j] = get(work, i)
                before[1, j] = get(work, i + plane) if planes == 2 else 0.0
            for row in range(dim):
                real, imaginary = 0.0, 0.0
                for j in range(dim):
                    entry_at = at + (j * dim + row if inverse else row * dim + j)
                    mr, mi = get(dense, entry_at), conjugate * get(dense, entry_at + dim * dim)
                    real += mr * before[0, j] - mi * before[1, j]
                    imaginary += mr * before[1, j] + mi * before[0, j]
                i = block + (b | offsets[row]) * lanes + lane
                put(work, i, real)
                if planes == 2:
                    put(work, i + plane, imaginary)


@inner
def applied(k, ops, work, block, other, planes, m, lanes, coefs, permutations, signs, dense_qubits, dense, inverse):
    """Applies an operation to the block at ``work[block]``; whether the result is at ``work[other]``."""
    kind = field(ops, k, KIND)
    amplitudes = 1 << m
    size = amplitudes * lanes
    base = k * TILES
    if kind == REAL:
        for p in range(planes):
            _apply_real(work, block + p * size, size, lanes << field(ops, k, FIRST), coefs, base, inverse)
    elif kind == COMPLEX:
        _apply_complex(work, block, block + size, size, lanes << field(ops, k, FIRST), coefs, base, inverse)
    elif kind == DIAGONAL:
        first, second = lanes << field(ops, k, FIRST), lanes << field(ops, k, SECOND)
        _apply_diagonal(work, block, block + size, size, first, second, coefs, base, inverse)
    elif kind == MONOMIAL:
        at = field(ops, k, OFFSET)
        if field(ops, k, FLAGS) & HAS_PERMUTATION:
            for p in range(planes):
                source, target = block + p * size, other + p * size
                _permuted(work, source, target, amplitudes, lanes, permutations, signs, at, inverse)
            return True
        for p in range(planes):
            _apply_signs(work, block + p * size, amplitudes, lanes, signs, at)
    else:
        first, width, at = field(ops, k, FIRST), field(ops, k, WIDTH_OF_DENSE), field(ops, k, OFFSET)
        _apply_dense(work, block, planes, amplitudes, lanes, dense_qubits, first, width, dense, at, inverse)
    return False


# A block of a large state: all values of the pass's qubits, with the other qubits fixed. It lies in segments of consecutive
# amplitudes.


@inner
def _start_of(outer, outer_bits):
    start = 0
    for bit in range(len(outer_bits)):
        start |= ((outer >> bit) & 1) << outer_bits[bit]
    return start


@inner
def _gather(states, at, stride, work, block, planes, size, start, segments):
    """Copies a block out of the large state at ``states[at]``, whose planes lie ``stride`` apart."""
    length = size // len(segments)
    for p in range(planes):
        for segment in range(len(segments)):
            source, target = at + p * stride + start + segments[segment], block + p * size + segment * length
            for i in range(0, length, WIDTH):
                store(work, target + i, load(states, source + i))


@inner
def _scatter(work, block, planes, size, states, at, stride, start, segments):
    length = size // len(segments)
    for p in range(planes):
        for segment in range(len(segments)):
            source, target = block + p * size + segment * length, at + p * stride + start + segments[segment]
            for i in range(0, length, WIDTH):
                store(states, target + i, load(work, source + i))


@inner
def copied(source, source_at, target, target_at, size):
    """Copies a block."""
    for i in range(0, size, WIDTH):
        store(target, target_at + i, load(source, source_at + i))


@inner
def begun(work, block, both, lanes):
    """Sets a block to all qubits in 0."""
    for i in range(block, block + both):
        put(work, i, 0.0)
    for i in range(block, block + lanes):
        put(work, i, 1.0)


@inner
def scratch_for(num_ops, num_factors, block, like):
    """Room for four blocks, then coefficients, axes and sums."""
    size = 4 * block + num_ops * TILES + num_factors * AXES + 4 * WIDTH
    return aligned(1, size, like).reshape(size)


@entry(f"{_PASS}, float64[:,::1], real[:,:,::1], int64, int64", use=Use.LARGE)
def forward(
    ops, columns, constants, permutations, signs, dense_qubits, dense, segments, outer_bits,
    m, fresh, angles, states, first_block, stop_block,
):  # fmt: skip
    """Takes blocks of large states through the operations.

    Args:
        ops: Shape (K, NUM_FIELDS); with the six arrays after it, the operations of a pass.
        columns: Shape (F,): each factor's column of the angles, or -1 for a constant.
        constants: Shape (F, 4): axes of rotations (from entry 1 on), constant quaternions, phases of diagonals.
        permutations: The signed permutations, behind each other.
        signs: Likewise.
        dense_qubits: The dense matrices' qubits.
        dense: The dense matrices, of shape (2, 2**k, 2**k) each.
        segments: Where a block's segments of amplitudes are within a state.
        outer_bits: The qubits that are fixed within a block.
        m: The number of qubits of a block.
        fresh: Whether the states are to be made, from all qubits in 0.
        angles: Shape (N, A).
        states: Shape (N, planes, 2**n); 0 where they are to be made.
        first_block: The number of the first.
        stop_block: That after the last.
    """
    planes, stride = states.shape[1], states.shape[2]
    size = 1 << m
    both = planes * size
    num_ops = len(ops)
    p_ops, p_columns, p_constants = pointer(ops), pointer(columns), pointer(constants)
    p_permutations, p_signs, p_qubits, p_dense = (
        pointer(permutations), pointer(signs), pointer(dense_qubits), pointer(dense),
    )  # fmt: skip
    scratch = scratch_for(num_ops, len(columns), both, states)
    flat, work = pointer(states), pointer(scratch)
    block, other = np.int64(0), both
    coefs, axes = pointer(scratch[4 * both :]), pointer(scratch[4 * both + num_ops * TILES :])
    seen_values = np.zeros(max(1, 3 * len(columns) * WIDTH))
    seen = pointer(seen_values)
    num_outer = 1 << len(outer_bits)
    shared = np.zeros(0, np.int64)
    unseen = stop_block > first_block
    for number in range(first_block, stop_block):
        row, outer = number // num_outer, number % num_outer
        if fresh and outer > 0:
            continue  # these amplitudes are still 0
        refresh(num_ops, p_ops, p_columns, p_constants, angles, row, 1, seen, len(columns), coefs, axes, shared, unseen)
        unseen = False
        start = _start_of(outer, outer_bits)
        if fresh:
            begun(work, block, both, 1)
        else:
            _gather(flat, row * planes * stride, stride, work, block, planes, size, start, segments)
        for k in range(num_ops):
            if applied(
                k, p_ops, work, block, other, planes, m, 1, coefs, p_permutations, p_signs, p_qubits, p_dense, False
            ):
                block, other = other, block
        _scatter(work, block, planes, size, flat, row * planes * stride, stride, start, segments)
    return seen_values[0] + scratch[0]  # which keeps them alive until here: numba does not see through pointers


# The adjoint sweep


@inner
def _sweep_real(work, psi, lam, planes, size, stride, coefs, base):
    """Undoes a real run of one-qubit gates on both blocks, and sums ``Im <lam| Y |psi>`` over the vectors' elements."""
    total = load(coefs, base) - load(coefs, base)
    for p in range(planes):
        x, g = psi + p * size, lam + p * size
        if stride >= WIDTH:
            m00, m01 = load(coefs, base), load(coefs, base + 2 * WIDTH)
            m10, m11 = load(coefs, base + WIDTH), load(coefs, base + 3 * WIDTH)
            for start in range(0, size, 2 * stride):
                for i in range(start, start + stride, WIDTH):
                    j = i + stride
                    x0, x1, g0, g1 = load(work, x + i), load(work, x + j), load(work, g + i), load(work, g + j)
                    total = total + g1 * x0 - g0 * x1
                    store(work, x + i, m00 * x0 + m01 * x1)
                    store(work, x + j, m10 * x0 + m11 * x1)
                    store(work, g + i, m00 * g0 + m01 * g1)
                    store(work, g + j, m10 * g0 + m11 * g1)
        else:
            same, across = load(coefs, base), swapped(load(coefs, base + WIDTH), stride)
            for i in range(0, size, WIDTH):
                x0, g0 = load(work, x + i), load(work, g + i)
                x1 = swapped(x0, stride)
                total = total + g0 * x1
                store(work, x + i, same * x0 + across * x1)
                store(work, g + i, same * g0 + across * swapped(g0, stride))
    return total


@inner
def _sweep_complex(work, psi, lam, size, stride, coefs, base):
    """Undoes a run of one-qubit gates on both blocks, and sums ``Im <lam| X, Y, Z |psi>``."""
    re, im, gr, gi = psi, psi + size, lam, lam + size
    zero = load(coefs, base) - load(coefs, base)
    ar, ai = load(coefs, base), zero - load(coefs, base + WIDTH)
    br, bi = zero - load(coefs, base + 2 * WIDTH), zero - load(coefs, base + 3 * WIDTH)
    sum_x, sum_y, sum_z = zero, zero, zero
    if stride >= WIDTH:
        for start in range(0, size, 2 * stride):
            for i in range(start, start + stride, WIDTH):
                j = i + stride
                x0r, x0i, x1r, x1i = load(work, re + i), load(work, im + i), load(work, re + j), load(work, im + j)
                g0r, g0i, g1r, g1i = load(work, gr + i), load(work, gi + i), load(work, gr + j), load(work, gi + j)
                sum_x = sum_x + g0r * x1i - g0i * x1r + g1r * x0i - g1i * x0r
                sum_y = sum_y + g1r * x0r + g1i * x0i - g0r * x1r - g0i * x1i
                sum_z = sum_z + g0r * x0i - g0i * x0r - g1r * x1i + g1i * x1r
                store(work, re + i, ar * x0r - ai * x0i - br * x1r - bi * x1i)
                store(work, im + i, ar * x0i + ai * x0r - br * x1i + bi * x1r)
                store(work, re + j, ar * x1r + ai * x1i + br * x0r - bi * x0i)
                store(work, im + j, ar * x1i - ai * x1r + br * x0i + bi * x0r)
                store(work, gr + i, ar * g0r - ai * g0i - br * g1r - bi * g1i)
                store(work, gi + i, ar * g0i + ai * g0r - br * g1i + bi * g1r)
                store(work, gr + j, ar * g1r + ai * g1i + br * g0r - bi * g0i)
                store(work, gi + j, ar * g1i - ai * g1r + br * g0i + bi * g0r)
    else:
        for i in range(0, size, WIDTH):
            xr, xi, lr, li = load(work, re + i), load(work, im + i), load(work, gr + i), load(work, gi + i)
            yr, yi, hr, hi = swapped(xr, stride), swapped(xi, stride), swapped(lr, stride), swapped(li, stride)
            sum_x = sum_x + lr * yi - li * yr
            sum_y = sum_y + lr * yr + li * yi
            sum_z = sum_z + lr * xi - li * xr
            store(work, re + i, ar * xr - ai * xi + br * yr - bi * yi)
            store(work, im + i, ar * xi + ai * xr + br * yi + bi * yr)
            store(work, gr + i, ar * lr - ai * li + br * hr - bi * hi)
            store(work, gi + i, ar * li + ai * lr + br * hi + bi * hr)
    return sum_x, sum_y, sum_z


@inner
def _sweep_diagonal(work, psi, lam, size, first, second, coefs, base, sums):
    """Undoes a diagonal on both blocks; ``sums`` gets ``Im conj(lam) psi``, a vector for each of its four parts."""
    re, im, gr, gi = psi, psi + size, lam, lam + size
    for i in range(0, size, WIDTH):
        outer = (1 if i & first else 0) + (2 if i & second else 0)
        c, d = load(coefs, base + outer * 2 * WIDTH), load(coefs, base + (outer * 2 + 1) * WIDTH)
        xr, xi, lr, li = load(work, re + i), load(work, im + i), load(work, gr + i), load(work, gi + i)
        store(sums, outer * WIDTH, load(sums, outer * WIDTH) + lr * xi - li * xr)
        store(work, re + i, c * xr + d * xi)
        store(work, im + i, c * xi - d * xr)
        store(work, gr + i, c * lr + d * li)
        store(work, gi + i, c * li - d * lr)


@inner
def _one_qubit_gradients(k, ops, columns, selected, axes, sums, complex_kind, stride, lanes, row0, gradients, line):
    """Adds the derivatives by the run's angles to the gradients of the lanes' rows.

    ``sums`` holds the vectors of the sums for X, Y and Z; a real run has only the one for Y.
    """
    if lanes == WIDTH and not complex_kind:
        for f in range(field(ops, k, FACTORS), field(ops, k, FACTORS_END)):
            column = get(columns, f)
            if column >= 0 and selected[column]:
                store(sums, 0, load(axes, f * AXES + WIDTH) * load(sums, WIDTH))
                for e in range(min(WIDTH, gradients.shape[0] - row0)):
                    gradients[row0 + e, line, column] += get(sums, e)
        return
    for e in range(WIDTH):
        row = row0 + e % lanes
        if row >= gradients.shape[0]:
            continue
        sx, sy, sz = get(sums, e), get(sums, WIDTH + e), get(sums, 2 * WIDTH + e)
        if stride < WIDTH:  # there the sums are over both elements of a pair alike
            if e & stride:
                sz = -sz
            else:
                sy = -sy
        for f in range(field(ops, k, FACTORS), field(ops, k, FACTORS_END)):
            column = get(columns, f)
            if column >= 0 and selected[column]:
                derivative = get(axes, f * AXES + WIDTH + e) * sy
                if complex_kind:
                    derivative += get(axes, f * AXES + e) * sx + get(axes, f * AXES + 2 * WIDTH + e) * sz
                gradients[row, line, column] += derivative


@inner
def _diagonal_gradients(k, ops, columns, constants, selected, sums, first, second, lanes, row0, gradients, line):
    for outer in range(4):
        for e in range(WIDTH):
            row = row0 + e % lanes
            if row >= gradients.shape[0]:
                continue
            corner = _corner(outer, e, first, second)
            for f in range(field(ops, k, FACTORS), field(ops, k, FACTORS_END)):
                column = get(columns, f)
                if column >= 0 and selected[column]:
                    gradients[row, line, column] -= 2.0 * get(constants, 4 * f + corner) * get(sums, outer * WIDTH + e)


@inner
def _is_selected(k, ops, columns, selected):
    if field(ops, k, KIND) <= DIAGONAL:
        for f in range(field(ops, k, FACTORS), field(ops, k, FACTORS_END)):
            if get(columns, f) >= 0 and selected[get(columns, f)]:
                return True
    return False


@inner
def taken_back(
    num_ops, stop, ops, columns, constants, permutations, signs, dense_qubits, dense, m, lanes,
    planes, work, psi, lam, spare, coefs, axes, sums, differentiated, selected, row0, gradients, line,
):  # fmt: skip
    """Takes a state and its dual back through the operations from the last to ``stop``, and collects derivatives.

    Args:
        psi: Where the state is in ``work``.
        lam: Where its dual is.
        spare: As far behind each of them is as much room.
        differentiated: For each operation whether it has a selected angle.
        gradients: Shape (N, lines, A), to be added to, in line ``line`` of the rows from ``row0`` on.

    Returns:
        Where the state and its dual are then.
    """
    size = lanes << m
    psi2, lam2 = psi + spare, lam + spare
    for k in range(num_ops - 1, stop - 1, -1):
        kind = field(ops, k, KIND)
        base = k * TILES
        first = lanes << field(ops, k, FIRST)
        if not differentiated[k]:
            applied(k, ops, work, lam, lam2, planes, m, lanes, coefs, permutations, signs, dense_qubits, dense, True)
            if applied(
                k, ops, work, psi, psi2, planes, m, lanes, coefs, permutations, signs, dense_qubits, dense, True
            ):
                psi, psi2, lam, lam2 = psi2, psi, lam2, lam
        elif kind == DIAGONAL:
            second = lanes << field(ops, k, SECOND)
            for i in range(4 * WIDTH):
                put(sums, i, 0.0)
            _sweep_diagonal(work, psi, lam, size, first, second, coefs, base, sums)
            _diagonal_gradients(k, ops, columns, constants, selected, sums, first, second, lanes, row0, gradients, line)
        else:
            if kind == REAL:
                store(sums, WIDTH, _sweep_real(work, psi, lam, planes, size, first, coefs, base))
            else:
                sum_x, sum_y, sum_z = _sweep_complex(work, psi, lam, size, first, coefs, base)
                store(sums, 0, sum_x)
                store(sums, WIDTH, sum_y)
                store(sums, 2 * WIDTH, sum_z)
            _one_qubit_gradients(
                k, ops, columns, selected, axes, sums, kind == COMPLEX, first, lanes, row0, gradients, line
            )
    return psi, lam


@inner
def differentiated_in(num_ops, ops, columns, selected):
    """For each operation whether it has a selected angle, shape (K + 1,)."""
    differentiated = np.zeros(num_ops + 1, np.uint8)
    for k in range(num_ops):
        differentiated[k] = _is_selected(k, ops, columns, selected)
    return differentiated


@inner
def first_of(num_ops, differentiated):
    """The first operation that has a selected angle: before it nothing needs to be taken back."""
    stop = 0
    while stop < num_ops and not differentiated[stop]:
        stop += 1
    return stop


@entry(
    f"{_PASS}, boolean[::1], float64[:,::1], real[:,:,::1], real[:,:,::1], float64[:,:,::1], int64, int64",
    use=Use.LARGE,
)
def sweep(
    ops, columns, constants, permutations, signs, dense_qubits, dense, segments, outer_bits,
    m, last_pass, selected, angles, states, duals, gradients, first_block, stop_block,
):  # fmt: skip
    """Takes large states and duals back through the operations, and collects the derivatives by the selected angles.

    Args:
        ops: This and what is not named here: as in :func:`forward`.
        last_pass: Whether no selected angle lies before this pass: then it may stop early, and leaves the states as they
            were.
        selected: Shape (A,), bool: by which angles.
        states: The states behind the pass, as in :func:`forward`; before it when this returns (unless ``last_pass``).
        duals: The effective observable applied to the final states, likewise.
        gradients: Shape (N, blocks of a state, A), to be added to.
    """
    planes, stride = states.shape[1], states.shape[2]
    size = 1 << m
    both = planes * size
    num_ops = len(ops)
    p_ops, p_columns, p_constants = pointer(ops), pointer(columns), pointer(constants)
    p_permutations, p_signs, p_qubits, p_dense = (
        pointer(permutations), pointer(signs), pointer(dense_qubits), pointer(dense),
    )  # fmt: skip
    scratch = scratch_for(num_ops, len(columns), both, states)
    flat_states, flat_duals, work = pointer(states), pointer(duals), pointer(scratch)
    coefs, axes = pointer(scratch[4 * both :]), pointer(scratch[4 * both + num_ops * TILES :])
    sums = pointer(scratch[4 * both + num_ops * TILES + len(columns) * AXES :])
    seen_values = np.zeros(max(1, 3 * len(columns) * WIDTH))
    seen = pointer(seen_values)
    num_outer = 1 << len(outer_bits)
    shared = np.zeros(0, np.int64)
    differentiated = differentiated_in(num_ops, p_ops, p_columns, selected)
    stop = first_of(num_ops, differentiated) if last_pass else 0
    unseen = stop_block > first_block
    for number in range(first_block, stop_block):
        row, outer = number // num_outer, number % num_outer
        refresh(num_ops, p_ops, p_columns, p_constants, angles, row, 1, seen, len(columns), coefs, axes, shared, unseen)
        unseen = False
        start, at = _start_of(outer, outer_bits), row * planes * stride
        _gather(flat_states, at, stride, work, 0, planes, size, start, segments)
        _gather(flat_duals, at, stride, work, both, planes, size, start, segments)
        psi, lam = taken_back(
            num_ops, stop, p_ops, p_columns, p_constants, p_permutations, p_signs, p_qubits, p_dense, m, 1,
            planes, work, 0, both, 2 * both, coefs, axes, sums, differentiated, selected, row, gradients, outer,
        )  # fmt: skip
        if not last_pass:
            _scatter(work, psi, planes, size, flat_states, at, stride, start, segments)
            _scatter(work, lam, planes, size, flat_duals, at, stride, start, segments)
    return seen_values[0] + scratch[0]  # which keeps them alive until here: numba does not see through pointers
