"""The Gemini stand-in as Google's own SDKs see it: answers, refusals, faults, the journal, a process of its own."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import jsonschema
import pytest
import requests
from google import genai as new_sdk
from google.ai import generativelanguage_v1beta as api
from google.api_core import exceptions as core
from google.genai import errors as new_errors
from google.genai import types
from google.generativeai.generative_models import GenerativeModel
from google.protobuf.json_format import ParseError

from superexam_rq.pdf import Document
from superexam_rq.sandbox.gemini import BLOCK_REASONS, FINISH_REASONS, Fault, GeminiServer
from superexam_rq.sandbox.gemini.forms import DEFAULT_SCHEMA
from superexam_rq.sandbox.gemini.questions import MARK, fold
from tests.pdfs import from_texts, prose
from tests.stack import ROOT, eventually

SAMPLE = (ROOT / "superexam_rq" / "sandbox" / "sample.pdf").read_bytes()


@dataclass
class Seen:
    """What an SDK makes of an answer: finish and block reason as names, or as a number that it has no name for."""

    text: str
    finish: str | int | None
    block: str | int | None
    tokens: tuple[int, int, int]
    model: str


class Sdk(Protocol):
    """One of Google's SDKs, told to ask the stand-in."""

    name: str

    def ask(
        self,
        url: str,
        pdf: bytes | None = SAMPLE,
        *,
        prompt: str = "Write questions.",
        schema: Any = DEFAULT_SCHEMA,
        model: str = "gemini-3.8-flash",
        key: str = "AQ.test",
        timeout: float = 20,
        **config: Any,
    ) -> Seen:
        """Ask once, without retries."""

    def models(self, url: str, key: str = "AQ.test") -> list[str]:
        """List the models."""


class OldSdk:
    """google-generativeai over REST."""

    name = "google-generativeai"

    def ask(
        self,
        url: str,
        pdf: bytes | None = SAMPLE,
        *,
        prompt: str = "Write questions.",
        schema: Any = DEFAULT_SCHEMA,
        model: str = "gemini-3.8-flash",
        key: str = "AQ.test",
        timeout: float = 20,
        **config: Any,
    ) -> Seen:
        """Ask once, without retries."""
        with _closing(api.GenerativeServiceClient, url, key) as client:
            asked = GenerativeModel(model, system_instruction="You write exams.")
            asked._client = client
            if schema is not None:
                config |= {"response_mime_type": "application/json", "response_schema": schema}
            parts: list[Any] = [{"mime_type": "application/pdf", "data": pdf}] if pdf is not None else []
            generation: Any = config
            options: Any = {"timeout": timeout, "retry": None}
            answer = asked.generate_content([*parts, prompt], generation_config=generation, request_options=options)
        candidate = answer.candidates[0] if answer.candidates else None
        usage = answer.usage_metadata
        with _ignored_warnings():
            # Of a number that it has no name for it warns, and hands on the number.
            finish = candidate.finish_reason if candidate else None
            block = answer.prompt_feedback.block_reason or None
        return Seen(
            text="".join(part.text for part in candidate.content.parts if "text" in part) if candidate else "",
            finish=getattr(finish, "name", finish),
            block=getattr(block, "name", block),
            tokens=(usage.prompt_token_count, usage.candidates_token_count, usage.total_token_count),
            model=answer.to_dict().get("model_version", ""),
        )

    def models(self, url: str, key: str = "AQ.test") -> list[str]:
        """List the models."""
        with _closing(api.ModelServiceClient, url, key) as client:
            return [model.name for model in client.list_models()]


@contextlib.contextmanager
def _closing(kind: Callable[..., Any], url: str, key: str) -> Iterator[Any]:
    options = {"api_endpoint": url, "api_key": key}
    client = kind(transport="rest", client_options=options)
    with client:
        # As genai.configure sends the key.
        client.transport._session.headers["x-goog-api-key"] = key
        yield client
    client.transport._session.close()


