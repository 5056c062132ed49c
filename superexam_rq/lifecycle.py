"""What may happen to a job after it was queued: claimed, retried, lost, handed back, cancelled, queued anew.

Each step is one Redis transaction that fails if the job changed meanwhile, so that whoever dies in between leaves
the job either before the step or after it. RQ's job hash holds a few fields more for that:

- ``runs``: how often the job was claimed; the number of the current run, its fencing token
- ``execution``: RQ's id of the current run
- ``ended``: set by a failure, so that a requeue by whatever tool starts again with fresh retries
- ``cancel_requested``: when somebody cancelled the job while it ran

A document belongs to one job, its newest: the Redis key ``document:{doc_id}`` holds its id. No Flask, no Gemini
here; `settle` alone reaches Firestore, and imports it only then.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import WatchError
from rq import Queue
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.job_lifecycle import record_job_failure
from rq.registry import CanceledJobRegistry, ScheduledJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import as_text, now

from superexam_rq import metrics
from superexam_rq.config import Settings
from superexam_rq.errors import Cancelled, SuperExamError, Superseded, classify

if TYPE_CHECKING:
    from superexam_rq.store import ExamStore, Outcome

T = TypeVar("T")

log = logging.getLogger("rq.worker")

LIVE = frozenset(JobStatus) - {JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED}
_LIVE_VALUES = frozenset(status.value for status in LIVE)

# A job that waits longer than this for a worker is no longer protected from a second submission: every key expires.
# The sweep renews the time while the job lives.
DOCUMENT_KEY_TTL = 30 * 86400

_SAVE_META = "if redis.call('HEXISTS', KEYS[1], 'status') == 1 then redis.call('HSET', KEYS[1], 'meta', ARGV[1]) end"

# So many documents are told at once.
_AT_ONCE = 8

CANCEL_TEXT = "Cancelled"
BUSY_TEXT = "Another job has this document"


class Jobs(Protocol):
    """Be the queue and its settings together; `queueing.JobQueue` in the service."""

    queue: Queue
    settings: Settings


class NotFound(Exception):
    """Report that there is no such job, or that it ended so long ago that it has expired."""


class NotCancellable(Exception):
    """Report that the job has ended already."""


class NotRetryable(Exception):
    """Report that the job has not failed and was not cancelled: it still lives, or it is completed."""


class DocumentBusy(Exception):
    """Report that the document has another live job; `job_id` names it."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"The document has another job that has not ended: {job_id}")
        self.job_id = job_id


class Cancelling(Enum):
    """Say how far a cancellation is when `cancel` returns."""

    DONE = "done"  # the job is cancelled; the document is the caller's to settle
    REQUESTED = "requested"  # it runs: its worker stops it and settles the document, within seconds


class Unreadable(NoSuchJobError):
    """Report a job whose hash some other program has spoilt; RQ's own tools pass over it as over a missing one."""


