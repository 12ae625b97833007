"""Training a classifier, step by step, so that it can be interrupted at any step and continued to the last bit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from .board import Board
from .classifiers import Correct, Loss, decided_rightly, quantum_layers, queues
from .gradient_noise import COLUMNS, STEPS_A_LOOK, GradientNoise, columns, variances
from .hardware import Measured
from .options import yaml_of
from .rows import Examples, require_examples
from .runner import Interrupted
from .runs import RunFolder
from .settings import TrainingSettings
from .shot_schedules import shot_schedule
from .workplace import deferred_interrupt, gathered, layer_options, threads, total

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from qiskit_torch_bridge import IBMBackend, ShotSchedule

SECONDS_BETWEEN_CHECKPOINTS = 60.0  # within an epoch; one is also written at the end of each

_PARTS = {
    *("model", "optimizer", "scheduler", "stages", "stage", "epoch", "step"),
    *("rows", "test_scores", "processes", "seconds"),
}


@dataclass(eq=False)
class Batch:
    """The examples of a training step that this process has; all of them where it is the only one.

    Attributes:
        inputs: Shape (N, ...), where the model computes.
        labels: Shape (N,), or (N, ...) where a row has several.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    _learn: Callable[[torch.Tensor, torch.Tensor], None]
    _learnt: bool = field(default=False, init=False)

    def learn(self, losses: torch.Tensor, scores: torch.Tensor) -> None:
        """Goes back through the mean of the losses over the whole batch, and moves the weights.

        Args:
            losses: The loss of each row, shape (N,).
            scores: The model's scores, shape (N, scores), for the training accuracy.
        """
        if losses.shape != self.labels.shape[:1]:
            raise ValueError(
                f"losses: got shape {tuple(losses.shape)}, expected a loss for each row, ({len(self.labels)},)."
            )
        if self._learnt:
            raise RuntimeError("learn: got a second call for a batch, expected one.")
        self._learnt = True
        self._learn(losses, scores)


