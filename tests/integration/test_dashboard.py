"""rq-dashboard over HTTP: every page, every action, the login, and what other origins may not do."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from rq import Queue
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from superexam_rq.sandbox.gemini.faults import Fault
from superexam_rq.sandbox.processes import Children, free_port
from tests import acl, pdfs
from tests.stack import Stack, eventually

NOBODY = "00000000-0000-0000-0000-000000000000"
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def jobs(service: Stack) -> Iterator[dict[str, str]]:
    """Give one job of each kind: finished, failed, started, and two that wait behind it."""
    service.add_document("fine", pdfs.prose(2))
    service.add_document("broken", None, filePath="nowhere.pdf")
    service.add_document("slow", pdfs.prose(1, start=50))
    made = {name: service.process(name)["job_id"] for name in ("fine", "broken")}
    service.gemini.script(Fault.slow(600))
    made["slow"] = service.submit("slow").json()["job_id"]
    service.wait_for_job(made["slow"], "processing")
    for name in ("waiting-1", "waiting-2"):
        made[name] = service.submit(name).json()["job_id"]
    eventually(lambda: "1 of 4" in _data(service, f"0/data/job/{made['slow']}.json")["description"], "the attempt")
    yield made
    service.gemini.clear_faults()


def _get(service: Stack, path: str, **options: Any) -> requests.Response:
    return service.http.get(f"{service.url}/dashboard/{path}", timeout=10, **options)


def _post(service: Stack, path: str, **options: Any) -> requests.Response:
    return service.http.post(f"{service.url}/dashboard/{path}", timeout=10, **options)


def _data(service: Stack, path: str) -> dict[str, Any]:
    answer = _get(service, path)
    assert answer.status_code == 200, f"{path}: {answer.status_code} {answer.text}"
    found: dict[str, Any] = answer.json()
    return found


def _queue(service: Stack, name: str = "superexam") -> Queue:
    return Queue(name, connection=service.redis, serializer=JSONSerializer)


PAGES = ("", "0/", "0/view", "0/view/queues", "0/view/workers", "0/view/jobs")


@pytest.mark.parametrize("path", PAGES)
def test_every_page_opens_under_the_mount_point(service: Stack, jobs: dict[str, str], path: str) -> None:
    """Pages come as HTML, and everything that they load lies under /dashboard/ on the same host."""
    answer = _get(service, path)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assets = [part.split('"')[0] for part in answer.text.replace('src="', 'href="').split('href="')[1:]]
    loaded = [asset for asset in assets if asset.endswith((".js", ".css", ".ico"))]
    assert len(loaded) == 7
    for asset in loaded:
        assert asset.startswith("/dashboard/static/")
        assert service.http.get(service.url + asset, timeout=10).status_code == 200


def test_the_icon_is_served(service: Stack) -> None:
    """Browsers that ask for /favicon.ico get it."""
    assert _get(service, "favicon.ico").headers["Content-Type"].startswith("image/")


def test_pages_ask_again_every_ten_seconds(service: Stack) -> None:
    """An open tab costs one request in 10 s, not in 2.5 s."""
    assert "POLL_INTERVAL = 10000;" in _get(service, "").text


def test_the_jobs_page_opens_on_the_queue_in_use(service: Stack) -> None:
    """The Jobs tab shows the service's queue, not RQ's unused default."""
    assert 'value="superexam"' in _get(service, "0/view/jobs").text


def test_the_queues_are_counted(service: Stack, jobs: dict[str, str]) -> None:
    """The numbers of the queue's row are those of the registries."""
    (queue,) = _data(service, "0/data/queues.json")["queues"]
    counted = {name: queue[f"{name}_job_registry_count"] for name in ("failed", "started", "finished", "scheduled")}
    assert (queue["name"], queue["count"]) == ("superexam", 2)
    assert counted == {"failed": 1, "started": 1, "finished": 1, "scheduled": 0}


