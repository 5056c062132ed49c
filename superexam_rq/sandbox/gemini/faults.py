"""What can go wrong with a Gemini call, each as one `Fault`; and Google's form of an error body.

Only data: `server` acts it out. Texts and shapes are those that the real service has been seen to send.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FINISH_REASONS: Mapping[str, int] = {
    "FINISH_REASON_UNSPECIFIED": 0,
    "STOP": 1,
    "MAX_TOKENS": 2,
    "SAFETY": 3,
    "RECITATION": 4,
    "OTHER": 5,
    "LANGUAGE": 6,
    "BLOCKLIST": 7,
    "PROHIBITED_CONTENT": 8,
    "SPII": 9,
    "MALFORMED_FUNCTION_CALL": 10,
    "IMAGE_SAFETY": 11,
    # The rest is younger than google-generativeai, which knows neither names nor numbers: it hands on a plain
    # int. Which int is of no consequence, so those that are not published are made up.
    "UNEXPECTED_TOOL_CALL": 12,
    "TOO_MANY_TOOL_CALLS": 13,
    "IMAGE_PROHIBITED_CONTENT": 14,
    "IMAGE_OTHER": 15,
    "NO_IMAGE": 16,
    "IMAGE_RECITATION": 17,
    "MISSING_THOUGHT_SIGNATURE": 18,
    "MALFORMED_RESPONSE": 19,
    "ESCALATION": 20,
    "PUP_LIMITED_DISABLED": 21,
    "CONTINUATION": 22,
    "MODEL_ARMOR": 23,
    "SOMETHING_NEW": 99,
}
"""Every finish reason of both SDKs, with its number on the wire, and one that neither knows."""

BLOCK_REASONS: Mapping[str, int] = {
    "BLOCK_REASON_UNSPECIFIED": 0,
    "SAFETY": 1,
    "OTHER": 2,
    "BLOCKLIST": 3,
    "PROHIBITED_CONTENT": 4,
    "IMAGE_SAFETY": 5,
    "MODEL_ARMOR": 6,
    "JAILBREAK": 7,
    "SOMETHING_NEW": 99,
}
"""Every block reason of both SDKs, with its number on the wire, and one that neither knows."""

STATUSES: Mapping[int, tuple[str, str]] = {
    400: ("INVALID_ARGUMENT", "Request contains an invalid argument."),
    401: (
        "UNAUTHENTICATED",
        (
            "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or "
            "other valid authentication credential."
        ),
    ),
    402: (
        "RESOURCE_EXHAUSTED",
        "Your prepayment credits are depleted. Please go to AI Studio to manage your project and billing.",
    ),
    403: ("PERMISSION_DENIED", "The caller does not have permission"),
    404: (
        "NOT_FOUND",
        (
            "models/{model} is not found for API version v1beta, or is not supported for generateContent. "
            "Call ListModels to see the list of available models and their supported methods."
        ),
    ),
    408: ("DEADLINE_EXCEEDED", "Request timed out."),
    409: ("ABORTED", "The operation was aborted."),
    413: ("INVALID_ARGUMENT", "Request payload size exceeds the limit: 104857600 bytes."),
    429: ("RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
    499: ("CANCELLED", "The operation was cancelled."),
    500: (
        "INTERNAL",
        "An internal error has occurred. Please retry.",
    ),
    501: ("UNIMPLEMENTED", "Operation is not implemented, or supported, or enabled."),
    503: ("UNAVAILABLE", "The model is overloaded. Please try again later."),
    504: ("DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
}
"""For each HTTP status Google's own status name and its usual text."""

_RPC = "type.googleapis.com/google.rpc."
_METRIC = "generativelanguage.googleapis.com/generate_content_free_tier_requests"
_HTML = (
    "<!DOCTYPE html>\n<html lang=en>\n  <title>Error 502 (Server Error)!!1</title>\n"
    "  <p><b>502.</b> <ins>Server error.</ins>\n  <p>The server encountered a temporary error."
)

