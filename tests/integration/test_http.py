"""The API as a program of its own: real gunicorn, real Redis."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from tests import pdfs
from tests.stack import Stack, eventually, stack

BODY = {"doc_id": "doc", "system_prompt_id": "sys", "custom_prompt_id": "cus"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give an installation whose API runs, without a worker."""
    with stack(tmp_path_factory.mktemp("http"), RATE_LIMIT="") as servers:
        servers.start_api()
        yield servers
        keys = [key.decode() for key in servers.redis.scan_iter("*")]
        assert [key for key in keys if not key.startswith("superexam:")] == []


def raw(api: Stack, request: bytes, *, half_close: bool = False) -> tuple[int, dict[str, Any]]:
    """Send bytes and return the answer's status and JSON body."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        body: dict[str, Any] = json.loads(answer.read())
        return answer.status, body


HEAD = b"POST /jobs/process HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_a_hundred_simultaneous_submissions_make_one_job(api: Stack) -> None:
    """One answers 202, the others 200, all with the same job."""
    before = api.redis.llen("superexam:queue:superexam")
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: requests.post(f"{api.url}/jobs/process", json=BODY, timeout=30), range(100)))
    assert sorted(answer.status_code for answer in answers) == [200] * 99 + [202]
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert api.redis.llen("superexam:queue:superexam") == before + 1


def test_simultaneous_submissions_with_one_key_get_one_answer(api: Stack) -> None:
    """All 202 with the same job: the first answer is told again, whichever process is asked."""
    body, headers = {**BODY, "doc_id": "keyed"}, {"Idempotency-Key": "7f3a"}

    def submit(_: int) -> requests.Response:
        return requests.post(f"{api.url}/jobs/process", json=body, headers=headers, timeout=30)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(submit, range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["job_id"] for answer in answers}) == 1


def test_the_website_is_served_as_it_calls(api: Stack) -> None:
    """Node's fetch to localhost without a key; a URL that ends with a slash makes the path begin with two."""
    headers = {
        "Content-Type": "application/json",
        "accept": "*/*",
        "accept-language": "*",
        "sec-fetch-mode": "cors",
        "user-agent": "node",
        "accept-encoding": "gzip, deflate",
    }
    for path in ("/jobs/process", "//jobs/process"):
        connection = http.client.HTTPConnection("localhost", api.port, timeout=10)
        connection.request("POST", path, json.dumps({**BODY, "doc_id": f"web{len(path)}"}), headers)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["message"]) == (202, "Job queued successfully")
        connection.close()


def test_a_submission_is_answered_within_a_second(api: Stack) -> None:
    """Nothing of it waits for Firestore or Gemini."""
    begun = time.monotonic()
    assert api.submit("quick").status_code == 202
    assert time.monotonic() - begun < 1


def test_silent_and_slow_connections_hold_nobody_up(api: Stack) -> None:
    """Few requests are worked on at a time, but one that waits for its client is not counted."""
    with contextlib.ExitStack() as slow:
        for number in range(400):
            connection = slow.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=10))
            if number % 20 == 0:
                connection.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        for number in range(10):
            begun = time.monotonic()
            body = {**BODY, "doc_id": f"beside-slow-{number}"}
            assert requests.post(f"{api.url}/jobs/process", json=body, timeout=10).status_code == 202
            assert time.monotonic() - begun < 1


