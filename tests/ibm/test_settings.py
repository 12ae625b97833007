"""Settings of the hardware path are checked where they are given: one error with a remedy, no job, no file."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("qiskit_ibm_runtime", reason="IBM devices need qiskit-ibm-runtime")

from ibm_training import layer_on

from qiskit_torch_bridge import IBMBackend, Limits, Patience, Replay

pytestmark = pytest.mark.usefixtures("folder")
NAN, INF = float("nan"), float("inf")


# --- settings ---------------------------------------------------------------------------------------------------------

CAPS = ("max_qpu_seconds", "max_shots", "max_jobs")
WRONG_SETTINGS = [
    *({cap: value} for cap in CAPS for value in (NAN, INF, -1, True, "60", [5])),
    *({cap: 1.5} for cap in CAPS[1:]),
    *({"max_time": value} for value in ("1h", 0, -5, 1.5, NAN, INF, True)),
    *({"run": value} for value in (5, None, b"run", ["run"])),
    *({name: value} for name in ("account", "instance") for value in (5, True, b"name", ["name"])),
    *({"shadow": value} for value in ("yes", None, 1)),
    *({"fractional_gates": value} for value in ("yes", 1, "always")),
    *({"patience": value} for value in (5, {"retry_seconds": 5}, Patience, Limits())),
    *({"limits": value} for value in (5, {"executions": 5}, Limits, Patience())),
    *({"ledger": value} for value in (5, b"jobs", [], True)),
    *({"options": value} for value in ("x", 5, [], ["default_shots"], {5: 6}, {"twirling"})),
    *({"initial_layout": value} for value in (1, {0, 1}, frozenset({0, 1}), "01", {0: 1}, [0, 0], [-1, 0], [0.5, 1])),
    *({"seed_transpiler": value} for value in (-1, 1.5, "0", True)),
    *({"optimization_level": value} for value in (4, -1, "2", 1.5, True)),
    {"mode": "sesion"},
    {"mode": None},
    {"mode": ["job"]},
    {"primitive": "Sampler"},
    {"primitive": 5},
]


@pytest.mark.parametrize("wrong", WRONG_SETTINGS, ids=str)
def test_wrong_settings_are_refused_by_name(wrong, folder):
    (name,) = wrong
    with pytest.raises((ValueError, TypeError), match=rf"^{name}.*: got .*expected"):
        IBMBackend("fake_manila", **{"ledger": "jobs.sqlite", **wrong})
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("wrong", "guess"),
    [({"mode": "sesion"}, "'session'"), ({"primitive": "Sampler"}, "'sampler'"), ({"mode": "jobs"}, "'job'")],
)
def test_misspelt_words_are_guessed(wrong, guess):
    with pytest.raises(ValueError, match=rf"did you mean {guess}\?$"):
        IBMBackend("fake_manila", **wrong)


@pytest.mark.parametrize(
    ("caps", "found"), [((None, 1e6, np.int64(3)), (None, 1_000_000, 3)), ((np.float64(2.5), None, 0), (2.5, None, 0))]
)
def test_numbers_of_other_kinds_are_taken(caps, found):
    backend = IBMBackend("fake_manila", **dict(zip(CAPS, caps, strict=True)))
    assert dataclasses.astuple(backend.caps) == found


def test_a_ledger_that_cannot_be_a_file_is_refused(folder):
    for place in (folder, folder.parent, "nowhere/jobs.sqlite"):
        with pytest.raises(ValueError, match=r"^ledger: got .*(a folder; give a file|expected a file in a folder)"):
            IBMBackend("fake_manila", ledger=place)
    assert not list(folder.iterdir())


def test_a_ledger_named_by_the_environment_is_checked_before_the_service_is_asked(folder, monkeypatch):
    monkeypatch.setenv("QTB_LEDGER", str(folder))
    with pytest.raises(ValueError, match=r"^QTB_LEDGER: got .*a folder"):
        layer_on("ibm:ibm_nowhere")


@pytest.mark.parametrize("value", [-1, "a", NAN, INF, None, True])
@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Patience)])
def test_patience_is_a_number_of_seconds(name, value):
    with pytest.raises(ValueError, match=rf"^patience: {name}: got .*expected a finite number from 0"):
        Patience(**{name: value})


@pytest.mark.parametrize(
    "wrong",
    [
        *({"executions": value} for value in (0, -5, 1.5, NAN, INF, "10", None)),
        *({"two_qubit_gates": value} for value in (-1, 1.5, NAN)),
        *({name: value} for name in ("qpu_seconds", "megabytes") for value in (0, -5, NAN, INF, "10", True)),
    ],
    ids=str,
)
def test_limits_leave_room_for_a_job(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^limits: {name}: got .*expected"):
        Limits(**wrong)


@pytest.mark.parametrize("arguments", [{"path": None}, {"path": 5}])
def test_a_recording_has_a_path(arguments):
    with pytest.raises(TypeError, match=r"path: got .*expected a recording's path"):
        Replay(**arguments)


@pytest.mark.parametrize("tolerance", [-1, NAN, INF, "1e-4", None])
def test_a_recordings_tolerance_is_a_number(tolerance):
    with pytest.raises(ValueError, match=r"tolerance: got .*expected a finite number from 0 \(radians\)"):
        Replay("recording.npz", tolerance=tolerance)
