"""Firestore: read a document and its prompts, take it, show progress, publish questions, say how it ended.

A run *takes* its document by writing `jobId` and `run` into it (the fence). Each later write of that run carries
the document's last known update time as a precondition. Where that fails, somebody else wrote: the document is
read again, and if another run's fence stands there this one stops (`Superseded`); if it is only the website,
which overwrites progress before each submission, the write is repeated on top. A document is changed with
`update`, never re-created: NotFound means that the user deleted it.

Publication keeps one promise: whoever reads a `ready` document finds exactly one run's questions. What fits goes
into one commit. What does not is staged under new ids while the document is `processing`, marked by the field
`staging`, and a last commit deletes all other questions and sets `ready`; until then the old set is whole, so a
cancelled job can put it back.

Only get, get_all, update, set, delete, batches, preconditions and equality queries are used, so that any emulator
serves. Nothing here knows RQ, Flask or Gemini.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import google.auth.exceptions
from google.api_core import exceptions as google_errors
from google.api_core.retry import Retry, if_exception_type
from google.cloud import firestore

from superexam_rq.config import Settings
from superexam_rq.errors import DocumentGone, FirestoreUnavailable, PromptMissing, Superseded

log = logging.getLogger(__name__)

# Seconds for one call; a progress write is given up sooner, since the next one follows.
CALL_TIMEOUT = 10.0
PROGRESS_TIMEOUT = 5.0
# Seconds for a read, or for the publication, all tries together.
RETRY_DEADLINE = 60.0
# Firestore takes requests of up to 10 MiB; half of it leaves room for what the estimate misses.
COMMIT_BYTES = 5 * 2**20
COMMIT_WRITES = 450

# A field with this value is removed.
DELETE = firestore.DELETE_FIELD

READ_RETRY = Retry(
    predicate=if_exception_type(
        google_errors.ServiceUnavailable,
        google_errors.DeadlineExceeded,
        google_errors.InternalServerError,
        google_errors.TooManyRequests,
        google_errors.Aborted,
        google_errors.Cancelled,
    ),
    initial=0.2,
    maximum=5.0,
    timeout=RETRY_DEADLINE,
)


@contextmanager
def _firestore_errors() -> Iterator[None]:
    """Turn Google's errors into this service's; NotFound and FailedPrecondition are answers, and pass."""
    try:
        yield
    except (google_errors.NotFound, google_errors.FailedPrecondition):
        raise
    except (google_errors.PermissionDenied, google_errors.Unauthenticated) as error:
        raise FirestoreUnavailable("Firestore refused the service's credentials") from error
    except (google_errors.GoogleAPICallError, google_errors.RetryError) as error:
        raise FirestoreUnavailable("Firestore did not answer in time") from error
    except google.auth.exceptions.GoogleAuthError as error:
        raise FirestoreUnavailable("Firestore can't be used without Google credentials") from error


def connect(settings: Settings) -> firestore.Client:
    """Return a new client; only in the process that uses it, never before a fork."""
    with _firestore_errors():
        return firestore.Client(project=settings.google_cloud_project or _project(settings))


def _project(settings: Settings) -> str | None:
    # An emulator takes any project, but the client insists on one.
    return "superexam" if settings.firestore_emulator_host else None


@dataclass(frozen=True)
class Prompts:
    """Hold the texts that say what questions to write."""

    system: str
    custom: str


class ExamStore:
    """Read and write the exams of one Firestore database."""

    def __init__(self, client: firestore.Client, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self._client = client
        self._settings = settings
        self._clock = clock

    def _collection(self, name: str) -> firestore.CollectionReference:
        return self._client.collection(self._settings.collection(name))

    def document(self, doc_id: str) -> firestore.DocumentReference:
        """Return the reference of a document."""
        return self._client.document(self._settings.collection("documents"), doc_id)

    def read(self, reference: firestore.DocumentReference) -> firestore.DocumentSnapshot:
        """Return a document's snapshot; raises `DocumentGone` if there is none."""
        with _firestore_errors():
            snapshot = reference.get(retry=READ_RETRY, timeout=CALL_TIMEOUT)
        if not snapshot.exists:
            raise DocumentGone("The document does not exist any more")
        return snapshot

    def take(self, doc_id: str, job_id: str, run: int) -> OwnedDocument:
        """Make the document this run's and set it to `processing`; raises `Superseded` if a later run has it."""
        owned = OwnedDocument(self, self.document(doc_id), f"{job_id}:{run}")
        snapshot = self.read(owned.reference)
        owner, _, number = str(snapshot.get("run") if "run" in (snapshot.to_dict() or {}) else "").rpartition(":")
        if owner == job_id and int(number) > run:
            raise Superseded("a later run has the document")
        owned.adopt(snapshot)
        owned.update(
            {
                "status": "processing",
                "progress": 0,
                "currentStep": "Starting",
                "error": DELETE,
                "jobId": job_id,
                "run": owned.run,
            },
            taking=True,
        )
        return owned

    def prompts(self, system_prompt_id: str, custom_prompt_id: str) -> Prompts:
        """Return both prompts' texts; raises `PromptMissing` naming the one that is missing or empty."""
        system = self._collection("system-prompts").document(system_prompt_id)
        custom = self._collection("custom-prompts").document(custom_prompt_id)
        with _firestore_errors():
            found = self._client.get_all([system, custom], retry=READ_RETRY, timeout=CALL_TIMEOUT)
            texts = {snapshot.reference.path: _content(snapshot) for snapshot in found}
        for kind, reference in (("system", system), ("custom", custom)):
            if not texts.get(reference.path, "").strip():
                raise PromptMissing(f"The {kind} prompt {reference.id!r} does not exist or is empty")
        return Prompts(texts[system.path], texts[custom.path])

    def question_ids(self, reference: firestore.DocumentReference) -> list[str]:
        """Return the ids of all questions under a document."""
        with _firestore_errors():
            query = reference.collection("questions").select([])
            return [snapshot.id for snapshot in query.stream(retry=READ_RETRY, timeout=RETRY_DEADLINE)]

    def now_ms(self) -> int:
        """Return Unix milliseconds."""
        return int(self._clock() * 1000)

    def commit(self, build: Callable[[firestore.WriteBatch], None], timeout: float = CALL_TIMEOUT) -> Any:
        """Commit one batch, once, and return the time of the document's update."""
        batch = self._client.batch()
        build(batch)
        with _firestore_errors():
            results = batch.commit(retry=None, timeout=timeout)
        return results[0].update_time

    def unchanged_since(self, update_time: Any) -> Any:
        """Return the precondition that a document was not written since."""
        return self._client.write_option(last_update_time=update_time)


