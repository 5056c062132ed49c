"""What each call answers: statuses, bodies, headers; and what nobody is told."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fakeredis import FakeRedis, FakeServer
from flask import Flask
from flask.testing import FlaskClient
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from werkzeug.test import TestResponse

from superexam_rq import lifecycle
from superexam_rq.app import create_app
from superexam_rq.auth import behind_proxies
from superexam_rq.config import Settings
from superexam_rq.events import event_id
from superexam_rq.queueing import JobQueue
from superexam_rq.request import JobRequest

BODY: dict[str, Any] = {"doc_id": "doc", "system_prompt_id": "sys", "custom_prompt_id": "cus"}
Build = Callable[..., FlaskClient]


@pytest.fixture
def server() -> FakeServer:
    """Give a Redis that can be switched off."""
    return FakeServer()


@pytest.fixture
def redis(server: FakeServer) -> FakeRedis:
    """Give a client of it."""
    return FakeRedis(server=server)


@pytest.fixture
def build(server: FakeServer) -> Build:
    """Build a client of an API with given settings."""

    def build(**settings: Any) -> FlaskClient:
        given = {"rq_key_prefix": "superexam", **settings}
        return _app(server, **given).test_client()

    return build


def _app(server: FakeServer, **settings: Any) -> Flask:
    return create_app(Settings(**settings), connect=lambda _, **__: FakeRedis(server=server))


@pytest.fixture
def client(build: Build) -> FlaskClient:
    """Give a client on the API's own machine."""
    return build()


@pytest.fixture
def jobs(redis: FakeRedis) -> JobQueue:
    """Give the queue behind the API."""
    return JobQueue(redis, Settings(rq_key_prefix="superexam"))


def submit(client: FlaskClient, **fields: Any) -> TestResponse:
    """Submit a document."""
    return client.post("/jobs/process", json={**BODY, **fields})


def check_error(answer: TestResponse, status: int, code: str, *fields: str) -> str:
    """Check the one shape of errors, and return the message."""
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/json"
    assert answer.json is not None
    assert list(answer.json) == ["error", "message", "details"]
    assert answer.json["error"] == code
    assert sorted(answer.json["details"]) == sorted(fields)
    assert all(isinstance(text, str) for texts in answer.json["details"].values() for text in texts)
    message: str = answer.json["message"]
    assert message
    return message


