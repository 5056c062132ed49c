"""What an error means: one function decides."""

from __future__ import annotations

import pytest

from superexam_rq import errors


@pytest.mark.parametrize(
    ("error", "code", "retryable"),
    [
        (errors.DocumentGone("gone"), "document_gone", False),
        (errors.PromptMissing("x"), "prompt_missing", False),
        (errors.PdfMissing("a.pdf"), "pdf_missing", False),
        (errors.PdfInvalid("The PDF is empty"), "pdf_invalid", False),
        (errors.GeminiKeyRefused("x"), "gemini_key", False),
        (errors.GeminiModelUnknown("x"), "gemini_model", False),
        (errors.GeminiQuotaExhausted("x"), "gemini_quota", False),
        (errors.Blocked("x"), "blocked", False),
        (errors.NoQuestions("x"), "no_questions", False),
        (errors.Cancelled("x"), "cancelled", False),
        (errors.RateLimited("x", 3.0), "gemini_unavailable", True),
        (errors.FirestoreUnavailable("x"), "firestore_unavailable", True),
        (errors.JobTimeout("x"), "job_timeout", True),
        (errors.WorkerLost("x"), "worker_lost", True),
        (MemoryError(), "worker_lost", True),
        (KeyError("secret"), "internal", True),
    ],
)
def test_each_error_has_its_code_and_says_whether_a_retry_helps(error: Exception, code: str, retryable: bool) -> None:
    """The codes and the column "retried" are those of the contract."""
    failure = errors.classify(error)
    assert (failure.code, failure.retryable) == (code, retryable)


def test_a_defects_own_text_does_not_reach_the_public() -> None:
    """An unexpected exception's message may hold anything, so only its kind is told."""
    assert "secret" not in errors.classify(KeyError("secret")).text


def test_a_missing_file_begins_with_the_words_the_website_looks_for() -> None:
    """`PDF file not found` comes first, then the bare name."""
    assert str(errors.PdfMissing("a.pdf")) == "PDF file not found: a.pdf"


def test_the_last_transient_failure_counts_the_attempts() -> None:
    """`Failed after N attempts: ` stands before the last reason, for what was retried only."""
    assert errors.classify(errors.JobTimeout("too slow")).final_text(4) == "Failed after 4 attempts: too slow"
    assert errors.classify(errors.PdfInvalid("bad PDF")).final_text(1) == "bad PDF"
