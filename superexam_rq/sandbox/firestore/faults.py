"""Answers that a test wants to go wrong: errors and delays for the next calls of a method.

In the server's process: ``server.faults.fail("Commit", grpc.StatusCode.UNAVAILABLE)``. From another process:
``inject("127.0.0.1:8080", method="Commit", code="UNAVAILABLE")``, which calls the reserved gRPC method
``/superexam.sandbox.Faults/Inject`` with a JSON object as its bytes.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from typing import Any

import grpc

from superexam_rq.sandbox.firestore.names import FirestoreError, invalid

SERVICE = "superexam.sandbox.Faults"


@dataclass
class _Rule:
    method: str
    times: int
    code: grpc.StatusCode | None = None
    after: bool = False
    seconds: float = 0.0


class Faults:
    """The faults that are still to happen. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rules: list[_Rule] = []
        self._ended = threading.Event()

    def fail(self, method: str, code: grpc.StatusCode, times: int = 1, after: bool = False) -> None:
        """Answer the next ``times`` calls of an RPC (``"Commit"``) with an error.

        ``after``: do the call's work first, so that the client can't know its outcome.
        """
        self._add(_Rule(method, times, code=code, after=after))

    def delay(self, method: str, seconds: float, times: int = 1) -> None:
        """Let the next ``times`` calls of an RPC wait before they start."""
        self._add(_Rule(method, times, seconds=seconds))

    def clear(self) -> None:
        """Drop what has not happened yet."""
        with self._lock:
            self._rules.clear()

    def pending(self) -> int:
        """Return how many faults have not happened yet."""
        with self._lock:
            return sum(rule.times for rule in self._rules)

    def end(self) -> None:
        """Cut delays short: the server stops."""
        self._ended.set()

    def before(self, method: str) -> None:
        """Let happen what is due before a call."""
        for rule in self._due(method, after=False):
            self._ended.wait(rule.seconds)
            if rule.code is not None:
                raise FirestoreError(rule.code, f"injected before {method}")

    def after(self, method: str) -> None:
        """Let happen what is due after a call."""
        for rule in self._due(method, after=True):
            if rule.code is not None:
                raise FirestoreError(rule.code, f"injected after {method}")

    def inject(self, data: bytes) -> bytes:
        """Take a fault as JSON; see ``inject``. Returns ``{"pending": N}``."""
        try:
            wanted: dict[str, Any] = json.loads(data)
            if wanted.pop("clear", False):
                self.clear()
            if "seconds" in wanted:
                self.delay(**wanted)
            elif wanted:
                self.fail(**{**wanted, "code": grpc.StatusCode[wanted["code"]]})
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise invalid(f"not a fault: {error!r}") from None
        return json.dumps({"pending": self.pending()}).encode()

    def _add(self, rule: _Rule) -> None:
        with self._lock:
            self._rules.append(rule)

    def _due(self, method: str, *, after: bool) -> list[_Rule]:
        """Take one of each kind, delays before errors; a second error waits for the next call."""
        with self._lock:
            rules = [rule for rule in self._rules if rule.method == method and rule.after == after]
            due = [rule for rule in rules if rule.code is None] + [rule for rule in rules if rule.code][:1]
            for rule in due:
                rule.times -= 1
            self._rules = [rule for rule in self._rules if rule.times > 0]
            return due


def inject(address: str, **fault: Any) -> int:
    """Inject a fault into a stand-in that runs in another process; return how many are pending there.

    ``method`` and ``code`` (a name such as "UNAVAILABLE"; optional ``times``, ``after``), or ``method`` and
    ``seconds`` (a delay; optional ``times``), or ``clear=True``. Raises ``grpc.RpcError``.
    """
    with grpc.insecure_channel(address) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/Inject")
        answer = call(json.dumps(fault).encode(), timeout=10)
    return int(json.loads(answer)["pending"])