class NewSdk:
    """google-genai."""

    name = "google-genai"

    def ask(
        self,
        url: str,
        pdf: bytes | None = SAMPLE,
        *,
        prompt: str = "Write questions.",
        schema: Any = DEFAULT_SCHEMA,
        model: str = "gemini-3.8-flash",
        key: str = "AQ.test",
        timeout: float = 20,
        **config: Any,
    ) -> Seen:
        """Ask once, without retries."""
        client = self._client(url, key, timeout)
        if schema is not None:
            config |= {"response_mime_type": "application/json", "response_schema": schema}
        parts: list[Any] = [types.Part.from_bytes(data=pdf, mime_type="application/pdf")] if pdf is not None else []
        answer = client.models.generate_content(
            model=model,
            contents=[*parts, types.Part.from_text(text=prompt)],
            config=types.GenerateContentConfig(system_instruction="You write exams.", **config),
        )
        candidate = answer.candidates[0] if answer.candidates else None
        feedback, usage = answer.prompt_feedback, answer.usage_metadata
        return Seen(
            text=answer.text or "",
            finish=candidate.finish_reason.value if candidate and candidate.finish_reason else None,
            block=feedback.block_reason.value if feedback and feedback.block_reason else None,
            tokens=(
                (usage.prompt_token_count or 0, usage.candidates_token_count or 0, usage.total_token_count or 0)
                if usage
                else (0, 0, 0)
            ),
            model=answer.model_version or "",
        )

    def models(self, url: str, key: str = "AQ.test") -> list[str]:
        """List the models."""
        client = self._client(url, key, 20)
        return [model.name or "" for model in client.models.list()]

    def _client(self, url: str, key: str, timeout: float) -> new_sdk.Client:
        # Without `verify` each client would load all certificates, which takes longer than the test.
        options = types.HttpOptions(base_url=url, timeout=int(timeout * 1000), client_args={"verify": False})
        return new_sdk.Client(api_key=key, http_options=options)


@pytest.fixture(params=[OldSdk(), NewSdk()], ids=lambda sdk: str(sdk.name))
def sdk(request: pytest.FixtureRequest) -> Sdk:
    """Each of the two SDKs."""
    chosen: Sdk = request.param
    return chosen


@pytest.fixture
def gemini() -> Iterator[GeminiServer]:
    """Start a stand-in of the test's own."""
    with GeminiServer() as server:
        yield server


# --- answers ----------------------------------------------------------------------------------------------------------


def test_an_answer_holds_questions_whose_quotes_stand_on_their_pages(gemini: GeminiServer, sdk: Sdk) -> None:
    """Both SDKs get JSON in the service's own form, with a question for each page of the sample."""
    seen = sdk.ask(gemini.url)
    answer = json.loads(seen.text)
    jsonschema.validate(answer, DEFAULT_SCHEMA)
    assert seen.finish == "STOP"
    with Document.open(SAMPLE, max_bytes=10**8, max_pages=100) as document:
        assert [item["sourcePage"] for item in answer["questions"]] == list(range(1, document.page_count + 1))
        for item in answer["questions"]:
            assert item["sourceQuote"] in fold(document.text(item["sourcePage"]))


def test_pages_count_from_one_within_the_pdf_that_was_sent(gemini: GeminiServer, sdk: Sdk) -> None:
    """A batch cut from the middle of a document is numbered from 1, as Gemini numbers it."""
    with Document.open(SAMPLE, max_bytes=10**8, max_pages=100) as document:
        batch = document.cut([7, 8])
        texts = [fold(document.text(page)) for page in (7, 8)]
    for item in json.loads(sdk.ask(gemini.url, batch).text)["questions"]:
        assert item["sourceQuote"] in texts[item["sourcePage"] - 1]


def test_nobody_can_take_it_for_gemini(gemini: GeminiServer, sdk: Sdk) -> None:
    """The model's version, every explanation and a header say what it is."""
    seen = sdk.ask(gemini.url)
    assert seen.model == "superexam-sandbox-not-gemini"
    assert all(MARK in item["explanation"] for item in json.loads(seen.text)["questions"])
    assert requests.get(gemini.url, timeout=5).headers["X-Sandbox"] == "not-gemini"


def test_the_same_pages_get_the_same_answer_from_any_server(gemini: GeminiServer) -> None:
    """Neither the server, nor the SDK, nor the bytes around the same pages change the answer."""
    with GeminiServer() as other:
        answers = {
            OldSdk().ask(gemini.url).text,
            OldSdk().ask(gemini.url).text,
            NewSdk().ask(gemini.url).text,
            NewSdk().ask(other.url, SAMPLE + b"\n% other bytes").text,
        }
    assert len(answers) == 1


def test_a_caller_s_own_schema_is_filled(gemini: GeminiServer, sdk: Sdk) -> None:
    """Strings, booleans and enums of a schema that the service does not know come back valid."""
    item = {
        "type": "object",
        "required": ["question", "answer", "difficulty"],
        "properties": {
            "question": {"type": "string"},
            "answer": {"type": "boolean"},
            "difficulty": {"type": "string", "format": "enum", "enum": ["easy", "hard"]},
        },
    }
    seen = json.loads(sdk.ask(gemini.url, schema={"type": "array", "items": item}).text)
    assert len(seen) == 10
    for found in seen:
        jsonschema.validate(found, item)