def test_a_busy_worker_is_shown_with_its_document(service: Stack, jobs: dict[str, str]) -> None:
    """While a worker runs a JSON job, its row names the job, the document and the attempt."""
    (worker,) = _data(service, "0/data/workers.json")["workers"]
    assert worker["state"] == "busy"
    assert worker["queues"] == ["superexam"]
    assert worker["current_job"]["job_id"] == jobs["slow"]
    assert worker["current_job"]["call_string"].startswith("document slow: ")
    assert "attempt 1 of 4" in worker["current_job"]["call_string"]


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ("queued", ["waiting-1", "waiting-2"]),
        ("started", ["slow"]),
        ("finished", ["fine"]),
        ("failed", ["broken"]),
        ("scheduled", []),
        ("deferred", []),
        ("canceled", []),
    ],
)
def test_every_registry_is_listed_both_ways(
    service: Stack, jobs: dict[str, str], registry: str, expected: list[str]
) -> None:
    """Each registry's page and its data hold the jobs in it, oldest or newest first."""
    for order, wanted in (("asc", expected), ("dsc", expected[::-1])):
        found = _data(service, f"0/data/jobs/superexam/{registry}/8/{order}/1.json")
        assert [row["id"] for row in found["jobs"]] == [jobs[name] for name in wanted]
        assert _get(service, f"0/view/jobs/superexam/{registry}/8/{order}/1").status_code == 200


def test_pages_of_a_list_join_without_overlap(service: Stack, jobs: dict[str, str]) -> None:
    """Twenty jobs on pages of eight are 8, 8 and 4 jobs in either order, in lists and in registries."""
    queue = _queue(service, "pages")
    made = [queue.enqueue("time.sleep", 0, job_id=f"page-{number:02}").id for number in range(20)]
    for registry in ("queued", "failed"):
        if registry == "failed":
            service.redis.zadd(queue.failed_job_registry.key, {name: 2e9 + n for n, name in enumerate(made)})
        for order, wanted in (("asc", made), ("dsc", made[::-1])):
            pages = [_data(service, f"0/data/jobs/pages/{registry}/8/{order}/{page}.json") for page in (1, 2, 3)]
            assert [len(page["jobs"]) for page in pages] == [8, 8, 4]
            assert [row["id"] for page in pages for row in page["jobs"]] == wanted
            assert [page["pagination"]["num_pages"] for page in pages] == [3, 3, 3]
            assert ["next_page" in page["pagination"] for page in pages] == [True, True, False]
            assert ["prev_page" in page["pagination"] for page in pages] == [False, True, True]
    queue.delete(delete_jobs=True)
    service.redis.delete(queue.failed_job_registry.key)


def test_a_failed_job_tells_where_and_why(service: Stack, jobs: dict[str, str]) -> None:
    """Its page has document, step, attempt, code and reason in one line, and the traceback below."""
    found = _data(service, f"0/data/job/{jobs['broken']}.json")
    assert found["status"] == "failed"
    assert found["description"].startswith("document broken: Failed, attempt 1 of 4, pdf_missing: PDF file not found")
    assert "superexam_rq.errors.PdfMissing" in found["exc_info"]
    assert "&#34;doc_id&#34;: &#34;broken&#34;" in found["metadata"]
    assert jobs["broken"] in _get(service, f"0/view/job/{jobs['broken']}").text


def test_a_finished_job_shows_its_result(service: Stack, jobs: dict[str, str]) -> None:
    """The result of a finished job is there: how many questions, and what they took."""
    found = _data(service, f"0/data/job/{jobs['fine']}.json")
    assert (found["status"], found["exc_info"]) == ("finished", None)
    assert found["result"]["question_count"] > 0


def test_a_job_with_dependencies_is_shown(service: Stack, jobs: dict[str, str]) -> None:
    """A job that waits for others, one of them gone, lists them with their state."""
    queue = _queue(service, "chain")
    parents = [queue.enqueue("time.sleep", 0, job_id=f"parent-{number}") for number in (1, 2)]
    child = queue.enqueue("time.sleep", 0, job_id="child", depends_on=parents)
    parents[1].delete()
    found = _data(service, "0/data/job/child.json")
    assert dict(zip(found["depends_on"], found["depends_on_status"], strict=True)) == {
        "parent-1": "active",
        "parent-2": "expired",
    }
    child.delete()
    queue.delete(delete_jobs=True)


