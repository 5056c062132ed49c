"""Child processes for the demo and the tests: each with a log file, none left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

START_SECONDS = 30.0
STOP_SECONDS = 5.0


class ChildEnded(Exception):
    """Say which process ended, or did not become ready, and the last thing it said."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Children:
    """Start Python processes and end them all on leaving the context."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self.environment = dict(environment)
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _signals_held():
            self.stop(*self.running)

    def start(
        self, name: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start `python -m ARGUMENTS`; the kernel ends it with SIGTERM when this process is gone (Linux)."""
        with self.log(name).open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "superexam_rq.processes", str(os.getpid()), *arguments],
                env=self.environment | dict(environment or {}),
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running[name] = process
        return process

    def log(self, name: str) -> Path:
        """Return the file that holds what a process printed."""
        return self.folder / f"{name}.log"

    def check(self) -> None:
        """Raise `ChildEnded` with the last line of its log if a process has ended."""
        for name, process in self.running.items():
            if process.poll() is not None:
                lines = self.log(name).read_text(errors="replace").strip().splitlines() or ["it said nothing"]
                raise ChildEnded(f"{name} ended with code {process.returncode}: {lines[-1]}")

    def wait_for(self, what: str, ready: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        """Wait until `ready`, while all processes live; raises `ChildEnded`."""
        give_up = time.monotonic() + seconds
        while not ready():
            self.check()
            if time.monotonic() > give_up:
                raise ChildEnded(f"{what} did not become ready within {seconds:.0f} s")
            time.sleep(0.05)

    def stop(self, *names: str) -> None:
        """End processes: SIGTERM, some seconds, then SIGKILL for each one's whole process group."""
        processes = [self.running.pop(name) for name in names]
        for process in reversed(processes):
            if process.poll() is None:
                process.terminate()
        give_up = time.monotonic() + STOP_SECONDS
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, give_up - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Hold back signals: a second Ctrl-C must not leave half of the processes behind."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
