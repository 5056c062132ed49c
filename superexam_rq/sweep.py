"""The sweep: find what no callback saw, and give it the truth.

Run every half minute by a short-lived child of one worker (`worker`), never twice at a time. It looks at every job
of the index, so that none stays in no list of RQ's, and at every document that is `processing`, so that none stays
so with no live job behind it: its job ended and could not say so, or the website's submission was refused or lost.
What only takes up room is removed.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from google.cloud.firestore import DocumentSnapshot
from redis import Redis
from redis.client import Pipeline
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus
from rq.registry import CanceledJobRegistry, ScheduledJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import as_text, str_to_date
from rq.worker_registration import clean_worker_registry

from superexam_rq import lifecycle, store
from superexam_rq.config import Settings
from superexam_rq.errors import FirestoreUnavailable, Superseded, WorkerLost
from superexam_rq.lifecycle import DOCUMENT_KEY_TTL, ExamJob, document_key

log = logging.getLogger("rq.worker")

# How long a document may be `processing` without a live job: its submission may be under way.
SUBMISSION_SECONDS = 120
# What the website writes before it submits (contract).
QUEUING = "Queuing..."
TRY_AGAIN = "Not processed: the job got lost. Please try again."
# Seconds for one call of Firestore.
DEADLINE = 8.0
_CHUNK = 500
_STATUSES = frozenset(status.value for status in JobStatus)


def run(connection: Redis, settings: Settings) -> None:
    """Sweep once; raises what Redis raises. What Firestore can't take now is left to the next sweep."""
    queue = Queue(settings.queue_name, connection=connection, job_class=ExamJob, serializer=JSONSerializer)
    jobs(queue, settings)
    clean(queue, settings)
    try:
        with contextlib.closing(store.connect(settings)) as client:
            documents(connection, settings, store.ExamStore(client, settings, deadline=DEADLINE))
    except FirestoreUnavailable as error:
        log.warning("sweep: %s", error)


def jobs(queue: Queue, settings: Settings) -> None:
    """Queue jobs again that no list of RQ's holds, and keep what belongs to live ones from expiring."""
    connection = queue.connection
    index = settings.key("jobs")
    connection.zremrangebyscore(index, "-inf", time.time() - DOCUMENT_KEY_TTL)
    for ids in _chunks(connection.zrange(index, 0, -1)):
        with connection.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(Job.key_for(job_id), "status", "execution")
            found = dict(zip(ids, pipe.execute(), strict=True))
        gone = [job_id for job_id, (status, _) in found.items() if status is None]
        if gone:
            connection.zrem(index, *gone)
        for job_id, (status, _) in found.items():
            if status is not None and as_text(status) not in _STATUSES:
                log.error("sweep: the job %s has no status that there is; it is failed", job_id)
                lifecycle.set_aside(queue, settings, job_id)
        live = {job_id: fields for job_id, fields in found.items() if lifecycle.is_live(fields[0])}
        if live:
            _keep(queue, settings, live)


def _keep(queue: Queue, settings: Settings, live: dict[str, Any]) -> None:
    with queue.connection.pipeline(transaction=False) as pipe:
        pipe.lrange(queue.key, 0, -1)
        pipe.lrange(queue.intermediate_queue_key, 0, -1)
        pipe.zrange(ScheduledJobRegistry(queue=queue).key, 0, -1)
        pipe.zrange(queue.started_job_registry.key, 0, -1)
        for job_id in live:
            pipe.hget(Job.key_for(job_id), "doc_id")
        for job_id in live:
            pipe.ttl(Job.key_for(job_id))
        queued, popped, scheduled, started, *rest = pipe.execute()
    documents, ttls = rest[: len(live)], rest[len(live) :]
    held = {as_text(entry).partition(":")[0] for entry in (*queued, *popped, *scheduled, *started)}
    for job_id in live:
        if job_id not in held:
            _revive(queue, settings, job_id)
    with queue.connection.pipeline(transaction=False) as pipe:
        for job_id, doc_id in zip(live, documents, strict=True):
            if doc_id:
                status = JobStatus(as_text(live[job_id][0]))
                pipe.expire(document_key(settings, as_text(doc_id)), lifecycle.document_key_ttl(settings, status))
        pipe.execute()
    for job_id, ttl in zip(live, ttls, strict=True):
        if ttl >= 0:
            _persist(queue, job_id)


def _persist(queue: Queue, job_id: str) -> None:
    """Keep a live job's hash; `rq requeue` leaves it to expire. One that has ended since is to expire."""

    def step(pipe: Pipeline) -> None:
        pipe.watch(Job.key_for(job_id))
        live = lifecycle.is_live(pipe.hget(Job.key_for(job_id), "status"))
        pipe.multi()
        if live:
            pipe.persist(Job.key_for(job_id))

    lifecycle.transaction(queue.connection, step)