def test_users_text_is_never_html(service: Stack, jobs: dict[str, str]) -> None:
    """A job's texts reach the pages that write them as HTML with every special character escaped."""
    queue = _queue(service, "hostile")
    job = queue.enqueue(
        "time.sleep", 0, job_id="hostile", description=HOSTILE, meta={"doc_id": HOSTILE, "error": HOSTILE}
    )
    assert HOSTILE not in _get(service, "0/data/job/hostile.json").text
    assert "&lt;img" in _data(service, "0/data/job/hostile.json")["description"]
    job.delete()
    queue.delete(delete_jobs=True)


@pytest.mark.parametrize(
    "path",
    [
        f"0/view/job/{NOBODY}",
        f"0/data/job/{NOBODY}.json",
        "1/view/queues",
        "7/data/workers.json",
        "0/view/jobs/superexam/nothing/8/asc/1",
        "0/data/jobs/superexam/nothing/8/asc/1.json",
        "0/data/jobs/superexam/failed/0/asc/1.json",
        "0/data/jobs/superexam/failed/x/asc/1.json",
        "0/data/jobs/superexam/failed/8/asc/0.json",
        "0/data/jobs/superexam/failed/8/sideways/1.json",
        "0/data/jobs/superexam/failed/100000/asc/1.json",
        "0/view/nothing",
    ],
)
def test_what_is_not_there_is_404(service: Stack, path: str) -> None:
    """Unknown jobs, registries, instances and pages are not found; none is an error of the server."""
    assert _get(service, path).status_code == 404


@pytest.mark.parametrize("path", [f"job/{NOBODY}/delete", f"job/{NOBODY}/requeue", "queue/superexam/nothing/empty"])
def test_actions_on_what_is_not_there_are_404(service: Stack, path: str) -> None:
    """An action on an unknown job or registry is answered so."""
    assert _post(service, path).status_code == 404


def test_a_failed_job_is_queued_again_with_all_its_retries(service: Stack, jobs: dict[str, str]) -> None:
    """Requeue gives a failed job as many attempts as a new one, and only a failed one."""
    job_id = jobs["broken"]
    assert _post(service, f"job/{job_id}/requeue").json() == {"status": "OK"}
    assert Job.fetch(job_id, connection=service.redis, serializer=JSONSerializer).retries_left == 3
    assert service.job(job_id)["status"] == "pending"
    for name in ("broken", "slow", "fine"):
        assert _post(service, f"job/{jobs[name]}/requeue").status_code == 409


def test_all_failed_jobs_are_queued_again(service: Stack, jobs: dict[str, str]) -> None:
    """Requeue All brings back every failed job of a queue, in one POST."""
    queue = _queue(service)
    waiting = queue.get_job_ids()
    lost = [f"lost-{number}" for number in range(3)]
    for job_id in lost:
        job = queue.enqueue("time.sleep", 0, job_id=job_id, meta={"doc_id": job_id, "max_attempts": 4})
        queue.remove(job)
        job.set_status(JobStatus.FAILED)
        queue.failed_job_registry.add(job, ttl=60)
    assert _post(service, "requeue/superexam").json() == {"status": "OK", "count": 3}
    assert (queue.get_job_ids(), len(queue.failed_job_registry)) == ([*waiting, *lost], 0)
    for job_id in lost:
        assert _post(service, f"job/{job_id}/delete").status_code == 200


def test_compact_drops_only_what_has_no_job(service: Stack) -> None:
    """Compact keeps the order of the jobs that exist, and an empty queue is no error."""
    queue = _queue(service, "gaps")
    for number in range(4):
        queue.enqueue("time.sleep", 0, job_id=f"gap-{number}")
    service.redis.delete(Job.key_for("gap-1"))
    assert _post(service, "queue/gaps/compact").json() == {"status": "OK"}
    assert queue.get_job_ids() == ["gap-0", "gap-2", "gap-3"]
    queue.empty()
    assert _post(service, "queue/gaps/compact").json() == {"status": "OK"}
    queue.delete(delete_jobs=True)


