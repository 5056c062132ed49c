"""Time that passes as a test wants it to."""

from __future__ import annotations

import threading


class HastyEvent(threading.Event):
    """An event whose waits are noted and over at once."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Note the time-out in seconds and return."""
        self.waits.append(timeout or 0.0)
        return self.is_set()
