"""The client side of RQ: connect, enqueue, look at a job. No Flask, no Firestore, no Gemini.

RQ's job hash is the truth about a job. What the service adds to it lies in the job's `meta` (one JSON blob that
only the running horse writes, or the worker's parent once the horse is dead): document, attempt, progress, step,
number of questions, error. `snapshot` turns both into the job object of the HTTP contract.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import rq.defaults
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.exceptions import WatchError
from redis.retry import Retry as RedisRetry
from rq import Queue, Worker
from rq.exceptions import NoSuchJobError
from rq.job import Job, JobStatus, Retry
from rq.registry import ScheduledJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import as_text

from superexam_rq.config import Settings
from superexam_rq.errors import ConfigError

# What RQ imports by name to run a job; the horse resolves it, so that the API never imports the pipeline.
PROCESS = "superexam_rq.jobs.process"

# A job that waits longer than this for a worker is no longer protected from a second submission: every key expires.
DOCUMENT_KEY_TTL = 30 * 86400

LIVE = frozenset({JobStatus.QUEUED, JobStatus.STARTED, JobStatus.SCHEDULED, JobStatus.DEFERRED, JobStatus.CREATED})

STATUS_NAMES: Mapping[JobStatus, str] = {
    JobStatus.CREATED: "pending",
    JobStatus.QUEUED: "pending",
    JobStatus.DEFERRED: "pending",
    JobStatus.SCHEDULED: "pending",
    JobStatus.STARTED: "processing",
    JobStatus.FINISHED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "cancelled",
    JobStatus.CANCELED: "cancelled",
}


def check_key_prefix(settings: Settings) -> None:
    """Refuse to go on where RQ was imported with another key prefix; it would silently look at other keys."""
    if settings.rq_key_prefix != rq.defaults.RQ_KEY_PREFIX:
        raise ConfigError(
            f"RQ uses the key prefix {rq.defaults.RQ_KEY_PREFIX!r} but REDIS_KEY_PREFIX is "
            f"{settings.redis_key_prefix!r}: export RQ_KEY_PREFIX={settings.rq_key_prefix} before this process starts"
        )


def connect(settings: Settings) -> Redis:
    """Return a client for short commands: it gives up within 2 s, so that a caller can be told (contract §2).

    One retry only, and only where nothing was sent: a repeated EXEC could push a job twice.
    """
    check_key_prefix(settings)
    return Redis.from_url(
        settings.redis_url,
        socket_connect_timeout=0.8,
        socket_timeout=1.5,
        retry=RedisRetry(ExponentialBackoff(cap=0.05, base=0.01), 0),
        health_check_interval=0,
    )


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """Say what to process: ids and options, never a document's content."""

    doc_id: str
    system_prompt_id: str
    custom_prompt_id: str
    schema: dict[str, Any] | str | None = None
    pages: str | None = None
    max_questions: int | None = None
    model: str | None = None


@dataclass(kw_only=True)
class JobObject:
    """Hold the job object of the HTTP contract; times are Unix seconds."""

    job_id: str
    doc_id: str
    status: str
    attempt: int
    max_attempts: int
    progress: int
    current_step: str
    question_count: int
    error: str | None = None
    error_code: str | None = None
    created_at: float | None = None
    started_at: float | None = None
    completed_at: float | None = None
    retry_at: float | None = None
    queue_position: int | None = None
    usage: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the object as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Health:
    """Say how the queue is: how many jobs wait, how many workers live."""

    queued: int
    workers: int


def retry_intervals(settings: Settings) -> list[int]:
    """Return one interval in seconds for each retry: the last is repeated, the rest unused.

    RQ itself repeats the first (`rq.job.Job.get_retry_interval`), so it is given a list of the right length.
    """
    given = list(settings.retry_intervals)
    wanted = settings.max_retry_attempts
    return (given + given[-1:] * wanted)[:wanted]


