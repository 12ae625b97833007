r"""Backends: where circuits run, and how what the user holds becomes a backend of ours.

| ``backend=`` | what it is | values |
|---|---|---|
| ``None``, ``"statevector"`` | exact simulation on this machine's cores | exact, or multinomial shots |
| ``"aer"``, an ``AerSimulator`` | Aer with your method, noise, device | exact (without readout errors), or Aer's shots |
| ``"noisy:manila"``, a ``DensityMatrixBackend`` | noise, a device's or yours, on this machine's cores | as the first |
| ``"pauli"``, a ``PauliBackend`` | Pauli propagation on this machine's cores, for a hundred qubits | with bounds, no shots |
| ``"fake:manila"``, a fake device | Aer with a device's noise, connections and gates | shots |
| ``"ibm:NAME"``, an IBM device, ``Session``, ``Batch`` | hardware (:mod:`qiskit_torch_bridge.backends.ibm`) | shots |
| any V2 Sampler; any other ``BackendV2``, such as ``BasicSimulator`` | its counts | shots |
| any V2 Estimator | its values and standard errors | precision ``1 / sqrt(shots)`` |
| ``"replay:FILE"`` | a recording of hardware | the recorded shots |

All of them take compiled programs (:class:`qiskit_torch_bridge.Program`) and many angle vectors at once: one call for the
values of a batch and one for all points of its gradient; on hardware one job for both. They transpile a circuit once, apply
its layout to observables and measured bits alike, and give values with variances. Qubits are numbered as in the circuit
that you wrote, wherever it runs; the layout of a circuit that you have transpiled yourself is undone in the readout.

``shots=None`` means exact where the backend can, and its default elsewhere. The same shots hold for values and gradients. A
backend holds no random state: the seed comes with every call, so that one seed repeats a whole run. Gradients are adjoint
by default where values are exact on ``statevector`` or a ``DensityMatrixBackend``, and on a ``PauliBackend``, and by
parameter shift elsewhere.

**Which one?** To study a model, ``statevector``: it is fastest, exact or with shots, and takes shallow circuits of any
width. To train under noise, ``DensityMatrixBackend(noise_model)`` or ``"noisy:manila"``: hundreds of times faster than Aer,
with exact gradients, for up to some ten qubits, and for shallow circuits of any width. Where light cones are too wide for
both, ``PauliBackend``, if expectation values will do and the circuit is near to Clifford gates, or noisy by errors that are
Pauli strings; its values say how far off they may be. Else Aer or a fake device with shots; more of them do not cure the
noise's bias. Before paying, ``"ibm:fake_fez"``: the hardware's way with a simulated device, its jobs and prices included.
The reference Estimators add Gaussian noise to exact values, which is not shot noise.

**Noise, exactly.** :class:`qiskit_torch_bridge.DensityMatrixBackend` takes what Aer takes: a ``NoiseModel``, a device, its
``target`` or ``properties()``. Without shots its values are those of infinitely many shots on Aer, readout errors included,
and with shots it draws from the same distribution; layers on it are seeded, resumed and quoted as on ``statevector``.
Refused by name, with Aer as the remedy: errors that are no physical channel or act on more than five qubits, ``reset`` and
other instructions that are no gates, passes of a noise model that are not Aer's own, noise that the transpiler would lose,
and circuits that are too large for the machine's memory. As by Aer, readout errors that several qubits share are left out,
with a warning. What it costs: :mod:`qiskit_torch_bridge.simulator`.

A backend of your own: :mod:`qiskit_torch_bridge.testing`.
"""

from __future__ import annotations

from typing import Any

from ..arguments import did_you_mean
from .base import Backend, Charge, Estimate, Request, check_shots
from .passport import Passport
from .statevector import StatevectorBackend

__all__ = ["Backend", "Charge", "Estimate", "Passport", "Request", "check_shots", "resolve_backend"]

_WORDS = "'statevector', 'aer', 'pauli', 'noisy:NAME', 'fake:NAME', 'ibm:NAME', 'replay:FILE'"


