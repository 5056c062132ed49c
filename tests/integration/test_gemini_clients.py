"""Both SDKs against the stand-in: what each answer and each error of Gemini makes the service do."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
from fakeredis import FakeRedis

from superexam_rq import errors, gemini, pdf
from superexam_rq.checkpoints import Checkpoints
from superexam_rq.config import Settings
from superexam_rq.gemini import DEFAULT_RESPONSE_SCHEMA, GeminiClient, GeminiSlow, ModelRequest, Outcome
from superexam_rq.generation import Ask, Cost, Generation, Source, generate
from superexam_rq.questions import parse_answer
from superexam_rq.sandbox.gemini import BLOCK_REASONS, FINISH_REASONS, Fault, GeminiServer
from superexam_rq.sandbox.processes import free_port
from superexam_rq.throttle import Throttle
from tests.clocks import HastyEvent
from tests.pdfs import prose

KEY = "a-secret-key"
MODEL = "gemini-flash-latest"
# Stands on page 1 only.
PAGE_1 = "station 1 boards"


@pytest.fixture(scope="module")
def server() -> Iterator[GeminiServer]:
    """Run one stand-in."""
    with GeminiServer() as running:
        yield running


@pytest.fixture(autouse=True)
def _clean(server: GeminiServer) -> None:
    server.clear_faults()
    server.clear_calls()


@pytest.fixture(scope="module", params=["google-generativeai", "google-genai"])
def settings(request: pytest.FixtureRequest, server: GeminiServer) -> Settings:
    """Choose each SDK in turn."""
    return Settings(gemini_api_key=KEY, gemini_sdk=request.param, gemini_api_endpoint=server.url, gemini_concurrency=32)


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[GeminiClient]:
    """Connect once: a client serves many calls."""
    connected = gemini.connect(settings)
    yield connected
    connected.close()


def request_for(document: bytes, model: str = MODEL) -> ModelRequest:
    """Return a request about a PDF."""
    return ModelRequest(model, document, "You write exams.", "Ask about these pages.", DEFAULT_RESPONSE_SCHEMA)


TWO_PAGES = prose(2)
FOUR_PAGES = prose(4)


@dataclass(frozen=True)
class Row:
    """Say what a fault is to the client, and what the service does if it comes with page 1 each time.

    `calls` are those that page 1 was sent in; the batch has two pages, another batch is always answered.
    """

    fault: Fault
    says: Outcome | type[Exception]
    calls: int
    warning: str = ""
    raises: type[Exception] | None = field(default=None)


CUT_SHORT = "Perhaps not all questions from page 1: the answer was cut short"
COPIED = "No questions from page 1: the model would have copied the text word for word"
FILTERED = "No questions from pages 1-2: refused by the model's filters"
UNUSABLE = "No questions from pages 1-2: the model gave no usable answer"
UNREADABLE = "No questions from page 1: Gemini could not read the PDF there"

_TRUNCATED = {"MAX_TOKENS", "CONTINUATION"}
_RECITED = {"RECITATION", "IMAGE_RECITATION"}
_BLOCKED = {
    "SAFETY",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "MODEL_ARMOR",
}


def _finished(reason: str) -> Row:
    """Say what a finish reason means that comes with a part of the answer, as all but STOP may."""
    fault = Fault.finished(reason, "partial", times=None, match=PAGE_1)
    if reason in _TRUNCATED:
        return Row(fault, Outcome.TRUNCATED, 2, CUT_SHORT)
    if reason in _RECITED:
        return Row(fault, Outcome.RECITATION, 3, COPIED)
    if reason in _BLOCKED:
        return Row(fault, Outcome.BLOCKED, 1, FILTERED)
    return Row(fault, Outcome.UNKNOWN, 2, UNUSABLE)


def _http(status: int, calls: int = 4, error: type[Exception] = errors.GeminiUnavailable) -> Row:
    return Row(Fault.http(status, times=None, match=PAGE_1), error, calls, raises=error)


def _told(status: int, message: str, error: type[Exception]) -> Row:
    return Row(Fault.http(status, message, times=None, match=PAGE_1), error, 1, raises=error)


def _rows() -> dict[str, Row]:
    on: dict[str, Any] = {"times": None, "match": PAGE_1}
    unavailable, key, quota = errors.GeminiUnavailable, errors.GeminiKeyRefused, errors.GeminiQuotaExhausted
    rows = {f"finish {reason}": _finished(reason) for reason in FINISH_REASONS if reason != "STOP"}
    rows |= {
        f"block {reason}": Row(Fault.blocked(reason, **on), Outcome.BLOCKED, 1, FILTERED) for reason in BLOCK_REASONS
    }
    rows["block BLOCK_REASON_UNSPECIFIED"] = Row(
        Fault.blocked("BLOCK_REASON_UNSPECIFIED", **on), Outcome.UNKNOWN, 2, UNUSABLE
    )
    rows |= {
        f"STOP, {parts}": Row(Fault.finished("STOP", parts, **on), Outcome.COMPLETE, 1)
        for parts in ("complete", "split", "thought", "signature")
    }
    rows |= {
        f"STOP, {parts}": Row(Fault.finished("STOP", parts, **on), Outcome.EMPTY, 2, UNUSABLE)
        for parts in ("none", "no_content", "empty")
    }
    # Without a part of the answer, they mean the same.
    rows |= {
        f"finish {reason}, no parts": replace(_finished(reason), fault=Fault.finished(reason, "none", **on))
        for reason in ("SAFETY", "RECITATION", "OTHER")
    }
    # Cut short before the first question is no answer.
    rows["finish MAX_TOKENS, no parts"] = Row(
        Fault.finished("MAX_TOKENS", "none", **on), Outcome.TRUNCATED, 2, UNUSABLE.replace("pages 1-2", "page 1")
    )
    rows |= {
        "STOP, cut in the middle": Row(
            Fault.finished("STOP", "partial", keep=0.01, **on), Outcome.COMPLETE, 2, UNUSABLE
        ),
        "STOP, not JSON": Row(Fault.not_json(**on), Outcome.COMPLETE, 2, UNUSABLE),
        "STOP, in a fence": Row(Fault.fenced(**on), Outcome.COMPLETE, 1),
        "STOP, a bare list": Row(Fault.bare_list(**on), Outcome.COMPLETE, 1),
        "no candidates": Row(Fault.no_candidates(**on), Outcome.UNKNOWN, 2, UNUSABLE),
        "empty object": Row(Fault.empty_object(**on), Outcome.UNKNOWN, 2, UNUSABLE),
        "empty body": Row(Fault.empty_body(**on), unavailable, 4, raises=unavailable),
        "HTML with 200": Row(Fault.html(**on), unavailable, 4, raises=unavailable),
        "cut JSON": Row(Fault.cut_json(**on), unavailable, 4, raises=unavailable),
        "dropped after reading": Row(Fault.dropped("read", **on), unavailable, 4, raises=unavailable),
        "dropped while answering": Row(Fault.dropped("answering", **on), unavailable, 4, raises=unavailable),
        "400 key": Row(Fault.bad_key(**on), key, 1, raises=key),
        "400 location": Row(Fault.country(**on), key, 1, raises=key),
        "400 bare": Row(Fault.bare_400(**on), errors.GeminiRequestRefused, 2, UNREADABLE),
        "413": Row(Fault.http(413, **on), errors.GeminiRequestRefused, 2, UNREADABLE),
        "401": Row(Fault.unauthenticated(**on), key, 1, raises=key),
        "402": Row(Fault.no_credit(**on), quota, 1, raises=quota),
        "403": Row(Fault.forbidden(**on), key, 1, raises=key),
        "404": Row(Fault.no_model(**on), errors.GeminiModelUnknown, 1, raises=errors.GeminiModelUnknown),
        "429 per minute": Row(Fault.per_minute(0.05, **on), errors.RateLimited, 4, raises=errors.RateLimited),
        "429 without a delay": Row(Fault.per_minute(None, **on), errors.RateLimited, 4, raises=errors.RateLimited),
        "429 per day": Row(Fault.per_day(**on), quota, 1, raises=quota),
        "429 limit 0": Row(Fault.limit_zero(**on), quota, 1, raises=quota),
        "429 bare": _http(429, error=errors.RateLimited),
        "429 no credit": _told(429, "Your prepayment credits are depleted.", quota),
        "429 spending cap": _told(429, "Your project has exceeded its monthly spending cap.", quota),
        "502 HTML": Row(Fault.bad_gateway(**on), unavailable, 4, raises=unavailable),
        "503": Row(Fault.overloaded(**on), unavailable, 4, raises=unavailable),
        # Two pages once, then page 1 alone.
        "504": _http(504, error=GeminiSlow),
    }
    return rows | {str(status): _http(status) for status in (408, 409, 499, 500, 501)}


TABLE = _rows()


@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE.keys())
class TestTable:
    def test_client(self, server: GeminiServer, client: GeminiClient, row: Row) -> None:
        """One call is one request, whatever comes back; errors say nothing that is not public."""
        server.script(row.fault)
        if isinstance(row.says, Outcome):
            assert client.generate(request_for(TWO_PAGES), timeout=20).outcome is row.says
        else:
            with pytest.raises(row.says) as caught:
                client.generate(request_for(TWO_PAGES), timeout=20)
            assert type(caught.value) is row.says
            text = str(caught.value)
            assert not [secret for secret in (KEY, "http://", "https://", "127.0.0.1", "/v1") if secret in text]
        assert len(server.journal) == 1

    def test_service(self, server: GeminiServer, client: GeminiClient, settings: Settings, row: Row) -> None:
        """The rest of the document is kept, or the run fails at once or as transient; no page is asked for in vain."""
        server.script(row.fault)
        if row.raises is not None:
            with pytest.raises(row.raises):
                run(client, settings)
        else:
            generation = run(client, settings)
            assert generation.warnings == [row.warning] * bool(row.warning)
            assert {3, 4} <= {page for result in generation.results for page in result.pages if result.items}
        assert sum(PAGE_1 in call.first_page for call in server.journal) == row.calls


def run(
    client: GeminiClient,
    settings: Settings,
    cost: Cost | None = None,
    model: str = MODEL,
    stop: HastyEvent | None = None,
) -> Generation:
    """Ask about four pages in two batches, without waiting."""
    redis = FakeRedis()
    with pdf.Document.open(FOUR_PAGES, max_bytes=10**7, max_pages=10) as document:
        return generate(
            [(1, 2), (3, 4)],
            source=Source("digest", document.cut),
            ask=Ask(model, "You write exams.", lambda pages: f"Ask about {pages} pages", DEFAULT_RESPONSE_SCHEMA),
            client=client,
            throttle=Throttle(redis, Settings()),
            checkpoints=Checkpoints(redis, Settings()),
            settings=settings,
            cost=cost or Cost(),
            progress=lambda done, total: None,
            stop=stop or HastyEvent(),
        )


@pytest.mark.parametrize(
    ("row", "word"),
    [("400 key", "API key"), ("400 location", "API key"), ("401", "API key"), ("403", "API key"),
     ("404", f"model named '{MODEL}'"), ("402", "quota"), ("429 no credit", "quota"), ("429 spending cap", "quota"),
     ("429 per day", "quota"), ("429 limit 0", "quota")],
)  # fmt: skip
def test_permanent_errors_say_what_to_mend(server: GeminiServer, client: GeminiClient, row: str, word: str) -> None:
    """The words of contract §3 stand in the first 60 characters."""
    server.script(TABLE[row].fault)
    with pytest.raises(errors.PermanentError) as caught:
        client.generate(request_for(TWO_PAGES), timeout=20)
    assert word in str(caught.value)[:60]


def test_a_tuned_model_is_asked_for_by_its_own_path(server: GeminiServer, client: GeminiClient) -> None:
    """The key of a test has none; what can't be a model's path is not sent at all."""
    for model in ("tunedModels/mine", "files/mine"):
        with pytest.raises(errors.GeminiModelUnknown, match=model):
            client.generate(request_for(TWO_PAGES, model), timeout=20)
    assert [call.model for call in server.journal] == ["tunedModels/mine"]


def test_a_complete_answer_is_read(client: GeminiClient) -> None:
    """Text, tokens and the model that answered come with it; the schema of the contract is followed."""
    answer = client.generate(request_for(TWO_PAGES), timeout=20)
    assert (answer.outcome, answer.reason) == (Outcome.COMPLETE, "STOP")
    item = parse_answer(answer.text)[0]
    assert list(item) == DEFAULT_RESPONSE_SCHEMA["properties"]["questions"]["items"]["required"]
    assert answer.usage.prompt_tokens > 500
    assert answer.usage.output_tokens > 50
    assert answer.model_version


def test_thoughts_are_counted_apart(client: GeminiClient, settings: Settings) -> None:
    """What the model thinks is billed, so it is counted; at the lowest level that is nothing."""
    thoughts = client.generate(request_for(TWO_PAGES), timeout=20).usage.thought_tokens
    assert (thoughts == 0) is (settings.gemini_sdk == "google-genai")


def test_the_stated_delay_is_read(server: GeminiServer, client: GeminiClient) -> None:
    """From the error's details, or else from the header."""
    header = Fault.http(429, headers={"Retry-After": "7"})
    for fault, delay in ((Fault.per_minute(37.1), 37.1), (Fault.per_minute(None), None), (header, 7.0)):
        server.script(fault)
        with pytest.raises(errors.RateLimited) as caught:
            client.generate(request_for(TWO_PAGES), timeout=20)
        assert caught.value.retry_after == delay


