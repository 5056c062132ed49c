"""The sweep: no document stays `processing` with no job behind it, no job stays in no list."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from redis import Redis

from superexam_rq import lifecycle, sweep
from superexam_rq.config import Settings
from superexam_rq.queueing import JobQueue
from tests import pdfs
from tests.breaking import held
from tests.stack import Stack, eventually


@pytest.fixture(scope="module")
def service(installation: Stack) -> Stack:
    """Give an installation with an API and no worker."""
    installation.start_api()
    return installation


@pytest.fixture
def jobs(service: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobQueue]:
    """Give the client side of the queue, in a process that may talk to Firestore."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", service.firestore_server.address)
    with Redis.from_url(service.redis_url) as connection:
        yield JobQueue(connection, service.settings())


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every document for old."""
    monkeypatch.setattr(sweep, "SUBMISSION_SECONDS", 0)


def _sweep(jobs: JobQueue) -> Settings:
    sweep.run(jobs.connection, jobs.settings)
    return jobs.settings


def test_a_submission_under_way_is_left_alone(service: Stack, jobs: JobQueue) -> None:
    """The website sets `processing` first and submits then; for two minutes nobody interferes."""
    service.add_document("fresh", None)
    _sweep(jobs)
    assert service.fields("fresh")["status"] == "processing"


@pytest.mark.usefixtures("no_wait")
def test_a_lost_submission_fails_with_the_advice_to_try_again(service: Stack, jobs: JobQueue) -> None:
    """A document that no job stands behind becomes `failed`; the website then offers to process it again."""
    service.add_document("lost", None)
    _sweep(jobs)
    fields = service.fields("lost")
    assert (fields["status"], fields["error"]) == ("failed", sweep.TRY_AGAIN)
    assert len(fields["error"]) < 60
    assert not {"progress", "currentStep"} & fields.keys()


@pytest.mark.usefixtures("no_wait")
def test_a_document_with_a_waiting_job_is_left_alone(service: Stack, jobs: JobQueue) -> None:
    """However long the queue is: the job is live."""
    service.add_document("waiting", pdfs.prose(1))
    job_id = service.submit("waiting").json()["job_id"]
    _sweep(jobs)
    assert service.fields("waiting")["status"] == "processing"
    lifecycle.cancel(jobs, job_id)


def test_a_failure_that_firestore_could_not_be_told_is_told_later(service: Stack, jobs: JobQueue) -> None:
    """Firestore was away when the job failed: the next sweep writes the job's own words, and only once."""
    service.add_document("untold", None)
    job_id = service.submit("untold").json()["job_id"]
    service.document("untold").update({"currentStep": "Starting", "run": f"{job_id}:1"})
    job = lifecycle.fetch(jobs.queue, job_id)
    jobs.connection.lrem(jobs.queue.key, 0, job_id)
    jobs.connection.hset(job.key, "status", "failed")
    job.meta["error"] = "PDF file not found: untold.pdf"
    job.save_meta()

    service.firestore_server.faults.fail("RunQuery", grpc.StatusCode.UNAVAILABLE, times=100)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sweep, "DEADLINE", 0.5)
            _sweep(jobs)
    finally:
        service.firestore_server.faults.clear()
    assert service.fields("untold")["status"] == "processing"

    _sweep(jobs)
    fields = service.fields("untold")
    assert (fields["status"], fields["error"]) == ("failed", "PDF file not found: untold.pdf")
    _sweep(jobs)
    assert service.fields("untold")["updatedAt"] == fields["updatedAt"]


def test_a_cancelled_job_s_document_is_put_back(service: Stack, jobs: JobQueue) -> None:
    """Whoever cancelled it could not reach Firestore."""
    service.add_document("cancelled", None)
    job_id = service.submit("cancelled").json()["job_id"]
    service.document("cancelled").update({"currentStep": "Starting"})
    lifecycle.cancel(jobs, job_id)
    _sweep(jobs)
    assert service.fields("cancelled")["status"] == "uploaded"


@pytest.mark.parametrize("status", ["queued", "scheduled", "started"])
def test_a_job_that_no_list_holds_is_queued_again(service: Stack, jobs: JobQueue, status: str) -> None:
    """Whatever lost it, an operator's `DEL` for instance: it goes on."""
    doc_id = f"nowhere-{status}"
    service.add_document(doc_id, pdfs.prose(1))
    job_id = service.submit(doc_id).json()["job_id"]
    jobs.connection.lrem(jobs.queue.key, 0, job_id)
    jobs.connection.hset(f"superexam:job:{job_id}", "status", status)
    _sweep(jobs)
    assert [name for name, holds in held(service, job_id).items() if holds] == ["queue"]
    assert service.job(job_id)["status"] == "pending"
    _sweep(jobs)
    assert jobs.connection.lrange(jobs.queue.key, 0, -1).count(job_id.encode()) == 1
    lifecycle.cancel(jobs, job_id)


