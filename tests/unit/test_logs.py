"""How a line of the log is written: its ids, its form, and what never stands in it."""

from __future__ import annotations

import contextvars
import json
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from superexam_rq import logs
from superexam_rq.config import Settings

JOB = "76ee5701-38c9-4739-b254-15811c44479b"
OTHER = "36225690-1483-440c-a83a-3679641f3f53"


def record(message: str, *args: object, **options: Any) -> logging.LogRecord:
    """Return a record as a logger makes it."""
    made = logging.LogRecord("rq.worker", logging.INFO, __file__, 1, message, args, options.pop("exc_info", None))
    made.__dict__.update(options)
    return made


def in_fresh_context(function: Callable[[], Any]) -> Any:
    """Call a function where nothing is bound, and keep what it binds to itself."""
    return contextvars.Context().run(function)


def json_line(made: logging.LogRecord, *, secrets: Iterable[str] = (), **ids: Any) -> dict[str, Any]:
    """Return a record as the JSON form writes it."""
    logs.Ids(ids).filter(made)
    text = logs.JsonLines(secrets).format(made)
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def text_line(made: logging.LogRecord, *, secrets: Iterable[str] = (), **ids: Any) -> str:
    """Return a record as the form for people writes it, without its time."""
    logs.Ids(ids).filter(made)
    return logs.TextLines(secrets).format(made).split(" ", 2)[2]


def failure() -> Any:
    """Return an exception as a log call hands it over."""
    try:
        raise ValueError("broken")
    except ValueError:
        return sys.exc_info()


class TestIds:
    """Which ids a line has."""

    def test_what_is_bound_is_in_every_line_until_it_is_unbound(self) -> None:
        """`bind` adds up, None takes away, `unbind` forgets."""

        def look() -> list[Any]:
            seen = []
            logs.bind(job_id=JOB, doc_id="doc")
            seen.append(json_line(record("one")))
            logs.bind(attempt=2, doc_id=None)
            seen.append(json_line(record("two")))
            logs.unbind()
            seen.append(json_line(record("three")))
            return [{name: line.get(name) for name in ("job_id", "doc_id", "attempt")} for line in seen]

        assert in_fresh_context(look) == [
            {"job_id": JOB, "doc_id": "doc", "attempt": None},
            {"job_id": JOB, "doc_id": None, "attempt": 2},
            {"job_id": None, "doc_id": None, "attempt": None},
        ]

    def test_a_slip_of_who_logs_is_not_raised_at_him(self) -> None:
        """Any library may write a line that can't be put together; the handler reports it, and work goes on."""
        odd = logging.LogRecord("somelib", logging.WARNING, "x.py", 1, "%d items", ("x",), None)
        assert logs.Ids({"pid": 7}).filter(odd)

    def test_ids_of_the_process_need_no_context(self) -> None:
        """What a process was configured with is in the lines of all its threads."""
        line = in_fresh_context(lambda: json_line(record("x"), job_id=JOB, doc_id="doc", attempt=1))
        assert (line["job_id"], line["doc_id"], line["attempt"]) == (JOB, "doc", 1)

    @pytest.mark.parametrize(
        "message",
        [
            f"job {OTHER}: its worker is gone",
            f"Worker w: superexam: document d ({OTHER})",
            f"killed for job {OTHER}: x",
        ],
    )
    def test_a_line_about_another_job_has_that_job_s_id_only(self, message: str) -> None:
        """The job that a message names counts, not the one under way."""
        line = json_line(record(message), job_id=JOB, doc_id="doc", attempt=1)
        assert line["job_id"] == OTHER
        assert not {"doc_id", "attempt"} & line.keys()

    def test_a_document_s_id_is_not_taken_for_a_job_s(self) -> None:
        """A document may be named by a UUID too."""
        assert json_line(record(f"({OTHER})"), job_id=JOB, doc_id=OTHER)["job_id"] == JOB


class TestForms:
    """How lines look."""

    def test_text_is_message_and_pairs(self) -> None:
        """A line for people: level, message, then key=value, quoted where it has to be."""
        assert text_line(record("hello %s", "you"), doc_id="two words", attempt=1) == (
            'INFO hello you doc_id="two words" attempt=1'
        )

    def test_text_of_strangers_stays_on_its_line(self) -> None:
        """A line break in a message or an id does not make a line of its own."""
        line = text_line(record("a\nERROR forged\x1b[2J"), doc_id="x\ny")
        assert line == 'INFO a\\nERROR forged\\x1b[2J doc_id="x\\ny"'

    def test_a_traceback_is_one_field_of_the_object(self) -> None:
        """JSON keeps a traceback in the field `exception`, of our lines and of RQ's, whose messages hold it."""
        ours = json_line(record("failed", exc_info=failure()))
        assert ours["message"] == "failed"
        assert ours["exception"].startswith("Traceback")
        assert ours["exception"].endswith("ValueError: broken")
        theirs = json_line(record("raised (%s)\n%s", "process", ours["exception"]))
        assert (theirs["message"], theirs["exception"]) == ("raised (process)", ours["exception"])

    def test_a_traceback_follows_a_text_line(self) -> None:
        """People read a traceback as lines."""
        first, second, *_ = text_line(record("failed", exc_info=failure()), attempt=3).splitlines()
        assert (first, second) == ("INFO failed attempt=3", "Traceback (most recent call last):")

    def test_only_known_fields_are_written(self) -> None:
        """What a library attaches to its records (RQ: the job's arguments) stays out."""
        line = json_line(record("x", kwargs={"schema": "text"}, arguments=["text"]))
        assert line.keys() == {"time", "level", "logger", "pid", "message"}


