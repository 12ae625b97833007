"""Counts what one training step submits: ``python -m experiments.hardware_cost.counting SYSTEM MODEL SHOTS``.

The library under test runs its own code in this process, against a fake device through IBM's client. Between the client and
the simulator every job is counted; then its circuits are simulated without noise, so that the values and gradients can be
compared with exact ones: the costs of a wrong answer mean nothing. Nothing leaves the machine. The counts are printed as
JSON.
"""

from __future__ import annotations

import json
import math
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, NamedTuple

from ..benchmark.exact_answers import Answer, compare, exact_answer
from ..benchmark.gate_lists import Problem, Step
from .steps import DEVICE, MODELS, SYSTEMS

if TYPE_CHECKING:
    from qiskit import QuantumCircuit
    from qiskit.primitives.containers.estimator_pub import EstimatorPub
    from qiskit.primitives.containers.sampler_pub import SamplerPub
    from qiskit.transpiler import Target


class Pub(NamedTuple):
    """What one PUB takes.

    Attributes:
        circuits: Circuits with their parameters bound, once for each measurement basis.
        shots: Of each.
        duration: Of one execution in seconds, by the device's gate times.
    """

    circuits: int
    shots: int
    duration: float


@dataclass
class Counts:
    """What has been submitted.

    Attributes:
        jobs: Jobs.
        pubs: PUBs of all jobs.
        circuits: Circuits of all PUBs.
        executions: Circuits times shots.
        circuit_seconds: The durations of all executions, without the delays between them.
        executions_of_largest_job: Of the job that has most.
    """

    jobs: int = 0
    pubs: int = 0
    circuits: int = 0
    executions: int = 0
    circuit_seconds: float = 0.0
    executions_of_largest_job: int = 0

    def add(self, pubs: Sequence[Pub]) -> None:
        """Counts a job."""
        executions = sum(pub.circuits * pub.shots for pub in pubs)
        self.jobs += 1
        self.pubs += len(pubs)
        self.circuits += sum(pub.circuits for pub in pubs)
        self.executions += executions
        self.circuit_seconds += sum(pub.circuits * pub.shots * pub.duration for pub in pubs)
        self.executions_of_largest_job = max(self.executions_of_largest_job, executions)


def of_sampler(pub: SamplerPub, shots: int, target: Target) -> Pub:
    """What a Sampler's PUB takes, with so many shots if it names none."""
    return Pub(math.prod(pub.shape), pub.shots or shots, pub.circuit.estimate_duration(target, unit="s"))


def of_estimator(pub: EstimatorPub, precision: float | None, target: Target) -> Pub:
    """What an Estimator's PUB takes, with that precision if it names none.

    Raises:
        ValueError: If there is no precision at all: IBM's default would be no basis for a comparison.
    """
    precision = pub.precision or precision
    if precision is None:
        raise ValueError("precision: got none with a job, expected one; set it where the library is called.")
    shots = math.ceil(precision**-2 * (1 - 1e-12))  # as IBM has it; the precision itself is rounded
    return Pub(bases_of(pub), shots, measured(pub).estimate_duration(target, unit="s"))


def bases_of(pub: EstimatorPub) -> int:
    """How many circuits an Estimator's PUB takes: for each parameter set, one a group of qubit-wise commuting terms."""
    import numpy as np
    from qiskit.quantum_info import PauliList

    sets = np.arange(math.prod(pub.parameter_values.shape)).reshape(pub.parameter_values.shape)
    observables = np.empty(pub.observables.shape, dtype=object)
    for place in np.ndindex(observables.shape):
        observables[place] = frozenset(pub.observables[place])
    terms: dict[int, frozenset[str]] = {}
    for number, labels in zip(*(each.ravel() for each in np.broadcast_arrays(sets, observables)), strict=True):
        terms[number] = terms.get(number, frozenset()) | labels
    groups = {each: len(PauliList(sorted(each)).group_commuting(qubit_wise=True)) for each in set(terms.values())}
    return sum(groups[each] for each in terms.values())


