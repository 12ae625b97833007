"""Layerwise learning: circuits that grow while they are trained, and the schedules that say how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .arguments import explain_misfits, refuse_unordered, require_integer
from .circuits import LayeredCircuit
from .gradients.rules import GradientRule
from .layer import QuantumLayer
from .mitigation.methods import Mitigation
from .program.observables import ObservablesLike

__all__ = ["LayerwiseQuantumLayer", "Phase", "complete_depth_schedule", "layerwise_schedule"]


@dataclass(frozen=True)
class Phase:
    """A part of a layerwise training.

    Attributes:
        name: Its name.
        depth: How many layers the circuit has in it.
        trainable: The layers that are trained in it, numbered from 0; the others are frozen.
        epochs: How long it takes.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a trainable layer is not in the circuit, or there is none.
    """

    name: str
    depth: int
    trainable: tuple[int, ...]
    epochs: int

    def __post_init__(self) -> None:
        """Refuses what cannot be trained."""
        _require_positive(depth=self.depth, epochs=self.epochs)
        refuse_unordered("trainable", self.trainable)
        if isinstance(self.trainable, (str, bytes)) or not isinstance(self.trainable, Sequence):
            raise TypeError(f"trainable: got {self.trainable!r}, expected a tuple of numbers of layers.")
        if not self.trainable or not all(layer in range(self.depth) for layer in self.trainable):
            raise ValueError(
                f"trainable: got layers {list(self.trainable)}, expected at least one, each from 0 to {self.depth - 1} "
                f"(depth={self.depth})."
            )


def layerwise_schedule(
    *,
    steps: int,
    layers_per_step: int,
    epochs: int,
    freeze_after: int | None = 1,
    partitions: int = 2,
    sweeps: int = 0,
    partition_epochs: int | None = None,
) -> tuple[Phase, ...]:
    """The phases of Skolik et al., "Layerwise learning for quantum neural networks" (arXiv 2006.14904, section 3).

    Phase I grows the circuit: each step adds layers and trains the newest ones. Phase II keeps the depth and trains
    contiguous parts of the circuit in turn, a sweep going through all of them.

    Args:
        steps: Steps of Phase I.
        layers_per_step: Layers that each of them adds (the paper's p).
        epochs: Epochs of each.
        freeze_after: For how many steps a layer is trained before it is frozen (the paper's q, counted in steps); None:
            all layers are trained in all steps.
        partitions: The parts of Phase II; where the depth cannot be divided evenly, the first parts are larger by a layer.
        sweeps: How often Phase II goes through all parts; 0: no Phase II.
        partition_epochs: Epochs of each part in a sweep; None: as many as a step of Phase I.

    Raises:
        TypeError: If a number is no integer.
        ValueError: If a number is too small, or there are more parts than layers.
    """
    _require_positive(steps=steps, layers_per_step=layers_per_step, epochs=epochs, partitions=partitions)
    optional = {"freeze_after": freeze_after, "partition_epochs": partition_epochs}
    _require_positive(**{name: number for name, number in optional.items() if number is not None})
    require_integer("sweeps", sweeps, least=0)
    depths = [step * layers_per_step for step in range(steps + 1)]
    depth = depths[-1]
    if sweeps and partitions > depth:
        raise ValueError(f"partitions: got {partitions}, expected at most the {depth} layers of the grown circuit.")
    kept = steps if freeze_after is None else freeze_after
    growing = [
        Phase(f"step {step}", depths[step], tuple(range(depths[max(0, step - kept)], depths[step])), epochs)
        for step in range(1, steps + 1)
    ]
    sweeping = [
        Phase(f"sweep {sweep} part {number}", depth, part, partition_epochs or epochs)
        for sweep in range(1, sweeps + 1)
        for number, part in enumerate(_parts(depth, partitions), start=1)
    ]
    return (*growing, *sweeping)


def complete_depth_schedule(depth: int, epochs: int) -> tuple[Phase, ...]:
    """The baseline that layerwise learning is compared with: all layers from the start, in a single phase.

    Raises:
        ValueError: If a number is not positive.
    """
    _require_positive(depth=depth, epochs=epochs)
    return (Phase("complete depth", depth, tuple(range(depth)), epochs),)


@explain_misfits
class LayerwiseQuantumLayer(nn.Module):
    """A quantum layer whose circuit grows from phase to phase, each circuit layer a weight group of its own.

    ``enter(phase)`` brings it to the depth of a phase and freezes the layers that are not trained in it: these cost no
    gradient circuits. What was there stays there: the parameters of earlier layers (the same ``nn.Parameter`` objects), the
    position in the stream of shots, the counts of circuits and shots. It does not matter through which phases the
    layer has come to a depth, so a fresh one that enters a phase can load the ``state_dict`` that was saved in it.

    New parameters appear when the circuit grows: make the optimiser after ``enter``. There are many
    options because those from ``observables`` on are handed on to the quantum layer of each depth.

    Args:
        make_circuit: From a depth to the circuit of so many layers, each weight group a layer, in their order; the first
            layers must not depend on the depth. For example
            ``lambda depth: random_rotations(9, depth, seed=0)``.
        depth: The depth to begin with.
        init: The weights of the layers to begin with: ``"zeros"``, ``"normal"`` or ``"uniform"``, as in
            :class:`qiskit_torch_bridge.QuantumLayer`.
        grown: The weights of the layers that are added later, likewise. Zeros make a rotation the identity.
        observables: What is measured, as in :class:`qiskit_torch_bridge.QuantumLayer`.
        backend: As there.
        shots: As there.
        gradient: As there.
        seed: As there.
        allocation: As there.
        mitigation: As there.

    Attributes:
        quantum: The :class:`qiskit_torch_bridge.QuantumLayer` of the present depth.

    Raises:
        TypeError, ValueError: As :class:`qiskit_torch_bridge.QuantumLayer`, before anything runs.
    """

    def __init__(
        self,
        make_circuit: Callable[[int], LayeredCircuit],
        depth: int,
        *,
        init: str = "zeros",
        grown: str = "zeros",
        observables: ObservablesLike | None = None,
        backend: Any = None,
        shots: int | None = None,
        gradient: str | GradientRule | None = None,
        seed: int | Sequence[int] | None = None,
        allocation: str = "uniform",
        mitigation: Sequence[Mitigation] = (),
    ) -> None:
        super().__init__()
        _require_positive(depth=depth)
        if not callable(make_circuit):
            raise TypeError(
                f"make_circuit: got {make_circuit!r}, expected a function from a depth to a LayeredCircuit."
            )
        self._make_circuit, self._first_depth, self._init, self._grown = make_circuit, depth, init, grown
        # A generator would be empty when the circuit grows.
        self._observables = list(observables) if isinstance(observables, Iterator) else observables
        self._gradient = gradient
        self.quantum = self._layer(
            depth, backend=backend, shots=shots, seed=seed, allocation=allocation, mitigation=mitigation
        )

    @property
    def depth(self) -> int:
        """How many layers the circuit has."""
        return len(self.groups)

    @property
    def groups(self) -> nn.ParameterDict:
        """The weights of each circuit layer, by its name, from the first to the last."""
        assert isinstance(self.quantum.weights, nn.ParameterDict)
        return self.quantum.weights

    def enter(self, phase: Phase) -> None:
        """Grows to the depth of a phase, and trains the layers that it trains; the others are frozen.

        Raises:
            TypeError: If it is no :class:`Phase`.
            ValueError: If the circuit is deeper than the phase, or its first layers have changed; it has not been touched
                then.
        """
        if not isinstance(phase, Phase):
            raise TypeError(
                f"phase: got {phase!r} ({type(phase).__name__}), expected a Phase, such as a schedule holds."
            )
        if phase.depth < self.depth:
            raise ValueError(
                f"phase {phase.name!r}: got depth {phase.depth}, expected at least {self.depth}, the layers that the "
                "circuit has already; make a new layer."
            )
        if phase.depth > self.depth:
            self.quantum = self._grow_to(phase.depth)
        for number, weights in enumerate(self.groups.values()):
            weights.requires_grad_(number in phase.trainable)
            if not weights.requires_grad:
                weights.grad = None  # an optimiser that still holds it would go on moving it

    def forward(self, features: torch.Tensor | None = None, *, shots: int | None = None) -> torch.Tensor:
        """As :meth:`QuantumLayer.forward`, with the circuit of the present depth."""
        return self.quantum(features, shots=shots)

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows."""
        trained = [name for name, weights in self.groups.items() if weights.requires_grad]
        return f"depth={self.depth}, trained={', '.join(trained) or 'none'}"

    def _grow_to(self, depth: int) -> QuantumLayer:
        before, stream = self.quantum, self.quantum.get_rng_state()
        after = self._layer(
            depth,
            backend=before.backend,
            shots=before.shots,
            seed=tuple(stream["entropy"]),
            allocation=before.allocation,
            mitigation=before.mitigation,
        )
        assert isinstance(after.weights, nn.ParameterDict)
        sizes = {name: weights.numel() for name, weights in after.weights.items()}
        present = {name: weights.numel() for name, weights in self.groups.items()}
        if list(sizes.items())[: self.depth] != list(present.items()):
            raise ValueError(
                f"make_circuit({depth}): got the weight groups {sizes}, expected them to begin with {present}, those of "
                f"depth {self.depth}; the first layers must not depend on the depth."
            )
        like = next(iter(self.groups.values()))
        after.to(device=like.device, dtype=like.dtype).train(before.training)
        for name, weights in self.groups.items():
            after.weights[name] = weights
        after.set_rng_state(stream)
        after.total_circuits, after.total_shots = before.total_circuits, before.total_shots
        return after

    def _layer(self, depth: int, **options: Any) -> QuantumLayer:
        made = self._make_circuit(depth)
        if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[2], Mapping)):
            raise TypeError(
                f"make_circuit({depth}): got {made!r}, expected a circuit, its inputs, and a mapping of each layer's name "
                "to its weights, as a LayeredCircuit has them."
            )
        circuit, inputs, weights = made
        if len(weights) != depth:
            raise ValueError(
                f"make_circuit({depth}): got the weight groups {list(weights)}, expected {depth}, one for each layer."
            )
        # All layers are drawn, the earlier ones too, so that what a layer draws does not depend on when it is added.
        init = {name: self._init if number < self._first_depth else self._grown for number, name in enumerate(weights)}
        return QuantumLayer(
            circuit,
            inputs=inputs,
            weights=weights,
            observables=self._observables,
            gradient=self._gradient,
            init=init,
            **options,
        )


def _parts(depth: int, count: int) -> list[tuple[int, ...]]:
    """Contiguous parts of the layers, the larger ones first."""
    size, larger = divmod(depth, count)
    starts = [part * size + min(part, larger) for part in range(count + 1)]
    return [tuple(range(starts[part], starts[part + 1])) for part in range(count)]


def _require_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        require_integer(name, number)
