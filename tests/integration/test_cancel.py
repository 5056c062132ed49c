"""Cancelling and starting again, from the functions that the HTTP routes call to Firestore."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from redis import Redis

from superexam_rq import lifecycle
from superexam_rq.queueing import JobQueue
from tests import pdfs
from tests.breaking import check_exam, held, kill_worker, wait_for_call
from tests.stack import Stack, eventually


@pytest.fixture(scope="module")
def service(installation: Stack) -> Stack:
    """Give an installation with an API and no worker yet."""
    installation.start_api()
    return installation


@pytest.fixture
def jobs(service: Stack) -> Iterator[JobQueue]:
    """Give the client side of the queue."""
    with Redis.from_url(service.redis_url) as connection:
        yield JobQueue(connection, service.settings())


@pytest.fixture
def worker(service: Stack) -> Iterator[str]:
    """Give a running worker, and Gemini that takes its time."""
    service.gemini.clear_calls()
    service.gemini.latency = 4.0
    service.start_worker()
    yield "worker-1"
    service.gemini.latency = 0.0
    if "worker-1" in service.children.running:
        service.children.stop("worker-1")


def _queue_up(service: Stack, doc_id: str) -> str:
    service.add_document(doc_id, pdfs.prose(2))
    return str(service.submit(doc_id).json()["job_id"])


def test_a_pending_job_is_cancelled_at_once(service: Stack, jobs: JobQueue) -> None:
    """It leaves the queue, and its hash expires as that of every ended job does."""
    job_id = _queue_up(service, "pending")
    assert lifecycle.cancel(jobs, job_id) is lifecycle.Cancelling.DONE
    job = service.job(job_id)
    assert (job["status"], job["error_code"], job["current_step"]) == ("cancelled", "cancelled", "Cancelled")
    assert [name for name, holds in held(service, job_id).items() if holds] == ["canceled"]
    assert 0 < service.redis.ttl(f"superexam:job:{job_id}") <= jobs.settings.job_ttl
    with pytest.raises(lifecycle.NotCancellable):
        lifecycle.cancel(jobs, job_id)


def test_an_unknown_job_can_be_neither_cancelled_nor_retried(jobs: JobQueue) -> None:
    """Whoever asks is told so."""
    with pytest.raises(lifecycle.NotFound):
        lifecycle.cancel(jobs, "no-such-job")
    with pytest.raises(lifecycle.NotFound):
        lifecycle.retry(jobs, "no-such-job")


@pytest.mark.usefixtures("worker")
def test_a_running_job_is_cancelled_within_5_s(service: Stack, jobs: JobQueue) -> None:
    """No further call of Gemini; the document is what it was before; `rq requeue --all` does not revive the job."""
    service.configure(PAGES_PER_BATCH="1", GEMINI_CONCURRENCY="1")
    service.children.stop("worker-1")
    service.start_worker()
    service.add_document("running", pdfs.prose(5))
    job_id = service.submit("running").json()["job_id"]
    wait_for_call(service)
    eventually(lambda: service.job(job_id)["usage"].get("calls"), "the call to be shown")
    assert lifecycle.cancel(jobs, job_id) is lifecycle.Cancelling.REQUESTED
    asked = time.monotonic()
    job = service.wait_for_job(job_id)
    assert (job["status"], job["error_code"], job["attempt"]) == ("cancelled", "cancelled", 1)
    assert (job["progress"], job["usage"]["calls"]) == (5, 1)  # how far it had come, and what was paid for
    fields = eventually(
        lambda: fields if (fields := service.fields("running"))["status"] != "processing" else None, "to be put back"
    )
    assert time.monotonic() - asked < 5
    assert fields["status"] == "uploaded"
    assert not {"progress", "currentStep", "error"} & fields.keys()
    command = [sys.executable, "-m", "rq.cli", "requeue", "-S", "json", "--queue", "superexam", "--all"]
    exports = {"RQ_KEY_PREFIX": "superexam", "RQ_REDIS_URL": service.redis_url}
    subprocess.run(command, env=service.environment | exports, check=True, capture_output=True)
    assert [name for name, holds in held(service, job_id).items() if holds] == ["canceled"]
    assert len(service.gemini.calls()) == 1


def test_a_cancelled_job_can_be_started_again(service: Stack, jobs: JobQueue, worker: str) -> None:
    """It keeps its id, `attempt` starts at 1, and the document that had questions becomes `ready` again."""
    service.gemini.latency = 0.0
    job_id = _queue_up(service, "again")
    assert service.wait_for_job(job_id)["status"] == "completed"
    with pytest.raises(lifecycle.NotRetryable):
        lifecycle.retry(jobs, job_id)
    exam = check_exam(service, "again")

    service.gemini.latency = 4.0
    service.gemini.clear_calls()
    service.document("again").update({"status": "processing", "currentStep": "Queuing...", "progress": 0})
    (service.uploads / "again.pdf").write_bytes(pdfs.prose(2, start=50))  # else what was answered is not asked again
    second = service.submit("again", max_questions=1).json()["job_id"]
    eventually(lambda: service.fields("again").get("currentStep") != "Queuing...", "the second job to run")
    lifecycle.cancel(jobs, second)
    service.wait_for_job(second, "cancelled")
    eventually(lambda: service.fields("again")["status"] == "ready", "the old exam to be put back")
    assert check_exam(service, "again") == exam

    service.gemini.latency = 0.0
    lifecycle.retry(jobs, second)
    job = service.wait_for_job(second)
    assert (job["status"], job["attempt"], job["error"]) == ("completed", 1, None)
    assert len(check_exam(service, "again")) == 1


def test_a_document_with_a_live_job_is_busy(service: Stack, jobs: JobQueue) -> None:
    """An older job of the document is not started again while a newer one lives, whoever tries."""
    first = _queue_up(service, "busy")
    lifecycle.cancel(jobs, first)
    second = service.submit("busy").json()["job_id"]
    assert second != first
    with pytest.raises(lifecycle.DocumentBusy) as busy:
        lifecycle.retry(jobs, first)
    assert busy.value.job_id == second
    lifecycle.cancel(jobs, second)


def test_a_pending_job_s_document_is_put_back(service: Stack, jobs: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """`settle` does for a job that never ran what its worker would do; another job's document it leaves alone."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", service.firestore_server.address)
    first = _queue_up(service, "settled")
    lifecycle.cancel(jobs, first)
    second = service.submit("settled").json()["job_id"]
    lifecycle.settle(jobs.connection, jobs.settings, [first])
    assert service.fields("settled")["status"] == "processing"
    lifecycle.cancel(jobs, second)
    lifecycle.settle(jobs.connection, jobs.settings, [second])
    assert service.fields("settled")["status"] == "uploaded"


@pytest.mark.slow
def test_a_cancelled_job_whose_worker_vanished_is_not_run_again(service: Stack, jobs: JobQueue, worker: str) -> None:
    """The request is found when the worker's death is noticed."""
    job_id = _queue_up(service, "twice-gone")
    wait_for_call(service)
    kill_worker(service, worker)
    assert lifecycle.cancel(jobs, job_id) is lifecycle.Cancelling.REQUESTED
    for key in service.redis.smembers("superexam:workers"):
        service.redis.srem("superexam:workers", key)
    service.start_worker("worker-2")
    assert service.wait_for_job(job_id)["status"] == "cancelled"
    eventually(lambda: service.fields("twice-gone")["status"] == "uploaded", "the document to be put back", 5)
    service.children.stop("worker-2")
