"""How long PDFium takes for real PDFs: opening, cutting and reading text, for 100 pages and as ratios.

Run by hand, with PDFs of your own or of a distribution's documentation packages::

    python -m tests.bench.bench_pdf /usr/share/doc/octave/octave.pdf …

Times depend on the machine, the ratios hardly: cutting is the unit.
"""

from __future__ import annotations

import argparse
import gzip
import resource
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from superexam_rq import pdf
from superexam_rq.questions import Report, clean
from superexam_rq.texts import squash

PAGES_PER_BATCH = 20


def measure(data: bytes) -> dict[str, float]:
    """Return seconds for each step over the whole PDF, its pages, and how much larger its parts are in all."""
    clock = time.perf_counter
    start = clock()
    with pdf.Document.open(data, max_bytes=2**30, max_pages=100_000) as document:
        opened = clock() - start
        pages = range(1, document.page_count + 1)
        batches = pdf.batches(pages, PAGES_PER_BATCH)
        start = clock()
        document.cut(batches[0])
        first = clock() - start
        start = clock()
        sizes = [len(document.cut(batch)) for batch in batches]
        cut = clock() - start
        start = clock()
        texts = {page: document.text(page) for page in pages}
        read = clock() - start
    start = clock()
    for batch in batches:
        clean([_item(batch, texts)] * len(batch), batch, texts.__getitem__, Report())
    checked = clock() - start
    return {
        "pages": document.page_count,
        "open": opened,
        "first": first,
        "cut": cut,
        "text": read,
        "check": checked,
        "growth": sum(sizes) / len(data),
    }


def _item(batch: tuple[int, ...], texts: dict[int, str]) -> dict[str, object]:
    """Return a question whose quote stands on the batch's last page, while the first is named."""
    return {
        "sourcePage": 1,
        "sourceQuote": squash(texts[batch[-1]])[100:250] or "nothing",
        "questionText": "What is it?",
        "choices": [{"index": "A", "text": "this"}, {"index": "B", "text": "that"}],
        "correctAnswers": ["A"],
        "explanation": "",
    }


def main() -> None:
    """Print one line for each PDF that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    table = Table(
        "PDF", "pages", "cut, ms/100 p.", "open/cut", "first part/cut", "text/cut", "check/cut", "parts/whole"
    )
    for path in parser.parse_args().files:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found = measure(data)
        cut = found["cut"]
        ratios = (f"{found[step] / cut:.2f}" for step in ("open", "first", "text", "check"))
        per_hundred = f"{cut / found['pages'] * 100_000:.0f}"
        table.add_row(path.name, f"{found['pages']:.0f}", per_hundred, *ratios, f"{found['growth']:.1f}")
    console = Console()
    console.print(table)
    console.print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
