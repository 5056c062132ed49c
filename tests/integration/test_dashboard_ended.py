"""rq-dashboard on jobs that have ended: what it shows of them, and what may not be done to them."""

from __future__ import annotations

import requests

from superexam_rq.sandbox.gemini.faults import Fault
from superexam_rq.sandbox.processes import free_port
from tests import pdfs
from tests.stack import Stack, eventually


def _get(service: Stack, path: str) -> requests.Response:
    return service.http.get(f"{service.url}/dashboard/{path}", timeout=10)


def _post(service: Stack, path: str) -> requests.Response:
    return service.http.post(f"{service.url}/dashboard/{path}", timeout=10)


def _page(url: str, headers: dict[str, str]) -> str:
    try:
        return requests.get(url, headers=headers, timeout=5).text
    except requests.ConnectionError:
        return ""


def test_nothing_changes_by_a_get(service: Stack) -> None:
    """A link or an image can't requeue: GET is refused everywhere that changes something."""
    service.add_document("unchanged", None)
    job_id = service.process("unchanged")["job_id"]
    before = service.redis.hgetall(f"superexam:job:{job_id}")
    for path in (
        "requeue/superexam",
        f"job/{job_id}/delete",
        f"job/{job_id}/requeue",
        "queue/superexam/compact",
        "queue/superexam/failed/empty",
    ):
        assert _get(service, path).status_code == 405, path
    assert service.redis.hgetall(f"superexam:job:{job_id}") == before


def test_a_job_that_another_program_has_spoilt_takes_no_page_down(service: Stack) -> None:
    """The others are listed, requeued and deleted; the spoilt one is not there."""
    ids = []
    for name in ("spoilt", "sound"):
        service.add_document(name, None)
        ids.append(service.process(name)["job_id"])
    service.redis.hset(f"superexam:job:{ids[0]}", "created_at", "yesterday")
    listed = _get(service, "0/data/jobs/superexam/failed/100/dsc/1.json").json()["jobs"]
    assert ids[1] in [job["id"] for job in listed]
    assert ids[0] not in [job["id"] for job in listed]
    assert _get(service, f"0/data/job/{ids[0]}.json").status_code == 404
    assert _post(service, f"job/{ids[0]}/delete").status_code == 404
    assert _post(service, "queue/superexam/failed/empty").status_code == 200
    assert not service.redis.zrange("superexam:failed:superexam", 0, -1)


def test_a_job_that_recovered_shows_no_old_failure(service: Stack) -> None:
    """What the first run failed of is told as long as the job waits for the next."""
    service.gemini.script(Fault.http(503, times=4))
    service.add_document("recovered", pdfs.prose(1))
    job_id = service.process("recovered")["job_id"]
    described = _get(service, f"0/data/job/{job_id}.json").json()["description"]
    assert "attempt 2" in described
    assert "Gemini" not in described


def test_links_keep_the_path_of_a_proxy_before_the_mount(service: Stack) -> None:
    """The API's own server, behind a proxy that serves it below a path."""
    service.children.start(
        "proxied", "superexam_rq", "api", environment={"TRUSTED_PROXIES": "1", "PORT": str(port := free_port())}
    )
    url, headers = (
        f"http://127.0.0.1:{port}/dashboard/",
        {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Prefix": "/exam"},
    )
    try:
        page = eventually(lambda: _page(url, headers), "the API")
    finally:
        service.children.stop("proxied")
    assert 'href="/exam/dashboard/static/css/main.css"' in page
