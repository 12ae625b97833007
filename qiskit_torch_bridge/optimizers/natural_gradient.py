"""``QuantumNaturalGradient``: descent in the geometry of the circuit's states."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..arguments import explain_misfits, require_integer, require_number
from ..backends import check_shots
from ..bridge import transforms
from ..layer import QuantumLayer
from ..quote import Quote
from ..shots.seeding import SeedStream
from .quantum_optimizer import LayerGradient, QuantumOptimizer, loss_of, weights_by_name

__all__ = ["QuantumNaturalGradient"]

_APPROXIMATIONS = (None, "block-diag", "diag", "spsa")
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # before 2.7 PyTorch cannot say


class _FeatureMemory:
    """A forward hook that remembers a layer's last features, of calls that may have a gradient."""

    def __init__(self) -> None:
        self.features: torch.Tensor | None = None
        self.was_called = False

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], __: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if transforms.transforms_are_active():
            return
        if torch.compiler.is_compiling():
            if _is_exporting() or not torch.compiler.is_dynamo_compiling():
                return
        elif transforms.is_tracing():
            return
        features = args[0] if args else kwargs.get("features")
        self.features = None if features is None else features.detach().clone()
        self.was_called = True

    def __getstate__(self) -> dict[str, Any]:
        return {"features": None, "was_called": False}  # of a copy of the layer, which the optimizer does not know


