"""Event streams: who listens hears every change, in time, and does not keep the service from its work."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from superexam_rq import lifecycle
from superexam_rq.queueing import JobQueue, connect
from superexam_rq.sandbox.gemini import Fault
from tests import pdfs
from tests.stack import Stack, eventually, stack


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give an API; its worker is each test's to start."""
    with stack(tmp_path_factory.mktemp("events"), RATE_LIMIT="") as servers:
        servers.add_prompts()
        servers.start_api()
        yield servers


@pytest.fixture(scope="module")
def jobs(service: Stack) -> JobQueue:
    """Give the queue behind the API."""
    return JobQueue(connect(service.settings()), service.settings())


class Listening:
    """Follow a job in a thread of its own, and keep what was heard."""

    def __init__(self, service: Stack, job_id: str, last_id: str | None = None) -> None:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        self.answer = requests.get(
            f"{service.url}/jobs/{job_id}/events", headers=headers, stream=True, timeout=(10, 60)
        )
        self.text = ""
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        for chunk in self.answer.iter_content(None):
            self.text += chunk.decode()

    @property
    def events(self) -> list[dict[str, Any]]:
        """Return the job objects heard."""
        return [json.loads(found) for found in re.findall(r"^data: (.*)\n\n", self.text, re.MULTILINE)]

    @property
    def ids(self) -> list[str]:
        """Return the events' ids."""
        return re.findall(r"^id: (\w+)$", self.text, re.MULTILINE)

    def statuses(self) -> list[str]:
        """Return the statuses heard, each once in a row."""
        heard = [event["status"] for event in self.events]
        return [status for at, status in enumerate(heard) if at == 0 or heard[at - 1] != status]

    def wait_for_end(self) -> None:
        """Wait until the service closes the stream."""
        self.thread.join(60)
        assert not self.thread.is_alive(), self.text
        self.answer.close()


def test_a_stream_tells_a_job_from_the_queue_to_its_end(service: Stack) -> None:
    """First what is, then each change, last the end; then it is closed."""
    service.add_document("followed", pdfs.prose(3))
    job_id = service.submit("followed").json()["job_id"]
    listening = Listening(service, job_id)
    eventually(lambda: listening.events, "the first state")
    service.gemini.script(Fault.wait(0.5))
    service.start_worker("worker-1")
    try:
        listening.wait_for_end()
    finally:
        service.children.stop("worker-1")
    assert listening.statuses() == ["pending", "processing", "completed"]
    assert listening.events[-1] == service.job(job_id)
    assert len(set(listening.ids)) == len(listening.ids) == len(listening.events)


def test_a_stream_is_resumed_where_it_broke_off(service: Stack, jobs: JobQueue) -> None:
    """Who names the last state seen hears the next one only; who has seen the end is told to stop."""
    job_id = service.submit("resumed").json()["job_id"]
    first = Listening(service, job_id)
    [seen] = eventually(lambda: first.ids, "the first state")
    second = Listening(service, job_id, seen)
    lifecycle.cancel(jobs, job_id)
    first.wait_for_end()
    second.wait_for_end()
    assert first.statuses() == ["pending", "cancelled"]
    assert second.statuses() == ["cancelled"]
    again = requests.get(f"{service.url}/jobs/{job_id}/events", headers={"Last-Event-ID": second.ids[-1]}, timeout=10)
    assert (again.status_code, again.content) == (204, b"")


def test_a_hundred_listeners_hear_a_change_and_leave_room_for_submissions(service: Stack, jobs: JobQueue) -> None:
    """On one instance, each with a job of its own, through one subscription a process."""
    ids = [service.submit(f"hundred-{number}").json()["job_id"] for number in range(100)]
    listening = [Listening(service, job_id) for job_id in ids]
    eventually(lambda: all(one.events for one in listening), "all first states")
    assert service.redis.pubsub_numsub("superexam:events")[0][1] <= 2
    begun = time.monotonic()
    assert service.submit("beside-a-hundred").status_code == 202
    assert time.monotonic() - begun < 1
    for job_id in ids:
        lifecycle.cancel(jobs, job_id)
    for one in listening:
        one.wait_for_end()
        assert one.statuses() == ["pending", "cancelled"]


def test_a_change_that_nobody_announces_is_heard_all_the_same(service: Stack) -> None:
    """RQ's own tools change jobs without a word; all jobs listened to are looked at every few seconds."""
    job_id = service.submit("silent").json()["job_id"]
    listening = Listening(service, job_id)
    eventually(lambda: listening.events, "the first state")
    service.redis.hset(f"superexam:job:{job_id}", "status", "failed")
    listening.wait_for_end()
    assert listening.statuses() == ["pending", "failed"]


def test_a_stream_of_a_job_that_vanishes_ends(service: Stack) -> None:
    """Its hash was deleted, by `rq empty` or a dashboard."""
    job_id = service.submit("vanishing").json()["job_id"]
    listening = Listening(service, job_id)
    eventually(lambda: listening.events, "the first state")
    service.redis.delete(f"superexam:job:{job_id}")
    listening.wait_for_end()
    assert listening.statuses() == ["pending"]


def test_asking_for_the_head_of_a_stream_holds_no_place(service: Stack) -> None:
    """300 times, which is more than there are places."""
    job_id = service.submit("left").json()["job_id"]
    for _ in range(3):
        connections = []
        for _ in range(100):
            connection = socket.create_connection(("127.0.0.1", service.port), timeout=10)
            connection.sendall(b"HEAD /jobs/%s/events HTTP/1.1\r\nHost: localhost\r\n\r\n" % job_id.encode())
            assert b" 200 " in connection.recv(65536)
            connections.append(connection)
        for connection in connections:
            connection.close()
    assert Listening(service, job_id).answer.status_code == 200
    service.http.delete(f"{service.url}/jobs/{job_id}", timeout=10)


def test_streams_end_when_the_service_is_told_to_stop(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A restart does not wait for jobs to end; browsers connect again by themselves."""
    with stack(tmp_path_factory.mktemp("stop")) as servers:
        servers.start_api()
        job_id = servers.submit("stopped").json()["job_id"]
        listening = [Listening(servers, job_id) for _ in range(5)]
        eventually(lambda: all(one.events for one in listening), "the first states")
        process = servers.children.running["api"]
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - begun < 10
        for one in listening:
            one.wait_for_end()
            assert one.statuses() == ["pending"]
