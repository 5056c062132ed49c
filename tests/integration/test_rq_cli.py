"""RQ's own commands against the running service, as the README prints them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from superexam_rq.sandbox.gemini import Fault
from superexam_rq.sandbox.processes import Children, free_port
from tests import pdfs
from tests.stack import ROOT, Stack, eventually

EXPORT = 'eval "$(python -m superexam_rq env)"'
REQUEUE = "rq requeue -S json --queue superexam"
POOL = "rq worker-pool -S json -w superexam_rq.worker.ExamWorker -n 2 superexam"


def _shell(service: Stack, command: str) -> str:
    """Run a line in a shell that has evaluated the exports, and return what it prints; it must succeed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{EXPORT}\n{command}"],
        env=service.environment | {"PATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _fail(service: Stack, doc_id: str) -> str:
    service.add_document(doc_id, None, filePath=f"{doc_id}-scan.pdf")
    job_id: str = service.process(doc_id)["job_id"]
    return job_id


def _mend(service: Stack, doc_id: str, start: int) -> None:
    (service.uploads / f"{doc_id}-scan.pdf").write_bytes(pdfs.prose(1, start=start))


@pytest.fixture
def suspended(service: Stack) -> Iterator[None]:
    """Suspend the workers for one test, as an operator does before maintenance."""
    assert "Suspending workers" in _shell(service, "rq suspend")
    eventually(lambda: "suspended superexam" in _shell(service, "rq info -S json"), "an idle worker to notice")
    yield
    _shell(service, "rq resume")


def test_info_counts_what_the_api_counts(service: Stack) -> None:
    """`rq info` shows the one queue, its length and the worker, as /health does."""
    service.add_document("first", pdfs.prose(1))
    service.process("first")
    _fail(service, "second")
    shown = _shell(service, "rq info -S json")
    assert "1 workers, 1 queues" in shown
    assert re.search(r"superexam\s.*\b0, 0 executing, 1 finished, 1 failed", shown), shown
    health = service.http.get(f"{service.url}/health", timeout=10).json()
    assert (health["queued"], health["workers"]) == (0, 1)


def test_a_failed_job_runs_again_by_its_id(service: Stack) -> None:
    """`rq requeue` with ids queues just these, and the job runs to its end."""
    first, second = _fail(service, "one"), _fail(service, "two")
    _mend(service, "one", 10)
    _mend(service, "two", 20)
    assert "Requeueing 1 jobs" in _shell(service, f"{REQUEUE} {first}")
    assert service.wait_for_job(first, "completed")["error"] is None
    assert service.fields("one")["status"] == "ready"
    assert service.job(second)["status"] == "failed"


def test_all_failed_jobs_run_again(service: Stack) -> None:
    """`rq requeue --all` brings back every failed job, each with all its retries."""
    failed = [_fail(service, f"all-{number}") for number in range(2)]
    for number in range(2):
        _mend(service, f"all-{number}", 30 + number)
    everything = [
        job["job_id"] for job in service.http.get(f"{service.url}/jobs?status=failed", timeout=10).json()["jobs"]
    ]
    _shell(service, f"{REQUEUE} --all")
    for job_id in failed:
        assert service.wait_for_job(job_id, "completed")["attempt"] == 1
    for job_id in failed:
        assert service.redis.zscore("superexam:failed:superexam", job_id) is None
    for job_id in everything:  # earlier tests' failures run again too: the next test is to find the worker idle
        service.wait_for_job(job_id)


def test_a_cancelled_job_is_no_failed_one(service: Stack) -> None:
    """`rq requeue --all` leaves alone what a user has cancelled."""
    service.gemini.script(Fault.slow(600))
    service.add_document("unwanted", pdfs.prose(1, start=36))
    job_id = service.submit("unwanted").json()["job_id"]
    service.wait_for_job(job_id, "processing")
    assert service.http.post(f"{service.url}/dashboard/job/{job_id}/delete", timeout=10).status_code == 200
    service.wait_for_job(job_id, "cancelled")
    service.gemini.clear_faults()
    _shell(service, f"{REQUEUE} --all")
    assert service.job(job_id)["status"] == "cancelled"


@pytest.mark.usefixtures("suspended")
def test_suspended_workers_take_nothing_until_resumed(service: Stack) -> None:
    """After `rq suspend` submissions are taken and wait; `rq resume` lets them run."""
    service.add_document("pause", pdfs.prose(1, start=40))
    job_id = service.submit("pause").json()["job_id"]
    assert re.search(r"superexam\s.*\b1, 0 executing", _shell(service, "rq info -S json"))
    # A worker that is not suspended takes a job within milliseconds: what the info took was long enough.
    assert service.job(job_id)["status"] == "pending"
    assert "Resuming workers" in _shell(service, "rq resume")
    service.wait_for_job(job_id, "completed")


@pytest.mark.usefixtures("suspended")
def test_a_worker_that_is_started_while_suspended_waits(service: Stack) -> None:
    """RQ's own command would end at once, and look like a crash to whoever started it."""
    service.children.start("late", "superexam_rq", "worker")
    log = service.children.log("late")
    eventually(lambda: "Waiting to start: suspended" in log.read_text(), "the worker to say why it waits")
    assert service.worker_count() == 1
    _shell(service, "rq resume")
    eventually(lambda: service.worker_count() == 2, "the second worker")
    service.children.stop("late")


@pytest.mark.usefixtures("suspended")
def test_a_suspension_can_have_an_end(service: Stack) -> None:
    """`rq suspend --duration` ends by itself."""
    _shell(service, "rq suspend --duration 1")
    service.add_document("short-pause", pdfs.prose(1, start=41))
    service.wait_for_job(service.submit("short-pause").json()["job_id"], "completed")


@pytest.mark.usefixtures("suspended")
def test_emptying_the_queue_drops_what_waits(service: Stack) -> None:
    """`rq empty` deletes the waiting jobs; the next submission of such a document is a new job."""
    service.add_document("dropped", pdfs.prose(1, start=42))
    job_id = service.submit("dropped").json()["job_id"]
    assert "1 jobs removed from superexam queue" in _shell(service, "rq empty -S json superexam")
    assert service.http.get(f"{service.url}/jobs/{job_id}", timeout=10).status_code == 404
    again = service.submit("dropped")
    assert again.status_code == 202
    _shell(service, "rq resume")
    service.wait_for_job(again.json()["job_id"], "completed")


def test_the_stand_alone_dashboard_shows_the_queue(service: Stack) -> None:
    """rq-dashboard's own command, with RQ's exports, finds the service's queue."""
    service.add_document("seen", pdfs.prose(1, start=60))
    service.process("seen")
    exports = {"RQ_KEY_PREFIX": "superexam"}
    url = f"http://127.0.0.1:{(port := free_port())}"
    with Children(service.environment | exports, service.folder) as children:
        options = ("--json", "--bind", "127.0.0.1", "--port", str(port), "--redis-url", service.redis_url)
        children.start("rq-dashboard", "rq_dashboard", *options)

        def look() -> list[str]:
            try:
                queues = service.http.get(f"{url}/0/data/queues.json", timeout=5).json()["queues"]
            except requests.RequestException:
                return []
            return [queue["name"] for queue in queues]

        assert eventually(look, "rq-dashboard") == ["superexam"]


def test_a_pool_runs_jobs_side_by_side(service: Stack) -> None:
    """`rq worker-pool -n 2` registers two workers that run two jobs at once, and ends both when told to stop."""
    before = service.worker_count()
    exports = {"RQ_KEY_PREFIX": "superexam", "RQ_REDIS_URL": service.redis_url}
    pool = service.children.start("pool", *POOL.replace("rq ", "rq.cli ", 1).split(), environment=exports)
    service.children.wait_for("the pool", lambda: service.worker_count() == before + 2)
    service.gemini.script(Fault.wait(4, times=None))
    try:
        made = []
        for number in range(before + 2):
            service.add_document(f"pool-{number}", pdfs.prose(1, start=50 + number))
            made.append(service.submit(f"pool-{number}").json()["job_id"])
        eventually(lambda: service.redis.zcard("superexam:wip:superexam") == before + 2, "all workers busy")
        for job_id in made:
            service.wait_for_job(job_id, "completed")
    finally:
        service.gemini.clear_faults()
        pool.terminate()
        assert pool.wait(60) == 0
        del service.children.running["pool"]
    assert service.worker_count() == before
