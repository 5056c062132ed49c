"""A worker that is told to stop: its job goes on for a while, then back to the queue; nothing is lost or counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from superexam_rq.sandbox.gemini import Fault
from tests import pdfs
from tests.breaking import check_exam, horse_pid, wait_for_call, wait_for_horse, worker_pid
from tests.stack import Stack, eventually


@pytest.fixture(scope="module")
def service(installation: Stack) -> Stack:
    """Give an installation with an API."""
    installation.start_api()
    return installation


@pytest.fixture(autouse=True)
def _fresh(service: Stack) -> Iterator[None]:
    service.gemini.clear_calls()
    yield
    service.gemini.latency = 0.0
    # A worker that a test left would take the next one's jobs.
    service.children.stop(*(name for name in service.children.running if name != "api"))


def _stop(service: Stack, name: str, *, group: bool = False) -> float:
    pid = worker_pid(service, name)
    if group:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            process.send_signal(signal.SIGTERM)
    else:
        os.kill(pid, signal.SIGTERM)
    return time.monotonic()


def _wait_for_end(service: Stack, name: str, seconds: float = 30.0) -> int:
    code = service.children.running[name].wait(seconds)
    del service.children.running[name]
    return code


def test_an_idle_worker_leaves_within_seconds(service: Stack) -> None:
    """With exit code 0, and it is no longer listed."""
    service.start_worker()
    (key,) = service.redis.smembers("superexam:workers")
    eventually(lambda: service.redis.hget(key, "state") == b"idle", "the worker to wait for jobs")
    told = _stop(service, "worker-1")
    assert _wait_for_end(service, "worker-1") == 0
    assert time.monotonic() - told < 10
    assert service.worker_count() == 0


@pytest.mark.parametrize("group", [False, True], ids=["worker", "every-process"])
def test_a_running_job_is_finished_first(service: Stack, group: bool) -> None:
    """Also where a service manager tells every process: how long the horse goes on is its worker's to say."""
    doc_id = f"finished-{group}"
    service.gemini.latency = 3.0
    service.start_worker()
    service.add_document(doc_id, pdfs.prose(2))
    job_id = service.submit(doc_id).json()["job_id"]
    wait_for_call(service)
    _stop(service, "worker-1", group=group)
    assert _wait_for_end(service, "worker-1") == 0
    assert (service.job(job_id)["status"], service.job(job_id)["attempt"]) == ("completed", 1)
    check_exam(service, doc_id)


@pytest.mark.parametrize("how", ["grace", "second-signal"])
def test_a_job_that_takes_longer_goes_back_to_the_queue(service: Stack, how: str) -> None:
    """After `SHUTDOWN_GRACE`, or at a second signal: the next worker runs the same attempt again."""
    doc_id = f"handed-{how}"
    service.gemini.latency = 60.0
    service.start_worker(SHUTDOWN_GRACE="2" if how == "grace" else "600")
    service.add_document(doc_id, pdfs.prose(2))
    job_id = service.submit(doc_id).json()["job_id"]
    wait_for_call(service)
    told = _stop(service, "worker-1")
    if how == "second-signal":
        _stop(service, "worker-1")  # with the first one, as `rq worker-pool` may send it: not yet
        time.sleep(1.2)
        assert horse_pid(service)
        _stop(service, "worker-1")
    assert _wait_for_end(service, "worker-1") == 0
    assert time.monotonic() - told < 20
    job = service.job(job_id)
    assert (job["status"], job["queue_position"]) == ("pending", 1)
    service.gemini.latency = 0.0
    service.start_worker()
    job = service.wait_for_job(job_id)
    assert (job["status"], job["attempt"]) == ("completed", 1)
    check_exam(service, doc_id)
    service.children.stop("worker-1")


def test_what_was_reached_is_still_shown_after_a_hand_over(service: Stack) -> None:
    """Progress does not fall while the job waits, nor when it goes on: half of its pages are paid for, and kept."""
    service.gemini.script(Fault.wait(60, match="station 3 boards"))
    service.start_worker(SHUTDOWN_GRACE="1", PAGES_PER_BATCH="1")
    service.add_document("half", pdfs.prose(4))
    job_id = service.submit("half").json()["job_id"]
    reached = eventually(lambda: found if (found := service.job(job_id)["progress"]) > 60 else 0, "three of four pages")
    eventually(lambda: service.fields("half")["progress"] == reached, "the document to show it")
    _stop(service, "worker-1")
    assert _wait_for_end(service, "worker-1") == 0
    assert (service.job(job_id)["status"], service.job(job_id)["progress"]) == ("pending", reached)
    service.gemini.script(Fault.wait(4, match="station 3 boards"))
    service.start_worker(PAGES_PER_BATCH="1")
    shown = set()
    while (job := service.job(job_id))["status"] not in {"completed", "failed"}:
        shown |= {job["progress"], service.fields("half").get("progress", 100)}
    assert min(shown) >= reached
    assert job["status"] == "completed"
    check_exam(service, "half")


