"""IBM's devices through qiskit-ibm-runtime; the only module that imports it."""

from __future__ import annotations

from typing import Any

__all__ = ["fake_device", "sampler_for"]


def fake_device(name: str) -> Any:
    """The fake device of that name, a snapshot of a real one.

    Args:
        name: ``"manila"``, ``"fake_manila"`` and ``"FakeManilaV2"`` are the same.

    Raises:
        ImportError: If qiskit-ibm-runtime is not installed.
        ValueError: If there is none of that name.
    """
    try:
        from qiskit_ibm_runtime import fake_provider
    except ImportError as error:
        raise ImportError(
            "backend 'fake:NAME' needs qiskit-ibm-runtime, which is not installed; install the extra: "
            "pip install 'qiskit-torch-bridge[ibm]'."
        ) from error
    devices = {
        name_of_device.removeprefix("fake_"): device
        for device in vars(fake_provider).values()
        if isinstance(device, type) and isinstance(name_of_device := getattr(device, "backend_name", None), str)
    }
    wanted = name.lower().removeprefix("fake").removeprefix("_").removesuffix("v2")
    if wanted not in devices:
        raise ValueError(f"backend: got 'fake:{name}', expected one of {', '.join(sorted(devices))} after the colon.")
    return devices[wanted]()


def sampler_for(device: Any) -> Any:
    """A Sampler that runs on the device in job mode: every call queues for itself."""
    from qiskit_ibm_runtime.executor_sampler import Sampler

    return Sampler(mode=device)
