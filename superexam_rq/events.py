"""The event streams of jobs: one watcher a process, which wakes the streams whose job has changed.

The watcher holds the process's one subscription to the channel on which changes are announced, and looks at all
jobs that are listened to every few seconds besides, since RQ changes some states without a word. Each stream blocks
a thread of the server, asleep but for its job's changes and a heartbeat; hence the cap.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import queue
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

from redis.client import PubSub
from redis.exceptions import RedisError
from rq.utils import as_text

from superexam_rq import queueing
from superexam_rq.config import Settings
from superexam_rq.queueing import JobObject, JobQueue

log = logging.getLogger(__name__)

# For one process. deploy/gunicorn.conf.py has more threads than this, so that requests are answered besides.
MAX_LISTENERS = 100
# Proxies close a connection that is silent for a minute or so; and only a write shows that a listener has gone.
HEARTBEAT_SECONDS = 15.0
# How late a change may be seen that nobody announced.
POLL_SECONDS = 2.0
# Looks are so far apart: many changes at once, such as a restart of all workers, are read in few trips.
_GATHER_SECONDS = 0.03
_IDLE_SECONDS = 30.0
_RECONNECT_SECONDS = 1.0
# How long a browser waits before it connects again.
_CLIENT_RETRY_MS = 3000
_MAX_WAITING = 64


class TooManyListeners(Exception):
    """Report that the process has as many streams as it can hold."""


def event_id(job: JobObject) -> str:
    """Return the id of a state of a job: the same in every process, so that a stream can be resumed anywhere."""
    seen = job.to_dict()
    if job.retry_at is not None:
        del seen["current_step"]  # it counts the seconds down
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()[:16]


def has_ended(job: JobObject) -> bool:
    """Tell whether a job has reached an end state."""
    return job.status not in {"pending", "processing"}


class Listener:
    """Receive the states of one job."""

    def __init__(self, hub: Hub, job_id: str) -> None:
        self.job_id = job_id
        self._hub = hub
        self._states: queue.SimpleQueue[JobObject | None] = queue.SimpleQueue()

    def put(self, job: JobObject | None) -> None:
        """Take a state, or None for the end; a listener that does not read misses states, never the end."""
        if job is None or has_ended(job) or self._states.qsize() < _MAX_WAITING:
            self._states.put(job)

    def get(self, seconds: float) -> JobObject | None:
        """Return the next state or None for the end; raises `queue.Empty` if none came."""
        return self._states.get(timeout=seconds)

    def close(self) -> None:
        """Stop listening; may be called twice."""
        self._hub.leave(self)


class Hub:
    """Know who listens to which job in this process, and watch those jobs while somebody does."""

    def __init__(
        self,
        jobs: JobQueue,
        settings: Settings,
        *,
        max_listeners: int = MAX_LISTENERS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._jobs = jobs
        self._channel = settings.key("events")
        self._max_listeners = max_listeners
        self._heartbeat_seconds = heartbeat_seconds
        self._lock = threading.Lock()
        self._listeners: dict[str, set[Listener]] = {}
        self._count = 0
        self._seen: dict[str, str] = {}
        self._watcher: threading.Thread | None = None
        # Not an event: its lock may be held when the signal comes whose handler closes the hub.
        self._closed = False

    def listen(self, job_id: str) -> Listener:
        """Return a listener to one job; raises `TooManyListeners`. The first one starts the watcher."""
        with self._lock:
            if self._closed or self._count >= self._max_listeners:
                raise TooManyListeners
            listener = Listener(self, job_id)
            self._listeners.setdefault(job_id, set()).add(listener)
            self._count += 1
            if self._watcher is None:
                # Started here and not at import: a thread does not survive the server's fork.
                self._watcher = threading.Thread(target=self._watch, name="job-events", daemon=True)
                self._watcher.start()
        return listener

    def leave(self, listener: Listener) -> None:
        """Forget a listener."""
        with self._lock:
            of_job = self._listeners.get(listener.job_id, set())
            if listener in of_job:
                of_job.remove(listener)
                self._count -= 1
                if not of_job:
                    del self._listeners[listener.job_id]
                    self._seen.pop(listener.job_id, None)

    def close(self) -> None:
        """End every stream within some seconds, and take no more. Takes no lock: signal handlers may call it."""
        self._closed = True

    def stream(self, listener: Listener, job: JobObject, last_id: str | None) -> Iterator[str]:
        """Yield a job's states as server-sent events, from `job` on, until it has ended or is gone.

        A client that says which state it has seen last is not told that one again.
        """
        with contextlib.closing(listener):
            yield f"retry: {_CLIENT_RETRY_MS}\n\n"
            state: JobObject | None = job
            while state is not None:
                current = event_id(state)
                if current != last_id:
                    yield f"id: {current}\ndata: {json.dumps(state.to_dict())}\n\n"
                    last_id = current
                if has_ended(state):
                    return
                state = yield from self._next(listener)

    def _next(self, listener: Listener) -> Generator[str, None, JobObject | None]:
        """Return the next state, or None for the end; yields a comment now and then while there is none."""
        while True:
            try:
                return listener.get(self._heartbeat_seconds)
            except queue.Empty:
                yield ": still here\n\n"

    def _watch(self) -> None:
        try:
            while not self._closed:
                try:
                    if self._watch_connected():
                        return
                except RedisError as error:
                    log.warning("event streams wait for Redis: %s", queueing.away(error) or repr(error))
                    time.sleep(_RECONNECT_SECONDS)
        finally:
            left = []
            with self._lock:
                # Else it has ended for want of listeners, and those that came since have another one.
                if self._watcher is threading.current_thread():
                    self._watcher = None
                    left = [listener for listeners in self._listeners.values() for listener in listeners]
            for listener in left:
                listener.put(None)

    def _watch_connected(self) -> bool:
        """Tell listeners what changes; returns True once nobody has listened for a while."""
        idle_since = time.monotonic()
        with self._jobs.connection.pubsub(ignore_subscribe_messages=True) as subscription:
            subscription.subscribe(self._channel)
            looked = next_look = 0.0
            while not self._closed:
                announced = self._announced(subscription, next_look, looked + _GATHER_SECONDS)
                with self._lock:
                    watched = list(self._listeners)
                    if not watched and time.monotonic() - idle_since >= _IDLE_SECONDS:
                        self._watcher = None
                        return True
                if watched:
                    idle_since = time.monotonic()
                looked = time.monotonic()
                if looked >= next_look:
                    next_look = looked + POLL_SECONDS
                    self._tell_changes(watched)
                else:
                    self._tell_changes([job_id for job_id in watched if job_id in announced])
        return False

    @staticmethod
    def _announced(subscription: PubSub, until: float, not_before: float) -> set[str]:
        """Return the jobs announced as changed: waits for the first, until a moment, and for others `not_before`."""
        announced: set[str] = set()
        message: Any = subscription.get_message(timeout=max(0.0, until - time.monotonic()))
        while message is not None:
            announced.add(as_text(message["data"]))
            message = subscription.get_message(timeout=max(0.0, not_before - time.monotonic()))
        return announced

    def _tell_changes(self, job_ids: list[str]) -> None:
        found = self._jobs.snapshots(job_ids) if job_ids else {}
        for job_id in job_ids:
            job = found.get(job_id)
            state = event_id(job) if job else ""
            with self._lock:
                listeners = list(self._listeners.get(job_id, ()))
                if not listeners or self._seen.get(job_id) == state:
                    continue
                self._seen[job_id] = state
            for listener in listeners:
                listener.put(job)