@pytest.mark.parametrize("fault", [Fault.wait(5), Fault.slow(5)], ids=["silent", "dripping"])
def test_a_call_ends_in_time(server: GeminiServer, client: GeminiClient, fault: Fault) -> None:
    """The time-out bounds the whole call, also an answer that keeps dripping in."""
    server.script(fault)
    begun = time.monotonic()
    with pytest.raises(GeminiSlow, match="within 1 s"):
        client.generate(request_for(TWO_PAGES), timeout=1)
    assert time.monotonic() - begun < 2.5


def test_one_client_serves_many_threads(client: GeminiClient, server: GeminiServer) -> None:
    """Each of 32 calls at once gets the answer to its own pages."""
    server.latency = 0.5
    documents = [prose(1, start=number * 1000) for number in range(1, 33)]
    try:
        with ThreadPoolExecutor(32) as pool:
            answers = pool.map(lambda document: client.generate(request_for(document), timeout=60), documents)
            for number, answer in zip(count(1), answers, strict=False):
                assert str(number * 1000) in answer.text
    finally:
        server.latency = 0.0
    assert server.most_at_once() > 10


def test_a_service_that_is_not_there_is_transient(settings: Settings) -> None:
    """A refused connection may be over in a minute."""
    away = Settings(
        gemini_api_key=KEY, gemini_sdk=settings.gemini_sdk, gemini_api_endpoint=f"http://127.0.0.1:{free_port()}"
    )
    client = gemini.connect(away)
    with pytest.raises(errors.GeminiUnavailable, match="could not be reached"):
        client.generate(request_for(TWO_PAGES), timeout=5)
    client.close()


