"""Telling Firestore about jobs that were cancelled before they ran, behind the caller's back.

A running job's worker tells its document itself. For a job that nobody runs the API does, after it has answered: as
best it can, since the workers' sweep finds whatever is left.
"""

from __future__ import annotations

import logging
import queue
import threading

from superexam_rq import lifecycle
from superexam_rq.queueing import JobQueue

log = logging.getLogger(__name__)

# For one call to Firestore.
DEADLINE_SECONDS = 2.0


class Settler:
    """Settle documents one after the other, in a thread that starts with the first."""

    def __init__(self, jobs: JobQueue) -> None:
        self._jobs = jobs
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def settle(self, job_id: str) -> None:
        """Bring the document of a cancelled job in line with it, soon."""
        self._waiting.put(job_id)
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="settle", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            job_id = self._waiting.get()
            try:
                lifecycle.settle(self._jobs.connection, self._jobs.settings, [job_id], deadline=DEADLINE_SECONDS)
            except Exception as error:  # noqa: BLE001 (whatever it is, the next document is still to be told)
                log.warning("job %s: its document was not told (%s); the sweep will", job_id, type(error).__name__)