class ExamJob(Job):
    """Be RQ's job, with a retry that can't be lost half-way.

    RQ 3.0 writes the new status before the transaction that puts the job into a registry: a crash in between
    leaves a job that no registry holds.
    """

    run: int = 0
    lost: bool = False

    def restore(self, raw_data: Any) -> None:
        """Take what Redis holds; raises `NoSuchJobError` for nothing, `Unreadable` where RQ would fail or take half."""
        if not raw_data:
            raise NoSuchJobError(f"No such job: {self.key}")
        try:
            super().restore(raw_data)
            self.run = int(raw_data.get(b"runs", 0))
        except NoSuchJobError as error:
            raise Unreadable(str(error)) from None
        except Exception as error:
            raise Unreadable(f"The job {self.id} can't be read: {type(error).__name__}: {error}") from error
        if not isinstance(self.meta, dict) or "unserialized" in self.meta:
            raise Unreadable(f"The job {self.id} can't be read: its meta is not JSON")

    def save_meta(self) -> None:
        """Save the meta of a job that is still there; half a hash would stay for ever."""
        self.connection.eval(_SAVE_META, 1, self.key, self._serialize_meta())

    def get_retry_interval(self) -> int:
        """Return the seconds to wait before the next run: none after a crash, which no waiting would mend."""
        return 0 if self.lost else super().get_retry_interval()

    def retry(self, queue: Queue, pipeline: Pipeline) -> None:
        """Schedule or queue the next run, and save the job's meta, by the caller's transaction alone."""
        seconds = self.get_retry_interval()
        self.retries_left = (self.retries_left or 1) - 1
        if seconds:
            queue.schedule_job(self, now() + timedelta(seconds=seconds), pipeline=pipeline)
        else:
            queue._enqueue_job(self, pipeline=pipeline, at_front=self.lost)

    def _handle_success(self, result_ttl: int, pipeline: Pipeline, *args: Any, **kwargs: Any) -> None:
        super()._handle_success(result_ttl, pipeline, *args, **kwargs)
        questions = int(self.meta.get("question_count", 0))
        metrics.record_end(pipeline, status="completed", seconds=self._run_seconds(), questions=questions)

    def _handle_failure(self, exc_string: str, pipeline: Pipeline, *args: Any, **kwargs: Any) -> None:
        super()._handle_failure(exc_string, pipeline, *args, **kwargs)
        pipeline.hset(self.key, mapping={"meta": self._serialize_meta(), "ended": 1})
        code = self.meta.get("error_code")
        metrics.record_end(pipeline, status="failed", error_code=code, seconds=self._run_seconds())

    def _run_seconds(self) -> float | None:
        return (self.ended_at - self.started_at).total_seconds() if self.ended_at and self.started_at else None

    @property
    def doc_id(self) -> str:
        """Return the id of the job's document."""
        return str(self.meta.get("doc_id", ""))

    @property
    def max_attempts(self) -> int:
        """Return how often the job may run."""
        return int(self.meta.get("max_attempts", 1))

    @property
    def attempt(self) -> int:
        """Return the number of the run under way, from 1; after a retry was arranged, that of the next."""
        return self.max_attempts - (self.retries_left or 0)


def transaction(connection: Redis, step: Callable[[Pipeline], T]) -> T:
    """Run `step` until nothing that it watches changes meanwhile; it ends with `multi()` and its writes, or without."""
    while True:
        with connection.pipeline() as pipe:
            try:
                result = step(pipe)
                if pipe.explicit_transaction:
                    pipe.execute()
            except WatchError:
                continue
            return result


def document_key(settings: Settings, doc_id: str) -> str:
    """Return the key that holds the id of a document's newest job."""
    return settings.key("document", doc_id)


def document_key_ttl(settings: Settings, status: JobStatus) -> int:
    """Return for how many seconds a document belongs to a job of this status, unless that is renewed.

    Once a job was started, for as long as it may be read after its end.
    """
    return DOCUMENT_KEY_TTL if status is JobStatus.QUEUED else settings.job_timeout + settings.job_ttl + 3600


def is_live(status: bytes | str | None) -> bool:
    """Tell whether a job with this status (None: there is no such job) will run, or runs."""
    return status is not None and as_text(status) in _LIVE_VALUES


def announce(connection: Redis | Pipeline, settings: Settings, job_id: str) -> None:
    """Tell whoever listens that a job has changed."""
    connection.publish(settings.key("events"), job_id)


def retry_step(seconds: float, attempt: int, max_attempts: int) -> str:
    """Return the step shown between two attempts; at most 40 characters."""
    return f"Retrying in {max(0, round(seconds))} s (attempt {attempt} of {max_attempts})"


def queue_step(attempt: int, max_attempts: int) -> str:
    """Return the step shown while an attempt after the first, or one that was handed back, waits in the queue."""
    return f"Waiting for a worker (attempt {attempt} of {max_attempts})"


def fetch(queue: Queue, job_id: str, connection: Redis | Pipeline | None = None) -> ExamJob:
    """Return a job as Redis holds it; raises RQ's `NoSuchJobError`."""
    return restored(queue.connection, job_id, (connection or queue.connection).hgetall(Job.key_for(job_id)))


def restored(connection: Redis, job_id: str, raw: Any) -> ExamJob:
    """Return the job that a hash of Redis describes; raises RQ's `NoSuchJobError`."""
    job = ExamJob(job_id, connection=connection, serializer=JSONSerializer)
    job.restore(raw)
    return job


# What a worker does with a job


