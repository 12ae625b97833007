r"""Pauli propagation in compiled code: a sum of Pauli strings on its way back through rotations and Pauli channels.

A string is kept as its bit masks x and z, in words of 64 bits, the x first: on qubit q it has X where only bit q of x is
set, Z where only that of z is, Y where both are. A rotation by :math:`\theta` about P leaves strings alone that commute with
P, and mixes the others in pairs: with :math:`T = \sigma\, i P S`, where :math:`\sigma = \pm 1` makes T a Pauli string,

.. math:: c_S' = \cos\theta\, c_S - \sigma \sin\theta\, c_T, \qquad c_T' = \cos\theta\, c_T + \sigma \sin\theta\, c_S .

A channel multiplies each coefficient by a factor that depends on the letters on its qubits.

Strings are numbered as they come; a table with open addressing says which number a string has. The hash is linear: that of
a product is the exclusive or of those of its factors, so that the hash of T is there before T is.

**What is dropped.** Beside its coefficient c each string has d, its *slope*: roughly the largest derivative of c by an angle
of the circuit, as it were if signs were random. It obeys

.. math:: d_S'^2 = \max(\cos^2\theta\; d_S^2 + \sin^2\theta\; d_T^2,\; c_T'^2), \qquad
    d_T'^2 = \max(\cos^2\theta\; d_T^2 + \sin^2\theta\; d_S^2,\; c_S'^2) ,

because :math:`\partial c_S' / \partial\theta = -\sigma c_T'` and :math:`\partial c_T' / \partial\theta = \sigma c_S'`. A
string is dropped by its *weight* :math:`\max(c^2, (d / 10)^2)`. Without d, all that an angle of 0 leads to would be
dropped, and its derivative would be 0, wherever a training begins with such angles.

**Gradients.** The tape has for each rotation the pairs that it mixed, and the coefficients of what was dropped. On the way
back along it the coefficients are computed once more by the inverse rotations, beside the derivatives of the result by them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from .machine_code import Use, entry, inner
from .vectors import get, moved, pointer

__all__ = ["BOUND", "FITS", "ROTATION", "STRINGS", "VALUE", "propagate"]

ROTATION, CHANNEL = range(2)
KIND, MASK, QUBITS, NUMBER = range(4)  # of an operation
VALUE, BOUND, STRINGS, FITS = range(4)  # of what comes out
_PAIRS, _DROPPED, _COUNT, _PAIRS_THEN, _DROPPED_THEN, _COUNT_THEN = range(6)  # of the trace
_SHARE_OF_SLOPE = 0.1**2
_LEAST_ROOM = 64
_OPERATIONS_BETWEEN_SWEEPS = 8
_SHARE_KEPT = 0.875  # of the most strings, where some must go: else they would soon be too many again
_HALVINGS = 64


@intrinsic
def _ones(typing_context: Any, word: Any) -> Any:
    """The number of bits that are set."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


@inner
def _table(hashes, n, room):
    """A table for twice as many strings as there is room for, filled with n of them."""
    size = np.int64(1)
    while size < 2 * room:
        size *= np.int64(2)
    table = np.full(size, np.int32(-1))
    for i in range(n):
        _enter(table, hashes[i], i)
    return table


@inner
def _enter(table, one, i):
    most = np.uint64(len(table) - 1)
    slot = np.int64(one & most)
    while table[slot] >= 0:
        slot = (slot + 1) & np.int64(most)
    table[slot] = np.int32(i)


@inner
def _longer(array, n, room):
    longer = np.empty(room, array.dtype)
    longer[:n] = array[:n]
    return longer


@inner
def _more_strings(strings, n, room):
    more = np.empty((room, strings.shape[1]), np.uint64)
    more[:n] = strings[:n]
    return more


@inner
def _weight(coefficient, slope):
    """Of a coefficient and the square of its slope."""
    return max(coefficient**2, _SHARE_OF_SLOPE * slope)


