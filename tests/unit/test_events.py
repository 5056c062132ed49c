"""One stream by itself: what it says, when it ends, what it may be resumed from."""

from __future__ import annotations

import dataclasses
import json
import runpy
import threading
from pathlib import Path
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.client import PubSub

from superexam_rq import events, lifecycle
from superexam_rq.config import Settings
from superexam_rq.events import MAX_LISTENERS, Hub, TooManyListeners, event_id
from superexam_rq.queueing import JobObject, JobQueue
from superexam_rq.request import JobRequest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def jobs() -> JobQueue:
    """Give a queue with one job, `job(jobs)`."""
    found = JobQueue(FakeRedis(), Settings(rq_key_prefix="superexam"))
    found.enqueue(JobRequest(doc_id="doc", system_prompt_id="sys", custom_prompt_id="cus"))
    return found


def job(jobs: JobQueue) -> JobObject:
    """Return the job."""
    [found], _ = jobs.list_jobs()
    return found


def hub(jobs: JobQueue, **options: float) -> Hub:
    """Return a hub whose streams sleep no longer than a test may."""
    return Hub(jobs, jobs.settings, **{"heartbeat_seconds": 0.01, **options})  # type: ignore[arg-type]


def test_a_state_has_one_id_in_every_process(jobs: JobQueue) -> None:
    """It changes with the job, but not with the seconds that a retry counts down."""
    first = job(jobs)
    assert event_id(first) == event_id(job(jobs))
    assert event_id(dataclasses.replace(first, progress=5)) != event_id(first)
    waiting = dataclasses.replace(first, retry_at=1.0, current_step="Retrying in 9 s")
    assert event_id(waiting) == event_id(dataclasses.replace(waiting, current_step="Retrying in 8 s"))


def test_a_silent_stream_sends_heartbeats(jobs: JobQueue) -> None:
    """Comments, which clients skip; only a write shows that a listener has gone."""
    streams = hub(jobs)
    first = job(jobs)
    stream = streams.stream(streams.listen(first.job_id), first, None)
    assert next(stream).startswith("retry:")
    event = next(stream)
    assert event.startswith(f"id: {event_id(first)}\ndata: ")
    assert json.loads(event.partition("data: ")[2]) == first.to_dict()
    assert [next(stream) for _ in range(3)] == [": still here\n\n"] * 3
    stream.close()  # type: ignore[attr-defined]
    streams.close()


def test_a_state_already_seen_is_not_told_again(jobs: JobQueue) -> None:
    """The stream goes on with what comes next."""
    streams = hub(jobs)
    first = job(jobs)
    listener = streams.listen(first.job_id)
    stream = streams.stream(listener, first, event_id(first))
    assert next(stream).startswith("retry:")
    assert next(stream).startswith(":")
    lifecycle.cancel(jobs, first.job_id)
    listener.put(job(jobs))
    told = [part for part in stream if part.startswith("id:")]
    assert len(told) == 1
    assert '"cancelled"' in told[0]
    streams.close()


def test_a_stream_that_is_left_makes_room(jobs: JobQueue) -> None:
    """Also one that was never read."""
    streams = hub(jobs, max_listeners=1)
    first = streams.listen("a")
    with pytest.raises(TooManyListeners):
        streams.listen("b")
    first.close()
    first.close()
    streams.listen("b").close()
    streams.close()
    with pytest.raises(TooManyListeners):
        streams.listen("c")


def test_a_stream_that_begins_while_the_watcher_leaves_goes_on(jobs: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watcher goes when nobody has listened for a while; who comes just then has another one."""
    leaving, gone = threading.Event(), threading.Event()
    closed = PubSub.__exit__

    def close(self: PubSub, *arguments: Any) -> None:
        leaving.set()
        assert gone.wait(10)
        closed(self, *arguments)

    monkeypatch.setattr(PubSub, "__exit__", close)
    monkeypatch.setattr(events, "_IDLE_SECONDS", 0.0)
    monkeypatch.setattr(events, "POLL_SECONDS", 0.01)
    streams = hub(jobs)
    streams.listen("other").close()
    first_watcher = next(thread for thread in threading.enumerate() if thread.name == "job-events")
    assert leaving.wait(10)
    first = job(jobs)
    stream = streams.stream(streams.listen(first.job_id), first, None)
    assert next(stream).startswith("retry:")
    gone.set()
    first_watcher.join(10)
    assert not first_watcher.is_alive()
    told = [next(stream) for _ in range(10)]
    assert told[0].startswith("id: ")
    assert set(told[1:]) == {": still here\n\n"}
    stream.close()  # type: ignore[attr-defined]
    streams.close()


def test_the_server_has_threads_left_beside_a_full_house_of_streams() -> None:
    """Each stream blocks one."""
    config = runpy.run_path(str(ROOT / "deploy" / "gunicorn.conf.py"))
    assert config["threads"] >= MAX_LISTENERS + 16
