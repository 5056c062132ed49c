"""The documents with their recent history: reads, atomic commits, transactions, subscriptions.

One lock, one clock. Every document keeps its versions of the last minutes, so that a transaction reads one
consistent snapshot. Transactions are optimistic: nothing is locked while one runs, and its commit is ABORTED
if anything that it read has changed since (a query's result included). A retried transaction waits for its
turn, and what it has read is kept from others until it ends, so that a crowd does not use up its retries. No
gRPC here but for status codes.
"""

from __future__ import annotations

import secrets
import threading
import time
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import grpc
from google.cloud.firestore_v1 import types

from superexam_rq.sandbox.firestore.names import (
    FirestoreError,
    check_document_name,
    collection_of,
    invalid,
    parse_field_path,
)
from superexam_rq.sandbox.firestore.statefile import StateFile
from superexam_rq.sandbox.firestore.values import (
    Document,
    Message,
    check_document,
    copy_masked,
    get_field,
    name_key,
    set_field,
    to_micros,
    to_timestamp,
    transform,
)

if TYPE_CHECKING:
    import queue
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from superexam_rq.sandbox.firestore.query import Query

HISTORY = 300.0  # seconds for which old versions stay readable; longer than any transaction lives
TRANSACTION_LIFETIME = 270.0  # seconds, Google's limit
TRANSACTION_IDLE = 60.0  # seconds, Google's limit

TURN = 5.0  # seconds for which a retried transaction keeps others waiting
_WriteResult = types.WriteResult.pb()


class Change(NamedTuple):
    """A commit as subscribers hear of it."""

    micros: int
    names: frozenset[str]


class _Version(NamedTuple):
    micros: int
    document: Message | None


@dataclass
class Transaction:
    """What an open transaction has read, and when."""

    read_only: bool
    snapshot: int | None  # set by the first read
    started: float
    used: float
    names: set[str] = field(default_factory=set)
    queries: list[Query] = field(default_factory=list)

    def reads(self, names: set[str]) -> bool:
        """Tell whether it has read one of these documents, or a query that may hold it."""
        return not self.names.isdisjoint(names) or any(
            query.covers_document(name) for query in self.queries for name in names
        )