class TestSubmit:
    def test_a_job_is_queued(self, client: FlaskClient, jobs: JobQueue) -> None:
        """202, the words of the contract, and where the job is."""
        answer = submit(client)
        assert answer.status_code == 202
        [job_id] = jobs.queue.job_ids
        assert answer.json == {"job_id": job_id, "message": "Job queued successfully"}
        assert answer.headers["Location"] == f"/jobs/{job_id}"
        assert client.get(answer.headers["Location"]).status_code == 200

    def test_a_second_submission_is_told_the_first_job(self, client: FlaskClient, jobs: JobQueue) -> None:
        """200, and nothing new is queued."""
        first, second = submit(client), submit(client, pages="1-2")
        assert (second.status_code, second.json) == (
            200,
            {"job_id": first.json["job_id"] if first.json else "", "message": "Job already queued"},
        )
        assert len(jobs.queue.job_ids) == 1

    def test_a_known_key_gets_the_first_answer(self, client: FlaskClient, jobs: JobQueue) -> None:
        """Status, body and Location, as the first time."""
        answers = [client.post("/jobs/process", json=BODY, headers={"Idempotency-Key": "k"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202]
        assert answers[0].json == answers[1].json
        assert answers[0].headers["Location"] == answers[1].headers["Location"]
        assert len(jobs.queue.job_ids) == 1

    def test_a_key_used_for_another_body_is_refused(self, client: FlaskClient) -> None:
        """422, with the header's name."""
        headers = {"Idempotency-Key": "k"}
        client.post("/jobs/process", json=BODY, headers=headers)
        answer = client.post("/jobs/process", json={**BODY, "doc_id": "other"}, headers=headers)
        check_error(answer, 422, "validation_error", "Idempotency-Key")

    @pytest.mark.parametrize("key", ["", " ", "a b", "é", "x" * 256])
    def test_an_unusable_key_is_refused(self, client: FlaskClient, jobs: JobQueue, key: str) -> None:
        """Better than to ignore what was to protect from a second job."""
        answer = client.post("/jobs/process", json=BODY, headers={"Idempotency-Key": key})
        check_error(answer, 422, "validation_error", "Idempotency-Key")
        assert not jobs.queue.job_ids

    def test_options_reach_the_job(self, client: FlaskClient, jobs: JobQueue) -> None:
        """Each goes into what the worker is given; the priority decides the place."""
        submit(client)
        options = {"pages": "3-40,55", "max_questions": 7, "model": "gemini-x", "priority": "high", "doc_id": "urgent"}
        answer = submit(client, **options)
        assert answer.json is not None
        assert jobs.queue.job_ids[0] == answer.json["job_id"]
        job = jobs.queue.fetch_job(answer.json["job_id"])
        assert job is not None
        assert job.kwargs == {
            **BODY,
            **{name: value for name, value in options.items() if name != "priority"},
            "schema": None,
        }


class TestBadBodies:
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"{",
            b"not json",
            b'{"doc_id": NaN}',
            b'{"doc_id": Infinity}',
            b'{"max_questions": 1e999}',
            b'{"max_questions": ' + b"9" * 5000 + b"}",
            b"[" * 100_000,
            b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
            b'{"doc_id": "\xff"}',
            '{"doc_id": "d"}'.encode("utf-16"),
            b'{"doc_id": "a\x00b"}',
            b"{} {}",
        ],
        ids=lambda data: data[:20],
    )
    def test_what_is_not_json_is_400(self, client: FlaskClient, jobs: JobQueue, data: bytes) -> None:
        """Nor what no parser should take: NaN, infinite and endless numbers, bottomless nesting, other encodings."""
        check_error(client.post("/jobs/process", data=data, content_type="application/json"), 400, "bad_request")
        assert not jobs.queue.job_ids

    @pytest.mark.parametrize("data", [b"[]", b"7", b'"text"', b"null", b"true", b"1.5"])
    def test_json_that_is_no_object_is_422(self, client: FlaskClient, data: bytes) -> None:
        """It was read, but it is no submission."""
        answer = client.post("/jobs/process", data=data, content_type="application/json")
        check_error(answer, 422, "validation_error", "body")

    def test_a_name_given_twice_is_422(self, client: FlaskClient) -> None:
        """Which of the two was meant, nobody knows; told at once, however many names there are."""
        many = "".join(f', "{number}": 0' for number in range(50_000))
        data = json.dumps(BODY)[:-1] + many + ', "doc_id": "other"}'
        answer = client.post("/jobs/process", data=data, content_type="application/json")
        check_error(answer, 422, "validation_error", "doc_id")

    @pytest.mark.parametrize(
        ("content_type", "status"),
        [
            ("application/json", 202),
            ("application/json; charset=utf-8", 202),
            ("Application/JSON;Charset=UTF-8", 202),
            ("application/json; charset=latin-1", 415),
            ("text/plain", 415),
            ("application/x-www-form-urlencoded", 415),
            ("", 415),
            ("application/jsonp", 415),
        ],
    )
    def test_the_content_type_is_json(self, client: FlaskClient, content_type: str, status: int) -> None:
        """Whatever a plain form of a foreign page can send is refused."""
        answer = client.post("/jobs/process", data=json.dumps(BODY), content_type=content_type)
        assert answer.status_code == status
        if status == 415:
            check_error(answer, 415, "unsupported_media_type")

    def test_an_empty_body_is_called_empty_whatever_its_type(self, client: FlaskClient) -> None:
        """`curl -X POST` sends none."""
        assert "empty" in check_error(client.post("/jobs/process"), 400, "bad_request")

    def test_a_byte_order_mark_is_taken(self, client: FlaskClient) -> None:
        """Some editors write one."""
        answer = client.post(
            "/jobs/process", data=b"\xef\xbb\xbf" + json.dumps(BODY).encode(), content_type="application/json"
        )
        assert answer.status_code == 202

    def test_a_body_over_the_limit_is_413(self, client: FlaskClient, jobs: JobQueue) -> None:
        """1 MiB is taken, one byte more is not."""
        padding = 2**20 - len(json.dumps(BODY))
        for extra, status in ((0, 202), (1, 413)):
            data = json.dumps(BODY) + " " * (padding + extra)
            answer = client.post("/jobs/process", data=data, content_type="application/json")
            assert answer.status_code == status
        check_error(answer, 413, "payload_too_large")
        assert len(jobs.queue.job_ids) == 1

    def test_a_body_shorter_than_stated_is_400(self, client: FlaskClient) -> None:
        """It broke off; what came may be JSON by chance."""
        answer = client.post("/jobs/process", json=BODY, environ_overrides={"CONTENT_LENGTH": "999"})
        check_error(answer, 400, "bad_request")

    def test_invalid_fields_are_named(self, client: FlaskClient, jobs: JobQueue) -> None:
        """All of them at once."""
        answer = submit(client, doc_id="a/b", pages="x", surprise=1)
        message = check_error(answer, 422, "validation_error", "doc_id", "pages", "surprise")
        assert "doc_id" in message
        assert not jobs.queue.job_ids

    def test_an_answer_repeats_little_of_what_was_sent(self, client: FlaskClient) -> None:
        """Neither many names, nor long ones, nor values."""
        answer = submit(client, **{"x" * 5000 + str(number): "value" for number in range(100)}, pages="secret")
        assert answer.status_code == 422
        assert len(answer.data) < 6000
        assert "secret" not in answer.text

    def test_a_lone_surrogate_in_a_name_does_no_harm(self, client: FlaskClient) -> None:
        """The answer is JSON all the same."""
        data = json.dumps({**BODY, "\ud800": 1})
        answer = client.post("/jobs/process", data=data, content_type="application/json")
        assert answer.status_code == 422
        assert json.loads(answer.data)