@pytest.mark.parametrize("key", ["", "kéy", "two words"])
def test_a_key_that_is_none_is_refused_before_any_call(settings: Settings, key: str) -> None:
    """What can't be sent says so at once, without the key in the text."""
    with pytest.raises(errors.GeminiKeyRefused, match="API key") as caught:
        gemini.connect(Settings(gemini_api_key=key, gemini_sdk=settings.gemini_sdk))
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("model", ["", "../../secret", "gemini x", "gemini-x:generateContent?a=b", "x" * 200])
def test_what_can_t_be_a_model_is_refused_before_any_call(
    server: GeminiServer, client: GeminiClient, model: str
) -> None:
    """The name becomes a part of the URL."""
    with pytest.raises(errors.GeminiModelUnknown, match="model"):
        client.generate(request_for(TWO_PAGES, model), timeout=5)
    assert server.journal == []


def test_a_model_may_carry_its_path(server: GeminiServer, client: GeminiClient) -> None:
    """`models/NAME`, as Google's pages write it, is the same as `NAME`."""
    client.generate(request_for(TWO_PAGES, f"models/{MODEL}"), timeout=20)
    assert server.journal[0].model == MODEL


@pytest.mark.parametrize("settings", ["google-genai"], indirect=True)
@pytest.mark.parametrize(("model", "refused"), [("gemini-3.8-flash", 1), ("gemini-2.5-flash", 2)])
def test_the_lowest_thinking_level_is_found_once(
    server: GeminiServer, settings: Settings, model: str, refused: int
) -> None:
    """A level that the model does not take is left out for good, and costs the batch none of its calls."""
    client = gemini.connect(settings)
    cost = Cost()
    one_by_one = Settings(gemini_concurrency=1)
    assert len(run(client, one_by_one, cost, model).results) == 2
    assert [call.status for call in server.journal] == [400] * refused + [200, 200]
    assert cost.calls == 2 + refused
    client.close()


