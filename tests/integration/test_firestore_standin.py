"""What the Firestore stand-in must do: Google's documented behaviour, seen through the real Python client.

Each test has a project of its own on one shared server. The Node client's run is in `test_firestore_node.py`.
"""

from __future__ import annotations

import itertools
import queue
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import pytest
from google.api_core import exceptions
from google.cloud import firestore
from google.cloud.firestore_v1 import types
from google.cloud.firestore_v1.base_query import And, FieldFilter, Or
from google.cloud.firestore_v1.services.firestore import FirestoreClient
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcTransport

from superexam_rq.sandbox.firestore import FirestoreServer, inject

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from pathlib import Path

# The client's annotations are wrong in places (merge=[…], update_time), so tests do not lean on them.
Client: TypeAlias = Any

PATIENCE = 20  # seconds; no test waits that long unless it fails
_projects = (f"project-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server() -> Iterator[FirestoreServer]:
    """Run one stand-in for the whole module."""
    with FirestoreServer() as running:
        yield running


@pytest.fixture
def connect(server: FirestoreServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Client]]:
    """Make clients, as two programs would have them, of one empty project."""
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", server.address)
    project, clients = next(_projects), []

    def make() -> Client:
        clients.append(firestore.Client(project=project))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    server.faults.clear()


@pytest.fixture
def db(connect: Callable[[], Client]) -> Client:
    """Make one client."""
    return connect()


@pytest.fixture
def raw(server: FirestoreServer) -> Iterator[FirestoreClient]:
    """Make a generated client, for requests that the friendly one refuses to send."""
    with grpc.insecure_channel(server.address) as channel:
        yield FirestoreClient(transport=FirestoreGrpcTransport(channel=channel))


def ids(snapshots: Any) -> list[str]:
    """Return the ids of snapshots or references, in their order."""
    return [snapshot.id for snapshot in snapshots]


