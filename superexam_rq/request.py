"""What a job is asked to do: ids and options, never a document's content. It crosses Redis as plain JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