class Store:
    """All documents of all projects.

    Thread-safe. ``path``: the state file, read now and written at each commit; see ``StateFile``.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.Condition(threading.RLock())
        self._versions: dict[str, list[_Version]] = {}
        self._collections: dict[str, set[str]] = {}  # path -> names with a version, deleted ones included
        self._superseded: deque[tuple[int, str]] = deque()
        self._transactions: dict[bytes, Transaction] = {}
        self._subscribers: list[queue.SimpleQueue[Change | None]] = []
        self._turn = b""  # the retried transaction that others wait for
        self._turn_ends = 0.0
        self._clock = 0
        self._last_commit = 0
        self._file = StateFile(path) if path else None
        for name, document in (self._file.documents if self._file else {}).items():
            self._store({name: document}, to_micros(document.update_time))
            self._clock = max(self._clock, self._last_commit)
        self._oldest = self.now()

    # Time and reading

    def now(self) -> int:
        """Return microseconds since 1970, larger at each call."""
        with self._lock:
            self._clock = max(time.time_ns() // 1000, self._clock + 1)
            return self._clock

    def read(self, name: str, at: int) -> Message | None:
        """Return the document as it was at a time (microseconds), or None."""
        with self._lock:
            versions = self._versions.get(name, [])
            index = bisect_right(versions, at, key=lambda version: version.micros)
            return versions[index - 1].document if index else None

    def run(self, query: Query, at: int) -> list[Message]:
        """Return a query's result as it was at a time (microseconds)."""
        with self._lock:
            return query.run(self._covered(query, at))

    def _covered(self, query: Query, at: int) -> Iterator[Message]:
        for path, names in self._collections.items():
            if query.covers(path):
                for name in names:
                    if (document := self.read(name, at)) is not None:
                        yield document

    def collection_ids(self, parent: str, at: int) -> list[str]:
        """Return the ids of the collections right under a document or the root, sorted."""
        return sorted({rest.partition("/")[0] for rest in self._below(parent, at)}, key=str.encode)

    def document_names(self, collection: str, at: int, *, missing: bool) -> list[str]:
        """Return the names of a collection's documents, sorted.

        ``missing``: also those that do not exist but have subcollections.
        """
        rests = [rest.partition("/") for rest in self._below(collection, at)]
        names = {f"{collection}/{rest[0]}" for rest in rests if missing or not rest[1]}
        return sorted(names, key=name_key)

    def _below(self, prefix: str, at: int) -> list[str]:
        with self._lock:
            return [
                name[len(prefix) + 1 :]
                for path, names in self._collections.items()
                if f"{path}/".startswith(f"{prefix}/")
                for name in names
                if self.read(name, at) is not None
            ]

    def check_readable(self, at: int) -> None:
        """Refuse a time (microseconds) that history does not reach."""
        if at < max(self._oldest, self.now() - int(HISTORY * 1e6)):
            raise FirestoreError(grpc.StatusCode.FAILED_PRECONDITION, "The requested snapshot version is too old.")

    def subscribe(self, events: queue.SimpleQueue[Change | None]) -> None:
        """Have each later commit put into a queue."""
        with self._lock:
            self._subscribers.append(events)

    def unsubscribe(self, events: queue.SimpleQueue[Change | None]) -> None:
        """End a subscription."""
        with self._lock:
            self._subscribers.remove(events)

    # Transactions

    def begin(self, *, retry: bool = False, read_only: bool = False, snapshot: int | None = None) -> bytes:
        """Open a transaction and return its id; ``retry``: wait until no other retried one is open."""
        with self._lock:
            while retry and self._others_turn(b""):
                self._lock.wait(self._turn_ends - time.monotonic())
            for identifier in [key for key, value in self._transactions.items() if _expired(value)]:
                del self._transactions[identifier]
            identifier = secrets.token_bytes(16)
            moment = time.monotonic()
            self._transactions[identifier] = Transaction(read_only, snapshot, moment, moment)
            if retry:
                self._turn, self._turn_ends = identifier, moment + TURN
            return identifier

    def transaction(self, identifier: bytes) -> Transaction:
        """Return an open transaction."""
        with self._lock:
            found = self._transactions.get(identifier)
            if found is None or _expired(found):
                # The Node client retries this one by its words.
                raise invalid("The referenced transaction has expired or is no longer valid.")
            found.used = time.monotonic()
            return found

    def snapshot(self, identifier: bytes) -> int:
        """Return the time (microseconds) that a transaction reads at: that of its first read."""
        with self._lock:
            found = self.transaction(identifier)
            if found.snapshot is None:
                found.snapshot = self.now()
            self.check_readable(found.snapshot)
            return found.snapshot

    def rollback(self, identifier: bytes) -> None:
        """Forget a transaction, open or not."""
        with self._lock:
            self._transactions.pop(identifier, None)
            self._lock.notify_all()

    def _others_turn(self, identifier: bytes) -> Transaction | None:
        """Return the retried transaction that this one (b"": none yet) has to wait for, if any."""
        if identifier == self._turn or time.monotonic() >= self._turn_ends:
            return None
        return self._transactions.get(self._turn)

    def _end(self, identifier: bytes, *, writes: bool) -> None:
        """Close a transaction that is about to commit; ABORTED if what it read has changed."""
        ended = self.transaction(identifier)
        self.rollback(identifier)
        if ended.read_only and writes:
            raise invalid("Cannot modify entities in a read-only transaction.")
        if ended.read_only or ended.snapshot is None or self._last_commit <= ended.snapshot:
            return
        changed = any(
            versions[-1].micros > ended.snapshot for name in ended.names if (versions := self._versions.get(name))
        )
        if changed or any(self._differs(query, ended.snapshot) for query in ended.queries):
            raise FirestoreError(grpc.StatusCode.ABORTED, "Too much contention on these documents. Please try again.")

    def _differs(self, query: Query, since: int) -> bool:
        before, after = (
            [(document.name, to_micros(document.update_time)) for document in self.run(query, at)]
            for at in (since, self._clock)
        )
        return before != after

    # Writing

    def commit(self, writes: Iterable[Message], transaction: bytes = b"") -> tuple[int, list[Message]]:
        """Apply all writes or none; return the commit time (microseconds) and a ``WriteResult`` for each."""
        writes = list(writes)
        names = {written_name(write) for write in writes}
        with self._lock:
            while (first := self._others_turn(transaction)) and first.reads(names):
                self._lock.wait(self._turn_ends - time.monotonic())
            if transaction:
                self._end(transaction, writes=bool(writes))
            micros = self.now()
            pending: dict[str, Message | None] = {}
            results = [self._apply(write, pending, micros) for write in writes]
            changed = {name: new for name, new in pending.items() if new is not self.read(name, micros)}
            if changed:
                if self._file is not None:
                    self._file.append(changed)
                self._store(changed, micros)
                for events in self._subscribers:
                    events.put(Change(micros, frozenset(changed)))
            return micros, results

    def _apply(self, write: Message, pending: dict[str, Message | None], micros: int) -> Message:
        operation = write.WhichOneof("operation")
        if operation is None:
            raise invalid("A write has no operation.")
        name = written_name(write)
        check_document_name(name)
        current = pending[name] if name in pending else self.read(name, micros)
        _check_precondition(write, name, current)
        if operation == "delete":
            pending[name] = None
            return _WriteResult()
        new = Document(name=name)
        if current is not None and (operation == "transform" or write.HasField("update_mask")):
            new.MergeFrom(current)
        if write.HasField("update_mask"):
            copy_masked(write.update.fields, new.fields, write.update_mask.field_paths)
        elif operation == "update":
            new.fields.MergeFrom(write.update.fields)
        result = _WriteResult()
        for change in (*write.transform.field_transforms, *write.update_transforms):
            path = parse_field_path(change.field_path)
            value, outcome = transform(get_field(new.fields, path), change, micros)
            set_field(new.fields, path, value)
            result.transform_results.append(outcome)
        check_document(new)
        if current is not None and _same_fields(current, new):
            new = current
        else:
            new.create_time.CopyFrom(current.create_time if current is not None else to_timestamp(micros))
            new.update_time.CopyFrom(to_timestamp(micros))
        pending[name] = new
        result.update_time.CopyFrom(new.update_time)
        return result

    def _store(self, changed: dict[str, Message | None], micros: int) -> None:
        self._last_commit = micros
        for name, document in changed.items():
            self._versions.setdefault(name, []).append(_Version(micros, document))
            self._collections.setdefault(collection_of(name), set()).add(name)
            self._superseded.append((micros, name))
        horizon = micros - int(HISTORY * 1e6)
        while self._superseded and self._superseded[0][0] < horizon:
            self._forget(self._superseded.popleft()[1], horizon)

    def _forget(self, name: str, horizon: int) -> None:
        """Drop the versions of a document that nobody can ask for any more."""
        versions = self._versions.get(name, [])
        keep = max(bisect_right(versions, horizon, key=lambda version: version.micros) - 1, 0)
        del versions[:keep]
        if len(versions) == 1 and versions[0].document is None and versions[0].micros <= horizon:
            del self._versions[name]
            collection = collection_of(name)
            self._collections[collection].discard(name)
            if not self._collections[collection]:
                del self._collections[collection]

    def close(self) -> None:
        """Close the state file, and let nobody wait for a turn any more."""
        with self._lock:
            self._turn_ends = 0.0
            self._lock.notify_all()
            if self._file is not None:
                self._file.close()
                self._file = None


