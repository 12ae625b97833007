r"""Expectation values of Pauli sums and their effective observable, in compiled code.

A Pauli string is :math:`i^{y} X^{x} Z^{z}` with bit masks x and z and the number y of its Y's. Strings with the same x
(and the same parity of y) form a *family*: their expectation values are, up to a sign, the Walsh-Hadamard transform of
one real array over the amplitudes, :math:`\mathrm{Re}\,\psi^*_{b \oplus x}\psi_b` (or minus the imaginary part), taken at
their z. Backwards, the transform of a family's coefficients is the diagonal that it multiplies amplitudes with. So a
sum of many strings costs about as much as one.

The array is first added up over the bits that no z of the family has (``outcomes`` says which entry an amplitude falls
into). Large states are read in blocks of consecutive amplitudes.
"""

from __future__ import annotations

import numpy as np

from .kernels import aligned
from .machine_code import Use, entry, inner
from .vectors import WIDTH, load, store, swapped

__all__ = ["add_expectations", "effective_observable", "expectations", "observe"]

FLIP, ODD, BITS, OUTCOMES, TERMS, TERMS_END, FAMILY_FIELDS = range(7)
_OBSERVABLES = (  # their arrays, and the blocks
    "int64[:,::1], int32[::1], int64[::1], int64[::1], int64[::1], int64[::1], float64[::1], int64, int64"
)


@inner
def _parity(mask):
    for shift in (32, 16, 8, 4, 2, 1):
        mask ^= mask >> shift
    return mask & 1


@inner
def _walsh_hadamard(bins, bits, lanes):
    """In place, on 2**bits entries of each lane; at least a vector is there."""
    size = max(WIDTH, lanes << bits)
    for q in range(bits):
        stride = lanes << q
        if stride >= WIDTH:
            for start in range(0, size, 2 * stride):
                for i in range(start, start + stride, WIDTH):
                    x0, x1 = load(bins, i), load(bins, i + stride)
                    store(bins, i, x0 + x1)
                    store(bins, i + stride, x0 - x1)
        else:
            signs = np.empty(WIDTH, bins.dtype)
            for e in range(WIDTH):
                signs[e] = -1.0 if e & stride else 1.0
            sign = load(signs, 0)
            for i in range(0, size, WIDTH):
                x = load(bins, i)
                store(bins, i, sign * x + swapped(x, stride))


@inner
def _collect(state, flip, odd, here, there, amplitudes, lanes, outcomes, bins):
    """Adds up ``conj(psi[b ^ flip]) psi[b]`` (real part, or minus the imaginary part) into the outcomes' bins."""
    planes = state.shape[0]
    re, im = state[0], state[planes - 1]
    for b in range(amplitudes):
        i = (here + b) * lanes
        j = (there + (b ^ flip)) * lanes
        bin_of = np.int64(outcomes[b]) * lanes
        if lanes == WIDTH:
            if odd:
                value = load(im, j) * load(re, i) - load(re, j) * load(im, i)
            else:
                value = load(re, j) * load(re, i)
                if planes == 2:
                    value = value + load(im, j) * load(im, i)
            store(bins, bin_of, load(bins, bin_of) + value)
        elif odd:
            bins[bin_of] += im[j] * re[i] - re[j] * im[i]
        else:
            bins[bin_of] += re[j] * re[i]
            if planes == 2:
                bins[bin_of] += im[j] * im[i]


@inner
def _collect_all(state, here, size, bins):
    """What :func:`_collect` does where nothing is flipped and every amplitude has a bin of its own."""
    for i in range(0, size, WIDTH):
        x = load(state[0], here + i)
        value = x * x
        if state.shape[0] == 2:
            y = load(state[1], here + i)
            value = value + y * y
        store(bins, i, value)


@inner
def add_expectations(
    families, outcomes, local_masks, block_masks, entries, outputs, coefficients,
    m, block, lanes, state, row0, values, bins,
):  # fmt: skip
    """Adds a block's part of the expectation values of the rows from ``row0`` on; as in :func:`expectations`."""
    amplitudes = 1 << m
    for family in range(len(families)):
        flip, odd, bits = families[family, FLIP], families[family, ODD], families[family, BITS]
        first, stop = families[family, TERMS], families[family, TERMS_END]
        here, there = block << m, (block ^ (flip >> m)) << m
        local_flip = flip & (amplitudes - 1)
        if flip == 0 and bits == m and (lanes << m) >= WIDTH:
            _collect_all(state, here * lanes, lanes << m, bins)
        else:
            bins[: max(WIDTH, lanes << bits)] = 0.0
            at = families[family, OUTCOMES]
            _collect(state, local_flip, odd, here, there, amplitudes, lanes, outcomes[at : at + amplitudes], bins)
        _walsh_hadamard(bins, bits, lanes)
        for term in range(first, stop):
            sign = 1.0 - 2.0 * _parity(block_masks[term] & block)
            for lane in range(lanes):
                row = row0 + lane
                if row < values.shape[0]:
                    value = sign * bins[local_masks[term] * lanes + lane]
                    for e in range(entries[term], entries[term + 1]):
                        values[row, block, outputs[e]] += coefficients[e] * value


