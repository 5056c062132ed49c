"""Publication and the fence, against a real Firestore protocol: old set or new set, never a mixture.

The reader's rule is the contract's: the questions of a document that is not `ready` are nobody's to read.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.cloud import firestore
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from superexam_rq import store
from superexam_rq.config import Settings
from superexam_rq.errors import DocumentGone, FirestoreUnavailable, Superseded
from superexam_rq.sandbox.firestore import FirestoreServer
from tests.stack import firestore_client


class Crash(BaseException):
    """Be the death of the process at a commit."""


class Exams(store.ExamStore):
    """Be the real store, with somebody looking before and after each commit, and before each call of any kind."""

    before: Callable[[], None] = staticmethod(lambda: None)
    after: Callable[[], None] = staticmethod(lambda: None)
    call: Callable[[], None] = staticmethod(lambda: None)

    def read(self, reference: firestore.DocumentReference) -> firestore.DocumentSnapshot:
        """Read as the real store does."""
        self.call()
        return super().read(reference)

    def question_ids(self, reference: firestore.DocumentReference) -> list[str]:
        """Read as the real store does."""
        self.call()
        return super().question_ids(reference)

    def has_questions(self, reference: firestore.DocumentReference) -> bool:
        """Read as the real store does."""
        self.call()
        return super().has_questions(reference)

    def commit(self, build: Callable[[firestore.WriteBatch], None], timeout: float = store.CALL_TIMEOUT) -> Any:
        """Commit as the real store does."""
        self.call()
        self.before()
        result = super().commit(build, timeout)
        self.after()
        return result


@pytest.fixture(scope="module")
def server() -> Iterator[FirestoreServer]:
    """Give a Firestore stand-in."""
    with FirestoreServer() as running:
        yield running


@pytest.fixture
def client(server: FirestoreServer) -> Iterator[firestore.Client]:
    """Give a client of it, and let no fault of a test reach the next."""
    client = firestore_client(server.address)
    yield client
    server.faults.clear()
    client.close()


@pytest.fixture
def exams(client: firestore.Client) -> Exams:
    """Give a store that gives up soon."""
    return Exams(client, Settings(), deadline=5.0)


def questions(count: int, token: str, text: str = "") -> list[dict[str, Any]]:
    """Return questions as a run publishes them."""
    return [{"id": f"q{number:05d}-{token}", "questionText": text or f"{token} {number}"} for number in range(count)]


def new_document(exams: Exams, doc_id: str, old: int = 0) -> None:
    """Store a document as the website has it when it submits, with the questions of an earlier exam."""
    reference = exams.document(doc_id)
    for question in questions(old, "old"):
        reference.collection("questions").document(question["id"]).set(question)
    reference.set({"status": "processing", "progress": 0, "currentStep": "Queuing...", "questionCount": old})


def stored(exams: Exams, doc_id: str) -> tuple[dict[str, Any], list[str]]:
    """Return a document's fields and the ids of its questions."""
    reference = exams.document(doc_id)
    return reference.get().to_dict() or {}, exams.question_ids(reference)


@pytest.mark.parametrize(("old", "count"), [(0, 1), (1, 450), (500, 900), (3, 5000)])
def test_any_number_of_questions_replaces_the_old_set(exams: Exams, old: int, count: int) -> None:
    """At each commit a reader finds no `ready` document but one with exactly the new questions."""
    doc_id = f"size-{count}"
    new_document(exams, doc_id, old)
    document = exams.take(doc_id, "job", 1)
    seen = []
    exams.after = lambda: seen.append(stored(exams, doc_id)[0]["status"])
    document.publish(questions(count, "new"), {"systemPromptId": "sys"})
    fields, ids = stored(exams, doc_id)
    assert ids == [question["id"] for question in questions(count, "new")]
    assert fields["questionCount"] == count
    assert (fields["status"], fields["jobId"], fields["systemPromptId"]) == ("ready", "job", "sys")
    assert not {"progress", "currentStep", "error", "staging"} & fields.keys()
    assert set(seen[:-1]) <= {"processing"}
    assert len(seen) == 1 or count + old > store.COMMIT_WRITES


def test_large_questions_go_in_several_commits(exams: Exams) -> None:
    """A request of Firestore's holds 10 MiB; 400 questions of 60 kB do not fit one."""
    new_document(exams, "large", 2)
    exams.take("large", "job", 1).publish(questions(400, "new", "x" * 60_000), {})
    fields, ids = stored(exams, "large")
    assert (fields["status"], len(ids)) == ("ready", 400)


