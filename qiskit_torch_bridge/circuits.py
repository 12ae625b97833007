"""Circuits that experiments and users share: encodings and ansätze, with their parameters in column order."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from qiskit.circuit import ParameterVector, QuantumCircuit

from .arguments import refuse_unordered, require_integer

__all__ = [
    "LayeredCircuit",
    "ParameterizedCircuit",
    "amplitude_encoding",
    "dressed",
    "random_rotations",
    "reuploading",
    "ring_layers",
    "rotation_layers",
    "strongly_entangling",
    "textbook",
]

_ROTATIONS = ("rx", "ry", "rz")


class ParameterizedCircuit(NamedTuple):
    """A circuit with the parameters that :class:`qiskit_torch_bridge.QuantumLayer` wants told apart."""

    circuit: QuantumCircuit
    inputs: ParameterVector
    weights: ParameterVector


def textbook(num_qubits: int = 1) -> ParameterizedCircuit:
    """The circuit of the Qiskit textbook's hybrid network: H, RY by an input and a measurement on each qubit; no weights.

    For one qubit the probability of outcome 1 is ``(1 + sin(input)) / 2``, the input in radians.

    Raises:
        ValueError: If there are no qubits.
    """
    require_integer("num_qubits", num_qubits)
    inputs = ParameterVector("x", num_qubits)
    circuit = QuantumCircuit(num_qubits)
    for qubit in range(num_qubits):
        circuit.h(qubit)
        circuit.ry(inputs[qubit], qubit)
    circuit.measure_all()
    return ParameterizedCircuit(circuit, inputs, ParameterVector("w", 0))


def dressed(num_qubits: int = 4, depth: int = 6, *, reupload: bool = False) -> ParameterizedCircuit:
    """The circuit of the dressed quantum network: H and RY by an input on each qubit, then variational layers.

    A layer entangles neighbours, first the pairs (0, 1), (2, 3), ..., then (1, 2), (3, 4), ..., with CNOT gates, and turns
    each qubit by a weight with RY; inputs and weights in radians, weights layer by layer. From Mari et al.,
    arXiv 1912.08278, equations 12 to 14.

    Args:
        num_qubits: Qubits, and inputs.
        depth: Layers.
        reupload: Whether the inputs are embedded before each layer, not only before the first. An output is then a
            trigonometric polynomial of degree ``depth`` in each input, not of degree 1 (Schuld, Sweke and Meyer, arXiv
            2008.08605, section II); the weights are as many, in the same order.

    Raises:
        ValueError: If there are no qubits or no layers.
    """
    _require_sizes(num_qubits, depth)
    inputs, weights = ParameterVector("x", num_qubits), ParameterVector("w", num_qubits * depth)
    circuit = QuantumCircuit(num_qubits)
    circuit.h(range(num_qubits))
    for layer in range(depth):
        for qubit in range(num_qubits if reupload or layer == 0 else 0):
            circuit.ry(inputs[qubit], qubit)
        for first in (0, 1):
            for qubit in range(first, num_qubits - 1, 2):
                circuit.cx(qubit, qubit + 1)
        for qubit in range(num_qubits):
            circuit.ry(weights[layer * num_qubits + qubit], qubit)
    return ParameterizedCircuit(circuit, inputs, weights)


def amplitude_encoding(num_qubits: int, *, is_complex: bool = False) -> QuantumCircuit:
    """Amplitude encoding, to be composed with an ansatz: the features are the amplitudes of a state of all qubits.

    This is a layer of 16 features on 4 qubits.

        encoding, ansatz = amplitude_encoding(4), real_amplitudes(4)
        layer = QuantumLayer(encoding.compose(ansatz), inputs=encoding.parameters, weights=ansatz.parameters)
        layer(torch.rand(32, 16))  # one backend call

    Amplitude j is that of basis state j, as in Qiskit: bit q of j is qubit q. A layer divides each row of features by its
    norm; a row of zeros is an error before anything runs. Other numbers of features are padded with zeros, as by
    ``torch.nn.functional.pad(features, (0, 6))`` for 10 of them on 4 qubits.

    The features become angles of RY (and RZ) gates, ``2**n - 1`` with ``2**n - 2`` CNOT gates for n qubits, twice as many
    if complex, and have gradients of any order, on every backend. By parameter shift, the gradient by the features takes two
    circuits for each angle and row, and none if the features do not require it. It is exact wherever single features are
    zero or change their sign. Where an aligned block of 2, 4, 8 ... features is zero altogether, each of them gets the mean
    of their exact gradients (:mod:`qiskit_torch_bridge.program.amplitudes` says why, and what that means with shots).

    In a layer's circuit it can also stand in gates of your own, be inverted, be controlled (``annotated=True``), and have
    amplitudes that are weights, numbers (``encoding.assign_parameters``) or expressions. It takes qubits in 0 to the state;
    where it takes others is not specified. In other circuits it is defined once it is bound.

    Args:
        num_qubits: Qubits.
        is_complex: Whether there are two features an amplitude, its real and then its imaginary part, as
            ``torch.view_as_real(amplitudes).flatten(-2)`` has them.

    Returns:
        A circuit with parameters ``x[0], x[1], ...``, a feature each.

    Raises:
        ValueError: If there are no qubits.
    """
    from .program.amplitudes import AmplitudeEncoding  # here, because the command line wants other circuits at once

    require_integer("num_qubits", num_qubits)
    circuit = QuantumCircuit(num_qubits)
    features = ParameterVector("x", 2 ** (num_qubits + is_complex))
    circuit.append(AmplitudeEncoding(features, is_complex=is_complex), circuit.qubits)
    return circuit


class LayeredCircuit(NamedTuple):
    """A circuit of layers; :class:`qiskit_torch_bridge.QuantumLayer` makes the weights of each a group of their own."""

    circuit: QuantumCircuit
    inputs: ParameterVector
    weights: Mapping[str, ParameterVector]


def rotation_layers(rotations: Sequence[Sequence[str]]) -> LayeredCircuit:
    """RX by an input on each qubit, then layers of one rotation on each qubit and CZ gates 0-1, 1-2, 2-3, ...

    Inputs and weights in radians; the weights of layer k are the group ``"layer{k}"``, from 0, a weight a qubit.

    Args:
        rotations: For each layer the rotation of each qubit: ``"rx"``, ``"ry"`` or ``"rz"``.

    Raises:
        ValueError: If there is no layer or no qubit, the layers differ in length, or a rotation is none of the three.
    """
    refuse_unordered("rotations", rotations)
    rotations = [*rotations]
    for number, layer in enumerate(rotations):
        refuse_unordered(f"rotations[{number}]", layer)
    lengths = {len(layer) for layer in rotations}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"rotations: got layers of {sorted(lengths)} qubits, expected at least one layer, all of one length."
        )
    if strange := sorted({name for layer in rotations for name in layer} - set(_ROTATIONS)):
        raise ValueError(f"rotations: got {strange}, expected some of {list(_ROTATIONS)}.")
    num_qubits = lengths.pop()
    inputs = ParameterVector("x", num_qubits)
    circuit = QuantumCircuit(num_qubits)
    for qubit in range(num_qubits):
        circuit.rx(inputs[qubit], qubit)
    weights = {}
    for number, layer in enumerate(rotations):
        vector = weights[f"layer{number}"] = ParameterVector(f"layer{number}", num_qubits)
        for qubit, name in enumerate(layer):
            getattr(circuit, name)(vector[qubit], qubit)
        for qubit in range(num_qubits - 1):
            circuit.cz(qubit, qubit + 1)
    return LayeredCircuit(circuit, inputs, weights)


def random_rotations(num_qubits: int, depth: int, *, seed: int) -> LayeredCircuit:
    """The circuit of layerwise learning: :func:`rotation_layers` with rotations drawn at random from RX, RY and RZ.

    From Skolik et al., arXiv 2006.14904, section 3. A layer follows from the seed and its number alone, so that circuits
    of one seed begin alike whatever their depth.

    Args:
        num_qubits: Qubits, and inputs.
        depth: Layers.
        seed: A non-negative integer.

    Raises:
        ValueError: If there are no qubits or no layers, or the seed is negative.
    """
    _require_sizes(num_qubits, depth)
    require_integer("seed", seed, least=0)
    draws = [np.random.default_rng((seed, layer)).integers(len(_ROTATIONS), size=num_qubits) for layer in range(depth)]
    return rotation_layers([[_ROTATIONS[draw] for draw in layer] for layer in draws])


def ring_layers(num_qubits: int, depth: int) -> LayeredCircuit:
    """RY by pi times an input on each qubit, then layers of RZ and RX on each qubit and CZ gates around a ring.

    For inputs in [0, 1], which turn a qubit from 0 to 1. The weights of layer k are the group ``"layer{k}"``, from 0: the
    angles of RZ on all qubits, then those of RX, in radians. At zero a layer leaves every ``<Z>`` as it is, because CZ
    commutes with Z; and a layer behind others then has a gradient, which a layer at zero behind the encoding has not.

    Raises:
        ValueError: If there are no qubits or no layers.
    """
    _require_sizes(num_qubits, depth)
    inputs = ParameterVector("x", num_qubits)
    circuit = QuantumCircuit(num_qubits)
    for qubit in range(num_qubits):
        circuit.ry(np.pi * inputs[qubit], qubit)
    pairs = [(qubit, (qubit + 1) % num_qubits) for qubit in range(num_qubits if num_qubits > 2 else num_qubits - 1)]
    weights = {}
    for number in range(depth):
        vector = weights[f"layer{number}"] = ParameterVector(f"layer{number}", 2 * num_qubits)
        for qubit in range(num_qubits):
            circuit.rz(vector[qubit], qubit)
            circuit.rx(vector[num_qubits + qubit], qubit)
        for pair in pairs:
            circuit.cz(*pair)
    return LayeredCircuit(circuit, inputs, weights)


def strongly_entangling(num_qubits: int, depth: int) -> ParameterizedCircuit:
    """Angle embedding, RX by an input on each qubit, then strongly entangling layers.

    A layer turns each qubit by RZ, RY and RZ with three weights, then entangles each qubit with the one ``r`` places on,
    around the ring, with a CNOT gate; ``r`` is 1 in the first layer, 2 in the next, up to ``num_qubits - 1``, and again 1.
    Inputs and weights in radians; weights layer by layer, then qubit by qubit, then in the order of the gates: the order of
    PennyLane's ``StronglyEntanglingLayers``. From Schuld et al., arXiv 1804.00633.

    Raises:
        ValueError: If there are no qubits or no layers.
    """
    return reuploading(num_qubits, uploads=1, depth=depth)


def reuploading(num_qubits: int, uploads: int, *, depth: int = 1) -> ParameterizedCircuit:
    """Data re-uploading in one circuit: the inputs are embedded several times, with layers of weights in between.

    :func:`strongly_entangling` over and over, with the same inputs and other weights; its layers are counted through, so
    that ``r`` goes on from one to the next. With ``uploads`` embeddings an output is a trigonometric polynomial of that
    degree in each input. From Pérez-Salinas et al., arXiv 1907.02085, and Schuld et al., arXiv 2008.08605.

    Args:
        num_qubits: Qubits, and inputs.
        uploads: How often the inputs are embedded.
        depth: Strongly entangling layers after each embedding.

    Raises:
        ValueError: If there are no qubits, no embeddings or no layers.
    """
    _require_sizes(num_qubits, depth)
    require_integer("uploads", uploads)
    inputs, weights = ParameterVector("x", num_qubits), ParameterVector("w", 3 * num_qubits * uploads * depth)
    circuit = QuantumCircuit(num_qubits)
    for layer in range(uploads * depth):
        if layer % depth == 0:
            for qubit in range(num_qubits):
                circuit.rx(inputs[qubit], qubit)
        for qubit in range(num_qubits):
            first, second, third = weights[3 * (layer * num_qubits + qubit) :][:3]
            circuit.rz(first, qubit)
            circuit.ry(second, qubit)
            circuit.rz(third, qubit)
        if num_qubits > 1:
            places = 1 + layer % (num_qubits - 1)
            for qubit in range(num_qubits):
                circuit.cx(qubit, (qubit + places) % num_qubits)
    return ParameterizedCircuit(circuit, inputs, weights)


def _require_sizes(num_qubits: int, depth: int) -> None:
    require_integer("num_qubits", num_qubits)
    require_integer("depth", depth)
