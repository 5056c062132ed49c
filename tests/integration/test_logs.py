"""The logs of a real API and a real worker with LOG_FORMAT=json: each line an object, with ids, without secrets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests import pdfs
from tests.stack import Stack, eventually, stack

SECRETS = {
    "REDIS_PASSWORD": "redis-pass-4711",
    "API_KEYS": "api-key-4712",
    "GEMINI_API_KEY": "gemini-key-4713",
    "DASHBOARD_PASSWORD": "dashboard-4714",
}
DOCUMENT = "Zanzibar exports cloves since 1818."

Lines = list[dict[str, Any]]


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give a stack with a password on Redis, which has done some jobs, and has ended."""
    with stack(tmp_path_factory.mktemp("logs")) as servers:
        servers.redis.config_set("requirepass", SECRETS["REDIS_PASSWORD"])
        url = f"redis://:{SECRETS['REDIS_PASSWORD']}@127.0.0.1:{servers.redis_server.port}/0"
        servers.configure(**SECRETS | {"REDIS_URL": url, "LOG_FORMAT": "json", "LOG_LEVEL": "DEBUG"})
        servers.redis = type(servers.redis).from_url(url)
        servers.http.headers["Authorization"] = f"Bearer {SECRETS['API_KEYS']}"
        servers.add_prompts()
        servers.start_api()
        servers.start_worker(RQ_REDIS_URL=url)
        servers.add_document("good", pdfs.from_texts([f"{DOCUMENT} Page {number}." for number in range(50)]))
        servers.process("good")
        servers.firestore_server.faults.fail("BatchGetDocuments", grpc.StatusCode.PERMISSION_DENIED)
        servers.add_document("patience", pdfs.prose(1))
        servers.process("patience")
        servers.add_document("bad", b"")
        servers.process("bad")
        wrong = {"Authorization": f"Bearer {SECRETS['API_KEYS']}x"}
        servers.http.get(f"{servers.url}/jobs", headers=wrong, timeout=10)
        servers.http.get(f"{servers.url}/jobs/no-such-job?key={SECRETS['API_KEYS']}", timeout=10)
        eventually(lambda: "GET /jobs/no-such-job 404" in servers.children.log("api").read_text(), "the last line")
        servers.children.stop("worker-1", "api")
        yield servers


def lines(stack: Stack, name: str) -> Lines:
    """Return a process's lines, each of them JSON."""
    return [json.loads(line) for line in stack.children.log(name).read_text().splitlines()]


@pytest.mark.parametrize("name", ["api", "worker-1"])
def test_every_line_is_one_object(logged: Stack, name: str) -> None:
    """From the start of a process to its end each line is a JSON object with time, level, logger and message."""
    found = lines(logged, name)
    assert len(found) > 10
    for line in found:
        assert {"time", "level", "logger", "pid", "message"} <= line.keys()


def test_no_secret_is_in_any_log(logged: Stack) -> None:
    """Neither keys nor passwords are in a log, at LOG_LEVEL=DEBUG; nor is a document's text."""
    text = logged.children.log("api").read_text() + logged.children.log("worker-1").read_text()
    for secret in (*SECRETS.values(), "Zanzibar", "cloves", "Write exam questions."):
        assert secret not in text


def test_lines_of_a_run_tell_job_document_and_attempt(logged: Stack) -> None:
    """Each line of a work-horse has all three ids, those of threads too."""
    found = lines(logged, "worker-1")
    parent = found[0]["pid"]
    horses = {line["pid"] for line in found if "attempt" in line} - {parent}
    assert len(horses) == 4
    ours = [line for line in found if line["pid"] in horses]
    for line in ours:
        assert {"job_id", "doc_id", "attempt"} <= line.keys(), line
    attempts = {(line["doc_id"], line["attempt"]) for line in ours}
    assert attempts == {("good", 1), ("patience", 1), ("patience", 2), ("bad", 1)}
    threads = [line for line in found if line["logger"] == "superexam_rq.generation"]
    assert {line["doc_id"] for line in threads} == {"good", "patience"}
    assert {line["pid"] for line in threads} <= horses


def test_lines_of_the_parent_about_a_job_name_it(logged: Stack) -> None:
    """What the worker itself says about a job has the job's id; what it says of itself has none."""
    found = lines(logged, "worker-1")
    parent = [line for line in found if line["pid"] == found[0]["pid"]]
    job_ids = {line["job_id"] for line in found if line.get("doc_id") == "good"}
    (job_id,) = job_ids
    assert any(line.get("job_id") == job_id for line in parent)
    assert "job_id" not in parent[0]
    assert "job_id" not in parent[-1]


def test_each_request_has_one_line(logged: Stack) -> None:
    """It tells caller (by a digest), request, job, document, status and duration."""
    access = [line for line in lines(logged, "api") if line["logger"] == "superexam_rq.access"]
    assert len({line["request_id"] for line in access}) == len(access)
    submissions = [line for line in access if line["path"] == "/jobs/process"]
    assert [(line["doc_id"], line["status"]) for line in submissions] == [
        ("good", 202),
        ("patience", 202),
        ("bad", 202),
    ]
    for line in submissions:
        assert line["caller"].startswith("key-")
        assert line["job_id"]
        assert line["duration_ms"] < 5000
    refused = [line for line in access if line["status"] == 401]
    assert [line["path"] for line in refused] == ["/jobs"]
    assert "caller" not in refused[0]
    looked_up = [line for line in access if line.get("job_id") == submissions[0]["job_id"] and line["method"] == "GET"]
    assert {line["doc_id"] for line in looked_up} == {"good"}


def test_lines_within_a_request_share_its_ids(logged: Stack) -> None:
    """What a view logs has the request's id and caller, and the job once it is known."""
    found = lines(logged, "api")
    views = [line for line in found if line["logger"] == "superexam_rq.views"]
    access = {line["request_id"]: line for line in found if line["logger"] == "superexam_rq.access"}
    assert [line["message"] for line in views if "submitted" in line["message"]] == ["submitted: created"] * 3
    for line in views:
        assert access[line["request_id"]]["job_id"] == line["job_id"]