def claim(
    queue: Queue, settings: Settings, job: ExamJob, worker_name: str, ttl: int, note: Callable[[Pipeline], None]
) -> Execution | None:
    """Make a job that was popped this worker's, or return None where it is not to be run.

    The job leaves the list of popped jobs and enters the registry of running ones at once, so it is never in
    none. A job that was pushed twice, cancelled meanwhile, or whose document has another live job does not run.
    `note` adds the worker's own writes to the transaction.
    """

    def step(pipe: Pipeline) -> Execution | None:
        key = document_key(settings, job.doc_id)
        pipe.watch(job.key, key)
        raw = pipe.hgetall(job.key)
        try:
            job.restore(raw)
        except NoSuchJobError:
            raw = {}
        # The answer to an earlier try may have got lost: then the job is this worker's already.
        mine = _status(job) is JobStatus.STARTED and job.worker_name == worker_name
        if not raw or (_status(job) is not JobStatus.QUEUED and not mine):
            pipe.multi()
            pipe.lrem(queue.intermediate_queue_key, 1, job.id)
            return None
        holder = as_text(pipe.get(key) or job.id)
        if holder != job.id:
            pipe.watch(Job.key_for(holder))
            if is_live(pipe.hget(Job.key_for(holder), "status")):
                pipe.multi()
                _to_cancelled(job, queue, settings, pipe, BUSY_TEXT)
                return None
        again = b"ended" in raw
        if again:
            job.retries_left = job.max_attempts - 1
        job.run = int(raw.get(b"runs", 0)) + 1
        if again or job.meta.get("attempt") != job.attempt:  # else the run goes on with an attempt that was handed back
            job.meta["progress"] = 0
        job.meta.update(attempt=job.attempt, step="Starting", error=None, error_code=None)
        pipe.multi()
        execution = Execution.create(job, ttl, pipeline=pipe, worker_name=worker_name)
        job.prepare_for_execution(worker_name, pipeline=pipe)
        fields: dict[Any, Any] = {"runs": job.run, "execution": execution.id, "meta": job._serialize_meta()}
        if again:
            fields["retries_left"] = job.retries_left
        pipe.hset(job.key, mapping=fields)
        pipe.hdel(job.key, "ended")
        pipe.persist(job.key)
        pipe.set(key, job.id, ex=document_key_ttl(settings, JobStatus.STARTED))
        pipe.lrem(queue.intermediate_queue_key, 1, job.id)
        if job.enqueued_at and not mine:
            metrics.record_start(pipe, wait=(now() - job.enqueued_at).total_seconds(), attempt=job.attempt)
        note(pipe)
        announce(pipe, settings, job.id)
        return execution

    return transaction(queue.connection, step)


def put_back(queue: Queue, job_id: str) -> None:
    """Return a job that was popped and not claimed to the front of the queue, if it is still to be run."""

    def step(pipe: Pipeline) -> None:
        pipe.watch(Job.key_for(job_id), queue.intermediate_queue_key)
        popped = pipe.lpos(queue.intermediate_queue_key, job_id) is not None
        waits = False
        with contextlib.suppress(NoSuchJobError):
            waits = _status(fetch(queue, job_id, pipe)) is JobStatus.QUEUED
        pipe.multi()
        pipe.lrem(queue.intermediate_queue_key, 1, job_id)
        if popped and waits:
            pipe.lpush(queue.key, job_id)

    transaction(queue.connection, step)


def promote(queue: Queue, job_id: str) -> None:
    """Queue a job whose time for a retry has come, in place of a scheduler that is not there."""
    registry = ScheduledJobRegistry(queue=queue)

    def step(pipe: Pipeline) -> None:
        pipe.watch(Job.key_for(job_id))
        due = pipe.zscore(registry.key, job_id)
        try:
            job = fetch(queue, job_id, pipe)
        except NoSuchJobError:
            job = None
        pipe.multi()
        pipe.zrem(registry.key, job_id)
        if due is not None and job is not None and _status(job) is JobStatus.SCHEDULED:
            queue._enqueue_job(job, pipeline=pipe)

    transaction(queue.connection, step)


def hand_back(queue: Queue, execution: Execution) -> None:
    """Return a job whose run was broken off to the front of the queue, with what it reached; it does not count."""

    def step(pipe: Pipeline) -> None:
        pipe.watch(Job.key_for(execution.job_id))
        try:
            job = fetch(queue, execution.job_id, pipe)
        except NoSuchJobError:
            return
        if not _is_current(pipe, job, execution):
            return
        pipe.multi()
        execution.delete(job=job, pipeline=pipe)
        job.meta.update(step=queue_step(job.attempt, job.max_attempts))
        queue._enqueue_job(job, pipeline=pipe, at_front=True)

    transaction(queue.connection, step)


