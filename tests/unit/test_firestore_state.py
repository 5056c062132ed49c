"""The Firestore stand-in's store: how long history, transactions and turns last."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from google.cloud.firestore_v1 import types

from superexam_rq.sandbox.firestore import state
from superexam_rq.sandbox.firestore.names import FirestoreError
from superexam_rq.sandbox.firestore.query import Query
from superexam_rq.sandbox.firestore.state import Store

ROOT = "projects/p/databases/(default)/documents"
NAME = f"{ROOT}/exams/a"


def put(number: int) -> Any:
    """Make a write that replaces the one document."""
    return types.Write.pb()(update={"name": NAME, "fields": {"n": types.Value.pb()(integer_value=number)}})


def remove() -> Any:
    """Make a write that deletes it."""
    return types.Write.pb()(delete=NAME)


def test_old_versions_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory holds what can still be asked for: an update long ago leaves one version, a deletion none."""
    store = Store()
    old, _ = store.commit([put(1)])
    store.commit([put(2)])
    monkeypatch.setattr(state, "HISTORY", 0.0)
    store.commit([types.Write.pb()(delete=f"{ROOT}/exams/none"), put(3)])
    assert store.read(NAME, old) is None
    with pytest.raises(FirestoreError, match="too old"):
        store.check_readable(old)
    store.commit([remove()])
    store.commit([types.Write.pb()(update={"name": f"{ROOT}/other/b"})])
    store.commit([types.Write.pb()(update={"name": f"{ROOT}/other/c"})])
    assert NAME not in store._versions
    assert f"{ROOT}/exams" not in store._collections
    assert store.collection_ids(ROOT, store.now()) == ["other"]


def test_idle_transaction_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that nobody uses for a minute is no longer valid, and is forgotten when the next begins."""
    store = Store()
    identifier = store.begin()
    monkeypatch.setattr(state, "TRANSACTION_IDLE", -1.0)
    with pytest.raises(FirestoreError, match="transaction has expired"):
        store.commit([put(1)], identifier)
    monkeypatch.undo()
    store.commit([put(1)], store.begin())
    assert store.read(NAME, store.now()) is not None


def test_turn_of_a_client_that_went_away_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A retried transaction keeps others from what it read for a limited time only."""
    monkeypatch.setattr(state, "TURN", 1.0)
    store = Store()
    first = store.begin(retry=True)
    store.transaction(first).names.add(NAME)
    store.snapshot(first)
    started = time.monotonic()
    store.commit([types.Write.pb()(delete=f"{ROOT}/exams/other")])
    assert time.monotonic() - started < 0.8
    store.commit([put(1)])
    assert time.monotonic() - started >= 1.0
    with pytest.raises(FirestoreError, match="contention"):
        store.commit([put(2)], first)


def test_retried_transactions_take_turns() -> None:
    """The next retried transaction begins when the one before it has ended."""
    store = Store()
    first = store.begin(retry=True)
    begun = threading.Event()

    def second() -> None:
        store.begin(retry=True)
        begun.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not begun.wait(0.1)
    store.rollback(first)
    assert begun.wait(10)
    thread.join()


def test_closing_lets_nobody_wait() -> None:
    """A server that stops does not wait for turns."""
    store = Store()
    first = store.begin(retry=True)
    store.transaction(first).queries.append(Query(ROOT, types.StructuredQuery.pb()(from_=[{"collection_id": "exams"}])))
    thread = threading.Thread(target=store.commit, args=([put(1)],))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    store.close()
    thread.join(2)
    assert not thread.is_alive()
