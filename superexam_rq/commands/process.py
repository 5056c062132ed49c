"""The command `process FILE.pdf`: the whole way of one document, as the website goes it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from superexam_rq.client import ServiceClient, ServiceError
from superexam_rq.commands.options import load_settings, service, service_options

if TYPE_CHECKING:
    from superexam_rq.website import StoredExam

# The service's status for an option that it does not take.
INVALID = 422
# The usual code of a program that Ctrl-C ended.
INTERRUPTED = 130
# Seconds between two looks at the job, and how long a document may lag behind a job that has ended.
JOB_SECONDS = 1.0
LAG_SECONDS = 15.0


class Text(click.ParamType[str]):
    """Take a text, or @FILE for the text of a file."""

    name = "text|@file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text."""
        text = str(value)
        if text.startswith("@"):
            try:
                text = Path(text[1:]).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                self.fail(f"{text[1:]} can't be read: {error}", param, ctx)
        if not text.strip():
            self.fail("it is empty", param, ctx)
        return text


class JsonFile(click.ParamType[dict[str, Any]]):
    """Take the name of a file that holds one JSON object."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Return the object."""
        try:
            found = json.loads(Path(str(value)).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            self.fail(f"{value} can't be read as JSON: {error}", param, ctx)
        if not isinstance(found, dict):
            self.fail(f"{value} holds no JSON object", param, ctx)
        return found


@click.command()
@click.argument("pdf", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--prompt", type=Text(), help="What questions to write; @FILE reads it from a file.")
@click.option("--system", type=Text(), help="The system prompt; @FILE reads it from a file.")
@click.option("--pages", help="Only these pages, such as 3-40,55.")
@click.option("--max-questions", type=click.IntRange(1), help="At most so many questions.")
@click.option("--model", help="Another model than GEMINI_MODEL.")
@click.option("--schema", type=JsonFile(), help="A JSON Schema for one question or for the whole answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a text.")
@service_options
def process(
    pdf: Path,
    prompt: str | None,
    system: str | None,
    as_json: bool,
    url: str | None,
    key: str | None,
    **options: Any,
) -> None:
    """Make an exam of FILE.pdf with a running service, and print it.

    Stores the PDF where the workers look for it, document and prompts in Firestore, submits, and follows.
    Ends with 0 if the exam is ready, 1 if it failed, 2 if the command was wrong. After Ctrl-C the job goes on.
    """
    from superexam_rq import store, website
    from superexam_rq.errors import FirestoreUnavailable

    settings = load_settings()
    messages = Console(stderr=True)
    api = service(settings, url, key)
    try:
        if not api.health().get("workers"):
            click.echo("No worker is running: the job will wait for one.", err=True)
        client = store.connect(settings)
        prompts = {"system": system or website.SYSTEM_PROMPT, "custom": prompt or website.CUSTOM_PROMPT}
        exam = website.store(client, settings, pdf, **prompts)
        try:
            job_id = api.submit(**exam.request(), **options)
        except BaseException:
            website.discard(exam, settings)
            raise
        click.echo(f"document {exam.doc_id}, job {job_id}", err=True)
        try:
            found = website.follow(messages, Watch(api, exam, job_id).look, _interruptible())
            result = _result(api, exam, job_id, found)
        except KeyboardInterrupt:
            program = click.get_current_context().find_root().info_name
            click.echo(f"The job goes on. Look at it: {program} jobs show {job_id}", err=True)
            click.echo(f"Cancel it: {program} jobs cancel {job_id}", err=True)
            sys.exit(INTERRUPTED)
    except (ServiceError, website.StorageError, FirestoreUnavailable) as error:
        refused = isinstance(error, ServiceError) and error.status == INVALID
        raise (click.UsageError if refused else click.ClickException)(str(error)) from None
    finally:
        api.close()
    if as_json:
        click.echo(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        _print(result)
    sys.exit(0 if result["status"] == "ready" else 1)


def _interruptible() -> Callable[[], None]:
    """Note Ctrl-C from here on, and return what raises it: in the middle of a gRPC call it could hang or be lost."""
    pressed: list[int] = []

    def press(number: int, _frame: Any) -> None:
        if pressed:
            os._exit(INTERRUPTED)
        pressed.append(number)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    # A shell's background job has it ignored, and is not meant.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, press)
    return check


class Watch:
    """Look at a document, and at its job where the document does not tell."""

    def __init__(
        self, api: ServiceClient, exam: StoredExam, job_id: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._exam = exam
        self._job_id = job_id
        self._clock = clock
        self._job: dict[str, Any] = {}
        self._looked = float("-inf")
        self._ended: float | None = None

    def look(self) -> Mapping[str, Any]:
        """Return the document's fields, or the same made of the job object where Firestore does not answer."""
        from superexam_rq import website

        try:
            fields = website.read(self._exam.document)
        except website.StorageError:
            return _as_fields(self._look_at_job())
        if fields.get("status") != "processing":
            return fields
        job = self._look_at_job()
        if job.get("status") == "pending" and job.get("queue_position"):
            return fields | {"currentStep": f"Waiting, number {job['queue_position']} in the queue"}
        return _as_fields(job) if self._has_lagged(job) else fields

    def _look_at_job(self) -> dict[str, Any]:
        if self._clock() - self._looked >= JOB_SECONDS:
            self._looked = self._clock()
            try:
                self._job = self._api.job(self._job_id)
            except ServiceError as error:
                self._job = {"status": "unknown"} if error.status == 404 else self._job
        return self._job

    def _has_lagged(self, job: Mapping[str, Any]) -> bool:
        """Tell whether the job has ended so long ago that nobody will tell the document."""
        if _as_fields(job)["status"] == "processing":
            return False
        self._ended = self._clock() if self._ended is None else self._ended
        return self._clock() - self._ended > LAG_SECONDS


def _as_fields(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that a document has while its job is like this."""
    status = job.get("status", "processing")
    names = {"pending": "processing", "completed": "ready"}
    return {
        "status": names.get(status, status),
        "progress": job.get("progress", 0),
        "currentStep": job.get("current_step", "Waiting for an answer"),
        "error": job.get("error"),
    }


def _result(api: ServiceClient, exam: StoredExam, job_id: str, found: Mapping[str, Any]) -> dict[str, Any]:
    from superexam_rq import website

    try:
        job = api.job(job_id)
    except ServiceError:
        job = {}
    status = str(found.get("status", "deleted"))
    if status != "ready" and job.get("status") in {"failed", "cancelled"}:
        status = str(job["status"])
    questions = website.questions(exam.document) if status == "ready" else []
    return {
        "status": status,
        "job_id": job_id,
        "doc_id": exam.doc_id,
        "question_count": len(questions),
        "questions": questions,
        "warnings": found.get("warnings", []),
        "error": None if status == "ready" else found.get("error") or job.get("error") or f"The document is {status}",
        "error_code": job.get("error_code"),
        "usage": job.get("usage", {}),
    }


def _print(result: Mapping[str, Any]) -> None:
    from superexam_rq import website

    if result["status"] != "ready":
        click.echo(f"{result['status'].capitalize()}: {result['error']}", err=True)
        return
    website.show(Console(highlight=False), result["questions"])
    click.echo(f"{result['question_count']} questions")
    for warning in result["warnings"]:
        click.echo(f"Warning: {warning}", err=True)
