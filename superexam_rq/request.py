"""What a job is asked to do: ids and options, never a document's content. It crosses Redis as plain JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# A model's name as Google writes it: gemini-3.8-flash, models/gemini-flash-latest, tunedModels/abc.
MODEL_PATTERN = r"(models/|tunedModels/)?[A-Za-z0-9][A-Za-z0-9._-]{0,99}"


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """Say what to make an exam of."""

    doc_id: str
    system_prompt_id: str
    custom_prompt_id: str
    schema: dict[str, Any] | str | None = None
    pages: str | None = None
    max_questions: int | None = None
    model: str | None = None
