"""A stand-in for the Gemini API over HTTP: `generateContent` for PDF pages, without a model behind it.

It speaks the wire form of both of Google's Python SDKs, refuses what Google refuses, and can be told to fail
(`gemini_faults.py`). Its questions come from `questions.py`; nothing here thinks, and every answer says so.

In a test: `with GeminiServer() as gemini:`. Alone: `python -m superexam_rq.sandbox.gemini --port 9090`, steered
over `/sandbox/faults` (POST, DELETE), `/sandbox/calls` (GET, DELETE) and `/sandbox/settings` (POST).
"""

from __future__ import annotations

import argparse
import base64
import binascii
import contextlib
import errno
import hashlib
import json
import re
import signal
import socket
import socketserver
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs

from superexam_rq.errors import PdfInvalid
from superexam_rq.pdf import Document
from superexam_rq.sandbox.gemini_faults import (
    BLOCK_REASONS,
    FINISH_REASONS,
    Fault,
    error_body,
    key_error,
)
from superexam_rq.sandbox.questions import DEFAULT_SCHEMA, MARK, Question, fill, fold, make_questions

if TYPE_CHECKING:
    from types import TracebackType

MODEL_VERSION = "superexam-sandbox-not-gemini"
MAX_BODY = 100 * 1024 * 1024
MAX_PDF = 50 * 1024 * 1024
MAX_PAGES = 1000
TOKENS_A_PAGE = 560
CHARS_A_TOKEN = 4

__all__ = ["Call", "Fault", "GeminiServer", "main"]

_LISTED = ("gemini-flash-latest", "gemini-3.8-flash", "gemini-3.6-flash", "gemini-3.5-flash-lite")
_CALL = re.compile(r"(?:/.*)?/v1(?:beta)?/models/(?P<model>[^/:]+):(?P<method>[A-Za-z]+)")
_MODEL = re.compile(r"(?:/.*)?/v1(?:beta)?/models(?:/(?P<model>[^/:]+))?/?")
_BOUNDS = frozenset(
    {"minItems", "maxItems", "minimum", "maximum", "minLength", "maxLength", "pattern", "minProperties",
     "maxProperties", "exclusiveMinimum", "exclusiveMaximum", "uniqueItems", "multipleOf"}
)  # fmt: skip
_THOUGHTS = {"MINIMAL": 0, "LOW": 90, "MEDIUM": 320, "HIGH": 900}