class OwnedDocument:
    """Hold a document for one run: its content when it was taken, and the writes of that run."""

    def __init__(self, store: ExamStore, reference: firestore.DocumentReference, run: str) -> None:
        self._store = store
        self.reference = reference
        self.run = run
        self.fields: dict[str, Any] = {}
        self._update_time: Any = None
        self._updated_at = 0

    def adopt(self, snapshot: firestore.DocumentSnapshot) -> None:
        """Take a snapshot as the state that the next write builds upon."""
        self.fields = snapshot.to_dict() or {}
        self._update_time = snapshot.update_time

    def progress(self, percent: int, step: str) -> None:
        """Show how far the run is; raises `FirestoreUnavailable` after one try."""
        self.update({"progress": percent, "currentStep": step}, deadline=0, timeout=PROGRESS_TIMEOUT)

    def step(self, text: str) -> None:
        """Show a step, and leave the progress as it is."""
        self.update({"currentStep": text}, deadline=PROGRESS_TIMEOUT, timeout=PROGRESS_TIMEOUT)

    def publish(
        self, questions: Sequence[Mapping[str, Any]], fields: Mapping[str, Any], stop: Callable[[], None] = lambda: None
    ) -> None:
        """Make `questions` the document's only ones and set `ready`, so that no reader sees a mixture.

        Each question holds its `id`. `stop` is called before each commit and may raise.
        """
        old = self._store.question_ids(self.reference)
        new = {question["id"] for question in questions}
        stale = [question_id for question_id in old if question_id not in new]
        last = {
            "status": "ready",
            "questionCount": len(questions),
            "progress": DELETE,
            "currentStep": DELETE,
            "error": DELETE,
            "staging": DELETE,
            **fields,
        }
        chunks = list(_chunks(questions))
        if len(chunks) > 1 or len(questions) + len(stale) > COMMIT_WRITES:
            for chunk in chunks:
                stop()
                self.update({"staging": self.run}, questions=chunk)
            chunks = []
        stop()
        self.update(last, questions=chunks[0] if chunks else (), delete=stale)

    def fail(self, text: str) -> None:
        """Set `failed` with a text for teachers."""
        self.update(
            {
                "status": "failed",
                "error": text,
                "progress": DELETE,
                "currentStep": DELETE,
            }
        )

    def update(
        self,
        fields: Mapping[str, Any],
        *,
        questions: Sequence[Mapping[str, Any]] = (),
        delete: Sequence[str] = (),
        taking: bool = False,
        deadline: float = RETRY_DEADLINE,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Write fields of the document, and questions with it, in one commit guarded by the fence.

        Repeats for `deadline` seconds where Firestore is away. Where the outcome of a try is not known, the
        document tells: `updatedAt` is unique for each write of a run.
        """
        self._updated_at = max(self._updated_at + 1, self._store.now_ms())
        written = {**fields, "updatedAt": self._updated_at}
        collection = self.reference.collection("questions")

        def build(batch: firestore.WriteBatch) -> None:
            batch.update(self.reference, written, option=self._store.unchanged_since(self._update_time))
            for question in questions:
                batch.set(collection.document(question["id"]), dict(question))
            for question_id in delete:
                batch.delete(collection.document(question_id))

        give_up = time.monotonic() + deadline
        pause = 0.1
        while True:
            try:
                self._update_time = self._store.commit(build, timeout)
            except (google_errors.NotFound, google_errors.FailedPrecondition):
                if self._look_again(taking):
                    return
            except FirestoreUnavailable:
                if time.monotonic() + pause > give_up:
                    raise
                time.sleep(pause)
                pause = min(pause * 2, 5.0)
                if self._look_again(taking):
                    return
            else:
                return

    def _look_again(self, taking: bool) -> bool:
        """Read the document after a write that failed; return whether the write had been applied all the same."""
        snapshot = self._store.read(self.reference)
        found = snapshot.to_dict() or {}
        mine = found.get("run") == self.run
        if mine and found.get("updatedAt") == self._updated_at:
            self._update_time = snapshot.update_time
            return True
        if not mine and not taking:
            raise Superseded("another run has the document")
        self.adopt(snapshot)
        return False


def _content(snapshot: firestore.DocumentSnapshot) -> str:
    content = (snapshot.to_dict() or {}).get("content") if snapshot.exists else None
    return content if isinstance(content, str) else ""


def _chunks(questions: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Split questions so that each part fits one commit."""
    chunk: list[Mapping[str, Any]] = []
    size = 0
    for question in questions:
        # Firestore's encoding repeats field names and adds a few bytes a value: measured below 1.5 times the JSON.
        weight = 512 + len(json.dumps(question).encode()) * 3 // 2
        if chunk and (size + weight > COMMIT_BYTES or len(chunk) >= COMMIT_WRITES):
            yield chunk
            chunk, size = [], 0
        chunk.append(question)
        size += weight
    yield chunk