Parts = Literal["complete", "partial", "none", "no_content", "empty", "split", "thought", "signature"]


def error_body(
    status: int,
    message: str | None = None,
    *,
    name: str | None = None,
    details: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Build Google's JSON body of an error; status name and message default to the usual ones."""
    usual = STATUSES.get(status, ("UNKNOWN", "Unknown error."))
    error: dict[str, Any] = {"code": status, "message": message or usual[1], "status": name or usual[0]}
    if details:
        error["details"] = [dict(detail) for detail in details]
    return {"error": error}


def key_error() -> dict[str, Any]:
    """Build the body that Google answers a wrong API key with (status 400)."""
    text = "API key not valid. Please pass a valid API key."
    return error_body(
        400,
        text,
        details=[
            {
                "@type": _RPC + "ErrorInfo",
                "reason": "API_KEY_INVALID",
                "domain": "googleapis.com",
                "metadata": {"service": "generativelanguage.googleapis.com"},
            },
            {"@type": _RPC + "LocalizedMessage", "locale": "en-US", "message": text},
        ],
    )


def quota_error(quota: str, limit: int, delay: float | None) -> dict[str, Any]:
    """Build the body of a 429: which quota is used up, and when to ask again (in seconds)."""
    text = (
        "You exceeded your current quota, please check your plan and billing details. For more information "
        "on this error, head to: https://ai.google.dev/gemini-api/docs/rate-limits.\n"
        f"* Quota exceeded for metric: {_METRIC}, limit: {limit}, model: {{model}}"
    )
    details: list[dict[str, Any]] = [
        {
            "@type": _RPC + "Help",
            "links": [
                {
                    "description": "Learn more about Gemini API quotas",
                    "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
                }
            ],
        },
        {
            "@type": _RPC + "QuotaFailure",
            "violations": [
                {
                    "quotaMetric": _METRIC,
                    "quotaId": quota,
                    "quotaDimensions": {"location": "global", "model": "{model}"},
                    # Google leaves the value out when it is 0.
                    **({"quotaValue": str(limit)} if limit else {}),
                }
            ],
        },
    ]
    if delay is not None:
        text += f"\nPlease retry in {delay:g}s."
        details.append({"@type": _RPC + "RetryInfo", "retryDelay": f"{delay:g}s"})
    return error_body(429, text, details=details)


def _unknown(what: str, given: object, known: Iterable[str]) -> ValueError:
    return ValueError(f"unknown {what} {given!r}: take one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way for a call to go wrong; build it with one of the class methods.

    Every class method also takes `times` (how many calls; None: every one), `match` (only calls whose page
    texts or prompt hold this text) and `delay` (seconds before the answer). `{model}` in an error stands for
    the model that was asked.
    """

    kind: str
    times: int | None = 1
    match: str | None = None
    delay: float = 0.0
    status: int = 200
    body: Mapping[str, Any] | None = None
    raw: str | None = None
    content_type: str = "application/json; charset=UTF-8"
    headers: Mapping[str, str] | None = None
    finish: str = "STOP"
    parts: Parts = "complete"
    keep: float = 0.6
    text: str | None = None
    wrap: Literal["", "fence", "list"] = ""
    block: str | None = None
    cut: bool = False
    drip: float = 0.0
    drop: Literal["", "unread", "read", "answering"] = ""

    def __post_init__(self) -> None:
        if self.times is not None and self.times < 1:
            raise ValueError(f"times is {self.times}: take 1 or more, or None for every call")

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> Self:
        """Build a fault from `{"kind": name of a class method, …its arguments}`; else ValueError."""
        kind = given.get("kind")
        maker = getattr(cls, kind, None) if isinstance(kind, str) and kind in KINDS else None
        if maker is None:
            raise _unknown("kind of fault", kind, KINDS)
        try:
            fault: Self = maker(**{key: value for key, value in given.items() if key != "kind"})
        except TypeError as error:
            raise ValueError(f"{kind}: {error}") from error
        return fault

    @classmethod
    def http(
        cls,
        status: int,
        message: str | None = None,
        *,
        name: str | None = None,
        details: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        **common: Any,
    ) -> Self:
        """Answer an HTTP status with Google's error body."""
        body = error_body(status, message, name=name, details=details)
        return cls(kind="http", status=status, body=body, headers=headers, **common)

    @classmethod
    def bad_key(cls, **common: Any) -> Self:
        """Refuse the API key: 400 with the reason API_KEY_INVALID."""
        return cls(kind="bad_key", status=400, body=key_error(), **common)

    @classmethod
    def bare_400(cls, **common: Any) -> Self:
        """Refuse with the bare 400 that Google uses for a bad schema and an unreadable PDF alike."""
        return cls(kind="bare_400", status=400, body=error_body(400), **common)

    @classmethod
    def country(cls, **common: Any) -> Self:
        """Refuse because the free tier is not offered in the caller's country: 400 FAILED_PRECONDITION."""
        text = "User location is not supported for the API use."
        body = error_body(400, text, name="FAILED_PRECONDITION")
        return cls(kind="country", status=400, body=body, **common)

    @classmethod
    def unauthenticated(cls, **common: Any) -> Self:
        """Refuse the type of the key: 401. google-generativeai by itself makes three calls of it."""
        detail = {
            "@type": _RPC + "ErrorInfo",
            "reason": "ACCESS_TOKEN_TYPE_UNSUPPORTED",
            "domain": "googleapis.com",
            "metadata": {"service": "generativelanguage.googleapis.com"},
        }
        return cls(kind="unauthenticated", status=401, body=error_body(401, details=[detail]), **common)

    @classmethod
    def no_credit(cls, **common: Any) -> Self:
        """Say that the prepaid credit is used up: 402."""
        return cls(kind="no_credit", status=402, body=error_body(402), **common)

    @classmethod
    def forbidden(cls, **common: Any) -> Self:
        """Say that the key lacks the right, or was leaked: 403."""
        text = "Your API key was reported as leaked. Please use another API key."
        return cls(kind="forbidden", status=403, body=error_body(403, text), **common)

    @classmethod
    def no_model(cls, **common: Any) -> Self:
        """Say that the model does not exist: 404."""
        return cls(kind="no_model", status=404, body=error_body(404), **common)

    @classmethod
    def per_minute(cls, retry_after: float | None = 37.1, limit: int = 10, **common: Any) -> Self:
        """Say 429 for a quota per minute, to be asked again in `retry_after` seconds (None: not said)."""
        quota = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
        return cls(kind="per_minute", status=429, body=quota_error(quota, limit, retry_after), **common)

    @classmethod
    def per_day(cls, retry_after: float | None = 25.3, limit: int = 20, **common: Any) -> Self:
        """Say 429 for a quota per day; Google names a short delay here too, which does not help."""
        quota = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
        return cls(kind="per_day", status=429, body=quota_error(quota, limit, retry_after), **common)

    @classmethod
    def limit_zero(cls, retry_after: float | None = 25.3, **common: Any) -> Self:
        """Say 429 with "limit: 0": this key has no free tier for the model, and waiting will not help."""
        quota = "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"
        return cls(kind="limit_zero", status=429, body=quota_error(quota, 0, retry_after), **common)

    @classmethod
    def bad_gateway(cls, **common: Any) -> Self:
        """Answer 502 with an HTML page, as Google's front ends do."""
        return cls(kind="bad_gateway", status=502, raw=_HTML, content_type="text/html; charset=UTF-8", **common)

    @classmethod
    def overloaded(cls, **common: Any) -> Self:
        """Say that the model is overloaded: 503."""
        return cls(kind="overloaded", status=503, body=error_body(503), **common)

    @classmethod
    def finished(cls, reason: str, parts: Parts = "complete", *, keep: float = 0.6, **common: Any) -> Self:
        """Answer 200 with a finish reason; `parts` is how much of the true answer comes with it.

        complete: all; partial: the first `keep` of its characters; none: a content without parts; no_content:
        no content; empty: one empty text; split: two text parts; thought: a thought part first; signature: a
        part with only a thoughtSignature after the text.
        """
        if reason not in FINISH_REASONS:
            raise _unknown("finish reason", reason, FINISH_REASONS)
        if parts not in get_args(Parts):
            raise _unknown("parts", parts, get_args(Parts))
        return cls(kind="finished", finish=reason, parts=parts, keep=keep, **common)

    @classmethod
    def answer(cls, text: str, finish: str = "STOP", **common: Any) -> Self:
        """Answer this text, whatever was asked."""
        if finish not in FINISH_REASONS:
            raise _unknown("finish reason", finish, FINISH_REASONS)
        return cls(kind="answer", text=text, finish=finish, **common)

    @classmethod
    def not_json(cls, **common: Any) -> Self:
        """Finish with STOP and a sentence instead of JSON."""
        return cls(kind="not_json", text="I am sorry, but I cannot help with that.", **common)

    @classmethod
    def fenced(cls, **common: Any) -> Self:
        """Wrap the true answer into a Markdown fence."""
        return cls(kind="fenced", wrap="fence", **common)

    @classmethod
    def bare_list(cls, **common: Any) -> Self:
        """Answer the list of the true answer without the object around it."""
        return cls(kind="bare_list", wrap="list", **common)

    @classmethod
    def blocked(cls, reason: str = "PROHIBITED_CONTENT", **common: Any) -> Self:
        """Block the prompt: no candidates, only a block reason."""
        if reason not in BLOCK_REASONS:
            raise _unknown("block reason", reason, BLOCK_REASONS)
        return cls(kind="blocked", block=reason, **common)

    @classmethod
    def no_candidates(cls, **common: Any) -> Self:
        """Answer 200 with an empty list of candidates."""
        return cls(kind="no_candidates", body={"candidates": [], "usageMetadata": {}}, **common)

    @classmethod
    def empty_object(cls, **common: Any) -> Self:
        """Answer 200 with `{}`."""
        return cls(kind="empty_object", raw="{}", **common)

    @classmethod
    def empty_body(cls, **common: Any) -> Self:
        """Answer 200 with nothing."""
        return cls(kind="empty_body", raw="", **common)

    @classmethod
    def html(cls, **common: Any) -> Self:
        """Answer 200 with an HTML page, as a proxy or a captive portal does."""
        page = "<html><body>Welcome to the network</body></html>"
        return cls(kind="html", raw=page, content_type="text/html", **common)

    @classmethod
    def cut_json(cls, **common: Any) -> Self:
        """Answer 200 with a body that stops in the middle, although the HTTP exchange is complete."""
        return cls(kind="cut_json", cut=True, **common)

    @classmethod
    def slow(cls, seconds: float, **common: Any) -> Self:
        """Answer at once, but drip the body over `seconds`."""
        return cls(kind="slow", drip=seconds, **common)

    @classmethod
    def wait(cls, seconds: float, **common: Any) -> Self:
        """Answer rightly, `seconds` late."""
        return cls(kind="wait", delay=seconds, **common)

    @classmethod
    def dropped(cls, when: Literal["unread", "read", "answering"] = "read", **common: Any) -> Self:
        """Drop the connection: before the request is read, after it, or in the middle of the answer's body.

        "unread" takes no `match`: there is nothing to compare yet.
        """
        if when not in ("unread", "read", "answering"):
            raise ValueError(f"{when!r}: take unread, read or answering")
        if when == "unread" and common.get("match"):
            raise ValueError("a connection dropped unread cannot match anything")
        return cls(kind="dropped", drop=when, **common)


KINDS: Sequence[str] = tuple(
    name for name, value in vars(Fault).items() if isinstance(value, classmethod) and name != "from_json"
)
"""The kinds of faults: the names of `Fault`'s class methods."""
