"""The RPCs of ``google.firestore.v1.Firestore`` over a ``Store``, and the server that carries them."""

from __future__ import annotations

import contextlib
import secrets
import socket
import string
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import grpc
from google.cloud.firestore_v1 import types
from google.protobuf.empty_pb2 import Empty

from superexam_rq.sandbox.firestore.faults import SERVICE as FAULTS
from superexam_rq.sandbox.firestore.faults import Faults
from superexam_rq.sandbox.firestore.listen import Listener
from superexam_rq.sandbox.firestore.names import (
    FirestoreError,
    check_database,
    check_document_name,
    check_id,
    check_parent,
    invalid,
)
from superexam_rq.sandbox.firestore.query import Query, aggregate
from superexam_rq.sandbox.firestore.state import Store, written_name
from superexam_rq.sandbox.firestore.values import Document, Message, select, to_micros, to_timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_REQUEST_BYTES = 10 * 1024 * 1024
_TRANSPORT_BYTES = 64 * 1024 * 1024  # above the limit, so that the refusal is Firestore's and not gRPC's
_MAX_THREADS = 512  # each open Listen stream holds one
_OPTIONS = [
    ("grpc.so_reuseport", 0),  # with it two servers share one port, each with half of the calls
    ("grpc.max_receive_message_length", _TRANSPORT_BYTES),
    ("grpc.http2.max_ping_strikes", 0),  # by default gRPC drops a client that pings while it only listens
]
_GRACE = 0.1  # seconds between telling clients to go and cutting them off
_ID_ALPHABET = string.ascii_letters + string.digits
_Query = types.StructuredQuery.pb()
_Write = types.Write.pb()
_Response = {
    name: getattr(types, f"{name}Response").pb()
    for name in (
        "BatchGetDocuments",
        "BatchWrite",
        "BeginTransaction",
        "Commit",
        "ListCollectionIds",
        "ListDocuments",
        "RunAggregationQuery",
        "RunQuery",
    )
}


class _View(NamedTuple):
    """When a request reads, and for whom."""

    micros: int
    transaction: bytes  # b"": none
    is_new: bool


