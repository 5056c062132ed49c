"""A job goes on, whatever of its worker dies, and says the truth meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest

from superexam_rq.sandbox.gemini import Fault
from tests import pdfs
from tests.breaking import (
    check_exam,
    held,
    horse_pid,
    kill_worker,
    wait_for_call,
    wait_for_horse,
    worker_pid,
)
from tests.stack import Stack, eventually


@pytest.fixture(scope="module")
def service(installation: Stack) -> Stack:
    """Give an installation with an API; its jobs have two runs and wait 2 s in between."""
    installation.configure(MAX_RETRY_ATTEMPTS="1", RETRY_INTERVALS="2")
    installation.start_api()
    return installation


@pytest.fixture
def slow_gemini(service: Stack) -> Iterator[None]:
    """Let each call of Gemini take long enough to be interrupted."""
    service.gemini.clear_calls()
    service.gemini.latency = 3.0
    yield
    service.gemini.latency = 0.0


@pytest.fixture
def workers(service: Stack) -> Iterator[list[str]]:
    """Give the names of two fresh workers."""
    names = [f"worker-{os.urandom(3).hex()}" for _ in range(2)]
    for name in names:
        service.start_worker(name)
    yield names
    service.children.stop(*(name for name in names if name in service.children.running))
    eventually(lambda: _all_gone(service), "the workers to be gone")


def _all_gone(service: Stack) -> bool:
    for key in service.redis.smembers("superexam:workers"):  # killed ones stay listed until their key expires
        service.redis.srem("superexam:workers", key)
        service.redis.srem("superexam:workers:superexam", key)
    return True


def _all_suspended(service: Stack) -> bool:
    states = [service.redis.hget(key, "state") for key in service.redis.smembers("superexam:workers")]
    return set(states) == {b"suspended"}


def _reached(service: Stack, job_id: str, attempt: int) -> bool:
    return bool(service.job(job_id)["attempt"] == attempt)


def _busy(service: Stack, names: list[str]) -> str:
    return eventually(lambda: next((name for name in names if horse_pid(service, name)), None), "a worker to be busy")


@pytest.mark.usefixtures("slow_gemini")
def test_a_job_whose_horse_was_killed_goes_on_within_5_s(service: Stack, workers: list[str]) -> None:
    """The next run starts at once, says so, counts as the second attempt, and its questions are the only ones."""
    service.add_document("horse", pdfs.prose(3))
    job_id = service.submit("horse").json()["job_id"]
    wait_for_call(service)
    horse = horse_pid(service, _busy(service, workers))
    assert horse
    os.kill(horse, signal.SIGKILL)
    killed = time.monotonic()
    wait_for_call(service, 2)
    assert time.monotonic() - killed < 5
    assert service.job(job_id)["attempt"] == 2
    assert service.wait_for_job(job_id)["status"] == "completed"
    check_exam(service, "horse")


@pytest.mark.usefixtures("slow_gemini")
def test_a_job_whose_worker_vanished_goes_on_within_30_s(service: Stack, workers: list[str]) -> None:
    """Another worker notices that the heartbeat stands still, and runs the job."""
    service.add_document("vanished", pdfs.prose(3))
    job_id = service.submit("vanished").json()["job_id"]
    wait_for_call(service)
    kill_worker(service, _busy(service, workers))
    killed = time.monotonic()
    eventually(lambda: service.job(job_id)["attempt"] == 2, "the second attempt", 30)
    assert time.monotonic() - killed < 30
    assert service.wait_for_job(job_id)["status"] == "completed"
    check_exam(service, "vanished")


def test_a_document_that_waits_for_a_retry_says_so_again(service: Stack, workers: list[str]) -> None:
    """The website writes over the step with each click on its button; the countdown is back within 15 s."""
    service.gemini.script(Fault.per_minute(61))
    service.add_document("counting", pdfs.prose(1))
    job_id = service.submit("counting").json()["job_id"]
    eventually(lambda: held(service, job_id)["scheduled"], "the job to wait")
    service.redis.zadd("superexam:scheduled:superexam", {job_id: time.time() + 600}, xx=True)
    service.document("counting").update({"currentStep": "Queuing...", "progress": 0})
    eventually(lambda: "Retrying in " in service.fields("counting")["currentStep"], "the step", 15)
    service.redis.set("superexam:suspended", 1)
    try:
        eventually(lambda: _all_suspended(service), "the workers to take nothing")
        service.redis.zadd("superexam:scheduled:superexam", {job_id: time.time()}, xx=True)
        eventually(lambda: held(service, job_id)["queue"], "the job to be queued")
        service.document("counting").update({"currentStep": "Queuing...", "progress": 0})
        told = "Waiting for a worker (attempt 2 of 2)"
        eventually(
            lambda: service.fields("counting")["currentStep"] == told, "the step while it waits for a worker", 15
        )
        assert service.job(job_id)["current_step"] == told
    finally:
        service.redis.delete("superexam:suspended", "superexam:gemini:pause")  # and the delay that was stated
    assert service.wait_for_job(job_id)["status"] == "completed"
    check_exam(service, "counting")


@pytest.mark.usefixtures("slow_gemini")
def test_the_last_loss_fails_the_job_and_its_document(service: Stack, workers: list[str]) -> None:
    """Retries used up by crashes end in `failed`, here and in Firestore, with words that the website knows."""
    service.add_document("doomed", pdfs.prose(3))
    job_id = service.submit("doomed").json()["job_id"]
    for attempt in (1, 2):
        eventually(partial(_reached, service, job_id, attempt), f"attempt {attempt}")
        horse = wait_for_horse(service, _busy(service, workers))
        os.kill(horse, signal.SIGKILL)
    job = service.wait_for_job(job_id)
    assert (job["status"], job["error_code"]) == ("failed", "worker_lost")
    assert job["error"].startswith("Failed after 2 attempts: The worker was killed")
    fields = eventually(
        lambda: fields if (fields := service.fields("doomed"))["status"] == "failed" else None,
        "the document to fail",
        10,
    )
    assert fields["error"] == job["error"]
    assert held(service, job_id)["failed"]


@pytest.mark.usefixtures("slow_gemini")
def test_a_last_run_that_died_while_it_published_is_looked_after(service: Stack, workers: list[str]) -> None:
    """Its exam may be there, though nobody recorded it: another run finds out, instead of a failed job beside it."""
    service.add_document("published", pdfs.prose(2))
    service.gemini.script(Fault.wait(60))
    job_id = service.submit("published").json()["job_id"]
    wait_for_call(service)
    os.kill(wait_for_horse(service, _busy(service, workers)), signal.SIGKILL)
    service.firestore_server.faults.delay("Commit", 1.0, times=100)
    eventually(
        lambda: b"publishing" in (service.redis.hget(f"superexam:job:{job_id}", "meta") or b""), "the publication"
    )
    os.kill(wait_for_horse(service, _busy(service, workers)), signal.SIGKILL)
    service.firestore_server.faults.clear()
    job = service.wait_for_job(job_id)
    assert (job["status"], job["attempt"], job["max_attempts"]) == ("completed", 2, 2)
    assert job["question_count"] == len(check_exam(service, "published"))


def test_stock_requeue_begins_anew(service: Stack, workers: list[str]) -> None:
    """`rq requeue` gives a failed job fresh retries, and `attempt` starts at 1 again."""
    service.gemini.latency = 0.0
    service.add_document("anew", None)
    job_id = service.submit("anew").json()["job_id"]
    assert service.wait_for_job(job_id)["error_code"] == "pdf_missing"
    (service.uploads / "anew.pdf").write_bytes(pdfs.prose(3))
    service.gemini.latency = 3.0
    command = [sys.executable, "-m", "rq.cli", "requeue", "-S", "json", "--queue", "superexam", job_id]
    exports = {"RQ_KEY_PREFIX": "superexam", "RQ_REDIS_URL": service.redis_url}
    subprocess.run(command, env=service.environment | exports, check=True, capture_output=True)
    wait_for_call(service)
    assert service.job(job_id)["attempt"] == 1
    horse = horse_pid(service, _busy(service, workers))
    assert horse
    os.kill(horse, signal.SIGKILL)
    job = service.wait_for_job(job_id)
    assert (job["status"], job["attempt"], job["error"]) == ("completed", 2, None)
    check_exam(service, "anew")


@pytest.mark.usefixtures("slow_gemini")
def test_a_worker_that_comes_back_from_a_pause_harms_nothing(service: Stack, workers: list[str]) -> None:
    """A worker stopped for so long that its job was given to another finds that out and stops."""
    service.gemini.latency = 1.0
    service.add_document("paused", pdfs.prose(3))
    job_id = service.submit("paused").json()["job_id"]
    wait_for_call(service)
    name = _busy(service, workers)
    horse = horse_pid(service, name)
    assert horse
    for pid in (horse, worker_pid(service, name)):
        os.kill(pid, signal.SIGSTOP)
    try:
        assert service.wait_for_job(job_id, seconds=60)["attempt"] == 2
        exam = check_exam(service, "paused")
    finally:
        for pid in (worker_pid(service, name), horse):
            os.kill(pid, signal.SIGCONT)
    eventually(lambda: horse_pid(service, name) is None, "the paused run to end")
    assert service.job(job_id)["status"] == "completed"
    assert not any(held(service, job_id).values())
    assert check_exam(service, "paused") == exam


@pytest.mark.slow
def test_a_time_out_is_retried_though_the_scheduler_was_killed(service: Stack) -> None:
    """Retries that fell due while no worker ran start as soon as one does, the scheduler's lock notwithstanding."""
    service.gemini.latency = 30.0
    service.add_document("overdue", pdfs.prose(2))
    job_id = service.submit("overdue").json()["job_id"]
    service.redis.hset(f"superexam:job:{job_id}", mapping={"timeout": 2, "retry_intervals": "[6]"})
    service.start_worker("scheduler")
    job = eventually(lambda: job if (job := service.job(job_id))["retry_at"] else None, "the retry to be scheduled")
    service.gemini.latency = 0.0
    assert job["current_step"] in {f"Retrying in {seconds} s (attempt 2 of 2)" for seconds in range(4, 7)}
    step = service.fields("overdue")["currentStep"]
    assert step == "Retrying in 6 s (attempt 2 of 2)"
    kill_worker(service, "scheduler")
    assert service.redis.exists("superexam:scheduler-lock:superexam")
    eventually(lambda: (service.job(job_id)["retry_at"] or 0) < time.time() - 4, "the retry to be overdue")
    _all_gone(service)
    service.start_worker("late")
    started = time.monotonic()
    eventually(lambda: service.job(job_id)["attempt"] == 2, "the second attempt")
    assert time.monotonic() - started < 5
    assert service.wait_for_job(job_id)["status"] == "completed"
    service.children.stop("late")