def test_a_json_schema_is_filled(gemini: GeminiServer) -> None:
    """`responseJsonSchema`, which only google-genai can send, takes references and null types."""
    schema = {
        "type": "object",
        "properties": {"cards": {"type": "array", "items": {"$ref": "#/$defs/card"}}},
        "required": ["cards"],
        "$defs": {
            "card": {
                "type": "object",
                "properties": {"front": {"type": "string"}, "back": {"type": ["string", "null"]}},
                "required": ["front", "back"],
                "additionalProperties": False,
            }
        },
    }
    answer = _post(gemini.url, config={"responseMimeType": "application/json", "responseJsonSchema": schema}).json()
    made = json.loads(answer["candidates"][0]["content"]["parts"][0]["text"])
    jsonschema.validate(made, schema)
    assert len(made["cards"]) == 10


def test_without_json_mode_the_answer_is_fenced(gemini: GeminiServer, sdk: Sdk) -> None:
    """A model that is not held to JSON writes Markdown around it."""
    text = sdk.ask(gemini.url, schema=None).text
    assert text.startswith("```json\n")
    assert json.loads(text.removeprefix("```json\n").removesuffix("\n```"))["questions"]


def test_pages_without_text_get_an_empty_answer(gemini: GeminiServer, sdk: Sdk) -> None:
    """The stand-in cannot read scans: STOP with no question."""
    seen = sdk.ask(gemini.url, from_texts(["", ""]))
    assert (json.loads(seen.text), seen.finish) == ({"questions": []}, "STOP")


def test_tokens_are_counted_as_google_counts_them(gemini: GeminiServer, sdk: Sdk) -> None:
    """560 tokens a page, a quarter of the characters out, and thoughts that only the total shows to the old SDK."""
    seen = sdk.ask(gemini.url)
    tokens_in, tokens_out, total = seen.tokens
    assert 5600 < tokens_in < 5700
    assert abs(tokens_out - len(seen.text) / 4) <= 1
    assert total - tokens_in - tokens_out == 320


def test_a_small_output_limit_cuts_the_answer(gemini: GeminiServer, sdk: Sdk) -> None:
    """Thoughts count within the limit, so a small one leaves a cut answer, and a tiny one nothing at all."""
    seen = sdk.ask(gemini.url, max_output_tokens=500)
    assert (seen.finish, len(seen.text)) == ("MAX_TOKENS", 180 * 4)
    seen = sdk.ask(gemini.url, max_output_tokens=300)
    assert (seen.finish, seen.text) == ("MAX_TOKENS", "")


def test_forty_slow_calls_run_side_by_side() -> None:
    """Forty slow calls are all in work at the same time."""
    with ThreadPoolExecutor(40) as pool, GeminiServer(latency=120.0) as gemini:
        for _ in range(40):
            pool.submit(_post, gemini.url)
        eventually(lambda: gemini.most_at_once() == 40, "forty calls at once", 60)


def test_one_connection_serves_many_calls(gemini: GeminiServer) -> None:
    """Connections are kept, and a small answer does not wait for a delayed acknowledgement."""
    connection = http.client.HTTPConnection(gemini.url.removeprefix("http://"), timeout=20)
    with contextlib.closing(connection):
        connection.connect()
        first = connection.sock
        took = []
        for _ in range(40):
            began = time.monotonic()
            connection.request("GET", "/v1beta/models", headers={"x-goog-api-key": "k"})
            assert json.load(connection.getresponse())["models"]
            took.append(time.monotonic() - began)
        # Linux delays an acknowledgement by 40 ms: it would do so in every call.
        assert min(took) < 0.03
        assert connection.sock is first


# --- refusals ---------------------------------------------------------------------------------------------------------


def _post(
    url: str,
    *,
    pdf: bytes = SAMPLE,
    prompt: str = "Write.",
    config: Mapping[str, Any] | None = None,
    model: str = "gemini-3.8-flash",
    base: str = "/v1beta",
    session: requests.Session | None = None,
    **more: Any,
) -> requests.Response:
    """Post a request as plain JSON."""
    parts = [
        {"inline_data": {"mime_type": "application/pdf", "data": base64.b64encode(pdf).decode()}},
        {"text": prompt},
    ]
    body = {"contents": [{"role": "user", "parts": parts}], "generationConfig": config or {}, **more}
    post = session.post if session else requests.post
    return post(f"{url}{base}/models/{model}:generateContent", json=body, headers={"x-goog-api-key": "k"}, timeout=20)


def _refusal(sdk: Sdk, ask: Callable[[], object]) -> tuple[int, Mapping[str, Any]]:
    """Return code and body of the error that an SDK raises."""
    with pytest.raises((core.GoogleAPICallError, new_errors.APIError)) as raised:
        ask()
    error: Any = raised.value
    if isinstance(error, new_errors.APIError):
        return error.code, error.details["error"]
    return int(error.code), error.response.json()["error"]


