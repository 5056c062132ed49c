"""What the service has done and how it is, for Prometheus: counted in Redis, so that every API process tells it all.

Counters live in one Redis hash, under `metrics`; its time to live is renewed with each count, so it goes
`COUNTERS_TTL` after the last one, and Prometheus takes the fall to zero for the restart that it looks like. `record_*`
put O(1) commands into the caller's pipeline: in a transaction that ends a job they count it exactly once; elsewhere
`recording` gives a pipeline of their own, which never fails its caller. Gauges are read from RQ's own keys.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError
from rq import Queue
from rq.defaults import RQ_KEY_PREFIX
from rq.job import Job
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import utcparse
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from superexam_rq import __version__

log = logging.getLogger(__name__)

# A job that RQ hands over knows no settings; the prefix is the same (`queueing.check_key_prefix`).
KEY = f"{RQ_KEY_PREFIX}:metrics"
COUNTERS_TTL = 90 * 86400

# How many jobs at the front of the queue are looked at to find the oldest: jobs with priority are put before it.
FRONT = 100

# Seconds.
RUN_BUCKETS = (5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
WAIT_BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600)

ERROR_CODES = (
    "document_gone", "prompt_missing", "pdf_missing", "pdf_invalid", "gemini_key", "gemini_model", "gemini_quota",
    "blocked", "no_questions", "job_timeout", "worker_lost", "gemini_unavailable", "firestore_unavailable", "internal",
)  # fmt: skip
TOKEN_KINDS = ("prompt", "output", "thought")
REGISTRIES = ("started", "scheduled", "deferred", "finished", "failed", "canceled")


@dataclass(frozen=True)
class Counter:
    """Describe one counter; each of `known` is shown from the start, so that its first rise is seen as one."""

    name: str
    text: str
    labels: tuple[str, ...] = ()
    known: tuple[tuple[str, ...], ...] = ((),)


@dataclass(frozen=True)
class Histogram:
    """Describe one histogram; `bounds` in seconds."""

    name: str
    text: str
    bounds: tuple[int, ...]


JOBS = Counter(
    "superexam_jobs",
    "Jobs that ended, by end state and by the error code of failed ones.",
    ("status", "error_code"),
    (("completed", ""), ("cancelled", ""), *(("failed", code) for code in ERROR_CODES)),
)
SUBMISSIONS = Counter(
    "superexam_submissions",
    "Submissions taken, by outcome: queued, or duplicate (the document had a live job).",
    ("outcome",),
    (("queued",), ("duplicate",)),
)
RETRIES = Counter("superexam_job_retries", "Runs of a job after its first.")
QUESTIONS = Counter("superexam_questions", "Questions published.")
CALLS = Counter(
    "superexam_gemini_calls",
    "Calls to Gemini that ended, by outcome: of the answer, or of the error.",
    ("outcome",),
    (("complete",), ("rate_limited",), ("timeout",), ("gemini_unavailable",)),
)
TOKENS = Counter(
    "superexam_gemini_tokens", "Tokens that Gemini counted.", ("kind",), tuple((kind,) for kind in TOKEN_KINDS)
)
COST = Counter("superexam_gemini_cost_usd", "Estimated price of the calls, in USD; models without a known price add 0.")
HITS = Counter("superexam_checkpoint_hits", "Batches of pages taken from an earlier run's answers, not asked again.")
COUNTERS = (JOBS, SUBMISSIONS, RETRIES, QUESTIONS, CALLS, TOKENS, COST, HITS)

RUN = Histogram("superexam_job_run_seconds", "How long the last run of a completed or failed job took.", RUN_BUCKETS)
WAIT = Histogram("superexam_queue_wait_seconds", "How long a job waited in the queue before a run.", WAIT_BUCKETS)
HISTOGRAMS = (RUN, WAIT)


# Counting


@contextlib.contextmanager
def recording(connection: Redis) -> Iterator[Pipeline]:
    """Give a pipeline for counts that are sent at the end; where Redis is away they are lost, and nothing else is."""
    with connection.pipeline(transaction=False) as pipe:
        yield pipe
        try:
            pipe.execute()
        except RedisError as error:
            log.warning("not counted: %s", type(error).__name__)


def record_submission(pipe: Pipeline, outcome: str) -> None:
    """Count a submission: "queued" or "duplicate"."""
    _count(pipe, SUBMISSIONS, (outcome,))


def record_start(pipe: Pipeline, *, wait: float, attempt: int) -> None:
    """Count the start of a run that waited `wait` seconds in the queue; `attempt` counts from 1."""
    _observe(pipe, WAIT, wait)
    if attempt > 1:
        _count(pipe, RETRIES)


def record_end(
    pipe: Pipeline,
    *,
    status: str,
    error_code: str | None = None,
    seconds: float | None = None,
    questions: int = 0,
) -> None:
    """Count the end of a job: "completed", "failed" or "cancelled"; `seconds` of its last run, if it ran."""
    _count(pipe, JOBS, (status, (error_code or "internal") if status == "failed" else ""))
    if seconds is not None:
        _observe(pipe, RUN, seconds)
    if questions:
        _count(pipe, QUESTIONS, amount=questions)


class UsageRecorder:
    """Count what a run takes while it runs, so that a killed one is counted too.

    `summary` gives the run's totals so far: `outcomes`, `prompt_tokens`, `output_tokens`, `thought_tokens`, `usd`
    (or None), `cached_batches`.
    """

    def __init__(self, connection: Redis, summary: Callable[[], Mapping[str, Any]]) -> None:
        self._connection = connection
        self._summary = summary
        self._counted: dict[tuple[Counter, tuple[str, ...]], float] = {}
        self._lock = threading.Lock()

    def flush(self) -> None:
        """Count what has come since the last call."""
        with self._lock:
            now = _usage_counts(self._summary())
            rises = {entry: amount - self._counted.get(entry, 0) for entry, amount in now.items()}
            self._counted = now
        with recording(self._connection) as pipe:
            for (counter, labels), amount in rises.items():
                if amount > 0:
                    _count(pipe, counter, labels, amount)


def _usage_counts(usage: Mapping[str, Any]) -> dict[tuple[Counter, tuple[str, ...]], float]:
    counts: dict[tuple[Counter, tuple[str, ...]], float] = {
        (CALLS, (outcome,)): number for outcome, number in usage.get("outcomes", {}).items()
    }
    counts |= {(TOKENS, (kind,)): usage.get(f"{kind}_tokens", 0) for kind in TOKEN_KINDS}
    counts[(COST, ())] = float(usage.get("usd") or 0)
    counts[(HITS, ())] = usage.get("cached_batches", 0)
    return counts


def _field(name: str, labels: Sequence[str]) -> str:
    return "|".join((name, *labels))


def _count(pipe: Pipeline, counter: Counter, labels: tuple[str, ...] = (), amount: float = 1) -> None:
    _add(pipe, _field(counter.name, labels), amount)


def _observe(pipe: Pipeline, histogram: Histogram, seconds: float) -> None:
    seconds = max(seconds, 0.0)
    place = bisect_left(histogram.bounds, seconds)
    bound = _bound(histogram.bounds[place]) if place < len(histogram.bounds) else "+Inf"
    _add(pipe, _field(f"{histogram.name}_bucket", (bound,)), 1)
    _add(pipe, f"{histogram.name}_sum", round(float(seconds), 3))


def _bound(seconds: int) -> str:
    return str(float(seconds))


def _add(pipe: Pipeline, name: str, amount: float) -> None:
    if isinstance(amount, int):
        pipe.hincrby(KEY, name, amount)
    else:
        pipe.hincrbyfloat(KEY, name, amount)
    pipe.expire(KEY, COUNTERS_TTL)


# Telling


def exposition(queue: Queue, accept: str = "") -> tuple[bytes, str]:
    """Return the metrics as text and its content type, in the format that an `Accept` header asks for.

    Raises redis' errors where Redis is away: a scrape that fails is what Prometheus' `up` is for.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RedisCollector(queue))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class RedisCollector(Collector):
    """Read all metrics from Redis in two round trips."""

    def __init__(self, queue: Queue, clock: Callable[[], float] = time.time) -> None:
        self._queue = queue
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; raises redis' errors."""
        connection = self._queue.connection
        with connection.pipeline(transaction=False) as pipe:
            pipe.hgetall(KEY)
            pipe.llen(self._queue.key)
            pipe.lrange(self._queue.key, 0, FRONT - 1)
            pipe.smembers(WORKERS_BY_QUEUE_KEY % self._queue.name)
            pipe.exists(WORKERS_SUSPENDED)
            for name in REGISTRIES:
                pipe.zcard(getattr(self._queue, f"{name}_job_registry").key)
            counts, queued, front, workers, suspended, *held = pipe.execute()
        with connection.pipeline(transaction=False) as pipe:
            for job_id in front:
                pipe.hget(Job.key_for(job_id.decode()), "enqueued_at")
            for worker in workers:
                pipe.hget(worker.decode(), "state")
            found = pipe.execute()
        since, states = found[: len(front)], found[len(front) :]
        yield InfoMetricFamily("superexam_build", "The version of the service.", {"version": __version__})
        yield from self._queue_metrics(queued, held, [text for text in since if text])
        yield from _worker_metrics([state for state in states if state], suspended=bool(suspended))
        values = {name.decode(): float(value) for name, value in counts.items()}
        for counter in COUNTERS:
            yield _counter_metric(counter, values)
        for histogram in HISTOGRAMS:
            yield _histogram_metric(histogram, values)

    def _queue_metrics(self, queued: int, held: Sequence[int], since: Sequence[bytes]) -> Iterator[Metric]:
        jobs = GaugeMetricFamily(
            "superexam_queue_jobs", "Jobs in the queue and in each of RQ's registries.", labels=["state"]
        )
        for name, number in zip(("queued", *REGISTRIES), (queued, *held), strict=True):
            jobs.add_metric([name], number)
        yield jobs
        oldest = min((utcparse(text.decode()).timestamp() for text in since), default=None)
        age = GaugeMetricFamily(
            "superexam_queue_oldest_job_age_seconds", "How long the oldest waiting job has waited; 0 if none waits."
        )
        age.add_metric([], 0.0 if oldest is None else max(self._clock() - oldest, 0.0))
        yield age


