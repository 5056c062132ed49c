"""What RQ imports by name: a thin shell around the pipeline.

It opens the connections of one run (after the fork, so nothing is inherited), tells RQ, the job's meta and
Firestore what came of it, and decides nothing about exams.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

from redis import Redis
from rq import get_current_job
from rq.job import Job
from rq.timeouts import JobTimeoutException

from superexam_rq import errors, gemini, generation, pipeline, store
from superexam_rq.checkpoints import Checkpoints
from superexam_rq.config import Settings
from superexam_rq.progress import Progress
from superexam_rq.queueing import announce, next_run, retry_step
from superexam_rq.throttle import Throttle

log = logging.getLogger(__name__)


def process(**request: Any) -> dict[str, Any]:
    """Run one attempt of a job; `request` holds the fields of `queueing.JobRequest`."""
    job = get_current_job()
    if job is None:
        raise RuntimeError("process runs inside an RQ worker only")
    settings = Settings.from_env(os.environ, Path(".env"))
    run = Run(job, settings)
    try:
        return run.perform(request)
    except errors.Superseded:
        # The parent takes exit code 0 as "nothing to do"; an exception would start a second chain of retries.
        log.warning("job %s: another run owns the document; this one stops", job.id)
        logging.shutdown()
        os._exit(0)
    except Exception as error:
        run.record_failure(_translate(error, settings))
        raise


def _translate(error: Exception, settings: Settings) -> Exception:
    if isinstance(error, JobTimeoutException):
        return errors.JobTimeout(f"The job took longer than {settings.job_timeout} s")
    return error


class Run:
    """Hold one attempt: its job, its settings, and the document once it is taken."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self.job = job
        self.settings = settings
        self.redis: Redis = job.connection
        self.document: store.OwnedDocument | None = None
        self.cost = generation.Cost()
        self.max_attempts = int(job.meta.get("max_attempts", 1))
        self.attempt = self.max_attempts - (job.retries_left or 0)

    def perform(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take the document, run the pipeline, publish; return a summary for RQ's result."""
        stop = threading.Event()
        self._save_meta(attempt=self.attempt, progress=0, step="Starting", error=None, error_code=None)
        exams = store.ExamStore(store.connect(self.settings), self.settings)
        self.document = exams.take(request["doc_id"], self.job.id, next_run(self.redis, self.job.id))
        task = pipeline.Task(**request)
        services = pipeline.Services(
            client=gemini.connect(self.settings),
            throttle=Throttle(self.redis, self.settings),
            checkpoints=Checkpoints(self.redis, self.settings),
        )
        with Progress([self._show, self.document.progress], stop) as progress:
            exam = pipeline.make_exam(
                task,
                self.document.fields,
                prompts=exams.prompts(task.system_prompt_id, task.custom_prompt_id),
                services=services,
                settings=self.settings,
                cost=self.cost,
                progress=progress,
                stop=stop,
            )
            progress.check()
        self.document.publish(exam.questions, self._published_fields(request, exam))
        summary = {"question_count": len(exam.questions), "usage": self.cost.summary()}
        self._save_meta(progress=100, step="Done", **summary)
        log.info("job %s: document %s is ready: %s", self.job.id, task.doc_id, summary)
        return summary

    def _published_fields(self, request: dict[str, Any], exam: pipeline.Exam) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "systemPromptId": request["system_prompt_id"],
            "customPromptId": request["custom_prompt_id"],
            "warnings": exam.warnings or store.DELETE,
        }
        if exam.schema_text is not None:
            fields["schema"] = exam.schema_text
        return fields

    def record_failure(self, error: Exception) -> None:
        """Write what the failure means: no retry for a permanent one, its text where the last run failed."""
        failure = errors.classify(error)
        if not failure.retryable:
            self.job.retries_left = 0
            self.job.save(include_meta=False, include_result=False)
        if self.job.should_retry:
            step = retry_step(self.job.get_retry_interval(), self.attempt + 1, self.max_attempts)
            self._save_meta(step=step, last_error=failure.text)
            self._tell_firestore(lambda document: document.step(step))
            return
        text = failure.final_text(self.attempt)
        self._save_meta(step="Failed", error=text, error_code=failure.code, usage=self.cost.summary())
        self._tell_firestore(lambda document: document.fail(text))

    def _tell_firestore(self, write: Any) -> None:
        if self.document is None:
            return
        try:
            write(self.document)
        except (errors.DocumentGone, errors.Superseded, errors.FirestoreUnavailable) as error:
            log.warning("job %s: Firestore was not told: %s", self.job.id, error)

    def _show(self, percent: int, step: str) -> None:
        self._save_meta(progress=percent, step=step)

    def _save_meta(self, **fields: Any) -> None:
        self.job.meta.update(fields)
        self.job.save_meta()
        announce(self.redis, self.settings, self.job.id)