class TestJobs:
    def test_a_job_is_shown(self, client: FlaskClient, jobs: JobQueue) -> None:
        """The job object of the contract."""
        job_id = jobs.enqueue(JobRequest(**BODY)).job_id
        answer = client.get(f"/jobs/{job_id}")
        found = jobs.snapshot(job_id)
        assert found is not None
        assert answer.json == found.to_dict()

    @pytest.mark.parametrize("job_id", ["nope", "x" * 5000, "a%00b", "%ff", "..%2f", "a b", "ü", "{job_id}", "*"])
    @pytest.mark.parametrize(
        ("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/retry"), ("GET", "/events")], ids=str
    )
    def test_an_unknown_job_is_404(self, client: FlaskClient, job_id: str, method: str, path: str) -> None:
        """Whatever the id looks like."""
        check_error(client.open(f"/jobs/{job_id}{path}", method=method), 404, "not_found")

    def test_jobs_are_listed(self, client: FlaskClient, jobs: JobQueue) -> None:
        """Newest first, with filters, page and total."""
        ids = [submit(client, doc_id=doc_id).json["job_id"] for doc_id in "abc"]  # type: ignore[index]
        answer = client.get("/jobs?status=pending&limit=2&offset=1")
        assert answer.json is not None
        assert answer.json["total"] == 3
        assert [job["job_id"] for job in answer.json["jobs"]] == ids[1::-1]
        assert client.get("/jobs?doc_id=b").json["total"] == 1  # type: ignore[index]

    @pytest.mark.parametrize("query", ["status=done", "limit=201", "offset=-1", "state=failed", "limit=1&limit=2"])
    def test_a_wrong_query_is_422(self, client: FlaskClient, query: str) -> None:
        """With the parameter's name."""
        check_error(client.get(f"/jobs?{query}"), 422, "validation_error", query.partition("=")[0])

    def test_a_pending_job_is_cancelled(self, client: FlaskClient, jobs: JobQueue, settled: list[str]) -> None:
        """It leaves the queue, and its document is settled by us, since no worker will."""
        job_id = submit(client).json["job_id"]  # type: ignore[index]
        answer = client.delete(f"/jobs/{job_id}")
        assert (answer.status_code, answer.json) == (200, {"message": "Job cancelled"})
        assert client.get(f"/jobs/{job_id}").json["status"] == "cancelled"  # type: ignore[index]
        assert not jobs.queue.job_ids
        assert settled == [job_id]

    def test_an_ended_job_is_not_cancelled(self, client: FlaskClient, settled: list[str]) -> None:
        """409 for the second try."""
        job_id = submit(client).json["job_id"]  # type: ignore[index]
        client.delete(f"/jobs/{job_id}")
        check_error(client.delete(f"/jobs/{job_id}"), 409, "conflict")
        assert settled == [job_id]

    def test_a_cancelled_job_is_run_again(self, client: FlaskClient, jobs: JobQueue, settled: list[str]) -> None:
        """202 with the same id; it waits at the end of the queue."""
        job_id = submit(client).json["job_id"]  # type: ignore[index]
        client.delete(f"/jobs/{job_id}")
        answer = client.post(f"/jobs/{job_id}/retry")
        assert answer.status_code == 202
        assert answer.json == {"job_id": job_id, "message": "Job queued successfully"}
        assert answer.headers["Location"] == f"/jobs/{job_id}"
        assert jobs.queue.job_ids == [job_id]

    def test_only_a_failed_or_cancelled_job_is_run_again(self, client: FlaskClient, settled: list[str]) -> None:
        """409 while it lives, and while another job has its document."""
        first = submit(client).json["job_id"]  # type: ignore[index]
        check_error(client.post(f"/jobs/{first}/retry"), 409, "conflict")
        client.delete(f"/jobs/{first}")
        second = submit(client).json["job_id"]  # type: ignore[index]
        assert second in check_error(client.post(f"/jobs/{first}/retry"), 409, "conflict")

    @pytest.fixture
    def settled(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Note whose documents were settled."""
        noted: list[str] = []
        monkeypatch.setattr("superexam_rq.settling.Settler.settle", lambda _, job_id: noted.append(job_id))
        return noted


class TestEvents:
    def test_an_ended_job_is_told_once(self, client: FlaskClient, jobs: JobQueue) -> None:
        """Its state, and the stream is over."""
        job_id = self.ended(jobs)
        answer = client.get(f"/jobs/{job_id}/events")
        assert answer.mimetype == "text/event-stream"
        assert answer.headers["Cache-Control"] == "no-store"
        [found] = re.findall(r"^data: (.*)$", answer.text, re.MULTILINE)
        assert json.loads(found) == client.get(f"/jobs/{job_id}").json

    def test_who_has_seen_the_end_is_told_to_stop(self, client: FlaskClient, jobs: JobQueue) -> None:
        """204: a browser would connect again for ever."""
        job_id = self.ended(jobs)
        job = jobs.snapshot(job_id)
        assert job is not None
        seen = {"Last-Event-ID": event_id(job)}
        assert client.get(f"/jobs/{job_id}/events", headers=seen).status_code == 204
        older = {"Last-Event-ID": "0" * 16}
        assert client.get(f"/jobs/{job_id}/events", headers=older).status_code == 200

    def test_streams_beyond_the_cap_are_refused(self, server: FakeServer, jobs: JobQueue) -> None:
        """503 with Retry-After; a stream that ends makes room."""
        app = _app(server, rq_key_prefix="superexam")
        app.extensions["hub"]._max_listeners = 1
        client = app.test_client()
        job_id = jobs.enqueue(JobRequest(**BODY)).job_id
        first = client.get(f"/jobs/{job_id}/events", buffered=False)
        second = client.get(f"/jobs/{job_id}/events")
        check_error(second, 503, "service_unavailable")
        assert int(second.headers["Retry-After"]) > 0
        first.close()
        client.get(f"/jobs/{job_id}/events", buffered=False).close()
        with client.head(f"/jobs/{job_id}/events") as head:
            assert head.status_code == 200
        assert app.extensions["hub"]._count == 0
        app.extensions["hub"].close()

    def ended(self, jobs: JobQueue) -> str:
        """Make a job that has ended."""
        job_id = jobs.enqueue(JobRequest(**BODY)).job_id
        lifecycle.cancel(jobs, job_id)
        return job_id


class TestHealth:
    def test_it_tells_about_the_queue(self, client: FlaskClient) -> None:
        """The words of the contract; no workers are no illness."""
        submit(client)
        assert client.get("/health").json == {
            "status": "healthy",
            "redis": "connected",
            "prefix": "superexam:",
            "queue": "superexam",
            "queued": 1,
            "workers": 0,
        }

    def test_it_is_503_without_redis(self, client: FlaskClient, server: FakeServer) -> None:
        """Without the address, which anyone could read here."""
        server.connected = False
        answer = client.get("/health")
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.json == {
            "status": "unhealthy",
            "redis": "disconnected",
            "error": "Redis can't be reached",
        }

    def test_live_needs_no_redis(self, client: FlaskClient, server: FakeServer) -> None:
        """It tells that the process answers, and nothing else."""
        server.connected = False
        assert client.get("/health/live").status_code == 200

    def test_the_root_names_the_service(self, client: FlaskClient) -> None:
        """The fields of the contract."""
        answer = client.get("/")
        assert answer.json is not None
        assert list(answer.json) == ["service", "version", "status", "redis_prefix"]


class TestRedisAway:
    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/jobs"),
            ("GET", "/jobs/x"),
            ("DELETE", "/jobs/x"),
            ("POST", "/jobs/x/retry"),
            ("GET", "/jobs/x/events"),
        ],
    )
    def test_every_call_is_503(self, client: FlaskClient, server: FakeServer, method: str, path: str) -> None:
        """With Retry-After; and works again when Redis does."""
        server.connected = False
        answer = client.open(path, method=method)
        check_error(answer, 503, "service_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        server.connected = True
        assert client.open(path, method=method).status_code < 500

    def test_a_submission_is_503_though_the_limit_is_open(self, client: FlaskClient, server: FakeServer) -> None:
        """The rate limit lets it pass; the queue does not."""
        server.connected = False
        assert "nothing is done twice" in check_error(submit(client), 503, "service_unavailable")
        server.connected = True
        assert submit(client).status_code == 202

    def test_a_defect_of_ours_is_no_outage(
        self, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """500 in the one shape; the traceback is for the log only."""

        def broken(*_: Any, **__: Any) -> None:
            raise ResponseError("WRONGTYPE secret-detail")

        monkeypatch.setattr(JobQueue, "list_jobs", broken)
        with caplog.at_level(logging.ERROR):
            answer = client.get("/jobs")
        check_error(answer, 500, "internal_error")
        assert "secret-detail" not in answer.text
        assert "secret-detail" in caplog.text

    def test_the_limit_alone_fails_open(self, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where counting fails, submissions go on."""

        def away(*_: Any, **__: Any) -> None:
            raise RedisConnectionError("away")

        monkeypatch.setattr("limits.storage.RedisStorage.incr", away)
        client = build(rate_limit="1/minute")
        assert [submit(client, doc_id=doc_id).status_code for doc_id in "ab"] == [202, 202]


class TestGuard:
    def test_what_anyone_may_see(self, build: Build) -> None:
        """The calls of the contract that need no key."""
        client = build(api_keys=("key",))
        for path in (
            "/",
            "/health",
            "/health/live",
            "/openapi.json",
            "/docs",
            "/docs/swagger-ui.css",
            "/docs/start.js",
        ):
            with client.get(path) as answer:
                assert answer.status_code == 200, path

    def test_everything_else_needs_a_key(self, build: Build) -> None:
        """Also what does not exist: a stranger finds nothing."""
        app = build(api_keys=("key",))
        for rule in app.application.url_map.iter_rules():
            path = rule.rule.replace("<job_id:job_id>", "x")
            if "<" in path or path in ("/", "/health", "/health/live", "/openapi.json", "/docs", "/docs/start.js"):
                continue
            for method in rule.methods or ():
                answer = app.open(path, method=method)
                assert answer.status_code == 401, (method, path)
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        for path in ("/nope", "/jobs/process", "/docs/../jobs", "/docs/other.js"):
            assert app.get(path).status_code == 401, path

    def test_a_refusal_says_what_to_do(self, build: Build) -> None:
        """In the one shape, before the body is looked at."""
        message = check_error(build(api_keys=("key",)).post("/jobs/process", data=b"{"), 401, "unauthorized")
        assert "Authorization: Bearer" in message

    def test_keys_open_the_door(self, build: Build) -> None:
        """Each of several."""
        client = build(api_keys=("old", "new"))
        for key in ("old", "new"):
            assert client.get("/jobs", headers={"Authorization": f"Bearer {key}"}).status_code == 200
        answer = client.get("/jobs", headers={"Authorization": "Bearer wrong"})
        check_error(answer, 401, "unauthorized")
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]

    def test_keys_and_tokens_are_never_logged(self, build: Build, caplog: pytest.LogCaptureFixture) -> None:
        """Neither good nor bad ones, nor in Redis' names."""
        client = build(api_keys=("good-secret",))
        with caplog.at_level(logging.DEBUG):
            for key in ("good-secret", "bad-secret"):
                client.post("/jobs/process", json=BODY, headers={"Authorization": f"Bearer {key}"})
        assert "-secret" not in caplog.text

    def test_strangers_are_refused_without_keys(self, client: FlaskClient) -> None:
        """Only this machine is served; a proxy hides who calls."""
        elsewhere = {"REMOTE_ADDR": "10.0.0.1"}
        assert "API_KEYS" in check_error(client.get("/jobs", environ_base=elsewhere), 401, "unauthorized")
        check_error(client.get("/jobs", headers={"X-Forwarded-For": "127.0.0.1"}), 401, "unauthorized")

    def test_a_trusted_proxy_is_believed(self, build: Build) -> None:
        """Its word decides, in both directions."""
        client = build(trusted_proxies=1)
        app = client.application
        app.wsgi_app = behind_proxies(app.wsgi_app, Settings(trusted_proxies=1))  # type: ignore[method-assign]
        assert client.get("/jobs", headers={"X-Forwarded-For": "10.0.0.1, 127.0.0.1"}).status_code == 200
        assert client.get("/jobs", headers={"X-Forwarded-For": "127.0.0.1, 10.0.0.1"}).status_code == 401
        assert client.get("/jobs", headers={"X-Forwarded-Host": "localhost"}).status_code == 401


