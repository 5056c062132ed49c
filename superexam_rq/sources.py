"""Where in the document a question comes from: the quote that the model gave, found in the text of the pages."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rapidfuzz import fuzz

from superexam_rq.texts import squash

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping, Sequence

# In bytes, since a letter of Greek says as much as one of English and a Chinese one far more. A quote shorter than the
# first says nothing; one shorter than the second stands on many pages and counts only if it is on one of the batch.
_MIN_BYTES = 8
_TELLING_BYTES = 20
_MAX_QUOTE_CHARS = 200
_QUOTE_CUTOFF = 85


class Source:
    """Find where in its batch a question comes from."""

    def __init__(self, pages: Sequence[int], page_text: Callable[[int], str]) -> None:
        self._pages = tuple(pages)
        self._page_text = page_text
        self._squashed: list[str] | None = None

    def locate(self, item: Mapping[str, Any], noted: Counter[str]) -> list[int]:
        """Return the document's pages (1-based, at least one) that an item's `sourceQuote` stands on.

        The item's `sourcePage`, counted from 1 within the batch, decides where the quote does not.
        """
        claimed = self._claimed(item.get("sourcePage"))
        quote = item.get("sourceQuote")
        pieces = re.split(r"\.\.\.|…", quote) if isinstance(quote, str) else [""]
        needle = squash(max(pieces, key=len)[: 2 * _MAX_QUOTE_CHARS])[:_MAX_QUOTE_CHARS]
        weight = len(needle.encode())
        found = self._search(needle, claimed or 0, weight) if weight >= _MIN_BYTES else []
        if weight >= _MIN_BYTES and not found:
            noted["quote_not_found"] += 1
        if found and claimed is not None and claimed not in found:
            noted["page_corrected"] += 1
        return [self._pages[place] for place in (found or [claimed or 0])]

    def _claimed(self, value: Any) -> int | None:
        """Return the place in the batch that the model named, or None."""
        if isinstance(value, list) and value:
            value = value[0]
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError):
            return None
        if not 1 <= number <= len(self._pages) and number in self._pages:
            return self._pages.index(number)  # counted in the document
        return min(max(number, 1), len(self._pages)) - 1

    def _search(self, needle: str, claimed: int, weight: int) -> list[int]:
        if self._squashed is None:
            self._squashed = [squash(self._page_text(page)) for page in self._pages]
        texts = self._squashed
        by_distance = sorted(range(len(texts)), key=lambda place: (abs(place - claimed), place))
        exact = [place for place in by_distance if needle in texts[place]]
        if exact and (exact[0] == claimed or len(exact) == 1 or weight >= _TELLING_BYTES):
            return exact[:1]
        if weight < _TELLING_BYTES:
            return []
        for place in by_distance:
            if place + 1 < len(texts) and needle in texts[place] + texts[place + 1]:
                return [place, place + 1]
        scores = {}
        for place in by_distance:
            scores[place] = fuzz.partial_ratio(needle, texts[place], score_cutoff=_QUOTE_CUTOFF) if texts[place] else 0
            if place == claimed and scores[place]:
                return [place]
        best = max(by_distance, key=lambda place: scores[place])
        return [best] if scores[best] else []
