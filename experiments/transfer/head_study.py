"""The cells of ``transfer-heads``, and what is measured in each."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2.functional import to_pil_image

from qiskit_torch_bridge import DressedQuantumNet, Quote
from qiskit_torch_bridge.backends import resolve_backend

from ..common.cells import Cell, Row
from ..common.hardware import IN_MEMORY, connected
from ..common.rows import Rows
from ..common.runs import RunFolder
from ..common.settings import HardwareSettings
from ..common.studies import Study
from ..common.work import Work
from ..common.workplace import open_fabric
from .backbones import View
from .head_findings import find
from .head_settings import PARTS, HeadSettings, PartName
from .heads import new_head
from .images import images_of
from .transfer_learning import EXPERIMENT, backbone_of, features_of
from .transfer_settings import TransferSettings

CIRCUIT, TWIN = "CQ", "CC"
_QUOTED = ("circuits", "shots", "jobs", "qpu_seconds")
_SHOWN = 4  # pictures of each kind
_PIXELS = 96

Head = tuple[RunFolder, TransferSettings]


def cells(settings: HeadSettings) -> list[Cell]:
    """The cells of all parts that are asked for."""
    seeds = sorted(_heads(settings.run, CIRCUIT))
    made: dict[PartName, list[Cell]] = {
        "twins": [{"seed": seed} for seed in seeds],
        "pictures": [{}],
        "devices": [
            {"seed": seed, "backend": backend, "shots": settings.shots, "repeats": settings.repeats}
            for seed in seeds
            for backend in settings.backends
        ],
        "price": [{"device": settings.priced, "shots_a_circuit": settings.priced_shots}],
    }
    return [
        {"part": part, "run": settings.run, **cell} for part in PARTS if part in settings.parts for cell in made[part]
    ]


def require(settings: HeadSettings) -> None:
    """Refuses runs that have not finished or lack a scheme that is needed, and backends that there are not.

    Raises:
        ValueError, FileNotFoundError, ImportError: If it is so; the message says what to do.
    """
    heads = _heads(settings.run, CIRCUIT)
    if {"twins", "pictures"} & set(settings.parts) and (lacking := heads.keys() - _heads(settings.run, TWIN).keys()):
        raise ValueError(
            f"--run: got {settings.run}, which has no {TWIN} of seed {min(lacking)}, expected one for each {CIRCUIT}; train "
            f"them with --scheme {CIRCUIT},{TWIN}, or leave out twins and pictures (--parts)."
        )
    if "devices" in settings.parts:
        for backend in settings.backends:
            resolve_backend(backend)
    if "price" in settings.parts and not settings.priced.startswith("ibm:"):
        raise ValueError(f"--priced: got {settings.priced!r}, expected ibm:NAME, such as ibm:fake_fez.")


def measure(cell: Cell, seed: np.random.SeedSequence) -> Sequence[Row]:
    """A row for each test image, for each repeat, or for each price."""
    measures = {"twins": _twins, "pictures": _pictures, "price": _prices}
    return _accuracies(cell, seed) if cell["part"] == "devices" else measures[cell["part"]](cell)


def _heads(run: str, scheme: str) -> dict[int, Head]:
    """The finished trainings of a scheme, by seed."""
    trainings = EXPERIMENT.trainings(RunFolder.existing(Path(run)))
    heads = {its.seed: (folder, its) for _, folder, its in trainings if its.scheme == scheme}
    if not heads and scheme == CIRCUIT:
        raise ValueError(f"--run: got {run}, which has no training of scheme {CIRCUIT}, expected some.")
    return heads


def _decisions(head: Head) -> np.ndarray:
    """Labels and decisions, shape (2, N), after the last epoch."""
    rows = head[0].read_rows("predictions.csv")
    return np.array([[row["label"] for row in rows], [row["predicted"] for row in rows]])


def _twins(cell: Cell) -> Sequence[Row]:
    (labels, circuit), (_, twin) = (_decisions(_heads(cell["run"], name)[cell["seed"]]) for name in (CIRCUIT, TWIN))
    columns = zip(labels.tolist(), circuit.tolist(), twin.tolist(), strict=True)
    return [{"image": image, "label": label, "circuit": c, "twin": t} for image, (label, c, t) in enumerate(columns)]


def _pictures(cell: Cell) -> Sequence[Row]:
    """Images with the number of seeds in which circuit and twin are right, and with a JPEG of each."""
    heads = _heads(cell["run"], CIRCUIT)
    labels = _decisions(heads[min(heads)])[0]
    circuit, twin = (
        sum((_decisions(head)[1] == labels).astype(int) for head in _heads(cell["run"], name).values())
        for name in (CIRCUIT, TWIN)
    )
    chosen = _chosen(circuit, twin, len(heads))
    settings = heads[min(heads)][1]
    images = images_of(settings)[1]
    size = min(_PIXELS, *images.decode(0).size)
    rows = []
    for image, kind in chosen.items():
        picture = io.BytesIO()
        to_pil_image(images.seen(torch.tensor([image]), View(size, size))[0]).save(picture, "JPEG", quality=85)
        label = images.classes[labels[image]]
        votes = {"circuit_right": int(circuit[image]), "twin_right": int(twin[image]), "seeds": len(heads)}
        jpeg = base64.b64encode(picture.getvalue()).decode()
        rows.append({"image": image, "kind": kind, "label": label, **votes, "jpeg": jpeg})
    return rows


def _chosen(circuit: np.ndarray, twin: np.ndarray, seeds: int) -> dict[int, str]:
    """Images by number: those where the twins differ most, those that most heads of both get wrong, and right ones."""
    chosen: dict[int, str] = {}
    both = circuit + twin
    right = np.flatnonzero(both == 2 * seeds)
    for kind, order in (
        ("differ", [i for i in np.argsort(-abs(circuit - twin), kind="stable") if circuit[i] != twin[i]]),
        ("wrong", [i for i in np.argsort(both, kind="stable") if both[i] < seeds]),
        ("right", right[np.linspace(0, len(right) - 1, _SHOWN).astype(int)] if len(right) else []),
    ):
        chosen |= {int(i): kind for i in [i for i in order if int(i) not in chosen][:_SHOWN]}
    return chosen


def _loaded(head: Head, features: int, classes: int, options: Mapping[str, Any]) -> DressedQuantumNet:
    """A trained head on another backend."""
    folder, settings = head
    net = new_head(settings, features, classes, **options)
    net.load_state_dict(folder.read_checkpoint()["model"])
    assert isinstance(net, DressedQuantumNet)
    return net.eval()


def _test_features(head: Head) -> Rows:
    """Of the images that the head was tested on."""
    folder, settings = head
    with Work(EXPERIMENT.name, settings, folder, open_fabric(settings.device), progress=False) as work:
        return features_of(images_of(settings)[1], backbone_of(settings, work), settings, work)


@torch.no_grad()
def _accuracies(cell: Cell, seed: np.random.SeedSequence) -> Sequence[Row]:
    """Accuracy, and the share of decisions that are those of the exact circuit: without shots, then for each repeat."""
    head = _heads(cell["run"], CIRCUIT)[cell["seed"]]
    examples = _test_features(head)
    features, classes = examples.inputs.shape[-1], len(head[0].read_result()["classes"])
    exact = _loaded(head, features, classes, {"backend": "statevector"})(examples.inputs).argmax(dim=1)
    options = {"backend": cell["backend"], "seed": seed.generate_state(4).tolist()}
    net, rows = _loaded(head, features, classes, options), []
    for shots in (None, *cell["shots"]):
        net.quantum.shots = shots
        for repeat in range(cell["repeats"] if shots else 1):
            decided = net(examples.inputs).argmax(dim=1)
            shares = [(decided == right).double().mean().item() for right in (examples.labels, exact)]
            rows.append({"shots": shots, "repeat": repeat, "accuracy": shares[0], "as_exact": shares[1]})
    return rows


def _prices(cell: Cell) -> Sequence[Row]:
    """Circuits, shots, jobs and estimated QPU seconds of the test images, and of an epoch's training steps."""
    head = next(iter(_heads(cell["run"], CIRCUIT).values()))
    settings = head[1]
    train, test = map(len, images_of(settings))
    steps, rest = divmod(train, settings.batch_size)
    with connected(cell["device"].removeprefix("ibm:"), HardwareSettings(), IN_MEMORY) as device:
        layer = _loaded(head, *_shape(head), {"backend": device, "shots": cell["shots_a_circuit"]}).quantum
        epoch = steps * layer.quote(settings.batch_size) + (layer.quote(rest) if rest else Quote())
        with torch.no_grad():
            tested = layer.quote(settings.crops * test)
    return [
        {"what": what, "examples": count, **{name: getattr(quote, name) for name in _QUOTED}}
        for what, count, quote in (("test images", test, tested), ("an epoch of training", train, epoch))
    ]


def _shape(head: Head) -> tuple[int, int]:
    """Features and classes of a trained head."""
    state = head[0].read_checkpoint()["model"]
    return state["pre.weight"].shape[1], state["post.weight"].shape[0]


STUDY = Study(
    name="transfer-heads", settings=HeadSettings, make_cells=cells, measure=measure, find=find, require=require
)