@pytest.mark.parametrize("settings", ["google-genai"], indirect=True)
def test_the_thinking_level_is_known_to_the_next_job(server: GeminiServer, settings: Settings) -> None:
    """It is kept in Redis for a day; without Redis it is found anew."""
    redis = FakeRedis()
    for refused in (1, 0):
        with closing(gemini.connect(settings, redis)) as client:
            server.clear_calls()
            run(client, Settings(gemini_concurrency=1), model="gemini-3.8-flash")
            assert [call.status for call in server.journal] == [400] * refused + [200, 200]
    assert 0 < redis.ttl(settings.key("gemini", "thinking", "models/gemini-3.8-flash")) <= 86_400


def test_waits_between_calls_keep_within_the_bound(server: GeminiServer, client: GeminiClient) -> None:
    """A batch that Gemini never answers is asked four times and waits at most 30 s in all (contract §1)."""
    server.script(Fault.overloaded(times=None, match=PAGE_1))
    waits = HastyEvent()
    with pytest.raises(errors.GeminiUnavailable):
        run(client, Settings(gemini_concurrency=1), stop=waits)
    assert [call.status for call in server.journal] == [503] * 4
    assert len(waits.waits) == 3
    assert 0 < sum(waits.waits) <= 30


def test_the_module_imports_no_sdk() -> None:
    """The SDKs take a second to import: only who calls the model imports one."""
    code = (
        "import sys, superexam_rq.gemini\n"
        "assert not {'google.generativeai', 'google.genai', 'google.protobuf', 'grpc'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("sdk", "module"), [("google-generativeai", "google.generativeai"), ("google-genai", "google.genai")]
)
def test_preload_imports_the_chosen_sdk_quietly(sdk: str, module: str) -> None:
    """The parent of the workers imports it once, without the warnings that the choice of SDK brings along."""
    code = (
        "import sys, superexam_rq.gemini as gemini\nfrom superexam_rq.config import Settings\n"
        f"gemini.preload(Settings(gemini_sdk={sdk!r}))\n"
        f"assert {module!r} in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", code], check=True)