class Service:
    """One method for each RPC, named like it; requests and answers are protobuf messages.

    Streaming RPCs return lists: a result is taken under the store's lock and is complete before it is sent.
    Raises ``FirestoreError``.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    # Reading

    def _view(self, request: Message) -> _View:
        selector = request.WhichOneof("consistency_selector")
        if selector == "read_time":
            micros = to_micros(request.read_time)
            self._store.check_readable(micros)
            return _View(micros, b"", is_new=False)
        if selector is None:
            return _View(self._store.now(), b"", is_new=False)
        is_new = selector == "new_transaction"
        identifier = self._begin(request.new_transaction) if is_new else request.transaction
        return _View(self._store.snapshot(identifier), identifier, is_new)

    def _begin(self, options: Message) -> bytes:
        read_only = options.WhichOneof("mode") == "read_only"
        if not options.read_only.HasField("read_time"):
            return self._store.begin(retry=bool(options.read_write.retry_transaction), read_only=read_only)
        micros = to_micros(options.read_only.read_time)
        self._store.check_readable(micros)
        return self._store.begin(read_only=True, snapshot=micros)

    def _read(self, name: str, view: _View, request: Message) -> Message | None:
        check_document_name(name)
        if view.transaction:
            self._store.transaction(view.transaction).names.add(name)
        document = self._store.read(name, view.micros)
        if document is not None and request.HasField("mask"):
            return select(document, request.mask.field_paths)
        return document

    def _run(self, parent: str, structured: Message, view: _View) -> tuple[Query, list[Message]]:
        check_parent(parent)
        query = Query(parent, structured)
        if view.transaction:
            self._store.transaction(view.transaction).queries.append(query)
        return query, self._store.run(query, view.micros)

    def GetDocument(self, request: Message) -> Message:  # noqa: N802, D102
        document = self._read(request.name, self._view(request), request)
        if document is None:
            raise FirestoreError(grpc.StatusCode.NOT_FOUND, f'Document "{request.name}" not found.')
        return document

    def BatchGetDocuments(self, request: Message) -> list[Message]:  # noqa: N802, D102
        check_database(request.database)
        view, response = self._view(request), _Response["BatchGetDocuments"]
        answers = [response(transaction=view.transaction)] if view.is_new else []
        for name in dict.fromkeys(request.documents):
            document = self._read(name, view, request)
            answer = response(read_time=to_timestamp(view.micros))
            if document is None:
                answer.missing = name
            else:
                answer.found.CopyFrom(document)
            answers.append(answer)
        return answers

    def ListDocuments(self, request: Message) -> Message:  # noqa: N802, D102
        check_parent(request.parent)
        check_id(request.collection_id)
        if request.order_by not in ("", "__name__", "__name__ asc"):
            raise FirestoreError(grpc.StatusCode.UNIMPLEMENTED, "ListDocuments sorts by __name__ only; use RunQuery.")
        view, collection = self._view(request), f"{request.parent}/{request.collection_id}"
        if view.transaction:
            source = _Query(from_=[{"collection_id": request.collection_id}])
            self._store.transaction(view.transaction).queries.append(Query(request.parent, source))
        names = self._store.document_names(collection, view.micros, missing=request.show_missing)
        page, token = _page([name.rpartition("/")[2] for name in names], request)
        documents = [
            self._read(f"{collection}/{identifier}", view._replace(transaction=b""), request)
            or Document(name=f"{collection}/{identifier}")
            for identifier in page
        ]
        return _Response["ListDocuments"](documents=documents, next_page_token=token)

    def ListCollectionIds(self, request: Message) -> Message:  # noqa: N802, D102
        check_parent(request.parent)
        ids = self._store.collection_ids(request.parent, self._view(request).micros)
        page, token = _page(ids, request)
        return _Response["ListCollectionIds"](collection_ids=page, next_page_token=token)

    def RunQuery(self, request: Message) -> list[Message]:  # noqa: N802, D102
        view, response = self._view(request), _Response["RunQuery"]
        query, documents = self._run(request.parent, request.structured_query, view)
        read_time = to_timestamp(view.micros)
        answers = [response(transaction=view.transaction)] if view.is_new else []
        answers += [response(document=query.project(document), read_time=read_time) for document in documents]
        return answers if documents else [*answers, response(read_time=read_time)]

    def RunAggregationQuery(self, request: Message) -> list[Message]:  # noqa: N802, D102
        view, wanted = self._view(request), request.structured_aggregation_query
        _, documents = self._run(request.parent, wanted.structured_query, view)
        answer = _Response["RunAggregationQuery"](read_time=to_timestamp(view.micros))
        if view.is_new:
            answer.transaction = view.transaction
        for number, aggregation in enumerate(wanted.aggregations, 1):
            alias = aggregation.alias or f"field_{number}"
            answer.result.aggregate_fields[alias].CopyFrom(aggregate(aggregation, documents))
        return [answer]

    # Writing

    def Commit(self, request: Message) -> Message:  # noqa: N802, D102
        check_database(request.database)
        micros, results = self._store.commit(request.writes, request.transaction)
        return _Response["Commit"](write_results=results, commit_time=to_timestamp(micros))

    def BatchWrite(self, request: Message) -> Message:  # noqa: N802, D102
        check_database(request.database)
        names = [written_name(write) for write in request.writes]
        if len(set(names)) < len(names):
            raise invalid("Cannot write to the same document more than once in one BatchWrite.")
        answer = _Response["BatchWrite"]()
        for write in request.writes:
            result, status = answer.write_results.add(), answer.status.add()
            try:
                result.CopyFrom(self._store.commit([write])[1][0])
            except FirestoreError as error:
                status.code, status.message = error.code.value[0], str(error)
        return answer

    def CreateDocument(self, request: Message) -> Message:  # noqa: N802, D102
        check_parent(request.parent)
        identifier = request.document_id or "".join(secrets.choice(_ID_ALPHABET) for _ in range(20))
        name = f"{request.parent}/{request.collection_id}/{identifier}"
        write = _Write(update={"name": name, "fields": request.document.fields}, current_document={"exists": False})
        return self._write(write, name, request)

    def UpdateDocument(self, request: Message) -> Message:  # noqa: N802, D102
        write = _Write(update={"name": request.document.name, "fields": request.document.fields})
        if request.HasField("update_mask"):
            write.update_mask.CopyFrom(request.update_mask)
        if request.HasField("current_document"):
            write.current_document.CopyFrom(request.current_document)
        return self._write(write, request.document.name, request)

    def DeleteDocument(self, request: Message) -> Message:  # noqa: N802, D102
        write = _Write(delete=request.name)
        if request.HasField("current_document"):
            write.current_document.CopyFrom(request.current_document)
        self._store.commit([write])
        return Empty()

    def _write(self, write: Message, name: str, request: Message) -> Message:
        micros, _ = self._store.commit([write])
        return self._read(name, _View(micros, b"", is_new=False), request)

    # Transactions

    def BeginTransaction(self, request: Message) -> Message:  # noqa: N802, D102
        check_database(request.database)
        return _Response["BeginTransaction"](transaction=self._begin(request.options))

    def Rollback(self, request: Message) -> Message:  # noqa: N802, D102
        check_database(request.database)
        self._store.rollback(request.transaction)
        return Empty()


def _page(ids: list[str], request: Message) -> tuple[list[str], str]:
    """Return the requested page of sorted ids and the token of the next one (the last id given out)."""
    if request.page_token:
        ids = [identifier for identifier in ids if identifier.encode() > request.page_token.encode()]
    size = request.page_size or len(ids)
    return ids[:size], ids[size - 1] if len(ids) > size else ""


_UNARY = (
    "BatchWrite",
    "BeginTransaction",
    "Commit",
    "CreateDocument",
    "DeleteDocument",
    "GetDocument",
    "ListCollectionIds",
    "ListDocuments",
    "Rollback",
    "UpdateDocument",
)
_STREAMING = ("BatchGetDocuments", "RunAggregationQuery", "RunQuery")


class FirestoreServer:
    """A Firestore stand-in on its own port; a context manager.

    ``port`` 0 takes a free one. ``state``: a file that documents are loaded from and kept in. ``start``
    raises ``OSError`` with one clear sentence if the port is taken or the state file can't be used.

    >>> with FirestoreServer() as server:
    ...     os.environ["FIRESTORE_EMULATOR_HOST"] = server.address
    ...     server.faults.fail("Commit", grpc.StatusCode.UNAVAILABLE)
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, state: Path | None = None) -> None:
        self._host = f"[{host}]" if ":" in host else host
        self._port = port
        self._state = state
        self._stack = contextlib.ExitStack()
        self.faults = Faults()
        self.address = ""

    def start(self) -> Self:
        """Load the state and listen; ``address`` is known from here on."""
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="firestore"))
            store = Store(self._state)
            stack.callback(store.close)
            server = grpc.server(pool, options=_OPTIONS)
            server.add_generic_rpc_handlers(_handlers(store, self.faults))
            _check_free(self._host.strip("[]"), self._port)
            port = server.add_insecure_port(f"{self._host}:{self._port}")
            server.start()
            stack.callback(lambda: server.stop(_GRACE).wait())
            stack.callback(self.faults.end)
            self.address = f"{self._host}:{port}"
            self._stack = stack.pop_all()
        return self

    def stop(self) -> None:
        """End all calls and streams at once, and close the state file."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _check_free(host: str, port: int) -> None:
    """Raise ``OSError`` for a port that can't be had: gRPC would say so in several lines on stderr."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen on {host}:{port}: {reason}; choose another port") from None


