"""One call to the model: the request, the answer, and what each error of Gemini means.

There is one class for each SDK, chosen by `GEMINI_SDK`; nothing outside this module knows which one is used.
Both SDKs build and send the request; the answer is read here, from its JSON, by one function for both. The
reason: google-generativeai is frozen and drops what it does not know (thoughts, newer finish reasons), and
google-genai warns of or stumbles over it.

What is not here: asking again, waiting, splitting (`generation`), the limit shared by all workers
(`throttle`), and making questions of the text (`questions`).
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
import time
import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

import requests
import urllib3
from redis.exceptions import RedisError

from superexam_rq.errors import (
    GeminiKeyRefused,
    GeminiModelUnknown,
    GeminiQuotaExhausted,
    GeminiRequestRefused,
    GeminiUnavailable,
    RateLimited,
    SuperExamError,
)
from superexam_rq.request import MODEL_PATTERN

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from redis import Redis

    from superexam_rq.config import Settings

_GOOGLE = "https://generativelanguage.googleapis.com"
_PDF = "application/pdf"
_JSON = "application/json"
# Bytes of a PDF that are sent at most: Google takes 50 MB inline (ai.google.dev/gemini-api/docs/file-input-methods).
MAX_PDF = 45_000_000

# Contract §6. No bounds or patterns: Gemini counts them against a budget and answers 400 (googleapis/python-genai
# issue 2170). Fields are emitted in the order of `required`, so the evidence comes before the answer.
DEFAULT_RESPONSE_SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "questions": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "sourcePage": {
                        "type": "integer",
                        "description": "Page of this PDF that the question rests on, counted from 1",
                    },
                    "sourceQuote": {
                        "type": "string",
                        "description": "Short passage of that page, word for word, that proves the answer",
                    },
                    "questionText": {"type": "string"},
                    "choices": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {
                                "index": {"type": "string", "description": "A, B, C and so on"},
                                "text": {"type": "string"},
                            },
                            "required": ["index", "text"],
                        },
                    },
                    "correctAnswers": {
                        "type": "array",
                        "description": "The index of each correct choice",
                        "items": {"type": "string"},
                    },
                    "explanation": {"type": "string", "description": "At most two sentences"},
                },
                "required": [
                    "sourcePage",
                    "sourceQuote",
                    "questionText",
                    "choices",
                    "correctAnswers",
                    "explanation",
                ],
            },
        }
    },
    "required": ["questions"],
}


class Outcome(StrEnum):
    """Say how an answer ended; only `COMPLETE` is one."""

    COMPLETE = "complete"
    TRUNCATED = "truncated"
    RECITATION = "recitation"
    BLOCKED = "blocked"
    EMPTY = "empty"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Usage:
    """Count the tokens of calls; thoughts are billed as output, but not part of `output_tokens`."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    thought_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.output_tokens + other.output_tokens,
            self.thought_tokens + other.thought_tokens,
        )


@dataclass(frozen=True)
class ModelRequest:
    """Ask `model` one thing about one PDF.

    `response_schema` is JSON Schema as far as Gemini takes it: `type` in lower case, `properties`, `required`,
    `items`, `enum`, `description`, `nullable`.
    """

    model: str
    pdf: bytes
    system: str
    prompt: str
    response_schema: Mapping[str, Any]


@dataclass(frozen=True)
class ModelAnswer:
    """Hold what the model said; `reason` is the name of its finish or block reason, for logs and warnings."""

    text: str
    outcome: Outcome
    reason: str
    usage: Usage
    model_version: str


class RequestAdapted(GeminiUnavailable):
    """Report that the model refused an option of the request; it is left out from now on: ask again at once."""


class GeminiSlow(GeminiUnavailable):
    """Report that the answer did not come in time; a smaller batch may."""


class GeminiClient(Protocol):
    """Call the model; safe to use from several threads."""

    def generate(self, request: ModelRequest, *, timeout: float) -> ModelAnswer:
        """Send one HTTP request and return the answer, whatever its outcome.

        `timeout` is in seconds. It bounds the wait for each byte and the whole: an answer that is still dripping
        in when it has passed is given up at the next byte, so that no call lasts longer than twice the `timeout`.

        Raises `GeminiKeyRefused`, `GeminiModelUnknown`, `GeminiQuotaExhausted`, `GeminiRequestRefused` (all
        permanent), `RateLimited`, `RequestAdapted` or another `GeminiUnavailable`.
        """

    def close(self) -> None:
        """Close the idle connections."""