@dataclass
class Call:
    """One `generateContent` call as the stand-in saw it.

    `started` is monotonic, `wall` Unix time; `duration` in seconds and `status` stay None while it runs. A
    `status` of 0 with `finish` "dropped": no whole answer went out. `pages`: a digest of each page's text.
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


@dataclass(frozen=True)
class _Document:
    pages: tuple[str, ...]
    digests: tuple[str, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class _Request:
    model: str
    as_ints: bool
    pdfs: tuple[bytes, ...]
    prompt: str
    config: Mapping[str, Any]
    schema: Mapping[str, Any] | None


@dataclass
class _Reply:
    status: int
    body: bytes
    content_type: str = "application/json; charset=UTF-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    finish: str = ""


class _Refused(Exception):
    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


class _Dropped(Exception):
    """The connection is to be closed without an answer."""


class GeminiServer:
    """The stand-in, running in threads of this process between `start` and `stop` (or as a context manager).

    `latency`: seconds each call takes at least. `keys`: the API keys that are valid; None: any but an empty
    one and those that begin with "invalid". `models`: the names that exist; None: those that begin with
    "gemini-".
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
        self._documents: OrderedDict[str, _Document] = OrderedDict()
        self._stopping = threading.Event()
        self._http: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        """The base URL, as `GEMINI_API_ENDPOINT` takes it; known once started."""
        if self._http is None:
            raise RuntimeError("the stand-in is not started: call start() first")
        return f"http://{self.host}:{self._http.server_address[1]}"

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
        """Forget the faults not yet used up."""
        with self._lock:
            self._faults.clear()

    def most_at_once(self) -> int:
        """Count the calls of the journal that were in flight together at the busiest moment."""
        with self._lock:
            calls = [(call.started, call.duration) for call in self.journal]
        edges = [(begin, 1) for begin, _ in calls]
        edges += [(begin + lasted, -1) for begin, lasted in calls if lasted is not None]
        busiest = now = 0
        for _, step in sorted(edges):
            now += step
            busiest = max(busiest, now)
        return busiest

    # --- one call -------------------------------------------------------------------------------------------

    def take_fault(self, call: Call, texts: Sequence[str] | None) -> Fault | None:
        """Take the next fault for a call; `texts` is None as long as the request has not been read."""
        with self._lock:
            for i, (fault, left) in enumerate(self._faults):
                if texts is None and fault.drop != "unread":
                    return None
                if fault.match is None or any(fault.match in text for text in texts or ()):
                    if left is not None:
                        self._faults[i : i + 1] = [(fault, left - 1)] if left > 1 else []
                    call.fault = fault.kind
                    return fault
        return None

    def pause(self, seconds: float) -> None:
        """Wait, but not longer than the server runs."""
        if seconds > 0 and self._stopping.wait(seconds):
            raise _Dropped

    def record(self, call: Call) -> None:
        """Put a call into the journal."""
        with self._lock:
            self.journal.append(call)

    def calls(self) -> list[dict[str, Any]]:
        """List the journal as plain JSON."""
        with self._lock:
            return [asdict(call) for call in self.journal]

    def forget_calls(self) -> None:
        """Empty the journal."""
        with self._lock:
            self.journal.clear()

    def check_key(self, key: str | None) -> None:
        """Refuse a wrong API key as Google does."""
        known = bool(key) and not str(key).startswith("invalid") if self.keys is None else key in self.keys
        if not known:
            raise _Refused(400, key_error())

    def has_model(self, name: str) -> bool:
        """Whether a model of this name exists here."""
        return name.startswith("gemini-") if self.models is None else name in self.models

    def generate(self, call: Call, asked: _Request) -> tuple[_Reply, Fault | None]:
        """Answer one read request: what a fault says, or questions made from the pages."""
        document: _Document | None = None
        refused: _Refused | None = None
        try:
            _check(asked)
            document = self._read(asked.pdfs)
        except _Refused as refusal:
            refused = refusal
        if document is not None:
            call.page_count = len(document.pages)
            call.pages = document.digests
            call.first_page = document.pages[0][:200] if document.pages else ""
        pages = document.pages if document else ()
        fault = self.take_fault(call, [asked.prompt, *pages, *map(fold, pages)])
        self.pause(self.latency + (fault.delay if fault else 0.0))
        if fault is not None and fault.drop == "read":
            raise _Dropped
        if fault is not None and (fault.raw is not None or fault.body is not None):
            body = fault.raw if fault.raw is not None else _dump(fault.body)
            reply = _Reply(fault.status, body.replace("{model}", asked.model).encode(), fault.content_type)
            reply.headers = fault.headers or {}
            return reply, fault
        if refused is not None:
            raise refused
        if document is None:
            raise _Refused(500, error_body(500))
        return _answer(asked, document, fault), fault

    def _read(self, pdfs: Sequence[bytes]) -> _Document:
        """Read the texts of all pages and make the questions; kept, since a retry sends the same bytes."""
        digest = hashlib.sha256(b"".join(hashlib.sha256(pdf).digest() for pdf in pdfs)).hexdigest()
        with self._lock:
            known = self._documents.get(digest)
            if known is not None:
                self._documents.move_to_end(digest)
                return known
        pages: list[str] = []
        for pdf in pdfs:
            pages.extend(_page_texts(pdf))
        document = _Document(
            tuple(pages),
            tuple(hashlib.sha256(page.encode("utf-8", "replace")).hexdigest()[:16] for page in pages),
            tuple(make_questions(pages)),
        )
        with self._lock:
            self._documents[digest] = document
            while len(self._documents) > 256:
                self._documents.popitem(last=False)
        return document


def _page_texts(pdf: bytes) -> Iterator[str]:
    try:
        with Document.open(pdf, max_bytes=MAX_PDF, max_pages=MAX_PAGES) as document:
            for page in range(1, document.page_count + 1):
                yield document.text(page)
    except PdfInvalid as error:
        # Of a locked file Google says no more than that the argument is invalid.
        text = None if "locked" in str(error) else "The document has no pages."
        raise _Refused(400, error_body(400, text)) from error


