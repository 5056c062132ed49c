"""The command `doctor` against an installation that is well, and against ones that are broken on purpose."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from google.auth.credentials import AnonymousCredentials
from google.cloud.storage import Client
from rq.suspension import WORKERS_SUSPENDED

from superexam_rq.doctor import CHECKS, WEBSITE_BUCKET
from superexam_rq.sandbox.processes import free_port
from tests import pdfs
from tests.stack import Stack, eventually

NAMES = [check.name for check in CHECKS]

Report = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def service(installation: Stack) -> Stack:
    """Give a running installation whose Redis user may do everything, and so may look at the keys of others."""
    installation.redis_url = f"redis://127.0.0.1:{installation.redis_server.port}/0"
    installation.configure(REDIS_URL=installation.redis_url)
    installation.start_api()
    installation.start_worker()
    return installation


@pytest.fixture
def healthy(service: Stack) -> Iterator[Stack]:
    """Give a running installation with one exam; what a test breaks in Firestore and Redis is mended after it."""
    if not service.fields("well"):
        service.add_document("well", pdfs.prose(1), createdAt=1)
        service.process("well")
    kept = set(service.redis.scan_iter())
    yield service
    service.firestore_server.faults.clear()
    for snapshot in service.db.collection("superexam-documents").stream():
        if snapshot.id != "well":
            snapshot.reference.delete()
    for key in set(service.redis.scan_iter()) - kept:
        if not key.startswith(b"superexam:"):
            service.redis.delete(key)


def examine(stack: Stack, **variables: str) -> Report:
    """Run the doctor in an environment with these variables; return its findings by check."""
    done = stack.command("doctor", "--json", **variables)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert [finding["check"] for finding in report["checks"]] == NAMES
    found = {finding["check"]: finding for finding in report["checks"]}
    failed = of_level(found, "failed")
    assert report["healthy"] is not bool(failed)
    assert done.returncode == (1 if failed else 0)
    for finding in found.values():
        assert "\n" not in finding["text"]
        assert finding["level"] not in {"failed", "warning"} or finding["advice"]
    return found


def of_level(found: Mapping[str, dict[str, str]], level: str) -> set[str]:
    """Return the names of the checks with a level."""
    return {name for name, finding in found.items() if finding["level"] == level}


def only_failure(found: Report, name: str, *words: str) -> None:
    """Check that one part failed and no other, and what is said of it; what needs it may be skipped."""
    assert of_level(found, "failed") == {name}
    assert of_level(found, "warning") == set()
    for word in words:
        assert word in f"{found[name]['text']} → {found[name]['advice']}"


def test_all_is_well(healthy: Stack) -> None:
    """Each check is green, and nothing is left in Firestore."""
    found = examine(healthy)
    assert of_level(found, "ok") == set(NAMES)
    assert list(healthy.db.collection("superexam-doctor").stream()) == []


def test_the_report_for_people(healthy: Stack) -> None:
    """One line a check with a sign, and below what is wrong what to do."""
    done = healthy.command("doctor", UPLOADS_DIR="/no/such/place")
    lines = done.stdout.splitlines()
    (wrong,) = [number for number, line in enumerate(lines) if line.startswith("✗")]
    assert lines[wrong].split()[1] == "uploads"
    assert lines[wrong + 1].split()[0] == "→"
    assert [line for line in lines if line.startswith("-")] == ["- files            needs uploads"]
    assert len(lines) == len(NAMES) + 1
    assert done.returncode == 1


class TestSettings:
    """What is wrong with the settings is found before anything is tried."""

    def test_a_value_that_can_not_be_used(self, healthy: Stack) -> None:
        """The rest is skipped: without settings there is nothing to look at."""
        found = examine(healthy, REDIS_PORT="many")
        only_failure(found, "settings", "REDIS_PORT takes a whole number")
        assert of_level(found, "skipped") == set(NAMES) - {"settings"}

    def test_prefixes_that_contradict(self, healthy: Stack) -> None:
        """RQ_KEY_PREFIX is REDIS_KEY_PREFIX without its colon, or the stock tools look elsewhere."""
        found = examine(healthy, RQ_KEY_PREFIX="other")
        only_failure(found, "settings", "RQ_KEY_PREFIX takes", "'superexam'")

    def test_misspelt_names(self, healthy: Stack) -> None:
        """In .env and in the environment; names of other programs are no matter."""
        dotenv = healthy.folder / ".env"
        dotenv.write_text("GEMINI_APIKEY=x\nCOMPOSE_FILE=x\nUNRELATED=1\nGOOGLE_APPLICATION_CREDENTIALS=\n")
        try:
            found = examine(healthy, REDIS_HOSTS="x")
        finally:
            dotenv.unlink()
        assert of_level(found, "warning") == {"names"}
        assert "GEMINI_APIKEY (is it GEMINI_API_KEY?)" in found["names"]["text"]
        assert "REDIS_HOSTS (is it REDIS_HOST?)" in found["names"]["text"]
        assert "UNRELATED" not in found["names"]["text"]


class TestRedis:
    """Redis and what lives in it."""

    NEED_REDIS = frozenset({"redis info", "prefix", "other keys", "workers", "scheduler", "queue", "neighbours"})

    def test_wrong_port(self, healthy: Stack) -> None:
        """The address is named, the rest of Redis is skipped, and other parts are still looked at."""
        port = free_port()
        found = examine(healthy, REDIS_URL=f"redis://127.0.0.1:{port}/0")
        only_failure(found, "redis", f"127.0.0.1:{port}", "REDIS_PORT")
        assert of_level(found, "skipped") == self.NEED_REDIS

    def test_a_redis_that_does_not_answer(self, healthy: Stack) -> None:
        """A connection that is taken, but never answered, is no reason to wait."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            started = time.monotonic()
            found = examine(healthy, REDIS_URL=f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
            assert time.monotonic() - started < 20
        only_failure(found, "redis", "Redis does not answer")

    def test_wrong_password(self, healthy: Stack) -> None:
        """It is called refused, and does not appear."""
        healthy.redis.execute_command("ACL", "SETUSER", "locked", "on", ">right", "~*", "&*", "+@all")
        port = healthy.redis_server.port
        found = examine(healthy, REDIS_URL=f"redis://locked:wrong-word@127.0.0.1:{port}/0")
        only_failure(found, "redis", "refuses the password")
        assert "wrong-word" not in json.dumps(found)

    @pytest.mark.parametrize("info", [False, True])
    def test_a_restricted_user(self, healthy: Stack, info: bool) -> None:
        """Without INFO it is red; that it can't look at others' keys is as it should be."""
        rules = ["~superexam:*", "&superexam:*", "-@all", "+@read", "+@write", "+@connection", "+@transaction"]
        rules += ["+@scripting", "+@pubsub", "-@dangerous", "-@admin", "-scan", *(["+info"] if info else [])]
        healthy.redis.execute_command("ACL", "SETUSER", "narrow", "reset", "on", ">word", *rules)
        found = examine(healthy, REDIS_URL=f"redis://narrow:word@127.0.0.1:{healthy.redis_server.port}/0")
        if info:
            assert of_level(found, "ok") == set(NAMES)
        else:
            only_failure(found, "redis info", "INFO", "+info")
        assert "can't leave it" in found["prefix"]["text"]
        assert "not allowed to look" in found["other keys"]["text"]

    def test_a_worker_that_forgot_the_prefix(self, healthy: Stack) -> None:
        """What runs without RQ_KEY_PREFIX shows by the keys of its queue under RQ's own prefix."""
        environment = {"RQ_REDIS_URL": healthy.redis_url, "RQ_KEY_PREFIX": "rq"}
        healthy.children.start("stray", "rq.cli", "worker", "superexam", environment=environment)
        try:
            eventually(lambda: healthy.redis.exists("rq:workers:superexam"), "the stray worker")
            only_failure(examine(healthy), "prefix", "rq:workers:superexam", "RQ_KEY_PREFIX=superexam")
        finally:
            healthy.children.stop("stray")

    def test_others_on_the_same_redis(self, healthy: Stack) -> None:
        """Other projects' keys are fine; a queue of the same name under another prefix is worth a look."""
        healthy.redis.set("shop:basket:1", "x")
        healthy.redis.set("celery", "x")
        found = examine(healthy)
        assert of_level(found, "ok") == set(NAMES)
        assert "shop" in found["other keys"]["text"]
        healthy.redis.rpush("old:queue:superexam", "job")
        found = examine(healthy)
        assert of_level(found, "warning") == {"other keys"}
        assert "old:" in found["other keys"]["text"]

    def test_no_worker(self, healthy: Stack) -> None:
        """With another prefix there is none, and the API is told to be another installation's."""
        found = examine(healthy, REDIS_KEY_PREFIX="lonely:")
        assert of_level(found, "failed") == {"api", "workers"}
        assert "no worker listens on the queue 'superexam'" in found["workers"]["text"]
        assert "superexam:" in found["api"]["text"]
        assert found["scheduler"]["text"] == "needs workers"

    def test_another_redis_than_the_api_s(self, healthy: Stack) -> None:
        """The API answers and is healthy, but its jobs go where no worker of these settings looks."""
        found = examine(healthy, REDIS_URL=healthy.redis_url.removesuffix("/0") + "/1")
        only_failure(found, "workers", "the API sees 1 alive, this shell 0", "REDIS_DB")

    def test_no_scheduler(self, healthy: Stack) -> None:
        """A worker without --with-scheduler is alive, but retries are late."""
        options = ("-S", "json", "-w", "superexam_rq.worker.ExamWorker", "quiet")
        exports = {"RQ_KEY_PREFIX": "superexam", "RQ_REDIS_URL": healthy.redis_url, "QUEUE_NAME": "quiet"}
        healthy.children.start("quiet", "rq.cli", "worker", *options, environment=exports)
        try:
            eventually(lambda: healthy.redis.exists("superexam:workers:quiet"), "the worker")
            found = examine(healthy, QUEUE_NAME="quiet", PORT=str(free_port()))
        finally:
            healthy.children.stop("quiet")
        assert of_level(found, "warning") == {"scheduler", "api"}
        assert "--with-scheduler" in found["scheduler"]["advice"]
        assert "can't be reached" in found["api"]["text"]

    def test_suspended_workers(self, healthy: Stack) -> None:
        """`rq suspend` is forgotten easily."""
        healthy.redis.set(f"superexam:{WORKERS_SUSPENDED.partition(':')[2]}", 1)
        try:
            only_failure(examine(healthy), "workers", "suspended", "rq resume")
        finally:
            healthy.redis.delete(f"superexam:{WORKERS_SUSPENDED.partition(':')[2]}")


class TestFirestore:
    """Firestore, its rights, and who else uses it."""

    def test_away(self, healthy: Stack) -> None:
        """What needs Firestore is skipped."""
        found = examine(healthy, FIRESTORE_EMULATOR_HOST=f"127.0.0.1:{free_port()}")
        only_failure(found, "firestore read", "does not answer", "FIRESTORE_EMULATOR_HOST")
        assert of_level(found, "skipped") == {"firestore write", "neighbours", "files"}

    def test_hanging(self, healthy: Stack) -> None:
        """A call that does not return is given up."""
        healthy.firestore_server.faults.delay("RunQuery", 60)
        started = time.monotonic()
        only_failure(examine(healthy), "firestore read", "look at")
        assert time.monotonic() - started < 20

    @pytest.mark.parametrize(("method", "check"), [("RunQuery", "firestore read"), ("Commit", "firestore write")])
    def test_no_rights(self, healthy: Stack, method: str, check: str) -> None:
        """Reading and writing are told apart; the role is named."""
        healthy.firestore_server.faults.fail(method, grpc.StatusCode.PERMISSION_DENIED)
        only_failure(examine(healthy), check, "permission denied", "roles/datastore.user")

    def test_no_credentials(self, healthy: Stack, tmp_path: Path) -> None:
        """Without an emulator credentials are needed; how to get them is said."""
        variables = {"HOME": str(tmp_path), "NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": str(tmp_path)}
        found = examine(healthy, FIRESTORE_EMULATOR_HOST="", **variables)
        only_failure(found, "credentials", "gcloud auth application-default login")
        assert of_level(found, "skipped") == {"firestore read", "firestore write", "neighbours", "files"}

    def test_an_empty_collection(self, healthy: Stack) -> None:
        """It may be new, or misspelt."""
        found = examine(healthy, FIRESTORE_COLLECTION_PREFIX="superexm-")
        assert of_level(found, "warning") == {"firestore read"}
        assert "FIRESTORE_COLLECTION_PREFIX" in found["firestore read"]["advice"]

    def test_another_installation(self, healthy: Stack) -> None:
        """A document that a job unknown here writes to shows that somebody else works on the collection."""
        now = int(time.time() * 1000)
        healthy.add_document("theirs", pdfs.prose(1), run="elsewhere:1", updatedAt=now)
        only_failure(examine(healthy), "neighbours", "(theirs)", "FIRESTORE_COLLECTION_PREFIX")

    def test_documents_that_only_wait_are_nobody_s(self, healthy: Stack) -> None:
        """Neither the website's fresh ones nor stuck ones of long ago are another installation's."""
        healthy.add_document("fresh", pdfs.prose(1), updatedAt=int(time.time() * 1000))
        healthy.add_document("stuck", pdfs.prose(1), run="long-gone:1", updatedAt=1)
        healthy.add_document("again", pdfs.prose(1), jobId="long-gone", updatedAt=int(time.time() * 1000))
        assert of_level(examine(healthy), "ok") == set(NAMES)


class TestUploads:
    """Where the PDFs are, and whether they are there."""

    def test_no_directory(self, healthy: Stack) -> None:
        """The website's bucket is named, since that is the likely reason."""
        found = examine(healthy, UPLOADS_DIR="/no/such/place")
        only_failure(found, "uploads", "/no/such/place", "does not exist", "superexam-uploads")
        assert found["files"]["level"] == "skipped"

    def test_one_file_is_missing(self, healthy: Stack) -> None:
        """Somebody may have deleted it: a warning."""
        healthy.add_document("lost", None, createdAt=int(time.time() * 1000))
        found = examine(healthy)
        assert of_level(found, "warning") == {"files"}
        assert "1 of the newest 2" in found["files"]["text"]
        assert "lost.pdf" in found["files"]["text"]

    def test_all_files_are_missing(self, healthy: Stack, tmp_path: Path) -> None:
        """The directory is there, and empty: the uploads go elsewhere."""
        # Nothing listens there; the real bucket is not asked.
        storage = f"http://127.0.0.1:{free_port()}"
        found = examine(healthy, UPLOADS_DIR=str(tmp_path), STORAGE_EMULATOR_HOST=storage)
        only_failure(found, "files", "1 of the newest 1", "superexam-uploads")

    def test_files_are_in_the_website_s_bucket(self, healthy: Stack, storage: str, tmp_path: Path) -> None:
        """Where the website's default bucket holds what the directory does not, that is the answer."""
        found = examine(healthy, UPLOADS_DIR=str(tmp_path), STORAGE_EMULATOR_HOST=storage)
        only_failure(found, "files", f"into the bucket {WEBSITE_BUCKET}", f"set GCS_BUCKET_NAME={WEBSITE_BUCKET}")

    def test_a_bucket(self, healthy: Stack, storage: str) -> None:
        """With the right bucket all is well; with another that does not exist it is named."""
        right = {"GCS_BUCKET_NAME": WEBSITE_BUCKET, "STORAGE_EMULATOR_HOST": storage}
        assert of_level(examine(healthy, **right), "ok") == set(NAMES)
        found = examine(healthy, **right | {"GCS_BUCKET_NAME": "none"})
        only_failure(found, "uploads", "no bucket none", "GCS_BUCKET_NAME")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the address of a storage emulator whose default bucket is the website's and holds the exam's PDF."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["-m", "gcp_storage_emulator", "start", "-H", "127.0.0.1", f"--port={port}", "-M", "-q"]
    folder = tmp_path_factory.mktemp("emulator")

    def answers() -> bool:
        try:
            return requests.get(f"{url}/storage/v1/b/{WEBSITE_BUCKET}", timeout=1).ok
        except requests.RequestException:
            return False

    with subprocess.Popen([sys.executable, *command, f"--default-bucket={WEBSITE_BUCKET}"], cwd=folder) as process:
        try:
            eventually(answers, "the storage emulator")
            options: dict[str, Any] = {"client_options": {"api_endpoint": url}, "credentials": AnonymousCredentials()}
            with contextlib.closing(Client(project="p", **options)) as client:
                client.bucket(WEBSITE_BUCKET).blob("well.pdf").upload_from_string(pdfs.prose(1))
            yield url
        finally:
            process.kill()


class TestGemini:
    """The key, the model, the way there."""

    @pytest.mark.parametrize(
        ("variables", "words"),
        [
            ({"GEMINI_API_KEY": "your-api-key-here"}, ("placeholder",)),
            ({"GEMINI_API_KEY": ""}, ("GEMINI_API_KEY is not set",)),
            ({"GEMINI_API_KEY": "invalid-key"}, ("refused the API key", "check GEMINI_API_KEY")),
            ({"GEMINI_API_KEY": "two words"}, ("characters that no key has",)),
            ({"GEMINI_MODEL": "mistral-large"}, ("no model named 'mistral-large'", "GEMINI_MODEL")),
            ({"GEMINI_API_ENDPOINT": "http://127.0.0.1:1"}, ("could not be reached", "GEMINI_API_ENDPOINT")),
        ],
    )
    def test_what_is_wrong(self, healthy: Stack, variables: dict[str, str], words: tuple[str, ...]) -> None:
        """Each is told apart, without a call that costs."""
        before = len(healthy.gemini.calls())
        only_failure(examine(healthy, **variables), "gemini", *words)
        assert len(healthy.gemini.calls()) == before
