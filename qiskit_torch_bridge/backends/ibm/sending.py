"""Getting jobs to a service and their results back, whatever happens in between, without sending one twice.

The order is what makes it safe. A job is in the ledger before it is sent. A submission that was begun and not answered with
a job's id may have been taken or not, whatever was answered: a refusal may come from a proxy on the way back. So before the
job is sent once more, or given up, the service is asked for its tag, until the answer can be relied on: its list of jobs may
lag behind for :attr:`Patience.settle_seconds`. One that shows up later still is found when the result comes, cancelled and
counted. A result is in the ledger before it is used.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar

from ...arguments import number_from
from ..results import Arrays, Asked, WrongResult, arrays_from, bytes_of
from .device import Device
from .errors import HardwareError, JobFailed, LedgerError, NotAuthorized, ServiceUnavailable
from .faults import Fault, ServiceFault
from .ledger import Caps, Claim, Entry, Job, Ledger, Role

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["Patience", "Sender", "Task", "explained"]

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")
_LONGEST_POLL = 10.0
_MOST_WRONG_RESULTS = 3  # one that arrives whole and is wrong will hardly become right


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds.

    Attributes:
        retry_seconds: For a service that fails: then an error says how to go on. (Queues are waited for without end.)
        longest_pause_seconds: Between two attempts; the pauses grow to it, at random, so that clients do not come together.
        settle_seconds: How long a submission that was not answered with a job's id may take to show up in the list of jobs.
        poll_seconds: Between the first two looks at a job; the pauses grow to ten seconds.
        recheck_seconds: Between two looks at the device's calibration.

    Not among these: IBM's client connects by itself, once; it waits up to a minute for IBM's identity service, and a quarter
    of one for a server that fails. A key that is refused, or anything else that waiting does not mend, is said at once.
    """

    retry_seconds: float = 600.0
    longest_pause_seconds: float = 30.0
    settle_seconds: float = 20.0
    poll_seconds: float = 1.0
    recheck_seconds: float = field(default=300.0, kw_only=True)

    def __post_init__(self) -> None:
        for name, seconds in vars(self).items():
            number_from(f"patience: {name}", seconds)


@dataclass(frozen=True, eq=False)
class Task:
    """A job, and how it is sent.

    Attributes:
        job: What the ledger is to know of it.
        pubs: Makes its PUBs.
        shots: Shots a circuit.
        seed: For simulated devices.
        asked: What each PUB is to bring back.
    """

    job: Job
    pubs: Callable[[], Sequence[Any]]
    shots: int
    seed: int
    _: KW_ONLY
    asked: Sequence[Asked] | None = None


@dataclass(kw_only=True)
class _Submission:
    """A job on its way to the service, which may take several attempts.

    Attributes:
        unsure: Whether the service may have it although nobody here knows its id.
        looked: Whether the service has been asked for its tag.
    """

    claim: Claim
    task: Task
    pubs: Sequence[Any]
    unsure: bool
    looked: bool = False


