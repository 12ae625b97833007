"""``python -m experiments NAME [options]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from qiskit_torch_bridge.commands import exit_status

from .common.experiment import run_command
from .common.sweeps import run_study

EXPERIMENTS = {
    "mnist01": "hybrid CNN that tells handwritten 0 from 1, gradients by parameter shift (Qiskit textbook)",
    "mnist36": "layerwise learning: a quantum circuit that tells 3 from 6 grows while it is trained (Skolik et al.)",
    "transfer": "quantum transfer learning: a frozen ResNet18 with a dressed quantum circuit on top (Mari et al.)",
    "pretrain": "trains a network for transfer; --exclude leaves out the classes that are to be told apart later",
    "spirals": "a dressed quantum circuit beside its classical twin on two interleaved spirals (Mari et al.)",
    "recipes": "where to put a quantum layer, quick starts, data re-uploading, dropout: questions answered with numbers",
    "barren-plateau": "how fast gradients vanish as random circuits grow (McClean et al.), and what start and depth change",
    "shot-noise": "standard errors against shots, accuracy against the shots spent, and the bias that shots do not cure",
    "gradient-methods": "finite differences and SPSA beside parameter shift: bias, variance and error at equal shots",
    "benchmark": "time for a training step against other libraries, whose answers must agree first",
}
TOOLS = {
    "plot": "draws a run's figures anew from its files: python -m experiments plot RUN ...",
    "compare": "puts runs side by side, a table and a figure: python -m experiments compare RUN RUN ...",
    "ibm-check": "is now the command qtb check",
    "jobs": "is now the commands qtb jobs and qtb record",
    "reference": "builds the API reference from the docstrings: python -m experiments reference --out FOLDER",
    "record-lesson": "trains a small circuit on a simulated device and records it, to be replayed without an account",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the experiment that the first argument names, or lists what there is.

    Returns:
        The process's exit status: 0 done, 1 refused or failed (one line says why), 2 no such experiment, 130 interrupted.
    """
    name, *options = (sys.argv[1:] if arguments is None else arguments) or [""]
    return exit_status(name, partial(_perform, name, options))


def _perform(name: str, options: Sequence[str]) -> int:
    if name not in EXPERIMENTS | TOOLS:
        asked_for_help = name in ("", "-h", "--help", "list")
        if not asked_for_help:
            print(f"No experiment {name!r}.", file=sys.stderr)
        print("Usage: python -m experiments NAME [options]; python -m experiments NAME --help\n")
        width = max(map(len, EXPERIMENTS | TOOLS))
        for known, summary in (EXPERIMENTS | TOOLS).items():
            print(f"  {known:<{width}}  {summary}")
        return 0 if asked_for_help else 2
    module_name = name.replace("-", "_")
    if name in ("ibm-check", "jobs"):  # commands of the library now
        return int(getattr(import_module("experiments.earlier_names"), module_name)(options))
    module = import_module(f"experiments.{module_name}")
    if hasattr(module, "EXPERIMENT"):
        return run_command(module.EXPERIMENT, options)
    return run_study(module.STUDY, options) if hasattr(module, "STUDY") else int(module.main(options))


def _end_process_group(status: int) -> None:
    """Ends the group of processes that torchrun started, while all of them are there.

    Left to the interpreter's end, in a process that is done before the others, its threads sometimes abort the process.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    if status == 0:
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    status = main()
    _end_process_group(status)
    sys.exit(status)