def is_current(job: ExamJob, execution: Execution) -> bool:
    """Tell whether an execution is still the job's current run."""
    return _is_current(job.connection, job, execution)


def _is_current(connection: Redis | Pipeline, job: ExamJob, execution: Execution) -> bool:
    status, current = connection.hmget(job.key, "status", "execution")
    return as_text(status or b"") == JobStatus.STARTED.value and as_text(current or b"") == execution.id


def check(connection: Redis, settings: Settings, job: ExamJob) -> None:
    """Raise `Superseded` where a run is not its job's current one any more, `Cancelled` where it was cancelled."""
    with connection.pipeline(transaction=False) as pipe:
        pipe.hmget(job.key, "status", "runs", "cancel_requested")
        pipe.get(document_key(settings, job.doc_id))
        (status, runs, cancelled), newest = pipe.execute()
    if as_text(status or b"") != JobStatus.STARTED.value or int(runs or 0) != job.run:
        raise Superseded("the job has another run")
    if cancelled is not None:
        raise Cancelled(CANCEL_TEXT)
    if newest is not None and as_text(newest) != job.id:
        raise Cancelled(BUSY_TEXT)


def note_failure(job: ExamJob, error: BaseException) -> None:
    """Put into the job what the failure of its run means; whoever ends the run saves it.

    A run that had begun to publish is followed by another one even if it was the last: its exam may be there, and the
    next run finds out, instead of failing a job whose document is `ready`. Once for each job.
    """
    failure = classify(error)
    if not failure.retryable:
        job.retries_left = 0
    elif not job.should_retry and job.meta.get("publishing") == job.run and not job.meta.get("granted"):
        job.meta["granted"] = True
        job.retries_left = 1
    if job.should_retry:
        seconds = job.get_retry_interval()
        following = (job.attempt + 1, job.max_attempts)
        step = retry_step(seconds, *following) if seconds else queue_step(*following)
        job.meta.update(step=step, last_error=failure.text)
    elif not (job.lost and job.meta.get("error")):  # else the run could still say why before it died
        job.meta.update(step="Failed", error=failure.final_text(job.attempt), error_code=failure.code)


def recover(
    queue: Queue, settings: Settings, entry: str, error: SuperExamError, score: float | None = None
) -> ExamJob | None:
    """Take a dead run out of the registry of running jobs, and return its job, or None if that has another run.

    The job is cancelled if somebody asked for that, else retried at once, else failed with `error`. `entry` is the
    registry's; with `score`, nothing is done if the run has given a sign of life since.
    """
    job_id, _, execution_id = entry.rpartition(":")
    execution = Execution(execution_id, job_id, queue.connection)
    registry = queue.started_job_registry

    def step(pipe: Pipeline) -> ExamJob | None:
        pipe.watch(Job.key_for(job_id), execution.key)
        if score is not None and pipe.zscore(registry.key, entry) != score:
            return None
        execution.worker_name = as_text(pipe.hget(execution.key, "worker_name") or b"")
        try:
            job = fetch(queue, job_id, pipe)
        except NoSuchJobError:
            pipe.multi()
            pipe.zrem(registry.key, entry)
            return None
        current = _is_current(pipe, job, execution)
        cancelled = pipe.hexists(job.key, "cancel_requested")
        pipe.multi()
        execution.delete(job=job, pipeline=pipe)
        if not current:
            return None
        lose(job, queue, settings, pipe, error, cancelled=cancelled)
        return job

    found = transaction(queue.connection, step)
    if found is not None:
        announce(queue.connection, settings, job_id)
    return found


def lose(
    job: ExamJob, queue: Queue, settings: Settings, pipe: Pipeline, error: SuperExamError, *, cancelled: bool
) -> None:
    """Add to a transaction what follows from a run that died: cancelled, retried at once, or failed."""
    job.lost = True
    job.ended_at = now()
    if cancelled:
        _to_cancelled(job, queue, settings, pipe, CANCEL_TEXT)
        return
    note_failure(job, error)
    if job.should_retry:
        job.retry(queue, pipe)
    else:
        record_job_failure(job, str(error), pipe)