def test_what_firestore_calls_too_big_is_written_in_parts(exams: Exams, server: FirestoreServer) -> None:
    """`Transaction too big` counts index entries, which nobody can foresee."""
    new_document(exams, "too-big", 3)
    document = exams.take("too-big", "job", 1)
    server.faults.fail("Commit", grpc.StatusCode.INVALID_ARGUMENT, times=3)
    document.publish(questions(40, "new"), {})
    fields, ids = stored(exams, "too-big")
    assert (fields["status"], len(ids)) == ("ready", 40)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "ABORTED", "DEADLINE_EXCEEDED", "INTERNAL"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_failing_commit_is_repeated_without_doing_anything_twice(
    exams: Exams, server: FirestoreServer, code: str, after: bool
) -> None:
    """Whether or not the failed commit was applied, which its caller can't know."""
    doc_id = f"{code}-{after}"
    new_document(exams, doc_id, 3)
    document = exams.take(doc_id, "job", 1)
    server.faults.fail("Commit", grpc.StatusCode[code], times=2, after=after)
    document.publish(questions(5, "new"), {})
    assert stored(exams, doc_id)[1] == [question["id"] for question in questions(5, "new")]


def test_the_website_s_progress_is_written_over(exams: Exams) -> None:
    """A second submission resets the shown progress; the run goes on and shows its own again."""
    new_document(exams, "reset")
    document = exams.take("reset", "job", 1)
    exams.document("reset").update({"status": "processing", "currentStep": "Queuing...", "progress": 0})
    document.progress(40, "Writing questions")
    assert stored(exams, "reset")[0]["currentStep"] == "Writing questions"


def test_only_the_run_that_is_wanted_publishes(exams: Exams) -> None:
    """An old run that comes back stops, also where it had taken the document back just before."""

    def unwanted() -> None:
        raise Superseded("the job has another run")

    new_document(exams, "fence", 2)
    wanted = True
    old = exams.take("fence", "job", 1, lambda: None if wanted else unwanted())
    new = exams.take("fence", "job", 2)
    old.progress(10, "the old one, in the race for the fence")
    wanted = False
    new.publish(questions(3, "new"), {})
    with pytest.raises(Superseded):
        old.publish(questions(4, "stale"), {})
    assert stored(exams, "fence")[1] == [question["id"] for question in questions(3, "new")]


def test_a_run_after_the_publication_has_nothing_to_do(exams: Exams) -> None:
    """The run died between the last commit and RQ's record of it: the next one finds the document published."""
    new_document(exams, "done")
    exams.take("done", "job", 1).publish(questions(2, "new"), {})
    assert exams.take("done", "job", 2).already_published
    assert stored(exams, "done")[0]["status"] == "ready"
    assert not exams.take("done", "another", 1).already_published


def test_a_dead_run_s_last_commit_may_land_late(exams: Exams) -> None:
    """It lands just as the next run takes the document: that run takes it all the same, and publishes anew."""
    new_document(exams, "late")
    dead = exams.take("late", "job", 1)

    def land() -> None:
        exams.before = lambda: None
        dead.publish(questions(2, "dead"), {})

    exams.before = land
    document = exams.take("late", "job", 2)
    assert not document.already_published
    document.publish(questions(3, "new"), {})
    fields, ids = stored(exams, "late")
    assert (fields["status"], ids) == ("ready", [question["id"] for question in questions(3, "new")])


@pytest.mark.parametrize("commits", [0, 1, 2, 3])
def test_a_document_deleted_meanwhile_stays_gone(exams: Exams, commits: int) -> None:
    """Whenever the user deletes it: the run ends, and no question is left under it."""
    doc_id = f"deleted-{commits}"
    new_document(exams, doc_id, 2)
    document = exams.take(doc_id, "job", 1)
    left = commits

    def delete() -> None:
        nonlocal left
        left -= 1
        if left == -1:
            for question_id in exams.question_ids(exams.document(doc_id)):
                exams.document(doc_id).collection("questions").document(question_id).delete()
            exams.document(doc_id).delete()

    exams.before = delete
    with pytest.raises(DocumentGone):
        document.publish(questions(1400, "new"), {})
    assert stored(exams, doc_id) == ({}, [])


