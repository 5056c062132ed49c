"""What `queueing` promises: one live job for a document, answers told again, the job object, the list of jobs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rq.job import Job, JobStatus

from superexam_rq.config import Settings
from superexam_rq.errors import ConfigError
from superexam_rq.lifecycle import LIVE
from superexam_rq.queueing import JobQueue, away, check_key_prefix, connect
from superexam_rq.request import JobRequest
from superexam_rq.submission import Outcome

NOW = 1_800_000_000.0


def request(doc_id: str = "doc", **options: Any) -> JobRequest:
    """Return a submission."""
    return JobRequest(doc_id=doc_id, system_prompt_id="sys", custom_prompt_id="cus", **options)


@pytest.fixture
def redis() -> Iterator[FakeRedis]:
    """Give an empty Redis."""
    with FakeRedis() as client:
        yield client


@pytest.fixture
def jobs(redis: FakeRedis) -> JobQueue:
    """Give a queue on it, at a fixed time."""
    return JobQueue(redis, Settings(rq_key_prefix="superexam"), lambda: NOW)


def set_status(redis: FakeRedis, job_id: str, status: JobStatus, **fields: Any) -> None:
    """Put a job into a state, as RQ would."""
    values: dict[Any, Any] = {"status": status.value, **fields}
    redis.hset(f"superexam:job:{job_id}", mapping=values)


def utc(seconds: float) -> str:
    """Write a time as RQ does."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class TestEnqueue:
    def test_a_job_is_what_rq_would_have_written(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """A stock worker finds the job in its queue, with the service's retries, time-out and TTLs."""
        answer = jobs.enqueue(request(pages="1-3", max_questions=5))
        assert answer.outcome is Outcome.CREATED
        assert jobs.queue.job_ids == [answer.job_id]
        job = jobs.queue.fetch_job(answer.job_id)
        assert job is not None
        assert job.get_status() is JobStatus.QUEUED
        assert job.func_name == "superexam_rq.jobs.process"
        assert job.kwargs["pages"] == "1-3"
        assert job.kwargs["max_questions"] == 5
        assert (job.timeout, job.result_ttl, job.failure_ttl) == (3600, 86400, 86400)
        assert (job.retries_left, job.retry_intervals) == (3, [10, 30, 90])
        assert job.meta == {"doc_id": "doc", "max_attempts": 4}
        assert redis.smembers("superexam:queues") == {b"superexam:queue:superexam"}

    def test_every_key_is_under_the_prefix_and_expires_but_for_rqs_own(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """Whatever the service keeps besides RQ's keys has a time to live."""
        jobs.enqueue(request(), idempotency_key="k", caller="c")
        rqs = ("superexam:job:", "superexam:queue")
        for key in redis.scan_iter():
            name = key.decode()
            assert name.startswith("superexam:")
            assert name.startswith(rqs) or redis.ttl(name) > 0, name

    def test_a_submission_takes_one_trip(self, jobs: JobQueue, redis: FakeRedis, monkeypatch: Any) -> None:
        """After the first one, which tells Redis the script, a submission is one command."""
        jobs.enqueue(request("first"))
        sent: list[Any] = []
        execute: Any = redis.execute_command

        def count(*words: Any, **options: Any) -> Any:
            sent.append(words[0])
            return execute(*words, **options)

        monkeypatch.setattr(redis, "execute_command", count)
        assert jobs.enqueue(request("second")).outcome is Outcome.CREATED
        assert sent == ["EVALSHA"]

    @pytest.mark.parametrize("status", sorted(LIVE - {JobStatus.STARTED}))
    def test_a_waiting_job_stands_for_its_document(self, jobs: JobQueue, redis: FakeRedis, status: JobStatus) -> None:
        """A second submission answers with the job that is pending, and queues nothing."""
        first = jobs.enqueue(request())
        set_status(redis, first.job_id, status)
        second = jobs.enqueue(request())
        assert (second.outcome, second.job_id) == (Outcome.EXISTS, first.job_id)
        assert jobs.queue.job_ids == [first.job_id]

    def test_a_running_job_stands_for_its_document(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """A second submission answers with the job that is running."""
        first = jobs.enqueue(request())
        set_status(redis, first.job_id, JobStatus.STARTED)
        assert jobs.enqueue(request()).job_id == first.job_id

    @pytest.mark.parametrize(
        "status", [JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED], ids=lambda s: s.value
    )
    def test_an_ended_job_does_not_block_its_document(
        self, jobs: JobQueue, redis: FakeRedis, status: JobStatus
    ) -> None:
        """Once a job has ended, its document can be submitted again."""
        first = jobs.enqueue(request())
        set_status(redis, first.job_id, status)
        second = jobs.enqueue(request())
        assert second.outcome is Outcome.CREATED
        assert second.job_id != first.job_id

    def test_an_expired_job_does_not_block_its_document(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """A document whose job is gone from Redis can be submitted again."""
        first = jobs.enqueue(request())
        redis.delete(f"superexam:job:{first.job_id}")
        assert jobs.enqueue(request()).outcome is Outcome.CREATED

    def test_documents_do_not_get_in_each_others_way(self, jobs: JobQueue) -> None:
        """Two documents have two jobs, in the order of submission."""
        ids = [jobs.enqueue(request(doc_id)).job_id for doc_id in ("a", "b")]
        assert jobs.queue.job_ids == ids

    def test_high_priority_goes_to_the_front(self, jobs: JobQueue) -> None:
        """A job at the front is taken before those that wait."""
        first, urgent = jobs.enqueue(request("a")), jobs.enqueue(request("b"), at_front=True)
        assert jobs.queue.job_ids == [urgent.job_id, first.job_id]

    def test_no_retries_are_set_where_none_are_wanted(self, redis: FakeRedis) -> None:
        """MAX_RETRY_ATTEMPTS=0 means one run."""
        jobs = JobQueue(redis, Settings(rq_key_prefix="superexam", max_retry_attempts=0))
        job_id = jobs.enqueue(request()).job_id
        job = jobs.queue.fetch_job(job_id)
        assert job is not None
        assert job.retries_left is None
        found = jobs.snapshot(job_id)
        assert found is not None
        assert found.max_attempts == 1

    def test_submissions_are_counted_in_the_same_trip(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """Those that made a job, and those that found one."""
        for doc_id in ("a", "a", "b", "a"):
            jobs.enqueue(request(doc_id))
        counts = {name: int(value) for name, value in redis.hgetall("superexam:metrics").items() if b"submi" in name}
        assert sorted(counts.values()) == [2, 2]

    def test_a_job_put_back_by_rqs_own_tools_begins_anew(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """What its last run left in the meta is not shown."""
        job_id = jobs.enqueue(request()).job_id
        meta = {"doc_id": "doc", "max_attempts": 4, "attempt": 4, "error": "Failed", "progress": 70}
        set_status(redis, job_id, JobStatus.QUEUED, meta=json.dumps(meta), ended=1)
        found = jobs.snapshot(job_id)
        assert found is not None
        assert (found.attempt, found.error, found.progress, found.max_attempts) == (0, None, 0, 4)


class TestIdempotency:
    def test_a_known_key_gets_the_first_answer(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """The first answer comes again, even when the job has ended meanwhile."""
        first = jobs.enqueue(request(), caller="c", idempotency_key="k")
        set_status(redis, first.job_id, JobStatus.FINISHED)
        again = jobs.enqueue(request(), caller="c", idempotency_key="k")
        assert again == first
        assert jobs.queue.job_ids == [first.job_id]

    def test_an_answer_that_a_job_exists_comes_again_as_such(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """What is told again is the answer, not the job's state."""
        first = jobs.enqueue(request())
        told = jobs.enqueue(request(), caller="c", idempotency_key="k")
        set_status(redis, first.job_id, JobStatus.FAILED)
        assert jobs.enqueue(request(), caller="c", idempotency_key="k") == told
        assert told.outcome is Outcome.EXISTS

    @pytest.mark.parametrize("other", [request("other"), request(pages="1"), request(schema={"type": "object"})])
    def test_another_body_is_refused(self, jobs: JobQueue, other: JobRequest) -> None:
        """A key stands for one body; nothing is queued for another."""
        jobs.enqueue(request(), caller="c", idempotency_key="k")
        assert jobs.enqueue(other, caller="c", idempotency_key="k").outcome is Outcome.KEY_REUSED
        assert len(jobs.queue.job_ids) == 1

    def test_another_priority_is_another_body(self, jobs: JobQueue) -> None:
        """The priority is part of what was asked for."""
        jobs.enqueue(request(), caller="c", idempotency_key="k")
        again = jobs.enqueue(request(), at_front=True, caller="c", idempotency_key="k")
        assert again.outcome is Outcome.KEY_REUSED

    def test_keys_are_kept_apart_for_each_caller(self, jobs: JobQueue) -> None:
        """The same key of another caller is another key, also where the two texts run together alike."""
        jobs.enqueue(request("a"), caller="c", idempotency_key="kk")
        assert jobs.enqueue(request("b"), caller="ck", idempotency_key="k").outcome is Outcome.CREATED

    def test_neither_key_nor_body_is_stored(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """Redis holds digests; they live as long as an ended job."""
        jobs.enqueue(request(), caller="caller-name", idempotency_key="secret-key")
        [name] = redis.keys("superexam:idempotency:*")
        text = repr([name, redis.hgetall(name)])
        assert "secret-key" not in text
        assert "caller-name" not in text
        assert 86390 < redis.ttl(name) <= 86400


class TestSnapshot:
    def test_an_unknown_job_is_none(self, jobs: JobQueue) -> None:
        """There is no job object for what is not in Redis."""
        assert jobs.snapshot("nope") is None

    def test_a_pending_job_knows_its_position(self, jobs: JobQueue) -> None:
        """Positions count from 1, in the order in which jobs will be taken."""
        ids = [jobs.enqueue(request(doc_id)).job_id for doc_id in "abc"]
        found = jobs.snapshot(ids[1])
        assert found is not None
        assert found.to_dict() == {
            "job_id": ids[1],
            "doc_id": "b",
            "status": "pending",
            "attempt": 0,
            "max_attempts": 4,
            "progress": 0,
            "current_step": "Waiting in the queue",
            "question_count": 0,
            "error": None,
            "error_code": None,
            "created_at": found.created_at,
            "started_at": None,
            "completed_at": None,
            "retry_at": None,
            "queue_position": 2,
            "usage": {},
        }
        assert found.created_at == pytest.approx(time.time(), abs=5)

    def test_a_running_job_shows_its_meta(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """Progress and step are what the run wrote; `ended_at` of an earlier run is not shown."""
        job_id = jobs.enqueue(request()).job_id
        redis.lrem("superexam:queue:superexam", 0, job_id)
        meta = {
            "doc_id": "doc",
            "max_attempts": 4,
            "attempt": 2,
            "progress": 40,
            "step": "Asking",
            "usage": {"calls": 3},
        }
        times = {"started_at": utc(NOW - 5), "ended_at": utc(NOW - 60)}
        set_status(redis, job_id, JobStatus.STARTED, meta=json.dumps(meta), **times)
        found = jobs.snapshot(job_id)
        assert found is not None
        assert (found.status, found.attempt, found.progress, found.current_step) == ("processing", 2, 40, "Asking")
        assert (found.started_at, found.completed_at, found.queue_position) == (NOW - 5, None, None)
        assert found.usage == {"calls": 3}

    def test_a_job_between_two_attempts_is_pending(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """A scheduled retry says when it comes, and that it does."""
        job_id = jobs.enqueue(request()).job_id
        meta = {"doc_id": "doc", "max_attempts": 4, "attempt": 1, "step": "old"}
        set_status(redis, job_id, JobStatus.SCHEDULED, meta=json.dumps(meta))
        redis.zadd("superexam:scheduled:superexam", {job_id: NOW + 30})
        found = jobs.snapshot(job_id)
        assert found is not None
        assert (found.status, found.retry_at) == ("pending", NOW + 30)
        assert found.current_step == "Retrying in 30 s (attempt 2 of 4)"

    def test_a_failed_job_says_why(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """The failure's text and code are the meta's, the end RQ's."""
        job_id = jobs.enqueue(request()).job_id
        meta = {"doc_id": "doc", "max_attempts": 4, "attempt": 4, "error": "Failed after 4", "error_code": "internal"}
        set_status(redis, job_id, JobStatus.FAILED, meta=json.dumps(meta), ended_at=utc(NOW))
        found = jobs.snapshot(job_id)
        assert found is not None
        assert (found.status, found.error, found.error_code) == ("failed", "Failed after 4", "internal")
        assert found.completed_at == NOW

    def test_snapshots_are_the_same_as_each_snapshot(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """Many at once are in the order asked for; those that do not exist are left out."""
        ids = [jobs.enqueue(request(doc_id)).job_id for doc_id in "abc"]
        set_status(redis, ids[0], JobStatus.SCHEDULED)
        redis.zadd("superexam:scheduled:superexam", {ids[0]: NOW + 3})
        found = jobs.snapshots([ids[2], "nope", ids[0]])
        assert found == {ids[2]: jobs.snapshot(ids[2]), ids[0]: jobs.snapshot(ids[0])}


class TestList:
    def fill(self, jobs: JobQueue, redis: FakeRedis, count: int) -> list[str]:
        """Submit documents a0, b1, a2, b3, … and return the jobs' ids, newest first."""
        ids = []
        for number in range(count):
            job_id = jobs.enqueue(request(f"{'ab'[number % 2]}")).job_id
            ids.append(job_id)
            set_status(redis, job_id, JobStatus.FINISHED if number % 3 else JobStatus.FAILED)
            redis.zadd("superexam:jobs", {job_id: number})
        return ids[::-1]

    def test_the_newest_comes_first(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """The order is that of creation, backwards."""
        ids = self.fill(jobs, redis, 5)
        found, total = jobs.list_jobs()
        assert [job.job_id for job in found] == ids
        assert total == 5

    def test_pages_fit_together(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """Limit and offset cut the list; the total stays."""
        ids = self.fill(jobs, redis, 7)
        pages = [jobs.list_jobs(limit=3, offset=offset) for offset in (0, 3, 6, 9)]
        assert [job.job_id for found, _ in pages for job in found] == ids
        assert [total for _, total in pages] == [7, 7, 7, 7]

    def test_filters_narrow_the_list_and_its_total(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """Status and document filter together."""
        self.fill(jobs, redis, 12)
        found, total = jobs.list_jobs(status="failed", doc_id="a", limit=1)
        assert total == 2
        assert [(job.status, job.doc_id) for job in found] == [("failed", "a")]
        assert jobs.list_jobs(status="cancelled") == ([], 0)
        assert jobs.list_jobs(doc_id="c") == ([], 0)

    def test_a_status_covers_all_of_rqs_that_mean_it(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """Both queued and scheduled jobs are pending."""
        ids = [jobs.enqueue(request(doc_id)).job_id for doc_id in "ab"]
        set_status(redis, ids[0], JobStatus.SCHEDULED)
        assert jobs.list_jobs(status="pending")[1] == 2

    def test_expired_jobs_are_forgotten(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """A job whose hash has expired leaves the index with the next look."""
        ids = self.fill(jobs, redis, 3)
        redis.delete(f"superexam:job:{ids[1]}")
        found, total = jobs.list_jobs()
        assert ([job.job_id for job in found], total) == ([ids[0], ids[2]], 2)
        assert redis.zcard("superexam:jobs") == 2


class TestHealth:
    def test_it_counts_jobs_and_workers_that_live(self, jobs: JobQueue, redis: FakeRedis) -> None:
        """A worker whose key has expired is dead, though it is still registered."""
        jobs.enqueue(request())
        redis.sadd("superexam:workers:superexam", "superexam:worker:alive", "superexam:worker:dead")
        redis.hset("superexam:worker:alive", "state", "idle")
        found = jobs.health()
        assert (found.queued, found.workers) == (1, 1)

    def test_no_workers_are_none(self, jobs: JobQueue) -> None:
        """An empty installation is healthy, without workers."""
        assert jobs.health().workers == 0


class TestAway:
    @pytest.mark.parametrize(
        ("error", "word"),
        [
            (RedisConnectionError("Error 111 connecting to 10.0.0.1:6379"), "reached"),
            (RedisTimeoutError("Timeout reading from 10.0.0.1:6379"), "answer"),
            (BusyLoadingError("Redis is loading", status_code="LOADING"), "loading"),
            (ReadOnlyError("You can't write", status_code="READONLY"), "read-only"),
            (AuthenticationError("Authentication required.", status_code="NOAUTH"), "password"),
            (NoPermissionError("this user has no permissions", status_code="NOPERM"), "ACL"),
            (ResponseError("BUSY Redis is busy running a script"), "script"),
            (ResponseError("Command # 1 (LLEN x) of pipeline caused error: BUSY Redis is busy"), "script"),
            (ResponseError("MISCONF Redis is configured to save"), "disk"),
            (ResponseError("DB index is out of range"), "REDIS_DB"),
            (InvalidResponse("Protocol Error: b'HTTP/1.1 400'"), "REDIS_PORT"),
        ],
    )
    def test_errors_of_a_redis_that_cant_serve_are_told_in_a_line(self, error: RedisError, word: str) -> None:
        """The line says what is wrong, without addresses."""
        text = away(error)
        assert text is not None
        assert word in text
        assert "10.0.0.1" not in text

    def test_an_error_of_ours_is_not_hidden(self) -> None:
        """A wrong command is a defect, not an outage."""
        assert away(ResponseError("WRONGTYPE Operation against a key")) is None


@pytest.mark.parametrize("options", ["foo=bar", "socket_timeout=soon"])
def test_an_option_that_redis_py_does_not_take_is_refused(options: str) -> None:
    """Before anything is sent; the line names the setting and the option, and never the password."""
    settings = Settings.from_env({"REDIS_URL": f"redis://:secret@localhost/0?{options}"})
    with pytest.raises(ConfigError, match=rf"^REDIS_URL .*{options.partition('=')[0]}") as caught:
        connect(settings)
    assert "secret" not in str(caught.value)


def test_another_key_prefix_than_rqs_is_refused() -> None:
    """A process that imported RQ under another prefix would look at other keys; it is told so."""
    with pytest.raises(ConfigError, match="RQ_KEY_PREFIX=other"):
        check_key_prefix(Settings(redis_key_prefix="other:", rq_key_prefix="other"))


def test_the_job_class_is_rqs() -> None:
    """Any tool that knows RQ can read a job by its id."""
    assert Job.key_for("x") == "superexam:job:x"