def finish_cancelled(job: ExamJob, queue: Queue, settings: Settings, execution: Execution) -> None:
    """Turn a run that was stopped into a cancelled job; `rq requeue --all` does not find it."""

    def step(pipe: Pipeline) -> None:
        pipe.watch(job.key)
        if not _is_current(pipe, job, execution):
            return
        pipe.multi()
        execution.delete(job=job, pipeline=pipe)
        _to_cancelled(job, queue, settings, pipe, str(job.meta.get("error") or CANCEL_TEXT))

    transaction(queue.connection, step)
    announce(queue.connection, settings, job.id)


def set_aside(queue: Queue, settings: Settings, job_id: str) -> None:
    """Fail a job that can't be read and is in no list, so that it holds up nothing; its hash stays for a look at it."""
    with queue.connection.pipeline() as pipe:
        pipe.hset(Job.key_for(job_id), "status", JobStatus.FAILED.value)
        pipe.expire(Job.key_for(job_id), settings.job_ttl)
        pipe.execute()


# What a caller may ask for


def _watched(queue: Queue, job_id: str, pipe: Pipeline) -> ExamJob:
    """Return a job as it is; the transaction fails if it changes."""
    pipe.watch(Job.key_for(job_id))
    try:
        return fetch(queue, job_id, pipe)
    except NoSuchJobError:
        raise NotFound(job_id) from None


def cancel(jobs: Jobs, job_id: str) -> Cancelling:
    """Cancel a job, and return how far that is; raises `NotFound`, `NotCancellable`."""
    queue, settings = jobs.queue, jobs.settings

    def step(pipe: Pipeline) -> Cancelling:
        job = _watched(queue, job_id, pipe)
        if _status(job) not in LIVE:
            raise NotCancellable(job_id)
        pipe.multi()
        pipe.hset(job.key, "cancel_requested", time.time())
        if _status(job) is JobStatus.STARTED:
            return Cancelling.REQUESTED
        _to_cancelled(job, queue, settings, pipe, CANCEL_TEXT)
        return Cancelling.DONE

    result = transaction(queue.connection, step)
    if result is Cancelling.REQUESTED:
        # Where it has ended there is nothing to stop; where it has not quite started, its run finds the request.
        with contextlib.suppress(InvalidJobOperation, NoSuchJobError):
            send_stop_job_command(queue.connection, job_id, serializer=queue.serializer)
    announce(queue.connection, settings, job_id)
    return result


def retry(jobs: Jobs, job_id: str) -> None:
    """Queue a failed or cancelled job again with fresh retries; raises `NotFound`, `NotRetryable`, `DocumentBusy`."""
    queue, settings = jobs.queue, jobs.settings

    def step(pipe: Pipeline) -> None:
        job = _watched(queue, job_id, pipe)
        if _status(job) not in {JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED}:
            raise NotRetryable(job_id)
        key = document_key(settings, job.doc_id)
        pipe.watch(key)
        holder = as_text(pipe.get(key) or job_id)
        if holder != job_id:
            pipe.watch(Job.key_for(holder))
            if is_live(pipe.hget(Job.key_for(holder), "status")):
                raise DocumentBusy(holder)
        job.retries_left = job.max_attempts - 1
        job.started_at = job.ended_at = None
        job.meta.update(attempt=0, progress=0, step="Waiting in the queue", error=None, error_code=None, granted=False)
        pipe.multi()
        _leave_registries(job, queue, pipe)
        pipe.hdel(job.key, "cancel_requested", "ended")
        pipe.persist(job.key)
        pipe.set(key, job_id, ex=DOCUMENT_KEY_TTL)
        pipe.zadd(settings.key("jobs"), {job_id: job.created_at.timestamp()})
        queue._enqueue_job(job, pipeline=pipe)

    transaction(queue.connection, step)
    announce(queue.connection, settings, job_id)


def _to_cancelled(job: ExamJob, queue: Queue, settings: Settings, pipe: Pipeline, text: str) -> None:
    job._status = JobStatus.CANCELED
    job.ended_at = now()
    job.meta.update(step="Cancelled", error=text, error_code=Cancelled.code)
    _leave_registries(job, queue, pipe)
    pipe.lrem(queue.intermediate_queue_key, 0, job.id)
    job.save(pipeline=pipe)
    pipe.zadd(CanceledJobRegistry(queue=queue).key, {job.id: time.time()})
    metrics.record_end(pipe, status="cancelled")
    pipe.expire(job.key, settings.job_ttl)