# --- the request --------------------------------------------------------------------------------------------


def _get(thing: Any, name: str, default: Any = None) -> Any:
    """Read a field of a Google message in JSON, which may be written in camelCase or in snake_case."""
    if not isinstance(thing, Mapping):
        return default
    snake = re.sub(r"[A-Z]", lambda m: "_" + m[0].lower(), name)
    return thing[name] if name in thing else thing.get(snake, default)


def _parse(body: bytes, model: str, query: Mapping[str, Sequence[str]]) -> _Request:
    try:
        given = json.loads(body)
    except ValueError as error:
        text = "Invalid JSON payload received. Unexpected end of string."
        raise _Refused(400, error_body(400, text)) from error
    if not isinstance(given, Mapping):
        raise _Refused(400, error_body(400, "Invalid JSON payload received. Unknown name."))
    contents = _get(given, "contents") or []
    texts: list[str] = []
    pdfs: list[bytes] = []
    for content in [_get(given, "systemInstruction") or {}, *contents]:
        for part in _get(content, "parts") or []:
            blob = _get(part, "inlineData")
            if blob is not None:
                pdfs.append(_pdf(blob))
            elif isinstance(_get(part, "text"), str):
                texts.append(_get(part, "text"))
    if not contents:
        text = "* GenerateContentRequest.contents: contents is not specified\n"
        raise _Refused(400, error_body(400, text))
    config = _get(given, "generationConfig") or {}
    schema = _get(config, "responseSchema") or _get(config, "responseJsonSchema")
    if _get(contents[-1], "role") == "model":
        raise _Refused(400, error_body(400, "Please ensure that the last turn is a user turn."))
    return _Request(
        model=model,
        as_ints="enum-encoding=int" in "".join(query.get("$alt", ())),
        pdfs=tuple(pdfs),
        prompt="\n".join(texts),
        config=config,
        schema=schema if isinstance(schema, Mapping) else None,
    )


def _pdf(blob: Any) -> bytes:
    if _get(blob, "mimeType") != "application/pdf":
        text = f"Unsupported MIME type: {_get(blob, 'mimeType')}"
        raise _Refused(400, error_body(400, text))
    try:
        # google-genai writes the URL-safe alphabet.
        data = base64.b64decode(str(_get(blob, "data", "")).translate({45: 43, 95: 47}), validate=True)
    except binascii.Error as error:
        text = "Invalid value at 'contents[0].parts[0].inline_data.data' (TYPE_BYTES), Base64 decoding failed"
        raise _Refused(400, error_body(400, text)) from error
    if not data:
        raise _Refused(400, error_body(400, "The document has no pages."))
    if len(data) > MAX_PDF:
        raise _Refused(400, error_body(400, f"The document is too large: the limit is {MAX_PDF} bytes."))
    return data


def _check(asked: _Request) -> None:
    """Refuse what Google refuses before it reads the pages."""
    config = asked.config
    plain, rich = _get(config, "responseSchema"), _get(config, "responseJsonSchema")
    if plain is not None and rich is not None:
        text = "Only one of response_schema and response_json_schema can be set."
        raise _Refused(400, error_body(400, text))
    if asked.schema is not None:
        if _get(config, "responseMimeType") != "application/json":
            text = "response_schema is only allowed with response_mime_type: application/json"
            raise _Refused(400, error_body(400, text))
        if _bounded(asked.schema):
            raise _Refused(400, error_body(400))
    thinking = _get(config, "thinkingConfig") or {}
    level, budget = _get(thinking, "thinkingLevel"), _get(thinking, "thinkingBudget")
    if level is not None and budget is not None:
        text = "You can only set only one of thinking budget and thinking level."
        raise _Refused(400, error_body(400, text))
    if level is not None:
        name = str(level).upper()
        old = asked.model.startswith(("gemini-1", "gemini-2"))
        if old or name not in _THOUGHTS or (name == "MINIMAL" and asked.model == "gemini-3.8-flash"):
            what = "Thinking level" if old else f"Thinking level {name}"
            text = f"{what} is not supported for this model. Please retry with other thinking level."
            raise _Refused(400, error_body(400, text))


