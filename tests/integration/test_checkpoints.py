"""What was answered is paid for once: killed workers, retries and new jobs ask only for what is missing."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from superexam_rq.sandbox.gemini import Fault
from tests import pdfs
from tests.breaking import check_exam, kill_worker, wait_for_horse
from tests.stack import Stack, eventually

BATCHES = 6
OWN = {"type": "object", "properties": {"question": {"type": "string"}, "answer": {"type": "string"}}}


@pytest.fixture(scope="module")
def service(installation: Stack) -> Stack:
    """Give an installation with an API and a worker; its batches are pages and are asked one after the other."""
    installation.configure(PAGES_PER_BATCH="1", GEMINI_CONCURRENCY="1", RETRY_INTERVALS="1")
    installation.start_api()
    installation.start_worker()
    return installation


@pytest.fixture(autouse=True)
def _steady(service: Stack) -> Iterator[None]:
    service.gemini.clear_calls()
    yield
    service.gemini.latency = 0.0
    service.gemini.clear_faults()


def kept(service: Stack) -> int:
    """Return how many batches are kept in all."""
    return sum(1 for _ in service.redis.scan_iter("superexam:batch:*"))


@pytest.mark.parametrize("what", ["horse", pytest.param("worker", marks=pytest.mark.slow)])
def test_a_killed_run_is_paid_for_once(service: Stack, what: str) -> None:
    """After k of n batches the next run makes exactly n - k calls, whether the horse or the whole worker died."""
    doc_id = f"killed-{what}"
    service.gemini.latency = 0.4
    service.add_document(doc_id, pdfs.prose(BATCHES, start=100 if what == "horse" else 200))
    before = kept(service)
    job_id = service.submit(doc_id).json()["job_id"]
    horse = wait_for_horse(service)
    eventually(lambda: kept(service) >= before + 2, "two batches to be kept")
    if what == "horse":
        os.kill(horse, signal.SIGKILL)
    else:
        kill_worker(service, "worker-1")
    eventually(lambda: not psutil.pid_exists(horse), "the run to be dead")
    answered = kept(service) - before
    assert 2 <= answered < BATCHES
    service.gemini.clear_calls()
    if what == "worker":
        service.start_worker("worker-2")
    job = service.wait_for_job(job_id)

    assert (job["status"], job["attempt"]) == ("completed", 2)
    assert len(service.gemini.calls()) == BATCHES - answered
    pages = {question["sourcePages"][0] for question in check_exam(service, doc_id)}
    assert pages == set(range(1, BATCHES + 1))


def test_retry_asks_for_what_failed_only(service: Stack) -> None:
    """`POST /jobs/{id}/retry` of a failed job re-asks the refused page, and none that was answered."""
    service.gemini.script(Fault.no_credit(times=None, match="station 304 boards"))
    service.add_document("refused", pdfs.prose(BATCHES, start=300))
    job = service.process("refused")
    assert (job["status"], job["error_code"]) == ("failed", "gemini_quota")
    assert len(service.gemini.calls()) == 5
    service.gemini.clear_faults()
    service.gemini.clear_calls()
    answer = service.http.post(f"{service.url}/jobs/{job['job_id']}/retry", timeout=10)
    assert answer.status_code == 202
    job = service.wait_for_job(job["job_id"])
    assert (job["status"], job["attempt"]) == ("completed", 1)
    assert len(service.gemini.calls()) == 2
    assert {question["sourcePages"][0] for question in check_exam(service, "refused")} == set(range(1, 7))


def test_unchanged_input_costs_no_call(service: Stack) -> None:
    """A new job on the same bytes, prompts, schema and model makes none; also for another document, without copies."""
    book = pdfs.prose(BATCHES, start=400)
    service.add_document("first", book)
    first = service.process("first")
    assert len(service.gemini.calls()) == BATCHES
    service.gemini.clear_calls()
    assert service.process("first")["question_count"] == first["question_count"]
    service.add_document("second", book)
    assert service.process("second")["question_count"] == first["question_count"]
    assert not service.gemini.calls()
    check_exam(service, "first")
    texts = [[question["questionText"] for question in service.questions(doc_id)] for doc_id in ("first", "second")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("changed", "calls"),
    [
        ({"model": "gemini-3.6-flash"}, 2),
        ({"schema": OWN}, 2),
        ({"pages": "1"}, 0),
        ({"max_questions": 1}, 0),
    ],
    ids=["model", "schema", "pages", "max_questions"],
)
def test_what_decides_an_answer_is_asked_anew(service: Stack, changed: dict[str, object], calls: int) -> None:
    """Another model or schema asks again; fewer of the same batches, and fewer questions, do not."""
    service.add_document("changing", pdfs.prose(2, start=500))
    service.process("changing")
    service.gemini.clear_calls()
    service.process("changing", **changed)
    assert len(service.gemini.calls()) == calls