def test_a_wrong_key_is_refused_as_google_refuses_it(gemini: GeminiServer, sdk: Sdk) -> None:
    """400 with an ErrorInfo whose reason is API_KEY_INVALID."""
    code, error = _refusal(sdk, lambda: sdk.ask(gemini.url, key="invalid-key"))
    assert (code, error["message"]) == (400, "API key not valid. Please pass a valid API key.")
    info = error["details"][0]
    assert info["@type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert info["reason"] == "API_KEY_INVALID"
    assert _refusal(sdk, lambda: sdk.models(gemini.url, key="invalid-key"))[0] == 400


def test_which_keys_are_valid_can_be_said(sdk: Sdk) -> None:
    """With `keys` only those are valid."""
    with GeminiServer(keys={"right"}) as gemini:
        assert sdk.ask(gemini.url, key="right").finish == "STOP"
        assert _refusal(sdk, lambda: sdk.ask(gemini.url, key="AQ.other"))[0] == 400


def test_a_missing_key_is_refused(gemini: GeminiServer) -> None:
    """No header and no `key` in the query is a wrong key too."""
    url = f"{gemini.url}/v1beta/models/gemini-3.8-flash"
    assert requests.get(url, timeout=5).json()["error"]["details"][0]["reason"] == "API_KEY_INVALID"
    assert requests.get(f"{url}?key=k", timeout=5).ok


def test_an_unknown_model_is_refused(gemini: GeminiServer, sdk: Sdk) -> None:
    """404 with the model's name."""
    code, error = _refusal(sdk, lambda: sdk.ask(gemini.url, model="gpt-oss"))
    assert code == 404
    assert error["message"].startswith("models/gpt-oss is not found for API version v1beta")


def test_models_can_be_listed_and_looked_up(gemini: GeminiServer, sdk: Sdk) -> None:
    """`models.list` names the current models; one can be asked for by name."""
    assert "models/gemini-3.8-flash" in sdk.models(gemini.url)
    headers = {"x-goog-api-key": "k"}
    found = requests.get(f"{gemini.url}/v1beta/models/gemini-3.8-flash", headers=headers, timeout=5).json()
    assert found["supportedGenerationMethods"] == ["generateContent"]
    assert requests.get(f"{gemini.url}/v1beta/models/unheard-of", headers=headers, timeout=5).status_code == 404
    gemini.models = {"my-model"}
    assert sdk.models(gemini.url) == ["models/my-model"]


NO_PAGES = "The document has no pages."
BARE = "Request contains an invalid argument."


@pytest.mark.parametrize(
    ("pdf", "says"),
    [
        (b"not a PDF", NO_PAGES),
        (SAMPLE[:4000], NO_PAGES),
        (from_texts(["secret"], password="x"), BARE),
    ],
    ids=["not a PDF", "cut", "locked"],
)
def test_a_pdf_that_cannot_be_read_is_refused(gemini: GeminiServer, sdk: Sdk, pdf: bytes, says: str) -> None:
    """400, and of a locked PDF Google says no more than that an argument is invalid."""
    code, error = _refusal(sdk, lambda: sdk.ask(gemini.url, pdf))
    assert (code, error["message"]) == (400, says)


def test_more_than_a_thousand_pages_are_refused(gemini: GeminiServer) -> None:
    """The API's own limit."""
    answer = _post(gemini.url, pdf=from_texts(["x"] * 1001))
    assert answer.status_code == 400
    assert "1001 pages" in answer.json()["error"]["message"]


STRING = {"type": "STRING"}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "ARRAY", "items": STRING, "minItems": 1},
        {"type": "ARRAY", "items": STRING, "max_items": "3"},
        {"type": "OBJECT", "properties": {"a": {"type": "STRING", "pattern": "x"}}},
        {"type": "OBJECT", "properties": {"a": {"anyOf": [{"type": "STRING", "maxLength": 3}]}}},
        {"type": "INTEGER", "minimum": 1},
        {"type": "OBJECT", "properties": {}, "additionalProperties": False},
        {"type": ["string", "null"]},
    ],
    ids=json.dumps,
)
def test_schemas_that_google_refuses_are_refused(gemini: GeminiServer, schema: Mapping[str, Any]) -> None:
    """Bounds, patterns, and what `responseSchema` does not know."""
    config = {"responseMimeType": "application/json", "responseSchema": schema}
    answer = _post(gemini.url, config=config)
    assert (answer.status_code, answer.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")


def test_a_property_may_be_named_like_a_bound(gemini: GeminiServer) -> None:
    """`pattern` as the name of a field is no pattern."""
    schema = {"type": "OBJECT", "properties": {"pattern": STRING, "minimum": STRING}}
    assert _post(gemini.url, config={"responseMimeType": "application/json", "responseSchema": schema}).ok


@pytest.mark.parametrize(
    ("config", "model", "status"),
    [
        ({"thinkingConfig": {"thinkingLevel": "minimal"}}, "gemini-3.8-flash", 400),
        ({"thinking_config": {"thinking_level": "MINIMAL"}}, "gemini-3.8-flash", 400),
        ({"thinkingConfig": {"thinkingLevel": "minimal"}}, "gemini-3.5-flash-lite", 200),
        ({"thinkingConfig": {"thinkingLevel": "low"}}, "gemini-3.8-flash", 200),
        ({"thinkingConfig": {"thinkingLevel": "low"}}, "gemini-2.5-flash", 400),
        ({"thinkingConfig": {"thinkingLevel": "low", "thinkingBudget": 10}}, "gemini-3.8-flash", 400),
        ({"responseSchema": STRING}, "gemini-3.8-flash", 400),
        ({"responseSchema": STRING, "responseJsonSchema": STRING}, "gemini-3.8-flash", 400),
        ({"maxOutputTokens": "many"}, "gemini-3.8-flash", 400),
    ],
    ids=str,
)
def test_settings_are_checked_as_google_checks_them(
    gemini: GeminiServer, config: Mapping[str, Any], model: str, status: int
) -> None:
    """Thinking levels by model, and what excludes each other."""
    assert _post(gemini.url, config=config, model=model).status_code == status


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"contents": 5}', b'{"contents": [{"role": "model", "parts": []}]}']
)
def test_a_request_that_makes_no_sense_is_a_400(gemini: GeminiServer, body: bytes) -> None:
    """Never a 500, and the connection stays usable."""
    with requests.Session() as session:
        session.headers["x-goog-api-key"] = "k"
        url = f"{gemini.url}/v1beta/models/gemini-3.8-flash:generateContent"
        for _ in range(2):
            assert session.post(url, data=body, timeout=5).status_code == 400


