"""What there is to run, by name: known without importing it, because PyTorch takes its time."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from .common.runner import Command
    from .common.runs import RunFolder
    from .common.settings import Settings


class Entry(NamedTuple):
    """An experiment or a study.

    Attributes:
        summary: A line for the list.
        settings: Where its settings are, ``module:class``, in a module without PyTorch.
        command: Where it is itself, ``module:name``.
    """

    summary: str
    settings: str
    command: str


COMMANDS = {
    "mnist01": Entry(
        "hybrid CNN that tells handwritten 0 from 1, gradients by parameter shift (Qiskit textbook)",
        "experiment_settings:MNIST01Settings",
        "mnist01:EXPERIMENT",
    ),
    "mnist36": Entry(
        "layerwise learning: a quantum circuit that tells 3 from 6 grows while it is trained (Skolik et al.)",
        "experiment_settings:MNIST36Settings",
        "mnist36:EXPERIMENT",
    ),
    "transfer": Entry(
        "quantum transfer learning: a frozen network that knows photographs, a dressed circuit on top (Mari et al.)",
        "transfer.transfer_settings:TransferSettings",
        "transfer.transfer_learning:EXPERIMENT",
    ),
    "transfer-heads": Entry(
        "the trained heads of a run of transfer: circuit and twin image by image, shots, noise, and IBM's price",
        "transfer.head_settings:HeadSettings",
        "transfer.head_study:STUDY",
    ),
    "pretrain": Entry(
        "trains a network for transfer; --exclude leaves out the classes that are to be told apart later",
        "transfer.transfer_settings:PretrainSettings",
        "transfer.pretraining:EXPERIMENT",
    ),
    "spirals": Entry(
        "a dressed quantum circuit beside its classical twin on two interleaved spirals (Mari et al.)",
        "experiment_settings:SpiralsSettings",
        "spirals:EXPERIMENT",
    ),
    "wide": Entry(
        "all 127 qubits of a device learn a hidden kicked Ising model, exactly on light cones; then with its noise",
        "wide.wide_settings:WideSettings",
        "wide.learning:EXPERIMENT",
    ),
    "recipes": Entry(
        "where to put a quantum layer, quick starts, data re-uploading, dropout: questions answered with numbers",
        "recipes.recipe_settings:RecipeSettings",
        "recipes.survey:EXPERIMENT",
    ),
    "barren-plateau": Entry(
        "how fast gradients vanish as random circuits grow (McClean et al.), and what start and depth change",
        "barren_plateau.plateau_settings:PlateauSettings",
        "barren_plateau.plateau_study:STUDY",
    ),
    "expressibility": Entry(
        "expressibility and entangling capability (Sim et al.), effective dimension (Abbas et al.), beside published values",
        "expressibility.expressibility_settings:ExpressibilitySettings",
        "expressibility.expressibility_study:STUDY",
    ),
    "shot-noise": Entry(
        "standard errors against shots, accuracy against the shots spent, and the bias that shots do not cure",
        "shot_noise.shot_settings:ShotNoiseSettings",
        "shot_noise.shot_study:STUDY",
    ),
    "layerwise-noise": Entry(
        "layerwise learning of mnist36 beside training of the complete circuit, under noise and at equal shots",
        "layerwise_noise.layerwise_settings:LayerwiseNoiseSettings",
        "layerwise_noise.layerwise_study:STUDY",
    ),
    "hardware-cost": Entry(
        "what a training step costs on an IBM device, beside other libraries, and what ten minutes of it buy",
        "hardware_cost.cost_settings:HardwareCostSettings",
        "hardware_cost.cost_study:STUDY",
    ),
    "gradient-methods": Entry(
        "finite differences and SPSA beside parameter shift: bias, variance and error at equal shots",
        "gradient_methods.method_settings:MethodSettings",
        "gradient_methods.method_study:STUDY",
    ),
    "mitigation": Entry(
        "error mitigation at equal executions: what it takes away, what it adds, and when it is not worth its shots",
        "mitigation_study.mitigation_settings:MitigationSettings",
        "mitigation_study.mitigation_study:STUDY",
    ),
    "optimizers": Entry(
        "Adam, natural gradients, Rotosolve and others at equal executions, and at equal seconds of a device",
        "optimizer_study.optimizer_settings:OptimizerSettings",
        "optimizer_study.optimizer_study:STUDY",
    ),
}
TOOLS = {
    "benchmark": "time for a training step against other libraries, whose answers must agree first",
    "plot": "draws a run's figures anew from its files: python -m experiments plot RUN ...",
    "compare": "puts runs side by side, a table and a figure: python -m experiments compare RUN RUN ...",
    "ibm-check": "is now the command qtb check",
    "jobs": "is now the commands qtb jobs and qtb record",
    "reference": "builds the API reference from the docstrings: python -m experiments reference --out FOLDER",
    "record-lesson": "trains a small circuit on a simulated device and records it, to be replayed without an account",
}


def settings_of(name: str) -> type[Settings] | None:
    """The class of a command's settings, where it can be had without the command itself."""
    return _object(COMMANDS[name].settings) if name in COMMANDS else None


def command_of(name: str) -> Command[Any] | None:
    """An experiment or a study; one that is not listed here is ``EXPERIMENT`` or ``STUDY`` of ``experiments/NAME.py``.

    Returns:
        None if there is none of that name.

    Raises:
        ImportError: If that file cannot be imported.
        ValueError: If it has neither of them.
    """
    if name in COMMANDS:
        return _object(COMMANDS[name].command)
    module_name = f"{__package__}.{name.replace('-', '_')}"
    if not name.replace("-", "_").isidentifier() or name in TOOLS:
        return None
    spec = find_spec(module_name)
    if spec is None or spec.origin is None or spec.submodule_search_locations is not None:
        return None
    module = _imported(module_name, spec.origin)
    command = getattr(module, "EXPERIMENT", None) or getattr(module, "STUDY", None)
    if command is None:
        raise ValueError(
            f"{spec.origin}: got neither EXPERIMENT nor STUDY, expected one of them; end the file with "
            "EXPERIMENT = Experiment(...) or STUDY = Study(...)."
        )
    return command


def own_names() -> list[str]:
    """The names of the files that have an experiment or a study, as their text says: nothing is imported."""
    from . import __path__ as folders

    files = [file for folder in folders for file in Path(folder).glob("*.py")]
    made = re.compile(r"^(EXPERIMENT|STUDY)\b", re.MULTILINE)
    return [file.stem for file in files if made.search(file.read_text(encoding="utf-8", errors="ignore"))]


def command_in(folder: RunFolder) -> Command[Any]:
    """The experiment or study that a run is of.

    Raises:
        ValueError: If the folder is not that of a run.
    """
    name = folder.read_settings().get("experiment")
    command = command_of(name) if isinstance(name, str) else None
    if command is None:
        raise ValueError(
            f"{folder.file('config.yaml')}: experiment: got {name!r}, expected that of an experiment or a study; give the "
            "folder of a run."
        )
    return command


def _imported(module: str, file: str) -> ModuleType:
    """The module in a user's file; what keeps it from being imported is said with the line of that file."""
    try:
        return import_module(module)
    except Exception as error:
        lines = [f":{frame.lineno}" for frame in extract_tb(error.__traceback__) if frame.filename == file]
        raise ImportError(
            f"{file}{''.join(lines[-1:])}: got {type(error).__name__}: {error}, expected a file that can be imported; put "
            "it right."
        ) from error


def _object(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(f".{module}", __package__), name)