class TestWriting:
    def test_set_without_merge_replaces_the_document(self, db: Client) -> None:
        """Fields that a plain set does not name are gone."""
        exam = db.document("exams/a")
        exam.set({"old": 1, "both": {"x": 1, "y": 2}})
        exam.set({"both": {"x": 3}})
        assert exam.get().to_dict() == {"both": {"x": 3}}

    def test_set_with_merge_keeps_other_fields(self, db: Client) -> None:
        """merge=True reaches into maps; merge=[paths] writes those paths and no others."""
        exam = db.document("exams/a")
        exam.set({"a": 1, "m": {"x": 1, "y": 2}}, merge=True)
        exam.set({"m": {"x": 5}}, merge=True)
        exam.set({"a": 9, "m": {"x": 8, "y": 7}}, merge=["m.y"])
        assert exam.get().to_dict() == {"a": 1, "m": {"x": 5, "y": 7}}

    def test_set_with_merge_of_nothing_creates_an_empty_document(self, db: Client) -> None:
        """An empty mask writes no field but makes the document exist, and leaves an existing one alone."""
        exam = db.document("exams/a")
        exam.set({}, merge=True)
        assert exam.get().exists
        exam.set({"a": 1})
        exam.set({}, merge=True)
        assert exam.get().to_dict() == {"a": 1}

    def test_update_changes_only_the_named_paths(self, db: Client) -> None:
        """A dotted path reaches into a map, a plain key replaces a whole map."""
        exam = db.document("exams/a")
        exam.set({"m": {"x": 1, "y": 2}, "n": {"x": 1, "y": 2}})
        exam.update({"m.x": 5, "n": {"z": 3}, "deep.er.still": True})
        expected = {"m": {"x": 5, "y": 2}, "n": {"z": 3}, "deep": {"er": {"still": True}}}
        assert exam.get().to_dict() == expected

    @pytest.mark.parametrize("name", ["a.b", "a b", "1st", "a`b", "a\\b", "a\\`b", "größe", "*/~[]", "-"])
    def test_quoted_field_names(self, db: Client, name: str) -> None:
        """Any text can be a field name if its path is quoted."""
        exam = db.document("exams/a")
        exam.set({name: 1, "m": {name: 1}, "other": 1})
        exam.update({db.field_path(name): 2, db.field_path("m", name): 3})
        assert exam.get().to_dict() == {name: 2, "m": {name: 3}, "other": 1}
        assert exam.get([db.field_path("m", name)]).to_dict() == {"m": {name: 3}}

    def test_delete_field(self, db: Client) -> None:
        """DELETE_FIELD removes fields, nested ones too; removing what is not there is no error."""
        exam = db.document("exams/a")
        exam.set({"a": 1, "m": {"x": 1, "y": 2}, "keep": 1})
        exam.update({"a": firestore.DELETE_FIELD, "m.x": firestore.DELETE_FIELD, "no.thing": firestore.DELETE_FIELD})
        assert exam.get().to_dict() == {"m": {"y": 2}, "keep": 1}
        exam.set({"keep": firestore.DELETE_FIELD}, merge=True)
        assert exam.get().to_dict() == {"m": {"y": 2}}

    def test_every_type_of_value_comes_back(self, db: Client) -> None:
        """What is read is what was written, type for type."""
        values: dict[str, Any] = {
            "null": None,
            "bool": True,
            "int": -(2**63),
            "float": 1.5,
            "whole_float": 2.0,
            "text": "größer\0",
            "bytes": b"\x00\xff",
            "time": datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
            "point": firestore.GeoPoint(1.5, -2.5),
            "reference": db.document("a/b"),
            "array": [1, "a", {"x": [1]}],
            "map": {"empty": {}, "list": []},
        }
        db.document("exams/a").set(values)
        found = db.document("exams/a").get().to_dict()
        assert found == values
        assert isinstance(found["whole_float"], float)

    def test_batch_is_atomic(self, db: Client) -> None:
        """If one write of a commit fails, none has happened."""
        db.document("exams/old").set({"a": 1})
        batch = db.batch()
        batch.set(db.document("exams/new"), {"a": 1})
        batch.delete(db.document("exams/old"))
        batch.update(db.document("exams/missing"), {"a": 1})
        with pytest.raises(exceptions.NotFound, match=r"No document to update: .*/exams/missing"):
            batch.commit()
        assert ids(db.collection("exams").stream()) == ["old"]

    def test_writes_of_a_batch_see_each_other(self, db: Client) -> None:
        """Writes apply in order, all with one commit time."""
        exam, batch = db.document("exams/a"), db.batch()
        batch.create(exam, {"n": 1})
        batch.update(exam, {"n": firestore.Increment(1)})
        batch.delete(exam)
        batch.create(exam, {"n": 5})
        batch.update(exam, {"n": firestore.Increment(1)})
        results = batch.commit()
        assert exam.get().to_dict() == {"n": 6}
        assert exam.get().update_time == batch.commit_time == results[0].update_time
        assert not results[2]._pb.HasField("update_time")

    def test_batch_of_hundreds(self, db: Client) -> None:
        """A commit has no limit of 500 writes any more."""
        batch = db.batch()
        for number in range(1200):
            batch.set(db.document(f"exams/{number:05d}"), {"n": number})
        batch.commit()
        assert db.collection("exams").count().get()[0][0].value == 1200

    def test_times(self, db: Client) -> None:
        """Times are in microseconds and only ever grow; create_time stays; a new life has a new one."""
        exam = db.document("exams/a")
        updates = [exam.set({"n": number}).update_time for number in range(20)]
        assert sorted(set(updates)) == updates
        assert all(moment.nanosecond % 1000 == 0 for moment in updates)
        found = exam.get()
        assert (found.create_time, found.update_time) == (updates[0], updates[-1])
        assert found.read_time > found.update_time
        exam.delete()
        exam.set({})
        assert exam.get().create_time > updates[-1]

    def test_write_that_changes_nothing_keeps_update_time(self, db: Client) -> None:
        """A write that leaves the document as it was does not count as an update."""
        exam = db.document("exams/a")
        first = exam.set({"a": 1, "m": {"x": float("nan")}}).update_time
        assert exam.set({"m": {"x": float("nan")}, "a": 1}).update_time == first
        assert exam.update({"a": 1.0}).update_time > first

    def test_deleting_what_is_not_there(self, db: Client) -> None:
        """A delete without a precondition always succeeds."""
        db.document("exams/a").delete()
        assert not db.document("exams/a").get().exists

    def test_add_makes_an_id(self, db: Client) -> None:
        """Collections hand out ids of 20 characters."""
        _, exam = db.collection("exams").add({"a": 1})
        assert len(exam.id) == 20
        assert exam.get().to_dict() == {"a": 1}

    def test_bulk_writer_reports_each_write(self, db: Client) -> None:
        """Writes of a bulk writer succeed or fail one by one."""
        written: list[str] = []
        failed: list[tuple[str, int]] = []

        def note_failure(error: Any, _: Any) -> bool:
            failed.append((error.operation.reference.id, error.code))
            return False  # do not try again

        writer = db.bulk_writer()
        writer.on_write_result(lambda reference, *_: written.append(reference.id))
        writer.on_write_error(note_failure)
        db.document("exams/there").set({})
        for number in range(50):
            writer.set(db.document(f"exams/{number:02d}"), {"n": number})
        writer.create(db.document("exams/there"), {})
        writer.update(db.document("exams/missing"), {"a": 1})
        writer.close()
        assert sorted(written) == [f"{number:02d}" for number in range(50)]
        assert sorted(failed) == [("missing", 5), ("there", 6)]
        assert db.collection("exams").count().get()[0][0].value == 51

    def test_batch_write_refuses_the_same_document_twice(self, db: Client, raw: FirestoreClient) -> None:
        """BatchWrite has no order, so one request may name a document once."""
        name = f"{db._database_string}/documents/exams/a"
        writes = [types.Write(delete=name), types.Write(delete=name)]
        with pytest.raises(exceptions.InvalidArgument):
            raw.batch_write({"database": db._database_string, "writes": writes})

    def test_recursive_delete(self, db: Client) -> None:
        """The client's recursive delete finds everything below a document."""
        for path in ("exams/a", "exams/a/questions/1", "exams/a/questions/1/notes/2", "exams/b"):
            db.document(path).set({})
        assert db.recursive_delete(db.document("exams/a")) == 3
        assert [reference.path for reference in db.collection("exams").list_documents()] == ["exams/b"]


class TestTransforms:
    def test_server_timestamp(self, db: Client) -> None:
        """All server timestamps of a commit are the same time, in milliseconds."""
        batch = db.batch()
        batch.set(db.document("exams/a"), {"t": firestore.SERVER_TIMESTAMP, "m": {"t": firestore.SERVER_TIMESTAMP}})
        batch.set(db.document("exams/b"), {"t": firestore.SERVER_TIMESTAMP})
        batch.commit()
        a, b = (db.document(path).get().to_dict() for path in ("exams/a", "exams/b"))
        assert a["t"] == a["m"]["t"] == b["t"]
        assert a["t"].microsecond % 1000 == 0
        assert abs((datetime.now(UTC) - a["t"]).total_seconds()) < 60

    @pytest.mark.parametrize(
        ("before", "change", "after"),
        [
            (5, firestore.Increment(3), 8),
            (5, firestore.Increment(0.5), 5.5),
            ("text", firestore.Increment(3), 3),
            (2**63 - 1, firestore.Increment(1), 2**63 - 1),
            (-(2**63), firestore.Increment(-1), -(2**63)),
            (5, firestore.Maximum(7), 7),
            (5, firestore.Maximum(3.5), 5),
            (5, firestore.Maximum(5.0), 5),
            ([], firestore.Maximum(3), 3),
            (5, firestore.Minimum(3.5), 3.5),
            (5, firestore.Minimum(9), 5),
            ([1, "a"], firestore.ArrayUnion(["b", 1.0, "b", "a"]), [1, "a", "b"]),
            ("text", firestore.ArrayUnion([1]), [1]),
            ([1, 2, 1, 1.0], firestore.ArrayRemove([1]), [2]),
            ("text", firestore.ArrayRemove([1]), []),
        ],
    )
    def test_arithmetic_and_arrays(self, db: Client, before: Any, change: Any, after: Any) -> None:
        """Increment, Maximum, Minimum, ArrayUnion and ArrayRemove, over a value of any type."""
        exam = db.document("exams/a")
        exam.set({"x": before, "m": {"x": before}})
        exam.update({"x": change, "m.x": change})
        found = exam.get().to_dict()
        assert found == {"x": after, "m": {"x": after}}
        assert type(found["x"]) is type(after)

    def test_transform_of_a_missing_field(self, db: Client) -> None:
        """A transform of a field or document that is not there starts from nothing."""
        db.document("exams/a").set({"n": firestore.Increment(2), "list": firestore.ArrayUnion([1])}, merge=True)
        assert db.document("exams/a").get().to_dict() == {"n": 2, "list": [1]}

    def test_transform_results(self, db: Client) -> None:
        """The answer carries the new value of each transformed field."""
        db.document("exams/a").set({"n": 1})
        result = db.document("exams/a").update({"n": firestore.Increment(2)})
        assert result.transform_results[0].integer_value == 3