def test_a_base_path_and_both_versions_are_served(gemini: GeminiServer) -> None:
    """A proxy's base path before the version is ignored; other paths are 404."""
    assert _post(gemini.url, base="/base/v1").ok
    assert _post(gemini.url, base="/v1beta").ok
    assert _post(gemini.url, base="/v2").status_code == 404


# --- faults -----------------------------------------------------------------------------------------------------------

HTTP_FAULTS = [
    (Fault.bad_key(), 400, core.BadRequest),
    (Fault.bare_400(), 400, core.BadRequest),
    (Fault.country(), 400, core.BadRequest),
    (Fault.unauthenticated(), 401, core.Unauthorized),
    (Fault.no_credit(), 402, core.GoogleAPICallError),
    (Fault.forbidden(), 403, core.Forbidden),
    (Fault.no_model(), 404, core.NotFound),
    (Fault.http(408), 408, core.GoogleAPICallError),
    (Fault.http(413), 413, core.GoogleAPICallError),
    (Fault.per_minute(), 429, core.TooManyRequests),
    (Fault.per_day(), 429, core.TooManyRequests),
    (Fault.limit_zero(), 429, core.TooManyRequests),
    (Fault.http(499), 499, core.GoogleAPICallError),
    (Fault.http(500), 500, core.InternalServerError),
    (Fault.bad_gateway(), 502, core.BadGateway),
    (Fault.overloaded(), 503, core.ServiceUnavailable),
    (Fault.http(504), 504, core.GatewayTimeout),
]


@pytest.mark.parametrize(("fault", "status", "kind"), HTTP_FAULTS, ids=lambda value: getattr(value, "kind", str(value)))
def test_http_errors_reach_the_caller(
    gemini: GeminiServer, sdk: Sdk, fault: Fault, status: int, kind: type[Exception]
) -> None:
    """Each status raises the SDK's own error class, and is gone with the next call."""
    gemini.script(replace(fault, times=None))
    expected = kind if sdk.name == "google-generativeai" else new_errors.APIError
    with pytest.raises(expected) as raised:
        sdk.ask(gemini.url)
    assert raised.value.code == status  # type: ignore[attr-defined]
    gemini.clear_faults()
    assert sdk.ask(gemini.url).finish == "STOP"
    assert [call.status for call in gemini.calls()][-2:] == [status, 200]
    assert gemini.calls()[0].fault == fault.kind