def test_a_horse_dies_with_its_worker(service: Stack) -> None:
    """So does the scheduler: nothing of a killed worker runs on beside its successor."""
    service.gemini.latency = 60.0
    service.start_worker()
    service.add_document("orphan", pdfs.prose(2))
    service.submit("orphan")
    wait_for_horse(service)
    children = psutil.Process(worker_pid(service)).children(recursive=True)
    assert len(children) >= 2
    os.kill(worker_pid(service), signal.SIGKILL)
    _wait_for_end(service, "worker-1")
    _, alive = psutil.wait_procs(children, timeout=3)
    assert not alive


def test_workers_are_replaced_one_by_one_under_load(service: Stack) -> None:
    """Rolling restarts lose nothing and use up no attempt."""
    service.redis.flushdb()
    service.gemini.latency = 0.3
    service.start_worker("rolling-0")
    service.start_worker("rolling-1")
    jobs = {}
    for number in range(12):
        service.add_document(f"roll-{number}", pdfs.prose(2))
        jobs[f"roll-{number}"] = service.submit(f"roll-{number}").json()["job_id"]
    for number in (0, 1):
        _stop(service, f"rolling-{number}")
        assert _wait_for_end(service, f"rolling-{number}") == 0
        service.start_worker(f"rolled-{number}")
    for doc_id, job_id in jobs.items():
        job = service.wait_for_job(job_id)
        assert (job["status"], job["attempt"]) == ("completed", 1)
        check_exam(service, doc_id)
    eventually(lambda: service.redis.zcard("superexam:wip:superexam") == 0, "no run to be left")


def test_a_pool_of_workers_stops_like_one(service: Stack) -> None:
    """`rq worker-pool`, which has no flags for what a worker needs, finishes its jobs on one SIGTERM."""
    service.redis.flushdb()
    service.gemini.latency = 3.0
    options = ("-S", "json", "-w", "superexam_rq.worker.ExamWorker", "-n", "2", "superexam")
    exports = {"RQ_KEY_PREFIX": "superexam", "RQ_REDIS_URL": service.redis_url}
    service.children.start("pool", "rq.cli", "worker-pool", *options, environment=exports)
    eventually(lambda: service.worker_count() == 2, "two workers")
    jobs = {}
    for doc_id in ("pool-1", "pool-2"):
        service.add_document(doc_id, pdfs.prose(2))
        jobs[doc_id] = service.submit(doc_id).json()["job_id"]
    wait_for_call(service, 2)
    _stop(service, "pool")
    assert _wait_for_end(service, "pool") == 0
    for doc_id, job_id in jobs.items():
        assert service.job(job_id)["status"] == "completed"
        check_exam(service, doc_id)
    assert service.worker_count() == 0


def test_workers_of_a_pool_that_was_killed_end(service: Stack) -> None:
    """Nobody could stop them any more."""
    options = ("-S", "json", "-w", "superexam_rq.worker.ExamWorker", "-n", "2", "superexam")
    exports = {"RQ_KEY_PREFIX": "superexam", "RQ_REDIS_URL": service.redis_url}
    service.children.start("pool", "rq.cli", "worker-pool", *options, environment=exports)
    eventually(lambda: service.worker_count() == 2, "two workers")
    left = psutil.Process(worker_pid(service, "pool")).children(recursive=True)
    os.kill(worker_pid(service, "pool"), signal.SIGKILL)
    _wait_for_end(service, "pool")
    _, alive = psutil.wait_procs(left, timeout=15)
    assert not alive
    assert service.worker_count() == 0


def test_a_child_whose_parent_died_before_it_could_ask_ends_at_once() -> None:
    """The kernel tells nobody of a death in the past."""
    another = str(os.getppid())
    done = subprocess.run([sys.executable, "-m", "superexam_rq.processes", another, "platform"], check=False)
    assert done.returncode == -signal.SIGTERM
