"""What runs can be told, as frozen dataclasses: their attributes are the options, the help, and the keys of YAML files.

Without PyTorch, so that help and typing errors are there at once. The description of an attribute is its option's help.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from .kinds import SEEDS, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Seed
from .mitigations import mitigation_words
from .noise_settings import OWN_SIMULATION, NoiseSettings
from .shot_schedules import ShotSettings

FREE = frozenset({"device", "ibm.max_qpu_seconds", "ibm.max_shots", "ibm.max_jobs"})
"""What may be another when a run is continued, as the command line names it: its results do not depend on it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What defines a run.

    Attributes:
        seed: Makes runs repeatable, on one machine to the last bit.
    """

    seed: Seed = 0

    without: ClassVar[Collection[str]] = ()
    """The options of :class:`.options.Options` that there is no use for."""

    @classmethod
    def of_today(cls, saved: dict[str, Any]) -> dict[str, Any]:
        """What a run of before wrote down, by the names of today."""
        return saved


@dataclass(frozen=True, kw_only=True)
class StudySettings(Settings):
    """What defines a study: the same measurement in many cells.

    Attributes:
        seed: Makes every cell repeatable, wherever it is measured.
    """


@dataclass(frozen=True, kw_only=True)
class HardwareSettings:
    """What :class:`~qiskit_torch_bridge.IBMBackend` can be told, by its own names.

    Attributes:
        account: The name that the account was saved under; null: the default one.
        instance: The instance's name or CRN; null: the account's.
        mode: Each job by itself, a batch, or a session (billed between jobs too; not in the open plan).
        max_time: Seconds that a session or batch may be open; null: the service's.
        primitive: IBM's primitive; an estimator can mitigate errors.
        options: The primitive's options by IBM's names, such as '{"dynamical_decoupling": {"enable": true}}'.
        optimization_level: The transpiler's.
        seed_transpiler: Makes the transpiler's choices repeatable.
        packing: Rows side by side on disjoint regions of the device, which takes fewer seconds: auto, the most regions, or
            such as '{"rotate": "shots"}' by the names of qiskit_torch_bridge.Packing (which --mitigation readout needs).
        fractional_gates: Whether to use the device's rx and rzz of any angle, where it has them.
        max_qpu_seconds: Stop before the job with which the run would pass so many seconds of QPU time.
        max_shots: Stop before the job with which it would pass so many shots.
        max_jobs: Stop before it would send more jobs than this.
        shadow: Simulate each job without noise too, and log what the device adds; noisy: also by the device's noise model,
            and log what that does not explain.
    """

    account: str | None = None
    instance: str | None = None
    mode: Literal["job", "batch", "session"] = "job"
    max_time: PositiveInt | None = None
    primitive: Literal["sampler", "estimator"] = "sampler"
    options: dict[str, Any] | None = None
    optimization_level: Literal[0, 1, 2, 3] = 2
    seed_transpiler: NonNegativeInt | None = 0
    packing: PositiveInt | Literal["auto"] | dict[str, Any] | None = None
    fractional_gates: bool | None = None
    max_qpu_seconds: NonNegativeFloat | None = None
    max_shots: NonNegativeInt | None = None
    max_jobs: NonNegativeInt | None = None
    shadow: bool | Literal["noisy"] = False


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(ShotSettings, Settings):
    """What defines a training.

    Attributes:
        data_root: Folder of data sets (default: QTB_DATA).
        backend: statevector (exact), noisy:NAME (with a device's noise, noisy:manila), noisy (with the noise of --noise),
            pauli (wide circuits), aer, fake:NAME (a device's noise by Aer), ibm:NAME (a device of IBM's, every step a paid
            job; ibm:fake_manila rehearses that at no cost), replay:FILE (a recorded run).
        ibm: For --backend ibm:NAME.
        noise: For --backend noisy or aer: noise of your own, the name of a YAML file that says it by the names of
            --noise.help.
        mitigation: Methods of error mitigation, separated by commas, for devices and noisy simulators: readout (corrected by
            calibration circuits), twirled_readout (by random flips, expectation values only), zne (gates folded 1, 3 and 5
            times, extrapolated by a line).
        gradient: adjoint, parameter_shift, finite_difference, spsa; null: the best for the backend.
        epochs: Passes through the training examples.
        batch_size: Examples a step.
        lr: Learning rate.
        seeds: Runs of as many seeds, from --seed on, and their distribution.
        device: Where torch computes: cpu, cuda, ...
        gradient_variances: Write each weight's variance from the shots to gradient_variances.csv; it looks at every step.
    """

    data_root: str | None = None
    backend: str = "statevector"
    ibm: HardwareSettings = HardwareSettings()
    noise: NoiseSettings | None = None
    mitigation: str | None = None
    gradient: str | None = None
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 10
    lr: PositiveFloat = 0.01
    seeds: PositiveInt = 1
    device: str = "cpu"
    gradient_variances: bool = False

    @property
    def is_for_hardware(self) -> bool:
        """Whether the backend is a device of IBM's, be it for a rehearsal."""
        return is_hardware(self.backend)

    def follows(self, protocol: TrainingSettings) -> bool:
        """Whether a result can stand beside that of a protocol: only seeds, device and data root may differ."""
        free = {name: getattr(protocol, name) for name in ("seed", "seeds", "device", "data_root")}
        return replace(self, **free) == protocol

    def __post_init__(self) -> None:
        super().__post_init__()
        mitigation_words(self.mitigation)
        if self.seed + self.seeds > SEEDS:
            raise ValueError(
                f"--seeds: got {self.seeds} from --seed {self.seed} on, expected all of them below {SEEDS}."
            )
        if self.noise is not None and self.backend not in (OWN_SIMULATION, "aer"):
            raise ValueError(f"--noise: got it with --backend {self.backend}, expected {OWN_SIMULATION}, or aer.")
        if self.noise is None and self.backend == OWN_SIMULATION:
            raise ValueError(
                f"--backend: got {OWN_SIMULATION} without noise, expected --noise FILE.yaml with it; or name a device, such "
                f"as {OWN_SIMULATION}:manila."
            )
        given = [f"--ibm.{name}" for name, value in vars(self.ibm).items() if value != getattr(HardwareSettings, name)]
        if given and not self.is_for_hardware:
            raise ValueError(
                f"{', '.join(given)}: got --backend {self.backend}, expected ibm:NAME, which these options are for; "
                "leave them out, or name a device (ibm:fake_manila for a rehearsal)."
            )


def is_hardware(word: str) -> bool:
    """Whether a backend's word means a device of IBM's, be it for a rehearsal."""
    return word.startswith("ibm:") and word != "ibm:"
