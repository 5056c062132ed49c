"""Text from a model or a PDF: made fit to store, and evened out for comparison."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

_KEPT_CONTROLS = {"\n", "\t"}


def scrub(text: str) -> str:
    """Return text that can be stored and shown: no control characters, lone surrogates or noncharacters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isprintable():
        return text
    return "".join(char for char in text if char in _KEPT_CONTROLS or not _unfit(char))


def scrub_all(value: Any) -> Any:
    """Return plain JSON with every text in it scrubbed, field names too."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, list):
        return [scrub_all(below) for below in value]
    if isinstance(value, dict):
        return {scrub(name): scrub_all(below) for name, below in value.items()}
    return value


def _unfit(char: str) -> bool:
    return unicodedata.category(char) in {"Cc", "Cs"} or (ord(char) & 0xFFFE) == 0xFFFE


@lru_cache(maxsize=4096)
def _compatible(char: str) -> str:
    """Return a character's plain form; not of an exponent or index, since 2³ is not 23."""
    if unicodedata.decomposition(char).startswith(("<super>", "<sub>")):
        return char
    return unicodedata.normalize("NFKC", char)


def fold(text: str) -> str:
    """Return the text with case, white space, compatibility forms and invisible characters evened out."""
    if not text.isascii():
        composed = unicodedata.normalize("NFC", text)
        text = "".join(map(_compatible, composed))
        text = "".join(char for char in text if unicodedata.category(char) != "Cf")
        text = unicodedata.normalize("NFC", text.casefold())
    return " ".join(text.casefold().split())


def squash(text: str) -> str:
    """Return only the letters and digits: line breaks, hyphens, ligatures and quotation marks come out differently."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text).casefold())
