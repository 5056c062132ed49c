"""The Firestore stand-in's pure parts: order and size of values, field paths, names."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.cloud.firestore_v1 import GeoPoint, _helpers, types
from google.cloud.firestore_v1.field_path import FieldPath
from google.cloud.firestore_v1.vector import Vector
from hypothesis import given
from hypothesis import strategies as st

from superexam_rq.sandbox.firestore.names import FirestoreError, check_document_name, parse_field_path
from superexam_rq.sandbox.firestore.values import MAX_DOCUMENT_BYTES, Document, check_document, name_key, sort_key

ROOT = "projects/p/databases/(default)/documents"
NOW = datetime(2026, 1, 1, tzinfo=UTC)

# From Google's page on data types, smallest first; equal ones share a row.
ORDER: list[list[Any]] = [
    [None],
    [False],
    [True],
    [float("nan")],
    [float("-inf")],
    [-(2**63), float(-(2**63))],
    [-1.5],
    [0, 0.0, -0.0],
    [1, 1.0],
    [2**53],
    [2**53 + 1],
    [float("inf")],
    [NOW],
    [NOW + timedelta(microseconds=1)],
    [""],
    ["a"],
    ["a\0"],
    ["ab"],
    ["z"],
    ["ä"],
    ["\uffff"],
    ["\U00010000"],
    [b""],
    [b"\x01"],
    [b"\xff"],
    [GeoPoint(-1, 5)],
    [GeoPoint(1, -5)],
    [GeoPoint(1, 0)],
    [[]],
    [["a"]],
    [["a", 1]],
    [["b"]],
    [Vector([9.0])],
    [Vector([1.0, 2.0])],
    [{}],
    [{"a": 1}],
    [{"a": 1, "b": 1}],
    [{"a": 2}],
    [{"b": 0}],
]


def value(python: Any) -> Any:
    """Encode as the client does."""
    return _helpers.encode_value(python)._pb


def test_order_of_all_types() -> None:
    """Values sort by type first, then by value; numbers of both types compare exactly."""
    rows = [(index, value(item)) for index, row in enumerate(ORDER) for item in row]
    random.Random(1).shuffle(rows)
    rows.sort(key=lambda row: sort_key(row[1]))
    assert [index for index, _ in rows] == sorted(index for index, _ in rows)
    for row in ORDER:
        assert len({sort_key(value(item)) for item in row}) == 1


def test_names_sort_id_by_id() -> None:
    """Names compare segment by segment, so a child comes right after its parent; numeric ids come first."""
    names = ["a/__id-7__", "a/__id10__", "a/1", "a/b", "a/b/c/d", "a/b!", "a/ä"]
    assert sorted(set(names), key=name_key) == names


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_field_paths_of_the_client_are_understood(parts: list[str]) -> None:
    """Whatever names the client quotes come back unchanged."""
    assert parse_field_path(FieldPath(*parts).to_api_repr()) == tuple(parts)


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a..b", "1a", "a-b", "`a", "a`", "``", "a b", "`a`b", "a.`b`c"])
def test_bad_field_paths(text: str) -> None:
    """Anything else is an invalid argument."""
    with pytest.raises(FirestoreError, match="Invalid property path"):
        parse_field_path(text)


def test_document_size_of_the_documentation() -> None:
    """Google's own example comes to 147 bytes: the largest text that fits beside it shows that."""
    fields = {"type": "Personal", "done": False, "priority": 1, "description": "Learn Cloud Firestore"}
    room = MAX_DOCUMENT_BYTES - 147 - 2 * len("x ")
    halves = {"x": "-" * (room // 2 - 1), "y": "-" * (room - room // 2 - 1)}
    name = f"{ROOT}/users/jeff/tasks/my_task_id"

    def document(extra: str) -> Any:
        texts = halves | {"y": halves["y"] + extra}
        return Document(name=name, fields={key: value(item) for key, item in (fields | texts).items()})

    check_document(document(""))
    with pytest.raises(FirestoreError, match="1,048,577 bytes"):
        check_document(document("-"))


def test_value_without_a_type_is_refused() -> None:
    """An empty protobuf value is no Firestore value."""
    with pytest.raises(FirestoreError, match="no type"):
        check_document(Document(name=f"{ROOT}/a/b", fields={"x": types.Value.pb()()}))


@pytest.mark.parametrize("path", ["a/b", "a/b/c/d", "Größe/ß", "a b/c:d"])
def test_good_names(path: str) -> None:
    """Ids may hold almost anything."""
    check_document_name(f"{ROOT}/{path}")


@pytest.mark.parametrize("path", ["", "a", "a/b/c", "a//b", "a/b/", "a/.", "a/..", "a/__x__", "a/" + "x" * 1501])
def test_bad_names(path: str) -> None:
    """A name that is no document's is refused."""
    with pytest.raises(FirestoreError):
        check_document_name(f"{ROOT}/{path}")