def preload(settings: Settings) -> None:
    """Import the chosen SDK, so that the children of this process need not; opens nothing."""
    if settings.gemini_sdk == "google-genai":
        _import_genai()
    else:
        _import_generativeai()


def connect(settings: Settings, redis: Redis | None = None) -> GeminiClient:
    """Return a client for the chosen SDK; no request is sent yet.

    In `redis` the clients of all workers remember which thinking level a model takes.
    Raises `GeminiKeyRefused` if there is no API key, or one that can't be sent in an HTTP header.
    """
    key = _checked_key(settings)
    if settings.gemini_sdk == "google-genai":
        levels = _ThinkingLevels(redis, settings)
        return GoogleGenaiClient(key, settings.gemini_api_endpoint, settings.gemini_concurrency, levels)
    return GenerativeAiClient(key, settings.gemini_api_endpoint, settings.gemini_concurrency)


def check_model(settings: Settings, timeout: float) -> str:
    """Ask Gemini what it knows of the configured model, which costs nothing, and return the model's full name.

    Raises what `GeminiClient.generate` raises.
    """
    path = _model_path(settings.gemini_model)
    url = f"{settings.gemini_api_endpoint or _GOOGLE}/v1beta/{path}"
    headers = {"x-goog-api-key": _checked_key(settings)}
    try:
        answer = requests.get(url, headers=headers, timeout=timeout, allow_redirects=False)
    except requests.Timeout as error:
        raise _timed_out(timeout) from error
    except requests.RequestException as error:
        raise _unreachable(error) from error
    if answer.status_code != requests.codes.ok:
        raise _error_for(answer.status_code, answer.content, answer.headers, settings.gemini_model)
    model = _load(answer.content)
    if not isinstance(model, dict) or "name" not in model:
        raise _no_answer()
    if "generateContent" not in model.get("supportedGenerationMethods", ["generateContent"]):
        raise _no_such_model(settings.gemini_model)
    return str(model["name"])


def _checked_key(settings: Settings) -> str:
    key = settings.gemini_api_key
    if not key:
        raise GeminiKeyRefused("There is no Gemini API key: set GEMINI_API_KEY for the workers")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise GeminiKeyRefused("The Gemini API key holds characters that no key has: check GEMINI_API_KEY")
    return key


class GenerativeAiClient:
    """Call the model with google-generativeai, over REST (gRPC does not survive a fork with calls in flight)."""

    def __init__(self, key: str, endpoint: str, concurrency: int) -> None:
        self._genai = _import_generativeai()
        from google.ai.generativelanguage import GenerativeServiceClient
        from google.ai.generativelanguage_v1beta.services.generative_service.transports.rest import (
            GenerativeServiceRestTransport,
        )
        from google.auth.api_key import Credentials

        host = endpoint or GenerativeServiceClient.DEFAULT_ENDPOINT
        transport: Any = GenerativeServiceRestTransport(
            host=host,
            credentials=Credentials(key),
        )
        self._adapter = _Adapter(pool_maxsize=concurrency)
        for scheme in ("https://", "http://"):
            transport._session.mount(scheme, self._adapter)
        self._client = GenerativeServiceClient(transport=transport)

    def generate(self, request: ModelRequest, *, timeout: float) -> ModelAnswer:
        """Send one request; see `GeminiClient`."""
        model = self._genai.GenerativeModel(_model_path(request.model), system_instruction=request.system or None)
        # Instead of genai.configure(), which is state of the whole process.
        model._client = self._client
        try:
            model.generate_content(
                # Whole contents: of bare parts the SDK first builds an error text that spells out the PDF's bytes.
                [{"role": "user", "parts": [{"mime_type": _PDF, "data": request.pdf}, request.prompt]}],
                generation_config={"response_mime_type": _JSON, "response_schema": dict(request.response_schema)},
                # The SDK's default is to ask again for up to 600 s.
                request_options={"timeout": timeout, "retry": None},
            )
        except _Refused as refused:
            raise _error_for(refused.status, refused.body, refused.headers, request.model) from None
        except requests.Timeout as error:
            raise _timed_out(timeout) from error
        except requests.RequestException as error:
            raise _unreachable(error) from error
        return _read_answer(self._adapter.body())

    def close(self) -> None:
        """Close the idle connections."""
        self._adapter.close()


