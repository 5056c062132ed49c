"""/metrics of the running service: who may read it, and what real jobs do to the numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import requests

from superexam_rq.sandbox.gemini import Fault
from superexam_rq.sandbox.processes import Children, free_port
from tests import load, pdfs
from tests.stack import ROOT, Stack, eventually


def _rise(service: Stack, before: load.Samples, name: str, **labels: str) -> float:
    """Return by how much a sample has risen."""
    key = name, frozenset(labels.items())
    return load.scrape(service).get(key, 0.0) - before.get(key, 0.0)


def test_a_job_is_counted_from_submission_to_end(service: Stack) -> None:
    """One good job raises each counter of its way by one, and its questions, calls and tokens by theirs."""
    before = load.scrape(service)
    service.add_document("counted", pdfs.prose(2))
    job = service.process("counted")
    assert _rise(service, before, "superexam_submissions_total", outcome="queued") == 1
    assert _rise(service, before, "superexam_jobs_total", status="completed", error_code="") == 1
    assert _rise(service, before, "superexam_queue_wait_seconds_count") == 1
    assert _rise(service, before, "superexam_job_run_seconds_count") == 1
    assert _rise(service, before, "superexam_questions_total") == job["question_count"]
    assert _rise(service, before, "superexam_gemini_calls_total", outcome="complete") == 1
    for kind in ("prompt", "output"):
        assert _rise(service, before, "superexam_gemini_tokens_total", kind=kind) == job["usage"][f"{kind}_tokens"] > 0
    assert _rise(service, before, "superexam_job_retries_total") == 0


@pytest.mark.slow
def test_a_retry_is_counted_with_what_it_saves(service: Stack) -> None:
    """A job whose second batch fails for a whole run is one job and one retry; the first batch is a checkpoint hit."""
    before = load.scrape(service)
    service.gemini.script(Fault.overloaded(times=4, match="draws more than 121 metres"))
    service.add_document("retried", pdfs.prose(40, start=101))
    job = service.process("retried")
    assert (job["status"], job["attempt"]) == ("completed", 2)
    assert _rise(service, before, "superexam_job_retries_total") == 1
    assert _rise(service, before, "superexam_checkpoint_hits_total") == 1
    assert _rise(service, before, "superexam_gemini_calls_total", outcome="gemini_unavailable") == 4
    assert _rise(service, before, "superexam_jobs_total", status="completed", error_code="") == 1
    assert _rise(service, before, "superexam_queue_wait_seconds_count") == 2


def test_a_cancelled_job_has_its_calls_counted(service: Stack) -> None:
    """What a job has cost until its horse was killed is counted, and the job as cancelled, not as failed."""
    before = load.scrape(service)
    service.gemini.script(Fault.slow(600, match="draws more than 221 metres"))
    service.add_document("cancelled", pdfs.prose(40, start=201))
    job_id = service.submit("cancelled").json()["job_id"]
    complete = "superexam_gemini_calls_total"
    eventually(lambda: _rise(service, before, complete, outcome="complete") == 1, "the first batch to be counted")
    assert service.http.post(f"{service.url}/dashboard/job/{job_id}/delete", timeout=10).status_code == 200
    service.wait_for_job(job_id, "cancelled")
    service.gemini.clear_faults()
    assert _rise(service, before, "superexam_jobs_total", status="cancelled", error_code="") == 1
    assert _rise(service, before, "superexam_job_run_seconds_count") == 0


def test_a_second_submission_is_a_duplicate(service: Stack) -> None:
    """A document that has a live job raises the other outcome."""
    before = load.scrape(service)
    service.gemini.latency = 1.0
    service.add_document("twice", pdfs.prose(1, start=301))
    job_id = service.submit("twice").json()["job_id"]
    assert service.submit("twice").status_code == 200
    service.gemini.latency = 0.0
    service.wait_for_job(job_id)
    assert _rise(service, before, "superexam_submissions_total", outcome="duplicate") == 1
    assert _rise(service, before, "superexam_submissions_total", outcome="queued") == 1


def test_what_alerts_and_panels_use_is_there(service: Stack) -> None:
    """Each metric that is named under deploy/ is one of a real /metrics."""
    names = {name for name, _ in load.scrape(service)}
    for file in ("prometheus/alerts.yml", "grafana/superexam.json"):
        used = set(re.findall(r"superexam_[a-z_]+", (ROOT / "deploy" / file).read_text()))
        assert used
        assert used <= names


def test_every_process_tells_the_same(service: Stack) -> None:
    """The API's processes, and another API beside it, show one truth at rest."""
    service.add_document("mirrored", pdfs.prose(1, start=311))
    service.process("mirrored")
    eventually(lambda: load.by_metrics(service).started == 0, "the registry of running jobs to empty")
    with Children(service.environment | {"PORT": (port := str(free_port()))}, service.folder) as children:
        children.start("second-api", "superexam_rq", "api")
        children.wait_for("the second API", lambda: _status(f"http://127.0.0.1:{port}/health/live") == 200)
        told = {
            requests.get(f"{url}/metrics", timeout=10).text for url in (service.url, f"http://127.0.0.1:{port}") * 4
        }
    assert len(told) == 1


def test_openmetrics_is_told_on_request(service: Stack) -> None:
    """A scraper that asks for OpenMetrics gets it."""
    answer = service.http.get(
        f"{service.url}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}, timeout=10
    )
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_a_key_is_needed(service: Stack) -> None:
    """With API_KEYS set /metrics takes one of them, as the other calls do."""
    with Children(
        service.environment | {"PORT": (port := str(free_port())), "API_KEYS": "k1,k2"}, service.folder
    ) as api:
        api.start("guarded-api", "superexam_rq", "api")
        url = f"http://127.0.0.1:{port}"
        api.wait_for("the API", lambda: _status(f"{url}/health/live") == 200)
        assert _status(f"{url}/metrics") == 401
        assert requests.get(f"{url}/metrics", headers={"Authorization": "Bearer k2"}, timeout=10).status_code == 200


def test_redis_away_is_503(service: Stack, tmp_path: Path) -> None:
    """A scrape fails while Redis is away: Prometheus' `up` shows it, and no number is made up."""
    away = {"PORT": (port := str(free_port())), "REDIS_URL": f"redis://127.0.0.1:{free_port()}/0"}
    with Children(service.environment | away, tmp_path) as api:
        api.start("api", "superexam_rq", "api")
        url = f"http://127.0.0.1:{port}"
        api.wait_for("the API", lambda: _status(f"{url}/health/live") == 200)
        answer = requests.get(f"{url}/metrics", timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (503, "service_unavailable")
    assert "Retry-After" in answer.headers


def _status(url: str) -> int:
    try:
        return requests.get(url, timeout=2).status_code
    except requests.RequestException:
        return 0