@explain_misfits
class QuantumNaturalGradient(QuantumOptimizer):
    r"""Quantum natural gradient: steepest descent where distance is that of states, not of weights.

    .. math:: w \leftarrow w - \eta\,(g(w) + \lambda I)^{-1}\,\nabla L(w)

    with the Fubini-Study metric :math:`g` of :meth:`QuantumLayer.metric_tensor` (Stokes, Izaac, Killoran and Carleo,
    Quantum 4, 269 (2020)). Of a hybrid model it holds the weights of the quantum layers, with a parameter group, and a
    metric of its own, for each; the others are for an ordinary optimizer beside it.

        natural = QuantumNaturalGradient(model, lr=0.05)
        quantum = {id(weight) for group in natural.param_groups for weight in group["params"]}
        adam = torch.optim.Adam([p for p in model.parameters() if id(p) not in quantum], lr=0.01)
        for features, labels in loader:
            natural.zero_grad()
            adam.zero_grad()
            loss_function(model(features), labels).backward()
            natural.step()
            adam.step()

    **Which metric.** That at the features of the layer's last forward pass (with gradients enabled: evaluations under
    ``torch.no_grad()`` do not count), averaged over their rows. A forward hook remembers them, so call ``layer(...)``,
    not ``layer.forward(...)``; of a layer that is called several times in a pass, the last call's count. Weights that
    are frozen or have no gradient stay, and have no row in the metric; a layer without gradient costs nothing.

    **By shots.** Where the layer is exact (``"statevector"`` without shots) the metric is too, and costs no circuits.
    Else it is measured, in one backend call a layer and step; the circuits are in ``layer.total_circuits``, and
    :meth:`quote` says before what they cost: A + 2 A (A - 1) a row for A angles, A by ``"diag"``, 4 by ``"spsa"``. A
    measured metric may have negative eigenvalues, so each is replaced by its absolute value.

    **SPSA.** ``approximation="spsa"`` estimates the metric from four fidelities a row and sample
    (:mod:`qiskit_torch_bridge.geometry.stochastic_metric`), and keeps a running average over the steps that begins with
    the identity, :math:`\bar g_k = \frac{k}{k+1}\bar g_{k-1} + \frac{1}{k+1}\hat g_k`, of whose eigenvalues the
    absolute value is taken (Gacon, Zoufal, Carleo and Woerner, Quantum 5, 567 (2021)). In a layer with
    ``gradient="spsa"`` it is their QN-SPSA: a step costs the same however many weights there are.

    **Distributed training.** Each process would step by the metric of its own rows, and the replicas would drift apart.

    There are many options because exact, measured and estimated metrics each have their own.

    Args:
        model: A :class:`qiskit_torch_bridge.QuantumLayer`, or a module with some within.
        lr: The learning rate :math:`\eta`; in the parameter groups, so that PyTorch's schedulers change it.
        approximation: None (all entries), ``"block-diag"`` or ``"diag"`` as in :meth:`QuantumLayer.metric_tensor`; or
            ``"spsa"``.
        regularization: :math:`\lambda`, in the parameter groups. With 0 a singular metric is refused.
        shots: Shots a circuit of the metric; None: the layer's.
        samples: Of ``"spsa"``: estimates a row and step.
        perturbation: Of ``"spsa"``: the step of the differences in radians; None: 0.01 where fidelities are exact, else
            :math:`(9/S)^{1/6}/\sqrt W` for S shots and W weights.
        seed: Of ``"spsa"``: makes the directions repeatable, as ``seed`` of the layer does its shots.
        maximize: Whether to climb.

    Raises:
        TypeError, ValueError: If an argument does not fit, or a layer's backend cannot measure fidelities (an Estimator has
            no probabilities); in :meth:`step` before anything is measured or changed, if a gradient is not finite or no
            forward pass is remembered.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.01,
        *,
        approximation: str | None = None,
        regularization: float = 0.01,
        shots: int | None = None,
        samples: int = 1,
        perturbation: float | None = None,
        seed: int | Sequence[int] | None = None,
        maximize: bool = False,
    ) -> None:
        if approximation not in _APPROXIMATIONS:
            raise ValueError(f"approximation: got {approximation!r}, expected None, 'block-diag', 'diag' or 'spsa'.")
        self.approximation, self.shots = approximation, check_shots(shots)
        self.samples, self.perturbation = require_integer("samples", samples), perturbation
        if perturbation is not None and not 0 < require_number("perturbation", perturbation) < math.inf:
            raise ValueError(f"perturbation: got {perturbation}, expected a positive number of radians, or None.")
        options = {"lr": _not_negative("lr", lr), "regularization": _not_negative("regularization", regularization)}
        super().__init__(model, **options, maximize=bool(maximize))
        for layer in self.layers:
            layer._require_measurable(self.shots)  # refused now rather than after the first gradient was paid for
        self._seeds = SeedStream(seed)
        self._averages: list[dict[str, Any] | None] = [None] * len(self.layers)
        self._memories = [_FeatureMemory() for _ in self.layers]
        for layer, memory in zip(self.layers, self._memories, strict=True):
            handle = layer.register_forward_hook(memory, with_kwargs=True)
            weakref.finalize(self, handle.remove)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step along the natural gradient of what ``loss.backward()`` left in the weights' ``grad``.

        Args:
            closure: Clears the gradients, computes the loss, calls its ``backward()``, and returns it; None if that has
                been done.

        Returns:
            What the closure gave.
        """
        loss = loss_of(closure)
        with torch.no_grad():
            gradients = self._gradients()
            for number, _ in gradients:
                if not self._memories[number].was_called:
                    raise ValueError(
                        f"step: no forward pass of quantum layer {number} is remembered, at whose features the metric would "
                        "be; make the optimizer before the pass, and call layer(features), which runs hooks. Nothing was "
                        "changed."
                    )
            averages, position = list(self._averages), self._seeds.position
            try:
                steps = [self._natural(number, gradient) for number, gradient in gradients]
            except BaseException:
                # The same step again asks for the same circuits, and finds what hardware has measured of them.
                self._averages, self._seeds.position = averages, position
                raise
            for (number, gradient), direction in zip(gradients, steps, strict=True):
                group = self.param_groups[number]
                gradient.move(direction, float(group["lr"]) * (1.0 if group["maximize"] else -1.0))
        return loss

    def quote(self, batch_size: int = 1) -> Quote:
        """What the metrics of a step cost on a batch of so many rows, beside the quote of the layers."""
        rows = require_integer("batch_size", batch_size, least=0)
        quotes = []
        for layer in self.layers:
            if self.approximation == "spsa":
                quotes.append(layer._quote_stochastic_metric(rows, samples=self.samples, shots=self.shots))
            else:
                quotes.append(layer.quote_metric_tensor(rows, approximation=self.approximation, shots=self.shots))
        return sum(quotes, Quote())

    def _natural(self, number: int, gradient: LayerGradient) -> torch.Tensor:
        """The natural gradient of a layer, shape (W,)."""
        layer, features = self.layers[number], self._memories[number].features
        if not bool(gradient.vector.any()) or (features is not None and not features.numel()):
            return torch.zeros_like(gradient.vector)
        metric = self._metric(number, layer, features)
        values, vectors = torch.linalg.eigh(metric[gradient.kept][:, gradient.kept])
        damped = values.abs() + float(self.param_groups[number]["regularization"])
        if not damped.min() > 10 * torch.finfo(torch.float64).eps * len(damped) * damped.max():
            raise ValueError(
                f"regularization: got {self.param_groups[number]['regularization']}, with which the metric of quantum layer "
                f"{number} is singular (eigenvalues from {values.min():.3g} to {values.max():.3g}: some weights, or "
                "combinations of them, do not change its state), expected a positive number. Nothing was changed."
            )
        return vectors @ ((vectors.mT @ gradient.vector) / damped)

    def _metric(self, number: int, layer: QuantumLayer, features: torch.Tensor | None) -> torch.Tensor:
        """Averaged over the rows, shape (W, W), float64, on the CPU."""
        if self.approximation == "spsa":
            return self._running_average(number, layer, features)
        if features is not None:
            features = features.double()
        metric = layer.metric_tensor(features, approximation=self.approximation, shots=self.shots)
        return metric.to("cpu", torch.float64).reshape(-1, *metric.shape[-2:]).mean(dim=0)

    def _running_average(self, number: int, layer: QuantumLayer, features: torch.Tensor | None) -> torch.Tensor:
        trained = [name for name, weight in weights_by_name(layer) if weight.requires_grad]
        kept = self._averages[number]
        if kept is None or kept["trained"] != trained:  # others are trained than before
            size = layer._trained.num_weights
            kept = {"trained": trained, "count": 0, "average": torch.eye(size, dtype=torch.float64)}
        estimate = layer._stochastic_metric(
            features,
            samples=self.samples,
            perturbation=self.perturbation,
            shots=self.shots,
            rng=np.random.default_rng(self._seeds.next()),
        )
        count = kept["count"] + 1
        average = (count * kept["average"] + torch.from_numpy(estimate)) / (count + 1)
        self._averages[number] = {"trained": trained, "count": count, "average": average}
        return average

    def _own_state(self) -> dict[str, Any]:
        return {
            "averages": [None if kept is None else dict(kept) for kept in self._averages],
            "seeds": self._seeds.state(),
        }

    def _check_own_state(self, state: Mapping[str, Any]) -> None:
        SeedStream(0).restore(state["seeds"])
        if len(state["averages"]) != len(self.layers):
            raise ValueError(
                f"state_dict: got the metrics of {len(state['averages'])} quantum layers, expected {len(self.layers)}."
            )
        for number, (kept, layer) in enumerate(zip(state["averages"], self.layers, strict=True)):
            sizes = {name: len(weight) for name, weight in weights_by_name(layer)}
            if kept is not None and (
                not set(kept["trained"]) <= set(sizes)
                or kept["average"].shape != (sum(sizes[name] for name in kept["trained"]),) * 2
            ):
                raise ValueError(
                    f"state_dict: got the metric of weights {kept['trained']}, of shape {tuple(kept['average'].shape)}, for "
                    f"quantum layer {number}, which has {sizes}; load it into an optimizer of the same model."
                )

    def _load_own_state(self, state: Mapping[str, Any]) -> None:
        self._seeds.restore(state["seeds"])
        self._averages = [
            None if kept is None else {**kept, "average": kept["average"].to("cpu", torch.float64, copy=True)}
            for kept in state["averages"]
        ]


def _not_negative(name: str, value: Any) -> float:
    number = require_number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name}: got {value!r}, expected a finite number from 0.")
    return number
