"""Logs: one place that says how every process of the service writes them, to standard error, one line an event.

`configure` is called at each door (gunicorn, `wsgi`, the worker, the work-horse). Lines carry the ids of what is being
done, bound with `bind` for the current request or job, or given to `configure` where a process does one thing
only: threads that it starts then have them too. Values of secret settings are blotted out, wherever they stand.
What is worth a line is decided by whoever writes it; a document's text never is.
"""

from __future__ import annotations

import json
import logging
import logging.config
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from pythonjsonlogger.json import JsonFormatter
from werkzeug.wsgi import ClosingIterator

from superexam_rq.config import rows

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from superexam_rq.config import Settings

log = logging.getLogger(__name__)
access = logging.getLogger("superexam_rq.access")

_NO_IDS: Mapping[str, Any] = MappingProxyType({})
_bound: ContextVar[Mapping[str, Any]] = ContextVar("superexam_log_ids", default=_NO_IDS)

# Loggers that put up handlers of their own before `configure` is called, and those that are silenced.
_TAKEN_OVER = ("rq.worker", "rq.job", "rq.scheduler", "rq.registry", "gunicorn.error")
_SILENT = ("gunicorn.access",)
# Ours and our hosts' speak from LOG_LEVEL on. Others from WARNING on: below it, HTTP libraries tell headers and bodies.
_TALKATIVE = ("superexam_rq", "rq", "gunicorn")

_BLOT = "***"
# Shorter ones would blot out common words.
_MIN_SECRET = 4

_JOB = re.compile(r"(?:\bjob |\()([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\b", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = re.compile(r"[^\s\"=]+")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# What the message of a request's line says already.
_IN_MESSAGE = frozenset({"method", "path", "status"})
_TRACEBACK = "Traceback (most recent call last):"


def configure(settings: Settings, **ids: Any) -> None:
    """Let this process log as the settings say; every line of it carries `ids`."""
    logging.config.dictConfig(config(settings, **ids))
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


def config(settings: Settings, **ids: Any) -> dict[str, Any]:
    """Return the same as a dictionary for `logging.config`, for gunicorn's `logconfig_dict`."""
    level = settings.log_level
    formatter = JsonLines if settings.log_format == "json" else TextLines
    talkative = {name: {"level": level} for name in _TALKATIVE}
    taken_over = {name: {"level": level, "handlers": [], "propagate": True} for name in _TAKEN_OVER}
    silent = {name: {"level": "CRITICAL", "handlers": [], "propagate": False} for name in _SILENT}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"ids": {"()": Ids, "ids": ids}},
        "formatters": {"line": {"()": formatter, "secrets": Hidden(secret_values(settings))}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                # `rq worker-pool` gives each worker's logger the level INFO, whatever was set.
                "level": level,
                "filters": ["ids"],
                "formatter": "line",
            }
        },
        "loggers": talkative | taken_over | silent,
        "root": {"level": max(level, "WARNING", key=logging.getLevelName), "handlers": ["stderr"]},
    }


def bind(**ids: Any) -> None:
    """Add ids to every line of the current request or job, from here on; None takes one away."""
    merged = {**_bound.get(), **ids}
    _bound.set(MappingProxyType({name: value for name, value in merged.items() if value is not None}))


def unbind() -> None:
    """Forget what was bound: the request or the job is over."""
    _bound.set(_NO_IDS)


def secret_values(settings: Settings) -> tuple[str, ...]:
    """Return what must not appear in a log: the secret settings' values, as they are and as URLs and JSON hold them."""
    found: set[str] = set()
    for row in rows():
        if row.attribute == "redis_url":
            found.update(_passwords(settings.redis_url))
        elif row.secret:
            value = getattr(settings, row.attribute)
            found.update(value if isinstance(value, tuple) else (value,))
    spelled = {form for value in found for form in (value, quote(value, safe=""), json.dumps(value)[1:-1])}
    return tuple(sorted((form for form in spelled if len(form) >= _MIN_SECRET), key=len, reverse=True))


def _passwords(url: str) -> Iterable[str]:
    parts = urlsplit(url)
    given = [parts.password or "", *parse_qs(parts.query).get("password", [])]
    return [form for value in given for form in (value, unquote(value))]