class TestSecrets:
    """What never stands in a log."""

    SETTINGS = Settings(
        redis_url="rediss://me:p%40ss%22word@redis:6379/0",
        gemini_api_key="AIza-secret",
        api_keys=("first-key", "second-key"),
        dashboard_password="123",
    )

    def test_secret_settings_are_found(self) -> None:
        """Keys, passwords and the password within a Redis URL, decoded and as written; not what is too short."""
        found = set(logs.secret_values(self.SETTINGS))
        assert {"AIza-secret", "first-key", "second-key", 'p@ss"word', "p%40ss%22word"} <= found
        assert "123" not in found
        assert "superexam" not in found

    def test_the_settings_of_the_logs_do_not_show_them(self) -> None:
        """At DEBUG gunicorn writes its whole settings, in a spelling of its own."""
        assert "first-key" not in repr(logs.config(self.SETTINGS))

    def test_secrets_are_blotted_out_everywhere(self) -> None:
        """In messages, ids and tracebacks; numbers stay numbers."""
        secrets = (*logs.secret_values(self.SETTINGS), "7777")
        made = record(
            'key AIza-secret and p@ss"word', exc_info=failure(), fields={"status": 7777, "path": "/first-key"}
        )
        line = json_line(made, secrets=secrets)
        assert (line["message"], line["path"], line["status"]) == ("key *** and ***", "/***", 7777)
        assert text_line(record("to second-key"), secrets=secrets, doc_id="AIza-secret") == "INFO to *** doc_id=***"
        trace = json_line(record("x", exc_info=failure()), secrets=("broken",))["exception"]
        assert trace.endswith("ValueError: ***")


class TestLevels:
    """Who may speak."""

    def test_libraries_are_silent_below_warning(self) -> None:
        """LOG_LEVEL=DEBUG opens our loggers and RQ's, not those of HTTP libraries: they tell headers and bodies."""
        made = logs.config(Settings(log_level="DEBUG"))
        assert made["root"]["level"] == "WARNING"
        assert made["loggers"]["superexam_rq"]["level"] == "DEBUG"
        assert logs.config(Settings(log_level="ERROR"))["root"]["level"] == "ERROR"


class TestRequests:
    """The line of a request."""

    @staticmethod
    def call(application: Any, caplog: pytest.LogCaptureFixture, **environ: str) -> tuple[Any, dict[str, str]]:
        """Send one request through the log; return the line's record and the answer's headers."""
        headers: dict[str, str] = {}

        def start_response(_status: str, given: list[tuple[str, str]], _exc_info: Any = None) -> Callable[..., None]:
            headers.update(given)
            return lambda _: None

        def send() -> None:
            ticks = iter([1.0, 1.25])
            request_log = logs.RequestLog(application, clock=lambda: next(ticks))
            environment = {"REQUEST_METHOD": "GET", "PATH_INFO": "/jobs/1", "QUERY_STRING": "key=x", **environ}
            answer: Any = request_log(environment, start_response)
            list(answer)
            answer.close()

        caplog.set_level(logging.INFO)
        caplog.handler.addFilter(logs.Ids({}))
        in_fresh_context(send)
        (made,) = [made for made in caplog.records if made.name == "superexam_rq.access"]
        return made, headers

    @staticmethod
    def application(_environ: Any, start_response: Any) -> Iterable[bytes]:
        """Answer, and bind what a view would."""
        logs.bind(caller="key-1234", job_id=JOB)
        start_response("202 ACCEPTED", [])
        return [b"{}"]

    def test_one_line_tells_who_asked_for_what_and_what_came(self, caplog: pytest.LogCaptureFixture) -> None:
        """Method, path without query, status, duration, and the ids that were bound while it was answered."""
        made, headers = self.call(self.application, caplog)
        assert made.getMessage() == "GET /jobs/1 202"
        assert made.fields == {
            "request_id": headers["X-Request-Id"],
            "caller": "key-1234",
            "job_id": JOB,
            "method": "GET",
            "path": "/jobs/1",
            "status": 202,
            "duration_ms": 250,
        }

    @pytest.mark.parametrize(("given", "taken"), [("abc-1.2", True), ("a b", False), ("x" * 65, False), ("ä", False)])
    def test_a_caller_s_own_request_id_is_kept_if_it_is_plain(
        self, caplog: pytest.LogCaptureFixture, given: str, taken: bool
    ) -> None:
        """So that lines of two services can be put together, and nobody writes into the log."""
        _, headers = self.call(self.application, caplog, HTTP_X_REQUEST_ID=given)
        assert (headers["X-Request-Id"] == given) is taken

    def test_an_application_that_raises_has_its_line_too(self, caplog: pytest.LogCaptureFixture) -> None:
        """The line says 500 and the exception goes on."""

        def broken(_environ: Any, _start_response: Any) -> Iterable[bytes]:
            raise RuntimeError

        caplog.set_level(logging.INFO)
        with pytest.raises(RuntimeError):
            in_fresh_context(lambda: logs.RequestLog(broken)({"PATH_INFO": "/"}, lambda *_: lambda _: None))
        assert "500" in caplog.text