def test_a_quota_per_minute_says_when_to_ask_again(gemini: GeminiServer, sdk: Sdk) -> None:
    """RetryInfo and QuotaFailure stand in the details, as dictionaries in both SDKs."""
    gemini.script(Fault.per_minute(retry_after=1.5), Fault.per_day(), Fault.limit_zero())
    for quota, words in (("PerMinute", "retry in 1.5s"), ("PerDay", "limit: 20"), ("PerMinute", "limit: 0")):
        _, error = _refusal(sdk, lambda: sdk.ask(gemini.url))
        details = {detail["@type"].rpartition(".")[2]: detail for detail in error["details"]}
        assert quota in details["QuotaFailure"]["violations"][0]["quotaId"]
        assert details["RetryInfo"]["retryDelay"].endswith("s")
        assert words in error["message"]
        assert "model: gemini-3.8-flash" in error["message"]


@pytest.mark.parametrize("reason", FINISH_REASONS)
def test_every_finish_reason(gemini: GeminiServer, sdk: Sdk, reason: str) -> None:
    """An SDK that knows a reason names it; the old one hands on the number of a younger one."""
    gemini.script(Fault.finished(reason, "partial"))
    if sdk.name == "google-genai":
        with _ignored_warnings():
            seen = sdk.ask(gemini.url)
        # After CONTINUATION younger versions ask on by themselves.
        assert seen.finish == reason or (reason == "CONTINUATION" and len(gemini.calls()) > 1)
    else:
        names: Any = api.Candidate.FinishReason
        known = {member.value: member.name for member in names}
        seen = sdk.ask(gemini.url)
        assert seen.finish == known.get(FINISH_REASONS[reason], FINISH_REASONS[reason])
    if reason != "CONTINUATION":
        assert 0 < len(seen.text) < 4000
        with pytest.raises(json.JSONDecodeError):
            json.loads(seen.text)


@contextlib.contextmanager
def _ignored_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("reason", BLOCK_REASONS)
def test_every_block_reason(gemini: GeminiServer, sdk: Sdk, reason: str) -> None:
    """A blocked prompt has no candidate; both the reasons of today and one of tomorrow can be sent."""
    gemini.script(Fault.blocked(reason))
    with _ignored_warnings():
        seen = sdk.ask(gemini.url)
    assert (seen.finish, seen.text) == (None, "")
    names: Any = api.GenerateContentResponse.PromptFeedback.BlockReason
    known = {member.value: member.name for member in names}
    number = BLOCK_REASONS[reason]
    if sdk.name == "google-generativeai":
        assert seen.block == (known.get(number, number) if number else None)
    assert gemini.calls()[0].finish == f"blocked: {reason}"


@pytest.mark.parametrize(
    "fault",
    [
        Fault.finished("STOP"),
        Fault.finished("STOP", "split"),
        Fault.finished("STOP", "signature"),
        Fault.finished("MAX_TOKENS"),
        Fault.bare_list(),
        Fault.fenced(),
    ],
    ids=lambda fault: f"{fault.kind} {fault.finish} {fault.parts}",
)
def test_forms_in_which_the_whole_answer_comes(gemini: GeminiServer, sdk: Sdk, fault: Fault) -> None:
    """In two parts, with a signature, as a bare list or in a fence: the questions are all there."""
    true = json.loads(sdk.ask(gemini.url).text)
    gemini.script(fault)
    with _ignored_warnings():
        text = sdk.ask(gemini.url).text
    made = json.loads(text.removeprefix("```json\n").removesuffix("\n```"))
    assert made == (true["questions"] if fault.kind == "bare_list" else true)


def test_a_thought_comes_before_the_answer(gemini: GeminiServer, sdk: Sdk) -> None:
    """google-genai leaves thoughts out; the old SDK does not know them and hands them on."""
    gemini.script(Fault.finished("STOP", "thought"))
    text = sdk.ask(gemini.url).text
    assert text.startswith("Let me think") == (sdk.name == "google-generativeai")


@pytest.mark.parametrize(
    "fault",
    [
        Fault.finished("STOP", "none"),
        Fault.finished("SAFETY", "no_content"),
        Fault.finished("STOP", "empty"),
        Fault.no_candidates(),
        Fault.empty_object(),
    ],
    ids=lambda fault: f"{fault.kind} {fault.parts}",
)
def test_answers_that_hold_nothing(gemini: GeminiServer, sdk: Sdk, fault: Fault) -> None:
    """No text, and the old SDK counts no token as an answer."""
    gemini.script(fault)
    seen = sdk.ask(gemini.url)
    assert seen.text == ""
    assert seen.tokens[1] == 0


@pytest.mark.parametrize(
    "fault", [Fault.not_json(), Fault.answer("{]"), Fault.answer('{"questions": [')], ids=lambda fault: fault.text
)
def test_an_answer_given_by_the_test(gemini: GeminiServer, sdk: Sdk, fault: Fault) -> None:
    """STOP with any text at all."""
    gemini.script(fault)
    assert (sdk.ask(gemini.url).text, sdk.ask(gemini.url).finish) == (fault.text, "STOP")