class JobQueue:
    """Put jobs into the one named queue and look at them."""

    def __init__(self, connection: Redis, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.connection = connection
        self.settings = settings
        self.clock = clock
        self.queue = Queue(settings.queue_name, connection=connection, serializer=JSONSerializer)
        self.scheduled = ScheduledJobRegistry(queue=self.queue)

    def enqueue(self, request: JobRequest, *, at_front: bool = False) -> tuple[str, bool]:
        """Queue a job for a document and return its id and True, or the id of the one that lives and False.

        Atomic: the document's key and the job are written in one transaction, which fails if another submission
        for the document came between.
        """
        key = self.settings.key("document", request.doc_id)
        while True:
            with self.connection.pipeline() as pipe:
                try:
                    pipe.watch(key)
                    holder = pipe.get(key)
                    if holder is not None and self._is_live(as_text(holder)):
                        return as_text(holder), False
                    pipe.multi()
                    job = self._create(request)
                    pipe.set(key, job.id, ex=DOCUMENT_KEY_TTL)
                    pipe.zadd(self.settings.key("jobs"), {job.id: job.created_at.timestamp()})
                    pipe.expire(self.settings.key("jobs"), DOCUMENT_KEY_TTL)
                    self.queue.enqueue_job(job, pipeline=pipe, at_front=at_front)
                    pipe.execute()
                except WatchError:
                    continue
                return job.id, True

    def _create(self, request: JobRequest) -> Job:
        settings = self.settings
        retries = settings.max_retry_attempts
        return self.queue.create_job(
            PROCESS,
            kwargs=asdict(request),
            job_id=str(uuid.uuid4()),
            description=f"document {request.doc_id}",
            timeout=settings.job_timeout,
            result_ttl=settings.job_ttl,
            failure_ttl=settings.job_ttl,
            retry=Retry(max=retries, interval=retry_intervals(settings)) if retries else None,
            meta={"doc_id": request.doc_id, "max_attempts": 1 + retries},
        )

    def _is_live(self, job_id: str) -> bool:
        status = self.connection.hget(Job.key_for(job_id), "status")
        return status is not None and JobStatus(as_text(status)) in LIVE

    def snapshot(self, job_id: str) -> JobObject | None:
        """Return the job object, or None for an unknown job; one round trip."""
        with self.connection.pipeline(transaction=False) as pipe:
            pipe.hgetall(Job.key_for(job_id))
            pipe.lpos(self.queue.key, job_id)
            pipe.zscore(self.scheduled.key, job_id)
            raw, position, due = pipe.execute()
        return self._job_object(job_id, raw, position, due)

    def _job_object(
        self, job_id: str, raw: Mapping[bytes, bytes], position: int | None, due: float | None
    ) -> JobObject | None:
        job = Job(job_id, connection=self.connection, serializer=JSONSerializer)
        try:
            job.restore(raw)
        except NoSuchJobError:
            return None
        meta = job.meta
        status = job.get_status(refresh=False)
        max_attempts = int(meta.get("max_attempts", 1))
        attempt = int(meta.get("attempt", 0))
        step = str(meta.get("step", "")) or "Waiting in the queue"
        retry_at = due if status is JobStatus.SCHEDULED else None
        if retry_at is not None:
            step = retry_step(retry_at - self.clock(), attempt + 1, max_attempts)
        ended = status not in LIVE
        return JobObject(
            job_id=job_id,
            doc_id=str(meta.get("doc_id", "")),
            status=STATUS_NAMES[status],
            attempt=attempt,
            max_attempts=max_attempts,
            progress=int(meta.get("progress", 0)),
            current_step=step,
            question_count=int(meta.get("question_count", 0)),
            error=meta.get("error"),
            error_code=meta.get("error_code"),
            created_at=_timestamp(job.created_at),
            started_at=_timestamp(job.started_at),
            completed_at=_timestamp(job.ended_at) if ended else None,
            retry_at=retry_at,
            queue_position=position + 1 if status is JobStatus.QUEUED and position is not None else None,
            usage=meta.get("usage", {}),
        )

    def health(self) -> Health:
        """Count waiting jobs and live workers; raises redis' errors where Redis is away."""
        queued = int(self.connection.llen(self.queue.key))
        return Health(queued, Worker.count(queue=self.queue))


def next_run(connection: Redis, job_id: str) -> int:
    """Return a number that rises with each run of a job: its fencing token. It lives and expires with the job."""
    return int(connection.hincrby(Job.key_for(job_id), "runs", 1))


def announce(connection: Redis, settings: Settings, job_id: str) -> None:
    """Tell whoever listens that a job has changed."""
    connection.publish(settings.key("events"), job_id)


def retry_step(seconds: float, attempt: int, max_attempts: int) -> str:
    """Return the step shown between two attempts; at most 40 characters."""
    return f"Retrying in {max(0, round(seconds))} s (attempt {attempt} of {max_attempts})"


def _timestamp(value: datetime | None) -> float | None:
    return value.timestamp() if value is not None else None


REDIS_AWAY = (RedisConnectionError, RedisTimeoutError)
