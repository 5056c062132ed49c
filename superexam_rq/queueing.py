"""The client side of RQ: connect, enqueue (in `submission`), look at jobs. No Flask, no Firestore, no Gemini.

RQ's job hash is the truth about a job. What the service adds to it lies in the job's `meta` (one JSON blob that
only the running horse writes, or the worker's parent once the horse is dead): document, attempt, progress, step,
number of questions, error; and in the hash's field `doc_id`, by which jobs are found. `snapshot` turns both into
the job object of the HTTP contract. Cancelling and retrying is in `lifecycle`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import rq.defaults
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry as RedisRetry
from rq import Queue
from rq.job import Job, JobStatus
from rq.registry import ScheduledJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import as_text, utcparse
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from superexam_rq.config import Settings
from superexam_rq.errors import ConfigError
from superexam_rq.lifecycle import LIVE, ExamJob, queue_step, retry_step
from superexam_rq.request import JobRequest
from superexam_rq.submission import Submission, Submitter

log = logging.getLogger(__name__)

# Together with the rate limit's own trip (auth) a caller is answered within 2 s, also where Redis hangs.
CONNECT_SECONDS = 0.5
ANSWER_SECONDS = 1.0
# What a caller is told to wait where Redis is away.
RETRY_AFTER_SECONDS = 5

STATUS_NAMES: Mapping[JobStatus, str] = {
    JobStatus.CREATED: "pending",
    JobStatus.QUEUED: "pending",
    JobStatus.DEFERRED: "pending",
    JobStatus.SCHEDULED: "pending",
    JobStatus.RATE_LIMITED: "pending",
    JobStatus.READY_TO_ENQUEUE: "pending",
    JobStatus.STARTED: "processing",
    JobStatus.FINISHED: "completed",
    JobStatus.FAILED: "failed",
    JobStatus.STOPPED: "cancelled",
    JobStatus.CANCELED: "cancelled",
}

# Errors by which Redis says that it can't serve now, and what an operator makes of it.
_REFUSALS = {
    "LOADING": "Redis is loading its data",
    "BUSY": "Redis is busy with a script",
    "READONLY": "Redis is a read-only replica: REDIS_URL must name the primary",
    "MASTERDOWN": "Redis has lost its primary",
    "CLUSTERDOWN": "Redis Cluster is down",
    "NOREPLICAS": "Redis lacks replicas to write to",
    "MISCONF": "Redis can't save to disk and refuses writes",
    "OOM": "Redis is out of memory",
    "NOAUTH": "Redis wants a password: set it in REDIS_URL or REDIS_PASSWORD",
    "WRONGPASS": "Redis refuses the password of REDIS_URL or REDIS_PASSWORD",
    "NOPERM": "Redis lets this user not do that: see the ACL in deploy",
    "DENIED": "Redis is in protected mode",
    "UNBLOCKED": "Redis has become a replica",
}

# Count and page in one trip, newest first; forget jobs whose hash has expired. KEYS: the index. ARGV: prefix of job
# keys, the statuses wanted, the document wanted (each empty: any), offset, limit.
_LIST = """
local jobs, statuses, document, first, limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local total, page = 0, {}
for _, id in ipairs(redis.call('ZREVRANGE', KEYS[1], 0, -1)) do
    local job = redis.call('HMGET', jobs .. id, 'status', 'doc_id')
    if not job[1] then
        redis.call('ZREM', KEYS[1], id)
    elseif (statuses == '' or string.find(statuses, ' ' .. job[1] .. ' ', 1, true))
        and (document == '' or document == job[2]) then
        total = total + 1
        if total > first and total <= first + limit then page[#page + 1] = id end
    end
end
return {total, page}
"""


def check_key_prefix(settings: Settings) -> None:
    """Refuse to go on where RQ was imported with another key prefix; it would silently look at other keys."""
    if settings.rq_key_prefix != rq.defaults.RQ_KEY_PREFIX:
        raise ConfigError(
            f"RQ uses the key prefix {rq.defaults.RQ_KEY_PREFIX!r} but REDIS_KEY_PREFIX is "
            f"{settings.redis_key_prefix!r}: export RQ_KEY_PREFIX={settings.rq_key_prefix} before this process starts"
        )


def connect(
    settings: Settings, *, connect_seconds: float = CONNECT_SECONDS, answer_seconds: float = ANSWER_SECONDS
) -> Redis:
    """Return a client for short commands: it gives up within 2 s, so that a caller can be told (contract §2).

    Nothing is sent yet, and nothing is ever sent twice: the caller decides whether to try again. Raises `ConfigError`
    where RQ has another key prefix, or REDIS_URL holds an option that redis-py does not take.
    """
    check_key_prefix(settings)
    try:
        client = Redis.from_url(
            settings.redis_url,
            socket_connect_timeout=connect_seconds,
            socket_timeout=answer_seconds,
            retry=RedisRetry(NoBackoff(), 0),
            health_check_interval=0,
            max_connections=512,
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError, RedisError) as error:
        raise ConfigError(f"REDIS_URL takes redis-py's options only: {error}") from None
    return client


def away(error: RedisError) -> str | None:
    """Return in one line, fit for anyone, why Redis can't serve now; None if the error is a defect of ours."""
    # A pipeline's error begins with the command that it is about.
    text = str(error).rpartition(" caused error: ")[2]
    code = getattr(error, "status_code", None) or text.partition(" ")[0]
    if code in _REFUSALS:
        return _REFUSALS[code]
    if isinstance(error, InvalidResponse):
        return "What answers is no Redis: look at REDIS_HOST and REDIS_PORT, or REDIS_URL"
    if text == "DB index is out of range":
        return "Redis has no such database: look at REDIS_DB, or REDIS_URL"
    if isinstance(error, RedisTimeoutError):
        return "Redis does not answer"
    if isinstance(error, RedisConnectionError):
        return "Redis can't be reached"
    return _REFUSALS["NOPERM"] if "ACL failure in script" in text else None


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


class JobQueue:
    """Put jobs into the one named queue and look at them."""

    def __init__(self, connection: Redis, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.connection = connection
        self.settings = settings
        self.clock = clock
        self.queue = Queue(settings.queue_name, connection=connection, job_class=ExamJob, serializer=JSONSerializer)
        self.scheduled = ScheduledJobRegistry(queue=self.queue)
        self._submitter = Submitter(self.queue, settings)
        self._index = settings.key("jobs")
        self._list = connection.register_script(_LIST)

    def enqueue(
        self, request: JobRequest, *, at_front: bool = False, caller: str = "", idempotency_key: str = ""
    ) -> Submission:
        """Queue a job for a document, or find the one that lives; with a known key, tell the first answer again.

        One trip, and atomic (`submission`). Raises redis' errors.
        """
        return self._submitter.submit(request, at_front=at_front, caller=caller, idempotency_key=idempotency_key)

    def snapshot(self, job_id: str) -> JobObject | None:
        """Return the job object, or None for an unknown job; one trip."""
        with self.connection.pipeline(transaction=False) as pipe:
            self._ask(pipe, job_id)
            pipe.lpos(self.queue.key, job_id)
            found, due, position = pipe.execute()
        return self._readable(job_id, found, due, position)

    def snapshots(self, job_ids: Iterable[str]) -> dict[str, JobObject]:
        """Return the job objects of those that exist, in the order given; one trip."""
        wanted = list(job_ids)
        with self.connection.pipeline(transaction=False) as pipe:
            for job_id in wanted:
                self._ask(pipe, job_id)
            # The whole list, instead of one search through it for each job.
            pipe.lrange(self.queue.key, 0, -1)
            *answers, waiting = pipe.execute()
        positions = {as_text(job_id): position for position, job_id in enumerate(waiting)}
        objects = {}
        for job_id, found, due in zip(wanted, answers[::2], answers[1::2], strict=True):
            job = self._readable(job_id, found, due, positions.get(job_id))
            if job is not None:
                objects[job_id] = job
        return objects

    def list_jobs(
        self, *, status: str | None = None, doc_id: str | None = None, limit: int = 50, offset: int = 0
    ) -> tuple[list[JobObject], int]:
        """Return one page of jobs, newest first, and how many there are in all; `status` is one of the contract's."""
        statuses = _words(known for known, name in STATUS_NAMES.items() if name == status) if status else ""
        total, page = self._list(keys=[self._index], args=[Job.key_for(""), statuses, doc_id or "", offset, limit])
        jobs = self.snapshots(as_text(job_id) for job_id in page) if page else {}
        return list(jobs.values()), int(total)

    def _ask(self, pipe: Any, job_id: str) -> None:
        pipe.hmget(
            Job.key_for(job_id), "status", "meta", "created_at", "started_at", "ended_at", "ended", "retries_left"
        )
        pipe.zscore(self.scheduled.key, job_id)

    def _readable(
        self, job_id: str, found: Sequence[bytes | None], due: float | None, position: int | None
    ) -> JobObject | None:
        """Return the job object; None where there is no job, or another program has spoilt its hash."""
        try:
            return self._job_object(job_id, found, due, position) if found[0] is not None else None
        except (ValueError, TypeError, AttributeError) as error:
            log.warning("job %s can't be read: %s", job_id, error)
            return None

    def _job_object(
        self, job_id: str, found: Sequence[bytes | None], due: float | None, position: int | None
    ) -> JobObject:
        raw_status, raw_meta, created, started, ended, put_back, left = found
        meta = JSONSerializer.loads(raw_meta) if raw_meta else {}
        status = JobStatus(as_text(raw_status or b""))
        if status is JobStatus.QUEUED and put_back is not None:  # by RQ's own tools: a new beginning
            meta = {"doc_id": meta.get("doc_id"), "max_attempts": meta.get("max_attempts", 1)}
        max_attempts = int(meta.get("max_attempts", 1))
        attempt = int(meta.get("attempt", 0))
        step = str(meta.get("step", "")) or "Waiting in the queue"
        retry_at = due if status is JobStatus.SCHEDULED else None
        if retry_at is not None:
            step = retry_step(retry_at - self.clock(), attempt + 1, max_attempts)
        elif status is JobStatus.QUEUED and attempt:
            step = queue_step(max_attempts - int(left or 0), max_attempts)
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
            created_at=_timestamp(created),
            started_at=_timestamp(started),
            completed_at=_timestamp(ended) if status not in LIVE else None,
            retry_at=retry_at,
            queue_position=position + 1 if status is JobStatus.QUEUED and position is not None else None,
            usage=meta.get("usage", {}),
        )

    def health(self) -> Health:
        """Count waiting jobs and live workers (a killed one until its key expires); raises redis' errors."""
        with self.connection.pipeline(transaction=False) as pipe:
            pipe.llen(self.queue.key)
            pipe.smembers(WORKERS_BY_QUEUE_KEY % self.queue.name)
            queued, workers = pipe.execute()
        return Health(int(queued), int(self.connection.exists(*workers)) if workers else 0)


def _words(statuses: Iterable[JobStatus]) -> str:
    """Return statuses as a text in which a script finds one between two spaces."""
    return f" {' '.join(status.value for status in statuses)} "


def _timestamp(raw: bytes | None) -> float | None:
    return utcparse(as_text(raw)).timestamp() if raw else None