class Work:
    """A training under way: where it computes and writes, its steps, and what they come to.

    Under torchrun each process takes every n-th row of a batch, and the gradients are those of the whole batch: each process
    divides its losses by the rows of all, and the gradients are summed. Only batch normalisation sees the rows of its own
    process alone; what it has gathered in the first process counts.

    Everything random comes from streams whose positions are in the checkpoint: torch's own generators (dropout,
    augmentation), the quantum layers' shots, and the order of the examples, which follows from the seed and the epoch alone.

    Where a quantum layer's steps wait in a queue, each is worth a checkpoint: one is written after every step. Ctrl-C then
    interrupts at once, because a step may take hours, and the ledger has its job.

    Args:
        name: The experiment's.
        settings: What defines the training.
        folder: Its run folder. Only the first process writes there; it goes on from the checkpoint that it holds, if any.
        fabric: Device and processes.
        device: The device of IBM's that was opened for it.
        progress: Whether to show it.

    Attributes:
        rows: The metrics of each finished epoch.
        test_scores: The scores of the test examples after the last of them.
    """

    def __init__(
        self,
        name: str,
        settings: TrainingSettings,
        folder: RunFolder,
        fabric: Fabric,
        *,
        device: IBMBackend | None = None,
        progress: bool = True,
    ) -> None:
        self.name, self.settings, self.folder, self.fabric, self.device = name, settings, folder, fabric, device
        self._progress = progress and fabric.is_global_zero
        self.rows: list[dict[str, Any]] = []
        self.test_scores = torch.empty(0)
        self.model: nn.Module = nn.Sequential()
        self.epoch = 0
        self.step = 0
        self._stages: list[list[Any]] = []
        self._last_epoch = 0
        self._to_restore: dict[str, Any] | None = None
        self._sums = _no_sums()
        self._shot_schedule: ShotSchedule | None = None
        self._correct: Correct = decided_rightly
        self._gradient_noise = GradientNoise(self.model)
        self._variances: list[dict[str, Any]] = []
        self._earlier = {"circuits": 0, "shots": 0}
        self._seconds_before, self._started = 0.0, time.perf_counter()
        self._saved = time.perf_counter()
        self._measured = self._measured_by_all = Measured()
        self._board: Board | None = None
        self._for_steps = ExitStack()

    def __enter__(self) -> Work:
        return self

    def __exit__(self, *error: object) -> None:
        self._for_steps.close()  # which an error in the loop has left open

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return bool(self.fabric.is_global_zero)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier parts of the run included."""
        return self._seconds_before + time.perf_counter() - self._started

    @property
    def spent(self) -> dict[str, int]:
        """``circuits`` executed and ``shots`` spent so far by this process."""
        layers, earlier = quantum_layers(self.model), self._earlier
        return {name: earlier[name] + sum(getattr(layer, f"total_{name}") for layer in layers) for name in earlier}

    def layer_options(self) -> dict[str, Any]:
        """What the settings say of a quantum layer: backend, shots, gradient rule, seed, allocation."""
        return layer_options(self.settings, self.device)

    def elsewhere(self, name: str, settings: TrainingSettings, folder: RunFolder) -> Work:
        """Another training, by the same processes; on the device that is open, if it is for hardware too."""
        device = self.device if settings.is_for_hardware else None
        return Work(name, settings, folder, self.fabric, device=device, progress=self._progress)

    def steps(
        self,
        model: nn.Module,
        loss: Loss,
        train: Examples,
        test: Examples,
        *,
        stage: str = "training",
        epochs: int | None = None,
        total_epochs: int | None = None,
        correct: Correct = decided_rightly,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        scheduler: Callable[[torch.optim.Optimizer, int, int], LRScheduler] | None = None,
        threads: int | None = 1,
    ) -> Iterator[Batch]:
        """The steps of a training, or of a stage of one; from the checkpoint on, where there is one.

        A training of several stages (a circuit grows, layers are frozen) has a loop for each, one after the other. A stage
        that a continued run has behind it has no steps; what is done to the model before the loop must not depend on them.

        An epoch ends with a test, a line of metrics and a checkpoint. The keyword arguments have defaults that suit most
        experiments, because each needs one or two others.

        Args:
            model: Gives a row of scores for each example: one a class, or a single logit of class 1.
            loss: For the test.
            train: To train on.
            test: To test on, after each epoch.
            stage: Its name in the metrics.
            epochs: Passes through the training examples; default: what the settings say.
            total_epochs: Of all stages; default: of those so far.
            correct: What accuracies are means of; default: for classes. Labels may have another shape or type then.
            optimizer: From parameters and learning rate to an optimiser.
            scheduler: From an optimiser, the steps of an epoch and the epochs to a schedule, moved on at each step.
            threads: In how many threads torch computes; None: as many as it likes. On small models threads mostly wait for
                each other (beside one busy core, two of them trained the classical twin of ``mnist01`` a hundred times
                slower than one), and the numbers of one do not depend on how many cores there are.

        Yields:
            A batch, which the loop gives to the model; :meth:`Batch.learn` has to be called with what comes of it.

        Raises:
            Interrupted: After Ctrl-C, with a checkpoint written.
            TypeError: If these are no examples, or not of the type of the model's weights.
            ValueError: If the checkpoint is of another model or another kind of run; nothing has changed then.
        """
        self._correct = correct
        require_examples("train", train, model)
        require_examples("test", test, model)
        epochs = self.settings.epochs if epochs is None else epochs
        if not self._begins(stage, epochs):
            return
        with self._for_steps as contexts:
            contexts.enter_context(_threads(threads))
            interrupted = contexts.enter_context(deferred_interrupt(at_once=queues(model)))
            steps = -(-len(train) // self.settings.batch_size)
            self._prepare(model, optimizer)
            self._scheduler = None if scheduler is None else scheduler(self._optimizer, steps, epochs)
            if len(self._stages) == 1 or self._to_restore is not None:
                all_steps = steps * max(total_epochs or 0, self._last_epoch)
                self._shot_schedule = shot_schedule(model, self.settings, steps=all_steps)
            self._restore()
            self._announce()
            while self.epoch < self._last_epoch:
                title = f"{stage}, epoch {self.epoch + 1}/{max(total_epochs or 0, self._last_epoch)}"
                yield from self._epoch(title, train, steps, interrupted)
                self._finish_epoch(stage, loss, test)
                if any(self._anywhere(interrupted.is_set())):
                    raise Interrupted
            self._bank_costs(self.spent)  # before the model grows, because its layers are others then

    def evaluate(self, loss: Loss, examples: Examples) -> tuple[float, float, torch.Tensor]:
        """Mean loss, accuracy, and scores of shape (N, scores), without dropout and in one backend call a process."""
        self.model.eval()
        rank, world = self.fabric.global_rank, self.fabric.world_size
        with torch.no_grad():
            self._share(self.model.buffers())  # the last step has left each process statistics of its own
            inputs, labels = examples.batch(torch.arange(rank, len(examples), world), training=False)
            own_scores = self.model(inputs.to(self.fabric.device))
            self._note_passports()
            scores = own_scores.new_zeros(len(examples), own_scores.shape[1])
            scores[rank::world] = own_scores
            all_labels = labels.new_zeros(len(examples), *labels.shape[1:], device=scores.device)
            all_labels[rank::world] = labels.to(scores.device)
            if world > 1:
                scores, all_labels = (total(self.fabric, part) for part in (scores, all_labels))
            accuracy = self._correct(scores, all_labels).double().mean().item()
            return loss(scores, all_labels).mean().item(), accuracy, scores.cpu()

    def result(self) -> dict[str, Any]:
        """What the training has come to: the last epoch's metrics that a result wants, and its jobs on hardware.

        Raises:
            ValueError: If the checkpoint has stages that this training has not.
        """
        if self._to_restore is not None:
            raise ValueError(self._foreign(["its stages"]))
        names = ("test_accuracy", "train_accuracy", "test_loss", "seconds", "circuits", "shots")
        numbers = {"epochs": self.epoch} | {name: self.rows[-1][name] for name in names}
        for layer in quantum_layers(self.model)[:1]:
            numbers |= self._measured_by_all.result(layer.backend)
        return numbers

    def save(self) -> None:
        """Writes the checkpoint and the metrics so far."""
        state = self._state()
        if self.is_first:
            self.folder.write_checkpoint(state)
            self._write_rows()
        self._saved = time.perf_counter()

    def _write_rows(self) -> None:
        self.folder.write_rows("metrics.csv", self.rows)
        if self._variances:
            self.folder.write_rows("gradient_variances.csv", self._variances)

    def _begins(self, stage: str, epochs: int) -> bool:
        """Notes the stage; whether it is still to be trained."""
        if not self._stages:
            self._to_restore = self._checkpoint()
            self._started = self._saved = time.perf_counter()  # data and features may have taken their time
        self._stages.append([stage, epochs])
        self._last_epoch += epochs
        if self._to_restore is None:
            return True
        number, saved = len(self._stages) - 1, self._to_restore
        name, most = saved["stages"][number]
        passed = number < saved["stage"]
        if name != stage or (most != epochs if passed else most > epochs):
            raise ValueError(self._foreign(["its stages"]))
        if most < epochs and self.settings.shot_schedule == "growing":
            raise ValueError(
                f"--epochs: got {epochs}, expected {most}: shots grow to --last-shots over these; start the longer run anew."
            )
        return not passed

    def _prepare(self, model: nn.Module, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        self.model = model.to(self.fabric.device)
        self._share([*model.parameters(), *model.buffers()])
        if len(self._stages) == 1 and self.fabric.global_rank:  # dropout of its own; the weights are those of the first
            torch.manual_seed(self.settings.seed * 1_000_003 + self.fabric.global_rank)
        if (
            len(self._stages) == 1
            and self.settings.shots
            and any(layer.shots is None for layer in quantum_layers(model))
        ):
            raise ValueError(
                f"model: got a quantum layer without shots, expected the {self.settings.shots} of the settings; make it "
                "with **work.layer_options()."
            )
        self._bank_costs(self._earlier)
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = optimizer(self._trained, lr=self.settings.lr)
        self._gradient_noise = GradientNoise(model, every=1 if self.settings.gradient_variances else STEPS_A_LOOK)

    def _bank_costs(self, spent: dict[str, int]) -> None:
        """Counts anew from what has been spent so far."""
        self._earlier = spent
        for layer in quantum_layers(self.model):
            layer.total_circuits = layer.total_shots = 0

    def _announce(self) -> None:
        """Writes what is known before the first step; from then on, metrics go to TensorBoard too."""
        if not self.is_first:
            return
        if self.epoch < self._last_epoch:
            self.folder.reopen()
        if self._board is None:
            self.folder.write_settings(yaml_of(self.name, self.settings))
            if self.rows:  # a run that was killed between its checkpoint and its metrics has the checkpoint's only
                self._write_rows()
            self._board = Board.fresh(self.folder.file("tensorboard"))
            for row in self.rows:
                self._board.add(row)

    def _epoch(self, title: str, train: Examples, steps: int, interrupted: threading.Event) -> Iterator[Batch]:
        size, rank, world = self.settings.batch_size, self.fabric.global_rank, self.fabric.world_size
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(train), generator=generator)
        disable = None if self._progress else True
        shown: Any = {"desc": title, "initial": self.step, "total": steps, "leave": False, "disable": disable}
        self.model.train()
        for step in (progress := tqdm(range(self.step, steps), **shown)):
            rows = order[step * size : (step + 1) * size]
            inputs, labels = (part.to(self.fabric.device) for part in train.batch(rows[rank::world], training=True))
            batch = Batch(inputs, labels, partial(self._learn, labels=labels, rows_of_all=len(rows)))
            yield batch
            if not batch._learnt:
                raise RuntimeError(
                    "Got a batch that was not learnt from, expected batch.learn(losses, scores) in each step."
                )
            self.step = step + 1
            if self._sums["seen"]:
                progress.set_postfix(loss=f"{self._sums['loss'] / self._sums['seen']:.4f}", refresh=False)
            self._save_if_due(interrupted)

    def _learn(self, losses: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, rows_of_all: int) -> None:
        self._optimizer.zero_grad()
        self._note_passports()
        (losses.sum() * (1 / rows_of_all)).backward()
        self._gradient_noise.look(self.step)
        if self.fabric.world_size > 1:
            for parameter in self._trained:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = total(self.fabric, own)
        self._sums["squares"] += sum(p.grad.square().sum().item() for p in self._trained if p.grad is not None)
        self._sums["steps"] += 1
        self._optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()
        if self._shot_schedule is not None:
            self._shot_schedule.step()  # before an evaluation, whose run has no gradient to go by
        self._sums["loss"] += losses.sum().item()
        self._sums["correct"] += self._correct(scores, labels).sum().item()
        self._sums["seen"] += len(labels)

    def _note_passports(self) -> None:
        for layer in quantum_layers(self.model):
            if layer.last_run is not None and layer.last_run.passport is not None:
                self._measured.note(layer.last_run.passport)

    def _save_if_due(self, interrupted: threading.Event) -> None:
        overdue = queues(self.model) or time.perf_counter() - self._saved > SECONDS_BETWEEN_CHECKPOINTS
        stop, overdue = self._anywhere(interrupted.is_set(), overdue)
        if stop or overdue:
            self.save()
        if stop:
            raise Interrupted

    def _share(self, tensors: Any) -> None:
        """Gives what the first process holds to all."""
        if self.fabric.world_size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor.data, src=0)

    def _anywhere(self, *flags: bool) -> tuple[bool, ...]:
        """Whether it is so in any process: all save and stop together, because gathering the state takes all of them."""
        if self.fabric.world_size == 1:
            return flags
        counts = total(self.fabric, torch.tensor(flags, device=self.fabric.device).int())
        return tuple((counts > 0).tolist())

    def _finish_epoch(self, stage: str, loss: Loss, test: Examples) -> None:
        test_loss, test_accuracy, self.test_scores = self.evaluate(loss, test)
        parts = gathered(self.fabric, {**self._sums, **self.spent})
        sums = {name: sum(part[name] for part in parts) for name in parts[0]}
        self._measured_by_all = Measured.together(gathered(self.fabric, self._measured.state()))
        noise = gathered(self.fabric, self._gradient_noise.state())
        numbers = sum(parameter.numel() for parameter in self._trained)
        row = {
            "epoch": self.epoch + 1,
            "stage": stage,
            "train_loss": sums["loss"] / sums["seen"],
            "train_accuracy": sums["correct"] / sums["seen"],
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
            "gradient_rms": (self._sums["squares"] / (self._sums["steps"] * max(numbers, 1))) ** 0.5,
            **columns(noise),
            "trained_parameters": numbers,
            "circuits": sums["circuits"],
            "shots": sums["shots"],
            "seconds": round(self.seconds, 3),
        }
        self.rows.append(row)
        if self.settings.gradient_variances:
            self._variances += [{"epoch": row["epoch"], "stage": stage, **each} for each in variances(noise)]
        self._gradient_noise.clear()
        self.epoch, self.step, self._sums = self.epoch + 1, 0, _no_sums()
        self.save()
        if self._board is not None:
            self._board.add(row)
        if self._progress:
            tqdm.write(
                f"{stage}, epoch {row['epoch']:>3}: train loss {row['train_loss']:.4f}, "
                f"accuracy {row['train_accuracy']:.3f}; test loss {test_loss:.4f}, accuracy {test_accuracy:.3f}"
            )

    def _state(self) -> dict[str, Any]:
        of_process = {
            "sums": self._sums,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "quantum_rng": [layer.get_rng_state() for layer in quantum_layers(self.model)],
            **self.spent,
            "measured": self._measured.state(),
            "gradient_noise": self._gradient_noise.state(),
            "shot_schedule": None if self._shot_schedule is None else self._shot_schedule.state_dict(),
        }
        return {
            "settings": yaml_of(self.name, self.settings),
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": None if self._scheduler is None else self._scheduler.state_dict(),
            "stages": self._stages,
            "stage": len(self._stages) - 1,
            "epoch": self.epoch,
            "step": self.step,
            "rows": self.rows,
            "variances": self._variances,
            "test_scores": self.test_scores,
            "processes": gathered(self.fabric, of_process),
            "seconds": self.seconds,
        }

    def _checkpoint(self) -> dict[str, Any] | None:
        if not self.folder.has_checkpoint:
            return None
        state = self.folder.read_checkpoint()
        missing = sorted(_PARTS - state.keys())
        if missing:
            raise ValueError(self._foreign(missing))
        if len(state["processes"]) != self.fabric.world_size:
            raise ValueError(
                f"--resume: got {self.fabric.world_size} process(es), expected the {len(state['processes'])} that the run "
                "was started with: each continues its own random numbers."
            )
        if changed := self._changed(state.get("settings", {})):
            raise ValueError(
                f"{self.folder.file('config.yaml')} has other settings than the checkpoint beside it "
                f"({', '.join(changed)}); put them right, or start anew in another folder."
            )
        return state

    def _changed(self, saved: dict[str, Any]) -> list[str]:
        """The numbers that a training was begun with and that are others now; epochs may grow, files may have moved."""
        before, now = type(self.settings).of_today(saved), yaml_of(self.name, self.settings)
        numbers = {key for key, value in now.items() if isinstance(value, (int, float))} - {"epochs"}
        return [
            f"{key}: got {now[key]}, expected {before[key]}"
            for key in sorted(numbers & before.keys())
            if now[key] != before[key]
        ]

    def _restore(self) -> None:
        state, self._to_restore = self._to_restore, None
        if state is None:
            return
        weights, saved = self.model.state_dict(), state["model"]
        differing = [
            name
            for name in sorted(weights.keys() | saved.keys())
            if name not in weights or name not in saved or weights[name].shape != saved[name].shape
        ]
        of_process, layers = state["processes"][self.fabric.global_rank], quantum_layers(self.model)
        if not differing and len(of_process["quantum_rng"]) != len(layers):
            differing = ["its quantum layers"]
        if differing:
            raise ValueError(self._foreign(differing))
        self.model.load_state_dict(saved)
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["scheduler"])
        for layer, rng in zip(layers, of_process["quantum_rng"], strict=True):
            layer.set_rng_state(rng)
        self._earlier = {"circuits": of_process["circuits"], "shots": of_process["shots"]}
        self._measured = Measured(of_process.get("measured"))  # a checkpoint from before there was hardware has none
        self._measured_by_all = Measured.together(gathered(self.fabric, self._measured.state()))
        # Rows of earlier checkpoints know nothing of the gradients' noise.
        self.rows = [{**row, **{name: row.get(name, "") for name in COLUMNS}} for row in state["rows"]]
        self.test_scores = state["test_scores"]
        self.epoch, self.step, self._sums = state["epoch"], state["step"], dict(of_process["sums"])
        self._gradient_noise.restore(of_process.get("gradient_noise", {}))  # earlier checkpoints have none
        self._variances = state.get("variances", [])
        if self._shot_schedule is not None:
            self._shot_schedule.load_state_dict(of_process["shot_schedule"])
        self._seconds_before, self._started = state["seconds"], time.perf_counter()
        torch.set_rng_state(of_process["torch_rng"])
        if torch.cuda.is_available() and of_process["cuda_rng"]:
            torch.cuda.set_rng_state_all(of_process["cuda_rng"])

    def _foreign(self, differing: Sequence[str]) -> str:
        return (
            f"{self.folder.file('checkpoint.pt')} is a checkpoint of another model (it differs in "
            f"{', '.join(differing)}); continue with the settings it was made with, or start anew in another folder."
        )


_threads = threads  # which an argument of steps hides


def _no_sums() -> dict[str, Any]:
    return {"loss": 0.0, "correct": 0, "seen": 0, "squares": 0.0, "steps": 0}