@pytest.mark.usefixtures("no_wait")
@pytest.mark.parametrize(
    "spoilt",
    [
        {"meta": b"\x80\x05}."},
        {"meta": b"[1]"},
        {"created_at": b"yesterday"},
        {"timeout": b"long"},
        {"status": b"odd"},
        {"runs": b"many"},
    ],
    ids=str,
)
def test_a_job_that_another_program_has_spoilt_holds_up_nothing(
    service: Stack, jobs: JobQueue, spoilt: dict[Any, Any]
) -> None:
    """It is answered like one that is not there, workers pass over it, and its document becomes `failed`."""
    doc_id = f"spoilt-{next(iter(spoilt.values())).hex()}"
    service.add_document(doc_id, pdfs.prose(1))
    job_id = service.submit(doc_id).json()["job_id"]
    service.redis.hset(f"superexam:job:{job_id}", mapping=spoilt)
    if "runs" not in spoilt and "timeout" not in spoilt:
        assert service.http.get(f"{service.url}/jobs/{job_id}", timeout=10).status_code == 404
    assert service.http.get(f"{service.url}/jobs", timeout=10).status_code == 200
    jobs.connection.lmove(jobs.queue.key, jobs.queue.intermediate_queue_key)
    assert lifecycle.claim(jobs.queue, jobs.settings, _job(jobs, job_id), "w", 60, lambda _pipe: None) is None
    jobs.connection.lpush(jobs.queue.intermediate_queue_key, job_id)
    lifecycle.put_back(jobs.queue, job_id)
    assert not any(held(service, job_id).values())
    _sweep(jobs)
    assert service.fields(doc_id)["status"] == "failed"
    assert service.redis.ttl(f"superexam:job:{job_id}") > 0 or spoilt.get("status")
    assert service.submit(doc_id).status_code == 202
    jobs.connection.delete(jobs.queue.key)


def _job(jobs: JobQueue, job_id: str) -> lifecycle.ExamJob:
    return lifecycle.ExamJob(job_id, connection=jobs.connection, serializer=jobs.queue.serializer)


@pytest.mark.usefixtures("no_wait")
def test_a_document_that_can_not_be_told_holds_up_no_other(service: Stack, jobs: JobQueue) -> None:
    """Firestore refuses one for good: those after it are told all the same."""
    for name in ("refused-1", "refused-2"):
        service.add_document(name, None)
    service.firestore_server.faults.fail("Commit", grpc.StatusCode.INVALID_ARGUMENT, times=1)
    _sweep(jobs)
    assert sorted(service.fields(name)["status"] for name in ("refused-1", "refused-2")) == ["failed", "processing"]
    _sweep(jobs)
    assert {service.fields(name)["status"] for name in ("refused-1", "refused-2")} == {"failed"}


def test_what_belongs_to_a_live_job_does_not_expire(service: Stack, jobs: JobQueue) -> None:
    """Also after `rq requeue`, which leaves the failed job's hash to expire while it waits."""
    service.add_document("keep", pdfs.prose(1))
    job_id = service.submit("keep").json()["job_id"]
    jobs.connection.expire(f"superexam:job:{job_id}", 60)
    jobs.connection.expire("superexam:document:keep", 60)
    _sweep(jobs)
    assert jobs.connection.ttl(f"superexam:job:{job_id}") == -1
    assert jobs.connection.ttl("superexam:document:keep") > 60
    lifecycle.cancel(jobs, job_id)


def test_a_job_that_ends_during_the_sweep_still_expires(
    service: Stack, jobs: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was live when the sweep looked, and ended before the sweep acted."""
    service.add_document("ending", pdfs.prose(1))
    job_id = service.submit("ending").json()["job_id"]
    keep = sweep._keep

    def end_first(*arguments: Any) -> None:
        lifecycle.cancel(jobs, job_id)
        keep(*arguments)

    monkeypatch.setattr(sweep, "_keep", end_first)
    _sweep(jobs)
    assert service.job(job_id)["status"] == "cancelled"
    assert jobs.connection.ttl(f"superexam:job:{job_id}") > 0


def test_entries_of_jobs_that_have_expired_are_removed(service: Stack, jobs: JobQueue) -> None:
    """The index and RQ's registry of cancelled jobs, which RQ never cleans, shrink by themselves."""
    service.add_document("expired", pdfs.prose(1))
    job_id = service.submit("expired").json()["job_id"]
    lifecycle.cancel(jobs, job_id)
    jobs.connection.delete(f"superexam:job:{job_id}")
    jobs.connection.zadd("superexam:canceled:superexam", {job_id: 1})
    _sweep(jobs)
    assert jobs.connection.zscore("superexam:jobs", job_id) is None
    assert not any(held(service, job_id).values())


def test_a_worker_sweeps_by_itself(service: Stack, jobs: JobQueue) -> None:
    """Within half a minute of its start, and one worker at a time."""
    service.add_document("orphan", pdfs.prose(1))
    job_id = service.submit("orphan").json()["job_id"]
    jobs.connection.lrem(jobs.queue.key, 0, job_id)
    service.start_worker()
    eventually(lambda: service.job(job_id)["status"] == "completed", "the orphan to be done")
    assert 0 < jobs.connection.ttl("superexam:sweep") <= 30