@inner
def effective_observable(
    families, outcomes, local_masks, block_masks, entries, outputs, coefficients,
    m, block, lanes, state, row0, upstream, dual, bins,
):  # fmt: skip
    """Writes a block of ``sum_m upstream[:, m] O_m |psi>`` into ``dual``; as in :func:`observe`."""
    amplitudes = 1 << m
    size = lanes << m
    planes = state.shape[0]
    last = len(upstream) - 1
    here = block << m
    dual[:, here * lanes : here * lanes + size] = 0.0
    for family in range(len(families)):
        flip, odd, bits = families[family, FLIP], families[family, ODD], families[family, BITS]
        bins[: max(WIDTH, lanes << bits)] = 0.0
        from_block = block ^ (flip >> m)
        there = from_block << m
        local_flip = flip & (amplitudes - 1)
        for term in range(families[family, TERMS], families[family, TERMS_END]):
            sign = 1.0 - 2.0 * _parity(block_masks[term] & from_block)
            for lane in range(lanes):
                row = min(row0 + lane, last)
                weight = 0.0
                for e in range(entries[term], entries[term + 1]):
                    weight += coefficients[e] * upstream[row, outputs[e]]
                bins[local_masks[term] * lanes + lane] += sign * weight
        _walsh_hadamard(bins, bits, lanes)
        at = families[family, OUTCOMES]
        for b in range(amplitudes):
            i = (here + b) * lanes
            j = (there + (b ^ local_flip)) * lanes
            bin_of = np.int64(outcomes[at + (b ^ local_flip)]) * lanes
            if lanes == WIDTH:
                weights = load(bins, bin_of)
                if odd:
                    store(dual[0], i, load(dual[0], i) - weights * load(state[1], j))
                    store(dual[1], i, load(dual[1], i) + weights * load(state[0], j))
                else:
                    for p in range(planes):
                        store(dual[p], i, load(dual[p], i) + weights * load(state[p], j))
            elif odd:
                dual[0, i] -= bins[bin_of] * state[1, j]
                dual[1, i] += bins[bin_of] * state[0, j]
            else:
                for p in range(planes):
                    dual[p, i] += bins[bin_of] * state[p, j]


@entry(f"{_OBSERVABLES}, real[:,:,::1], float64[:,:,::1], int64, int64", use=Use.LARGE)
def expectations(
    families, outcomes, local_masks, block_masks, entries, outputs, coefficients,
    m, num_blocks, states, values, first_block, stop_block,
):  # fmt: skip
    """Adds the families' expectation values in large states to the outputs.

    Args:
        families: Shape (families, FAMILY_FIELDS).
        outcomes: 2**m for each family, behind each other: where each amplitude falls into.
        local_masks: Shape (T,): where each term is in the transform within a block.
        block_masks: Shape (T,): its z on the qubits that number the blocks.
        entries: Shape (T + 1,): where each term's part of the next two begins.
        outputs: The outputs that terms contribute to.
        coefficients: With which factors.
        m: The number of qubits of a block.
        num_blocks: How many blocks a state has.
        states: Shape (N, planes, 2**n).
        values: Shape (N, num_blocks, M), to be added to.
        first_block: The number of the first block.
        stop_block: That after the last.
    """
    bins = aligned(1, max(WIDTH, 1 << m), states)[0]
    for number in range(first_block, stop_block):
        row, block = number // num_blocks, number % num_blocks
        add_expectations(
            families, outcomes, local_masks, block_masks, entries, outputs, coefficients,
            m, block, 1, states[row], row, values, bins,
        )  # fmt: skip


@entry(f"{_OBSERVABLES}, real[:,:,::1], float64[:,::1], real[:,:,::1], int64, int64", use=Use.LARGE)
def observe(
    families, outcomes, local_masks, block_masks, entries, outputs, coefficients,
    m, num_blocks, states, upstream, duals, first_block, stop_block,
):  # fmt: skip
    """Writes ``sum_m upstream[:, m] O_m |psi>``, the effective observable applied to large states, into ``duals``.

    Args:
        upstream: Shape (N, M).
        duals: Shaped like ``states``.
        families: This and the others: as in :func:`expectations`.
    """
    bins = aligned(1, max(WIDTH, 1 << m), states)[0]
    for number in range(first_block, stop_block):
        row, block = number // num_blocks, number % num_blocks
        effective_observable(
            families, outcomes, local_masks, block_masks, entries, outputs, coefficients,
            m, block, 1, states[row], row, upstream, duals[row], bins,
        )  # fmt: skip
