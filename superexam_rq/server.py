"""gunicorn's threaded worker, fitted to this service: errors in the one shape, streams that end when it stops.

Whatever gunicorn refuses before a request reaches Flask (a malformed request line, header or chunk), it would
answer with a page of HTML. It would let as many threads as there are requests compete for Python's lock, which
makes each of them slower and the unlucky ones much slower; `tests/bench/bench_http.py` measures it. And it would wait
for ever for the rest of a request, so that a few hundred callers who send half of one hold all threads.
"""

from __future__ import annotations

import gc
import json
import select
import selectors
import socket
import sys
import time
from collections import deque
from functools import partial
from http import HTTPStatus
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from superexam_rq.events import Hub
from superexam_rq.schemas import error_code

# A request must have come, and each part of an answer be taken, within this.
CLIENT_SECONDS = 20.0
# So many bytes of a body that nobody wanted gunicorn reads to get to the next request (http.parser).
MAX_UNREAD = 60_000
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
        """Have a connection's request answered, soon; a new connection that is silent holds no thread."""
        if not conn.initialized and not conn.data_ready:
            conn.sock = ClientSocket(fileno=conn.sock.detach())
            conn.data_ready = _has_more(conn.sock, 0)
            if not conn.data_ready:
                self._wait_for_data(conn)
                return
        self._waiting.append(conn)
        self._start()

    def _wait_for_data(self, conn: Any) -> None:
        """Do what gunicorn does after a thread has waited in vain."""
        conn.sock.setblocking(False)
        conn.set_timeout()
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self.on_pending_socket_readable, conn))

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
        while keep is True and self.alive and not self._waiting and _has_more(conn.sock, NEXT_REQUEST_MS):
            self._started[conn] = time.monotonic()
            keep = super().handle(conn)
        return keep

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer one request; where its body is large, or of unknown length, the answer says that it is the last one.

        gunicorn closes the connection where much of a body was left unread, as of one that was refused.
        """
        if getattr(req.body.reader, "length", MAX_UNREAD + 1) > MAX_UNREAD:
            req.force_close()
        return super().handle_request(req, conn)

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


class ClientSocket(socket.socket):
    """Be a client's connection that is not waited for without end."""

    _until = 0.0

    def setblocking(self, flag: bool, /) -> None:
        """Begin with a request, as gunicorn does by this, or leave the connection to the poller."""
        self.settimeout(CLIENT_SECONDS if flag else 0.0)
        self._until = time.monotonic() + CLIENT_SECONDS

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Return more of the request; raises `TimeoutError` once its time is up, however it trickles in."""
        patience = self.gettimeout()
        if not patience:
            return super().recv(size, flags)
        self.settimeout(min(patience, max(self._until - time.monotonic(), 0.001)))
        try:
            return super().recv(size, flags)
        finally:
            self.settimeout(patience)


def _has_more(client: socket.socket, milliseconds: int) -> bool:
    poll = select.poll()
    poll.register(client, select.POLLIN)
    return bool(poll.poll(milliseconds))


class ServerLogger(Logger):  # type: ignore[misc]  # gunicorn has no types
    """Log what the server itself has to say; of requests the application does."""

    def access(self, *_: Any) -> None:
        """Do nothing, where gunicorn would put a line together for a logger that is silent."""

    def exception(self, msg: str, *args: Any, **options: Any) -> None:
        """Log a defect with its traceback; that a client was too slow is none."""
        if isinstance(sys.exc_info()[1], TimeoutError):
            self.info("A client did not send its request, or take its answer, within %d s", CLIENT_SECONDS)
        else:
            super().exception(msg, *args, **options)


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
