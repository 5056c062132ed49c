"""A whole book through the real path, as a ratio to the ideal: HTTP, RQ, worker, Gemini stand-in, Firestore.

The ideal is the number of rounds that the calls take, ⌈batches ÷ concurrency⌉, times the latency of one. Everything
else is overhead, also that of the stand-in, which reads the same pages on the same cores, and of whatever else runs
there. So the table also has the ratio to the bare calls (same parts, bodies made before, plain HTTP, right before),
and the processor time of each side::

    python -m tests.bench.bench_book [book.pdf] [--pages 600] [--in-flight 1,8,30]

Without a file it takes the first 600 pages of Debian's package octave-doc, or else makes a PDF.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests
from rich.console import Console
from rich.table import Table

from superexam_rq import pdf
from superexam_rq.sandbox.processes import free_port
from tests import pdfs
from tests.bench import bench_pdf
from tests.stack import Stack, stack

BOOK = Path("/usr/share/doc/octave/octave.pdf")
# One after the other is slow and says nothing new after some batches.
ROUNDS_ONE_BY_ONE = 5


@dataclass(frozen=True)
class Figures:
    """Hold what one run took, in seconds and MB; `foreign_cpu` is whatever else ran on the machine."""

    total: float
    first_call: float
    after: float
    horse_cpu: float
    gemini_cpu: float
    firestore_cpu: float
    foreign_cpu: float
    horse_peak: float
    parent: float
    questions: int


class Horse:
    """Watch the children of a worker: the largest memory that one ever had, and its processor time."""

    def __init__(self, worker: psutil.Process) -> None:
        self._worker = worker
        self.peak = 0.0
        self.cpu = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Horse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            with contextlib.suppress(psutil.Error, OSError, StopIteration):
                for child in self._worker.children():
                    status = Path(f"/proc/{child.pid}/status").read_text()
                    peak = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
                    # The scheduler is a child as well, and small.
                    if (mb := int(peak.split()[1]) / 1024) > self.peak:
                        self.peak = mb
                    times = child.cpu_times()
                    self.cpu = max(self.cpu, times.user + times.system)


def run(installation: Stack, gemini_url: str, doc_id: str, book: bytes, pages: int) -> Figures:
    """Submit a document, wait until it is `ready`, and return what that took."""
    # Prompts of its own, so that no batch is known from an earlier run.
    installation.add_prompts(custom=f"One question a page, please, for {doc_id}.")
    installation.add_document(doc_id, book)
    children = installation.children.running
    worker, gemini = (psutil.Process(children[name].pid) for name in (doc_id, "gemini"))
    ready = threading.Event()
    found: dict[str, Any] = {}

    def look(snapshots: Any, _changes: Any, _time: Any) -> None:
        found.update(snapshots[0].to_dict())
        if found["status"] != "processing":
            found["at"] = time.time()
            ready.set()

    watch = installation.document(doc_id).on_snapshot(look)
    parent = worker.memory_info().rss / 2**20
    before = _cpu(gemini), _cpu(psutil.Process()), _busy()
    installation.http.delete(f"{gemini_url}/sandbox/calls", timeout=5)
    with Horse(worker) as horse:
        start = time.time()
        answer = installation.submit(doc_id, pages=f"1-{pages}")
        assert answer.status_code == 202, answer.text
        assert ready.wait(600), "not ready"
        busy = _busy() - before[2]
    watch.unsubscribe()
    assert found["status"] == "ready", found
    calls = installation.http.get(f"{gemini_url}/sandbox/calls", timeout=30).json()
    first = min(call["wall"] for call in calls)
    last = max(call["wall"] + call["duration"] for call in calls)
    gemini_cpu, firestore_cpu = _cpu(gemini) - before[0], _cpu(psutil.Process()) - before[1]
    return Figures(
        total=found["at"] - start,
        first_call=first - start,
        after=found["at"] - last,
        horse_cpu=horse.cpu,
        gemini_cpu=gemini_cpu,
        firestore_cpu=firestore_cpu,
        foreign_cpu=max(0.0, busy - horse.cpu - gemini_cpu - firestore_cpu),
        horse_peak=horse.peak,
        parent=parent,
        questions=found["questionCount"],
    )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _busy() -> float:
    """Return the seconds that this machine's cores have worked, whoever for."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def bare_calls(gemini_url: str, document: pdf.Document, pages: int, batch: int, in_flight: int) -> float:
    """Return the seconds that the same calls take with nothing around them."""
    url = f"{gemini_url}/v1beta/models/gemini-flash-latest:generateContent"
    bodies = []
    for part in pdf.batches(range(1, pages + 1), batch):
        blob = {"mimeType": "application/pdf", "data": base64.b64encode(document.cut(part)).decode()}
        bodies.append(json.dumps({"contents": [{"role": "user", "parts": [{"inlineData": blob}]}]}).encode())

    def call(body: bytes) -> None:
        requests.post(url, data=body, headers={"x-goog-api-key": "k"}, timeout=60).raise_for_status()

    start = time.monotonic()
    with ThreadPoolExecutor(in_flight) as pool:
        list(pool.map(call, bodies))
    return time.monotonic() - start


