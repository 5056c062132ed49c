"""A load of small jobs, and what the service's mirrors say of it: metrics, `rq info`, dashboard, Firestore."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from rq import suspension

from superexam_rq.sandbox.gemini import Fault
from tests import pdfs
from tests.stack import ROOT, Stack, eventually

# One job of this many has no file, and one has a PDF that is none.
MISSING_EVERY, DAMAGED_EVERY = 10, 15
OVERLOADED_CALLS = 4

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True)
class Counts:
    """Say how many jobs are where."""

    queued: int
    started: int
    finished: int
    failed: int

    @property
    def ended(self) -> int:
        """Return how many have come to an end."""
        return self.finished + self.failed


def submit(service: Stack, jobs: int) -> None:
    """Submit jobs, most of them good; Gemini answers a few of their calls with an error that passes."""
    service.gemini.script(Fault.overloaded(times=OVERLOADED_CALLS))
    for number in range(jobs):
        doc_id = f"load-{number:03}"
        missing, damaged = number % MISSING_EVERY == 1, number % DAMAGED_EVERY == 2
        service.add_document(
            doc_id, None if missing else b"not a PDF" if damaged else pdfs.prose(1, start=1000 + number)
        )
        assert service.submit(doc_id).status_code == 202


def expected(jobs: int) -> Counter[str]:
    """Return how many of the jobs end how: "completed" or an error code."""
    return Counter(
        "pdf_missing" if n % MISSING_EVERY == 1 else "pdf_invalid" if n % DAMAGED_EVERY == 2 else "completed"
        for n in range(jobs)
    )


def scrape(service: Stack) -> Samples:
    """Return all samples of /metrics."""
    answer = service.http.get(f"{service.url}/metrics", timeout=10)
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """Return one sample."""
    return samples[name, frozenset(labels.items())]


def by_metrics(service: Stack) -> Counts:
    """Count with /metrics."""
    samples = scrape(service)
    names = ("queued", "started", "finished", "failed")
    return Counts(*(int(value(samples, "superexam_queue_jobs", state=name)) for name in names))


def by_dashboard(service: Stack) -> Counts:
    """Count with the dashboard's page of queues."""
    answer = service.http.get(f"{service.url}/dashboard/0/data/queues.json", timeout=10)
    (row,) = answer.json()["queues"]
    return Counts(row["count"], *(row[f"{name}_job_registry_count"] for name in ("started", "finished", "failed")))


def by_rq_info(service: Stack) -> Counts:
    """Count with `rq info`."""
    exports = {"RQ_KEY_PREFIX": "superexam", "RQ_REDIS_URL": service.redis_url}
    command = [sys.executable, "-m", "rq.cli", "info", "-S", "json", "--only-queues"]
    done = subprocess.run(
        command, env=service.environment | exports, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    found = re.search(r"(\d+), (\d+) executing, (\d+) finished, (\d+) failed", done.stdout)
    assert found, done.stdout
    return Counts(*map(int, found.groups()))


def by_firestore(service: Stack) -> Counter[str]:
    """Count the documents by what the website sees."""
    found = service.db.collection("superexam-documents").stream()
    return Counter(str((snapshot.to_dict() or {})["status"]) for snapshot in found)


def watch(service: Stack, jobs: int, seconds: float) -> int:
    """Compare the mirrors with each other until all jobs have ended; return how often.

    While jobs run no two looks are at one moment: what only grows must lie between a look before and one after.
    """
    looks, give_up = 0, time.monotonic() + seconds
    while True:
        before = by_metrics(service)
        between = (by_dashboard(service), by_rq_info(service))
        after = by_metrics(service)
        for seen in between:
            assert before.finished <= seen.finished <= after.finished
            assert before.failed <= seen.failed <= after.failed
        looks += 1
        if after.ended == jobs:
            return looks
        assert time.monotonic() < give_up, after


def check_at_rest(service: Stack, jobs: int) -> Counts:
    """Assert that with nothing running all mirrors agree to the job, Firestore too."""
    counts = by_metrics(service)
    assert counts.started == 0
    assert by_dashboard(service) == by_rq_info(service) == counts
    firestore = by_firestore(service)
    assert (firestore["ready"], firestore["failed"]) == (counts.finished, counts.failed)
    assert firestore["processing"] == jobs - counts.ended
    samples = scrape(service)
    assert value(samples, "superexam_jobs_total", status="completed", error_code="") == counts.finished
    failed = [
        n for (name, labels), n in samples.items() if name == "superexam_jobs_total" and ("status", "failed") in labels
    ]
    assert sum(failed) == counts.failed
    assert value(samples, "superexam_job_run_seconds_count") == counts.ended
    assert value(samples, "superexam_submissions_total", outcome="queued") == jobs
    return counts


def suspend(service: Stack, workers: int) -> None:
    """Suspend the workers, and wait until each has noticed and nothing runs."""
    suspension.suspend(service.redis)

    def quiet() -> bool:
        states = [service.redis.hget(name, "state") for name in service.redis.smembers("superexam:workers")]
        return states.count(b"suspended") == workers

    eventually(quiet, "all workers suspended", 60)


def run(service: Stack, jobs: int, workers: int, seconds: float) -> None:
    """Run a load of jobs on a pool of workers: in the middle and in the end all mirrors must agree."""
    exports = {"RQ_KEY_PREFIX": "superexam", "RQ_REDIS_URL": service.redis_url}
    options = ("-S", "json", "-w", "superexam_rq.worker.ExamWorker", "-n", str(workers), "superexam")
    service.children.start("pool", "rq.cli", "worker-pool", *options, environment=exports)
    service.children.wait_for("the pool", lambda: service.worker_count() == workers, 60)
    submit(service, jobs)
    eventually(lambda: by_metrics(service).ended >= jobs // 4, "a quarter of the jobs", seconds)
    suspend(service, workers)
    halfway = check_at_rest(service, jobs)
    assert 0 < halfway.queued < jobs
    suspension.resume(service.redis)
    assert watch(service, jobs, seconds) > 1
    suspend(service, workers)
    check_at_rest(service, jobs)

    samples = scrape(service)
    ends = {
        dict(labels)["error_code"] or dict(labels)["status"]: int(number)
        for (name, labels), number in samples.items()
        if name == "superexam_jobs_total" and number
    }
    assert ends == expected(jobs)
    found = service.db.collection("superexam-documents").stream()
    questions = sum((snapshot.to_dict() or {}).get("questionCount", 0) for snapshot in found)
    assert value(samples, "superexam_questions_total") == questions > 0
    assert value(samples, "superexam_workers", state="idle") == workers
    calls = {name: n for (name, labels), n in samples.items() if name == "superexam_gemini_calls_total"}
    assert calls
    assert value(samples, "superexam_gemini_calls_total", outcome="complete") == ends["completed"]
    assert value(samples, "superexam_gemini_calls_total", outcome="gemini_unavailable") == OVERLOADED_CALLS
    assert value(samples, "superexam_gemini_tokens_total", kind="prompt") > 0