class TestRateLimit:
    def test_a_caller_is_limited(self, build: Build, redis: FakeRedis) -> None:
        """429 with Retry-After, for submissions only; other callers are not touched."""
        client = build(api_keys=("one", "two"), rate_limit="2/minute")

        def post(key: str, doc_id: str) -> TestResponse:
            headers = {"Authorization": f"Bearer {key}"}
            return client.post("/jobs/process", json={**BODY, "doc_id": doc_id}, headers=headers)

        assert [post("one", doc_id).status_code for doc_id in "ab"] == [202, 202]
        refused = post("one", "c")
        check_error(refused, 429, "too_many_requests")
        assert 0 < int(refused.headers["Retry-After"]) <= 60
        assert client.get("/jobs", headers={"Authorization": "Bearer one"}).status_code == 200
        assert post("two", "c").status_code == 202
        names = [key.decode() for key in redis.scan_iter("superexam:limits*")]
        assert len(names) == 2
        assert not any("one" in name or "two" in name for name in names)
        assert len(list(redis.scan_iter("*"))) == len(list(redis.scan_iter("superexam:*")))

    def test_an_empty_limit_is_none(self, build: Build, redis: FakeRedis) -> None:
        """Nothing is counted."""
        client = build(rate_limit="")
        assert [submit(client, doc_id=f"d{number}").status_code for number in range(400)] == [202] * 400
        assert not list(redis.scan_iter("superexam:limits*"))


