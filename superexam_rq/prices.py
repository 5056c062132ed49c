"""What Gemini's models cost: one dated table, for an estimate that is logged and kept on the job.

Prices are of the paid tier, for standard calls; thoughts are billed as output. They come from transcriptions of
Google's price page by others, and were not compared with the page itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from superexam_rq.gemini import Usage

# The day of the newest transcription: api-evangelist/deepmind; also BerriAI/litellm, discussion 39357, and, for
# 3.1-flash-lite, macaron.im.
AS_OF = date(2026, 10, 7)

_MILLION = 1_000_000


@dataclass(frozen=True)
class Price:
    """Give the USD for a million tokens in and out; `until` is the last day, if the price is known to change."""

    model: str
    tokens_in: float
    tokens_out: float
    until: date | None = None


PRICES = (
    Price("gemini-3.8-flash", 0.75, 3.75, until=date(2026, 12, 31)),
    Price("gemini-3.8-flash", 1.50, 7.50),
    Price("gemini-3.6-flash", 1.50, 7.50),
    Price("gemini-3.5-flash-lite", 0.30, 2.50),
    Price("gemini-3.1-flash-lite", 0.25, 1.50),
)


def estimate(model: str, usage: Usage, day: date) -> float | None:
    """Return the USD for `usage` on `day`, or None if the price of `model` is not known.

    `model` may carry `models/` before it and a number of its release behind it (`-001`), as answers name it.
    """
    name = re.sub(r"(-\d+)+$", "", model.removeprefix("models/"))
    for price in PRICES:
        if price.model in {name, model} and (price.until is None or day <= price.until):
            tokens_out = usage.output_tokens + usage.thought_tokens
            return (usage.prompt_tokens * price.tokens_in + tokens_out * price.tokens_out) / _MILLION
    return None
