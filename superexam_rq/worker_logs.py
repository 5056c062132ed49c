"""The worker's side of `logs`: which job a line of the worker, or of its work-horse, is about."""

from __future__ import annotations

from typing import Any

from rq import Queue, Worker
from rq.executions import Execution
from rq.job import Job

from superexam_rq import logs
from superexam_rq.config import Settings


class LoggedWorker(Worker):
    """Be RQ's worker, with the ids of the job under way in each line."""

    settings: Settings

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        """Fork; from here on this process is about the job."""
        logs.bind(**_ids(job))
        super().fork_work_horse(job, queue)

    def monitor_work_horse(self, job: Job, queue: Queue, execution: Execution) -> None:
        """Wait for the child, and see to what it left; then this process is about nothing in particular again."""
        try:
            super().monitor_work_horse(job, queue, execution)
        finally:
            logs.unbind()

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        """Run the job in the child, which does nothing else: its threads' lines have the ids too."""
        logs.unbind()
        logs.configure(self.settings, **_ids(job))
        super().main_work_horse(job, queue)


def _ids(job: Job) -> dict[str, Any]:
    attempt = int(job.meta.get("max_attempts", 1)) - (job.retries_left or 0)
    return {"job_id": job.id, "doc_id": job.meta.get("doc_id"), "attempt": attempt}