class TestPreconditions:
    def test_create_of_an_existing_document(self, db: Client) -> None:
        """Create never overwrites."""
        db.document("exams/a").create({"a": 1})
        with pytest.raises(exceptions.AlreadyExists, match=r"Document already exists: projects/.*/exams/a"):
            db.document("exams/a").create({"a": 2})
        assert db.document("exams/a").get().to_dict() == {"a": 1}

    def test_update_of_a_missing_document(self, db: Client) -> None:
        """Update never creates."""
        with pytest.raises(exceptions.NotFound, match=r"No document to update: projects/.*/exams/a"):
            db.document("exams/a").update({"a": 1})
        with pytest.raises(exceptions.NotFound):
            db.document("exams/a").delete(option=db.write_option(exists=True))
        assert not db.document("exams/a").get().exists

    def test_last_update_time(self, db: Client) -> None:
        """A write that names another version than the stored one changes nothing."""
        exam = db.document("exams/a")
        first = exam.set({"a": 1}).update_time
        second = exam.update({"a": 2}, option=db.write_option(last_update_time=first)).update_time
        pattern = r"the stored version \(\d{16}\) does not match the required base version \(\d{16}\)"
        stale = db.write_option(last_update_time=first)
        with pytest.raises(exceptions.FailedPrecondition, match=pattern):
            exam.update({"a": 3}, option=stale)
        with pytest.raises(exceptions.FailedPrecondition, match=pattern):
            exam.delete(option=stale)
        assert exam.get().to_dict() == {"a": 2}
        exam.delete(option=db.write_option(last_update_time=second))
        with pytest.raises(exceptions.FailedPrecondition):
            exam.update({"a": 3}, option=db.write_option(last_update_time=second))


class TestReading:
    def test_get_of_a_missing_document(self, db: Client) -> None:
        """A missing document is a snapshot that does not exist."""
        assert not db.document("exams/a").get().exists

    def test_get_all(self, db: Client) -> None:
        """Many documents in one call, missing ones included, each once, with a mask."""
        db.document("exams/a").set({"a": 1, "b": 2})
        wanted = [db.document(f"exams/{name}") for name in "axa"]
        found = {snapshot.id: snapshot.to_dict() for snapshot in db.get_all(wanted, field_paths=["b"])}
        assert found == {"a": {"b": 2}, "x": None}

    def test_raw_reads_and_writes(self, db: Client, raw: FirestoreClient) -> None:
        """GetDocument, CreateDocument, UpdateDocument and DeleteDocument, which the friendly clients seldom call."""
        parent = f"{db._database_string}/documents"
        fields = {"a": types.Value(integer_value=1), "b": types.Value(integer_value=2)}
        made = raw.create_document(
            {"parent": parent, "collection_id": "exams", "document_id": "a", "document": {"fields": fields}}
        )
        assert made.name == f"{parent}/exams/a"
        with pytest.raises(exceptions.AlreadyExists):
            raw.create_document({"parent": parent, "collection_id": "exams", "document_id": "a", "document": {}})
        raw.update_document(
            {
                "document": {"name": made.name, "fields": {"a": {"integer_value": 5}}},
                "update_mask": {"field_paths": ["a"]},
            }
        )
        assert db.document("exams/a").get().to_dict() == {"a": 5, "b": 2}
        masked = raw.get_document({"name": made.name, "mask": {"field_paths": ["b"]}})
        assert list(masked.fields) == ["b"]
        raw.delete_document({"name": made.name})
        with pytest.raises(exceptions.NotFound, match="not found"):
            raw.get_document({"name": made.name})

    def test_list_documents_shows_missing_parents(self, db: Client) -> None:
        """list_documents() includes a document that does not exist but has a subcollection."""
        for path in ("exams/a", "exams/b/questions/1", "exams/c/questions/1/notes/2", "other/x"):
            db.document(path).set({})
        assert ids(db.collection("exams").list_documents(page_size=2)) == ["a", "b", "c"]
        assert ids(db.collection("exams").stream()) == ["a"]

    def test_collections(self, db: Client) -> None:
        """collections() of the root and of a document, also of a missing one; empty ones are not there."""
        for path in ("b/1", "a/1/y/1", "a/1/x/1", "a/2/z/1", "gone/1"):
            db.document(path).set({})
        db.document("gone/1").delete()
        assert ids(db.collections()) == ["a", "b"]
        assert ids(db.document("a/1").collections()) == ["x", "y"]

    def test_read_at_a_past_time(self, db: Client) -> None:
        """A read of a recent past sees what held then; a time before the server's start is too old."""
        exam = db.document("exams/a")
        exam.set({"n": 1})
        then = exam.get().read_time
        exam.set({"n": 2})
        db.document("exams/b").set({})
        assert exam.get(read_time=then).to_dict() == {"n": 1}
        assert ids(db.collection("exams").stream(read_time=then)) == ["a"]
        with pytest.raises(exceptions.FailedPrecondition, match="too old"):
            exam.get(read_time=datetime(2020, 1, 1, tzinfo=UTC))


