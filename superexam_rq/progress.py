"""How far a run is, told to whoever watches: one place decides when it is written.

A run reports as often as it likes; a single thread writes the newest report to each sink, at most once a second
and again at least every 15 s (contract §3: the website overwrites both fields before each submission). The same
thread asks once a second whether the run is still wanted. What fails there never fails the run, unless it says
that the document is gone, the job was cancelled, or another run owns the document.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType

from superexam_rq.errors import Cancelled, DocumentGone, SuperExamError, Superseded

log = logging.getLogger(__name__)

MIN_INTERVAL = 1.0
REFRESH_INTERVAL = 10.0
MAX_STEP_LENGTH = 40

Sink = Callable[[int, str], None]


class Progress:
    """Carry one run's progress (`percent` to 100, never falling) and step to its sinks, from a thread of its own."""

    def __init__(
        self,
        sinks: Sequence[Sink],
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        poll: Callable[[], None] = lambda: None,
        percent: int = 0,
        expected: tuple[type[Exception], ...] = (SuperExamError,),
    ):
        self._sinks = tuple(sinks)
        self._poll = poll
        # What sinks and poll may raise as a matter of course: told in a line, without a traceback.
        self._expected = expected
        self._stop_run = stop
        self._clock = clock
        self._condition = threading.Condition()
        self._percent = percent
        self._step = ""
        self._dirty = False
        self._closed = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._write_loop, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def report(self, percent: float, step: str) -> None:
        """Take a new state; it is written soon, from the other thread."""
        with self._condition:
            reported = max(self._percent, min(100, int(percent))), step[:MAX_STEP_LENGTH]
            if reported != (self._percent, self._step):
                self._percent, self._step = reported
                self._dirty = True
                self._condition.notify()

    def check(self) -> None:
        """Raise what was found out: the document is gone, the job was cancelled, or another run owns the document."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Stop writing and wait for a write under way: what comes next is the run's own."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _write_loop(self) -> None:
        # The run has just taken the document, which is a write too.
        written = self._clock()
        polled = written - MIN_INTERVAL
        while self._error is None:
            with self._condition:
                now = self._clock()
                due = written + (MIN_INTERVAL if self._dirty else REFRESH_INTERVAL)
                if not self._closed and now < min(due, polled + MIN_INTERVAL):
                    self._condition.wait(max(min(due, polled + MIN_INTERVAL) - now, 0.05))
                    continue
                if self._closed:
                    return
                percent, step, write = self._percent, self._step, bool(now >= due and self._step)
                if write:
                    self._dirty = False
            polled = self._clock()
            self._try(self._poll)
            if write and self._error is None:
                for sink in self._sinks:
                    self._try(partial(sink, percent, step))
                written = self._clock()
            elif now >= due:
                written = now  # nothing to show yet
        self._stop_run.set()

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except (Cancelled, DocumentGone, Superseded) as error:
            self._error = self._error or error
        except self._expected as error:
            log.warning("progress could not be written: %s", error)
        except Exception:
            log.warning("progress could not be written", exc_info=True)