class _Refused(Exception):
    """Carry an HTTP error out of the SDK, before it makes less of it."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.body, self.headers = status, body, headers


class _Adapter(requests.adapters.HTTPAdapter):
    """Carry google-generativeai's requests, once each and within a deadline, and keep the JSON of the answers.

    An error leaves as an exception here already, since the session above repeats a 401 twice and follows
    redirects, with the key.
    """

    def __init__(self, pool_maxsize: int) -> None:
        super().__init__(pool_maxsize=pool_maxsize)
        self._answers = threading.local()

    def body(self) -> bytes:
        """Return the body of the last answer in this thread."""
        body: bytes = self._answers.body
        return body

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        """Send one request; its `timeout` bounds the whole of it too."""
        deadline = time.monotonic() + options["timeout"]
        # The SDK asks for enums as numbers, and nobody says what the newer numbers mean.
        request.url = str(request.url).partition("?")[0]
        response = super().send(request, *args, **options | {"stream": True})
        body = b"".join(_read(response, deadline))
        if response.status_code != requests.codes.ok:
            raise _Refused(response.status_code, body, response.headers)
        self._answers.body = body
        # Nothing for the SDK to read: it stumbles over reasons and fields that are newer than itself.
        response.raw = io.BytesIO(b"{}")
        return response


def _read(response: requests.Response, deadline: float) -> Iterator[bytes]:
    try:
        while chunk := response.raw.read1(1 << 16, decode_content=True):
            yield chunk
            if time.monotonic() > deadline:
                raise requests.ReadTimeout
    except urllib3.exceptions.ReadTimeoutError as error:
        raise requests.ReadTimeout from error
    except urllib3.exceptions.HTTPError as error:
        raise requests.ConnectionError(error) from error
    finally:
        response.close()


# From the cheapest on; None: the option is left out (models before 3 do not know it).
_THINKING_LEVELS = ("MINIMAL", "LOW", None)
# Seconds: a name such as gemini-flash-latest may stand for another model tomorrow.
_LEVEL_TTL = 86_400


class _ThinkingLevels:
    """Remember, by model, the place in `_THINKING_LEVELS` of the first level that was not refused."""

    def __init__(self, redis: Redis | None, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._known: dict[str, int] = {}
        self._lock = threading.Lock()

    def first(self, model: str) -> int:
        """Return the place of the level to ask for."""
        with self._lock:
            if model not in self._known:
                self._known[model] = self._look_up(model)
            return self._known[model]

    def refuse(self, model: str, place: int) -> None:
        """Note that the model does not take the level at a place."""
        with self._lock:
            if self._known.get(model, 0) > place:
                return
            self._known[model] = place + 1
            if self._redis is not None:
                with contextlib.suppress(RedisError):
                    self._redis.set(self._settings.key("gemini", "thinking", model), place + 1, ex=_LEVEL_TTL)

    def _look_up(self, model: str) -> int:
        found: Any = None
        if self._redis is not None:
            with contextlib.suppress(RedisError):
                found = self._redis.get(self._settings.key("gemini", "thinking", model))
        return min(int(found or 0), len(_THINKING_LEVELS) - 1)


class GoogleGenaiClient:
    """Call the model with google-genai, at the lowest thinking level that the model takes."""

    def __init__(self, key: str, endpoint: str, concurrency: int, levels: _ThinkingLevels) -> None:
        import httpx2

        self._genai = _import_genai()
        self._deadlines = threading.local()
        self._levels = levels
        self._client = self._genai.Client(
            # Without the second, a variable of Google's could send the requests to Vertex AI.
            api_key=key,
            vertexai=False,
            http_options={
                "api_version": "v1beta",
                **({"base_url": endpoint} if endpoint else {}),
                "client_args": {
                    "event_hooks": {"response": [self._watch]},
                    "follow_redirects": False,
                    "limits": httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
                },
            },
        )

    def _watch(self, response: Any) -> None:
        """Give the body of `response` a deadline: the SDK's time-out is for each read."""
        import httpx2

        stream, deadline = response.stream, self._deadlines.at

        class _Watched(httpx2.SyncByteStream):
            def __iter__(self) -> Iterator[bytes]:
                for chunk in stream:
                    yield chunk
                    if time.monotonic() > deadline:
                        raise httpx2.ReadTimeout("the whole answer took too long")

            def close(self) -> None:
                stream.close()

        response.stream = _Watched()

    def generate(self, request: ModelRequest, *, timeout: float) -> ModelAnswer:
        """Send one request; see `GeminiClient`."""
        import httpx2

        types, errors = self._genai.types, self._genai.errors
        path = _model_path(request.model)
        tried = self._levels.first(path)
        level = _THINKING_LEVELS[tried]
        config = types.GenerateContentConfig(
            system_instruction=request.system or None,
            response_mime_type=_JSON,
            response_schema=dict(request.response_schema),
            thinking_config=types.ThinkingConfig(thinking_level=level) if level else None,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            automatic_continuation=False,
            should_return_http_response=True,
            http_options=types.HttpOptions(timeout=max(1, round(timeout * 1000))),
        )
        contents = [types.Part.from_bytes(data=request.pdf, mime_type=_PDF), types.Part.from_text(text=request.prompt)]
        self._deadlines.at = time.monotonic() + timeout
        try:
            response = self._client.models.generate_content(model=path, contents=contents, config=config)
        except errors.APIError as error:
            body, headers = error.response.content, error.response.headers
            if level and error.code == 400 and b"thinking" in body.lower():
                self._levels.refuse(path, tried)
                raise RequestAdapted(f"The model takes no thinking level {level.lower()}") from None
            raise _error_for(error.code, body, headers, request.model) from None
        except httpx2.TimeoutException as error:
            raise _timed_out(timeout) from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise _unreachable(error) from error
        return _read_answer((response.sdk_http_response.body or "").encode())

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()