EXAMS: dict[str, dict[str, Any]] = {
    "a": {"n": 1, "tags": ["x", "y"], "kind": "quiz", "m": {"k": 1}},
    "b": {"n": 2.0, "tags": ["y"], "kind": "test", "m": {"k": 2}},
    "c": {"n": 3, "tags": [], "kind": "quiz"},
    "d": {"n": None, "tags": ["z", 1], "kind": None},
    "e": {"n": float("nan"), "kind": "exam"},
    "f": {"n": "3", "tags": "x"},
    "g": {"other": True},
}


class TestQueries:
    @pytest.fixture(autouse=True)
    def _exams(self, db: Client) -> None:
        batch = db.batch()
        for name, fields in EXAMS.items():
            batch.set(db.document(f"exams/{name}"), fields)
        batch.commit()

    @pytest.mark.parametrize(
        ("field", "op", "value", "expected"),
        [
            ("n", "==", 2, "b"),
            ("n", "!=", 2, "acef"),
            ("n", "<", 3, "ab"),
            ("n", "<=", 3, "abc"),
            ("n", ">", 1, "bc"),
            ("n", ">=", 2.0, "bc"),
            ("n", ">", "2", "f"),
            ("n", "==", None, "d"),
            ("n", "!=", None, "abcef"),
            ("n", "==", float("nan"), "e"),
            ("n", "!=", float("nan"), "abcf"),
            ("n", "in", [1, 3.0, "3"], "acf"),
            ("n", "not-in", [1, "3"], "bce"),
            ("n", "not-in", [1, None], ""),
            ("kind", "in", ["quiz", "exam"], "ace"),
            ("tags", "array_contains", "y", "ab"),
            ("tags", "array_contains", 1.0, "d"),
            ("tags", "array_contains_any", ["x", "z"], "ad"),
            ("m.k", ">", 1, "b"),
            ("m", "==", {"k": 1}, "a"),
            ("tags", "==", ["y"], "b"),
        ],
    )
    def test_filters(self, db: Client, field: str, op: str, value: Any, expected: str) -> None:
        """Each operator, over values of mixed types: a comparison holds between like types only."""
        found = db.collection("exams").where(filter=FieldFilter(field, op, value)).stream()
        assert "".join(sorted(ids(found))) == expected

    def test_composite_filters(self, db: Client) -> None:
        """And, or, and both nested."""
        quiz, early = FieldFilter("kind", "==", "quiz"), FieldFilter("n", "<", 2)
        tagged = FieldFilter("tags", "array_contains", "y")
        exams = db.collection("exams")
        assert ids(exams.where(filter=quiz).where(filter=early).stream()) == ["a"]
        assert ids(exams.where(filter=Or([quiz, tagged])).stream()) == ["a", "b", "c"]
        assert ids(exams.where(filter=And([Or([quiz, tagged]), FieldFilter("n", ">", 1)])).stream()) == ["b", "c"]

    def test_filters_on_names(self, db: Client) -> None:
        """__name__ can be compared, ranged over and looked up in a list."""
        exams = db.collection("exams")
        assert ids(exams.where(filter=FieldFilter("__name__", ">", exams.document("e"))).stream()) == ["f", "g"]
        wanted = [exams.document("g"), exams.document("a")]
        assert ids(exams.where(filter=FieldFilter("__name__", "in", wanted)).stream()) == ["a", "g"]

    def test_order(self, db: Client) -> None:
        """Values sort by type, then by value; documents without the field are left out; names break ties."""
        exams = db.collection("exams")
        assert ids(exams.order_by("n").stream()) == ["d", "e", "a", "b", "c", "f"]
        assert ids(exams.order_by("n", direction="DESCENDING").stream()) == ["f", "c", "b", "a", "e", "d"]
        assert ids(exams.order_by("kind").order_by("n", direction="DESCENDING").stream()) == ["d", "e", "c", "a", "b"]
        assert ids(exams.order_by("__name__", direction="DESCENDING").limit(2).stream()) == ["g", "f"]

    def test_ties_follow_the_last_direction(self, db: Client) -> None:
        """Equal values are ordered by name, in the direction of the last order."""
        exams = db.collection("exams").where(filter=FieldFilter("kind", "==", "quiz"))
        assert ids(exams.order_by("kind", direction="DESCENDING").stream()) == ["c", "a"]

    def test_inequality_orders_by_its_field(self, db: Client) -> None:
        """Without an order of its own a query is ordered by the field that it ranges over."""
        db.document("exams/0").set({"n": 100})
        assert ids(db.collection("exams").where(filter=FieldFilter("n", ">", 1)).stream()) == ["b", "c", "0"]

    def test_limit_and_offset(self, db: Client) -> None:
        """Limit, offset and limit_to_last."""
        exams = db.collection("exams").order_by("__name__")
        assert ids(exams.limit(2).stream()) == ["a", "b"]
        assert ids(exams.offset(2).limit(2).stream()) == ["c", "d"]
        assert ids(exams.limit_to_last(2).get()) == ["f", "g"]
        assert ids(exams.offset(100).stream()) == []

    def test_cursors(self, db: Client) -> None:
        """All four cursors, with values, snapshots and a prefix of the order."""
        exams = db.collection("exams")
        by_n = exams.order_by("n")
        assert ids(by_n.start_at({"n": 2}).stream()) == ["b", "c", "f"]
        assert ids(by_n.start_after({"n": 2}).stream()) == ["c", "f"]
        assert ids(by_n.start_at({"n": 1}).end_at({"n": 3}).stream()) == ["a", "b", "c"]
        assert ids(by_n.start_at({"n": 1}).end_before({"n": 3}).stream()) == ["a", "b"]
        assert ids(exams.order_by("n", direction="DESCENDING").start_after({"n": 3}).stream()) == ["b", "a", "e", "d"]
        assert ids(exams.order_by("kind").start_after(exams.document("a").get()).stream()) == ["c", "b"]
        assert ids(exams.order_by("__name__").start_after({"__name__": exams.document("e")}).stream()) == ["f", "g"]

    def test_projection(self, db: Client) -> None:
        """select() returns the named fields only, or none."""
        exams = db.collection("exams").where(filter=FieldFilter("n", "==", 1))
        assert exams.select(["m.k", "kind"]).get()[0].to_dict() == {"kind": "quiz", "m": {"k": 1}}
        found = exams.select([]).get()[0]
        assert (found.id, found.to_dict()) == ("a", {})
        assert found.update_time is not None

    def test_subcollections_are_separate(self, db: Client) -> None:
        """A query sees its own collection; a collection group sees all of that id, here or below a document."""
        for path in ("exams/a/questions/1", "exams/b/questions/2", "questions/3", "exams/a/other/questions"):
            db.document(path).set({"n": 1})
        assert ids(db.collection("exams/a/questions").stream()) == ["1"]
        assert ids(db.collection_group("questions").stream()) == ["1", "2", "3"]

    def test_collection_group_with_filter(self, db: Client) -> None:
        """A collection group can be filtered like a collection."""
        db.document("exams/a/questions/1").set({"right": True})
        db.document("exams/b/questions/2").set({"right": False})
        group = db.collection_group("questions").where(filter=FieldFilter("right", "==", True))
        assert [found.reference.path for found in group.stream()] == ["exams/a/questions/1"]

    def test_aggregations(self, db: Client) -> None:
        """Count, sum and average; count may stop early."""
        exams = db.collection("exams")
        numbers = exams.where(filter=FieldFilter("n", ">", 0))
        answer = numbers.count(alias="count").sum("n", alias="sum").avg("n", alias="avg").get()
        assert {result.alias: result.value for result in answer[0]} == {"count": 3, "sum": 6.0, "avg": 2.0}
        assert exams.count().get()[0][0].value == 7
        assert exams.limit(3).count().get()[0][0].value == 3
        assert db.collection("none").count().get()[0][0].value == 0

    def test_bad_queries(self, db: Client) -> None:
        """A query that Firestore refuses is refused."""
        with pytest.raises(exceptions.InvalidArgument):
            db.collection("exams").where(filter=FieldFilter("n", "in", [])).get()
        with pytest.raises(exceptions.InvalidArgument):
            db.collection("exams").where(filter=FieldFilter("n", "in", list(range(31)))).get()
        with pytest.raises(exceptions.InvalidArgument):
            db.collection("exams").limit(-1).get()