def test_a_publication_waits_for_firestore_but_not_for_ever(exams: Exams, server: FirestoreServer) -> None:
    """After its deadline the run fails as transient."""
    new_document(exams, "away")
    document = exams.take("away", "job", 1)
    server.faults.fail("Commit", grpc.StatusCode.UNAVAILABLE, times=1000)
    with pytest.raises(FirestoreUnavailable):
        document.update({}, deadline=0.5)


class Run:
    """Be one run of a job in a thread that can be paused or killed before or after any commit."""

    def __init__(self, model: PublicationModel, job: int, number: int, count: int) -> None:
        self.model = model
        self.job, self.number, self.count = job, number, count
        self.token = f"j{job}r{number}"
        self.pause_at: int | None = None
        self.crash_at: int | None = None
        self.commits = 0
        self.paused, self.resumed = threading.Event(), threading.Event()
        self.dead = False
        self.error: BaseException | None = None
        self.exams = Exams(model.client, Settings(), deadline=5.0)
        self.exams.before = self._before
        self.exams.after = self._after
        self.thread = threading.Thread(target=self._work, daemon=True)

    def _check(self) -> None:
        if (self.job, self.number) != self.model.wanted:
            raise Superseded("not wanted")

    def _before(self) -> None:
        if self.crash_at is not None and self.crash_at == 2 * self.commits:
            raise Crash
        if self.pause_at == self.commits:
            self.paused.set()
            self.resumed.wait()

    def _after(self) -> None:
        self.model.check_reader()
        if self.crash_at is not None and self.crash_at == 2 * self.commits + 1:
            raise Crash
        self.commits += 1

    def _work(self) -> None:
        try:
            document = self.exams.take("doc", f"job{self.job}", self.number, self._check)
            if not document.already_published:
                document.publish(questions(self.count, self.token), {}, self._check)
                assert (self.job, self.number) == self.model.wanted, "a run published that nobody wanted any more"
        except (Crash, Superseded, DocumentGone):
            pass
        except BaseException as error:  # noqa: BLE001 - raised again by `go`
            self.error = error
        finally:
            self.dead = True
            self.paused.set()

    def go(self) -> None:
        """Run until the end, a crash or a pause."""
        if self.thread.ident is None:
            self.thread.start()
        else:
            self.paused.clear()
            self.pause_at = None
            self.resumed.set()
        assert self.paused.wait(30)
        if self.error is not None:
            raise self.error


