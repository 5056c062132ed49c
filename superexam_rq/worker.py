"""ExamWorker: what only a subclass of RQ's worker can do. What a job does is in `jobs`.

Started with RQ's own command, `rq worker -S json -w superexam_rq.worker.ExamWorker --with-scheduler superexam`.
Importing this module imports what a job needs, once, before the worker forks: a work-horse then starts in
milliseconds instead of a second and shares that memory. Clients are built in the horse, never here.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from rq.job import Job

from superexam_rq import gemini, jobs, logs  # noqa: F401  (jobs: preloaded for the horse)
from superexam_rq.config import Settings
from superexam_rq.errors import ConfigError, SuperExamError
from superexam_rq.processes import die_with_parent
from superexam_rq.queueing import check_key_prefix
from superexam_rq.worker_logs import LoggedWorker


class ExamWorker(LoggedWorker):
    """Run exam jobs; set by itself what a good worker needs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            self.settings = Settings.from_env(os.environ, Path(".env"))
            check_key_prefix(self.settings)
            if not self.settings.gemini_api_key:
                raise ConfigError("GEMINI_API_KEY is not set: a worker needs the key of the Gemini API")
        except ConfigError as error:
            sys.exit(f"superexam: {error}")
        logs.configure(self.settings)
        gemini.preload(self.settings)
        super().__init__(*args, **kwargs)

    def setup_work_horse_signals(self) -> None:
        """Make the work-horse die with this worker: an orphan would run beside its own retry."""
        die_with_parent(signal.SIGKILL)
        super().setup_work_horse_signals()  # type: ignore[no-untyped-call]

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Log an expected failure in one line; a traceback is for defects."""
        error = exc_info[1]
        if isinstance(error, SuperExamError):
            self.log.warning("job %s failed: %s (%s)", job.id, error, error.code)
            return
        super().handle_exception(job, *exc_info)
