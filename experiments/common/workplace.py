"""What a run computes with: one process, or all those that ``torchrun`` started; threads; options of quantum layers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .mitigations import mitigation_of
from .noise_models import SIMULATIONS
from .settings import TrainingSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from qiskit_torch_bridge import IBMBackend


def open_fabric(device: str) -> Fabric:
    """Lightning Fabric on a device (``cpu``, ``cuda``, ``cuda:1``, ...); data-parallel where torchrun started us.

    Raises:
        ValueError: If torch cannot compute there.
    """
    from lightning_fabric import Fabric  # which takes a moment

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(f"--device: got {device!r}, which torch cannot use here ({first_line}); try cpu.") from error
    accelerator, _, index = device.partition(":")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        fabric = Fabric(accelerator=accelerator, devices=[int(index)] if index and accelerator != "cpu" else 1)
    else:
        on_this_node = int(os.environ["LOCAL_WORLD_SIZE"])
        fabric = Fabric(
            accelerator=accelerator, devices=on_this_node, num_nodes=processes // on_this_node, strategy="ddp"
        )
    fabric.launch()
    return fabric


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Within it, torch computes in so many threads; None leaves it as it is."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def deferred_interrupt(*, at_once: bool) -> Iterator[threading.Event]:
    """Within it, the first Ctrl-C only sets the event; the second one interrupts at once, or the first if so wanted."""
    pressed = threading.Event()
    if at_once or threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    previous = signal.getsignal(signal.SIGINT)

    def press(number: int, frame: Any) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def layer_seed(seed: int) -> int | tuple[int, int]:
    """The seed of a quantum layer: processes that train together must not share their shot noise."""
    rank = int(os.environ.get("RANK", "0"))
    return seed if rank == 0 else (seed, rank)


def layer_options(settings: TrainingSettings, device: IBMBackend | None = None) -> dict[str, Any]:
    """What the settings say of a quantum layer: backend, shots, gradient rule, mitigation and seed.

    Args:
        settings: Of a training.
        device: The device that was opened for it, in place of its word.
    """
    names = ("backend", "shots", "gradient", "allocation")
    options: dict[str, Any] = {name: getattr(settings, name) for name in names} | {"seed": layer_seed(settings.seed)}
    options["mitigation"] = mitigation_of(settings.mitigation)
    if settings.noise is not None:
        options["backend"] = SIMULATIONS[settings.backend](settings.noise)
    return options if device is None else options | {"backend": device}


def simulated_options(settings: TrainingSettings) -> dict[str, Any]:
    """The same on a simulator, if they are for hardware: enough to see whether a layer can be made."""
    return layer_options(settings) | ({"backend": "aer"} if settings.is_for_hardware else {})


def exact_options(settings: TrainingSettings) -> dict[str, Any]:
    """The same with exact simulation, for circuits that are drawn and not measured."""
    exact = {"backend": None, "shots": None, "gradient": None, "allocation": "uniform", "mitigation": ()}
    return exact | {"seed": layer_seed(settings.seed)}


def gathered(fabric: Fabric, value: Any) -> list[Any]:
    """What each process holds, by rank; on all of them."""
    if fabric.world_size == 1:
        return [value]
    values: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(values, value)
    return values


def total(fabric: Fabric, tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all processes; on all of them."""
    summed = fabric.all_reduce(tensor, reduce_op="sum")
    assert isinstance(summed, torch.Tensor)
    return summed
