"""GeminiServer: the stand-in over HTTP, its journal, and its steering.

In a test: `with GeminiServer() as gemini:`. A stand-in that runs alone is steered over `/sandbox/faults` (POST a list
of faults, DELETE), `/sandbox/calls` (GET the journal, DELETE) and `/sandbox/settings` (POST latency, keys, models).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import socketserver
import sys
import threading
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs

from superexam_rq.sandbox.gemini import wire
from superexam_rq.sandbox.gemini.faults import Fault, error_body, key_error
from superexam_rq.sandbox.gemini.questions import MARK, fold
from superexam_rq.sandbox.gemini.wire import Asked, Material, Refused, Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from types import TracebackType

MAX_BODY = 100 * 2**20

_KEPT_DOCUMENTS = 256
_LISTED = ("gemini-flash-latest", "gemini-3.8-flash", "gemini-3.6-flash", "gemini-3.5-flash-lite")
_CALL = re.compile(r"(?:/.*)?/v1(?:beta)?/(?P<path>(?:models|tunedModels)/[^/:]+):generateContent")
_MODEL = re.compile(r"(?:/.*)?/v1(?:beta)?/models(?:/(?P<model>[^/:]+))?/?")
_SETTINGS = ("latency", "keys", "models")
_DRIPS = 20


class Dropped(Exception):
    """The connection is to be closed without a whole answer."""


@dataclass
class Call:
    """One `generateContent` call as the stand-in saw it.

    `started` is monotonic, `wall` Unix time; `duration` in seconds and `status` stay None while the call runs, and a
    `status` of 0 with `finish` "dropped" means that no whole answer went out. `pages` holds a digest of each page's
    text, `fault` the kind of the fault that it met.
    """

    started: float
    wall: float
    model: str
    sdk: str
    body_bytes: int = 0
    pdf_sha256: str = ""
    page_count: int = 0
    pages: tuple[str, ...] = ()
    first_page: str = ""
    prompt: str = ""
    fault: str = ""
    status: int | None = None
    finish: str = ""
    duration: float | None = None


class GeminiServer:
    """The stand-in, running in threads of this process between `start` and `stop` (or as a context manager).

    `latency`: seconds that each call takes at least. `keys`: the API keys that are valid; None: any but an empty one
    and those that begin with "invalid". `models`: the names that exist; None: those that begin with "gemini-". All
    three may be changed while it runs.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        latency: float = 0.0,
        keys: Collection[str] | None = None,
        models: Collection[str] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.latency = latency
        self.keys = keys
        self.models = models
        self.journal: list[Call] = []
        self._lock = threading.Lock()
        self._faults: list[tuple[Fault, int | None]] = []
        self._documents: OrderedDict[str, Material] = OrderedDict()
        self._stopping = threading.Event()
        self._http: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The base URL, as `GEMINI_API_ENDPOINT` takes it; known once started."""
        if self._http is None:
            raise RuntimeError("the stand-in is not started: call start() first")
        return f"http://{self.host}:{self._http.server_port}"

    def start(self) -> Self:
        """Listen; OSError if the port is taken."""
        self._stopping.clear()
        self._http = _Server((self.host, self.port), self)
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(0.05,), name="gemini-stand-in", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop listening and drop what is still being answered; harmless when not started."""
        http, thread = self._http, self._thread
        if http is None or thread is None:
            return
        self._stopping.set()
        http.shutdown()
        thread.join()
        http.close()
        self._http = self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def script(self, *faults: Fault) -> None:
        """Add faults: each call takes the first one that matches it and is not used up."""
        with self._lock:
            self._faults.extend((fault, fault.times) for fault in faults)

    def clear_faults(self) -> None:
        """Forget the faults that are not used up."""
        with self._lock:
            self._faults.clear()

    def calls(self) -> list[Call]:
        """Return a copy of the journal, in the order in which the calls came in."""
        with self._lock:
            return list(self.journal)

    def clear_calls(self) -> None:
        """Empty the journal."""
        with self._lock:
            self.journal.clear()

    def most_at_once(self) -> int:
        """Count the calls of the journal that ran together at the busiest moment."""
        edges = []
        for call in self.calls():
            edges.append((call.started, 1))
            if call.duration is not None:
                edges.append((call.started + call.duration, -1))
        busiest = running = 0
        for _, step in sorted(edges):
            running += step
            busiest = max(busiest, running)
        return busiest

    # What follows is for the HTTP side.

    def record(self, call: Call) -> None:
        """Put a call into the journal."""
        with self._lock:
            self.journal.append(call)

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than the server runs."""
        if seconds > 0 and self._stopping.wait(seconds):
            raise Dropped

    def check_key(self, key: str) -> None:
        """Refuse a wrong API key as Google does."""
        if (key not in self.keys) if self.keys is not None else (not key or key.startswith("invalid")):
            raise Refused(400, key_error())

    def check_model(self, name: str) -> None:
        """Refuse an unknown model as Google does."""
        if (name not in self.models) if self.models is not None else (not name.startswith("gemini-")):
            body = error_body(404)
            body["error"]["message"] = body["error"]["message"].replace("{model}", name)
            raise Refused(404, body)

    def take_fault(self, call: Call, texts: Sequence[str] | None) -> Fault | None:
        """Take the next fault for a call; `texts` is None as long as the request has not been read."""
        with self._lock:
            for place, (fault, left) in enumerate(self._faults):
                if texts is None:
                    matches = fault.drop == "unread"
                else:
                    matches = fault.match is None or any(fault.match in text for text in texts)
                if matches:
                    if left is not None:
                        self._faults[place : place + 1] = [(fault, left - 1)] if left > 1 else []
                    call.fault = fault.kind
                    return fault
                if texts is None:
                    return None
        return None

    def generate(self, call: Call, asked: Asked) -> tuple[Reply, Fault | None]:
        """Answer one request: what a fault says, else what is wrong with it, else questions made from its pages."""
        material: Material | None = None
        refused: Refused | None = None
        try:
            wire.check(asked)
            material = self._material(asked)
        except Refused as refusal:
            refused = refusal
        pages = material.pages if material else ()
        if material is not None:
            call.page_count, call.pages = len(pages), material.digests
            call.first_page = pages[0][:200] if pages else ""
        fault = self.take_fault(call, [asked.prompt, *pages, *map(fold, pages)])
        # Reading the pages takes time that the real service spends elsewhere, and is no part of what it takes.
        spent = time.monotonic() - call.started
        self.pause(max(0.0, self.latency - spent) + (fault.delay if fault else 0.0))
        if fault is not None and fault.drop == "read":
            raise Dropped
        if fault is not None and (fault.raw is not None or fault.body is not None):
            return wire.write_fault(asked, fault), fault
        if refused is not None:
            raise refused
        return wire.write_answer(asked, material or Material.of([]), fault), fault

    def _material(self, asked: Asked) -> Material:
        """Read the pages and make the questions; kept, since a retry sends the same bytes."""
        digest = asked.digest()
        with self._lock:
            known = self._documents.get(digest)
            if known is not None:
                self._documents.move_to_end(digest)
                return known
        material = Material.of(asked.pdfs)
        with self._lock:
            self._documents[digest] = material
            if len(self._documents) > _KEPT_DOCUMENTS:
                self._documents.popitem(last=False)
        return material


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    # Reusing the address takes over a port in TIME_WAIT; reusing the port would share one with a live server.
    allow_reuse_address = True
    allow_reuse_port = False

    def __init__(self, address: tuple[str, int], owner: GeminiServer) -> None:
        self.owner = owner
        self.connections: set[socket.socket] = set()
        self.changed = threading.Condition()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own looks the host's name up in DNS, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Callers that hang up are part of the trade.
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Close the listening socket and every connection, and wait until their threads are through."""
        self.server_close()
        with self.changed:
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.changed.wait_for(lambda: not self.connections, timeout=2)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "superexam-sandbox"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = 2**16
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.changed:
            self.server.connections.add(self.connection)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            with self.server.changed:
                self.server.connections.discard(self.connection)
                self.server.changed.notify_all()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Keep quiet: the journal tells more."""

    def do_GET(self) -> None:
        self._serve(self._get)

    def do_DELETE(self) -> None:
        self._serve(self._delete)

    def do_POST(self) -> None:
        self._serve(self._post)

    def _serve(self, handle: Callable[[GeminiServer], Reply | None]) -> None:
        self.target, _, query = self.path.partition("?")
        self.query = parse_qs(query)
        length = self.headers.get("Content-Length", "")
        self.unread = int(length) if length.isdigit() else 0
        try:
            try:
                reply = handle(self.server.owner)
            except Refused as refused:
                reply = refused.reply()
            if reply is not None:
                self._send(reply)
        except (Dropped, ConnectionError, TimeoutError):
            self.close_connection = True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") or self.unread > MAX_BODY:
            self.close_connection = True
            self.unread = 0
            raise Refused(413, error_body(413))
        body = self.rfile.read(self.unread)
        if len(body) < self.unread:
            raise Dropped
        self.unread = 0
        return body

    def _send(self, reply: Reply, fault: Fault | None = None) -> None:
        if self.unread:
            self._body()
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("X-Sandbox", "not-gemini")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if fault is not None and fault.drop == "answering":
            self.wfile.write(reply.body[: len(reply.body) // 2])
            self.wfile.flush()
            raise Dropped
        drip = fault.drip if fault is not None else 0.0
        size = max(1, -(-len(reply.body) // _DRIPS)) if drip else len(reply.body)
        for start in range(0, len(reply.body), size or 1):
            if drip:
                self.wfile.flush()
                self.server.owner.pause(drip / _DRIPS)
            self.wfile.write(reply.body[start : start + size])
        self.wfile.flush()

    def _get(self, owner: GeminiServer) -> Reply:
        if self.target == "/sandbox/calls":
            return Reply.json([asdict(call) for call in owner.calls()])
        if self.target == "/":
            return Reply.json({"service": "Gemini stand-in", "modelVersion": wire.MODEL_VERSION, "note": MARK})
        wanted = _MODEL.fullmatch(self.target)
        if wanted is None:
            raise _not_here()
        owner.check_key(self._key())
        if wanted["model"] is None:
            names = _LISTED if owner.models is None else tuple(owner.models)
            return Reply.json({"models": [wire.describe_model(name) for name in names]})
        owner.check_model(wanted["model"])
        return Reply.json(wire.describe_model(wanted["model"]))

    def _delete(self, owner: GeminiServer) -> Reply:
        if self.target == "/sandbox/faults":
            owner.clear_faults()
        elif self.target == "/sandbox/calls":
            owner.clear_calls()
        else:
            raise _not_here()
        return Reply.json({})

    def _post(self, owner: GeminiServer) -> Reply | None:
        if self.target in ("/sandbox/faults", "/sandbox/settings"):
            return self._steer(owner, self._body())
        wanted = _CALL.fullmatch(self.target)
        if wanted is None:
            raise _not_here()
        model = wanted["path"].removeprefix("models/")
        call = Call(time.monotonic(), time.time(), model, self._sdk(), self.unread)
        owner.record(call)
        try:
            self._generate(owner, call)
        except Refused as refused:
            call.status = refused.status
            raise
        except (Dropped, ConnectionError, TimeoutError):
            call.status, call.finish = 0, "dropped"
            raise
        finally:
            call.duration = time.monotonic() - call.started
        return None

    def _generate(self, owner: GeminiServer, call: Call) -> None:
        unread = owner.take_fault(call, None)
        if unread is not None:
            owner.pause(unread.delay)
            raise Dropped
        body = self._body()
        owner.check_key(self._key())
        owner.check_model(call.model)
        as_ints = "enum-encoding=int" in "".join(self.query.get("$alt", ()))
        asked = wire.read(body, call.model, as_ints=as_ints)
        call.prompt = asked.prompt
        call.pdf_sha256 = hashlib.sha256(asked.pdfs[0]).hexdigest() if asked.pdfs else ""
        reply, fault = owner.generate(call, asked)
        # Set before the answer leaves: a caller who has it may look at the journal at once.
        call.status, call.finish = reply.status, reply.finish
        call.duration = time.monotonic() - call.started
        self._send(reply, fault)

    def _steer(self, owner: GeminiServer, body: bytes) -> Reply:
        try:
            given = json.loads(body)
            if self.target == "/sandbox/faults":
                owner.script(*[Fault.from_json(fault) for fault in given])
            elif unknown := set(given).difference(_SETTINGS):
                raise ValueError(f"unknown settings {sorted(unknown)}: take {', '.join(_SETTINGS)}")
            else:
                owner.latency = float(given.get("latency", owner.latency))
                owner.keys = given.get("keys", owner.keys)
                owner.models = given.get("models", owner.models)
        except (ValueError, TypeError, AttributeError) as error:
            return Reply.json({"error": str(error)}, 422)
        return Reply.json({})

    def _key(self) -> str:
        return self.headers.get("x-goog-api-key") or "".join(self.query.get("key", ()))

    def _sdk(self) -> str:
        told = f"{self.headers.get('x-goog-api-client', '')} {self.headers.get('User-Agent', '')}"
        if "google-genai-sdk/" in told:
            return "google-genai"
        return "google-generativeai" if "genai-py/" in told or "gapic/" in told else "other"


def _not_here() -> Refused:
    return Refused(404, error_body(404, "Requested entity was not found."))
