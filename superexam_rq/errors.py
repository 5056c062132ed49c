"""What can go wrong, and what each kind of failure means.

::

    SuperExamError
     ├─ PermanentError            asking again would not help: no retry
     │   ├─ DocumentGone          document_gone
     │   ├─ PromptMissing         prompt_missing
     │   ├─ PdfMissing            pdf_missing
     │   ├─ PdfInvalid            pdf_invalid
     │   ├─ GeminiKeyRefused      gemini_key
     │   ├─ GeminiModelUnknown    gemini_model
     │   ├─ GeminiQuotaExhausted  gemini_quota
     │   ├─ GeminiRequestRefused  no_questions (a request that Gemini will never take)
     │   ├─ Blocked               blocked
     │   ├─ NoQuestions           no_questions
     │   └─ Cancelled             cancelled
     ├─ TransientError            RQ runs the job again, while retries are left
     │   ├─ GeminiUnavailable     gemini_unavailable
     │   │   └─ RateLimited       gemini_unavailable, with the delay that the server stated
     │   ├─ FirestoreUnavailable  firestore_unavailable
     │   ├─ UploadsUnavailable    internal (in `uploads`)
     │   ├─ JobTimeout            job_timeout
     │   └─ WorkerLost            worker_lost
     └─ Superseded                no failure at all: another run owns the document; stop, touch nothing

The text of a `SuperExamError` is public: it reaches teachers (Firestore) and callers (HTTP), so it names no
path, address or key, and its useful words come in the first 60 characters. Anything else that is raised is a
defect or a dependency's failure: `classify` gives it the code `internal` and a text without its message.

Nothing here knows Flask, RQ, Firestore or Gemini; the rooms that do translate their errors into these.
"""

from __future__ import annotations

from dataclasses import dataclass


class SuperExamError(Exception):
    """Be the root of every failure that this service expects."""

    code = "internal"
    retryable = True


class PermanentError(SuperExamError):
    """Fail at once: the same input would fail again."""

    retryable = False


class DocumentGone(PermanentError):
    """Report that the document does not exist, or was deleted while the job ran."""

    code = "document_gone"


class PromptMissing(PermanentError):
    """Report which prompt does not exist or is empty."""

    code = "prompt_missing"


class PdfMissing(PermanentError):
    """Report that there is no PDF to read; the text begins `PDF file not found` (contract)."""

    code = "pdf_missing"

    def __init__(self, name: str = "") -> None:
        super().__init__(f"PDF file not found: {name}" if name else "PDF file not found: the document has none")


class PdfInvalid(PermanentError):
    """Report what is wrong with the PDF."""

    code = "pdf_invalid"


class GeminiKeyRefused(PermanentError):
    """Report that Gemini refused the API key."""

    code = "gemini_key"


class GeminiModelUnknown(PermanentError):
    """Report which model does not exist."""

    code = "gemini_model"


class GeminiQuotaExhausted(PermanentError):
    """Report that a daily quota or the credit is used up."""

    code = "gemini_quota"


class GeminiRequestRefused(PermanentError):
    """Report that Gemini called the request itself invalid (a bare 400), for one batch."""

    code = "no_questions"


class Blocked(PermanentError):
    """Report that the model's filters refused everything."""

    code = "blocked"


class NoQuestions(PermanentError):
    """Report that nothing usable came of the document."""

    code = "no_questions"


class Cancelled(PermanentError):
    """Report that somebody cancelled the job."""

    code = "cancelled"


class TransientError(SuperExamError):
    """Fail this run; another may succeed."""


class GeminiUnavailable(TransientError):
    """Report that Gemini did not answer, or not with an answer."""

    code = "gemini_unavailable"


class RateLimited(GeminiUnavailable):
    """Report a 429 that passes; `retry_after` is the delay in seconds that the server stated, or None."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class FirestoreUnavailable(TransientError):
    """Report that Firestore did not answer in time, or not with success."""

    code = "firestore_unavailable"


class JobTimeout(TransientError):
    """Report that a run took longer than `JOB_TIMEOUT`."""

    code = "job_timeout"


class WorkerLost(TransientError):
    """Report that the process that ran the job died."""

    code = "worker_lost"


class Superseded(SuperExamError):
    """Tell a run that another one owns its document now."""

    retryable = False


class ConfigError(Exception):
    """Report a setting that can't be used; the text names the variable and what it takes."""


@dataclass(frozen=True)
class Failure:
    """Say what a failure means: its code (contract §3), whether RQ retries it, and its public text."""

    code: str
    retryable: bool
    text: str

    def final_text(self, attempts: int) -> str:
        """Return the text for the end of the last of `attempts` runs."""
        return f"Failed after {attempts} attempts: {self.text}" if self.retryable else self.text


def classify(error: BaseException) -> Failure:
    """Decide what an error means: permanent or transient, its code and its public text."""
    if isinstance(error, SuperExamError):
        return Failure(error.code, error.retryable, str(error))
    if isinstance(error, MemoryError):
        return Failure("worker_lost", True, "The worker ran out of memory")
    return Failure("internal", True, f"Something went wrong inside the service ({type(error).__name__})")
