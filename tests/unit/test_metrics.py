"""Counting in Redis and telling Prometheus."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from redis.exceptions import ConnectionError as RedisConnectionError
from rq import Queue
from rq.serializers import JSONSerializer

from superexam_rq import errors, metrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture
def redis() -> Iterator[FakeRedis]:
    """Give an empty Redis."""
    connection = FakeRedis(server=FakeServer())
    yield connection
    connection.close()


@pytest.fixture
def queue(redis: FakeRedis) -> Queue:
    """Give the one queue."""
    return Queue("superexam", connection=redis, serializer=JSONSerializer)


@pytest.fixture
def scrape(queue: Queue) -> Callable[..., float | None]:
    """Give a function that returns the value of one sample of a fresh scrape."""

    def look(name: str, **labels: str) -> float | None:
        text, _ = metrics.exposition(queue)
        samples = [sample for family in parse_text(text.decode()) for sample in family.samples]
        return next((float(s.value) for s in samples if s.name == name and s.labels == labels), None)

    return look


def _fill(redis: FakeRedis) -> None:
    with metrics.recording(redis) as pipe:
        metrics.record_submission(pipe, "queued")
        metrics.record_start(pipe, wait=0.25, attempt=1)
        metrics.record_start(pipe, wait=7.5, attempt=2)
        metrics.record_end(pipe, status="completed", seconds=12.5, questions=40)
        metrics.record_end(pipe, status="failed", error_code="pdf_missing", seconds=9999)
        metrics.record_end(pipe, status="cancelled")


@pytest.mark.parametrize(("accept", "parse"), [("", parse_text), (OPENMETRICS, parse_openmetrics)])
def test_the_text_is_what_prometheus_reads(
    redis: FakeRedis, queue: Queue, accept: str, parse: Callable[[str], Iterator[Metric]]
) -> None:
    """Both formats are read back by their parsers, with type and help for each metric."""
    _fill(redis)
    text, content_type = metrics.exposition(queue, accept)
    families = list(parse(text.decode()))
    assert content_type.startswith(accept.split(";")[0] or "text/plain")
    assert len(families) > 10
    for family in families:
        assert family.type != "unknown"
        assert family.documentation


def test_names_follow_the_practice(queue: Queue) -> None:
    """Names begin with the service's; counters end in _total, times in _seconds; no two families share one."""
    text, _ = metrics.exposition(queue, OPENMETRICS)
    families = list(parse_openmetrics(text.decode()))  # type: ignore[no-untyped-call]
    for family in families:
        assert re.fullmatch(r"superexam_[a-z][a-z_]*[a-z]", family.name)
        if family.type == "counter":
            assert {sample.name for sample in family.samples} == {f"{family.name}_total"}
        if family.type == "histogram" or "how long" in family.documentation.lower():
            assert family.name.endswith("_seconds")
    assert len({family.name for family in families}) == len(families)


def test_ends_are_counted_by_state_and_code(redis: FakeRedis, scrape: Callable[..., float | None]) -> None:
    """Each end of a job raises one counter; only a failed job has a code."""
    _fill(redis)
    assert scrape("superexam_jobs_total", status="completed", error_code="") == 1
    assert scrape("superexam_jobs_total", status="failed", error_code="pdf_missing") == 1
    assert scrape("superexam_jobs_total", status="cancelled", error_code="") == 1
    assert scrape("superexam_questions_total") == 40
    assert scrape("superexam_submissions_total", outcome="queued") == 1


def test_a_run_after_the_first_is_a_retry(redis: FakeRedis, scrape: Callable[..., float | None]) -> None:
    """Of two starts, the one with attempt 2 is a retry."""
    _fill(redis)
    assert scrape("superexam_job_retries_total") == 1


def test_durations_are_in_cumulative_buckets(redis: FakeRedis, scrape: Callable[..., float | None]) -> None:
    """A bucket holds all runs up to its bound; a job that never ran is in none."""
    _fill(redis)
    run = {bound: scrape("superexam_job_run_seconds_bucket", le=bound) for bound in ("10.0", "20.0", "3600.0", "+Inf")}
    assert run == {"10.0": 0, "20.0": 1, "3600.0": 1, "+Inf": 2}
    assert scrape("superexam_job_run_seconds_count") == 2
    assert scrape("superexam_job_run_seconds_sum") == pytest.approx(10011.5)
    assert scrape("superexam_queue_wait_seconds_bucket", le="1.0") == 1
    assert scrape("superexam_queue_wait_seconds_bucket", le="15.0") == 2


def test_a_bound_belongs_to_its_bucket(redis: FakeRedis, scrape: Callable[..., float | None]) -> None:
    """`le` means less or equal; a clock that went back counts as no wait."""
    with metrics.recording(redis) as pipe:
        metrics.record_start(pipe, wait=5, attempt=1)
        metrics.record_start(pipe, wait=-3, attempt=1)
    assert scrape("superexam_queue_wait_seconds_bucket", le="1.0") == 1
    assert scrape("superexam_queue_wait_seconds_bucket", le="5.0") == 2
    assert scrape("superexam_queue_wait_seconds_sum") == 5


def test_every_known_counter_starts_at_zero(queue: Queue) -> None:
    """Before anything happened each counter is there, so that Prometheus sees the first event as a rise."""
    text, _ = metrics.exposition(queue)
    samples = [sample for family in parse_text(text.decode()) for sample in family.samples]
    jobs = {(s.labels["status"], s.labels["error_code"]): s.value for s in samples if s.name == "superexam_jobs_total"}
    assert set(jobs.values()) == {0.0}
    assert len(jobs) == 2 + len(metrics.ERROR_CODES)


