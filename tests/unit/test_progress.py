"""When progress is written, with a clock that the test moves on."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from superexam_rq import progress
from superexam_rq.errors import Cancelled, FirestoreUnavailable
from superexam_rq.progress import Progress

# Of the real intervals a fiftieth: the thread waits for real between its looks at the clock.
SECOND = 0.02


class Writer:
    """A run's progress, what was written of it, and the time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.written: list[tuple[int, str]] = []
        self.found: Exception | None = None
        self.refused = False
        self.stop = threading.Event()
        self._polled = threading.Semaphore(0)
        self.progress = Progress([self._sink], self.stop, lambda: self.now, self._poll, 20)

    def _sink(self, percent: int, step: str) -> None:
        if self.refused:
            raise OSError("no")
        self.written.append((percent, step))

    def _poll(self) -> None:
        self._polled.release()
        if self.found is not None:
            raise self.found

    def pass_time(self, seconds: int) -> None:
        """Move the clock on, and wait until the thread has seen each second, and done what was to be done in it."""
        for _ in range(seconds):
            self.now += SECOND
            # Once in this second: the second poll, in the next one, comes after what follows from the first.
            assert self._polled.acquire(timeout=10)


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Writer]:
    """Give the progress of a run that has begun at 20 percent."""
    monkeypatch.setattr(progress, "MIN_INTERVAL", progress.MIN_INTERVAL * SECOND)
    monkeypatch.setattr(progress, "REFRESH_INTERVAL", progress.REFRESH_INTERVAL * SECOND)
    found = Writer()
    with found.progress:
        found.pass_time(1)
        yield found


def test_a_change_is_written_once(writer: Writer) -> None:
    """Also where the run reports the same again and again."""
    for _ in range(3):
        writer.progress.report(30, "Reading")
    writer.pass_time(3)
    writer.progress.report(30, "Reading")
    writer.pass_time(3)
    assert writer.written == [(30, "Reading")]


def test_only_the_newest_of_a_second_is_written(writer: Writer) -> None:
    """Each write costs money, and the website shows the last one."""
    writer.progress.report(30, "Reading")
    writer.pass_time(3)
    for percent in range(31, 50):
        writer.progress.report(percent, f"Page {percent}")
    writer.pass_time(3)
    assert writer.written == [(30, "Reading"), (49, "Page 49")]


def test_the_same_is_written_again_after_a_while(writer: Writer) -> None:
    """The website overwrites both fields before each submission."""
    writer.progress.report(30, "Reading")
    writer.pass_time(16)
    assert writer.written == [(30, "Reading")] * 2


def test_progress_never_falls(writer: Writer) -> None:
    """A run that goes on with an attempt begins where that was; the step is told all the same."""
    writer.progress.report(1, "Reading")
    writer.pass_time(3)
    assert writer.written == [(20, "Reading")]


def test_a_write_that_fails_fails_no_run(writer: Writer) -> None:
    """What comes later is written."""
    writer.refused = True
    writer.progress.report(30, "Reading")
    writer.pass_time(3)
    writer.refused = False
    writer.progress.report(40, "Writing")
    writer.pass_time(3)
    writer.progress.check()
    assert writer.written == [(40, "Writing")]
    assert not writer.stop.is_set()


def test_an_outage_is_told_in_a_line(writer: Writer, caplog: pytest.LogCaptureFixture) -> None:
    """A traceback each second would tell nobody anything."""
    writer.found = FirestoreUnavailable("Firestore is not available")
    writer.pass_time(2)
    assert {(found.getMessage(), found.exc_info) for found in caplog.records} == {
        ("progress could not be written: Firestore is not available", None)
    }


def test_a_run_that_is_not_wanted_is_told(writer: Writer) -> None:
    """Nothing is written any more, the engine is stopped, and the run learns why."""
    writer.found = Cancelled("Cancelled")
    writer.now += SECOND
    assert writer.stop.wait(10)
    with pytest.raises(Cancelled):
        writer.progress.check()
    assert writer.written == []


def test_nothing_is_written_after_the_end(writer: Writer) -> None:
    """What comes next is the run's own: the publication must not be overwritten."""
    writer.progress.report(30, "Reading")
    writer.progress.close()
    writer.now += 100 * SECOND
    assert writer.written == []
    assert "progress" not in {thread.name for thread in threading.enumerate()}
