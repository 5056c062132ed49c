"""What is kept of settled batches, and for how long."""

from __future__ import annotations

import logging
import os
import zlib
from unittest.mock import Mock

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from superexam_rq import checkpoints
from superexam_rq.checkpoints import Checkpoint, Checkpoints, digest
from superexam_rq.config import Settings

SETTINGS = Settings(rq_key_prefix="superexam")
WHOLE = Checkpoint(items=({"questionText": "Où?", "choices": []}, "odd"), note="cut short")


@pytest.fixture
def redis() -> FakeRedis:
    """Return an empty Redis."""
    return FakeRedis()


@pytest.mark.parametrize("checkpoint", [WHOLE, Checkpoint(missing="blocked"), Checkpoint(parts=((1, 2), (3,)))])
def test_an_entry_comes_back_as_it_was(redis: FakeRedis, checkpoint: Checkpoint) -> None:
    """Answers, reasons and splits are found again under their name."""
    kept = Checkpoints(redis, SETTINGS)
    kept.put("ab12", checkpoint)
    assert kept.get("ab12") == checkpoint
    assert kept.get("cd34") is None


def test_entries_lie_under_the_prefix_and_expire(redis: FakeRedis) -> None:
    """Whatever is kept in Redis is the service's own, and goes by itself (contract §4)."""
    Checkpoints(redis, SETTINGS).put("ab12", WHOLE)
    assert set(redis.keys()) == {b"superexam:batch:ab12", b"superexam:batches"}
    assert all(86_000 < redis.ttl(key) <= 86_400 for key in redis.scan_iter())


def test_entries_outlive_a_short_job_ttl(redis: FakeRedis) -> None:
    """A retry by hand the next morning still finds what was paid for."""
    Checkpoints(redis, Settings(rq_key_prefix="superexam", job_ttl=60)).put("ab12", WHOLE)
    assert redis.ttl("superexam:batch:ab12") > 86_000


def test_entries_are_compressed_json(redis: FakeRedis) -> None:
    """Nothing that is read back can run code."""
    Checkpoints(redis, SETTINGS).put("ab12", WHOLE)
    value = redis.get("superexam:batch:ab12")
    assert isinstance(value, bytes)
    assert zlib.decompress(value).startswith(b'{"items":[{"questionText"')


def test_a_large_entry_is_not_kept(redis: FakeRedis, caplog: pytest.LogCaptureFixture) -> None:
    """One entry has at most a mebibyte, compressed."""
    kept = Checkpoints(redis, SETTINGS)
    kept.put("ab12", Checkpoint(items=(os.urandom(checkpoints.MAX_ENTRY).hex(),)))
    assert kept.get("ab12") is None
    assert "too large" in caplog.text


def test_all_entries_together_are_bounded(redis: FakeRedis) -> None:
    """The oldest leave when there is no room."""
    kept = Checkpoints(redis, SETTINGS, max_total=10_000)
    for number in range(10):
        kept.put(f"{number:04x}", Checkpoint(items=(os.urandom(1000).hex(),)))
    assert kept.get("0009") is not None
    assert kept.get("0000") is None
    left = redis.keys("superexam:batch:*")
    assert sum(redis.strlen(key) for key in left) <= 10_000
    assert redis.zcard("superexam:batches") == len(left) > 4


@pytest.mark.parametrize(
    "value",
    [
        b"garbage",
        zlib.compress(b"[]"),
        zlib.compress(b'{"items": 5, "missing": "", "note": "", "parts": []}'),
        zlib.compress(b" " * (checkpoints.MAX_UNPACKED + 1) + b"{}"),
    ],
    ids=["not compressed", "a list", "wrong types", "a bomb"],
)
def test_what_can_t_be_read_counts_as_missing(redis: FakeRedis, value: bytes) -> None:
    """A damaged entry costs one call, not the job."""
    redis.set("superexam:batch:ab12", value)
    assert Checkpoints(redis, SETTINGS).get("ab12") is None


def test_without_redis_nothing_is_kept_and_nothing_fails(caplog: pytest.LogCaptureFixture) -> None:
    """An outage costs money at the next retry, but no run."""
    down = Mock()
    down.get.side_effect = RedisConnectionError("refused")
    down.register_script.return_value.side_effect = RedisConnectionError("refused")
    kept = Checkpoints(down, SETTINGS)
    with caplog.at_level(logging.WARNING):
        kept.put("ab12", WHOLE)
        assert kept.get("ab12") is None
    assert caplog.text.count("Redis is away") == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"document": "other"},
        {"pages": [1, 2]},
        {"model": "other"},
        {"texts": ["system", "other"]},
        {"texts": ["systemprompt", ""]},
        {"schema": {"type": "array"}},
        {"schema": {"type": "object", "required": ["b", "a"]}},
    ],
    ids=str,
)
def test_the_name_depends_on_all_that_decides_an_answer(changed: dict[str, object]) -> None:
    """Another document, page, model, prompt or schema is another question."""
    same = {
        "document": "digest",
        "pages": [1, 2, 3],
        "model": "gemini-x",
        "texts": ["system", "prompt"],
        "schema": {"type": "object", "required": ["a", "b"]},
    }
    assert digest(**same) == digest(**same)  # type: ignore[arg-type]
    assert digest(**same) != digest(**same | changed)  # type: ignore[arg-type]
