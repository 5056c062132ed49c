"""What RQ imports by name: a thin shell around the pipeline.

It opens the connections of one run (after the fork, so nothing is inherited) and shows its progress in the job's
meta and in Firestore. What follows from a failure is decided in `lifecycle` and done by the worker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError
from rq import get_current_job

from superexam_rq import gemini, generation, lifecycle, metrics, pipeline, store
from superexam_rq.checkpoints import Checkpoints
from superexam_rq.config import Settings
from superexam_rq.errors import Cancelled, SuperExamError, Superseded
from superexam_rq.progress import Progress
from superexam_rq.request import JobRequest
from superexam_rq.throttle import Throttle

log = logging.getLogger(__name__)


def process(**request: Any) -> dict[str, Any]:
    """Run one attempt of a job; `request` holds its fields."""
    job = get_current_job()
    if not isinstance(job, lifecycle.ExamJob):
        raise RuntimeError("process runs inside an ExamWorker only")
    try:
        return Run(job, Settings.from_env(os.environ, Path(".env"))).perform(JobRequest(**request))
    except Superseded:
        # The parent takes exit code 0 as "nothing to do"; an exception would start a second chain of retries.
        log.warning("job %s: another run has taken over; this one stops", job.id)
        logging.shutdown()
        os._exit(0)


class Run:
    """Hold one attempt: its job and its settings."""

    def __init__(self, job: lifecycle.ExamJob, settings: Settings) -> None:
        self.job = job
        self.settings = settings
        # Percent; not 0 where the run goes on with an attempt that was handed back.
        self.reached = int(job.meta.get("progress", 0))

    def perform(self, task: JobRequest) -> dict[str, Any]:
        """Take the document, run the pipeline, publish; return a summary for RQ's result."""
        self._check()
        with contextlib.closing(store.connect(self.settings)) as client:
            exams = store.ExamStore(client, self.settings)
            document = exams.take(task.doc_id, self.job.id, self.job.run, self._check, self.reached)
            if document.already_published:
                summary = {"question_count": int(document.fields.get("questionCount", 0))}
            else:
                summary = self._process(task, exams, document)
        self._save_meta(progress=100, step="Done", **summary)
        log.info("job %s: document %s is ready: %s", self.job.id, task.doc_id, summary)
        return summary

    def _process(self, task: JobRequest, exams: store.ExamStore, document: store.OwnedDocument) -> dict[str, Any]:
        stop, cost = threading.Event(), generation.Cost()
        before = dict(self.job.meta.get("usage", {}))

        def usage_so_far() -> dict[str, Any]:
            return generation.total_cost(before, cost.summary())

        client = gemini.connect(self.settings, self.job.connection)
        services = pipeline.Services(
            client=client,
            throttle=Throttle(self.job.connection, self.settings),
            checkpoints=Checkpoints(self.job.connection, self.settings),
        )
        usage = metrics.UsageRecorder(self.job.connection, cost.summary)

        def poll() -> None:
            self._check()
            if self.job.meta.get("usage") != (so_far := usage_so_far()):
                self._save_meta(usage=so_far)

        sinks = [self._show, document.progress, lambda _percent, _step: usage.flush()]
        with (
            contextlib.closing(client),
            Progress(sinks, stop, poll=poll, percent=self.reached, expected=(SuperExamError, RedisError)) as progress,
        ):
            try:
                exam = pipeline.make_exam(
                    task,
                    document.fields,
                    prompts=exams.prompts(task.system_prompt_id, task.custom_prompt_id),
                    services=services,
                    settings=self.settings,
                    cost=cost,
                    progress=progress,
                    stop=stop,
                )
            except Cancelled:
                progress.check()  # why it was told to stop
                raise
            finally:
                self.job.meta["usage"] = usage_so_far()
                usage.flush()
            progress.check()
        self._save_meta(publishing=self.job.run)
        document.publish(exam.questions, self._published_fields(task, exam), self._check)
        return {"question_count": len(exam.questions), "usage": usage_so_far()}

    def _published_fields(self, task: JobRequest, exam: pipeline.Exam) -> dict[str, Any]:
        return {
            "systemPromptId": task.system_prompt_id,
            "customPromptId": task.custom_prompt_id,
            "warnings": exam.warnings or store.DELETE,
            "schema": exam.schema_text or store.DELETE,
        }

    def _check(self) -> None:
        lifecycle.check(self.job.connection, self.settings, self.job)

    def _show(self, percent: int, step: str) -> None:
        self._save_meta(progress=percent, step=step)

    def _save_meta(self, **fields: Any) -> None:
        self.job.meta.update(fields)
        self.job.save_meta()
        lifecycle.announce(self.job.connection, self.settings, self.job.id)