@pytest.mark.parametrize("fault", [Fault.empty_body(), Fault.html(), Fault.cut_json()], ids=lambda fault: fault.kind)
def test_bodies_that_are_not_google_s(gemini: GeminiServer, sdk: Sdk, fault: Fault) -> None:
    """Nothing, a page of a proxy, JSON cut off: ParseError in the old SDK."""
    gemini.script(fault)
    if sdk.name == "google-generativeai":
        with pytest.raises(ParseError):
            sdk.ask(gemini.url)
    elif fault.kind == "empty_body":
        assert sdk.ask(gemini.url).text == ""
    else:
        with pytest.raises((json.JSONDecodeError, new_errors.APIError)):
            sdk.ask(gemini.url)
    assert gemini.calls()[0].status == 200


@pytest.mark.parametrize("when", ["unread", "read", "answering"])
def test_dropped_connections(gemini: GeminiServer, sdk: Sdk, when: Any) -> None:
    """Before or after the request is read, or in the middle of the answer: an error of the HTTP library."""
    gemini.script(Fault.dropped(when))
    with pytest.raises(Exception) as raised:  # noqa: PT011 - three HTTP libraries, each with classes of its own
        sdk.ask(gemini.url)
    assert type(raised.value).__module__.partition(".")[0] in {"requests", "httpx", "httpx2"}
    assert sdk.ask(gemini.url).finish == "STOP"
    eventually(lambda: gemini.calls()[0].finish == "dropped", "the journal's entry")
    assert [call.status for call in gemini.calls()] == [0, 200]


def test_a_late_answer_runs_into_the_caller_s_time_out(gemini: GeminiServer, sdk: Sdk) -> None:
    """A delay longer than the time-out is a time-out; one shorter is an answer."""
    gemini.script(Fault.wait(30), Fault.wait(0.2))
    with pytest.raises(Exception, match=r"(?i)timed out"):
        sdk.ask(gemini.url, timeout=0.3)
    began = time.monotonic()
    assert sdk.ask(gemini.url).finish == "STOP"
    assert time.monotonic() - began >= 0.2


def test_a_dripping_body_outlives_the_caller_s_time_out(gemini: GeminiServer, sdk: Sdk) -> None:
    """The SDKs' time-out is for one read, so a body that drips passes it."""
    gemini.script(Fault.slow(1.5))
    began = time.monotonic()
    assert sdk.ask(gemini.url, timeout=0.6).finish == "STOP"
    assert time.monotonic() - began >= 1.4


def test_faults_come_in_order_and_are_used_up(gemini: GeminiServer) -> None:
    """`times` says how often; None is for ever, until they are cleared."""
    gemini.script(Fault.overloaded(times=2), Fault.http(500), Fault.per_day(times=None))
    assert [_post(gemini.url).status_code for _ in range(6)] == [503, 503, 500, 429, 429, 429]
    gemini.clear_faults()
    assert _post(gemini.url).status_code == 200


def test_a_fault_can_wait_for_its_pages_or_its_prompt(gemini: GeminiServer) -> None:
    """`match` looks at the page texts, white space collapsed, and at the prompt."""
    gemini.script(Fault.http(500, match="pilot of station 7 boards"), Fault.overloaded(match="paraphrase"))
    assert _post(gemini.url, pdf=prose(3)).status_code == 200
    assert _post(gemini.url, pdf=prose(3, start=5)).status_code == 500
    assert _post(gemini.url, pdf=prose(3, start=5), prompt="Please paraphrase.").status_code == 503
    assert _post(gemini.url, pdf=prose(3, start=5)).status_code == 200


# --- journal ----------------------------------------------------------------------------------------------------------


def test_the_journal_tells_what_was_asked(gemini: GeminiServer, sdk: Sdk) -> None:
    """Time, model, SDK, pages, prompt and outcome of each call."""
    before = time.time()
    sdk.ask(gemini.url, prompt="Ask about water.")
    (call,) = gemini.calls()
    assert before <= call.wall <= time.time()
    assert (call.model, call.sdk) == ("gemini-3.8-flash", sdk.name)
    assert (call.page_count, len(call.pages), call.status, call.finish) == (10, 10, 200, "STOP")
    assert call.pdf_sha256 == hashlib.sha256(SAMPLE).hexdigest()
    assert "Ask about water." in call.prompt
    assert "You write exams." in call.prompt
    assert call.first_page.startswith("Water on the Move")
    assert call.duration is not None
    gemini.clear_calls()
    assert gemini.calls() == []