def _revive(queue: Queue, settings: Settings, job_id: str) -> None:
    """Queue a job that is in no list, unless it has only just moved from one to another."""

    def step(pipe: Pipeline) -> bool:
        pipe.watch(Job.key_for(job_id))
        job = lifecycle.fetch(queue, job_id, pipe)
        status = job.get_status(refresh=False)
        if status is JobStatus.STARTED:
            execution = as_text(pipe.hget(job.key, "execution") or b"")
            if pipe.zscore(queue.started_job_registry.key, f"{job_id}:{execution}") is not None:
                return False
            cancelled = pipe.hexists(job.key, "cancel_requested")
            pipe.multi()
            error = WorkerLost("The worker that ran the job is gone")
            lifecycle.lose(job, queue, settings, pipe, error, cancelled=cancelled)
            return True
        if status is JobStatus.SCHEDULED:
            held = pipe.zscore(ScheduledJobRegistry(queue=queue).key, job_id) is not None
        elif status is JobStatus.QUEUED:
            held = any(pipe.lpos(key, job_id) is not None for key in (queue.key, queue.intermediate_queue_key))
        else:
            return False
        if held:
            return False
        pipe.multi()
        queue._enqueue_job(job, pipeline=pipe)
        return True

    try:
        revived = lifecycle.transaction(queue.connection, step)
    except lifecycle.Unreadable as error:
        log.error("sweep: %s; it is failed", error)
        lifecycle.set_aside(queue, settings, job_id)
        return
    except NoSuchJobError:
        return
    if revived:
        log.warning("sweep: job %s was in no list; it goes on", job_id)
        lifecycle.announce(queue.connection, settings, job_id)


def clean(queue: Queue, settings: Settings) -> None:
    """Remove the entries of ended jobs that have expired, and of workers that are gone."""
    connection = queue.connection
    moment = time.time()
    for registry in (queue.finished_job_registry, queue.failed_job_registry):
        connection.zremrangebyscore(registry.key, 0, moment)
    connection.zremrangebyscore(CanceledJobRegistry(queue=queue).key, 0, moment - settings.job_ttl)
    clean_worker_registry(queue)


def documents(connection: Redis, settings: Settings, exams: store.ExamStore) -> None:
    """Give documents the truth that are `processing` with no live job behind them."""
    for snapshot in exams.processing():
        holder = as_text(connection.get(document_key(settings, snapshot.id)) or b"")
        status, ended = connection.hmget(Job.key_for(holder), "status", "ended_at") if holder else (None, None)
        if lifecycle.is_live(status):
            continue
        outcome = _outcome(connection, snapshot, holder, status, ended)
        if outcome is None:
            continue

        def check(doc_id: str = snapshot.id, holder: str = holder) -> None:
            newest = as_text(connection.get(document_key(settings, doc_id)) or b"")
            if newest != holder or (holder and lifecycle.is_live(connection.hget(Job.key_for(holder), "status"))):
                raise Superseded("the document has a job")

        try:
            if exams.settle(snapshot.id, holder, outcome, check, seen=snapshot.update_time):
                log.warning("sweep: document %s had no live job: %s %s", snapshot.id, outcome.kind, outcome.text)
        except store.RequestRefused as error:
            # Of this document alone: the others are looked at all the same.
            log.warning("sweep: document %s can't be told: %s", snapshot.id, error)


def _outcome(
    connection: Redis, snapshot: DocumentSnapshot, job_id: str, status: Any, ended: Any
) -> store.Outcome | None:
    """Say what a document with no live job is to show; None as long as a submission may be under way.

    The age is told by Firestore alone, so that no clock of ours has to be right.
    """
    old = (snapshot.read_time - snapshot.update_time).total_seconds() >= SUBMISSION_SECONDS
    submitting = (snapshot.to_dict() or {}).get("currentStep") == QUEUING
    if submitting and not old:
        return None
    ended_at: datetime | None = str_to_date(ended) if ended else None
    submitted_since = submitting and ended_at is not None and snapshot.update_time > ended_at
    if status is not None and not submitted_since:
        job = ExamJob(job_id, connection=connection, serializer=JSONSerializer)
        with contextlib.suppress(NoSuchJobError):
            job.refresh()  # type: ignore[no-untyped-call]
            outcome = lifecycle.outcome(job)
            if outcome is not None:
                return outcome
    return store.Outcome("failed", TRY_AGAIN) if old else None


def _chunks(entries: Sequence[Any]) -> Iterator[Sequence[str]]:
    return store.batched([as_text(entry) for entry in entries], _CHUNK)