def _bounded(schema: Any) -> bool:
    """Whether a schema sets a bound or a pattern anywhere; a property may well be named "pattern"."""
    if isinstance(schema, list):
        return any(map(_bounded, schema))
    if not isinstance(schema, Mapping):
        return False
    if any(_get(schema, bound) is not None for bound in _BOUNDS):
        return True
    inside: list[Any] = [_get(schema, key) for key in ("items", "anyOf", "oneOf", "prefixItems")]
    for group in ("properties", "$defs"):
        inside.extend((schema.get(group) or {}).values())
    return any(map(_bounded, inside))


# --- the answer ---------------------------------------------------------------------------------------------


def _dump(thing: Any) -> str:
    return json.dumps(thing, ensure_ascii=False)


def _true_answer(asked: _Request, document: _Document, wrap: str) -> str:
    if not asked.pdfs:
        return f"No document was sent. {MARK}"
    made = fill(asked.schema or DEFAULT_SCHEMA, document.questions)
    if wrap == "list" and isinstance(made, dict):
        made = next((value for value in made.values() if isinstance(value, list)), made)
    text = _dump(made)
    if wrap == "fence" or _get(asked.config, "responseMimeType") != "application/json":
        text = f"```json\n{text}\n```"
    return text


def _answer(asked: _Request, document: _Document, fault: Fault | None) -> _Reply:
    """Build a `GenerateContentResponse`, true or as a fault wants it."""
    text, finish = _true_answer(asked, document, fault.wrap if fault else ""), "STOP"
    thoughts = _thoughts(asked)
    shape = "complete"
    if fault is not None:
        text = text if fault.text is None else fault.text
        finish, shape = fault.finish, fault.parts
    room = (int(_get(asked.config, "maxOutputTokens") or 65_536) - thoughts) * CHARS_A_TOKEN
    if finish == "STOP" and len(text) > room:
        text, finish, shape = text[: max(0, room)], "MAX_TOKENS", "complete" if room > 0 else "none"
    if shape == "partial" and fault is not None:
        text = text[: int(len(text) * fault.keep)]
    tokens_in = TOKENS_A_PAGE * len(document.pages) + len(asked.prompt) // CHARS_A_TOKEN
    blocked = fault is not None and fault.block is not None
    tokens_out = 0 if blocked or shape in ("none", "no_content", "empty") else -(-len(text) // CHARS_A_TOKEN)
    usage: dict[str, Any] = {"promptTokenCount": tokens_in}
    if not blocked:
        usage |= {"candidatesTokenCount": tokens_out} if tokens_out else {}
        usage |= {"thoughtsTokenCount": thoughts} if thoughts else {}
    usage["totalTokenCount"] = tokens_in + (0 if blocked else tokens_out + thoughts)
    reply: dict[str, Any] = {}
    if fault is not None and fault.block is not None:
        reason: int | str = BLOCK_REASONS[fault.block] if asked.as_ints else fault.block
        reply["promptFeedback"] = {"blockReason": reason}
    else:
        candidate: dict[str, Any] = {"content": {"parts": _parts(text, shape), "role": "model"}}
        if shape == "none":
            candidate["content"] = {"role": "model"}
        elif shape == "no_content":
            del candidate["content"]
        candidate["finishReason"] = FINISH_REASONS[finish] if asked.as_ints else finish
        candidate["index"] = 0
        reply["candidates"] = [candidate]
    reply |= {
        "usageMetadata": usage,
        "modelVersion": MODEL_VERSION,
        "responseId": hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:22],
    }
    body = _dump(reply).encode("utf-8", "replace")
    if fault is not None and fault.cut:
        body = body[: len(body) // 2]
    return _Reply(200, body, finish=f"blocked {fault.block}" if fault and fault.block else finish)


def _thoughts(asked: _Request) -> int:
    thinking = _get(asked.config, "thinkingConfig") or {}
    usual = "MINIMAL" if "lite" in asked.model else "MEDIUM"
    budget = _get(thinking, "thinkingBudget")
    most = _THOUGHTS[str(_get(thinking, "thinkingLevel") or usual).upper()]
    return most if budget is None or budget < 0 else min(most, int(budget))


def _parts(text: str, shape: str) -> list[dict[str, Any]]:
    signature = base64.b64encode(b"not a real signature").decode()
    if shape == "split":
        return [{"text": text[: len(text) // 2]}, {"text": text[len(text) // 2 :]}]
    if shape == "thought":
        return [{"text": "Let me think about the pages first.", "thought": True}, {"text": text}]
    if shape == "signature":
        return [{"text": text}, {"thoughtSignature": signature}]
    return [{"text": "" if shape == "empty" else text}]


# --- HTTP ---------------------------------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    # Reusing the address takes over a port in TIME_WAIT; reusing the port would share one with a live server.
    allow_reuse_address = True
    allow_reuse_port = False

    def __init__(self, address: tuple[str, int], owner: GeminiServer) -> None:
        self.owner = owner
        self.open: set[socket.socket] = set()
        self.changed = threading.Condition()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer's own looks the host name up in DNS, which can take seconds.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Close the listening socket and every connection, and wait until their threads are through."""
        self.server_close()
        with self.changed:
            for connection in self.open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.changed.wait_for(lambda: not self.open, timeout=2)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "superexam-sandbox"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.changed:
            self.server.open.add(self.connection)

    def finish(self) -> None:
        try:
            super().finish()
        finally:
            with self.server.changed:
                self.server.open.discard(self.connection)
                self.server.changed.notify_all()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        """Keep quiet: the journal tells more."""

    def do_GET(self) -> None:
        self._serve(self._get)

    def do_DELETE(self) -> None:
        self._serve(self._delete)

    def do_POST(self) -> None:
        self._serve(self._post)

    def _serve(self, handle: Any) -> None:
        owner = self.server.owner
        self.path_only, _, query = self.path.partition("?")
        self.query = parse_qs(query)
        self.unread = int(self.headers.get("Content-Length") or 0)
        try:
            try:
                reply = handle(owner)
            except _Refused as refused:
                reply = _Reply(refused.status, _dump(refused.body).encode())
            if reply is not None:
                self._send(reply)
        except (_Dropped, ConnectionError, TimeoutError):
            self.close_connection = True

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            raise _Refused(411, error_body(411, "Length required.", name="INVALID_ARGUMENT"))
        if self.unread > MAX_BODY:
            self.close_connection = True
            text = f"Request payload size exceeds the limit: {MAX_BODY} bytes."
            raise _Refused(400, error_body(400, text))
        body = self.rfile.read(self.unread)
        if len(body) < self.unread:
            raise _Dropped
        self.unread = 0
        return body

    def _send(self, reply: _Reply, fault: Fault | None = None) -> None:
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
        body = reply.body
        if fault is not None and fault.drop == "answering":
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            raise _Dropped
        steps = 20 if fault is not None and fault.drip else 1
        size = max(1, -(-len(body) // steps))
        for start in range(0, len(body), size):
            if fault is not None and fault.drip:
                self.wfile.flush()
                self.server.owner.pause(fault.drip / steps)
            self.wfile.write(body[start : start + size])
        self.wfile.flush()

    # --- routes ---------------------------------------------------------------------------------------------

    def _get(self, owner: GeminiServer) -> _Reply:
        if self.path_only == "/sandbox/calls":
            return _json(owner.calls())
        if self.path_only == "/":
            return _json({"service": "Gemini stand-in", "modelVersion": MODEL_VERSION, "note": MARK})
        wanted = _MODEL.fullmatch(self.path_only)
        if wanted is None:
            raise _Refused(404, error_body(404, "Requested entity was not found."))
        owner.check_key(self._key())
        if wanted["model"] is None:
            names = _LISTED if owner.models is None else tuple(owner.models)
            return _json({"models": [_model(name) for name in names]})
        if not owner.has_model(wanted["model"]):
            raise _Refused(404, _no_model(wanted["model"]))
        return _json(_model(wanted["model"]))

    def _delete(self, owner: GeminiServer) -> _Reply:
        if self.path_only == "/sandbox/faults":
            owner.clear_faults()
        elif self.path_only == "/sandbox/calls":
            owner.forget_calls()
        else:
            raise _Refused(404, error_body(404, "Requested entity was not found."))
        return _json({})

    def _post(self, owner: GeminiServer) -> _Reply | None:
        if self.path_only in ("/sandbox/faults", "/sandbox/settings"):
            return self._control(owner, self._body())
        wanted = _CALL.fullmatch(self.path_only)
        if wanted is None or wanted["method"] != "generateContent":
            raise _Refused(404, error_body(404, "Requested entity was not found."))
        call = Call(time.monotonic(), time.time(), wanted["model"], self._sdk(), self.unread)
        owner.record(call)
        try:
            self._generate(owner, call)
        except _Refused as refused:
            call.status = refused.status
            raise
        except (_Dropped, ConnectionError, TimeoutError):
            call.status, call.finish = 0, "dropped"
            raise
        finally:
            call.duration = time.monotonic() - call.started
        return None

    def _generate(self, owner: GeminiServer, call: Call) -> None:
        fault = owner.take_fault(call, None)
        if fault is not None:
            owner.pause(fault.delay)
            raise _Dropped
        body = self._body()
        owner.check_key(self._key())
        if not owner.has_model(call.model):
            raise _Refused(404, _no_model(call.model))
        asked = _parse(body, call.model, self.query)
        call.prompt = asked.prompt
        call.pdf_sha256 = hashlib.sha256(asked.pdfs[0]).hexdigest() if asked.pdfs else ""
        reply, fault = owner.generate(call, asked)
        # Set before the answer leaves: a caller who has it may look at the journal at once.
        call.status, call.finish = reply.status, reply.finish
        call.duration = time.monotonic() - call.started
        self._send(reply, fault)

    def _control(self, owner: GeminiServer, body: bytes) -> _Reply:
        try:
            given = json.loads(body)
            if self.path_only == "/sandbox/settings":
                for name in given:
                    if name not in ("latency", "keys", "models"):
                        raise ValueError(f"unknown setting {name!r}: take latency, keys or models")
                owner.latency = float(given.get("latency", owner.latency))
                owner.keys = given.get("keys", owner.keys)
                owner.models = given.get("models", owner.models)
            else:
                owner.script(*[Fault.from_json(item) for item in given])
        except (ValueError, TypeError, AttributeError) as error:
            return _json({"error": str(error)}, 422)
        return _json({})

    def _key(self) -> str | None:
        return self.headers.get("x-goog-api-key") or next(iter(self.query.get("key", ())), None)

    def _sdk(self) -> str:
        told = f"{self.headers.get('x-goog-api-client', '')} {self.headers.get('User-Agent', '')}"
        if "google-genai-sdk/" in told:
            return "google-genai"
        return "google-generativeai" if "genai-py/" in told else "other"


def _json(thing: Any, status: int = 200) -> _Reply:
    return _Reply(status, _dump(thing).encode())


def _no_model(name: str) -> dict[str, Any]:
    body = error_body(404)
    body["error"]["message"] = body["error"]["message"].replace("{model}", name)
    return body


def _model(name: str) -> dict[str, Any]:
    return {
        "name": f"models/{name}",
        "version": MODEL_VERSION,
        "displayName": f"{name} {MARK}",
        "description": "Answers with questions made from the text of the pages; no language model.",
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": 65_536,
        "supportedGenerationMethods": ["generateContent"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stand-in alone until SIGINT or SIGTERM; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m superexam_rq.sandbox.gemini", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=9090, help="0: any free one (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds each call takes at least")
    options = parser.parse_args(arguments)
    # Blocked before any thread starts, so that every thread leaves the signals to sigwait below.
    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    server = GeminiServer(options.host, options.port, latency=options.latency)
    try:
        server.start()
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "is taken" if taken else f"cannot be used: {error.strerror or error}"
        print(f"Port {options.port} on {options.host} {why}; choose another with --port.", file=sys.stderr)
        return 1
    print(f"Gemini stand-in (not Gemini) listens on {server.url}", flush=True)
    signal.sigwait(stop)
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
