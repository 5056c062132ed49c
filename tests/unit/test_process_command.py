"""How the command `process` follows a job whose document does not tell the whole story."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from superexam_rq import website
from superexam_rq.client import ServiceError
from superexam_rq.commands import process

WORKING = {"status": "processing", "progress": 30, "currentStep": "Writing questions: page 3 of 9"}


class Clock:
    """Tell the time that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        """Return it."""
        return self.now


class Api:
    """Stand for the service: it knows one job."""

    def __init__(self, job: Mapping[str, Any] | None) -> None:
        self.known = job
        self.calls = 0

    def job(self, _job_id: str) -> dict[str, Any]:
        """Return the job object, or say that there is none."""
        self.calls += 1
        if self.known is None:
            raise ServiceError("There is no such job", 404)
        return dict(self.known)


def watch(
    monkeypatch: pytest.MonkeyPatch, document: Mapping[str, Any] | None, job: Mapping[str, Any] | None
) -> tuple[process.Watch, Api, Clock]:
    """Return a watch of a document (None: Firestore is away) and a job."""

    def read(_document: Any) -> Mapping[str, Any]:
        if document is None:
            raise website.StorageError("away")
        return document

    monkeypatch.setattr(website, "read", read)
    api, clock = Api(job), Clock()
    exam: Any = website.StoredExam("doc", "sys", "cus", "x.pdf", None)  # type: ignore[arg-type]
    return process.Watch(api, exam, "job", clock), api, clock  # type: ignore[arg-type]


def test_the_document_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the document tells progress or an end, that is what is shown."""
    watched, _, _ = watch(monkeypatch, WORKING, {"status": "processing", "progress": 99})
    assert watched.look() == WORKING
    watched, api, _ = watch(monkeypatch, {"status": "ready"}, None)
    assert watched.look() == {"status": "ready"}
    assert api.calls == 0


def test_a_waiting_job_s_place_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a job waits, the document only says that it is queued."""
    watched, _, _ = watch(monkeypatch, WORKING, {"status": "pending", "queue_position": 3})
    assert watched.look()["currentStep"] == "Waiting, number 3 in the queue"


@pytest.mark.parametrize(
    ("status", "shown"),
    [("pending", "processing"), ("processing", "processing"), ("completed", "ready"), ("failed", "failed")],
)
def test_without_firestore_the_job_is_followed(monkeypatch: pytest.MonkeyPatch, status: str, shown: str) -> None:
    """The job object stands in for the document."""
    watched, _, _ = watch(monkeypatch, None, {"status": status, "progress": 40, "current_step": "s", "error": "e"})
    assert watched.look() == {"status": shown, "progress": 40, "currentStep": "s", "error": "e"}


def test_the_api_is_asked_at_most_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """However often the document is looked at."""
    watched, api, clock = watch(monkeypatch, WORKING, {"status": "processing"})
    for _ in range(5):
        watched.look()
    assert api.calls == 1
    clock.now += 1.0
    watched.look()
    assert api.calls == 2


@pytest.mark.parametrize("job", [{"status": "cancelled", "error": "Cancelled"}, None])
def test_a_document_that_nobody_ends_does_not_hold_up_for_ever(
    monkeypatch: pytest.MonkeyPatch, job: Mapping[str, Any] | None
) -> None:
    """Some seconds after its job has ended, or has vanished, the job counts."""
    watched, _, clock = watch(monkeypatch, WORKING, job)
    assert watched.look()["status"] == "processing"
    clock.now += process.LAG_SECONDS + 1
    assert watched.look()["status"] == ("cancelled" if job else "unknown")