def _worker_metrics(states: Sequence[bytes], *, suspended: bool) -> Iterator[Metric]:
    workers = GaugeMetricFamily("superexam_workers", "Workers alive, by what they do.", labels=["state"])
    busy = sum(state == b"busy" for state in states)
    workers.add_metric(["busy"], busy)
    workers.add_metric(["idle"], len(states) - busy)
    yield workers
    pause = GaugeMetricFamily("superexam_queue_suspended", "1 after `rq suspend`, until `rq resume`.")
    pause.add_metric([], float(suspended))
    yield pause


def _counter_metric(counter: Counter, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(counter.name, counter.text, labels=counter.labels)
    found = {tuple(name.split("|")[1:]) for name in values if name.split("|")[0] == counter.name}
    for labels in sorted(found.union(counter.known)):
        family.add_metric(labels, values.get(_field(counter.name, labels), 0.0))
    return family


def _histogram_metric(histogram: Histogram, values: Mapping[str, float]) -> Metric:
    buckets, total = [], 0.0
    for bound in (*map(_bound, histogram.bounds), "+Inf"):
        total += values.get(_field(f"{histogram.name}_bucket", (bound,)), 0.0)
        buckets.append((bound, total))
    family = HistogramMetricFamily(histogram.name, histogram.text)
    family.add_metric([], buckets, values.get(f"{histogram.name}_sum", 0.0))
    return family
