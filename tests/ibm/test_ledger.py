"""The ledger, and sending with it as memory, on a device that does as it is told."""

import sqlite3

import numpy as np
import pytest

pytest.importorskip("qiskit_ibm_runtime", reason="the faults are those of IBM's client")

from qiskit_torch_bridge import BudgetExceeded, HardwareError, Ledger, Patience
from qiskit_torch_bridge.backends.ibm.device import LocalDevice
from qiskit_torch_bridge.backends.ibm.errors import JobFailed, LedgerError, ServiceUnavailable
from qiskit_torch_bridge.backends.ibm.faults import Fault, ServiceFault
from qiskit_torch_bridge.backends.ibm.ledger import Caps, Job, Role
from qiskit_torch_bridge.backends.ibm.sending import Sender, Task
from qiskit_torch_bridge.backends.ibm.service import CloudDevice

PATIENCE = Patience(retry_seconds=0.2, settle_seconds=0.05, poll_seconds=0.01)
ANSWER = [[np.zeros((1, 3, 1), dtype=np.uint8)]]


class Obedient(LocalDevice):
    """A device far away whose jobs are in the states that a test says, one after the other."""

    is_local = False

    def __init__(self, states=("done",)) -> None:
        self.name, self.device = "obedient", None
        self.states, self.sent, self.faults = list(states), {}, []

    def calibrated(self) -> str:
        return "today"

    def submit(self, primitive, pubs, *, shots, options, tag, seed):
        if self.faults:
            raise self.faults.pop(0)
        job_id = f"job{len(self.sent)}"
        self.sent[job_id] = tag
        return job_id, None

    def find(self, tag):
        return [job_id for job_id, its_tag in self.sent.items() if its_tag == tag]

    def state(self, job_id):
        if job_id not in self.sent:
            raise ServiceFault(Fault.MISSING, "not found")
        return (self.states.pop(0) if len(self.states) > 1 else self.states[0]), ""

    def result(self, job_id):
        return ANSWER

    def usage(self, job_id):
        return None

    def cancel(self, job_id):
        if job_id not in self.sent:
            raise ServiceFault(Fault.MISSING, "not found")


def task(key: str = "a", shots: int = 3) -> Task:
    return Task(Job(key, 1, shots, shots, estimated_seconds=2.0), lambda: [], shots, 0)


def sender(device, ledger, **caps) -> Sender:
    settings = {"primitive": "sampler", "options": {}, "run": "", "mode": "job", "recalibrated": lambda: None}
    return Sender(device, ledger, caps=Caps(**caps), patience=PATIENCE, **settings)


def claim(ledger: Ledger, key: str = "a"):
    return ledger.claim([task(key).job], run="", backend="obedient", caps=Caps())[0]


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_that_are_no_ledgers(tmp_path):
    with pytest.raises(LedgerError, match="expected a file in a folder that exists"):
        Ledger(tmp_path / "nowhere" / "jobs.sqlite")
    (tmp_path / "text").write_text("not a database, whatever its length may be. " * 100)
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger(tmp_path / "text")
    with sqlite3.connect(tmp_path / "foreign.sqlite") as db:
        db.execute("CREATE TABLE jobs (number INTEGER)")
    db.close()
    with pytest.raises(LedgerError, match="is no ledger, another program has made it; name another file"):
        Ledger(tmp_path / "foreign.sqlite")


def test_a_link_to_a_file_that_is_not_there_yet(tmp_path):
    """Two folders may share a ledger so; whichever is used first makes it."""
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "ledger.sqlite")
    claimed, ledger = task().job, Ledger(tmp_path / "link.sqlite")
    ledger.claim([claimed], run="", backend="b", caps=Caps())
    ledger.close()
    assert [entry.key for entry in Ledger(tmp_path / "ledger.sqlite").entries()] == [claimed.key]


def test_memory():
    assert Ledger(None).path is Ledger(":memory:").path is None


# --- who does what ----------------------------------------------------------------------------------------------------


def test_roles(tmp_path):
    mine, theirs = Ledger(tmp_path / "jobs.sqlite"), Ledger(tmp_path / "jobs.sqlite")
    first = claim(mine)
    assert first.role is Role.SUBMIT
    assert claim(theirs).role is Role.WAIT
    assert not theirs.is_still_ours(first.number)
    assert mine.is_still_ours(first.number)
    mine.release([first.number])
    assert claim(theirs).role is Role.RECOVER
    assert not mine.is_still_ours(first.number)  # so it is not sent by both
    theirs.submitted(first.number, "job0", session_id=None, calibrated="")
    assert claim(mine).role is Role.AWAIT
    mine.finished(first.number, b"answer", None)
    assert claim(theirs).role is Role.DONE


def test_a_result_is_never_given_up():
    ledger = Ledger(None)
    number = claim(ledger).number
    ledger.submitted(number, "job0", session_id=None, calibrated="")
    ledger.finished(number, b"answer", 1.0)
    ledger.failed(number, "failed", "too late", None)
    ledger.finished(number, b"another", None)
    assert (ledger.entry(number).state, ledger.result(number)) == ("done", b"answer")
    with pytest.raises(LedgerError, match=r"its submission .* was ended by another process"):
        ledger.submitted(number, "job1", session_id=None, calibrated="")