def measured(pub: EstimatorPub) -> QuantumCircuit:
    """The PUB's circuit with a measurement of each qubit that its observables read."""
    from qiskit import ClassicalRegister

    circuit: QuantumCircuit = pub.circuit.copy()
    labels = {label for place in pub.observables.ravel() for label in place}
    qubits = sorted({qubit for label in labels for qubit, letter in enumerate(reversed(label)) if letter != "I"})
    circuit.add_register(outcome := ClassicalRegister(len(qubits), "outcome"))
    circuit.measure(qubits, outcome)
    return circuit


@contextmanager
def replaced(owner: type, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Within it, a class has another method of that name."""
    genuine = getattr(owner, name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        setattr(owner, name, genuine)


@contextmanager
def counted_estimator(seed: int) -> Iterator[Counts]:
    """Within it, jobs of IBM's Estimator on fake devices are counted, and simulated without noise.

    Args:
        seed: Of the simulation; each job has another one.
    """
    from qiskit.primitives import BackendEstimatorV2
    from qiskit_aer import AerSimulator
    from qiskit_ibm_runtime.fake_provider.local_service import QiskitRuntimeLocalService

    counts, simulator = Counts(), AerSimulator()

    def run(service: Any, backend: Any, primitive: str, options: Any, inputs: Any) -> Any:
        if primitive != "estimator":
            raise ValueError(f"primitive: got {primitive!r}, expected 'estimator', whose jobs are counted here.")
        default = {name: options[name] for name in ("default_precision",) if options.get(name) is not None}
        counts.add([of_estimator(pub, default.get("default_precision"), backend.target) for pub in inputs["pubs"]])
        own = {"seed_simulator": seed + counts.jobs, **default}
        return BackendEstimatorV2(backend=simulator, options=own).run(inputs["pubs"])

    with replaced(QiskitRuntimeLocalService, "_run_backend_primitive_v2", run):
        yield counts


@contextmanager
def counted_sampler(target: Target) -> Iterator[Counts]:
    """Within it, jobs of IBM's Sampler are counted, the one that works through IBM's executor; they run as they would.

    Args:
        target: Of the device.
    """
    from qiskit.primitives.containers.sampler_pub import SamplerPub
    from qiskit_ibm_runtime.executor_sampler import Sampler

    counts, genuine = Counts(), Sampler.run

    def run(sampler: Any, pubs: Any, *, shots: int) -> Any:
        pubs = list(pubs)
        counts.add([of_sampler(SamplerPub.coerce(pub, shots), shots, target) for pub in pubs])
        return genuine(sampler, pubs, shots=shots)

    with replaced(Sampler, "run", run):
        yield counts


def fake_device() -> Any:
    """The fake device for which all circuits are compiled."""
    from qiskit_ibm_runtime import fake_provider

    return getattr(fake_provider, "".join(part.title() for part in DEVICE.split("_")))()


def without_noise(device: Any) -> Any:
    """A simulator with a fake device's target and without its noise."""
    from qiskit_aer import AerSimulator

    return AerSimulator.from_backend(device, noise_model=None)


def counts_of_step(system: str, model: str, shots: int, seed: int = 0) -> dict[str, Any]:
    """What a training step submits, the packages' versions, and how far its answer is from the exact one.

    Raises:
        ValueError: If the answer is wrong.
        ImportError: If the library is not installed.
    """
    build: Callable[..., Step] = pkgutil.resolve_name(SYSTEMS[system].adapter)
    device = fake_device()
    problem: Problem = MODELS[model].make(seed=seed)
    ours = system == "ours"
    with counted_sampler(device.target) if ours else counted_estimator(seed) as counts:
        step = build(problem, shots, seed, without_noise(device) if ours else device)
        answer = Answer.of(*step.take())
    deviation, wrong = compare(answer, exact_answer(problem), problem, shots=shots, tolerance=0.0)
    if wrong:
        raise ValueError(f"{system}: {model}: {wrong}.")
    versions = {package: metadata.version(package) for package in SYSTEMS[system].packages}
    return {**asdict(counts), "deviation": deviation, "versions": versions}


def main() -> None:
    """Counts what the command line names."""
    system, model, shots = sys.argv[1:]
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no reply
    with replies:
        json.dump(counts_of_step(system, model, int(shots)), replies)


if __name__ == "__main__":
    main()
