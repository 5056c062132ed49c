"""The dashboard as an operator uses it: Chromium clicks, and the service does what the page says.

With the variable SCREENSHOTS naming a directory, what the pages look like is kept there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from superexam_rq.sandbox.gemini.faults import Fault
from tests import pdfs
from tests.browser import AVAILABLE, Browser, chromium
from tests.stack import Stack, eventually

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs chromium and chromedriver")

# Far from UTC: what the pages say about ages must not depend on the operator's time zone.
TIMEZONE = "America/New_York"


@pytest.fixture
def slow_gemini(service: Stack) -> Iterator[None]:
    """Have Gemini take ten minutes for its next call, and the queue be empty again in the end."""
    service.gemini.script(Fault.slow(600))
    yield
    service.gemini.clear_faults()
    for job in service.http.get(f"{service.url}/dashboard/0/data/jobs/superexam/started/8/asc/1.json").json()["jobs"]:
        service.http.post(f"{service.url}/dashboard/job/{job['id']}/delete")
        service.wait_for_job(job["id"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Give one Chromium to all tests here."""
    with chromium(timezone=TIMEZONE) as window:
        yield window


def _keep(browser: Browser, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        browser.screenshot(Path(folder) / f"{name}.png")


def _registry(service: Stack, name: str, per_page: int = 8) -> str:
    return f"{service.url}/dashboard/0/view/jobs/superexam/{name}/{per_page}/asc/1"


def _fail(service: Stack, doc_id: str) -> str:
    service.add_document(doc_id, None, filePath=f"{doc_id}-scan.pdf")
    job_id: str = service.process(doc_id)["job_id"]
    return job_id


def test_a_failed_job_is_found_read_and_queued_again(service: Stack, browser: Browser) -> None:
    """From the queues page to the failed job, its reason and traceback; Requeue then runs it to its end."""
    job_id = _fail(service, "biology")
    browser.open(f"{service.url}/dashboard/")
    browser.wait_for_text("superexam", "table#queues")
    _keep(browser, "queues")
    browser.click("table#queues td.failed a")
    browser.wait_for_text("document biology: Failed, attempt 1 of 4, pdf_missing: PDF file not found", "table#jobs")
    _keep(browser, "failed-jobs")
    browser.click(f"tr[data-job-id='{job_id}'] div.job_id a")
    browser.wait_for_text("superexam_rq.errors.PdfMissing: PDF file not found: biology-scan.pdf", "pre.exc_info")
    assert "document biology: Failed" in browser.text("#job-data")
    assert '"error_code": "pdf_missing"' in browser.text("#job-data")
    _keep(browser, "failed-job")

    (service.uploads / "biology-scan.pdf").write_bytes(pdfs.prose(2))
    browser.click("#requeue-job-btn")
    assert service.wait_for_job(job_id, "completed")["attempt"] == 1
    assert service.fields("biology")["status"] == "ready"


def test_a_failed_job_is_deleted(service: Stack, browser: Browser) -> None:
    """Delete asks, and the answer Yes removes the row and the job."""
    job_id = _fail(service, "history")
    browser.open(_registry(service, "failed"))
    browser.click(f"tr[data-job-id='{job_id}'] [data-role=delete-job-btn]")
    browser.wait_for_text("Do you really want to delete job?", "#confirmation-modal")
    _keep(browser, "delete")
    browser.click("#confirmation-modal-yes")
    eventually(lambda: not browser.count(f"tr[data-job-id='{job_id}']"), "the row to go")
    assert not service.redis.exists(f"superexam:job:{job_id}")


def test_all_failed_jobs_are_queued_again(service: Stack, browser: Browser) -> None:
    """Requeue All brings every failed job back into the queue, from where it runs."""
    job_ids = [_fail(service, f"law-{number}") for number in range(2)]
    for number in range(2):
        (service.uploads / f"law-{number}-scan.pdf").write_bytes(pdfs.prose(1, start=20 + number))
    browser.open(_registry(service, "failed"))
    browser.click("#requeue-all-btn")
    browser.click("#confirmation-modal-yes")
    for job_id in job_ids:
        service.wait_for_job(job_id, "completed")


@pytest.mark.usefixtures("slow_gemini")
def test_a_busy_worker_and_the_queue_behind_it(service: Stack, browser: Browser) -> None:
    """The workers page names the document of the job under way; Empty queue removes what waits behind it."""
    service.add_document("physics", pdfs.prose(1, start=90))
    running = service.submit("physics").json()["job_id"]
    service.wait_for_job(running, "processing")
    waiting = [service.submit(f"chemistry-{number}").json()["job_id"] for number in range(3)]

    browser.open(f"{service.url}/dashboard/0/view/workers")
    browser.wait_for_text("document physics: ", "table#workers")
    browser.wait_for_text("attempt 1 of 4", "table#workers")
    assert browser.count("table#workers tr[data-role=worker]") == 1
    _keep(browser, "workers")

    browser.open(_registry(service, "queued"))
    browser.wait_for_text("document chemistry-2: Waiting in the queue", "table#jobs")
    assert browser.count("tr[data-role=job]") == 3
    _keep(browser, "queue")
    browser.click("#empty-btn")
    browser.wait_for_text("Do you really want to empty?", "#confirmation-modal")
    browser.click("#confirmation-modal-yes")
    browser.wait_for_text("No jobs.", "table#jobs")
    assert service.redis.llen("superexam:queue:superexam") == 0
    assert not any(service.redis.exists(f"superexam:job:{job_id}") for job_id in waiting)

    browser.open(_registry(service, "started"))
    browser.click(f"tr[data-job-id='{running}'] [data-role=delete-job-btn]")
    browser.click("#confirmation-modal-yes")
    assert service.wait_for_job(running)["status"] == "cancelled"


def test_ages_are_right_in_every_time_zone(service: Stack, browser: Browser) -> None:
    """A job made just now is seconds old for an operator who is hours away from UTC."""
    _fail(service, "geography")
    browser.open(_registry(service, "failed"))
    assert browser.run("return Intl.DateTimeFormat().resolvedOptions().timeZone") == TIMEZONE
    browser.wait_for_text("document geography", "table#jobs")
    assert browser.text("tr[data-role=job]:last-child .creation_date").split()[1] in {"second", "seconds"}


def test_hostile_text_stays_text(service: Stack, browser: Browser) -> None:
    """A document id or file name that is HTML is shown as it is, in lists and on the job's page."""
    hostile = "<img src=x onerror=document.title='owned'>"
    service.add_document("hostile", None, filePath=hostile)
    job_id = service.process("hostile")["job_id"]
    for url in (_registry(service, "failed"), f"{service.url}/dashboard/0/view/job/{job_id}"):
        browser.open(url)
        browser.wait_for_text("<img src=x")
        assert browser.run("return document.title") == "RQ dashboard"
        assert browser.count("img") == 0


def test_pages_load_nothing_from_elsewhere(service: Stack, browser: Browser) -> None:
    """No page asks another host for anything, and none reports an error to the console."""
    browser.errors()
    for path in ("", "0/view/jobs", "0/view/workers"):
        browser.open(f"{service.url}/dashboard/{path}")
        eventually(lambda: any(name.endswith(".json") for name in browser.requested()), f"data of {path}")
        assert all(name.startswith(f"{service.url}/dashboard/") for name in browser.requested())
    # Each page looks for a list of further Redis servers, an address that rq-dashboard does not serve.
    assert [error for error in browser.errors() if "rq-instances" not in error] == []