class Hidden(tuple[str, ...]):
    """Be texts that are not shown where the whole is: gunicorn logs its settings, and so these, at DEBUG."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"({_BLOT})"


class Ids(logging.Filter):
    """Give each record its `fields`: the ids of the process, of what is bound, and what the line itself adds."""

    def __init__(self, ids: Mapping[str, Any]) -> None:
        super().__init__()
        self._ids = dict(ids)

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        ids = self._ids | dict(_bound.get())
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 (a slip of whoever logs: the handler says so, and the caller goes on)
            message = ""
        # A worker also speaks of jobs that are not the one it runs.
        named = _JOB.search(message)
        if named and named[1] not in ids.values():
            ids = {"job_id": named[1]}
        record.fields = ids | getattr(record, "fields", {})
        return True


class TextLines(logging.Formatter):
    """Write lines for people: time, level, message, ids; a traceback on lines of its own."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        self._secrets = tuple(secrets)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        message, trace = _message_and_trace(self, record)
        message = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), message)
        fields = (f"{name}={_quoted(value)}" for name, value in _fields(record).items() if name not in _IN_MESSAGE)
        line = " ".join([self.formatTime(record), record.levelname, message, *fields])
        return blot(f"{line}\n{trace}" if trace else line, self._secrets)


class JsonLines(JsonFormatter):
    """Write one JSON object a line; a traceback is the field `exception`."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__(json_ensure_ascii=True)
        self._secrets = tuple(secrets)

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, _: dict[str, Any]) -> None:
        """Fill in the object: only fields that are known, since libraries add what they like to their records."""
        message, trace = _message_and_trace(self, record)
        log_data |= {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "pid": record.process,
            "message": message,
            **_fields(record),
        }
        if trace:
            log_data["exception"] = trace

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """Return the object without secrets; numbers are none."""
        return {
            name: blot(value, self._secrets) if isinstance(value, str) else value for name, value in log_data.items()
        }


def blot(text: str, values: Iterable[str]) -> str:
    """Return a text without these values."""
    for value in values:
        text = text.replace(value, _BLOT)
    return text


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(record, "fields", _NO_IDS)
    return fields


def _message_and_trace(formatter: logging.Formatter, record: logging.LogRecord) -> tuple[str, str]:
    """Return the message, and the traceback that came with it or, as RQ does it, in it."""
    message = record.getMessage()
    if record.exc_info:
        return message, formatter.formatException(record.exc_info)
    head, _, rest = message.partition("\n")
    return (head, rest.strip()) if rest.startswith(_TRACEBACK) else (message, record.exc_text or "")


def _quoted(value: Any) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.isprintable() else json.dumps(text)


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    log.critical("ended by %s", kind.__name__, exc_info=(kind, error, trace))


def _log_uncaught_in_thread(given: threading.ExceptHookArgs) -> None:
    if given.exc_value is not None and not issubclass(given.exc_type, SystemExit):
        name = given.thread.name if given.thread else "?"
        exc_info = (given.exc_type, given.exc_value, given.exc_traceback)
        log.error("thread %s ended by %s", name, given.exc_type.__name__, exc_info=exc_info)


class RequestLog:
    """Give each request of a WSGI application an id, and write one line when it has been answered.

    The line tells method, path (never the query), status, milliseconds, and what was bound meanwhile: caller, job.
    The id is the caller's own `X-Request-Id` where it is a plain word, and is sent back.
    """

    def __init__(self, application: WSGIApplication, clock: Callable[[], float] = time.monotonic) -> None:
        self._application = application
        self._clock = clock

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        given = environ.get("HTTP_X_REQUEST_ID", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        unbind()
        bind(request_id=request_id)
        started = self._clock()
        # Before the application: a dispatcher moves a part of the path to SCRIPT_NAME.
        raw = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        path = raw.encode("latin-1").decode(errors="replace")
        fields: dict[str, Any] = {"method": environ.get("REQUEST_METHOD", ""), "path": path, "status": 500}

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            fields["status"] = int(status[:3])
            return start_response(status, [*headers, ("X-Request-Id", request_id)], exc_info)

        def finish() -> None:
            fields["duration_ms"] = round((self._clock() - started) * 1000)
            access.info("%s %s %d", fields["method"], path, fields["status"], extra={"fields": fields})
            unbind()

        try:
            return ClosingIterator(self._application(environ, start), [finish])
        except BaseException:
            finish()
            raise