def test_pages_are_recognised_in_whatever_file_they_come(gemini: GeminiServer) -> None:
    """The digest of a page depends on its text alone, so tests can count how often a page was asked about."""
    with Document.open(SAMPLE, max_bytes=10**8, max_pages=100) as document:
        _post(gemini.url, pdf=document.cut([2, 3]))
        _post(gemini.url, pdf=document.cut([3]))
    _post(gemini.url)
    two, one, whole = (call.pages for call in gemini.calls())
    assert (two, one) == (whole[1:3], whole[2:3])


# --- processes --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "superexam_rq.sandbox.gemini", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _where(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("Gemini stand-in (not Gemini)")
    return line.rpartition("=")[2].strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_of_its_own_is_steered_over_http(number: signal.Signals) -> None:
    """It says where it listens, takes faults and settings, shows its journal, and stops within a second."""
    with _process("--port", "0") as process:
        url = _where(process)
        faults = [{"kind": "overloaded", "match": "Write"}, {"kind": "http", "status": 500, "times": None}]
        assert requests.post(f"{url}/sandbox/faults", json=faults, timeout=5).ok
        assert requests.post(f"{url}/sandbox/settings", json={"latency": 0.3}, timeout=5).ok
        began = time.monotonic()
        assert [_post(url).status_code for _ in range(3)] == [503, 500, 500]
        assert time.monotonic() - began >= 0.9
        assert requests.delete(f"{url}/sandbox/faults", timeout=5).ok
        assert _post(url).status_code == 200
        journal = requests.get(f"{url}/sandbox/calls", timeout=5).json()
        assert [call["status"] for call in journal] == [503, 500, 500, 200]
        assert requests.delete(f"{url}/sandbox/calls", timeout=5).ok
        assert requests.get(f"{url}/sandbox/calls", timeout=5).json() == []
        wrong = requests.post(f"{url}/sandbox/faults", json=[{"kind": "nope"}], timeout=5)
        assert (wrong.status_code, "unknown kind" in wrong.json()["error"]) == (422, True)
        assert requests.post(f"{url}/sandbox/settings", json={"latencyy": 1}, timeout=5).status_code == 422
        # In the middle of a call that would take a minute.
        requests.post(f"{url}/sandbox/settings", json={"latency": 60}, timeout=5)
        with ThreadPoolExecutor(1) as pool:
            hanging = pool.submit(_post, url)
            eventually(lambda: requests.get(f"{url}/sandbox/calls", timeout=5).json(), "the call")
            began = time.monotonic()
            process.send_signal(number)
            assert process.wait(timeout=5) == 0
            assert time.monotonic() - began < 10
            assert isinstance(hanging.exception(), requests.ConnectionError)
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_taken_port_is_one_clear_line() -> None:
    """Exit code 1 and one line, no traceback; a port that was in use a moment ago is free."""
    with GeminiServer() as gemini, requests.Session() as session:
        _post(gemini.url, session=session)
        gemini_url = gemini.url
        port = gemini_url.rpartition(":")[2]
        with _process("--port", port) as process:
            assert process.wait(timeout=20) == 1
            assert process.stderr is not None
            assert process.stderr.read() == (
                f"Gemini stand-in: port {port} on 127.0.0.1 is taken: choose another with --port\n"
            )
    with GeminiServer(port=int(port)) as again:
        assert again.url == gemini_url


def test_a_port_that_someone_else_listens_on_is_refused() -> None:
    """Also by one who would share it, and also on all addresses."""
    for address in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind((address, 0))
            taken.listen()
            with pytest.raises(OSError, match="in use"):
                GeminiServer(port=taken.getsockname()[1]).start()


def test_stopping_leaves_nothing_behind() -> None:
    """No thread and no open port, also while calls are running and connections are kept."""
    before = set(threading.enumerate())
    with ThreadPoolExecutor(4) as pool, requests.Session() as session:
        with GeminiServer() as gemini:
            url = gemini.url
            _post(url, session=session)
            gemini.latency = 60
            running = [pool.submit(_post, gemini.url) for _ in range(4)]
            eventually(lambda: len(gemini.calls()) == 5, "the calls")
            began = time.monotonic()
        assert time.monotonic() - began < 30
        assert all(isinstance(call.exception(), requests.ConnectionError) for call in running)
        pool.shutdown()
        eventually(lambda: set(threading.enumerate()) <= before, "the end of the server's threads", 2)
        with pytest.raises(requests.ConnectionError):
            requests.get(url, timeout=2)
    gemini.stop()


def test_the_url_is_known_only_once_started() -> None:
    """Asking for it before is a mistake that says what to do."""
    with pytest.raises(RuntimeError, match="call start"):
        _ = GeminiServer().url
