"""How far a run is, told to whoever watches: one place decides when it is written.

A run reports as often as it likes; a single thread writes the newest report to each sink, at most once a second
and again at least every 15 s (contract §3: the website overwrites both fields before each submission). A sink
that fails never fails the run, unless it says that the document is gone or another run owns it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from superexam_rq.errors import DocumentGone, Superseded

log = logging.getLogger(__name__)

MIN_INTERVAL = 1.0
REFRESH_INTERVAL = 10.0
MAX_STEP_LENGTH = 40

Sink = Callable[[int, str], None]


class Progress:
    """Carry one run's progress (0 to 100, never falling) and step text to its sinks, from a thread of its own."""

    def __init__(self, sinks: Sequence[Sink], stop: threading.Event, clock: Callable[[], float] = time.monotonic):
        self._sinks = tuple(sinks)
        self._stop_run = stop
        self._clock = clock
        self._condition = threading.Condition()
        self._percent = 0
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
            self._percent = max(self._percent, min(100, int(percent)))
            self._step = step[:MAX_STEP_LENGTH]
            self._dirty = True
            self._condition.notify()

    def check(self) -> None:
        """Raise what a sink found out: the document is gone, or another run owns it."""
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
        written = self._clock() - MIN_INTERVAL
        while True:
            with self._condition:
                while not self._closed:
                    age = self._clock() - written
                    due = MIN_INTERVAL if self._dirty else REFRESH_INTERVAL
                    if age >= due and self._step:
                        break
                    self._condition.wait(max(due - age, 0.05))
                if self._closed:
                    return
                percent, step, self._dirty = self._percent, self._step, False
            self._write(percent, step)
            written = self._clock()
            if self._error is not None:
                self._stop_run.set()
                return

    def _write(self, percent: int, step: str) -> None:
        for sink in self._sinks:
            try:
                sink(percent, step)
            except (DocumentGone, Superseded) as error:
                self._error = error
            except Exception:
                log.warning("progress could not be written", exc_info=True)
