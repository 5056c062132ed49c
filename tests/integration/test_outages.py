"""What a job depends on goes away for a while, or for good."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import grpc
import psutil
import pytest

from superexam_rq.sandbox.gemini import Fault
from superexam_rq.sandbox.processes import free_port
from tests import pdfs
from tests.breaking import check_exam, held, horse_pid, wait_for_call, worker_pid
from tests.integration.chaos.parts import Installation, installation
from tests.stack import Stack, eventually


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Give an installation with one worker, whose Redis can be killed and started again."""
    with installation(tmp_path_factory.mktemp("parts"), 1) as parts:
        parts.gemini.latency = 0.0
        yield parts


@pytest.fixture(autouse=True)
def _clean(service: Installation) -> Iterator[None]:
    service.gemini.clear_calls()
    yield
    service.gemini.latency = 0.0
    service.firestore_server.faults.clear()


def test_a_running_job_outlives_an_outage_of_redis(service: Installation) -> None:
    """Redis is away when the job ends: it waits, and its one run is recorded when Redis is back."""
    service.gemini.latency = 2.0
    job_id = service.submit_document("redis-away")
    wait_for_call(service)
    service.restartable_redis.kill()
    time.sleep(5)
    service.restartable_redis.start()
    eventually(lambda: service.status(job_id) == "finished", "the job to be recorded")
    assert service.runs(job_id) == 1
    check_exam(service, "redis-away")


def test_an_idle_worker_comes_back_by_itself(service: Installation) -> None:
    """Jobs submitted after an outage of Redis are taken within seconds."""
    service.restartable_redis.kill()
    time.sleep(2)
    service.restartable_redis.start()
    job_id = service.submit_document("after-outage")
    assert service.wait_for_job(job_id, seconds=10)["status"] == "completed"
    assert service.replace_dead_workers() == 0


def test_a_worker_that_redis_has_forgotten_registers_again(service: Installation) -> None:
    """Redis was emptied, or kept no sign of the worker for too long: it is counted, listed and commanded as before."""
    (name,) = service.redis.smembers("superexam:workers")
    born = service.redis.hget(name, "birth")
    service.redis.flushall()
    eventually(lambda: service.http.get(f"{service.url}/health", timeout=5).json()["workers"] == 1, "the worker", 10)
    assert (service.redis.hget(name, "birth"), service.redis.ttl(name) > 0) == (born, True)
    service.gemini.latency = 60.0
    job_id = service.submit_document("forgotten")
    wait_for_call(service)
    assert service.http.delete(f"{service.url}/jobs/{job_id}", timeout=10).ok
    assert service.wait_for_job(job_id, seconds=10)["status"] == "cancelled"


@pytest.mark.parametrize("refusal", ["a read-only replica", "out of memory"])
def test_a_redis_that_refuses_writes_ends_no_worker(service: Installation, refusal: str) -> None:
    """As after a failover, or when it is full: the worker waits, and no run is lost."""
    (worker,) = service.workers()
    service.gemini.latency = 2.0
    doc_id = refusal.replace(" ", "-")
    job_id = service.submit_document(doc_id)
    wait_for_call(service)
    log = service.children.log(worker)
    told = len(log.read_text())
    if refusal == "out of memory":
        service.redis.config_set("maxmemory", "1")
    else:
        service.redis.replicaof("127.0.0.1", free_port())
    try:
        eventually(lambda: refusal in log.read_text()[told:], "the worker to say so")
        time.sleep(5)
    finally:
        service.redis.config_set("maxmemory", "0")
        service.redis.replicaof("NO", "ONE")
    assert service.wait_for_job(job_id)["status"] == "completed"
    check_exam(service, doc_id)
    assert service.replace_dead_workers() == 0


def test_a_suspended_worker_takes_nothing_though_redis_refuses_a_look(service: Installation) -> None:
    """What could not be asked is not answered with no: `rq suspend` holds until `rq resume`."""
    (worker,) = service.workers()
    (key,) = service.redis.smembers("superexam:workers")
    service.redis.set("superexam:suspended", 1)
    eventually(lambda: service.redis.hget(key, "state") == b"suspended", "the worker to be suspended")
    job_id = service.submit_document("suspended")
    log = service.children.log(worker)
    told = len(log.read_text())
    service.redis.replicaof("127.0.0.1", free_port())
    try:
        eventually(lambda: "a read-only replica" in log.read_text()[told:], "the worker to be refused")
    finally:
        service.redis.replicaof("NO", "ONE")
    for _ in range(3):  # it looks again, and again
        seen = service.redis.hget(key, "last_heartbeat")
        eventually(lambda seen=seen: service.redis.hget(key, "last_heartbeat") != seen, "a sign of life")  # type: ignore[misc]
    assert service.status(job_id) == "queued"
    service.redis.delete("superexam:suspended")
    assert service.wait_for_job(job_id)["status"] == "completed"