def main() -> None:
    """Print one line for each number of calls in flight."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--pages", type=int, default=600)
    parser.add_argument("--in-flight", default="1,8,30")
    parser.add_argument("--latency", type=float, default=2.0, help="seconds that one call takes at least")
    parser.add_argument("--batch", type=int, default=20, help="pages in one call")
    parser.add_argument("--sdk", default="google-generativeai")
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    path = options.file or (BOOK if BOOK.exists() else None)
    book = path.read_bytes() if path else pdfs.prose(options.pages)
    table = Table(
        *("in flight", "pages", "calls", "time ÷ ideal", "time ÷ bare", "1st call ÷ call", "after last ÷ call"),
        *("CPU s: horse", "Gemini", "Firestore", "foreign", "horse MB", "before fork", "questions"),
    )
    with contextlib.ExitStack() as context:
        document = context.enter_context(pdf.Document.open(book, max_bytes=2**30, max_pages=100_000))
        page_count = min(options.pages, document.page_count)
        installation = context.enter_context(stack(Path(context.enter_context(tempfile.TemporaryDirectory()))))
        port = free_port()
        gemini_url = f"http://127.0.0.1:{port}"
        installation.configure(
            GEMINI_API_ENDPOINT=gemini_url,
            GEMINI_SDK=options.sdk,
            PAGES_PER_BATCH=str(options.batch),
        )
        arguments = ("--port", str(port), "--latency", str(options.latency))
        installation.children.start("gemini", "superexam_rq.sandbox.gemini", *arguments)
        installation.start_api()
        for in_flight in map(int, options.in_flight.split(",")):
            pages = page_count if in_flight > 1 else min(page_count, ROUNDS_ONE_BY_ONE * options.batch)
            calls = -(-pages // options.batch)
            ideal = -(-calls // in_flight) * options.latency
            for turn in range(options.repeat):
                name = f"book-{in_flight}-{turn}"
                installation.start_worker(name, GEMINI_CONCURRENCY=str(in_flight))
                bare = bare_calls(gemini_url, document, pages, options.batch, in_flight)
                figures = run(installation, gemini_url, name, book, pages)
                installation.children.stop(name)
                table.add_row(
                    *(str(in_flight), str(pages), str(calls)),
                    *(f"{figures.total / ideal:.3f}", f"{figures.total / bare:.3f}"),
                    f"{figures.first_call / options.latency:.2f}",
                    f"{figures.after / options.latency:.2f}",
                    *(f"{cpu:.2f}" for cpu in (figures.horse_cpu, figures.gemini_cpu)),
                    *(f"{cpu:.2f}" for cpu in (figures.firestore_cpu, figures.foreign_cpu)),
                    *(f"{figures.horse_peak:.0f}", f"{figures.parent:.0f}", str(figures.questions)),
                )
    console = Console(width=160)
    console.print(f"{path.name if path else 'made'}: {page_count} pages, {len(book) / 2**20:.1f} MB")
    found = bench_pdf.measure(book)
    cut, text = (found[step] / found["pages"] * 100_000 for step in ("cut", "text"))
    console.print(f"100 pages: {cut:.0f} ms to cut in parts, {text:.0f} ms to read as text")
    console.print(table)


if __name__ == "__main__":
    main()
