"""What the website does around a submission, for the command line and the demo: store, follow, show.

The PDF goes where the workers look for it, document and prompts into Firestore; progress and questions are read
from there. Submitting itself is `client`'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.api_core.exceptions import GoogleAPICallError, RetryError
from google.auth.exceptions import GoogleAuthError
from google.cloud import firestore
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from superexam_rq.config import Settings
from superexam_rq.store import READ_RETRY

SYSTEM_PROMPT = "You write exam questions for students. Ask about what the text explains, not about its wording."
CUSTOM_PROMPT = "Write about one question a page, each with four choices."

# Seconds for one call to Firestore, and between two looks at a document.
CALL_SECONDS = 10.0
LOOK_SECONDS = 0.3
RETRY = READ_RETRY.with_timeout(5.0)


class StorageError(Exception):
    """Say in one line why something could not be stored or read."""


@dataclass(frozen=True)
class StoredExam:
    """Hold what was stored for one submission: the body's ids, and what to remove if it is refused."""

    doc_id: str
    system_prompt_id: str
    custom_prompt_id: str
    file_path: str
    document: firestore.DocumentReference

    def request(self) -> dict[str, str]:
        """Return the ids as a submission's body has them."""
        return {
            "doc_id": self.doc_id,
            "system_prompt_id": self.system_prompt_id,
            "custom_prompt_id": self.custom_prompt_id,
        }


def store(
    client: firestore.Client,
    settings: Settings,
    pdf: Path,
    *,
    system: str = SYSTEM_PROMPT,
    custom: str = CUSTOM_PROMPT,
    kind: str = "cli",
) -> StoredExam:
    """Store a PDF, its document and both prompts, as the website has them when it submits.

    `kind` begins the ids. Equal prompts have equal ids, so that they do not pile up. Raises `StorageError`.
    """
    file_path = f"{int(time.time() * 1000)}-{re.sub(r'[^a-zA-Z0-9.-]', '_', pdf.name)}"
    _store_pdf(settings, pdf, file_path)
    doc_id = f"{kind}-{secrets.token_hex(8)}"
    document = client.document(settings.collection("documents"), doc_id)
    fields = {
        "title": pdf.stem,
        "filePath": file_path,
        "status": "processing",
        "currentStep": "Queuing...",
        "progress": 0,
        "createdAt": int(time.time() * 1000),
    }
    try:
        with _firestore():
            system_id = _store_prompt(client, settings.collection("system-prompts"), kind, system)
            custom_id = _store_prompt(client, settings.collection("custom-prompts"), kind, custom)
            document.set(fields, timeout=CALL_SECONDS, retry=RETRY)
    except BaseException:
        _discard_pdf(settings, file_path)
        raise
    return StoredExam(doc_id, system_id, custom_id, file_path, document)


def discard(exam: StoredExam, settings: Settings) -> None:
    """Remove a document that was not submitted, and its PDF; prompts stay for the next time."""
    with contextlib.suppress(StorageError), _firestore():
        exam.document.delete(timeout=CALL_SECONDS, retry=RETRY)
    _discard_pdf(settings, exam.file_path)


def read(document: firestore.DocumentReference) -> dict[str, Any]:
    """Return a document's fields, none if it does not exist; raises `StorageError`."""
    with _firestore():
        return document.get(timeout=CALL_SECONDS, retry=None).to_dict() or {}


def questions(document: firestore.DocumentReference, limit: int | None = None) -> list[dict[str, Any]]:
    """Return a document's questions in reading order; raises `StorageError`."""
    query = document.collection("questions")
    with _firestore():
        found = (query.limit(limit) if limit else query).stream(timeout=CALL_SECONDS, retry=RETRY)
        return [snapshot.to_dict() or {} for snapshot in found]


def follow(
    console: Console, look: Callable[[], Mapping[str, Any]], between: Callable[[], None] = lambda: None
) -> Mapping[str, Any]:
    """Show progress until what `look` returns, a document's fields, is no longer `processing`; return that."""
    columns = (TextColumn("{task.description:40}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("Queuing...", total=100)
        while True:
            found = look()
            status = found.get("status", "deleted")
            if status != "processing":
                bar.update(task, description=str(status), completed=100 if status == "ready" else None)
                return found
            bar.update(task, completed=found.get("progress", 0), description=str(found.get("currentStep", "")))
            between()
            time.sleep(LOOK_SECONDS)


def show(console: Console, found: Iterable[Mapping[str, Any]]) -> None:
    """Print questions; those of a caller's own schema as they are."""
    for question in found:
        panel = Panel(Text(_text(question)), title=Text(str(question.get("id", ""))))
        console.print(panel)


def _text(question: Mapping[str, Any]) -> str:
    try:
        lines = [str(question["questionText"]), ""]
        for choice in question["choices"]:
            mark = "✓" if choice["index"] in question["correctAnswers"] else " "
            lines.append(f"{mark} {choice['index']}. {choice['text']}")
        pages = ", ".join(str(page) for page in question["sourcePages"])
        lines += ["", f"page {pages}: {question.get('explanation', '')}"]
    except (KeyError, TypeError):
        return json.dumps(question, ensure_ascii=False, indent=2)
    return "\n".join(lines)


def _store_prompt(client: firestore.Client, collection: str, kind: str, content: str) -> str:
    prompt_id = f"{kind}-{hashlib.sha256(content.encode()).hexdigest()[:20]}"
    client.document(collection, prompt_id).set(
        {"name": f"superexam {kind}", "content": content}, timeout=CALL_SECONDS, retry=RETRY
    )
    return prompt_id


def _store_pdf(settings: Settings, pdf: Path, name: str) -> None:
    if settings.gcs_bucket_name:
        with _bucket(settings) as bucket:
            bucket.blob(name).upload_from_filename(str(pdf), content_type="application/pdf", timeout=60)
        return
    try:
        shutil.copyfile(pdf, settings.uploads_dir / name)
    except OSError as error:
        raise StorageError(
            f"{pdf.name} can't be put into UPLOADS_DIR, {settings.uploads_dir}: {error.strerror}; "
            "run this where the uploads can be written, or set GCS_BUCKET_NAME"
        ) from None


def _discard_pdf(settings: Settings, name: str) -> None:
    if settings.gcs_bucket_name:
        with contextlib.suppress(StorageError), _bucket(settings) as bucket:
            bucket.blob(name).delete(timeout=CALL_SECONDS)
    else:
        with contextlib.suppress(OSError):
            (settings.uploads_dir / name).unlink()


@contextlib.contextmanager
def _bucket(settings: Settings) -> Iterator[Any]:
    from google.cloud.storage import Client

    try:
        with contextlib.closing(Client(project=settings.google_cloud_project or None)) as client:
            yield client.bucket(settings.gcs_bucket_name)
    except (GoogleAPICallError, RetryError, GoogleAuthError, OSError) as error:
        raise StorageError(f"The bucket {settings.gcs_bucket_name} can't be used: {_reason(error)}") from None


@contextlib.contextmanager
def _firestore() -> Iterator[None]:
    try:
        yield
    except (GoogleAPICallError, RetryError, GoogleAuthError) as error:
        raise StorageError(
            f"Firestore can't be used: {_reason(error)}; `python -m superexam_rq doctor` looks closer"
        ) from None


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {getattr(error, 'message', None) or error}".splitlines()[0][:200]