def resolve_backend(backend: Any) -> Backend:
    """The backend that the user means.

    Args:
        backend: None, a word (``"statevector"``, ``"aer"``, ``"pauli"``, ``"noisy:NAME"``, ``"fake:NAME"``, ``"ibm:NAME"``,
            ``"replay:FILE"``), an ``AerSimulator``, a fake device, an IBM device, ``Session`` or ``Batch``, any V2 Sampler
            or Estimator, any other ``BackendV2``, or one of ours.

    Raises:
        TypeError: If it is none of these, or a backend of ours without a name.
        ValueError: If the word is unknown.
        ImportError: If a package that it needs is not installed.
    """
    if backend is None:
        return StatevectorBackend()
    if isinstance(backend, Backend):
        if not isinstance(getattr(backend, "name", None), str):
            raise TypeError(
                f"backend: got a {type(backend).__name__} without a name, expected one with a string as its attribute "
                'name; write name = "..." in the class.'
            )
        return backend
    if isinstance(backend, str):
        return _from_word(backend)
    if isinstance(backend, type):
        raise TypeError(
            f"backend: got the class {backend.__name__}, expected one of its objects (if it is a device, a V2 Sampler or "
            f"Estimator, or a backend of this package); write {backend.__name__}(...)."
        )
    return _from_object(backend)


def _from_word(word: str) -> Backend:
    kind, _, name = word.partition(":")
    if word == "statevector":
        return StatevectorBackend()
    if word == "aer":
        from .aer import AerBackend

        return AerBackend()
    if word == "pauli":
        from .pauli import PauliBackend

        return PauliBackend()
    if kind == "fake" and name:
        from .aer import AerBackend
        from .ibm.device import fake_device

        return AerBackend(fake_device(name))
    if kind == "noisy" and name:
        from .density_matrix import DensityMatrixBackend
        from .ibm.device import fake_device

        return DensityMatrixBackend(device=fake_device(name, word=kind))
    if kind == "ibm" and name:
        from .ibm.backend import IBMBackend

        return IBMBackend(name)
    if kind == "replay" and name:
        from .ibm.recording import Replay

        return Replay(name)
    raise ValueError(f"backend: got {word!r}, expected one of {_WORDS}, or a backend object{_guess(word) or '.'}")


def _guess(word: str) -> str:
    kind = word.partition(":")[0]
    if kind.startswith(("fake_", "ibm_")):  # a device's name alone
        return f"; did you mean '{kind.partition('_')[0]}:{word}'?"
    forms = {form.partition(":")[0]: form for form in _WORDS.replace("'", "").split(", ")}
    return did_you_mean(kind, forms, forms)


def _from_object(backend: Any) -> Backend:
    from qiskit.primitives import BackendSamplerV2, BaseEstimatorV2, BaseSamplerV2
    from qiskit.providers import BackendV2

    from .primitives import EstimatorBackend, SamplerBackend
    from .simulated import is_from

    names = {cls.__name__ for cls in type(backend).__mro__}
    if isinstance(backend, BaseSamplerV2):
        return SamplerBackend(backend)
    if isinstance(backend, BaseEstimatorV2):
        return EstimatorBackend(backend)
    if isinstance(backend, BackendV2):
        if is_from("qiskit_aer", backend) or {"FakeBackendV2", "GenericBackendV2"} & names:
            from .aer import AerBackend

            return AerBackend(backend)
        if not is_from("qiskit_ibm_runtime", backend):
            return SamplerBackend(BackendSamplerV2(backend=backend))
    if isinstance(backend, BackendV2) or (is_from("qiskit_ibm_runtime", backend) and {"Session", "Batch"} & names):
        from .ibm.backend import IBMBackend

        return IBMBackend(backend)
    raise TypeError(
        f"backend: got {backend!r} ({type(backend).__name__}), expected one of {_WORDS}, an AerSimulator, a fake or real "
        "device, a Session or Batch, a V2 Sampler or Estimator, or a backend of this package (V1 primitives are no longer "
        "part of Qiskit)."
    )