def test_every_error_code_is_known() -> None:
    """The codes of failed jobs are those of the exception tree."""

    def codes(kind: type[errors.SuperExamError]) -> set[str]:
        return {kind.code}.union(*(codes(child) for child in kind.__subclasses__()))

    assert set(metrics.ERROR_CODES) == codes(errors.SuperExamError) - {"cancelled", ""}


def test_usage_is_counted_as_it_rises(redis: FakeRedis, scrape: Callable[..., float | None]) -> None:
    """Each flush adds what has come since the last one; an unknown price adds nothing."""
    usage: dict[str, Any] = {"outcomes": {"complete": 2}, "prompt_tokens": 100, "usd": None, "cached_batches": 3}
    recorder = metrics.UsageRecorder(redis, lambda: dict(usage))
    recorder.flush()
    usage |= {"outcomes": {"complete": 3, "rate_limited": 1}, "prompt_tokens": 150, "usd": 0.0125}
    recorder.flush()
    recorder.flush()
    assert scrape("superexam_gemini_calls_total", outcome="complete") == 3
    assert scrape("superexam_gemini_calls_total", outcome="rate_limited") == 1
    assert scrape("superexam_gemini_tokens_total", kind="prompt") == 150
    assert scrape("superexam_gemini_tokens_total", kind="output") == 0
    assert scrape("superexam_gemini_cost_usd_total") == pytest.approx(0.0125)
    assert scrape("superexam_checkpoint_hits_total") == 3


def test_the_oldest_job_is_found_behind_those_with_priority(queue: Queue, scrape: Callable[..., float | None]) -> None:
    """The age is that of the job that waits longest, not of the one that is next; an empty queue has none."""
    assert scrape("superexam_queue_oldest_job_age_seconds") == 0
    old = queue.enqueue("time.sleep", 0)
    queue.enqueue("time.sleep", 0, at_front=True)
    queue.connection.hset(old.key, "enqueued_at", "2026-01-01T00:00:00.000000Z")
    collector = metrics.RedisCollector(queue, clock=lambda: 1767225600.0 + 90)
    (age,) = [family for family in collector.collect() if family.name == "superexam_queue_oldest_job_age_seconds"]
    assert age.samples[0].value == 90
    assert scrape("superexam_queue_jobs", state="queued") == 2


def test_a_job_deleted_while_it_is_looked_at_is_no_error(queue: Queue, scrape: Callable[..., float | None]) -> None:
    """An id in the queue without a job is counted as the queue counts it, and has no age."""
    queue.push_job_id("gone")
    assert scrape("superexam_queue_jobs", state="queued") == 1
    assert scrape("superexam_queue_oldest_job_age_seconds") == 0


def test_dead_workers_are_not_counted(redis: FakeRedis, queue: Queue, scrape: Callable[..., float | None]) -> None:
    """A worker is alive while its hash lives; a name without one is left over from a crash."""
    for name, state in (("a", "busy"), ("b", "idle"), ("c", "suspended"), ("d", None)):
        redis.sadd(f"superexam:workers:{queue.name}", f"superexam:worker:{name}")
        if state:
            redis.hset(f"superexam:worker:{name}", "state", state)
    assert scrape("superexam_workers", state="busy") == 1
    assert scrape("superexam_workers", state="idle") == 2


def test_suspension_shows(redis: FakeRedis, scrape: Callable[..., float | None]) -> None:
    """`rq suspend` raises a flag of its own: workers are alive then and take nothing."""
    assert scrape("superexam_queue_suspended") == 0
    redis.set("superexam:suspended", 1)
    assert scrape("superexam_queue_suspended") == 1


def test_counters_expire_long_after_the_last_count(redis: FakeRedis) -> None:
    """Whatever the service keeps expires: the counters 90 days after the last count, in one key under the prefix."""
    _fill(redis)
    assert redis.keys() == [b"superexam:metrics"]
    redis.expire("superexam:metrics", 5)
    _fill(redis)
    assert redis.ttl("superexam:metrics") > metrics.COUNTERS_TTL - 60


def test_counting_never_fails_its_caller(caplog: pytest.LogCaptureFixture) -> None:
    """With Redis away a count is lost with one line in the log."""
    server = FakeServer()
    server.connected = False
    _fill(FakeRedis(server=server))
    assert "not counted: ConnectionError" in caplog.text


def test_a_scrape_without_redis_fails() -> None:
    """There is nothing true to tell then: the error is the caller's to answer."""
    server = FakeServer()
    server.connected = False
    with pytest.raises(RedisConnectionError):
        metrics.exposition(Queue(connection=FakeRedis(server=server)))


def test_no_value_is_strange(redis: FakeRedis, queue: Queue) -> None:
    """Every sample is a number, and not below zero."""
    _fill(redis)
    text, _ = metrics.exposition(queue)
    for family in parse_text(text.decode()):
        for sample in family.samples:
            assert math.isfinite(sample.value)
            assert sample.value >= 0


def test_a_scrape_is_quick_with_a_long_queue(queue: Queue) -> None:
    """The work does not grow with the queue: of 5,000 waiting jobs only those in front are looked at."""
    queue.connection.rpush(queue.key, *(f"job-{number}" for number in range(5000)))
    begun = time.perf_counter()
    metrics.exposition(queue)
    assert time.perf_counter() - begun < 2