def test_requests_that_follow_at_once_are_all_answered(api: Stack) -> None:
    """In their order, whether they come one by one on a connection or all together."""
    together = b"".join(b"GET /jobs/none-%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % number for number in range(5))
    with socket.create_connection(("127.0.0.1", api.port), timeout=10) as connection:
        connection.sendall(together + b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        told = b"".join(iter(lambda: connection.recv(65536), b""))
    assert re.findall(rb"^HTTP/1.1 (\d+)", told, re.MULTILINE) == [b"404"] * 5 + [b"200"]
    with requests.Session() as session:
        answers = [session.get(f"{api.url}/jobs/none-{number}", timeout=10).status_code for number in range(50)]
    assert answers == [404] * 50


@pytest.mark.parametrize("chunked", [False, True], ids=["of a stated length", "in chunks"])
def test_the_sender_of_a_large_body_sees_the_413(api: Stack, chunked: bool) -> None:
    """Up to 8 MiB are read and dropped first; a client that is still sending reads no answer."""
    body = b"x" * (7 * 2**20)
    data = (body[at : at + 65536] for at in range(0, len(body), 65536)) if chunked else body
    answer = requests.post(
        f"{api.url}/jobs/process", data=data, headers={"Content-Type": "application/json"}, timeout=30
    )
    assert answer.status_code == 413
    assert answer.json()["error"] == "payload_too_large"


@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD + b"Content-Length: abc\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nno trailer\r\n\r\n",
        HEAD + b"\r\n",
        HEAD + b"Content-Length: 50\r\n\r\n{}",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nno header\r\n\r\n",
        b"G@T / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /%s HTTP/1.1\r\nHost: localhost\r\n\r\n" % (b"a" * 5000),
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: %s\r\n\r\n" % (b"a" * 10_000),
    ],
    ids=[
        *("no number", "negative", "two lengths", "length and chunks", "no chunk size", "bad trailer", "no body"),
        *("short body", "bad header", "bad method", "long path", "long header"),
    ],
)
def test_a_malformed_request_is_told_so_in_the_one_shape(api: Stack, request_bytes: bytes) -> None:
    """Also what never reaches Flask; the answer tells nothing about what runs here."""
    status, body = raw(api, request_bytes, half_close=True)
    assert status in {400, 414, 431}
    assert list(body) == ["error", "message", "details"]
    assert body["error"] == "bad_request"
    assert not re.search(r"gunicorn|/[a-z]+/", json.dumps(body))


def test_chunked_bodies_are_taken(api: Stack) -> None:
    """A submission need not state its length."""
    data = json.dumps({**BODY, "doc_id": "chunked"}).encode()
    status, body = raw(api, HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
    assert (status, body["message"]) == (202, "Job queued successfully")


def test_a_cancelled_pending_job_puts_its_document_back(api: Stack) -> None:
    """Soon after the answer the website's card says that the document can be processed again."""
    api.add_document("cancelled", pdfs.prose(1))
    job_id = api.submit("cancelled").json()["job_id"]
    answer = api.http.delete(f"{api.url}/jobs/{job_id}", timeout=10)
    assert (answer.status_code, answer.json()) == (200, {"message": "Job cancelled"})
    assert api.job(job_id)["status"] == "cancelled"
    eventually(lambda: api.fields("cancelled").get("status") == "uploaded", "the document to be put back")
    assert "currentStep" not in api.fields("cancelled")


def test_the_list_is_quick_with_ten_thousand_jobs(api: Stack) -> None:
    """Counting and filtering are done where the jobs are."""
    with api.redis.pipeline(transaction=False) as pipe:
        for number in range(10_000):
            status = "finished" if number % 2 else "failed"
            fields: dict[Any, Any] = {"status": status, "doc_id": f"many-{number}", "meta": "{}"}
            pipe.hset(f"superexam:job:many-{number}", mapping=fields)
            pipe.zadd("superexam:jobs", {f"many-{number}": number})
        pipe.execute()
    begun = time.monotonic()
    answer = api.http.get(f"{api.url}/jobs?status=failed&limit=200&offset=100", timeout=10)
    assert time.monotonic() - begun < 1
    assert answer.json()["total"] == 5000
    assert [job["job_id"] for job in answer.json()["jobs"][:2]] == ["many-9798", "many-9796"]


def test_the_metrics_are_told(api: Stack) -> None:
    """To whom a key is known, or on this machine."""
    answer = api.http.get(f"{api.url}/metrics", timeout=10)
    assert answer.status_code == 200
    assert 'superexam_submissions_total{outcome="duplicate"}' in answer.text
    assert api.http.get(f"{api.url}/metrics", headers={"Via": "1.1 proxy"}, timeout=10).status_code == 401
