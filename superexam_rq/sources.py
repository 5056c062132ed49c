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
        self._squashed: dict[int, str] = {}

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

    def _text(self, place: int) -> str:
        if place not in self._squashed:
            self._squashed[place] = squash(self._page_text(self._pages[place]))
        return self._squashed[place]

    def _search(self, needle: str, claimed: int, weight: int) -> list[int]:
        # Mostly the model is right, and then no other page need be read.
        if needle in self._text(claimed):
            return [claimed]
        places = sorted(range(len(self._pages)), key=lambda place: (abs(place - claimed), place))
        exact = [place for place in places if needle in self._text(place)]
        if exact and (len(exact) == 1 or weight >= _TELLING_BYTES):
            return exact[:1]
        if weight < _TELLING_BYTES:
            return []
        for place in places:
            if place + 1 < len(places) and needle in self._text(place) + self._text(place + 1):
                return [place, place + 1]
        if self._likeness(needle, claimed):
            return [claimed]
        likeness = {place: self._likeness(needle, place) for place in places}
        best = max(places, key=lambda place: likeness[place])
        return [best] if likeness[best] else []

    def _likeness(self, needle: str, place: int) -> float:
        """Return how much of the quote stands on a page, of 100; 0 if it is too little."""
        text = self._text(place)
        # In a shorter text it would be looked for the other way round, and a page number alone would do.
        return fuzz.partial_ratio(needle, text, score_cutoff=_QUOTE_CUTOFF) if len(text) >= len(needle) else 0.0
