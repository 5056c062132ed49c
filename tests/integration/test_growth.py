"""Nothing grows for ever: what jobs leave in Redis goes by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from redis import Redis

from superexam_rq import lifecycle, sweep
from superexam_rq.queueing import JobQueue
from tests import pdfs
from tests.breaking import wait_for_call
from tests.stack import Stack, eventually

# Of a fixed size, or with entries that go when their job or worker does.
CONSTANT = {b"superexam:queues", b"superexam:workers", b"superexam:workers:superexam", b"superexam:jobs"}


@pytest.fixture
def jobs(installation: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobQueue]:
    """Give the client side of the queue of an installation that keeps ended jobs for 2 s."""
    installation.configure(JOB_TTL="2")
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", installation.firestore_server.address)
    installation.start_api()
    installation.start_worker()
    with Redis.from_url(installation.redis_url) as connection:
        yield JobQueue(connection, installation.settings())


def test_ended_jobs_leave_nothing(installation: Stack, jobs: JobQueue) -> None:
    """Completed, failed, cancelled while waiting and while running: all keys are gone soon after `JOB_TTL`."""
    service, redis = installation, installation.redis
    for number in range(3):
        service.add_document(f"done-{number}", pdfs.prose(1))
        service.submit(f"done-{number}")
        service.add_document(f"missing-{number}", None)
        service.submit(f"missing-{number}")
    eventually(lambda: redis.llen("superexam:queue:superexam") == 0, "the queue to be empty")
    eventually(lambda: redis.zcard("superexam:wip:superexam") == 0, "all jobs to end")
    service.gemini.clear_calls()
    service.gemini.latency = 3.0
    for doc_id in ("stopped", "waiting"):
        service.add_document(doc_id, pdfs.prose(1, start=9))
        job_id = service.submit(doc_id).json()["job_id"]
        if doc_id == "stopped":
            wait_for_call(service)
            stopped = job_id
    lifecycle.cancel(jobs, job_id)
    lifecycle.cancel(jobs, stopped)

    def kept() -> list[bytes]:
        sweep.clean(jobs.queue, jobs.settings)
        sweep.jobs(jobs.queue, jobs.settings)
        names: list[bytes] = list(redis.scan_iter("*"))
        return [name for name in names if name not in CONSTANT and redis.ttl(name) == -1]

    def of_jobs() -> list[bytes]:
        names: list[bytes] = list(redis.scan_iter("*"))
        return [name for name in names if re.search(rb":(job|results|execution|executions):", name)]

    eventually(lambda: not kept(), "every key to have an end", 20)
    eventually(lambda: not of_jobs(), "all keys of the jobs to be gone", 20)
    assert not kept()
    assert redis.zcard("superexam:jobs") == 0
