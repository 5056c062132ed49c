"""The demo: start what no setting replaces, send one PDF through the real path, show the exam.

The stand-ins for Firestore and Gemini live in this process; Redis, gunicorn and two workers are processes of their
own, started as an operator would start them. All of them end with this one, whatever ends it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

import requests
from google.cloud import firestore
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from superexam_rq.config import Settings, read_environment
from superexam_rq.sandbox.firestore import FirestoreServer
from superexam_rq.sandbox.gemini import GeminiServer
from superexam_rq.sandbox.processes import ChildEnded, Children, free_port

WORKERS = 2
SHOWN_QUESTIONS = 3
# What .env.example holds: not a key.
PLACEHOLDER_KEY = "your-api-key-here"

SYSTEM_PROMPT = "You write exam questions for students. Ask about what the text explains, not about its wording."
CUSTOM_PROMPT = "Write about one question a page, each with four choices."


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
        except ChildEnded as error:
            raise DemoError(str(error)) from None
        except KeyboardInterrupt:
            console.print("\nStopping.")


def _run(stack: contextlib.ExitStack, settings: Settings, pdf: Path | None, *, once: bool, console: Console) -> None:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="superexam-demo-")))
    _check_port(settings)
    places: list[Place] = []
    environment = _start_stand_ins(stack, settings, folder, places)
    children = stack.enter_context(Children(environment, folder))
    _start_service(children, settings, environment, places)
    demo = Settings.from_env(environment, Path(".env"))

    os.environ.update({name: environment[name] for name in ("FIRESTORE_EMULATOR_HOST",) if name in environment})
    client = firestore.Client(project=demo.google_cloud_project or None)
    doc_id = _store_as_website(client, demo, pdf, folder / "uploads")
    job_id = _submit(demo, doc_id)
    document = client.document(demo.collection("documents"), doc_id)
    found = _follow(console, document, children)
    if found.get("status") != "ready":
        raise DemoError(f"the job failed: {found.get('error')}")
    _print_exam(console, document, found)
    _print_places(console, places, doc_id, job_id, folder)
    if not once:
        console.print("Everything stays up until Ctrl-C.")
        while True:
            children.check()
            time.sleep(1)


def _end_on_signal() -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # SIGINT too: a shell that starts a process in the background has it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


def _check_port(settings: Settings) -> None:
    with socket.socket() as probe:
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


def _start_service(children: Children, settings: Settings, environment: Mapping[str, str], places: list[Place]) -> None:
    if not _own_redis():
        port = environment["REDIS_URL"].rpartition(":")[2].partition("/")[0]
        children.start("redis", "superexam_rq.sandbox.redis", "--port", port)
    redis = Redis.from_url(environment["REDIS_URL"], socket_connect_timeout=1)
    children.wait_for("Redis", lambda: bool(_answers(redis)))
    children.start("api", "superexam_rq", "api")
    for number in range(1, WORKERS + 1):
        children.start(f"worker-{number}", "superexam_rq", "worker")
    base = _base_url(settings)
    children.wait_for("the API and its workers", lambda: _workers(base) >= WORKERS)
    places.insert(0, Place("API", base))


def _answers(redis: Redis) -> bool:
    try:
        return bool(redis.ping())
    except RedisError:
        return False


def _base_url(settings: Settings) -> str:
    host = "127.0.0.1" if settings.host in {"", "0.0.0.0", "::"} else settings.host
    return f"http://{host}:{settings.port}"


def _workers(base: str) -> int:
    try:
        answer = requests.get(f"{base}/health", timeout=2)
        return int(answer.json().get("workers", 0)) if answer.ok else 0
    except requests.RequestException:
        return 0


def _store_as_website(client: firestore.Client, settings: Settings, pdf: Path | None, uploads: Path) -> str:
    """Store the PDF, the document and both prompts as the website does before it submits; return the document's id."""
    source = pdf or Path(str(resources.files("superexam_rq.sandbox") / "sample.pdf"))
    name = f"{int(time.time() * 1000)}-{source.name}"
    shutil.copyfile(source, uploads / name)
    doc_id = f"demo-{secrets.token_hex(6)}"
    client.document(settings.collection("system-prompts"), "demo-system").set({"content": SYSTEM_PROMPT})
    client.document(settings.collection("custom-prompts"), "demo-custom").set({"content": CUSTOM_PROMPT})
    client.document(settings.collection("documents"), doc_id).set(
        {
            "title": source.stem,
            "filePath": name,
            "status": "processing",
            "currentStep": "Queuing...",
            "progress": 0,
            "createdAt": int(time.time() * 1000),
        }
    )
    return doc_id


def _submit(settings: Settings, doc_id: str) -> str:
    headers = {"Authorization": f"Bearer {settings.api_keys[0]}"} if settings.api_keys else {}
    answer = requests.post(
        f"{_base_url(settings)}/jobs/process",
        json={
            "doc_id": doc_id,
            "system_prompt_id": "demo-system",
            "custom_prompt_id": "demo-custom",
            "schema": None,
        },
        headers=headers,
        timeout=10,
    )
    if answer.status_code != 202:
        raise DemoError(f"the API answered {answer.status_code}: {answer.text[:200]}")
    return str(answer.json()["job_id"])


def _follow(console: Console, document: firestore.DocumentReference, children: Children) -> dict[str, Any]:
    """Show Firestore's progress until the document is no longer `processing`."""
    columns = (TextColumn("{task.description:40}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("Queuing...", total=100)
        while True:
            found: dict[str, Any] = document.get().to_dict() or {}
            if found.get("status") != "processing":
                bar.update(task, completed=100, description=str(found.get("status")))
                return found
            bar.update(task, completed=found.get("progress", 0), description=found.get("currentStep", ""))
            children.check()
            time.sleep(0.2)


def _print_exam(console: Console, document: firestore.DocumentReference, found: Mapping[str, Any]) -> None:
    console.print(f"\n[bold]{found['questionCount']} questions[/bold] from {found['title']}. The first ones:")
    for snapshot in document.collection("questions").limit(SHOWN_QUESTIONS).stream():
        question = snapshot.to_dict() or {}
        lines = [str(question["questionText"]), ""]
        for choice in question["choices"]:
            mark = "✓" if choice["index"] in question["correctAnswers"] else " "
            lines.append(f"{mark} {choice['index']}. {choice['text']}")
        pages = ", ".join(str(page) for page in question["sourcePages"])
        lines += ["", f"page {pages}: {question['explanation']}"]
        console.print(Panel(Text("\n".join(lines)), title=snapshot.id))
    for warning in found.get("warnings", []):
        console.print(f"Warning: {warning}", markup=False)


def _print_places(console: Console, places: list[Place], doc_id: str, job_id: str, folder: Path) -> None:
    width = max(len(place.name) for place in places)
    for place in places:
        console.print(f"{place.name:{width}}  {place.where}", markup=False, highlight=False)
    console.print(f"{'Document, job':{width}}  {doc_id}, {job_id}", markup=False, highlight=False)
    console.print(f"{'Logs':{width}}  {folder}", markup=False, highlight=False)
