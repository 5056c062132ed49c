"""ID tokens from end to end: our own keys, their certificates served on loopback, Google's own library between."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from superexam_rq.app import create_app
from superexam_rq.config import Settings
from superexam_rq.sandbox.processes import free_port
from tests.google import AUDIENCE, HEADERS, Google
from tests.stack import Stack, stack

ELSEWHERE = {"REMOTE_ADDR": "10.0.0.1"}
BODY = {"doc_id": "doc", "system_prompt_id": "sys", "custom_prompt_id": "cus"}


@pytest.fixture(scope="module")
def google() -> Google:
    """Give Google's part."""
    return Google()


@pytest.fixture(scope="module")
def certs_url(google: Google) -> Iterator[str]:
    """Serve the certificates."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer with the page."""
            google.pages += 1
            body = json.dumps(google.page).encode()
            self.send_response(200)
            for name, value in {**HEADERS, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/certs"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give a Redis."""
    with stack(tmp_path_factory.mktemp("google")) as found:
        yield found


def client(servers: Stack, certs_url: str, **settings: str) -> FlaskClient:
    """Return a client of an API that takes tokens for `AUDIENCE`."""
    given = {"GOOGLE_ID_TOKEN_AUDIENCE": AUDIENCE, **settings}
    read = Settings.from_env({**servers.environment, **given}, Path("no.env"))
    return create_app(read, google_certs_url=certs_url).test_client()


def submit(api: FlaskClient, token: str) -> int:
    """Submit from another machine, as the website does, and return the status."""
    headers = {"Authorization": f"Bearer {token}"}
    return api.post("/jobs/process", json=BODY, headers=headers, environ_base=ELSEWHERE).status_code


def test_the_website_is_let_in(servers: Stack, certs_url: str, google: Google) -> None:
    """A fresh token with each call, its audience with a slash; the certificates are fetched once."""
    api = client(servers, certs_url)
    before = google.pages
    assert submit(api, google.token(aud=AUDIENCE + "/")) == 202
    assert [submit(api, google.token(iat=int(time.time()) - number)) for number in range(1, 4)] == [200] * 3
    assert google.pages == before + 1


def test_others_are_not(servers: Stack, certs_url: str, google: Google) -> None:
    """Another audience, another account, a token that was tampered with, none at all."""
    api = client(servers, certs_url, GOOGLE_ID_TOKEN_EMAILS="web@project.example")
    assert submit(api, google.token()) in {200, 202}
    tampered = google.token().rpartition(".")[0] + ".AAAA"
    for token in (google.token(aud="https://other.example"), google.token(email="evil@x.example"), tampered, "x.y.z"):
        assert submit(api, token) == 401
    assert api.get("/jobs", environ_base=ELSEWHERE).status_code == 401


def test_without_certificates_the_answer_is_503_in_time(servers: Stack, google: Google) -> None:
    """That the token can't be checked is no refusal; the website may try again."""
    api = client(servers, f"http://127.0.0.1:{free_port()}/certs")
    begun = time.monotonic()
    headers = {"Authorization": f"Bearer {google.token()}"}
    answer = api.get("/jobs", headers=headers, environ_base=ELSEWHERE)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert time.monotonic() - begun < 2