class TestTransactions:
    def test_conflicting_transactions_are_serialised(self, connect: Callable[[], Client]) -> None:
        """Of two clients that read the same document, the second to commit is aborted, and its retry succeeds."""
        one, two = connect(), connect()
        one.document("exams/a").set({"n": 0})
        both_have_read, runs = threading.Barrier(2, timeout=PATIENCE), []

        def add(client: Client) -> None:
            first = True

            @firestore.transactional
            def body(transaction: firestore.Transaction) -> None:
                nonlocal first
                exam = client.document("exams/a")
                n = exam.get(transaction=transaction).get("n")
                runs.append(n)
                if first:
                    first = False
                    both_have_read.wait()
                transaction.update(exam, {"n": n + 1})

            body(client.transaction())

        threads = [threading.Thread(target=add, args=(client,)) for client in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert one.document("exams/a").get().to_dict() == {"n": 2}
        assert sorted(runs) == [0, 0, 1]

    def test_many_clients_on_one_counter(self, connect: Callable[[], Client]) -> None:
        """A crowd neither loses an increment nor uses up the client's five attempts."""
        clients = [connect() for _ in range(5)]
        clients[0].document("exams/a").set({"n": 0})
        failures: list[Exception] = []

        def add(client: Client) -> None:
            @firestore.transactional
            def body(transaction: firestore.Transaction) -> None:
                exam = client.document("exams/a")
                transaction.update(exam, {"n": exam.get(transaction=transaction).get("n") + 1})

            try:
                for _ in range(10):
                    body(client.transaction())
            except (exceptions.GoogleAPICallError, ValueError) as error:
                failures.append(error)

        threads = [threading.Thread(target=add, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert failures == []
        assert clients[0].document("exams/a").get().to_dict() == {"n": 50}

    @pytest.mark.parametrize("writes", [True, False], ids=["writing", "only reading"])
    def test_transaction_that_read_stale_data_is_aborted(self, connect: Callable[[], Client], writes: bool) -> None:
        """A write between a transaction's read and its commit aborts it, even if it writes nothing itself."""
        one, two = connect(), connect()
        one.document("exams/a").set({"n": 1})
        transaction = one.transaction(max_attempts=1)
        transaction._begin()
        one.document("exams/a").get(transaction=transaction)
        two.document("exams/a").update({"n": 2})
        if writes:
            transaction.set(one.document("exams/other"), {})
        with pytest.raises(exceptions.Aborted):
            transaction._commit()
        assert not one.document("exams/other").get().exists

    def test_query_in_a_transaction_guards_its_result(self, connect: Callable[[], Client]) -> None:
        """A document that enters a query's result aborts the transaction that ran it; one beside it does not."""
        one, two = connect(), connect()
        query = one.collection("exams").where(filter=FieldFilter("kind", "==", "quiz"))
        for kind, aborted in (("test", False), ("quiz", True)):
            transaction = one.transaction()
            transaction._begin()
            assert list(query.stream(transaction=transaction)) == []
            two.document(f"exams/{kind}").set({"kind": kind})
            transaction.set(one.document("log/1"), {"kind": kind})
            if aborted:
                with pytest.raises(exceptions.Aborted):
                    transaction._commit()
            else:
                transaction._commit()
        assert one.document("log/1").get().to_dict() == {"kind": "test"}

    def test_reads_of_a_transaction_are_one_snapshot(self, connect: Callable[[], Client]) -> None:
        """A transaction never sees half of another's commit."""
        one, two = connect(), connect()
        for path in ("exams/a", "exams/b"):
            one.document(path).set({"n": 1})
        transaction = one.transaction(read_only=True)
        transaction._begin()
        first = one.document("exams/a").get(transaction=transaction).get("n")
        batch = two.batch()
        for path in ("exams/a", "exams/b"):
            batch.update(two.document(path), {"n": 2})
        batch.commit()
        assert one.document("exams/b").get(transaction=transaction).get("n") == first
        transaction._commit()

    def test_create_in_two_transactions(self, connect: Callable[[], Client]) -> None:
        """A document that a transaction found missing and another one made aborts the first."""
        one, two = connect(), connect()
        transaction = one.transaction()
        transaction._begin()
        assert not one.document("exams/a").get(transaction=transaction).exists
        two.document("exams/a").set({"by": "two"})
        transaction.set(one.document("exams/a"), {"by": "one"})
        with pytest.raises(exceptions.Aborted):
            transaction._commit()
        assert one.document("exams/a").get().to_dict() == {"by": "two"}

    def test_open_transaction_holds_up_nobody(self, connect: Callable[[], Client]) -> None:
        """A client that reads in a transaction and goes away does not lock the document."""
        one, two = connect(), connect()
        one.document("exams/a").set({"n": 1})
        transaction = one.transaction()
        transaction._begin()
        one.document("exams/a").get(transaction=transaction)
        two.document("exams/a").update({"n": 2}, timeout=2)
        assert two.document("exams/a").get().to_dict() == {"n": 2}

    def test_ended_transaction_cannot_be_used(self, db: Client) -> None:
        """A transaction that was rolled back is no longer valid."""
        transaction = db.transaction()
        transaction._begin()
        identifier = transaction.id
        transaction._rollback()
        transaction._id = identifier
        with pytest.raises(exceptions.InvalidArgument, match="transaction has expired"):
            db.document("exams/a").get(transaction=transaction)

    def test_read_only_transaction_refuses_writes(self, db: Client, raw: FirestoreClient) -> None:
        """A read-only transaction can't write."""
        database = db._database_string
        begun = raw.begin_transaction({"database": database, "options": {"read_only": {}}})
        write = types.Write(delete=f"{database}/documents/exams/a")
        with pytest.raises(exceptions.InvalidArgument, match="read-only"):
            raw.commit({"database": database, "writes": [write], "transaction": begun.transaction})


class TestLimits:
    @pytest.mark.parametrize(
        "name",
        [".", "..", "__a__", "a" * 1501, "ü" * 751, ""],
        ids=["dot", "dots", "reserved", "long", "utf8", "empty"],
    )
    def test_bad_ids(self, db: Client, raw: FirestoreClient, name: str) -> None:
        """Ids that Firestore does not allow are refused for documents and collections, read or written."""
        database = db._database_string
        for path in (f"exams/{name}", f"exams/a/{name}/b"):
            document = f"{database}/documents/{path}"
            with pytest.raises(exceptions.InvalidArgument):
                raw.commit({"database": database, "writes": [{"update": {"name": document}}]})
            with pytest.raises(exceptions.InvalidArgument):
                list(raw.batch_get_documents({"database": database, "documents": [document]}))

    def test_longest_id(self, db: Client) -> None:
        """1500 bytes are allowed."""
        db.collection("exams").document("a" * 1500).set({})
        assert ids(db.collection("exams").stream()) == ["a" * 1500]

    def test_names_that_are_no_documents(self, db: Client, raw: FirestoreClient) -> None:
        """A collection's name, another database and nonsense are refused with the right code."""
        root = db._database_string.removesuffix("(default)")
        for name, error in (
            (f"{root}(default)/documents/exams", exceptions.InvalidArgument),
            (f"{root}(default)/documents", exceptions.InvalidArgument),
            ("exams/a", exceptions.InvalidArgument),
            (f"{root}other/documents/exams/a", exceptions.NotFound),
        ):
            with pytest.raises(error):
                raw.get_document({"name": name})

    def test_document_size(self, db: Client) -> None:
        """A document may have 1,048,576 bytes, counted as Google documents it, and not one more."""
        # name: exams 6, a 2, and 16; document 32; field name 2; text: its bytes and 1
        room = 1_048_576 - (6 + 2 + 16) - 32
        fields = {"a": "x" * 1_000_000, "b": "x" * (room - (2 + 1_000_001) - (2 + 1))}
        db.document("exams/a").set(fields)
        fields["b"] += "x"
        with pytest.raises(exceptions.InvalidArgument, match=r"\(1,048,577 bytes\) exceeds the maximum allowed size"):
            db.document("exams/a").set(fields)
        with pytest.raises(exceptions.InvalidArgument, match="exceeds the maximum"):
            db.document("exams/a").update({"c": True})

    def test_request_size(self, db: Client) -> None:
        """A request of more than 10 MiB is refused by Firestore's own error, and nothing of it happens."""
        batch = db.batch()
        for number in range(11):
            batch.set(db.document(f"exams/{number}"), {"a": "x" * 1_000_000})
        with pytest.raises(exceptions.InvalidArgument, match="Request payload size exceeds the limit: 10485760 bytes"):
            batch.commit()
        assert db.collection("exams").count().get()[0][0].value == 0

    def test_large_answers(self, db: Client) -> None:
        """Reading has no limit of gRPC's 4 MiB."""
        for number in range(8):
            db.document(f"exams/{number}").set({"a": "x" * 1_000_000})
        assert sum(len(found.get("a")) for found in db.collection("exams").stream()) == 8_000_000

    def test_arrays_in_arrays(self, db: Client) -> None:
        """An array can't hold an array."""
        with pytest.raises(exceptions.InvalidArgument, match="array value"):
            db.document("exams/a").set({"a": [[1]]})

    def test_reserved_and_deep_fields(self, db: Client) -> None:
        """Field names of the form __x__ and maps nested more than 20 deep are refused."""
        with pytest.raises(exceptions.InvalidArgument, match="reserved"):
            db.document("exams/a").set({"__a__": 1})
        deep: dict[str, Any] = {}
        for _ in range(19):
            deep = {"m": deep}
        db.document("exams/a").set({"m": deep})
        with pytest.raises(exceptions.InvalidArgument, match="nested"):
            db.document("exams/a").set({"m": {"m": deep}})


@contextmanager
def watching(target: Any) -> Iterator[Callable[[], tuple[list[str], list[tuple[str, str]]]]]:
    """Listen; the function waits for the next snapshot: its ids in order, and its changes."""
    snapshots: queue.Queue[tuple[list[str], list[tuple[str, str]]]] = queue.Queue()

    def keep(documents: Any, changes: Any, _: Any) -> None:
        snapshots.put((ids(documents), [(change.type.name, change.document.id) for change in changes]))

    watch = target.on_snapshot(keep)
    try:
        yield lambda: snapshots.get(timeout=PATIENCE)
    finally:
        watch.unsubscribe()


class TestListen:
    def test_document(self, db: Client) -> None:
        """A watched document is told at once, missing or not, and at each change."""
        exam = db.document("exams/a")
        with watching(exam) as snapshot:
            assert snapshot() == ([], [])
            exam.set({"n": 1})
            assert snapshot() == (["a"], [("ADDED", "a")])
            exam.update({"n": 2})
            assert snapshot() == (["a"], [("MODIFIED", "a")])
            exam.delete()
            assert snapshot() == ([], [("REMOVED", "a")])

    def test_query(self, db: Client) -> None:
        """A watched query tells what enters, changes and leaves it, also by a limit, one snapshot a commit."""
        exams = db.collection("exams")
        for number, name in enumerate("abc"):
            exams.document(name).set({"n": number, "kind": "quiz"})
        query = exams.where(filter=FieldFilter("kind", "==", "quiz")).order_by("n").limit(2)
        with watching(query) as snapshot:
            assert snapshot() == (["a", "b"], [("ADDED", "a"), ("ADDED", "b")])
            exams.document("b").update({"text": "new"})
            assert snapshot() == (["a", "b"], [("MODIFIED", "b")])
            exams.document("b").update({"kind": "test"})
            assert snapshot() == (["a", "c"], [("REMOVED", "b"), ("ADDED", "c")])
            db.document("other/x").set({"kind": "quiz"})
            batch = db.batch()
            batch.delete(exams.document("a"))
            batch.update(exams.document("c"), {"n": -1})
            batch.commit()
            assert snapshot() == (["c"], [("REMOVED", "a"), ("MODIFIED", "c")])

    def test_collection_group(self, db: Client) -> None:
        """A collection group can be watched."""
        with watching(db.collection_group("questions")) as snapshot:
            assert snapshot() == ([], [])
            db.document("exams/a/questions/1").set({})
            assert snapshot() == (["1"], [("ADDED", "1")])

    def test_resume_after_a_broken_stream(self, db: Client, server: FirestoreServer) -> None:
        """A client whose stream breaks resumes from its token and hears what it missed, deletions included."""
        exams = db.collection("exams")
        exams.document("a").set({})
        exams.document("b").set({})
        with grpc.insecure_channel(server.address) as channel:
            api = FirestoreClient(transport=FirestoreGrpcTransport(channel=channel))
            parent, query = exams._parent_info()[0], exams._query()._to_protobuf()
            target = {"target_id": 7, "query": {"parent": parent, "structured_query": query}}
            first = list(_until_consistent(api, db, target))
            token = first[-1].target_change.resume_token
            assert [answer.document_change.document.name[-1] for answer in first if answer.document_change] == [
                "a",
                "b",
            ]
            exams.document("a").delete()
            exams.document("c").set({})
            second = list(_until_consistent(api, db, {**target, "resume_token": token}))
        assert [answer.document_delete.document[-1] for answer in second if answer.document_delete] == ["a"]
        assert [answer.document_change.document.name[-1] for answer in second if answer.document_change] == ["c"]

    def test_server_restarts(self, tmp_path: Path, client_at: Callable[[str], Client]) -> None:
        """A watch outlives the server: it starts over from what the next one holds."""
        server = FirestoreServer(state=tmp_path / "state").start()
        try:
            exams = client_at(server.address).collection("exams")
            exams.document("a").set({})
            exams.document("b").set({})
            with watching(exams) as snapshot:
                assert snapshot()[0] == ["a", "b"]
                server.stop()
                port = int(server.address.rpartition(":")[2])
                server = FirestoreServer(state=tmp_path / "state", port=port).start()
                exams.document("a").delete()
                while snapshot()[0] != ["b"]:
                    pass
        finally:
            server.stop()

    def test_bad_query(self, db: Client, raw: FirestoreClient) -> None:
        """A target that can't be listened to is removed with its error; the stream lives on."""
        query = {"from_": [{"collection_id": "__bad__"}]}
        target = {"target_id": 7, "query": {"parent": f"{db._database_string}/documents", "structured_query": query}}
        answer = next(iter(_answers(raw, db, target)))
        assert answer.target_change.target_change_type == types.TargetChange.TargetChangeType.REMOVE
        assert answer.target_change.cause.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


@contextmanager
def _requests(*wanted: types.ListenRequest) -> Iterator[Iterator[types.ListenRequest]]:
    ended = threading.Event()

    def requests() -> Iterator[types.ListenRequest]:
        yield from wanted
        ended.wait(PATIENCE)

    try:
        yield requests()
    finally:
        ended.set()


def _answers(api: FirestoreClient, db: Client, target: dict[str, Any]) -> Generator[types.ListenResponse, None, None]:
    request = types.ListenRequest(database=db._database_string, add_target=target)
    with _requests(request) as requests:
        yield from api.listen(requests)


def _until_consistent(api: FirestoreClient, db: Client, target: dict[str, Any]) -> Iterator[types.ListenResponse]:
    """Yield answers up to the one that says that nothing is missing."""
    for answer in _answers(api, db, target):
        yield answer
        change = answer.target_change
        if change and change.target_change_type == types.TargetChange.TargetChangeType.NO_CHANGE:
            return


class TestFaults:
    def test_error_before_the_call(self, db: Client, server: FirestoreServer) -> None:
        """The next calls fail without effect; the one after them works."""
        server.faults.fail("Commit", grpc.StatusCode.PERMISSION_DENIED, times=2)
        for _ in range(2):
            with pytest.raises(exceptions.PermissionDenied, match="injected"):
                db.document("exams/a").set({})
        assert not db.document("exams/a").get().exists
        db.document("exams/a").set({})

    def test_error_after_the_call(self, db: Client, server: FirestoreServer) -> None:
        """The work is done but the client is told otherwise."""
        server.faults.fail("Commit", grpc.StatusCode.INTERNAL, after=True)
        with pytest.raises(exceptions.InternalServerError):
            db.document("exams/a").create({})
        with pytest.raises(exceptions.AlreadyExists):
            db.document("exams/a").create({})

    def test_delay(self, db: Client, server: FirestoreServer) -> None:
        """A delayed call runs into the client's own deadline."""
        db.document("exams/a").set({})
        server.faults.delay("Commit", seconds=1.0)
        with pytest.raises((exceptions.DeadlineExceeded, exceptions.RetryError)):
            db.document("exams/a").set({}, timeout=0.2)
        db.document("exams/a").set({}, timeout=0.2)

    def test_client_retries_unavailable(self, db: Client, server: FirestoreServer) -> None:
        """The client's own retries get over a short outage."""
        server.faults.fail("Commit", grpc.StatusCode.UNAVAILABLE, times=2)
        db.document("exams/a").set({"n": 1})
        assert server.faults.pending() == 0
        assert db.document("exams/a").get().to_dict() == {"n": 1}

    def test_bad_fault(self, server: FirestoreServer) -> None:
        """What is no fault is refused."""
        with pytest.raises(grpc.RpcError) as caught:
            inject(server.address, method="Commit", code="NONSENSE")
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the stand-in as its users do; yields it and its address."""
    command = [sys.executable, "-m", "superexam_rq.sandbox.firestore", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            yield running, running.stdout.readline().strip().rpartition("=")[2]
        finally:
            running.kill()


@pytest.fixture
def client_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Client]]:
    """Make clients of a server at an address."""
    clients = []

    def make(address: str) -> Client:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", address)
        clients.append(firestore.Client(project="demo"))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


class TestStateFile:
    def test_documents_survive_a_restart(self, tmp_path: Path, client_at: Callable[[str], Client]) -> None:
        """Documents, their times and their deletions outlive the server; the clock goes on."""
        with FirestoreServer(state=tmp_path / "state") as server:
            db = client_at(server.address)
            db.document("exams/a").set({"n": 1})
            db.document("exams/a").update({"n": 2})
            db.document("exams/gone").set({})
            db.document("exams/gone").delete()
            before = db.document("exams/a").get()
        for _ in range(2):
            with FirestoreServer(state=tmp_path / "state") as server:
                db = client_at(server.address)
                assert ids(db.collection("exams").stream()) == ["a"]
                after = db.document("exams/a").get()
                assert after.to_dict() == {"n": 2}
                assert (after.create_time, after.update_time) == (before.create_time, before.update_time)
        assert [path.name for path in tmp_path.iterdir()] == ["state"]

    def test_kill_loses_nothing_acknowledged(self, tmp_path: Path, client_at: Callable[[str], Client]) -> None:
        """After kill -9 every commit that was answered is there; a record cut short is ignored."""
        state = tmp_path / "state"
        with process("--state", str(state)) as (running, address):
            db = client_at(address)
            for number in range(30):
                db.document(f"exams/{number}").set({"n": number})
            running.send_signal(signal.SIGKILL)
            running.wait(PATIENCE)
        with state.open("ab") as file:
            file.write(b"\0\0\1\0half a record")
        with FirestoreServer(state=state) as server:
            db = client_at(server.address)
            assert db.collection("exams").count().get()[0][0].value == 30
            db.document("exams/more").set({})
        with FirestoreServer(state=state) as server:
            assert client_at(server.address).document("exams/more").get().exists

    def test_file_that_is_not_ours(self, tmp_path: Path) -> None:
        """A file of another program is refused and left as it is."""
        other = tmp_path / "thesis.txt"
        other.write_text("years of work\n")
        with pytest.raises(OSError, match="not a state file"):
            FirestoreServer(state=other).start()
        assert other.read_text() == "years of work\n"

    def test_file_in_use(self, tmp_path: Path) -> None:
        """Two servers never share a state file."""
        with (
            FirestoreServer(state=tmp_path / "state"),
            pytest.raises(OSError, match="in use by another process"),
        ):
            FirestoreServer(state=tmp_path / "state").start()


class TestProcess:
    def test_taken_port(self) -> None:
        """A taken port is one clear line and exit code 1, not a second server on the same port."""
        with process() as (_, address):
            port = address.rpartition(":")[2]
            command = [sys.executable, "-m", "superexam_rq.sandbox.firestore", "--port", port]
            second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert second.returncode == 1
        assert second.stdout == ""
        assert second.stderr.count("\n") == 1
        assert f"cannot listen on 127.0.0.1:{port}" in second.stderr

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signal_ends_it_with_streams_open(self, number: signal.Signals, client_at: Callable[[str], Client]) -> None:
        """It stops soon with clients listening, says nothing and returns 0.

        The client here is the generated one: the friendly one's watch goes on calling a server that is gone.
        """
        with process() as (running, address), grpc.insecure_channel(address) as channel:
            api = FirestoreClient(transport=FirestoreGrpcTransport(channel=channel))
            db = client_at(address)
            documents = {"documents": [f"{db._database_string}/documents/exams/a"]}
            answers = _answers(api, db, {"target_id": 7, "documents": documents})
            assert next(answers).target_change.target_ids == [7]
            running.send_signal(number)
            assert running.wait(PATIENCE) == 0
            answers.close()
            assert running.stderr is not None
            assert running.stderr.read() == ""

    def test_faults_from_outside(self, client_at: Callable[[str], Client]) -> None:
        """Another process can inject faults over the same port."""
        with process() as (_, address):
            db = client_at(address)
            assert inject(address, method="Commit", code="PERMISSION_DENIED", times=2) == 2
            with pytest.raises(exceptions.PermissionDenied):
                db.document("exams/a").set({})
            assert inject(address, clear=True) == 0
            db.document("exams/a").set({})
            assert inject(address, method="Commit", seconds=0.01) == 1
            db.document("exams/a").set({"n": 1})
            assert inject(address) == 0