@inner
def _anticommute(string, mask, half):
    """1 where two strings, behind pointers, do; else 0."""
    both = np.uint64(0)
    for w in range(half):
        both ^= (get(string, w) & get(mask, half + w)) ^ (get(string, half + w) & get(mask, w))
    return _ones(both) & 1


@inner
def _is_negative(string, mask, half, ys_of_mask):
    """1 where sigma is -1, for strings behind pointers that anticommute; else 0."""
    quarter_turns = ys_of_mask + 1
    for w in range(half):
        x, z = get(string, w), get(string, half + w)
        p, q = get(mask, w), get(mask, half + w)
        quarter_turns += _ones(x & z) - _ones((x ^ p) & (z ^ q)) + 2 * _ones(q & x)
    return (quarter_turns & 3) // 2


@inner
def _slot_of(strings, hashes, table, most, i, mask, half, one):
    """Where the table has, or will have, the product of string i and a mask, whose hash is given; all behind pointers."""
    slot = np.int64(one & most)
    while get(table, slot) >= 0:
        k = np.int64(get(table, slot))
        if get(hashes, k) == one:
            same = True
            for w in range(2 * half):
                same = same and get(strings, 2 * half * k + w) == get(strings, 2 * half * i + w) ^ get(mask, w)
            if same:
                break
        slot = (slot + 1) & np.int64(most)
    return slot


@inner
def _rotate(
    strings, hashes, table, coefficients, slopes, done, n, now, mask, hash_of_mask, angle, varies, tolerance,
    pairs, dropped, num_pairs, num_dropped, taping,
):  # fmt: skip
    """A rotation; the new numbers of strings, and of what is on the tape, and the sum of what was dropped."""
    cosine, sine = np.cos(angle), np.sin(angle)
    half = len(mask) // 2
    strings_at, hashes_at, table_at, mask_at = pointer(strings), pointer(hashes), pointer(table), pointer(mask)
    most = np.uint64(len(table) - 1)
    ys_of_mask = np.int64(0)
    for w in range(half):
        ys_of_mask += _ones(mask[w] & mask[half + w])
    lost = 0.0
    before = n
    for i in range(before):
        string_at = moved(strings_at, 2 * half * i)
        if _anticommute(string_at, mask_at, half) == 0 or done[i] == now:
            continue
        negative = _is_negative(string_at, mask_at, half, ys_of_mask)
        sigma = 1.0 - 2.0 * negative
        one = hashes[i] ^ hash_of_mask
        slot = _slot_of(strings_at, hashes_at, table_at, most, i, mask_at, half, one)
        partner = np.int64(table[slot])

        c_other, d_other = 0.0, 0.0
        if partner >= 0:
            c_other, d_other = coefficients[partner], slopes[partner]
            done[partner] = now
        c_one, d_one = coefficients[i], slopes[i]
        c_new = cosine * c_one - sigma * sine * c_other
        c_other_new = cosine * c_other + sigma * sine * c_one
        d_new = cosine**2 * d_one + sine**2 * d_other
        d_other_new = cosine**2 * d_other + sine**2 * d_one
        if varies:
            d_new = max(d_new, c_other_new**2)
            d_other_new = max(d_other_new, c_new**2)
        coefficients[i], slopes[i] = c_new, d_new
        if partner < 0 and _weight(c_other_new, d_other_new) >= tolerance**2:
            partner = np.int64(n)
            for w in range(2 * half):
                strings[partner, w] = strings[i, w] ^ mask[w]
            hashes[partner] = one
            done[partner] = now
            table[slot] = np.int32(partner)
            n += 1
        if partner >= 0:
            coefficients[partner], slopes[partner] = c_other_new, d_other_new
        else:
            lost += abs(c_other_new)
        if taping:
            pairs[num_pairs] = np.int32(2 * i + negative)
            pairs[num_pairs + 1] = np.int32(partner)
            num_pairs += 2
            if partner < 0:
                dropped[num_dropped] = c_other_new
                num_dropped += 1
    return n, num_pairs, num_dropped, lost


