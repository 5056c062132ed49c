"""Page selections such as `3-40,55`: one grammar, whether the PDF is at hand (a run) or not (a submission)."""

from __future__ import annotations

import re

from superexam_rq.errors import PdfInvalid

MAX_SELECTION_CHARS = 1000
# In the common part of Python's and JavaScript's dialects, for readers of the OpenAPI document too.
SELECTION_PATTERN = r"^ *[0-9]{1,6} *(- *[0-9]{1,6} *)?(, *[0-9]{1,6} *(- *[0-9]{1,6} *)?)*$"


def check_pages(selection: str) -> None:
    """Check a page selection as far as that goes without the PDF; raises `ValueError` with a text for the caller."""
    _ranges(selection)


def parse_pages(selection: str, page_count: int) -> tuple[int, ...]:
    """Return the selected pages (1-based, ascending, each once) of a document with `page_count` pages.

    What lies behind the last page is left out; raises `PdfInvalid` if nothing is left, `ValueError` as `check_pages`.
    """
    pages: set[int] = set()
    for first, last in _ranges(selection):
        pages.update(range(first, min(last, page_count) + 1))
    if not pages:
        count = "1 page" if page_count == 1 else f"{page_count} pages"
        raise PdfInvalid(f"The PDF has {count}, none of which is in the selection {selection.strip()[:100]}")
    return tuple(sorted(pages))


def _ranges(selection: str) -> list[tuple[int, int]]:
    if len(selection) > MAX_SELECTION_CHARS:
        raise ValueError(f"A page selection has at most {MAX_SELECTION_CHARS} characters.")
    if not re.fullmatch(SELECTION_PATTERN, selection):
        raise ValueError("Pages are numbers and ranges, separated by commas, such as 3-40,55.")
    ranges = []
    for part in selection.split(","):
        first, _, last = part.partition("-")
        span = int(first), int(last or first)
        if span[0] < 1:
            raise ValueError("Pages count from 1.")
        if span[1] < span[0]:
            raise ValueError(f"The range {part.strip()} runs backwards.")
        ranges.append(span)
    return ranges
