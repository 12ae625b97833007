"""The three problems: what is trained, on what, and how far it has come, which is judged without shots.

* ``layerwise``: the ring circuit of :mod:`experiments.mnist36` in its improved form on 3/6, at four qubits (an image is
  2 x 2 numbers) and two layers, which are trained together: 16 weights, and a scale and a bias of the logit.
* ``dressed``: a dressed quantum network of four qubits and three layers, 12 weights, on the features of 8/9 of
  :mod:`experiments.hardware_cost.ten_minutes`; with 142 classical parameters before and behind the circuit.
* ``hydrogen``: the energy of :mod:`experiments.optimizer_study.hydrogen`, eight weights, nothing classical.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from qiskit_torch_bridge import DressedQuantumNet, LayerwiseQuantumLayer, QuantumLayer
from qiskit_torch_bridge.circuits import ring_layers

from .. import mnist36
from ..common.cells import Cell
from ..common.classifiers import decisions, quantum_layers
from ..common.data import load_first_of
from ..common.rows import Rows
from ..hardware_cost import ten_minutes
from .hydrogen import HAMILTONIAN, ansatz, ground_energy
from .optimizer_settings import ProblemName

CHEMICAL_ACCURACY = 0.0016
"""In hartree: one kilocalorie a mole, rounded."""
_QUBITS = 4
_RING_LAYERS = 2
_DRESSED_LAYERS = 3
_TESTED = 500


class Kind(NamedTuple):
    """A problem, whatever its weights.

    Attributes:
        model: From options of the quantum layer to the model.
        examples: From the data root (None: scikit-learn's digits) to examples to train on and to test; None: there are none.
        losses: From outputs and labels to the loss of each row; the molecule's output is its loss.
        is_linear: Whether the loss is an expectation value, as Rotosolve needs.
    """

    model: Callable[..., nn.Module]
    examples: Callable[[str | None], tuple[Rows, Rows] | None]
    losses: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    is_linear: bool = False


def _layerwise(**options: Any) -> nn.Module:
    circuit = LayerwiseQuantumLayer(
        lambda depth: ring_layers(_QUBITS, depth),
        _RING_LAYERS,
        init="uniform",
        observables=mnist36.readout("sum", _QUBITS),
        **options,
    )
    return mnist36.Classifier(circuit, scale_and_bias=True)


def _dressed(**options: Any) -> nn.Module:
    features = ten_minutes.examples()[0].inputs.shape[1]
    return DressedQuantumNet(features, 2, num_qubits=_QUBITS, depth=_DRESSED_LAYERS, weight_spread=0.5, **options)


def _hydrogen(**options: Any) -> nn.Module:
    circuit, weights = ansatz()
    return QuantumLayer(circuit, weights=weights, observables=[HAMILTONIAN], init="uniform", **options)


@cache
def _threes_and_sixes(data_root: str | None) -> tuple[Rows, Rows]:
    dataset, test = ("digits", None) if data_root is None else ("mnist", _TESTED)
    root = None if data_root is None else Path(data_root)
    data = load_first_of(mnist36.DIGITS, train=mnist36.TRAIN_IMAGES[dataset], test=test, data_root=root)
    return mnist36.rows_of(data, _QUBITS)


KINDS: Mapping[ProblemName, Kind] = {
    "layerwise": Kind(_layerwise, _threes_and_sixes, mnist36.loss),
    "dressed": Kind(
        _dressed,
        lambda data_root: ten_minutes.examples(),
        lambda scores, labels: F.cross_entropy(scores, labels, reduction="none"),
    ),
    "hydrogen": Kind(_hydrogen, lambda data_root: None, lambda energy, labels: energy[..., 0], is_linear=True),
}
"""By their names in the study."""


class Task(NamedTuple):
    """A problem with weights to begin with.

    Attributes:
        kind: The problem.
        model: What is trained, with shots.
        twin: The same without shots.
        examples: To train on, and to test; None: there are none.
    """

    kind: Kind
    model: nn.Module
    twin: nn.Module
    examples: tuple[Rows, Rows] | None

    @classmethod
    def of(cls, cell: Cell, **options: Any) -> Task:
        """The cell's, with weights by its seed.

        Args:
            cell: With ``problem``, ``seed`` and ``data_root``.
            options: Of the quantum layer that is trained: backend, shots, gradient rule, the seed of the shots.
        """
        kind = KINDS[cell["problem"]]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(cell["seed"])
            twin = kind.model(seed=cell["seed"])
            model = kind.model(**options)
        model.load_state_dict(twin.state_dict())
        examples = kind.examples(cell["data_root"])
        return cls(kind, model, twin if examples else twin.double(), examples)  # the last bits of an energy count

    @property
    def layer(self) -> QuantumLayer:
        """The quantum layer of the model."""
        (layer,) = quantum_layers(self.model)
        return layer

    @property
    def classical(self) -> list[nn.Parameter]:
        """The parameters that are not the circuit's."""
        own = {id(parameter) for parameter in self.layer.parameters()}
        return [parameter for parameter in self.model.parameters() if id(parameter) not in own]

    def loss(self, rows: torch.Tensor) -> torch.Tensor:
        """The mean loss of these training examples; of a problem without any the loss itself."""
        if self.examples is None:
            return self.kind.losses(self.model(), rows)
        inputs, labels = self.examples[0].batch(rows, training=True)
        return self.kind.losses(self.model(inputs), labels).mean()

    def judged(self, state: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """How good a state of the model is, without shots.

        Returns:
            ``value``: the mean loss of the test examples, or the energy above the ground state in hartree; ``score``: the
            test accuracy, or 1 within chemical accuracy, else 0.
        """
        self.twin.load_state_dict(state)
        with torch.no_grad():
            if self.examples is None:
                above = float(self.twin()) - ground_energy()
                return {"value": above, "score": float(above < CHEMICAL_ACCURACY)}
            inputs, labels = self.examples[1].inputs, self.examples[1].labels
            outputs = self.twin(inputs)
            value = float(self.kind.losses(outputs, labels).double().mean())
            return {"value": value, "score": float((decisions(outputs) == labels).double().mean())}