def _check_precondition(write: Message, name: str, current: Message | None) -> None:
    condition = write.current_document
    kind = condition.WhichOneof("condition_type")
    if kind == "exists" and condition.exists and current is None:
        raise FirestoreError(grpc.StatusCode.NOT_FOUND, f"No document to update: {name}")
    if kind == "exists" and not condition.exists and current is not None:
        raise FirestoreError(grpc.StatusCode.ALREADY_EXISTS, f"Document already exists: {name}")
    if kind == "update_time":
        stored = to_micros(current.update_time) if current is not None else 0
        required = to_micros(condition.update_time)
        if current is None or stored != required:
            raise FirestoreError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"the stored version ({stored}) does not match the required base version ({required})",
            )


def _same_fields(one: Message, other: Message) -> bool:
    """Compare bit by bit: NaN is the same as NaN, 1 is not the same as 1.0."""
    forms = {Document(fields=item.fields).SerializeToString(deterministic=True) for item in (one, other)}
    return len(forms) == 1


def written_name(write: Message) -> str:
    """Return the name of the document that a write is about."""
    return str(write.update.name or write.delete or write.transform.document)


def _expired(transaction: Transaction) -> bool:
    now = time.monotonic()
    return now - transaction.started > TRANSACTION_LIFETIME or now - transaction.used > TRANSACTION_IDLE
