"""Firestore: read a document and its prompts, take it, show progress, publish questions, say how it ended.

A run *takes* its document by writing its token into the field `run` (the fence). Each later write of that run
carries the document's last known update time as a precondition. Where that fails, somebody else wrote: the
document is read again. If it is only the website, which overwrites progress before each submission, the write is
repeated on top. If another run stands there, whoever knows the truth about jobs is asked (`check`): the run that
is no longer wanted stops (`Superseded`), the other takes the document back. A document is changed with `update`,
never re-created: NotFound means that the user deleted it.

Publication keeps one promise: whoever reads a `ready` document finds exactly one run's questions. What fits goes
into one commit. What does not is staged under new ids while the document is `processing`; the field `staging`
holds the ending of those ids. Until `staging` says `complete`, the old set is whole and the new ids are leftovers;
from then on the new set is whole and the others are. Whoever has the document next removes them.

Only get, get_all, update, set, delete, batches, preconditions and equality queries are used, so that any emulator
serves. Nothing here knows RQ, Flask or Gemini.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import google.auth
import google.auth.exceptions
from google.api_core import exceptions as google_errors
from google.api_core.retry import Retry, if_exception_type
from google.cloud import firestore

from superexam_rq.config import Settings
from superexam_rq.errors import Cancelled, DocumentGone, FirestoreUnavailable, PromptMissing, Superseded

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


class RequestRefused(FirestoreUnavailable):
    """Report a request that Firestore will never take as it is; most often it is too large."""


@contextmanager
def _firestore_errors(*answers: type[google_errors.GoogleAPICallError]) -> Iterator[None]:
    """Turn Google's errors into this service's; those that are `answers` pass."""
    try:
        yield
    except answers:
        raise
    except (google_errors.NotFound, google_errors.FailedPrecondition) as error:
        # Not of a document, but of the project or the database.
        raise FirestoreUnavailable("Firestore has no such database: check GOOGLE_CLOUD_PROJECT") from error
    except google_errors.InvalidArgument as error:
        raise RequestRefused("Firestore refused a write") from error
    except (google_errors.PermissionDenied, google_errors.Unauthenticated) as error:
        raise FirestoreUnavailable("Firestore refused the service's credentials") from error
    except (google_errors.GoogleAPICallError, google_errors.RetryError) as error:
        raise FirestoreUnavailable("Firestore did not answer in time") from error
    except google.auth.exceptions.GoogleAuthError as error:
        raise FirestoreUnavailable("Firestore can't be used without Google credentials") from error


def connect(settings: Settings) -> firestore.Client:
    """Return a new client; only in the process that uses it, never before a fork.

    The project is the settings', else the credentials': a user's login knows the one that pays (`quota_project_id`).
    Raises `FirestoreUnavailable` without credentials or project.
    """
    with _firestore_errors():
        if settings.firestore_emulator_host:
            # Google's client reads the environment only, while the setting may stand in .env.
            os.environ["FIRESTORE_EMULATOR_HOST"] = settings.firestore_emulator_host
            # An emulator takes any project, but the client insists on one.
            return firestore.Client(project=settings.google_cloud_project or "superexam")
        credentials, project = google.auth.default(scopes=["https://www.googleapis.com/auth/datastore"])
        project = settings.google_cloud_project or project or getattr(credentials, "quota_project_id", None)
        if not project:
            raise FirestoreUnavailable("Firestore's project is not known: set GOOGLE_CLOUD_PROJECT")
        return firestore.Client(project=project, credentials=credentials)


@dataclass(frozen=True)
class Outcome:
    """Say what a document is to show: `waiting` for another run, `failed`, or `cancelled`, with the text for it.

    Of a waiting one also how far it has come.
    """

    kind: Literal["waiting", "failed", "cancelled"]
    text: str = ""
    percent: int = 0


@dataclass(frozen=True)
class Prompts:
    """Hold the texts that say what questions to write."""

    system: str
    custom: str


class ExamStore:
    """Read and write the exams of one Firestore database."""

    def __init__(
        self,
        client: firestore.Client,
        settings: Settings,
        clock: Callable[[], float] = time.time,
        deadline: float = RETRY_DEADLINE,
    ) -> None:
        self._client = client
        self._settings = settings
        self._clock = clock
        self.deadline = deadline
        self._retry = READ_RETRY.with_timeout(deadline)
        self._timeout = min(CALL_TIMEOUT, deadline)

    def _collection(self, name: str) -> firestore.CollectionReference:
        return self._client.collection(self._settings.collection(name))

    def document(self, doc_id: str) -> firestore.DocumentReference:
        """Return the reference of a document."""
        return self._client.document(self._settings.collection("documents"), doc_id)

    def read(self, reference: firestore.DocumentReference) -> firestore.DocumentSnapshot:
        """Return a document's snapshot; raises `DocumentGone` if there is none."""
        with _firestore_errors():
            snapshot = reference.get(retry=self._retry, timeout=self._timeout)
        if not snapshot.exists:
            raise DocumentGone("The document does not exist any more")
        return snapshot

    def take(
        self, doc_id: str, job_id: str, run: int, check: Callable[[], None] = lambda: None, percent: int = 0
    ) -> OwnedDocument:
        """Make the document this run's and set it to `processing`, unless an earlier run of the job published it.

        It shows `percent` as progress, not 0 where a run goes on with an attempt. `check` raises `Superseded` where
        the run is no longer wanted; it is asked whenever another run's mark is found. Raises `DocumentGone`, and
        removes what earlier runs left under a deleted document.
        """
        owned = OwnedDocument(self, self.document(doc_id), job_id, f"{job_id}:{run}", check)
        try:
            owned.adopt(self.read(owned.reference))
            check()
            owned.already_published = owned.is_published()
            if not owned.already_published:
                owned.show(percent, "Starting")
                owned.update({"error": DELETE})
                owned.remove_leftovers()
        except DocumentGone:
            self.remove_orphans(owned.reference)
            raise
        return owned

    def settle(
        self, doc_id: str, job_id: str, outcome: Outcome, check: Callable[[], None], seen: datetime | None = None
    ) -> bool:
        """Write how a job ended that has no run to do it; return whether the document was waiting for that.

        Does nothing where the document is not `processing`. `check` raises `Superseded` or `Cancelled` where the
        outcome is not the truth any more. With `seen`, an update time, nothing is done if anybody has written
        since. A run of the job that still lives is fenced out.
        """

        def untouched() -> None:
            if seen is not None:
                raise Superseded("somebody has written to the document")
            if owned.fields.get("status") != "processing":
                raise Superseded("the document has ended")
            check()

        owned = OwnedDocument(
            self, self.document(doc_id), job_id, f"{job_id}:settled-{secrets.token_hex(4)}", untouched
        )
        try:
            owned.adopt(snapshot := self.read(owned.reference))
            check()
            if seen is not None and snapshot.update_time != seen:
                return False
            if owned.fields.get("status") != "processing":
                return False
            if outcome.kind == "waiting":
                owned.show(outcome.percent, outcome.text)
                owned.update({}, deadline=PROGRESS_TIMEOUT, timeout=PROGRESS_TIMEOUT)
            elif outcome.kind == "failed":
                owned.fail(outcome.text)
            else:
                owned.put_back()
        except DocumentGone:
            self.remove_orphans(owned.reference)
            return False
        except (Cancelled, Superseded):
            return False
        return True

    def processing(self) -> list[firestore.DocumentSnapshot]:
        """Return all documents that are `processing`, with `run` and `currentStep` only."""
        documents = self._collection("documents")
        query = documents.where(filter=firestore.FieldFilter("status", "==", "processing"))
        with _firestore_errors():
            return list(query.select(["run", "currentStep"]).stream(retry=self._retry, timeout=self.deadline))

    def prompts(self, system_prompt_id: str, custom_prompt_id: str) -> Prompts:
        """Return both prompts' texts; raises `PromptMissing` naming the one that is missing or empty."""
        system = self._collection("system-prompts").document(system_prompt_id)
        custom = self._collection("custom-prompts").document(custom_prompt_id)
        with _firestore_errors():
            found = self._client.get_all([system, custom], retry=self._retry, timeout=self._timeout)
            texts = {snapshot.reference.path: _content(snapshot) for snapshot in found}
        for kind, reference in (("system", system), ("custom", custom)):
            if not texts.get(reference.path, "").strip():
                raise PromptMissing(f"The {kind} prompt {reference.id!r} does not exist or is empty")
        return Prompts(texts[system.path], texts[custom.path])

    def question_ids(self, reference: firestore.DocumentReference) -> list[str]:
        """Return the ids of all questions under a document."""
        with _firestore_errors():
            query = reference.collection("questions").select([])
            return [snapshot.id for snapshot in query.stream(retry=self._retry, timeout=self.deadline)]

    def has_questions(self, reference: firestore.DocumentReference) -> bool:
        """Tell whether a document has any question."""
        with _firestore_errors():
            query = reference.collection("questions").select([]).limit(1)
            return any(True for _ in query.stream(retry=self._retry, timeout=self.deadline))

    def remove_orphans(self, reference: firestore.DocumentReference) -> None:
        """Remove the questions that were left under a document that does not exist."""
        for ids in batched(self.question_ids(reference), COMMIT_WRITES):

            def build(batch: firestore.WriteBatch, ids: Sequence[str] = ids) -> None:
                for question_id in ids:
                    batch.delete(reference.collection("questions").document(question_id))

            self.commit(build, self._timeout)

    def now_ms(self) -> int:
        """Return Unix milliseconds."""
        return int(self._clock() * 1000)

    def commit(self, build: Callable[[firestore.WriteBatch], None], timeout: float = CALL_TIMEOUT) -> Any:
        """Commit one batch, once, and return the time of the document's update."""
        batch = self._client.batch()
        build(batch)
        with _firestore_errors(google_errors.NotFound, google_errors.FailedPrecondition):
            results = batch.commit(retry=None, timeout=timeout)
        return results[0].update_time

    def unchanged_since(self, update_time: Any) -> Any:
        """Return the precondition that a document was not written since."""
        return self._client.write_option(last_update_time=update_time)