def _leave_registries(job: ExamJob, queue: Queue, pipe: Pipeline) -> None:
    pipe.lrem(queue.key, 0, job.id)
    for registry in (ScheduledJobRegistry(queue=queue), CanceledJobRegistry(queue=queue), queue.failed_job_registry):
        pipe.zrem(registry.key, job.id)


def _status(job: Job) -> JobStatus:
    return job.get_status(refresh=False)


# What the document is told


def settle(connection: Redis, settings: Settings, job_ids: Iterable[str], deadline: float = 10.0) -> None:
    """Bring the documents of jobs in line with their jobs.

    For jobs that ended, or wait again, without a run that could say so: cancelled, killed or lost ones. Idempotent;
    leaves a document alone that is not `processing` or has a newer job. Raises `FirestoreUnavailable` after
    `deadline` seconds for one call. It opens a gRPC channel: not for a process that forks afterwards.
    """
    from superexam_rq import store

    with contextlib.closing(store.connect(settings)) as client:
        exams = store.ExamStore(client, settings, deadline=deadline)

        def settle_one(job_id: str) -> None:
            try:
                settle_document(connection, settings, exams, job_id)
            except (store.RequestRefused, NoSuchJobError) as error:
                # Of this document alone: the others are told all the same.
                log.warning("job %s: its document can't be told: %s", job_id, error)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(settle_one, job_ids))


def tell_failure(settings: Settings, job: ExamJob, deadline: float = 5.0) -> None:
    """Show in the document what the failure of a run means, while that run is still the job's current one.

    Whoever then finds the job failed finds its document failed too. What was decided is kept first, so that a
    crash in between can't lead to another decision. Raises `FirestoreUnavailable`.
    """
    from superexam_rq import store

    fields: dict[Any, Any] = {"retries_left": job.retries_left or 0, "meta": job._serialize_meta()}
    job.connection.hset(job.key, mapping=fields)
    if job.should_retry:
        wanted = store.Outcome("waiting", str(job.meta["step"]), int(job.meta.get("progress", 0)))
    else:
        wanted = store.Outcome("failed", str(job.meta["error"]))
    with contextlib.closing(store.connect(settings)) as client:
        exams = store.ExamStore(client, settings, deadline=deadline)
        exams.settle(job.doc_id, job.id, wanted, lambda: check(job.connection, settings, job))


def settle_document(connection: Redis, settings: Settings, exams: ExamStore, job_id: str) -> bool:
    """Bring one job's document in line with the job, and return whether anything was written."""
    raw = connection.hgetall(Job.key_for(job_id))
    if not raw:
        return False
    job = restored(connection, job_id, raw)
    due = connection.zscore(ScheduledJobRegistry(settings.queue_name, connection=connection).key, job_id)
    wanted = outcome(job, due)
    if wanted is None:
        return False

    def check() -> None:
        newest = connection.get(document_key(settings, job.doc_id))
        status = connection.hget(job.key, "status")
        if (newest is not None and as_text(newest) != job_id) or as_text(status or b"") != _status(job).value:
            raise Superseded("the job has changed")

    return exams.settle(job.doc_id, job_id, wanted, check)


def outcome(job: ExamJob, due: float | None = None) -> Outcome | None:
    """Return what the document of a job without a run is to show; None where the job has nothing to say.

    `due` is the time of its retry, if it waits for one.
    """
    from superexam_rq.store import Outcome

    status = _status(job)
    if status in {JobStatus.CANCELED, JobStatus.STOPPED}:
        return Outcome("cancelled")
    if status is JobStatus.FAILED:
        return Outcome("failed", str(job.meta.get("error") or "The job failed; try again"))
    if status in {JobStatus.QUEUED, JobStatus.SCHEDULED} and job.meta.get("attempt"):
        step = queue_step(job.attempt, job.max_attempts)
        if due is not None:
            step = retry_step(due - time.time(), job.attempt, job.max_attempts)
        return Outcome("waiting", step, int(job.meta.get("progress", 0)))
    return None
