"""The shared pace, seen from one process; a real Redis and several processes are in the integration tests."""

from __future__ import annotations

import logging
import threading
from unittest.mock import Mock

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from superexam_rq.config import Settings
from superexam_rq.throttle import Throttle


class Stop(threading.Event):
    """Note the waits and end them at once; after `patience` of them, be set."""

    def __init__(self, patience: int = 1) -> None:
        super().__init__()
        self.waits: list[float] = []
        self.patience = patience

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout or 0.0)
        if len(self.waits) == self.patience:
            self.set()
        return self.is_set()


@pytest.fixture
def redis() -> FakeRedis:
    """Return an empty Redis."""
    return FakeRedis()


def throttle(redis: FakeRedis, rpm: int, window: float = 60.0) -> Throttle:
    """Return a throttle as one worker has it."""
    return Throttle(redis, Settings(rq_key_prefix="superexam", gemini_rpm=rpm), window=window)


def test_calls_within_the_limit_go_at_once(redis: FakeRedis) -> None:
    """A short document is not slowed down."""
    pace, stop = throttle(redis, 5), Stop()
    assert all(pace.acquire(stop) for _ in range(5))
    assert stop.waits == []


def test_the_next_call_waits_for_the_window(redis: FakeRedis) -> None:
    """The limit is of all workers: another one's calls count too. Who stops waiting has made no call."""
    for _ in range(5):
        throttle(redis, 5).acquire(Stop())
    stop = Stop()
    assert not throttle(redis, 5).acquire(stop)
    assert 59 < stop.waits[0] <= 60.1


def test_a_call_that_waited_is_granted_when_the_window_has_moved(redis: FakeRedis) -> None:
    """Waiting ends by itself."""
    pace, stop = throttle(redis, 1, window=0.05), threading.Event()
    assert pace.acquire(stop)
    assert pace.acquire(stop)


def test_without_a_limit_nothing_is_counted(redis: FakeRedis) -> None:
    """GEMINI_RPM=0 leaves nothing in Redis."""
    assert throttle(redis, 0).acquire(Stop())
    assert redis.keys() == []


@pytest.mark.parametrize("rpm", [0, 100])
def test_a_pause_holds_everybody(redis: FakeRedis, rpm: int) -> None:
    """After a 429 with a delay every worker waits, and not all to the same moment."""
    throttle(redis, rpm).pause(30.0)
    stop = Stop()
    assert not throttle(redis, rpm).acquire(stop)
    assert 29 < stop.waits[0] <= 31


def test_a_pause_is_only_made_longer(redis: FakeRedis) -> None:
    """A later, shorter delay does not cut an earlier one."""
    pace = throttle(redis, 0)
    pace.pause(30.0)
    pace.pause(5.0)
    assert redis.ttl("superexam:gemini:pause") > 28
    pace.pause(50.0)
    assert redis.ttl("superexam:gemini:pause") > 48


@pytest.mark.parametrize(("stated", "kept"), [(600.0, 60), (0.0, -2)])
def test_a_pause_is_bounded(redis: FakeRedis, stated: float, kept: int) -> None:
    """Nobody waits for longer than a minute, or for nothing (contract §1)."""
    throttle(redis, 0).pause(stated)
    assert redis.ttl("superexam:gemini:pause") == kept


def test_keys_expire_and_hold_no_secret(redis: FakeRedis) -> None:
    """What is counted goes by itself, and says nothing of whose calls they were."""
    pace = throttle(redis, 5)
    pace.acquire(Stop())
    pace.pause(10)
    assert set(redis.keys()) == {b"superexam:gemini:calls", b"superexam:gemini:pause"}
    assert all(redis.ttl(key) > 0 for key in redis.scan_iter())


def test_who_was_stopped_before_makes_no_call(redis: FakeRedis) -> None:
    """A stopped run takes nothing from the limit."""
    stop = Stop()
    stop.set()
    assert not throttle(redis, 5).acquire(stop)
    assert redis.keys() == []


def test_without_redis_calls_are_made_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    """A 429 can be dealt with; failing a run would throw away what it has paid for."""
    down = Mock()
    down.register_script.return_value.side_effect = RedisConnectionError("refused")
    pace = Throttle(down, Settings(gemini_rpm=5))
    with caplog.at_level(logging.WARNING):
        assert pace.acquire(Stop())
        pace.pause(5)
    assert caplog.text.count("Redis is away") == 2