@pytest.mark.parametrize("registry", ["queued", "failed", "finished", "canceled", "deferred", "scheduled"])
def test_emptying_deletes_the_jobs(service: Stack, registry: str) -> None:
    """Empty deletes the jobs of that registry, and entries whose job is gone already."""
    queue = _queue(service, "full")
    for number in range(3):
        job = queue.enqueue("time.sleep", 0, job_id=f"full-{number}")
        if registry != "queued":
            queue.remove(job)
            job.set_status(JobStatus(registry))
            target = getattr(queue, f"{registry}_job_registry")
            service.redis.zadd(target.key, {job.id: 4e9})
    service.redis.delete(Job.key_for("full-1"))
    assert _post(service, f"queue/full/{registry}/empty").json() == {"status": "OK"}
    found = _data(service, f"0/data/jobs/full/{registry}/8/asc/1.json")
    assert (found["jobs"], found["pagination"]["num_pages"]) == ([], 0)
    assert not any(Job.exists(f"full-{number}", connection=service.redis) for number in range(3))
    queue.delete(delete_jobs=True)


def test_a_waiting_job_is_deleted(service: Stack, jobs: dict[str, str]) -> None:
    """Delete removes a waiting job from the queue."""
    assert _post(service, f"job/{jobs['waiting-2']}/delete").json() == {"status": "OK"}
    assert jobs["waiting-2"] not in _queue(service).get_job_ids()
    assert not Job.exists(jobs["waiting-2"], connection=service.redis)


def test_deleting_a_running_job_stops_it(service: Stack, jobs: dict[str, str]) -> None:
    """A running job's horse is stopped; its hash stays to say so, and the worker goes on with the next job."""
    assert _post(service, f"job/{jobs['slow']}/delete").json() == {"status": "OK"}
    stopped = service.wait_for_job(jobs["slow"])
    assert stopped["status"] == "cancelled"
    assert service.wait_for_job(jobs["broken"])["status"] == "failed"


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
    ],
    ids=lambda headers: " ".join(f"{name}={value}" for name, value in headers.items()),
)
@pytest.mark.parametrize("path", ["requeue/superexam", "queue/superexam/queued/empty", f"job/{NOBODY}/delete"])
def test_changes_are_refused_from_other_origins(service: Stack, path: str, headers: dict[str, str]) -> None:
    """A page elsewhere can't make a logged-in operator's browser change anything."""
    assert _post(service, path, headers=headers).status_code == 403


def test_changes_are_taken_from_its_own_pages(service: Stack) -> None:
    """With the headers that a browser sends from the dashboard's pages, an action works."""
    own = {"Sec-Fetch-Site": "same-origin", "Origin": service.url}
    assert _post(service, "queue/superexam/compact", headers=own).status_code == 200


def test_no_page_may_be_framed(service: Stack) -> None:
    """Another site can't lay the dashboard under its own buttons, and pages load nothing from elsewhere."""
    policy = _get(service, "").headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in policy
    assert "default-src 'self'" in policy


@pytest.mark.parametrize(
    "headers",
    [{"X-Forwarded-For": "203.0.113.7"}, {"Forwarded": "for=203.0.113.7"}, {"Host": "rebound.example"}],
    ids=["x-forwarded-for", "forwarded", "host"],
)
def test_without_a_password_only_this_machine_gets_in(service: Stack, headers: dict[str, str]) -> None:
    """Callers through a proxy, and pages that have their name resolve to loopback, get nothing."""
    for path in ("", "0/data/queues.json", "static/css/main.css"):
        assert _get(service, path, headers=headers).status_code == 403


def test_requests_share_their_connections(service: Stack) -> None:
    """Many requests do not open many connections."""
    _get(service, "0/data/queues.json")
    before = service.redis.info("stats")["total_connections_received"]
    for _ in range(40):
        assert _get(service, "0/data/queues.json").status_code == 200
    assert service.redis.info("stats")["total_connections_received"] - before <= 4


