"""JSON as the standard has it: every number finite, and every name in an object given once.

Python's own reader takes NaN, Infinity and 1e999, and of a name that comes twice the last value.
"""

from __future__ import annotations

import json
import math
from typing import Any


class NameGivenTwice(ValueError):
    """Report a name that comes twice in one object."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the name {name[:50]!r} is given twice in one object")
        self.name = name


def loads(text: str) -> Any:
    """Return the value that a text holds; raises `ValueError`, and `RecursionError` where it is nested too deeply."""
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_object)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:50]} is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise NameGivenTwice(name)
            seen.add(name)
    return members