def _import_generativeai() -> Any:
    with warnings.catch_warnings():
        # That the package and Python 3.11 near their end is the operator's choice, not news for each start.
        for message in (r"\s*All support for the `google.generativeai`", "You are using a Python version"):
            warnings.filterwarnings("ignore", message, FutureWarning)
        import google.generativeai
    return google.generativeai


def _import_genai() -> Any:
    from google import genai

    return genai


def _model_path(model: str) -> str:
    """Return `models/NAME` or `tunedModels/NAME`; what can't be a name is refused: it becomes a part of the URL."""
    found = re.fullmatch(MODEL_PATTERN, model)
    if found is None:
        raise _no_such_model(model)
    return model if found[1] else f"models/{model}"


# --- What an answer means ---------------------------------------------------------------------------------------------

# What is not listed, and comes with the next release of the service, is UNKNOWN: never a success.
_OUTCOMES = {
    "STOP": Outcome.COMPLETE,
    "MAX_TOKENS": Outcome.TRUNCATED,
    # The service offers to go on in a further call; a smaller batch needs none.
    "CONTINUATION": Outcome.TRUNCATED,
    "RECITATION": Outcome.RECITATION,
    "IMAGE_RECITATION": Outcome.RECITATION,
    "SAFETY": Outcome.BLOCKED,
    "BLOCKLIST": Outcome.BLOCKED,
    "PROHIBITED_CONTENT": Outcome.BLOCKED,
    "SPII": Outcome.BLOCKED,
    "IMAGE_SAFETY": Outcome.BLOCKED,
    "IMAGE_PROHIBITED_CONTENT": Outcome.BLOCKED,
    "MODEL_ARMOR": Outcome.BLOCKED,
}


def _read_answer(body: bytes) -> ModelAnswer:
    """Read a GenerateContentResponse; raises `GeminiUnavailable` if it is none."""
    payload = _load(body)
    if not isinstance(payload, dict):
        raise _no_answer()
    try:
        return _answer(payload)
    except (AttributeError, TypeError, ValueError, LookupError) as error:
        raise _no_answer() from error


def _answer(payload: dict[str, Any]) -> ModelAnswer:
    usage = _usage(payload.get("usageMetadata") or {})
    version = str(payload.get("modelVersion") or "")
    blocked = _reason((payload.get("promptFeedback") or {}).get("blockReason"))
    if blocked and not blocked.endswith("_UNSPECIFIED"):
        return ModelAnswer("", Outcome.BLOCKED, blocked, usage, version)
    candidates = payload.get("candidates") or []
    if not candidates:
        return ModelAnswer("", Outcome.UNKNOWN, "NO_CANDIDATES", usage, version)
    parts = (candidates[0].get("content") or {}).get("parts") or []
    # Without a separator: a string of the JSON may go on in the next part.
    text = "".join(part.get("text") or "" for part in parts if not part.get("thought"))
    reason = _reason(candidates[0].get("finishReason")) or "FINISH_REASON_UNSPECIFIED"
    outcome = _OUTCOMES.get(reason, Outcome.UNKNOWN)
    if outcome is Outcome.COMPLETE and not text.strip():
        outcome = Outcome.EMPTY
    return ModelAnswer(text, outcome, reason, usage, version)


