"""gunicorn's threaded worker, fitted to this service: errors in the one shape, streams that end when it stops.

Whatever gunicorn refuses before a request reaches Flask (a malformed request line, header or chunk), it would
answer with a page of HTML.
"""

from __future__ import annotations

import json
import socket
from http import HTTPStatus
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

from superexam_rq.events import Hub
from superexam_rq.schemas import error_code


class ApiWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """Serve the API; `hub`, once it is set, holds the event streams of this process."""

    hub: Hub | None = None

    def handle_exit(self, sig: int, frame: Any) -> None:
        """End the event streams and stop: gunicorn would wait for them until it is killed."""
        if self.hub is not None:
            self.hub.close()
        super().handle_exit(sig, frame)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer a request that could not be read."""
        super().handle_error(req, _OneShape(client), addr, exc)


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
