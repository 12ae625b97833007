r"""Outcomes of measured qubits, in compiled code: their probabilities, the derivatives of those, and draws from them.

**Shots** are exact multinomial counts, each row's from a random stream of its own. The random numbers are Philox4x32-10
(Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a function of a key and a counter.
The key is the call's seed; the counter names the row and the draw. So rows are independent, and a row's shots do not
depend on threads, chunks or the other rows.

A row's shots are split by a binomial draw between the two halves of its outcomes, each half likewise, down to single
outcomes; halves without shots are left alone. That is a multinomial draw, with sums of probabilities (never their
differences) in every step.

Binomial draws invert the distribution function where fewer than 10 successes are expected, and use the transformed
rejection of Hörmann ("The generation of binomial random variates", J. Stat. Comput. Simul. 46, 101 (1993), algorithm
BTRS) elsewhere; both are exact up to double precision.
"""

from __future__ import annotations

import math

import numpy as np

from .machine_code import Use, entry, inner

__all__ = ["add_by_output", "add_probabilities", "binomials", "draw_counts", "observe", "random_words"]

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_ROUNDS = 10


@inner
def _outcome(amplitude, qubits):
    outcome = 0
    for bit in range(len(qubits)):
        outcome |= ((amplitude >> qubits[bit]) & 1) << bit
    return outcome


@inner
def _first_outcomes(amplitudes, qubits):
    """The outcomes of the first amplitudes; those of later ones differ from them in higher bits alone."""
    outcomes = np.empty(min(amplitudes, 4096), np.int64)
    for b in range(len(outcomes)):
        outcomes[b] = _outcome(b, qubits)
    return outcomes


@entry("int64[::1], int64, real[:,:,::1], float64[:,::1], int64, int64")
def add_probabilities(qubits, lanes, states, probabilities, first_slab, stop_slab):
    """Adds up the probabilities of the outcomes of measuring some qubits.

    Args:
        qubits: Shape (k,): bit j of an outcome is the j-th.
        lanes: Rows side by side, a slab.
        states: Shape (slabs, planes, lanes * 2**n).
        probabilities: Shape (N, 2**k), 0, to be filled.
        first_slab: The number of the first slab.
        stop_slab: That after the last.
    """
    planes = states.shape[1]
    amplitudes = states.shape[2] // lanes
    outcomes = _first_outcomes(amplitudes, qubits)
    low = len(outcomes)
    for slab in range(first_slab, stop_slab):
        for start in range(0, amplitudes, low):
            above = _outcome(start, qubits)
            for b in range(low):
                for lane in range(lanes):
                    row = slab * lanes + lane
                    if row < len(probabilities):
                        i = (start + b) * lanes + lane
                        weight = np.float64(states[slab, 0, i]) ** 2
                        if planes == 2:
                            weight += np.float64(states[slab, 1, i]) ** 2
                        probabilities[row, above | outcomes[b]] += weight


@entry("int64[::1], int64[::1], int64, real[:,:,::1], float64[:,::1], real[:,:,::1], int64, int64")
def observe(qubits, output_of, lanes, states, upstream, duals, first_slab, stop_slab):
    """Writes every amplitude times the upstream gradient of its outcome's output into ``duals``.

    Args:
        qubits: This and what is not named here: as in :func:`add_probabilities`.
        output_of: Shape (2**k,): the output that each outcome counts towards.
        upstream: Shape (N, M).
        duals: Shaped like ``states``.
    """
    planes = states.shape[1]
    amplitudes = states.shape[2] // lanes
    last = len(upstream) - 1
    outcomes = _first_outcomes(amplitudes, qubits)
    low = len(outcomes)
    for slab in range(first_slab, stop_slab):
        for start in range(0, amplitudes, low):
            above = _outcome(start, qubits)
            for b in range(low):
                output = output_of[above | outcomes[b]]
                for lane in range(lanes):
                    weight = upstream[min(slab * lanes + lane, last), output]
                    i = (start + b) * lanes + lane
                    for p in range(planes):
                        duals[slab, p, i] = weight * states[slab, p, i]


@entry(*(f"int64[::1], {weights}[:,::1], int64, float64[:,::1]" for weights in ("float64", "int64")))
def add_by_output(output_of, weights, shots, sums):
    """Adds the share of each outcome to the output that it counts towards.

    Args:
        output_of: As in :func:`observe`.
        weights: Shape (N, 2**k): counts, or probabilities.
        shots: What to divide them by.
        sums: Shape (N, M), to be added to.
    """
    for row in range(len(weights)):
        for outcome in range(len(output_of)):
            sums[row, output_of[outcome]] += weights[row, outcome] / shots


# Draws


@inner
def _philox(c0, c1, c2, c3, k0, k1):
    """Four random 32-bit words (as uint64) of a counter of four words and a key of two."""
    for _ in range(_ROUNDS):
        p0, p1 = _MULTIPLIER_0 * c0, _MULTIPLIER_1 * c2
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


@entry()
def random_words(counter, key):
    """The four words of a counter (4,) and a key (2,), all uint64 below 2**32; for tests against published answers."""
    return _philox(counter[0], counter[1], counter[2], counter[3], key[0], key[1])


@inner
def _uniforms(stream):
    """Two numbers from the open interval (0, 1), of 52 random bits each; moves the stream on.

    ``stream`` is the key's two words, then the counter's four, of which the first counts the draws.
    """
    a, b, c, d = _philox(stream[2], stream[3], stream[4], stream[5], stream[0], stream[1])
    stream[2] = (stream[2] + np.uint64(1)) & _LOW
    if stream[2] == 0:
        stream[3] = (stream[3] + np.uint64(1)) & _LOW
    first = ((a << _HALF) | b) >> np.uint64(12)
    second = ((c << _HALF) | d) >> np.uint64(12)
    return (np.float64(first) + 0.5) * 2.0**-52, (np.float64(second) + 0.5) * 2.0**-52