@dataclass(eq=False, repr=False)
class Sender:
    """Sends jobs to a device and fetches what comes back, with a ledger as its memory.

    Attributes:
        device: Where jobs go.
        ledger: Where everything is written down.
        primitive: ``"sampler"`` or ``"estimator"``.
        options: The primitive's.
        run: The name of the run.
        mode: The execution mode, for the ledger.
        caps: What the run's jobs may come to.
        patience: How long to wait.
        recalibrated: Called when the device has been calibrated anew; raises if the circuits do not fit it any more.
    """

    device: Device
    ledger: Ledger
    _: KW_ONLY
    primitive: str
    options: Any
    run: str
    mode: str
    caps: Caps
    patience: Patience
    recalibrated: Callable[[], None]
    _calibrated: str | None = field(default=None, init=False)
    _looked: float = field(default=0.0, init=False)
    # Job: number and tag, of those not found after a first attempt.
    _sent_again: dict[str, tuple[int, str]] = field(default_factory=dict, init=False)

    def results(self, tasks: Sequence[Task]) -> tuple[list[Arrays], list[int]]:
        """The results of the jobs, and their numbers in the ledger: all are sent before the first is waited for.

        Raises:
            BudgetExceeded: If they would pass a cap; nothing has been sent then.
            JobFailed: If one has ended without a result, or with one that is not what was asked for.
            ServiceUnavailable, NotAuthorized, LedgerError: If it could not be sent or fetched; what was sent is kept.
        """
        claims = self._claim([task.job for task in tasks])
        ready = sum(claim.role is Role.DONE for claim in claims)
        if ready:
            _log.info("%d of %d results are in %r already", ready, len(claims), self.ledger)
        unsent = {claim.number for claim in claims if claim.role in (Role.SUBMIT, Role.RECOVER)}
        try:
            for claim, task in zip(claims, tasks, strict=True):
                if claim.role in (Role.SUBMIT, Role.RECOVER, Role.WAIT):
                    self._send(claim, task)
                    unsent.discard(claim.number)
        except BaseException:
            self.ledger.release(unsent)
            raise
        arrays = [self._fetch(claim.number, task.asked) for claim, task in zip(claims, tasks, strict=True)]
        return arrays, [claim.number for claim in claims]

    def collect(self, number: int) -> None:
        """Fetches the result of a job that was sent, by this process or an earlier one, waiting for it."""
        entry = self.ledger.entry(number)
        if entry.state == "intended" and self.ledger.take_over(number) is Role.RECOVER:  # else a process is sending it
            self._find_left_behind(number, entry.tag)
        if self.ledger.entry(number).state == "submitted":
            self._fetch(number, self.ledger.asked_of_jobs().get(entry.key))

    def cancel(self, number: int) -> None:
        """Cancels a job that has not ended; the result of one that was done before that is fetched.

        Raises:
            HardwareError: If a process is sending it at this moment.
            JobFailed: If it was done before that, and its result is not what was asked for.
        """
        entry = self.ledger.entry(number)
        if entry.state == "intended":
            if self.ledger.take_over(number) is Role.WAIT:
                raise HardwareError(
                    f"Job {number} is being submitted by another process; stop that, then cancel the job."
                )
            self._find_left_behind(number, entry.tag)
            entry = self.ledger.entry(number)
        if entry.state != "submitted" or entry.job_id is None:
            return
        try:
            self._patiently(partial(self.device.cancel, entry.job_id), f"cancel job {entry.job_id}")
            state, _ = self._end_of(entry.job_id)
        except _UnknownJob as error:
            self.ledger.failed(number, "failed", str(error), None)
            return
        if state == "done":
            self._fetch(number, self.ledger.asked_of_jobs().get(entry.key))
        else:
            self.ledger.failed(number, state, "cancelled by the user", self._usage(entry.job_id))

    def forget(self, number: int) -> None:
        """Gives up a job that was paid for, whose result is of no use, with a warning; the same run sends it anew.

        Raises:
            HardwareError: If it has not ended: then it can be cancelled.
            LedgerError: If it was not sent, or has ended without a result.
        """
        entry = self.ledger.entry(number)
        if entry.state == "submitted" and entry.job_id is not None:
            try:
                state, _ = self._patiently(partial(self.device.state, entry.job_id), f"look at job {entry.job_id}")
            except _UnknownJob:
                state = "failed"
            if state == "waiting":
                raise HardwareError(f"Job {number} ({entry.job_id}) has not ended; cancel it instead.")
        _log.warning(self.ledger.forget(number))

    def _end_of(self, job_id: str) -> tuple[str, str]:
        """The state that a job ends in, after a cancellation too, and what the service says of it."""
        pause = self.patience.poll_seconds
        while True:
            state, said = self._patiently(partial(self.device.state, job_id), f"look at job {job_id}")
            if state != "waiting":
                if job_id in self._sent_again:  # by now the list shows what it did not show before
                    number, tag = self._sent_again.pop(job_id)
                    self._cancel_doubles(number, job_id, self._listed(tag))
                return state, said
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_POLL)

    def _find_left_behind(self, number: int, tag: str) -> None:
        """Settles whether a job of ours, whose sender is no more, was submitted."""
        try:
            job_id = self._find_settled(number, tag)
            if job_id is None:
                self.ledger.failed(number, "cancelled", "it was never submitted", None)
            else:
                self.ledger.submitted(number, job_id, session_id=self._session_of(job_id), calibrated="")
        except BaseException:
            self.ledger.release([number])
            raise

    def settle_bills(self) -> None:
        """Asks for the usage of jobs whose bill was not settled when they ended."""
        for entry in self.ledger.entries():
            ended = entry.state not in ("intended", "submitted")
            if ended and entry.backend == self.device.name and entry.usage_seconds is None and entry.job_id is not None:
                usage = self._usage(entry.job_id)
                if usage is not None:
                    self.ledger.billed(entry.number, usage)

    def _claim(self, jobs: Sequence[Job]) -> list[Claim]:
        claims = self.ledger.claim(jobs, run=self.run, backend=self.device.name, caps=self.caps)
        gone = [claim for claim in claims if claim.role is Role.AWAIT and self._has_gone(claim)]
        for claim in gone:
            self.ledger.failed(claim.number, "cancelled", "it ran in a process that is no more", 0.0)
        return self._claim(jobs) if gone else claims

    def _has_gone(self, claim: Claim) -> bool:
        """Whether a job of a simulated device is not in this process, where alone it could be."""
        job_id = self.ledger.entry(claim.number).job_id
        return self.device.is_local and job_id is not None and self.device.state(job_id)[0] == "failed"

    def _send(self, claim: Claim, task: Task) -> None:
        role = claim.role
        while role is Role.WAIT:  # another process is at it
            time.sleep(min(self.patience.poll_seconds, 1.0))
            role = self.ledger.take_over(claim.number)
        if role not in (Role.SUBMIT, Role.RECOVER):
            return
        try:
            self._submit(claim, task, unsure=role is Role.RECOVER)
        except BaseException:
            self.ledger.release([claim.number])
            raise

    def _submit(self, claim: Claim, task: Task, *, unsure: bool) -> None:
        calibrated = self.check_calibration()
        submission = _Submission(claim=claim, task=task, pubs=task.pubs(), unsure=unsure)
        try:
            job_id, session_id = self._patiently(partial(self._attempt, submission), "submit a job")
        except HardwareError as error:
            taken = self._recovered(submission) if submission.unsure and isinstance(error, JobFailed) else None
            if taken is None:
                if not submission.unsure:  # the service has refused it, so that there is nothing to be found
                    self.ledger.failed(claim.number, "cancelled", f"not submitted: {error}", None)
                raise
            job_id, session_id = taken
        if submission.looked:
            self._sent_again[job_id] = claim.number, claim.tag
        self.ledger.submitted(claim.number, job_id, session_id=session_id, calibrated=calibrated)

    def _attempt(self, submission: _Submission) -> tuple[str, str | None]:
        """The ids of the job and its session, once the service has it."""
        claim, task = submission.claim, submission.task
        if submission.unsure and (taken := self._recovered(submission)) is not None:
            return taken
        if not self.ledger.is_still_ours(claim.number):
            submission.unsure = True  # whether the other one has sent it
            raise HardwareError(
                f"Another process has taken over the submission with the tag {claim.tag}; run the same again to share its "
                "result."
            )
        try:
            sent = self.device.submit(
                self.primitive, submission.pubs, shots=task.shots, options=self.options, tag=claim.tag, seed=task.seed
            )
        except ServiceFault as fault:
            submission.unsure = not fault.certain
            if fault.fault is Fault.SESSION_CLOSED:
                self._renew_session()
                raise ServiceFault(Fault.TRANSIENT, str(fault), certain=fault.certain) from None
            raise
        self._note_session()
        return sent

    def _recovered(self, submission: _Submission) -> tuple[str, str | None] | None:
        """The ids of the job and its session if an earlier attempt was taken; from now on it is sure whether one was."""
        job_id = self._find_settled(submission.claim.number, submission.claim.tag)
        submission.unsure, submission.looked = False, True
        if job_id is None:
            return None
        self.ledger.note(self.run, "recovered", f"job {job_id} had been taken although its answer was lost")
        return job_id, self._session_of(job_id)

    def _find_settled(self, number: int, tag: str) -> str | None:
        """The job with the tag, once it is sure that there is one, or that there is none."""
        started = time.monotonic()
        settle = 0.0 if self.device.is_local else self.patience.settle_seconds
        while True:
            if listed := self._listed(tag):
                self._cancel_doubles(number, listed[0], listed)
                return listed[0]
            if time.monotonic() - started >= settle:
                return None
            time.sleep(min(1.0, settle / 10))

    def _listed(self, tag: str) -> list[str]:
        """The jobs with the tag that the service lists."""
        return self._patiently(partial(self.device.find, tag), "look for a job")

    def _cancel_doubles(self, number: int, kept: str, listed: Sequence[str]) -> None:
        for double in set(listed) - {kept}:
            message = (
                f"job {double} has the tag of {kept}: the service had taken it, but did not list it; it was cancelled"
            )
            _log.warning(message)
            self.ledger.note(self.run, "double", message)
            self.ledger.double(number, double)
            self._patiently(partial(self.device.cancel, double), f"cancel job {double}")

    def _fetch(self, number: int, asked: Sequence[Asked] | None) -> Arrays:
        entry = self.ledger.entry(number)
        if entry.state == "done":  # from before, or another process has fetched it
            return self._stored(entry, asked)
        job_id = entry.job_id
        if job_id is None or entry.state != "submitted":
            raise JobFailed(
                f"Job {job_id or entry.tag} was {entry.state} ({entry.error}). Run the same again to submit it anew."
            )
        state, said = self._end_of(job_id)
        if state == "done":
            arrays = self._measured(number, job_id, asked)
            self.ledger.finished(number, bytes_of(arrays), self._usage(job_id))
            return arrays
        self.ledger.failed(number, state, said or state, self._usage(job_id))
        raise JobFailed(
            f"Job {job_id} on {self.device.name} {'failed' if state == 'failed' else 'was cancelled'}"
            f"{f': {said}' if said else ''}. All results before it are kept in {self.ledger!r}; run the same again to "
            "submit this one anew and go on from there."
        )

    def _stored(self, entry: Entry, asked: Sequence[Asked] | None) -> Arrays:
        """A result of the ledger; one that is damaged is fetched once more from the service, which costs nothing."""
        try:
            return self.ledger.arrays(entry.number, asked)
        except LedgerError as error:
            if self.device.is_local or entry.job_id is None:
                raise
            damage = error
        _log.warning("%s It is fetched from the service once more.", damage)
        try:
            arrays = self._measured(entry.number, entry.job_id, asked)
        except JobFailed as error:
            said = "the service does not know the job any more." if isinstance(error, _UnknownJob) else error
            raise LedgerError(f"{damage} It could not be fetched from the service once more: {said}") from None
        self.ledger.mended(entry.number, bytes_of(arrays))
        return arrays

    def _measured(self, number: int, job_id: str, asked: Sequence[Asked] | None) -> Arrays:
        """The result of a job that is done, if it is what was asked for.

        Raises:
            JobFailed: If it is not, several times.
        """
        if self.device.is_local:
            try:
                return arrays_from(self.device.result(job_id), asked)
            except WrongResult as error:
                self.ledger.failed(number, "failed", str(error), None)
                raise JobFailed(
                    f"Job {number} on {self.device.name} did not bring what was asked for: {error} Run the same again to "
                    "simulate it anew."
                ) from None
        wrong = ""
        for attempt in range(_MOST_WRONG_RESULTS):
            if attempt:
                _log.warning("Fetching job %s once more: %s", job_id, wrong)
                time.sleep(self.patience.poll_seconds)
            try:
                return arrays_from(self._patiently(partial(self.device.result, job_id), f"fetch job {job_id}"), asked)
            except WrongResult as error:
                wrong = str(error)
        raise JobFailed(
            f"Job {job_id} on {self.device.name} was run and paid for, but its result is not what was asked for: {wrong} "
            f"Nothing of it was kept, and everything else is in {self.ledger!r}. Run the same later, to fetch it once more. "
            f"Or {self.ledger.way_to_forget(number)}"
        )

    def _session_of(self, job_id: str) -> str | None:
        return self._patiently(partial(self.device.session_of, job_id), f"look at job {job_id}")

    def _usage(self, job_id: str) -> float | None:
        """The bill, if there is one: a result is not worth losing for it."""
        try:
            return self.device.usage(job_id)
        except ServiceFault as fault:
            _log.info("The usage of job %s is not known yet: %s", job_id, fault)
            return None

    def check_calibration(self) -> str:
        """When the device was last calibrated, looked up from time to time; :attr:`recalibrated` is told of a new one."""
        now = time.monotonic()
        if self._calibrated is None or now - self._looked > self.patience.recheck_seconds:
            calibrated = self._patiently(self.device.calibrated, "read the device's properties")
            if self._calibrated is not None and calibrated != self._calibrated:
                message = f"{self.device.name} was calibrated anew: {calibrated}, before: {self._calibrated}"
                _log.warning(message)
                self.ledger.note(self.run, "recalibration", message, before=self._calibrated, after=calibrated)
                self.recalibrated()
            self._calibrated, self._looked = calibrated, now
        return self._calibrated

    def _renew_session(self) -> None:
        old = self.device.session_id
        if old is not None:
            self.ledger.session_closed(old)
        new = self._patiently(self.device.renew_session, "open a session")
        message = f"the {self.mode} {old} was closed; {new} goes on in its place"
        _log.warning(message)
        self.ledger.note(self.run, "session-renewed", message, old=old, new=new)

    def _note_session(self) -> None:
        session_id = self.device.session_id
        if session_id is not None and session_id != self.ledger.open_session(self.run, self.device.name, self.mode):
            self.ledger.session_opened(session_id, self.run, self.device.name, self.mode)

    def _patiently(self, request: Callable[[], _Answer], what: str) -> _Answer:
        """The answer to a request that is repeated while the service fails; ``what`` names the job, if there is one.

        Raises:
            ServiceUnavailable, NotAuthorized, JobFailed: If there is none to be had.
        """
        doubts = count(1)

        # Part of the extra "ibm": without it the connection says so, which a failed import of this module would forestall.
        from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

        def is_worth_trying_again(error: BaseException) -> bool:
            return isinstance(error, ServiceFault) and (error.tries == math.inf or next(doubts) < error.tries)

        patience = self.patience

        def log(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome is not None else None
            given = patience.retry_seconds
            _log.warning(
                "Trying again to %s (%d. time, for %g s at most): %s", what, state.attempt_number, given, error
            )

        retrying = Retrying(
            retry=retry_if_exception(is_worth_trying_again),
            wait=wait_random_exponential(
                multiplier=min(1.0, patience.poll_seconds), max=patience.longest_pause_seconds
            ),
            stop=stop_before_delay(patience.retry_seconds),
            before_sleep=log,
            reraise=True,
        )
        try:
            return retrying(request)
        except ServiceFault as fault:
            waited = patience.retry_seconds if fault.tries == math.inf else 0.0
            giving_up = self._way_to_give_up(what) if fault.fault is Fault.MISSING else ""
            raise explained(fault, what, repr(self.ledger), waited=waited, giving_up=giving_up) from None

    def _way_to_give_up(self, what: str) -> str:
        """How a user gives up the job that a request was about, if it was about one."""
        for entry in reversed(self.ledger.entries()):
            if entry.job_id is not None and entry.job_id in what:
                path, number = self.ledger.path, entry.number
                return f"IBMBackend.cancel({number})" if path is None else f"qtb jobs {path} --cancel {number}"
        return ""


class _UnknownJob(JobFailed):
    """The service does not know the job."""


def explained(
    fault: ServiceFault, what: str, kept_in: str, *, waited: float = 0.0, giving_up: str = ""
) -> HardwareError:
    """What a fault that ends a request means to the user, and how to go on.

    Args:
        fault: The fault.
        what: What the request was for.
        kept_in: What to call the ledger.
        waited: For how many seconds it was tried.
        giving_up: What gives up the job that it is about, if there is one.
    """
    could_not = f"Could not {what}{f' for {waited:g} s' if waited else ''} ({fault})."
    kept = f"Everything that was submitted is kept in {kept_in}; run the same again to go on: nothing is sent twice."
    if fault.fault is Fault.UNAUTHORIZED:
        return NotAuthorized(f"{could_not} {fault.remedy} {kept}")
    if fault.fault is Fault.MISSING and giving_up:
        return _UnknownJob(
            f"{could_not} The service does not know it{' any more' if fault.remedy else ''}; was it deleted, or is it "
            f"another account's or instance's? Everything before it is kept in {kept_in}. If it is lost, `{giving_up}` "
            "gives it up, and the same run sends it anew."
        )
    if fault.fault is Fault.TRANSIENT:
        return ServiceUnavailable(" ".join(filter(None, (could_not, fault.remedy, kept))))
    return JobFailed(" ".join(filter(None, (could_not, fault.remedy, f"All results so far are kept in {kept_in}."))))