class OwnedDocument:
    """Hold a document for one run: its content when it was taken, and the writes of that run."""

    def __init__(
        self,
        store: ExamStore,
        reference: firestore.DocumentReference,
        job_id: str,
        run: str,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._check = check
        self.reference = reference
        self.job_id = job_id
        self.run = run
        self.fields: dict[str, Any] = {}
        # What each write shows as long as the document is `processing`: the website may have written over it.
        self._shown: dict[str, Any] = {}
        # An earlier run of the job published and died before it could say so: there is nothing left to do.
        self.already_published = False
        self._update_time: Any = None
        self._updated_at = 0

    def adopt(self, snapshot: firestore.DocumentSnapshot) -> None:
        """Take a snapshot as the state that the next write builds upon."""
        self.fields = snapshot.to_dict() or {}
        self._update_time = snapshot.update_time

    def is_published(self) -> bool:
        """Tell whether an earlier run of this job had published its questions in the state adopted last.

        A commit of a run that was killed may still land while the next one takes the document; that one then has
        set it to `processing` again and publishes anew.
        """
        job_id, _, number = str(self.fields.get("run", "")).rpartition(":")
        return self.fields.get("status") == "ready" and job_id == self.job_id and number.isdigit()

    def show(self, percent: int, step: str) -> None:
        """Let the next writes show how far the run is."""
        self._shown = {"progress": percent, "currentStep": step}

    def progress(self, percent: int, step: str) -> None:
        """Show how far the run is; raises `FirestoreUnavailable` after one try."""
        self.show(percent, step)
        self.update({}, deadline=0, timeout=PROGRESS_TIMEOUT)

    def fail(self, text: str) -> None:
        """Set `failed` with a text for teachers."""
        self._fence()
        self.update({"status": "failed", "error": text, "progress": DELETE, "currentStep": DELETE})

    def put_back(self) -> None:
        """Set what the document was before the job: `ready` if it has questions, else `uploaded`."""
        self._fence()
        status = "ready" if self._store.has_questions(self.reference) else "uploaded"
        self.update({"status": status, "error": DELETE, "progress": DELETE, "currentStep": DELETE})

    def _fence(self) -> None:
        """Keep out what a dead run may still have on its way to Firestore, and only then remove what it left."""
        self.update({})
        self.remove_leftovers()

    def publish(
        self, questions: Sequence[Mapping[str, Any]], fields: Mapping[str, Any], stop: Callable[[], None] = lambda: None
    ) -> None:
        """Make `questions` the document's only ones and set `ready`, so that no reader sees a mixture.

        Each question holds its `id`; all end with the same `-token`, which no earlier question has. `stop` is
        called before each commit up to the one that decides, and may raise.
        """
        described = {"questionCount": len(questions), "jobId": self.job_id, **fields}
        ended = {"status": "ready", "progress": DELETE, "currentStep": DELETE, "error": DELETE, "staging": DELETE}
        last = {**described, **ended}
        stale = self._store.question_ids(self.reference)
        try:
            if len(questions) + len(stale) <= COMMIT_WRITES and len(list(_chunks(questions))) == 1:
                stop()
                try:
                    self.update(last, questions=questions, delete=stale)
                except RequestRefused:
                    log.warning("the publication does not fit one commit; it is staged")
                else:
                    return
            token = str(questions[0]["id"]).rpartition("-")[2]
            for chunk in _chunks(questions):
                stop()
                self._write_in_parts({"staging": {"token": token, "complete": False}}, chunk, ())
            stop()
            if len(stale) <= COMMIT_WRITES:
                try:
                    self.update(last, delete=stale)
                except RequestRefused:
                    log.warning("the old questions can't be removed in one commit; they are removed in several")
                else:
                    return
            self.update({**described, "staging": {"token": token, "complete": True}})
            self._remove(stale)
            self.update(last)
        except DocumentGone:
            self._store.remove_orphans(self.reference)
            raise

    def remove_leftovers(self) -> None:
        """Remove what a publication that was broken off left behind, so that one set of questions remains."""
        staging = self.fields.get("staging")
        if not isinstance(staging, Mapping):
            return
        ending = f"-{staging.get('token')}"
        complete = bool(staging.get("complete"))
        ids = self._store.question_ids(self.reference)
        self._remove([question_id for question_id in ids if question_id.endswith(ending) is not complete])
        self.update({"staging": DELETE})
        self.fields.pop("staging", None)

    def _remove(self, ids: Sequence[str]) -> None:
        for part in batched(ids, COMMIT_WRITES):
            self._write_in_parts({}, (), part)

    def _write_in_parts(
        self, fields: Mapping[str, Any], questions: Sequence[Mapping[str, Any]], delete: Sequence[str]
    ) -> None:
        """Write in one commit, or where that is refused as too large, in halves."""
        try:
            self.update(fields, questions=questions, delete=delete)
        except RequestRefused:
            middle = max(len(questions), len(delete)) // 2
            if not middle:
                raise
            self._write_in_parts(fields, questions[:middle], delete[:middle])
            self._write_in_parts(fields, questions[middle:], delete[middle:])

    def update(
        self,
        fields: Mapping[str, Any],
        *,
        questions: Sequence[Mapping[str, Any]] = (),
        delete: Sequence[str] = (),
        deadline: float | None = None,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Write fields of the document, and questions with it, in one commit guarded by the fence.

        Repeats for `deadline` seconds where Firestore is away. Where the outcome of a try is not known, the
        document tells: `updatedAt` is unique for each write of a run.
        """
        deadline = self._store.deadline if deadline is None else deadline
        self._updated_at = max(self._updated_at + 1, self._store.now_ms())
        written = {"status": "processing", **self._shown, **fields, "run": self.run, "updatedAt": self._updated_at}
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
                if self._look_again():
                    return
            except RequestRefused:
                raise
            except FirestoreUnavailable:
                if time.monotonic() + pause > give_up:
                    raise
                time.sleep(pause)
                pause = min(pause * 2, 5.0)
                if self._look_again():
                    return
            else:
                return

    def _look_again(self) -> bool:
        """Read the document after a write that failed; return whether the write had been applied all the same."""
        snapshot = self._store.read(self.reference)
        found = snapshot.to_dict() or {}
        mine = found.get("run") == self.run
        if mine and found.get("updatedAt") == self._updated_at:
            self._update_time = snapshot.update_time
            return True
        self.adopt(snapshot)
        if not mine:
            self._check()
        return False


def batched(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """Split a sequence into parts of at most `size`."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


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