@inner
def _stirling(k):
    """What Stirling's formula leaves out of ``log(k!)``."""
    if k < 10:
        return (
            math.lgamma(k + 1.0) - (k + 0.5) * math.log(k + 1.0) + (k + 1.0) - 0.9189385332046727  # log(2 pi) / 2
        )
    r = 1.0 / ((k + 1.0) * (k + 1.0))
    return (1.0 / 12 - (1.0 / 360 - (1.0 / 1260 - r / 1680) * r) * r) / (k + 1.0)


@inner
def _by_inversion(n, p, stream):
    odds = p / (1.0 - p)
    while True:
        u, _ = _uniforms(stream)
        k = 0
        probability = math.exp(n * math.log1p(-p))
        while u > probability and k < n:
            u -= probability
            k += 1
            probability *= odds * (n - k + 1) / k
        # Rounding may leave more than the last probability; so little that drawing anew changes nothing.
        if u <= probability:
            return k


@inner
def _by_rejection(n, p, stream):
    spread = math.sqrt(n * p * (1.0 - p))
    b = 1.15 + 2.53 * spread
    a = -0.0873 + 0.0248 * b + 0.01 * p
    centre = n * p + 0.5
    alpha = (2.83 + 5.1 / b) * spread
    sure = 0.92 - 4.2 / b
    odds = p / (1.0 - p)
    mode = math.floor((n + 1) * p)
    at_mode = (mode + 0.5) * math.log((mode + 1.0) / (odds * (n - mode + 1.0))) + _stirling(mode) + _stirling(n - mode)
    while True:
        u, v = _uniforms(stream)
        u -= 0.5
        inside = 0.5 - abs(u)
        k = math.floor((2.0 * a / inside + b) * u + centre)
        if inside >= 0.07 and v <= sure:
            return np.int64(k)
        if k < 0 or k > n:
            continue
        bound = (
            at_mode
            + (n + 1.0) * math.log((n - mode + 1.0) / (n - k + 1.0))
            + (k + 0.5) * math.log(odds * (n - k + 1.0) / (k + 1.0))
            - _stirling(k)
            - _stirling(n - k)
        )
        if math.log(v * alpha / (a / (inside * inside) + b)) <= bound:
            return np.int64(k)


@inner
def _binomial(n, p, stream):
    if n == 0 or p <= 0.0:
        return np.int64(0)
    if p >= 1.0:
        return np.int64(n)
    rare = min(p, 1.0 - p)
    k = _by_inversion(n, rare, stream) if n * rare < 10.0 else _by_rejection(n, rare, stream)
    return np.int64(k) if p <= 0.5 else np.int64(n - k)


@inner
def _start(stream, key, row, group):
    stream[0], stream[1] = key[0], key[1]
    stream[2], stream[3] = np.uint64(0), np.uint64(group) << np.uint64(16)
    stream[4], stream[5] = np.uint64(row) & _LOW, np.uint64(row) >> _HALF


@entry()
def binomials(n, p, key, draws):
    """As many draws of Binomial(n, p) as ``draws`` has room for, each from a row's stream."""
    stream = np.empty(6, np.uint64)
    for row in range(len(draws)):
        _start(stream, key, row, 0)
        draws[row] = _binomial(n, p, stream)


@entry("float64[:,::1], int64, uint64[::1], int64, int64, int64[:,::1], int64, int64", use=Use.ALL)
def draw_counts(probabilities, shots, key, group, first_row, counts, row_start, row_stop):
    """Draws the counts of ``shots`` shots for rows of probabilities.

    Args:
        probabilities: Shape (N, 2**k); need not add up to 1 to the last bit.
        shots: Shots a row.
        key: Shape (2,), uint64 below 2**32: the call's seed.
        group: The measurement's number below 2**15, for streams of its own.
        first_row: The number of row 0 in the whole batch, likewise.
        counts: Shape (N, 2**k), to be filled; with -1 where the probabilities are not finite.
        row_start: The first row.
        row_stop: The row after the last.
    """
    outcomes = probabilities.shape[1]
    masses = np.empty(2 * outcomes)
    shots_at = np.zeros(2 * outcomes, np.int64)
    stream = np.empty(6, np.uint64)
    for row in range(row_start, row_stop):
        _start(stream, key, first_row + row, group)
        # Node i of the tree has the children 2 i and 2 i + 1; the outcomes are its leaves.
        for outcome in range(outcomes):
            masses[outcomes + outcome] = probabilities[row, outcome]
        for node in range(outcomes - 1, 0, -1):
            masses[node] = masses[2 * node] + masses[2 * node + 1]
        if not 0.0 < masses[1] < math.inf:
            counts[row] = -1  # comparisons with NaN would never end the draws
            continue
        shots_at[1] = shots
        for node in range(1, outcomes):
            left, right = 2 * node, 2 * node + 1
            here = shots_at[node]
            if here == 0:
                shots_at[left], shots_at[right] = 0, 0
                continue
            # The larger half's complement: a probability near 1 would lose what makes it less than 1.
            if masses[left] <= masses[right]:
                shots_at[left] = _binomial(here, masses[left] / masses[node], stream)
                shots_at[right] = here - shots_at[left]
            else:
                shots_at[right] = _binomial(here, masses[right] / masses[node], stream)
                shots_at[left] = here - shots_at[right]
        for outcome in range(outcomes):
            counts[row, outcome] = shots_at[outcomes + outcome]