def test_what_counts_against_caps():
    ledger = Ledger(None)
    for key, end in {"a": "refused", "b": "cancelled", "c": "billed"}.items():
        number = claim(ledger, key).number
        if end != "refused":
            ledger.submitted(number, key, session_id=None, calibrated="")
        if end == "billed":
            ledger.finished(number, b"", 7.0)
        else:
            ledger.failed(number, "cancelled", end, None)
    spent = ledger.spent("")
    assert (spent.jobs, spent.shots, spent.qpu_seconds) == (2, 6, 2.0 + 7.0)
    ledger.billed(2, 0.5)  # what was cancelled in time costs little
    assert ledger.spent("").qpu_seconds == 7.5
    assert ledger.spent("another").jobs == 0
    with pytest.raises(BudgetExceeded, match=r"max_jobs: the next 1 job\(s\) need 1 job\(s\), but 2 of 2 are spent"):
        ledger.claim([task("d").job], run="", backend="obedient", caps=Caps(max_jobs=2))
    assert len(ledger.entries()) == 3


# --- sending ----------------------------------------------------------------------------------------------------------


def test_one_that_takes_over_and_fails_lets_go_again(tmp_path):
    """Or the next attempt of the same process would wait for itself."""
    theirs, mine = Ledger(tmp_path / "jobs.sqlite"), Ledger(tmp_path / "jobs.sqlite")
    left = claim(theirs)
    device = Obedient()
    device.faults = [ServiceFault(Fault.TRANSIENT, "down")] * 100
    waiting = sender(device, mine)
    original = mine.take_over

    def take_over(number):  # the other one ends while this one waits
        theirs.release([left.number])
        return original(number)

    mine.take_over = take_over
    with pytest.raises(ServiceUnavailable, match="nothing is sent twice"):
        waiting.results([task()])
    device.faults = []
    (arrays,), _ = waiting.results([task()])
    np.testing.assert_array_equal(arrays[0][0], ANSWER[0][0])
    assert len(device.sent) == 1


def test_a_submission_that_was_taken_over_is_not_sent(tmp_path):
    mine, theirs = Ledger(tmp_path / "jobs.sqlite"), Ledger(tmp_path / "jobs.sqlite")
    device = Obedient()
    device.faults = [ServiceFault(Fault.TRANSIENT, "busy", certain=True)]
    sending = sender(device, mine)
    original = device.submit

    def submit(*arguments, **options):
        mine.release([1])  # as if its claim had run out
        assert claim(theirs).role is Role.RECOVER
        return original(*arguments, **options)

    device.submit = submit
    with pytest.raises(HardwareError, match="Another process has taken over the submission"):
        sending.results([task()])
    assert device.sent == {}
    assert theirs.entry(1).state == "intended"
    assert theirs.is_still_ours(1)


def test_cancelling_waits_for_the_end():
    """A job may finish while it is being cancelled: then it was paid for, and its result is kept."""
    for states, expected in ((["waiting", "waiting", "done"], "done"), (["waiting", "cancelled"], "cancelled")):
        ledger, device = Ledger(None), Obedient(states)
        number = claim(ledger).number
        ledger.submitted(number, "job0", session_id=None, calibrated="")
        device.sent["job0"] = "tag"
        sender(device, ledger).cancel(number)
        assert ledger.entry(number).state == expected


def test_cancelling_what_another_process_is_sending_is_refused(tmp_path):
    theirs, mine = Ledger(tmp_path / "jobs.sqlite"), Ledger(tmp_path / "jobs.sqlite")
    number = claim(theirs).number
    with pytest.raises(HardwareError, match="is being submitted by another process"):
        sender(Obedient(), mine).cancel(number)
    assert mine.entry(number).state == "intended"


def test_cancelling_a_submission_that_was_left_behind(tmp_path):
    ledger, device = Ledger(tmp_path / "jobs.sqlite"), Obedient(["cancelled"])
    left = claim(ledger)
    ledger.release([left.number])
    device.sent["job0"] = left.tag  # it had been taken
    sender(device, ledger).cancel(left.number)
    assert (ledger.entry(left.number).state, ledger.entry(left.number).job_id) == ("cancelled", "job0")


def test_a_job_that_the_service_does_not_know_can_be_given_up():
    ledger, device = Ledger(None), Obedient()
    number = claim(ledger).number
    ledger.submitted(number, "deleted", session_id=None, calibrated="")
    with pytest.raises(JobFailed, match=r"does not know it.*`IBMBackend.cancel\(1\)`"):
        sender(device, ledger).results([task()])
    sender(device, ledger).cancel(number)
    assert ledger.entry(number).state == "failed"
    sender(device, ledger).results([task()])
    assert len(device.sent) == 1


def test_what_was_handled_before_does_not_change_what_a_fault_means():
    """Called from an ``except`` block, Python hangs the earlier error on the new one."""
    device = object.__new__(CloudDevice)
    device.service = None

    def dropped():
        raise ConnectionError("after the job was taken")

    for earlier in (ServiceFault(Fault.UNAUTHORIZED, "401", certain=True), PermissionError()):
        try:
            raise earlier
        except Exception:
            with pytest.raises(ServiceFault) as found, device._request():
                dropped()
        assert (found.value.fault, found.value.certain) == (Fault.TRANSIENT, False)
