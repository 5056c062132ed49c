"""The Listen stream: what a client's targets (documents or a query) hold, and what each commit changes."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING

import grpc
from google.cloud.firestore_v1 import types

from superexam_rq.sandbox.firestore.names import FirestoreError, check_document_name, check_parent
from superexam_rq.sandbox.firestore.query import Query
from superexam_rq.sandbox.firestore.state import Change, Store
from superexam_rq.sandbox.firestore.values import Message, to_micros, to_timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_Response = types.ListenResponse.pb()
_Type = types.TargetChange.TargetChangeType
_TOKEN_BYTES = 8


class _Target:
    """One target of a stream, and what the client knows of it."""

    def __init__(self, store: Store, wanted: Message) -> None:
        self.identifier: int = wanted.target_id
        self.at = 0  # microseconds: what the client was told is true of this time
        self._store = store
        self._known: dict[str, int] = {}  # name -> update time
        self._names = list(wanted.documents.documents)
        self._query: Query | None = None
        if wanted.HasField("query"):
            check_parent(wanted.query.parent)
            self._query = Query(wanted.query.parent, wanted.query.structured_query)
        for name in self._names:
            check_document_name(name)

    def concerns(self, change: Change) -> bool:
        """Tell whether a commit can change the target and is news."""
        if change.micros <= self.at:
            return False
        if self._query is not None:
            return any(map(self._query.covers_document, change.names))
        return not change.names.isdisjoint(self._names)

    def resume(self, at: int) -> None:
        """Take it that the client knows what held at a time (microseconds)."""
        self._known = {document.name: to_micros(document.update_time) for document in self._documents(at)}

    def advance(self, at: int) -> Iterator[Message]:
        """Yield the changes from what the client knows to what holds at a time (microseconds)."""
        documents = self._documents(at)
        known = {document.name: to_micros(document.update_time) for document in documents}
        before, self._known = self._known, known
        gone = [name for name in before if name not in known]
        if self.at == 0:  # a document that was never there has to be told once
            gone += [name for name in self._names if name not in known and name not in before]
        self.at = at
        for name in gone:
            kind = "document_delete" if self._store.read(name, at) is None else "document_remove"
            removal = {"document": name, "removed_target_ids": [self.identifier]}
            yield _Response(**{kind: {**removal, "read_time": to_timestamp(at)}})
        for document in documents:
            if before.get(document.name) != known[document.name]:
                shown = self._query.project(document) if self._query is not None else document
                yield _Response(document_change={"document": shown, "target_ids": [self.identifier]})

    def _documents(self, at: int) -> list[Message]:
        if self._query is not None:
            return self._store.run(self._query, at)
        return [document for name in self._names if (document := self._store.read(name, at)) is not None]


class Listener:
    """One Listen stream. ``run`` ends when the client, the server or the connection does."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._events: queue.SimpleQueue[Message | Change | None] = queue.SimpleQueue()
        self._targets: dict[int, _Target] = {}

    def run(self, requests: Iterator[Message], on_end: Callable[[Callable[[], None]], bool]) -> Iterator[Message]:
        """Yield the answers to a stream of requests.

        ``on_end`` takes a function to call when the stream is over; it returns False if it is over already.
        """
        if not on_end(lambda: self._events.put(None)):
            return
        self._store.subscribe(self._events)
        threading.Thread(target=self._receive, args=(requests,), name="firestore-listen", daemon=True).start()
        try:
            while (event := self._events.get()) is not None:
                if isinstance(event, Change):
                    yield from self._tell(event)
                elif event.WhichOneof("target_change") == "add_target":
                    yield from self._add(event.add_target)
                else:
                    self._targets.pop(event.remove_target, None)
                    yield _target_change(_Type.REMOVE, [event.remove_target])
        finally:
            self._store.unsubscribe(self._events)

    def _receive(self, requests: Iterator[Message]) -> None:
        with contextlib.suppress(grpc.RpcError):  # the client went away
            for request in requests:
                self._events.put(request)
        self._events.put(None)

    def _add(self, wanted: Message) -> Iterator[Message]:
        try:
            target = _Target(self._store, wanted)
        except FirestoreError as error:
            yield _target_change(_Type.REMOVE, [wanted.target_id], cause=error)
            return
        self._targets[target.identifier] = target
        yield _target_change(_Type.ADD, [target.identifier])
        since = _resume_time(wanted)
        if since:
            try:
                self._store.check_readable(since)
                target.resume(since)
            except FirestoreError:  # too long ago: begin anew
                yield _target_change(_Type.RESET, [target.identifier])
        at = self._store.now()
        yield from target.advance(at)
        yield _target_change(_Type.CURRENT, [target.identifier], at=at)
        yield _target_change(_Type.NO_CHANGE, [], at=at)

    def _tell(self, change: Change) -> Iterator[Message]:
        answers = [
            answer
            for target in self._targets.values()
            if target.concerns(change)
            for answer in target.advance(change.micros)
        ]
        if answers:
            yield from answers
            yield _target_change(_Type.NO_CHANGE, [], at=change.micros)


def _resume_time(wanted: Message) -> int:
    """Return the time (microseconds) that a client resumes from, or 0."""
    if wanted.WhichOneof("resume_type") == "read_time":
        return to_micros(wanted.read_time)
    return int.from_bytes(wanted.resume_token, "big")


def _target_change(kind: int, targets: list[int], at: int = 0, cause: FirestoreError | None = None) -> Message:
    change = {"target_change_type": kind, "target_ids": targets}
    if at:
        change |= {"read_time": to_timestamp(at), "resume_token": at.to_bytes(_TOKEN_BYTES, "big")}
    if cause is not None:
        change["cause"] = {"code": cause.code.value[0], "message": str(cause)}
    return _Response(target_change=change)