def _handlers(store: Store, faults: Faults) -> tuple[grpc.GenericRpcHandler, ...]:
    service = Service(store)

    def call(method: str, request: Message, context: grpc.ServicerContext) -> Any:
        try:
            if request.ByteSize() > MAX_REQUEST_BYTES:
                raise invalid(f"Request payload size exceeds the limit: {MAX_REQUEST_BYTES} bytes.")
            faults.before(method)
            answer = getattr(service, method)(request)
            faults.after(method)
        except FirestoreError as error:
            context.abort(error.code, str(error))
        return answer

    def stream(method: str, request: Message, context: grpc.ServicerContext) -> Iterator[Message]:
        return iter(call(method, request, context))

    def listen(requests: Iterator[Message], context: grpc.ServicerContext) -> Iterator[Message]:
        try:
            faults.before("Listen")
            yield from Listener(store).run(requests, context.add_callback)
        except FirestoreError as error:
            context.abort(error.code, str(error))

    def inject(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return faults.inject(data)
        except FirestoreError as error:
            context.abort(error.code, str(error))

    def codec(method: str) -> dict[str, Any]:
        request = getattr(types, f"{method}Request").pb()
        return {"request_deserializer": request.FromString, "response_serializer": _serialize}

    methods = {"Listen": grpc.stream_stream_rpc_method_handler(listen, **codec("Listen"))}
    for name in _UNARY:
        methods[name] = grpc.unary_unary_rpc_method_handler(partial(call, name), **codec(name))
    for name in _STREAMING:
        methods[name] = grpc.unary_stream_rpc_method_handler(partial(stream, name), **codec(name))
    return (
        grpc.method_handlers_generic_handler("google.firestore.v1.Firestore", methods),
        grpc.method_handlers_generic_handler(FAULTS, {"Inject": grpc.unary_unary_rpc_method_handler(inject)}),
    )


def _serialize(message: Message) -> bytes:
    return bytes(message.SerializeToString())