class PublicationModel(RuleBasedStateMachine):
    """Any sequence of runs, crashes, pauses, cancellations and deletions leaves a reader one whole exam or none."""

    runs = Bundle("runs")
    server: FirestoreServer

    @initialize(old=st.sampled_from([0, 2, 8]))
    def start(self, old: int) -> None:
        """Begin with a document that was submitted, new or with an old exam."""
        self.client = firestore_client(self.server.address)
        self.exams = Exams(self.client, Settings(), deadline=5.0)
        self.exams.document("doc").delete()
        self.exams.remove_orphans(self.exams.document("doc"))
        new_document(self.exams, "doc", old)
        self.exams.after = self.check_reader
        self.known = {"old": old}
        self.job = self.number = 1
        self.wanted: tuple[int, int] | None = None

    def teardown(self) -> None:
        """Close the client."""
        if hasattr(self, "client"):
            self.client.close()

    @rule(
        target=runs,
        count=st.sampled_from([1, 5, 9]),
        crash=st.one_of(st.none(), st.integers(0, 14)),
        pause=st.one_of(st.none(), st.none(), st.integers(0, 5)),
    )
    def run(self, count: int, crash: int | None, pause: int | None) -> Any:
        """Start the current job's next run, whatever became of the one before."""
        run = Run(self, self.job, self.number, count)
        self.known[run.token] = count
        self.wanted = (self.job, self.number)
        self.number += 1
        run.crash_at, run.pause_at = crash, pause
        run.go()
        return multiple() if run.dead else run

    @rule(run=consumes(runs))
    def come_back(self, run: Run) -> None:
        """Let a paused run go on, wanted or not."""
        run.go()

    @rule()
    def submit_again(self) -> None:
        """Let the website submit once more: a new job, the document's newest."""
        reference = self.exams.document("doc")
        if reference.get().exists:
            reference.update({"status": "processing", "currentStep": "Queuing...", "progress": 0})
        self.job, self.number, self.wanted = self.job + 1, 1, None

    @rule(kind=st.sampled_from(["cancelled", "cancelled", "failed", "waiting"]))
    def settle(self, kind: Any) -> None:
        """End the current job without a run."""
        self.wanted = None
        self.exams.settle("doc", f"job{self.job}", store.Outcome(kind, "text"), lambda: None)
        fields = stored(self.exams, "doc")[0]
        if kind == "cancelled" and fields:
            assert fields["status"] in {"ready", "uploaded", "failed"}

    @rule(run=consumes(runs), kind=st.sampled_from(["cancelled", "failed"]), call=st.integers(0, 6))
    def settle_as_a_commit_lands(self, run: Run, kind: Any, call: int) -> None:
        """End the current job while the last commit of a killed run is still on its way: it lands at some call."""
        run.crash_at = 2 * run.commits + 1
        left = call

        def land() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                self.exams.call = lambda: None
                run.go()

        self.exams.call = land
        try:
            self.settle(kind)
        finally:
            self.exams.call = lambda: None
        if not run.dead:
            run.go()

    @rule()
    def delete(self) -> None:
        """Let the user delete the document, as the website does, and upload it anew."""
        self.wanted = None
        reference = self.exams.document("doc")
        for question_id in self.exams.question_ids(reference):
            reference.collection("questions").document(question_id).delete()
        reference.delete()
        new_document(self.exams, "doc")
        self.job, self.number = self.job + 1, 1

    @invariant()
    def look(self) -> None:
        """Look at any moment."""
        if hasattr(self, "known"):
            self.check_reader()

    def check_reader(self) -> None:
        """Assert the contract as a reader sees it."""
        fields, ids = stored(self.exams, "doc")
        tokens = {question_id.rpartition("-")[2] for question_id in ids}
        if fields.get("status") in {"ready", "uploaded"}:
            assert len(tokens) <= 1, tokens
            for token in tokens:
                assert len(ids) == self.known[token] == fields["questionCount"]
            assert bool(ids) == (fields["status"] == "ready")
            assert not {"progress", "currentStep", "staging"} & fields.keys()


def test_no_sequence_of_crashes_shows_a_reader_a_mixture(
    server: FirestoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """See the rules of `PublicationModel`; three writes to a commit let few questions need several."""
    monkeypatch.setattr(store, "COMMIT_WRITES", 3)
    PublicationModel.server = server
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    limits = settings(max_examples=120, stateful_step_count=10, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(PublicationModel, settings=limits)


@pytest.mark.parametrize("kind", ["cancelled", "failed"])
@pytest.mark.parametrize("count", [1, 9])
@pytest.mark.parametrize("old", [0, 8])
def test_a_commit_that_lands_late_makes_no_mixture(
    server: FirestoreServer, monkeypatch: pytest.MonkeyPatch, old: int, count: int, kind: str
) -> None:
    """Each commit of a run that was killed, landing before each call by which its document is settled."""
    monkeypatch.setattr(store, "COMMIT_WRITES", 3)
    PublicationModel.server = server
    for commit in range(12):
        for call in range(8):
            model = PublicationModel()
            model.start(old)
            run = Run(model, 1, 1, count)
            model.known[run.token], model.wanted, run.pause_at = count, (1, 1), commit
            run.go()
            ended = run.dead
            if not ended:
                model.settle_as_a_commit_lands(run, kind, call)
                model.check_reader()
            model.teardown()
            if ended:
                assert commit
                return


def test_two_that_settle_one_document_do_not_take_turns(server: FirestoreServer) -> None:
    """The API, a sweep and a recovery may come at the same time: what the first wrote stands, and is written once."""
    with contextlib.closing(firestore_client(server.address)) as client:
        exams = store.ExamStore(client, Settings(), deadline=5.0)
        document = client.document("superexam-documents", "settled-twice")
        document.set({"status": "processing", "currentStep": "Starting"})
        seen: list[Any] = []

        def first() -> None:
            if not seen:
                seen.append(exams.settle("settled-twice", "job", store.Outcome("cancelled"), lambda: None))
                seen.append(document.get().update_time)

        assert exams.settle("settled-twice", "job", store.Outcome("cancelled"), first) is False
        assert seen == [True, document.get().update_time]
        assert document.get().get("status") == "uploaded"
