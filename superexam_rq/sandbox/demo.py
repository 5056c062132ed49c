"""The demo: start what no setting replaces, send one PDF through the real path, show the exam.

The stand-ins for Firestore and Gemini live in this process; Redis, gunicorn and two workers are processes of their
own, started as an operator would start them. All of them end with this one, whatever ends it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import FrameType

import requests
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console

from superexam_rq import store, website
from superexam_rq.client import ServiceClient, ServiceError, base_url
from superexam_rq.config import PLACEHOLDER_KEY, Settings, read_environment
from superexam_rq.sandbox.firestore import FirestoreServer
from superexam_rq.sandbox.gemini import GeminiServer
from superexam_rq.sandbox.processes import ChildEnded, Children, free_port

WORKERS = 2
SHOWN_QUESTIONS = 3


class DemoError(Exception):
    """Say in one line why the demo can't go on."""


@dataclass(frozen=True)
class Place:
    """Name a part and say where it listens."""

    name: str
    where: str


def run(settings: Settings, pdf: Path | None, *, once: bool) -> None:
    """Start everything, make one exam, print it; stay until Ctrl-C unless `once`.

    Raises `DemoError` where a port is taken, a part does not start, or the job fails.
    """
    console = Console()
    _end_on_signal()
    with contextlib.ExitStack() as stack:
        try:
            _run(stack, settings, pdf, once=once, console=console)
        except (ChildEnded, ServiceError, website.StorageError) as error:
            raise DemoError(str(error)) from None
        except KeyboardInterrupt:
            console.print("\nStopping.")


def _run(stack: contextlib.ExitStack, settings: Settings, pdf: Path | None, *, once: bool, console: Console) -> None:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="superexam-demo-")))
    _check_port(settings)
    places: list[Place] = []
    environment = _start_stand_ins(stack, settings, folder, places)
    # Two groups: the workers say goodbye to Redis, which must outlive them.
    base = stack.enter_context(Children(environment, folder))
    _start_redis(base, environment)
    children = stack.enter_context(Children(environment, folder))
    _start_service(children, settings, places)

    def check() -> None:
        base.check()
        children.check()

    demo = Settings.from_env(environment, Path(".env"))

    client = store.connect(demo)
    source = pdf or Path(str(resources.files("superexam_rq.sandbox") / "sample.pdf"))
    exam = website.store(client, demo, source, kind="demo")
    with contextlib.closing(ServiceClient(base_url(demo), next(iter(demo.api_keys), ""))) as api:
        job_id = api.submit(**exam.request())
    found = website.follow(console, lambda: website.read(exam.document), check)
    if found.get("status") != "ready":
        raise DemoError(f"the job failed: {found.get('error')}")
    console.print(f"\n[bold]{found['questionCount']} questions[/bold] from {found['title']}. The first ones:")
    website.show(console, website.questions(exam.document, SHOWN_QUESTIONS))
    for warning in found.get("warnings", []):
        console.print(f"Warning: {warning}", markup=False)
    if not once:
        _print_places(console, places, exam.doc_id, job_id, folder)
        console.print("Everything stays up until Ctrl-C.")
        while True:
            check()
            time.sleep(1)


def _end_on_signal() -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # SIGINT too: a shell that starts a process in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def _check_port(settings: Settings) -> None:
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise DemoError(
                f"port {settings.port} can't be used ({error.strerror}): stop what listens there, or set PORT"
            ) from None


def _start_stand_ins(
    stack: contextlib.ExitStack, settings: Settings, folder: Path, places: list[Place]
) -> dict[str, str]:
    """Start what no setting replaces and return the environment for the service's own processes."""
    environment = dict(os.environ) | {
        "PYTHONUNBUFFERED": "1",
        "GCS_BUCKET_NAME": "",
        "UPLOADS_DIR": str(folder / "uploads"),
    }
    (folder / "uploads").mkdir()
    if not _own_redis():
        environment["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
        places.append(Place("Redis (embedded Valkey)", environment["REDIS_URL"]))
    else:
        environment["REDIS_URL"] = settings.redis_url
        places.append(Place("Redis (yours)", "REDIS_URL, as set"))
    if settings.firestore_emulator_host or settings.google_cloud_project:
        where = settings.firestore_emulator_host or f"project {settings.google_cloud_project}"
        places.append(Place("Firestore (yours)", where))
        environment |= {"GOOGLE_CLOUD_PROJECT": settings.google_cloud_project or "superexam-demo"}
    else:
        server = stack.enter_context(FirestoreServer())
        environment |= {"FIRESTORE_EMULATOR_HOST": server.address, "GOOGLE_CLOUD_PROJECT": "superexam-demo"}
        places.append(Place("Firestore stand-in", f"FIRESTORE_EMULATOR_HOST={server.address} (project superexam-demo)"))
    if settings.gemini_api_key not in {"", PLACEHOLDER_KEY}:
        places.append(Place("Gemini (the real one)", settings.gemini_model))
    else:
        gemini = stack.enter_context(GeminiServer())
        environment |= {"GEMINI_API_KEY": "sandbox", "GEMINI_API_ENDPOINT": gemini.url}
        places.append(Place("Gemini stand-in (not Gemini)", gemini.url))
    return environment


def _own_redis() -> bool:
    return bool(read_environment(os.environ, Path(".env")).get("REDIS_URL"))


def _start_redis(children: Children, environment: Mapping[str, str]) -> None:
    if not _own_redis():
        port = environment["REDIS_URL"].rpartition(":")[2].partition("/")[0]
        children.start("redis", "superexam_rq.sandbox.redis", "--port", port)
    redis = Redis.from_url(environment["REDIS_URL"], socket_connect_timeout=1)
    children.wait_for("Redis", lambda: bool(_answers(redis)))


def _start_service(children: Children, settings: Settings, places: list[Place]) -> None:
    children.start("api", "superexam_rq", "api")
    for number in range(1, WORKERS + 1):
        children.start(f"worker-{number}", "superexam_rq", "worker")
    base = base_url(settings)
    children.wait_for("the API and its workers", lambda: _workers(base) >= WORKERS)
    places.insert(0, Place("API", base))


def _answers(redis: Redis) -> bool:
    try:
        return bool(redis.ping())
    except RedisError:
        return False


def _workers(base: str) -> int:
    try:
        answer = requests.get(f"{base}/health", timeout=2)
        return int(answer.json().get("workers", 0)) if answer.ok else 0
    except requests.RequestException:
        return 0


def _print_places(console: Console, places: list[Place], doc_id: str, job_id: str, folder: Path) -> None:
    width = max(len(place.name) for place in places)
    for place in places:
        console.print(f"{place.name:{width}}  {place.where}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{'Document, job':{width}}  {doc_id}, {job_id}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{'Logs':{width}}  {folder}", markup=False, highlight=False, soft_wrap=True)
