"""The page /docs as somebody uses it who tries the API: Chromium fills the form, and a job is queued.

With the variable SCREENSHOTS naming a directory, what the page looks like is kept there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rq.utils import as_text

from tests.browser import AVAILABLE, Browser, chromium
from tests.stack import Stack, eventually, stack

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="needs Debian's packages chromium and chromium-driver")

SUBMIT = "#operations-Jobs-submit"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Give one Chromium to all tests here."""
    with chromium(height=1400) as window:
        yield window


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give an API that wants a key."""
    with stack(tmp_path_factory.mktemp("docs"), API_KEYS="let-me-in") as servers:
        servers.start_api()
        yield servers


def _keep(browser: Browser, name: str) -> None:
    if folder := os.environ.get("SCREENSHOTS"):
        browser.screenshot(Path(folder) / f"{name}.png")


def _fill(browser: Browser, css: str, text: str) -> None:
    browser.run("document.querySelector(arguments[0]).select()", css)
    browser.type(css, text)


def test_a_job_is_submitted_from_the_page(api: Stack, browser: Browser) -> None:
    """Without a key the page shows the refusal and what to do; with the key given to it, the job."""
    browser.open(f"{api.url}/docs")
    browser.wait_for_text("Submit a document", SUBMIT)
    _keep(browser, "docs")
    browser.click(f"{SUBMIT} .opblock-summary-control")
    browser.wait_for_text("Idempotency-Key", SUBMIT)
    body = {"doc_id": "from-the-page", "system_prompt_id": "sys", "custom_prompt_id": "cus"}
    _fill(browser, f"{SUBMIT} textarea.body-param__text", json.dumps(body))
    browser.click(f"{SUBMIT} button.execute")
    browser.wait_for_text("Send a key of API_KEYS", f"{SUBMIT} .live-responses-table")

    browser.click(".authorize")
    browser.wait_for_text("bearer", ".auth-container")
    browser.type(".auth-container input", "let-me-in")
    browser.click(".auth-container button.authorize")
    browser.click(".auth-container button.btn-done")
    browser.click(f"{SUBMIT} button.execute")
    browser.wait_for_text("Job queued successfully", f"{SUBMIT} .live-responses-table")
    browser.run("document.querySelector(arguments[0]).scrollIntoView()", f"{SUBMIT} .responses-wrapper")
    _keep(browser, "docs-submitted")
    [job_id] = eventually(lambda: api.redis.lrange("superexam:queue:superexam", 0, -1), "the job")
    assert as_text(job_id) in browser.text(f"{SUBMIT} .live-responses-table")


def test_the_page_loads_nothing_from_elsewhere_and_breaks_no_rule(api: Stack, browser: Browser) -> None:
    """Every address is the service's own; the console reports no refused style, script or font."""
    browser.open("about:blank")
    browser.errors()
    browser.open(f"{api.url}/docs")
    browser.wait_for_text("Submit a document", SUBMIT)
    browser.click(f"{SUBMIT} .opblock-summary-control")
    browser.wait_for_text("Idempotency-Key", SUBMIT)
    loaded = browser.requested()
    assert loaded
    assert [address for address in loaded if not address.startswith((f"{api.url}/", "data:"))] == []
    assert browser.errors() == []