@contextlib.contextmanager
def _alone(service: Stack, **variables: str) -> Iterator[str]:
    """Run the dashboard as a process of its own and yield its URL."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    with Children(service.environment | {"PORT": str(port)} | variables, service.folder) as children:
        children.start("dashboard", "superexam_rq", "dashboard")
        children.wait_for("the dashboard", lambda: _answers(f"{url}/health/live"))
        yield url


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).ok
    except requests.RequestException:
        return False


LOGIN = {"DASHBOARD_USERNAME": "op\u00e9rateur", "DASHBOARD_PASSWORD": "gr\u00fcn & \u7dd1"}


def _basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_with_a_password_everyone_logs_in(service: Stack) -> None:
    """With a password, pages, data, assets and actions all need the login, from loopback too; health does not."""
    user, password = LOGIN.values()
    with _alone(service, **LOGIN) as url:
        for path in ("", "0/data/queues.json", "static/css/main.css", "favicon.ico", "nothing"):
            for wrong in ({}, _basic(user, "wrong"), _basic("wrong", password), _basic("", ""), {"Authorization": "x"}):
                answer = requests.get(f"{url}/{path}", headers=wrong, timeout=10)
                assert answer.status_code == 401
                assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        assert requests.post(f"{url}/queue/superexam/compact", timeout=10).status_code == 401
        right = _basic(user, password)
        assert requests.get(url, headers=right, timeout=10).status_code == 200
        # The login lets in; it does not vouch for the page that asks.
        foreign = right | {"Origin": "https://evil.example"}
        assert requests.post(f"{url}/requeue/superexam", headers=foreign, timeout=10).status_code == 403
        assert requests.post(f"{url}/requeue/superexam", headers=right, timeout=10).status_code == 200


def test_behind_a_proxy_links_keep_its_path(service: Stack) -> None:
    """With a trusted proxy that adds a path, every address in the page and the origin check follow the proxy."""
    outside = {
        "X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "exam.example",
        "X-Forwarded-Prefix": "/queues",
    }  # fmt: skip
    with _alone(service, TRUSTED_PROXIES="1", **LOGIN) as url:
        caller = outside | _basic(*LOGIN.values())
        assert 'href="/queues/static/css/main.css"' in requests.get(url, headers=caller, timeout=10).text
        own = caller | {"Origin": "https://exam.example"}
        assert requests.post(f"{url}/queue/superexam/compact", headers=own, timeout=10).status_code == 200
    with _alone(service, TRUSTED_PROXIES="1") as url:
        assert requests.get(url, headers=outside, timeout=10).status_code == 403
        assert requests.get(url, headers={"X-Forwarded-For": "127.0.0.1"}, timeout=10).status_code == 200


def test_the_restricted_redis_user_suffices(service: Stack) -> None:
    """A Redis user confined to `superexam:*` serves every page and action, and its password shows nowhere."""
    with _alone(service) as url:
        for path in (*PAGES, "0/data/queues.json", "0/data/workers.json", "0/data/jobs/superexam/failed/8/asc/1.json"):
            answer = requests.get(f"{url}/{path}", timeout=10)
            assert answer.status_code == 200, path
            assert "s3cret" not in answer.text
        queue = _queue(service, "confined")
        for number in range(2):
            queue.enqueue("time.sleep", 0, job_id=f"confined-{number}")
        for path in (
            "job/confined-0/delete",
            "queue/confined/compact",
            "queue/confined/queued/empty",
            "requeue/confined",
        ):
            assert requests.post(f"{url}/{path}", timeout=10).status_code == 200, path
        assert f"redis://127.0.0.1:{service.redis_server.port}/0" in requests.get(url, timeout=10).text
        queue.delete(delete_jobs=True)
    assert acl.violations(service.redis) == []


def test_redis_away_is_503(service: Stack) -> None:
    """With Redis away pages and data say so, with Retry-After; the health check still answers."""
    with _alone(service, REDIS_URL="redis://127.0.0.1:1/0") as url:
        for path in ("", "0/data/queues.json", "0/view/workers", "0/view/jobs", f"0/data/job/{NOBODY}.json"):
            answer = requests.get(f"{url}/{path}", timeout=10)
            assert (answer.status_code, answer.headers.get("Retry-After")) == (503, "5")
        assert requests.get(f"{url}/health/live", timeout=10).ok