@inner
def _rotate_back(coefficients, derivatives, n, angle, pairs, first, stop, dropped, num_dropped):
    """The inverse, and the derivative by the angle; strings from number n on have not been there before."""
    cosine, sine = np.cos(angle), np.sin(angle)
    slope = 0.0
    for k in range(first, stop, 2):
        i, j = np.int64(pairs[k]) // 2, np.int64(pairs[k + 1])
        sigma = 1.0 - 2.0 * (pairs[k] & 1)
        c_one, by_one = coefficients[i], derivatives[i]
        if j >= 0:
            c_other, by_other = coefficients[j], derivatives[j]
        else:
            c_other, by_other = dropped[num_dropped], 0.0
            num_dropped += 1
        slope += sigma * (by_other * c_one - by_one * c_other)
        coefficients[i] = cosine * c_one + sigma * sine * c_other
        derivatives[i] = cosine * by_one + sigma * sine * by_other
        if 0 <= j < n:
            coefficients[j] = cosine * c_other - sigma * sine * c_one
            derivatives[j] = cosine * by_other - sigma * sine * by_one
    return slope


@inner
def _damp(
    strings,
    coefficients,
    slopes,
    n,
    masks,
    first,
    qubits,
    factors,
    number,
    pairs,
    dropped,
    num_pairs,
    num_dropped,
    taping,
):
    """A channel: its masks are the images of Z and X of each of its qubits."""
    words = strings.shape[1]
    for i in range(n):
        entry_of = np.int64(number)
        for k in range(2 * qubits):
            string_at, mask_at = moved(pointer(strings), words * i), moved(pointer(masks), words * (first + k))
            entry_of += _anticommute(string_at, mask_at, words // 2) << k
        factor = factors[entry_of]
        if factor == 1.0:
            continue
        if taping:
            pairs[num_pairs], pairs[num_pairs + 1] = np.int32(i), np.int32(entry_of)
            dropped[num_dropped] = coefficients[i]
            num_pairs += 2
            num_dropped += 1
        coefficients[i] *= factor
        slopes[i] *= factor**2
    return num_pairs, num_dropped


@inner
def _count_from(coefficients, slopes, n, least):
    count = np.int64(0)
    for i in range(n):
        count += _weight(coefficients[i], slopes[i]) >= least
    return count


@inner
def _limits(coefficients, slopes, n, tolerance, most):
    """Weights (low, high): what is below low is to go; what is between them, as far as there are too many strings."""
    low, high = tolerance**2, 1e-300
    if _count_from(coefficients, slopes, n, low) <= most:
        return low, low
    for i in range(n):
        high = max(high, 2 * _weight(coefficients[i], slopes[i]))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        count = _count_from(coefficients, slopes, n, middle)
        if count > most:
            low = middle
        else:
            high = middle
            if count >= _SHARE_KEPT * most:
                return high, high
    return low, high


@inner
def _sweep(
    strings, hashes, coefficients, slopes, done, n, low, high, most, pairs, dropped, num_pairs, num_dropped, taping
):
    """Drops strings by their weight."""
    room = np.int64(_SHARE_KEPT * most) - _count_from(coefficients, slopes, n, high)
    kept = np.int64(0)
    lost = 0.0
    for i in range(n):
        weight = _weight(coefficients[i], slopes[i])
        stays = weight >= high
        if not stays and weight >= low and room > 0:
            stays = True
            room -= 1
        if stays:
            if kept < i:
                strings[kept] = strings[i]
                hashes[kept] = hashes[i]
                coefficients[kept], slopes[kept] = coefficients[i], slopes[i]
                done[kept] = done[i]
            kept += 1
        else:
            lost += abs(coefficients[i])
            if taping:
                pairs[num_pairs], dropped[num_dropped] = np.int32(i), coefficients[i]
                num_pairs += 1
                num_dropped += 1
    return kept, num_pairs, num_dropped, lost


@inner
def _sweep_back(coefficients, derivatives, kept, n, pairs, first, stop, dropped, stop_dropped):
    """Puts what was dropped back in its places."""
    place, last, last_dropped = kept - 1, stop - 1, stop_dropped - 1
    for step in range(n):
        i = n - 1 - step
        if last >= first and pairs[last] == i:
            coefficients[i], derivatives[i] = dropped[last_dropped], 0.0
            last -= 1
            last_dropped -= 1
        else:
            coefficients[i], derivatives[i] = coefficients[place], derivatives[place]
            place -= 1


@inner
def _is_diagonal(strings, i):
    """Whether string i has letters I and Z only: then its expectation value in the state 0 is 1, and otherwise 0."""
    flips = np.uint64(0)
    for w in range(strings.shape[1] // 2):
        flips |= strings[i, w]
    return flips == np.uint64(0)


@inner
def _value(strings, coefficients, n):
    value = 0.0
    for i in range(n):
        if _is_diagonal(strings, i):
            value += coefficients[i]
    return value


@inner
def _with_room(array, n, more):
    """A tape with room for more entries behind the first n."""
    return array if n + more <= len(array) else _longer(array, n, 2 * (n + more))


@inner
def _go_back(operations, factors, angles, first, strings, coefficients, n, pairs, dropped, trace, gradient):
    """Along the tape, to the ``first`` strings; arguments as in :func:`propagate`."""
    derivatives = np.zeros(len(coefficients))
    for i in range(n):
        derivatives[i] = _is_diagonal(strings, i)
    for number in range(len(operations)):
        step, operation = len(operations) - 1 - number, operations[number]
        start_pairs, start_dropped, before = np.int64(0), np.int64(0), first
        if step > 0:
            start_pairs, start_dropped = trace[step - 1, _PAIRS_THEN], trace[step - 1, _DROPPED_THEN]
            before = trace[step - 1, _COUNT_THEN]
        if trace[step, _COUNT_THEN] < trace[step, _COUNT]:
            _sweep_back(
                coefficients, derivatives, trace[step, _COUNT_THEN], trace[step, _COUNT],
                pairs, trace[step, _PAIRS], trace[step, _PAIRS_THEN], dropped, trace[step, _DROPPED_THEN],
            )  # fmt: skip
        if operation[KIND] == ROTATION:
            turn = operation[NUMBER]
            gradient[turn] += _rotate_back(
                coefficients, derivatives, before, angles[turn], pairs, start_pairs, trace[step, _PAIRS],
                dropped, start_dropped,
            )  # fmt: skip
        else:
            for k in range((trace[step, _PAIRS] - start_pairs) // 2):
                i = np.int64(pairs[start_pairs + 2 * k])
                coefficients[i] = dropped[start_dropped + k]
                derivatives[i] *= factors[pairs[start_pairs + 2 * k + 1]]


@entry(
    "uint64[:,::1], uint64[::1], int64[:,::1], float64[::1], boolean[::1], uint64[:,::1], uint64[::1], float64[::1], "
    "float64[::1], float64, int64, int64, float64[::1], float64[::1]",
    use=Use.WIDE,
)
def propagate(
    masks, hashes_of_masks, operations, factors, varies, first_strings, first_hashes, first_coefficients,
    angles, tolerance, most_strings, most_bytes, result, gradient,
):  # fmt: skip
    """The expectation value of a sum of Pauli strings, and its gradient.

    Args:
        masks: Shape (K, 2 W): strings that operations are about, in words of 64 bits.
        hashes_of_masks: Shape (K,).
        operations: Shape (P, 4), in the order in which the circuit runs them: a kind; the number of its (first) mask; of a
            channel how many qubits it has; the number of a rotation's angle, or of a channel's first factor.
        factors: Of channels, 4**k for k qubits: entry ``sum(b_j << j)``, where b_j says whether a string anticommutes with
            the channel's j-th mask.
        varies: Shape (R,): whether a rotation's angle depends on angles of the circuit.
        first_strings: Shape (S, 2 W), different ones.
        first_hashes: Shape (S,).
        first_coefficients: Shape (S,).
        angles: Shape (R,): the rotations'; radians.
        tolerance: Strings whose weight is smaller than its square are dropped.
        most_strings: Beyond, those of the smallest weights are dropped.
        most_bytes: Of the tape; where it needs more, there is no result.
        result: Gets the value, the sum of the dropped coefficients without signs, the largest number of strings, and 1
            where the tape fits.
        gradient: Shape (R,), gets the derivatives by the angles; or (0,).
    """
    taping = len(gradient) > 0
    n = np.int64(len(first_strings))
    room = max(np.int64(_LEAST_ROOM), 2 * n)
    strings, hashes = _more_strings(first_strings, n, room), _longer(first_hashes, n, room)
    coefficients, slopes = _longer(first_coefficients, n, room), np.zeros(room)
    done, table = np.full(room, np.int32(-1)), _table(hashes, n, room)
    pairs, dropped = np.empty(1, np.int32), np.empty(1)
    trace = np.zeros((len(operations) if taping else 1, 6), np.int64)
    num_pairs, num_dropped, lost, largest = np.int64(0), np.int64(0), 0.0, n

    for step in range(len(operations)):
        operation = operations[len(operations) - 1 - step]
        if 2 * n > len(hashes):
            room = 4 * n
            strings, hashes = _more_strings(strings, n, room), _longer(hashes, n, room)
            coefficients, slopes, done = (
                _longer(coefficients, n, room),
                _longer(slopes, n, room),
                _longer(done, n, room),
            )
            table = _table(hashes, n, room)
        if taping:
            # An operation writes of each string, and leaves twice as many at most, which all may then be dropped.
            pairs, dropped = _with_room(pairs, num_pairs, 4 * n), _with_room(dropped, num_dropped, 3 * n)
            if 4 * len(pairs) + 8 * len(dropped) > most_bytes:
                result[FITS] = 0.0
                return
        if operation[KIND] == ROTATION:
            turn = operation[NUMBER]
            n, num_pairs, num_dropped, more = _rotate(
                strings, hashes, table, coefficients, slopes, done, n, np.int32(step), masks[operation[MASK]],
                hashes_of_masks[operation[MASK]], angles[turn], varies[turn], tolerance,
                pairs, dropped, num_pairs, num_dropped, taping,
            )  # fmt: skip
            lost += more
        else:
            num_pairs, num_dropped = _damp(
                strings, coefficients, slopes, n, masks, operation[MASK], operation[QUBITS], factors, operation[NUMBER],
                pairs, dropped, num_pairs, num_dropped, taping,
            )  # fmt: skip
        largest = max(largest, n)
        if taping:
            trace[step, _PAIRS], trace[step, _DROPPED], trace[step, _COUNT] = num_pairs, num_dropped, n
        if n > most_strings or step % _OPERATIONS_BETWEEN_SWEEPS == 0:
            low, high = _limits(coefficients, slopes, n, tolerance, most_strings)
            if n > most_strings or 4 * _count_from(coefficients, slopes, n, high) < 3 * n:
                n, num_pairs, num_dropped, more = _sweep(
                    strings, hashes, coefficients, slopes, done, n, low, high, most_strings,
                    pairs, dropped, num_pairs, num_dropped, taping,
                )  # fmt: skip
                lost += more
                table = _table(hashes, n, len(hashes))
        if taping:
            trace[step, _PAIRS_THEN], trace[step, _DROPPED_THEN], trace[step, _COUNT_THEN] = num_pairs, num_dropped, n

    result[VALUE], result[BOUND], result[STRINGS], result[FITS] = _value(strings, coefficients, n), lost, largest, 1.0
    if taping:
        first = np.int64(len(first_strings))
        _go_back(operations, factors, angles, first, strings, coefficients, n, pairs, dropped, trace, gradient)