def test_a_worker_that_is_to_stop_does_not_wait_for_redis(service: Installation) -> None:
    """Its job is broken off after `SHUTDOWN_GRACE`, and goes on when Redis and another worker are there."""
    (worker,) = service.workers()
    service.gemini.latency = 60.0
    job_id = service.submit_document("stop-without-redis")
    wait_for_call(service)
    horse = horse_pid(service, worker)
    service.restartable_redis.kill()
    told = time.monotonic()
    try:
        os.kill(worker_pid(service, worker), signal.SIGTERM)
        service.children.running[worker].wait(40)
    finally:
        service.restartable_redis.start()
    assert time.monotonic() - told < 35  # 10 of them in case that Redis comes back
    assert horse
    assert not psutil.pid_exists(horse)
    assert "Traceback" not in service.children.log(worker).read_text().partition("warm shut down")[2]
    service.gemini.latency = 0.0
    assert service.replace_dead_workers() == 1
    assert service.wait_for_job(job_id)["status"] == "completed"
    check_exam(service, "stop-without-redis")


def test_progress_that_can_t_be_written_fails_no_job(service: Installation) -> None:
    """Firestore refuses every write for a while: the run goes on, and publishes when it can."""
    service.gemini.latency = 1.5
    job_id = service.submit_document("no-progress")
    wait_for_call(service)
    service.firestore_server.faults.fail("Commit", grpc.StatusCode.UNAVAILABLE, times=6)
    job = service.wait_for_job(job_id)
    assert (job["status"], job["attempt"]) == ("completed", 1)
    check_exam(service, "no-progress")


def test_a_failure_is_told_when_firestore_is_back(service: Installation) -> None:
    """The document of a job that failed while Firestore was away gets the job's words, from a sweep."""
    service.gemini.script(Fault.no_model(delay=3.0))
    service.add_document("told-later", pdfs.prose(1))
    job_id = service.submit("told-later").json()["job_id"]
    wait_for_call(service)
    service.firestore_server.faults.fail("Commit", grpc.StatusCode.UNAVAILABLE, times=1000)
    assert service.wait_for_job(job_id)["error_code"] == "gemini_model"
    assert service.fields("told-later")["status"] == "processing"
    service.firestore_server.faults.clear()
    fields = eventually(lambda: _failed(service, "told-later"), "the document to fail", 40)
    assert fields["error"] == service.job(job_id)["error"]


def _failed(service: Stack, doc_id: str) -> dict[str, object] | None:
    fields = service.fields(doc_id)
    return fields if fields["status"] == "failed" else None


def test_a_document_deleted_meanwhile_ends_its_job(service: Installation) -> None:
    """Without a retry; nothing of it is created again."""
    service.gemini.latency = 3.0
    job_id = service.submit_document("deleted")
    wait_for_call(service)
    service.document("deleted").delete()
    job = service.wait_for_job(job_id)
    assert (job["status"], job["attempt"], job["error_code"]) == ("failed", 1, "document_gone")
    assert held(service, job_id)["failed"]
    assert not service.document("deleted").get().exists
    assert service.questions("deleted") == []


def test_a_job_deleted_by_hand_stops_and_does_not_come_back(service: Installation) -> None:
    """The dashboard deletes the hash of a running job: its run notices, and half a hash is not left behind."""
    service.gemini.latency = 4.0
    job_id = service.submit_document("by-hand")
    wait_for_call(service)
    service.redis.delete(f"superexam:job:{job_id}")
    name = service.workers()[0]
    eventually(lambda: horse_pid(service, name) is None, "the run to end", 15)
    assert not service.redis.exists(f"superexam:job:{job_id}")
    eventually(lambda: not held(service, job_id)["started"], "RQ's record of the run to be removed")