class TestHeaders:
    @pytest.mark.parametrize("path", ["/", "/jobs", "/nope", "/docs", "/openapi.json"])
    def test_every_answer_is_closed_to_browsers_tricks(self, client: FlaskClient, path: str) -> None:
        """No sniffing, no framing, no referrer, nothing kept."""
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"

    def test_other_origins_are_not_served_by_default(self, client: FlaskClient) -> None:
        """No CORS header at all."""
        answer = client.get("/jobs", headers={"Origin": "https://evil.example"})
        assert not [name for name in answer.headers.keys() if name.startswith("Access-Control")]  # noqa: SIM118

    def test_only_the_origins_set_are_served(self, build: Build) -> None:
        """A preflight needs no key; the call does; nothing is allowed for others."""
        client = build(api_keys=("key",), cors_origins=("https://good.example",))
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        good = client.options("/jobs/process", headers={"Origin": "https://good.example", **asks})
        assert good.status_code == 200
        assert good.headers["Access-Control-Allow-Origin"] == "https://good.example"
        assert "POST" in good.headers["Access-Control-Allow-Methods"]
        assert "Access-Control-Allow-Credentials" not in good.headers
        evil = client.options("/jobs/process", headers={"Origin": "https://evil.example", **asks})
        assert "Access-Control-Allow-Origin" not in evil.headers
        assert client.get("/jobs", headers={"Origin": "https://good.example"}).status_code == 401
        assert client.options("/jobs").status_code == 401

    def test_a_wrong_method_is_405(self, client: FlaskClient) -> None:
        """In the one shape, with the methods that there are."""
        for method in ("GET", "PUT", "DELETE"):
            answer = client.open("/jobs/process", method=method)
            check_error(answer, 405, "method_not_allowed")
            assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


