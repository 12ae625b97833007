"""Runs of experiments: how they are started, interrupted and killed, and what they wrote."""

import atexit
import csv
import json
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from experiments.__main__ import main
from experiments.common.experiment import Experiment
from experiments.common.options import parse
from experiments.common.runs import RunFolder
from experiments.common.settings import TrainingSettings

S = TypeVar("S", bound=TrainingSettings)
CHECKOUT = Path(__file__).parents[2]
CONFIGS = CHECKOUT / "experiments" / "configs"
IMPORTED_BEFORE = [
    *("experiments.__main__", "experiments.mnist01", "experiments.transfer.transfer_learning"),
    *("qiskit_torch_bridge.simulator.engine", "sklearn.datasets", "tensorboard.summary.writer.record_writer"),
    *("distributed.nanny", "experiments.common.cluster", "toy_experiment", "toy_study", "lightning_fabric"),
    *("ipykernel.kernelapp", "matplotlib.pyplot"),
]
"""What :func:`forked` imports once for all processes."""

SMALL = ["--train-per-digit", "6", "--test-per-digit", "5", "--dataset", "digits", "--batch-size", "4"]
QUICK = [*SMALL, "--backend", "statevector", "--shots", "50"]
"""Options of ``mnist01``: three steps and a test an epoch."""


def without_time(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics without the one number that differs from run to run."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of ``metrics.csv`` to the last digit, without times."""
    with (folder / "metrics.csv").open() as file:
        return without_time([*csv.DictReader(file)])


def result(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(RunFolder(folder).read_checkpoint()["model"])


def assert_same_run(one: Path, other: Path) -> None:
    """Metrics and weights agree to the last bit."""
    assert metrics(one) == metrics(other)
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=0)


def parsed(experiment: Experiment[S], *arguments: str) -> S:
    """The settings of a new run with these options."""
    return experiment.complete(parse(experiment.name, experiment.settings, arguments)[1])


def one_line(capsys: Any, *arguments: str) -> str:
    """The one line that says why the command failed."""
    capsys.readouterr()
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"{arguments[0]}: ")
    return line


def assert_refused(capsys: Any, folder: Path, said: str, *arguments: str) -> None:
    """The command says so in one line, and leaves no folder of a run."""
    assert said in one_line(capsys, *arguments, "--run-dir", str(folder))
    assert not folder.exists()


def spent_as_said(capsys: Any, folder: Path, words: str, *arguments: str) -> tuple[dict[str, Any], str]:
    """The result of a run, whose circuits and shots a dry run has told before, after these words; and what that printed."""
    capsys.readouterr()
    assert main([*arguments, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert main([*arguments, "--run-dir", str(folder)]) == 0
    spent = result(folder)
    assert f"{words}: {spent['circuits']:,} circuits, {spent['shots']:,} shots" in printed
    return spent, printed


def said_by_parser(capsys: Any, *arguments: str) -> str:
    """What the parser of the command says of arguments that it refuses."""
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    return str(capsys.readouterr().err)


@contextmanager
def ctrl_c_at(call: int, loss: str) -> Iterator[list[None]]:
    """Within it, Ctrl-C is pressed when torch's loss of that name is computed for the call-th time.

    Yields:
        A list that has an entry for each time that it was.
    """
    genuine, calls = getattr(functional, loss), []

    def pressing(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(None)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return genuine(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, loss, pressing)
        yield calls


def interrupted(folder: Path, options: Sequence[str], call: int, loss: str, part: str = "") -> dict[str, Any]:
    """Two runs of a command: ``straight``, and ``broken`` by Ctrl-C (see :func:`ctrl_c_at`), which was then resumed.

    Returns:
        The checkpoint from which it went on: that of the run, or of one of its parts.
    """
    straight, broken = folder / "straight", folder / "broken"
    assert main([*options, "--run-dir", str(straight)]) == 0
    with ctrl_c_at(call, loss):
        assert main([*options, "--run-dir", str(broken)]) == 130
    state = RunFolder(broken / part).read_checkpoint()
    assert main([options[0], "--resume", "--run-dir", str(broken)]) == 0
    return state


@contextmanager
def figures_not_rendered() -> Iterator[None]:
    """Within it, figures are put together, but empty files stand for the pictures: those take most of a small run's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "write_figure", lambda folder, name, figure: folder.write(name, b""))
        yield


@contextmanager
def figures_rendered_once() -> Iterator[None]:
    """Within it, only the first figure of each name is rendered: a run of many trainings has a ``loss.png`` in each."""
    genuine, rendered = RunFolder.write_figure, {}

    def write(folder: RunFolder, name: str, figure: Any) -> None:
        if name in rendered:
            folder.write(name, rendered[name])
        else:
            genuine(folder, name, figure)
            rendered[name] = folder.file(name).read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "write_figure", write)
        yield


def forked() -> ForkServerContext:
    """Starts processes as forks of one that has imported the experiments and done nothing else.

    Imports take most of a small run's time.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED_BEFORE)
    ensure_running()
    return context


def experiment(*arguments: str) -> None:
    """The command as a program."""
    raise SystemExit(main(arguments))


def _silently(
    program: Callable[..., None],
    arguments: Sequence[str],
    environment: Mapping[str, str],
    ignored: Sequence[int],
    warnings_are_errors: bool,
) -> None:
    os.environ.clear()  # what the process from which this one was forked has: it began in the midst of another test
    os.environ.update(environment)
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    if warnings_are_errors:
        warnings.simplefilter("error")
        sys.warnoptions.append("error")  # for processes that it starts
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        program(*arguments)


def start(
    *arguments: str,
    program: Callable[..., None] = experiment,
    variables: Mapping[str, str] | None = None,
    ignored: Sequence[int] = (),
    warnings_are_errors: bool = False,
) -> BaseProcess:
    """The command, or another program, in a :func:`forked` process, which may be killed.

    Args:
        arguments: Those of the program.
        program: What is called.
        variables: Of its environment, besides those of this process.
        ignored: Signals that it finds ignored.
        warnings_are_errors: In it, and in Python processes that it starts.
    """
    environment = {**os.environ, **(variables or {})}
    process = forked().Process(target=_silently, args=(program, arguments, environment, ignored, warnings_are_errors))
    process.start()
    return process


def heard(said: str, program: Callable[..., None], *arguments: str) -> None:
    """Calls a program; what it and the processes that it starts print is in the files ``out`` and ``err`` of that folder."""
    for descriptor, name in ((1, "out"), (2, "err")):
        with (Path(said) / name).open("w") as file:
            os.dup2(file.fileno(), descriptor)
    with ExitStack() as stack:
        for descriptor, redirect in ((1, redirect_stdout), (2, redirect_stderr)):
            stack.enter_context(redirect(stack.enter_context(open(descriptor, "w", closefd=False))))
        program(*arguments)


def heard_in_a_session(said: str, program: Callable[..., None], *arguments: str) -> None:
    """The same as a terminal starts it: what it starts is of its process group too, to which Ctrl-C goes."""
    os.setsid()
    heard(said, partial(_with_exit_functions, program), *arguments)


def _with_exit_functions(program: Callable[..., None], *arguments: str) -> None:
    """Forked processes leave these functions out, and they may have something to complain of."""
    try:
        program(*arguments)
    finally:
        atexit._run_exitfuncs()


def write_pictures(folder: Path) -> Path:
    """Writes four classes of small random pictures, six each to train on, three each to test on; returns the folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for label, name in enumerate("abcd"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(60 * label, 60 * label + 60, size=(10, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder
