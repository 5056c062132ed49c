"""gunicorn's threaded worker, fitted to this service: errors in the one shape, streams that end when it stops.

Whatever gunicorn refuses before a request reaches Flask (a malformed request line, header or chunk), it would
answer with a page of HTML. And it would let as many threads as there are requests compete for Python's lock, which
makes each of them slower and the unlucky ones much slower; `tests/bench/bench_http.py` measures it.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import time
from collections import deque
from http import HTTPStatus
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from superexam_rq.events import Hub
from superexam_rq.schemas import error_code

# A request that takes longer is not counted: an event stream, or a Redis that does not answer.
SLOW_SECONDS = 0.01
# With requests waiting, a process takes its next connection so much later.
CROWDED_SECONDS = 0.001
# A thread waits so long for the next request on the connection that it has just served.
NEXT_REQUEST_MS = 1


class ApiWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Serve the API; `hub`, once it is set, holds the event streams of this process."""

    hub: Hub | None = None
    # So many requests are worked on at once: while one waits for Redis, Python works on the other. See
    # deploy/gunicorn.conf.py for what was measured.
    at_once = 2

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting: deque[Any] = deque()
        self._started: dict[Any, float] = {}
        self._accepted = 0.0

    def run(self) -> None:
        """Serve, with what is loaded by now left out of the garbage collector's rounds (30 ms each, else)."""
        gc.collect()
        gc.freeze()
        super().run()

    def accept(self, listener: socket.socket) -> None:
        """Take a connection."""
        self._accepted = time.monotonic()
        super().accept(listener)

    def enqueue_req(self, conn: Any) -> None:
        """Have a connection's request answered, soon."""
        self._waiting.append(conn)
        self._start()

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Close a connection or keep it for its next request, and go on with what waits."""
        self._started.pop(conn, None)
        super().finish_request(conn, fs)
        self._start()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Do what is next to do; meanwhile what waits does not wait for a slow one."""
        # While a request waits here, another process may be free for the next connection.
        crowded = bool(self._waiting) and time.monotonic() - self._accepted < CROWDED_SECONDS
        self.set_accept_enabled(self._accepting and not crowded)
        super().wait_for_and_dispatch_events(SLOW_SECONDS if self._waiting else timeout)
        self._start()

    def handle(self, conn: Any) -> Any:
        """Answer a connection's request, and those that follow at once while nobody waits.

        gunicorn hands each from its main thread to another and back, which takes longer than to answer it.
        """
        keep = super().handle(conn)
        while keep is True and self.alive and not self._waiting and _has_more(conn.sock):
            self._started[conn] = time.monotonic()
            keep = super().handle(conn)
        return keep

    def _start(self) -> None:
        """Start what waits, as far as few are at work; one that takes long (a stream, Redis away) is not counted."""
        while self._waiting and self._quick() < self.at_once:
            conn = self._waiting.popleft()
            self._started[conn] = time.monotonic()
            super().enqueue_req(conn)

    def _quick(self) -> int:
        count, begun = 0, time.monotonic() - SLOW_SECONDS
        for started in reversed(self._started.values()):
            if started < begun:
                break
            count += 1
        return count

    def handle_exit(self, sig: int, frame: Any) -> None:
        """End the event streams and stop: gunicorn would wait for them until it is killed."""
        if self.hub is not None:
            self.hub.close()
        super().handle_exit(sig, frame)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer a request that could not be read."""
        super().handle_error(req, _OneShape(client), addr, exc)


def _has_more(client: socket.socket) -> bool:
    poll = select.poll()
    poll.register(client, select.POLLIN)
    return bool(poll.poll(NEXT_REQUEST_MS))


class ServerLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """Log what the server itself has to say; of requests the application does."""

    def access(self, *_: Any) -> None:
        """Do nothing, where gunicorn would put a line together for a logger that is silent."""


class _OneShape:
    """Stand for a client's socket and turn gunicorn's page of HTML into the one shape of errors."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def sendall(self, page: bytes) -> None:
        """Send the error that a page of gunicorn's stands for."""
        status = int(page.split(b" ", 2)[1])
        phrase = HTTPStatus(status).phrase
        message = f"{phrase}: the request is malformed" if status < 500 else phrase
        body = json.dumps({"error": error_code(status), "message": message, "details": {}}).encode()
        head = (
            f"HTTP/1.1 {status} {phrase}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._client.sendall(head.encode() + body)