def _reason(value: object) -> str:
    """Return the name of a finish or block reason; anything but a name is given one that nobody knows."""
    return value[:60] if isinstance(value, str) else "" if value is None else f"REASON_{value}"


def _usage(counts: Mapping[str, Any]) -> Usage:
    prompt, output, thoughts, total = (
        int(counts.get(f"{name}TokenCount") or 0) for name in ("prompt", "candidates", "thoughts", "total")
    )
    return Usage(prompt, output, thoughts or max(0, total - prompt - output))


def _load(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


# --- What an error means ----------------------------------------------------------------------------------------------


def _error_for(status: int, body: bytes, headers: Mapping[str, str], model: str) -> SuperExamError:
    """Translate an HTTP error; the texts are public, so nothing of the server's own goes into them."""
    problem = _Problem.read(body)
    if status in {401, 403} or (status == 400 and problem.names_key()):
        return GeminiKeyRefused("Gemini refused the API key: check GEMINI_API_KEY")
    if status == 400 and problem.status == "FAILED_PRECONDITION":
        return GeminiKeyRefused(
            "Gemini does not serve this API key here: its free tier is not offered at the workers' location; "
            "enable billing for the key's project"
        )
    if status == 404:
        return _no_such_model(model)
    if status == 402 or (status == 429 and problem.is_out_of_credit()):
        return GeminiQuotaExhausted("The Gemini quota is used up: the project has no credit left")
    if status == 429:
        if problem.is_daily():
            return GeminiQuotaExhausted("The Gemini quota for today is used up, or the plan has none for this model")
        return RateLimited("Gemini is getting more requests than the plan allows", problem.delay(headers))
    if status in {400, 413, 422}:
        return GeminiRequestRefused("Gemini refused the request as invalid")
    if status == 504:
        return GeminiSlow("Gemini could not finish in time")
    return GeminiUnavailable(f"Gemini is not available at the moment (HTTP {status})")


@dataclass(frozen=True)
class _Problem:
    """Hold the error object of Google's APIs (google.rpc.Status in JSON), as far as it was sent."""

    status: str
    message: str
    details: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, body: bytes) -> _Problem:
        payload = _load(body)
        # Google's frontends wrap the object into a list now and then.
        payload = payload[0] if isinstance(payload, list) and payload else payload
        error = payload.get("error") if isinstance(payload, dict) else None
        if not isinstance(error, dict):
            return cls("", "", ())
        details = error.get("details")
        return cls(
            str(error.get("status") or ""),
            str(error.get("message") or ""),
            tuple(detail for detail in details if isinstance(detail, dict)) if isinstance(details, list) else (),
        )

    def names_key(self) -> bool:
        return any(str(detail.get("reason", "")).startswith("API_KEY_") for detail in self.details) or (
            "api key" in self.message.lower()
        )

    def is_out_of_credit(self) -> bool:
        return bool(re.search(r"prepayment credits|spending cap", self.message, re.IGNORECASE))

    def is_daily(self) -> bool:
        """Tell a quota that a wait won't bring back; such an answer states a short delay all the same."""
        violations = [item for detail in self.details for item in _objects(detail.get("violations"))]
        return any("PerDay" in str(item.get("quotaId", "")) for item in violations) or bool(
            re.search(r"\blimit: 0\b(?!\.\d)|per day", self.message)
        )

    def delay(self, headers: Mapping[str, str]) -> float | None:
        """Return the stated delay in seconds."""
        stated = [str(detail["retryDelay"]) for detail in self.details if "retryDelay" in detail]
        stated += [headers.get("Retry-After") or "", *re.findall(r"retry in ([\d.]+s)", self.message)]
        for text in stated:
            if match := re.fullmatch(r"(\d+(?:\.\d*)?)s?", text.strip()):
                return float(match[1])
        return None


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _no_such_model(model: str) -> GeminiModelUnknown:
    return GeminiModelUnknown(f"Gemini has no model named {model[:80]!r} for this key: check GEMINI_MODEL")


def _timed_out(timeout: float) -> GeminiUnavailable:
    return GeminiSlow(f"Gemini did not answer within {timeout:g} s")


def _unreachable(error: Exception) -> GeminiUnavailable:
    return GeminiUnavailable(f"Gemini could not be reached, or broke off its answer ({type(error).__name__})")


def _no_answer() -> GeminiUnavailable:
    return GeminiUnavailable("Gemini sent something that is not an answer")