class TestOpenapi:
    def test_it_describes_every_call(self, client: FlaskClient) -> None:
        """No more and no less than the routes."""
        described = {
            (method.upper(), path)
            for path, item in client.get("/openapi.json").json["paths"].items()  # type: ignore[index]
            for method in item
            if method != "parameters"
        }
        routes = {
            (method, re.sub(r"<\w+:(\w+)>", r"{\1}", rule.rule))
            for rule in client.application.url_map.iter_rules()
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
            if rule.endpoint.startswith("api.")
        }
        assert described == routes

    def test_its_shapes_come_from_the_schemas(self, client: FlaskClient) -> None:
        """Fields, statuses and the one shape of errors are components."""
        document = client.get("/openapi.json").json
        assert document is not None
        components = document["components"]["schemas"]
        assert set(components["Submission"]["required"]) == set(BODY)
        assert components["Submission"]["additionalProperties"] is False
        assert components["Job"]["properties"]["status"]["enum"][0] == "pending"
        assert set(components["Error"]["required"]) == {"error", "message", "details"}

    def test_it_says_whether_a_key_is_needed(self, build: Build) -> None:
        """With keys set, a key; without, none on this machine; never for the public calls."""
        for keys, needed in (((), [{"bearer": []}, {}]), (("key",), [{"bearer": []}])):
            paths = build(api_keys=keys).get("/openapi.json").json["paths"]  # type: ignore[index]
            assert paths["/jobs"]["get"]["security"] == needed
            assert "security" not in paths["/health"]["get"]

    def test_the_page_loads_nothing_from_elsewhere(self, client: FlaskClient) -> None:
        """Every address in it is our own, and the policy forbids others."""
        answer = client.get("/docs")
        addresses = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
        assert len(addresses) == 4
        for address in addresses:
            with client.get(f"/{address}") as asset:
                assert asset.status_code == 200, address
        policy = answer.headers["Content-Security-Policy"]
        assert "script-src 'self';" in policy
        assert "http" not in policy


def test_the_api_loads_no_cloud_client_and_no_pdf_engine() -> None:
    """They would take memory and start-up time that only a worker needs."""
    heavy = ["google.cloud", "google.generativeai", "google.genai", "grpc", "pypdfium2", "google.auth"]
    code = f"import sys, superexam_rq.app; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
