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

from rq import get_current_job

from superexam_rq import gemini, lifecycle, pipeline, store
from superexam_rq.config import Settings
from superexam_rq.errors import Superseded
from superexam_rq.progress import Progress

log = logging.getLogger(__name__)


def process(**request: Any) -> dict[str, Any]:
    """Run one attempt of a job; `request` holds the fields of `queueing.JobRequest`."""
    job = get_current_job()
    if not isinstance(job, lifecycle.ExamJob):
        raise RuntimeError("process runs inside an ExamWorker only")
    try:
        return Run(job, Settings.from_env(os.environ, Path(".env"))).perform(request)
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

    def perform(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take the document, run the pipeline, publish; return a summary for RQ's result."""
        self._check()
        with contextlib.closing(store.connect(self.settings)) as client:
            exams = store.ExamStore(client, self.settings)
            document = exams.take(request["doc_id"], self.job.id, self.job.run, self._check)
            if document.is_published:
                summary = {"question_count": int(document.fields.get("questionCount", 0))}
            else:
                summary = self._make_exam(pipeline.Task(**request), exams, document)
        self._save_meta(progress=100, step="Done", **summary)
        log.info(
            "job %s: document %s is ready, %d questions", self.job.id, request["doc_id"], summary["question_count"]
        )
        return summary

    def _make_exam(self, task: pipeline.Task, exams: store.ExamStore, document: store.OwnedDocument) -> dict[str, Any]:
        stop = threading.Event()
        with Progress([self._show, document.progress], stop, poll=self._check) as progress:
            exam = pipeline.make_exam(
                task,
                document.fields,
                prompts=exams.prompts(task.system_prompt_id, task.custom_prompt_id),
                client=gemini.connect(self.settings),
                settings=self.settings,
                progress=progress,
                stop=stop,
            )
            progress.check()
        document.publish(exam.questions, self._published_fields(task, exam), self._check)
        return {"question_count": len(exam.questions), "usage": exam.usage}

    def _published_fields(self, task: pipeline.Task, exam: pipeline.Exam) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "systemPromptId": task.system_prompt_id,
            "customPromptId": task.custom_prompt_id,
            "warnings": exam.warnings or store.DELETE,
        }
        if exam.schema_text is not None:
            fields["schema"] = exam.schema_text
        return fields

    def _check(self) -> None:
        lifecycle.check(self.job.connection, self.settings, self.job)

    def _show(self, percent: int, step: str) -> None:
        self._save_meta(progress=percent, step=step)

    def _save_meta(self, **fields: Any) -> None:
        self.job.meta.update(fields)
        self.job.save_meta()  # type: ignore[no-untyped-call]
        lifecycle.announce(self.job.connection, self.settings, self.job.id)
