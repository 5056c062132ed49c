"""The engine: all batches of a document side by side, each asked until it is settled, none paid for twice.

A batch is settled when its pages have an answer, or a reason why they will have none. The ladder:

=====================  =================================================================================
what came              what is done
=====================  =================================================================================
complete               kept
truncated              asked in halves; of a single page its complete questions are kept, if any
recitation             once more with the wish to paraphrase, then page by page, then left out
blocked                left out
nothing, not JSON      once more, then left out
too large to be sent   asked in halves
request refused (400)  asked in halves; a single page is left out. Nothing else works either: the run fails
too slow (504)         asked in halves
429 with a delay       all workers wait, then once more
429, 5xx, broken off   once more after a growing, random wait; after `MAX_ASKS` the run fails as transient
key, model, quota      the run fails for good, and nothing new is started
=====================  =================================================================================

What is not here: one call (`gemini`), the limit of all workers (`throttle`), where settled batches are kept
(`checkpoints`), and what a usable question is (`questions`).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from superexam_rq import prices
from superexam_rq.checkpoints import Checkpoint, digest
from superexam_rq.errors import (
    Blocked,
    Cancelled,
    GeminiRequestRefused,
    GeminiUnavailable,
    NoQuestions,
    PdfInvalid,
    PermanentError,
    RateLimited,
    SuperExamError,
)
from superexam_rq.gemini import (
    MAX_PDF,
    GeminiClient,
    GeminiSlow,
    ModelAnswer,
    ModelRequest,
    Outcome,
    RequestAdapted,
    Usage,
)
from superexam_rq.pdf import name_pages
from superexam_rq.questions import parse_answer
from superexam_rq.throttle import MAX_PAUSE

_T = TypeVar("_T")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from superexam_rq.config import Settings

log = logging.getLogger(__name__)

Pages = tuple[int, ...]

# Contract §1: how often a batch is asked within one run. It waits at most 30 s in all between the calls: full
# jitter below 4 s after the first failure, doubled after each, is 4 + 8 + 16 at most.
MAX_ASKS = 4
_FIRST_WAIT = 4.0
# Seconds over which those who were told to wait for the same time spread.
_SPREAD = 1.0
# After so many refused requests, and none that was answered, it is not a page that Gemini can't read.
_MAX_REFUSED = 12
# Seconds between looks at `stop`, and between reports of a progress that does not move.
_TICK = 0.5
# Seconds without a new call after which the caller's thread may do other work: cuts and requests go first.
_LULL = 0.03
# Seconds that a failed run waits for the calls under way: what they answer is paid for, and kept.
_WIND_DOWN = 60.0

_PARAPHRASE = """

Use your own words throughout: paraphrase, never repeat a passage of the document of more than eight words.
Keep each sourceQuote to at most eight words."""

# Why a part has no questions, or not all; the keys are kept in checkpoints.
_BLOCKED, _RECITED, _UNUSABLE = "blocked", "recited", "unusable"
_REFUSED, _DAMAGED, _CUT_SHORT = "refused", "damaged", "cut short"
_WARNINGS = {
    _BLOCKED: "No questions from {}: refused by the model's filters",
    _RECITED: "No questions from {}: the model would have copied the text word for word",
    _UNUSABLE: "No questions from {}: the model gave no usable answer",
    _REFUSED: "No questions from {}: Gemini could not read the PDF there",
    _DAMAGED: "No questions from {}: the PDF is damaged there",
    _CUT_SHORT: "Perhaps not all questions from {}: the answer was cut short",
}
# What another run need not try again; the others cost nothing, or may go better.
_FINAL = frozenset({"", _BLOCKED, _RECITED})
_MAX_WARNING = 120
# What a summary counts.
_COUNTS = ("calls", "retries", "cached_batches", "prompt_tokens", "output_tokens", "thought_tokens")
# How a call that failed is counted; others by their error's code.
_ERROR_OUTCOMES: Mapping[type[SuperExamError], str] = {
    RateLimited: "rate_limited",
    GeminiSlow: "timeout",
    GeminiRequestRefused: "refused",
    RequestAdapted: "adapted",
}


class SupportsCheckpoints(Protocol):
    """Keep what was settled; `checkpoints.Checkpoints` in the service."""

    def get(self, name: str) -> Checkpoint | None:
        """Return what was kept under a name."""

    def put(self, name: str, checkpoint: Checkpoint) -> None:
        """Keep it."""

    def drop(self, name: str) -> None:
        """Forget it."""


class SupportsThrottle(Protocol):
    """Hold calls back; `throttle.Throttle` in the service."""

    def acquire(self, stop: threading.Event) -> bool:
        """Wait for leave to make a call; False if `stop` was set."""

    def pause(self, seconds: float) -> None:
        """Let everybody wait."""


@dataclass(frozen=True)
class Ask:
    """Say what the model is asked for; `prompt` makes the text for a PDF of so many pages."""

    model: str
    system: str
    prompt: Callable[[int], str]
    response_schema: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Give the document: a digest of its bytes, and a PDF of some of its pages (1-based), made when it is needed.

    `cut` raises `PdfInvalid` if it can read none of the pages.
    """

    digest: str
    cut: Callable[[Sequence[int]], bytes]


@dataclass(frozen=True)
class BatchResult:
    """Hold what the model wrote about `pages`; an item's `sourcePage` counts from 1 within these."""

    pages: Pages
    items: tuple[Any, ...]


@dataclass
class Cost:
    """Count what a run took; `usage` by the model that answered, of calls that were answered in this run."""

    calls: int = 0
    retries: int = 0
    cached_batches: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    usage: dict[str, Usage] = field(default_factory=dict)

    def add(self, model: str, usage: Usage) -> None:
        """Add the tokens of one answer."""
        self.usage[model] = self.usage.get(model, Usage()) + usage

    def summary(self) -> dict[str, Any]:
        """Return it as JSON, with an estimate in USD, or None if a model has no known price."""
        by_model = dict(self.usage)  # copied at once: other threads add to it while a run goes on
        total = sum(by_model.values(), Usage())
        today = datetime.now(UTC).date()
        amounts = [prices.estimate(model, usage, today) for model, usage in by_model.items()]
        known = [amount for amount in amounts if amount is not None]
        return {
            "calls": self.calls,
            "retries": self.retries,
            "cached_batches": self.cached_batches,
            "prompt_tokens": total.prompt_tokens,
            "output_tokens": total.output_tokens,
            "thought_tokens": total.thought_tokens,
            "usd": round(sum(known), 6) if len(known) == len(amounts) else None,
            "prices_as_of": prices.AS_OF.isoformat(),
            "models": sorted(by_model),
            "outcomes": dict(self.outcomes),
        }


def total_cost(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return two summaries as one: what a job's earlier runs took, and what this one takes."""
    if not before:
        return dict(now)
    counts = {name: before.get(name, 0) + now[name] for name in _COUNTS}
    amounts = (before.get("usd"), now["usd"])
    outcomes = Counter(before.get("outcomes", {})) + Counter(now["outcomes"])
    return {
        **now,
        **counts,
        "usd": None if None in amounts else round(sum(amounts), 6),
        "models": sorted({*before.get("models", ()), *now["models"]}),
        "outcomes": dict(outcomes),
    }


@dataclass(frozen=True)
class Generation:
    """Hold the batches with questions in reading order, and what the reader of the exam should know of the rest."""

    results: list[BatchResult]
    warnings: list[str]


class _Stopped(Exception):
    """End a task because the run ends."""


# Under which name it may be kept, what came of a part, and the smaller parts to ask for instead.
_Settled = tuple[str, Checkpoint, "list[_Part]"]


@dataclass(frozen=True)
class _Part:
    """Name pages that are asked for together; `place` is their place in reading order.

    `asked` goes on from the larger part that was too slow: its halves are no new batches.
    """

    place: tuple[int, int]
    pages: Pages
    asked: int = 0
    paraphrase: bool = False

    def split(self, sizes: Iterable[int]) -> list[_Part]:
        """Return parts of so many pages each, as new batches."""
        batch, start = self.place
        parts, at = [], 0
        for size in sizes:
            parts.append(_Part((batch, start + at), self.pages[at : at + size], paraphrase=self.paraphrase))
            at += size
        return parts

    def halves(self) -> list[_Part]:
        """Return the two halves of more than one page."""
        half = len(self.pages) // 2
        return self.split((len(self.pages) - half, half))


def generate(
    batches: Iterable[Sequence[int]],
    *,
    source: Source,
    ask: Ask,
    client: GeminiClient,
    throttle: SupportsThrottle,
    checkpoints: SupportsCheckpoints,
    settings: Settings,
    cost: Cost,
    progress: Callable[[int, int], None],
    stop: threading.Event,
    take: Callable[[BatchResult], bool] = lambda _result: True,
    meanwhile: Iterable[object] = (),
    parse: Callable[..., list[Any]] = parse_answer,
) -> Generation:
    """Ask for every batch of pages, up to `GEMINI_CONCURRENCY` at once, and return what came in reading order.

    `progress(pages done, pages in all)` is called from this thread, at least every second; what it raises ends
    the run. So are `take`, with each batch that has questions, in the order in which they come, and `meanwhile`,
    which is asked for its next while there is nothing else to do but wait: what it does should take milliseconds.
    `take` tells whether the batch is of any use: if none of them is, they are not kept, so that another run asks again.
    Setting `stop` ends it too; so does a signal's exception in this thread (a time-out, a cancellation):
    nothing new is called then. `generate` sets `stop` itself when it fails. `cost` is counted up while the run
    lasts, so that it is known of a failed run as well.

    Raises `Cancelled` if `stop` was set from outside, what `GeminiClient.generate` raises, `Blocked` if the
    model's filters refused everything, and `NoQuestions` if nothing came of the document.
    """
    run = _Run(source, ask, client, throttle, checkpoints, settings, cost, progress, stop, take, iter(meanwhile), parse)
    return run.generate([tuple(batch) for batch in batches])


@dataclass
class _Run:
    source: Source
    ask: Ask
    client: GeminiClient
    throttle: SupportsThrottle
    checkpoints: SupportsCheckpoints
    settings: Settings
    cost: Cost
    progress: Callable[[int, int], None]
    stop: threading.Event
    take: Callable[[BatchResult], bool]
    meanwhile: Iterator[object]
    parse: Callable[..., list[Any]]
    lock: threading.Lock = field(default_factory=threading.Lock)
    refused: int = 0
    answered: bool = False
    failed: bool = False
    last_call: float = field(default_factory=time.monotonic)

    # --- in the caller's thread ---------------------------------------------------------------------------------------

    def generate(self, batches: list[Pages]) -> Generation:
        total = sum(map(len, batches))
        settled: dict[tuple[int, int], tuple[Pages, Checkpoint]] = {}
        useless: list[str] = []
        useful = False
        running: dict[Future[_Settled], _Part] = {}
        ended: queue.SimpleQueue[Future[_Settled]] = queue.SimpleQueue()
        pool = ThreadPoolExecutor(self.settings.gemini_concurrency, thread_name_prefix="gemini")

        def submit(part: _Part) -> None:
            future = pool.submit(self._settle, part)
            running[future] = part
            future.add_done_callback(ended.put)

        try:
            for number, pages in enumerate(batches):
                submit(_Part((number, 0), pages))
            done = 0
            while running:
                self.progress(done, total)
                if self.stop.is_set() and not self.failed:
                    raise _stopped()
                with contextlib.suppress(queue.Empty):
                    future = self._next(ended)
                    if error := future.exception():
                        raise self._give_up(error, running)
                    part = running.pop(future)
                    name, checkpoint, parts = future.result()
                    for smaller in parts:
                        submit(smaller)
                    if not parts:
                        settled[part.place] = part.pages, checkpoint
                        done += len(part.pages)
                        if checkpoint.items and self.take(BatchResult(part.pages, checkpoint.items)):
                            useful = True
                        else:
                            useless.append(name)
        finally:
            # Whatever was raised, be it by a signal: nothing new is called.
            if running:
                self.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
        self.progress(total, total)
        try:
            generation = _finish([settled[place] for place in sorted(settled)])
        except NoQuestions:
            self._drop(useless)
            raise
        if not useful:
            self._drop(useless)
        return generation

    def _drop(self, names: list[str]) -> None:
        """Forget answers that were of no use: whoever tries again would fail like this run, without asking."""
        for name in names:
            self.checkpoints.drop(name)

    def _next(self, ended: queue.SimpleQueue[_T]) -> _T:
        """Return what ended next, doing other work meanwhile; raises `queue.Empty` after a tick."""
        until = time.monotonic() + _TICK
        while (now := time.monotonic()) < until:
            with contextlib.suppress(queue.Empty):
                return ended.get(timeout=max(0.0, min(self.last_call + _LULL, until) - now))
            if next(self.meanwhile, self) is self:
                break
        return ended.get(timeout=max(0.0, until - now))

    def _give_up(self, error: BaseException, running: Iterable[Future[Any]]) -> BaseException:
        """Start nothing new, let the calls under way end, and return the error that says most."""
        self.stop.set()
        started = [future for future in running if not future.cancel()]
        done, _ = wait(started, _WIND_DOWN)
        errors = [found for future in done if (found := future.exception()) and not isinstance(found, _Stopped)]
        permanent = (found for found in errors if isinstance(found, PermanentError))
        return next(permanent, None) or (error if not isinstance(error, _Stopped) else next(iter(errors), _stopped()))

    # --- in the pool's threads ----------------------------------------------------------------------------------------

    def _settle(self, part: _Part) -> _Settled:
        """Return what came of a part, or the smaller parts to ask for instead; an error stops the whole run."""
        if self.stop.is_set():
            raise _Stopped
        try:
            return self._look_up_or_ask(part)
        except _Stopped:
            raise
        except BaseException:
            # At once, not when the caller's thread gets to it.
            self.failed = True
            self.stop.set()
            raise

    def _look_up_or_ask(self, part: _Part) -> _Settled:
        ask, count = self.ask, len(part.pages)
        name = digest(self.source.digest, part.pages, ask.model, (ask.system, ask.prompt(count)), ask.response_schema)
        kept = self.checkpoints.get(name)
        if kept is not None and not kept.parts:
            with self.lock:
                self.cost.cached_batches += 1
            return name, kept, []
        if kept is not None and tuple(page for pages in kept.parts for page in pages) == part.pages:
            return name, kept, part.split(map(len, kept.parts))
        found, parts = self._ask_for(part)
        if parts:
            found = Checkpoint(parts=tuple(smaller.pages for smaller in parts))
        if found.missing in _FINAL:
            self.checkpoints.put(name, found)
        return name, found, parts

    def _ask_for(self, part: _Part) -> tuple[Checkpoint, list[_Part]]:
        single = len(part.pages) == 1
        try:
            pdf = self.source.cut(part.pages)
        except PdfInvalid as error:
            log.warning("%s", error)
            return Checkpoint(missing=_DAMAGED), []
        if len(pdf) > MAX_PDF and not single:
            return Checkpoint(), part.halves()
        unusable = 0
        while True:
            try:
                answer, part = self._answer(part, pdf)
            except GeminiRequestRefused:
                self._count_refusal()
                return (Checkpoint(missing=_REFUSED), []) if single else (Checkpoint(), part.halves())
            except _TooSlow as slow:
                return Checkpoint(), [replace(half, asked=slow.asked) for half in part.halves()]
            log.log(
                logging.DEBUG if answer.outcome is Outcome.COMPLETE else logging.INFO,
                "%s: the model's answer is %s (%s)",
                name_pages(part.pages),
                answer.outcome,
                answer.reason,
            )
            if answer.outcome is Outcome.COMPLETE:
                try:
                    return Checkpoint(items=tuple(self.parse(answer.text, complete=True))), []
                except ValueError:
                    unusable += 1
            elif answer.outcome is Outcome.TRUNCATED:
                if not single:
                    return Checkpoint(), part.halves()
                items = tuple(self.parse(answer.text, complete=False))
                return Checkpoint(items=items, note=_CUT_SHORT) if items else Checkpoint(missing=_UNUSABLE), []
            elif answer.outcome is Outcome.BLOCKED:
                return Checkpoint(missing=_BLOCKED), []
            elif answer.outcome is Outcome.RECITATION:
                if part.paraphrase or part.asked >= MAX_ASKS:
                    paraphrased = replace(part, paraphrase=True)
                    parts = [] if single else paraphrased.split([1] * len(part.pages))
                    return Checkpoint(missing=_RECITED), parts
                part = replace(part, paraphrase=True)
                continue
            else:
                unusable += 1
            if unusable == 2 or part.asked >= MAX_ASKS:
                return Checkpoint(missing=_UNUSABLE), []

    def _answer(self, part: _Part, pdf: bytes) -> tuple[ModelAnswer, _Part]:
        """Call the model until it answers, within the bounds; return the answer, and the part with its counts."""
        ask = self.ask
        prompt = ask.prompt(len(part.pages)) + (_PARAPHRASE if part.paraphrase else "")
        request = ModelRequest(ask.model, pdf, ask.system, prompt, ask.response_schema)
        asked = part.asked
        while True:
            if not self.throttle.acquire(self.stop) or self.stop.is_set():
                raise _Stopped
            with self.lock:
                self.cost.calls += 1
                self.cost.retries += asked > 0
            self.last_call = time.monotonic()
            try:
                answer = self._call(request)
            except RequestAdapted:
                asked += 1
                if asked >= MAX_ASKS:
                    raise
                continue
            except GeminiUnavailable as error:
                asked += 1
                log.info("%s, asked %d of %d times: %s", name_pages(part.pages), asked, MAX_ASKS, error)
                stated = error.retry_after if isinstance(error, RateLimited) else None
                if stated:
                    self.throttle.pause(stated)
                if asked >= MAX_ASKS or (stated or 0) > MAX_PAUSE:
                    raise
                if isinstance(error, GeminiSlow) and len(part.pages) > 1:
                    raise _TooSlow(asked) from error
                # Also after `pause`: without Redis it reaches nobody.
                self.stop.wait(
                    stated + random.uniform(0, _SPREAD)  # noqa: S311 (no secret)
                    if stated
                    else random.uniform(0, _FIRST_WAIT * 2 ** (asked - 1))  # noqa: S311
                )
                continue
            with self.lock:
                self.answered = True
                self.cost.add(answer.model_version or ask.model, answer.usage)
            return answer, replace(part, asked=asked + 1)

    def _call(self, request: ModelRequest) -> ModelAnswer:
        """Call the model once, and count what came of it: the answer's outcome, or what kind of error."""
        outcome = "internal"
        try:
            answer = self.client.generate(request, timeout=self.settings.gemini_timeout)
            outcome = answer.outcome.value
        except SuperExamError as error:
            outcome = _ERROR_OUTCOMES.get(type(error), error.code)
            raise
        finally:
            with self.lock:
                self.cost.outcomes[outcome] = self.cost.outcomes.get(outcome, 0) + 1
        return answer

    def _count_refusal(self) -> None:
        """Count a refused request; raises if it is not the pages that Gemini dislikes."""
        with self.lock:
            self.refused += 1
            if not self.answered and self.refused >= _MAX_REFUSED:
                raise _all_refused()


class _TooSlow(Exception):
    """Ask for less at once; carries how often it was asked."""

    def __init__(self, asked: int) -> None:
        super().__init__(asked)
        self.asked = asked


def _finish(settled: list[tuple[Pages, Checkpoint]]) -> Generation:
    """Make the result of what came of all parts; raises if it is nothing."""
    pages_by_reason: dict[str, list[int]] = defaultdict(list)
    for pages, checkpoint in settled:
        for reason in filter(None, (checkpoint.missing, checkpoint.note)):
            pages_by_reason[reason] += pages
    results = [BatchResult(pages, checkpoint.items) for pages, checkpoint in settled if checkpoint.items]
    if not results:
        reasons = {checkpoint.missing for _, checkpoint in settled}
        if reasons and reasons <= {_BLOCKED, _RECITED}:
            raise Blocked("Everything was blocked by the model's filters: it writes no questions about this document")
        if reasons == {_REFUSED}:
            raise _all_refused()
        if reasons == {_DAMAGED}:
            raise PdfInvalid("The PDF is damaged: none of its pages can be read")
        if _UNUSABLE in reasons:
            raise NoQuestions("The model gave no usable answer for this document: try again, or other prompts")
        raise NoQuestions("The model found nothing in this document to ask about")
    named = [reason for reason in _WARNINGS if reason in pages_by_reason]
    return Generation(results, [_warning(reason, pages_by_reason[reason]) for reason in named])


def _stopped() -> Cancelled:
    return Cancelled("The job was stopped")


def _all_refused() -> GeminiRequestRefused:
    return GeminiRequestRefused("Gemini refuses every request for this document: check its PDF, schema and prompts")


def damage(pages: Sequence[int]) -> list[str]:
    """Return the warning, if any, about pages that were not sent because the PDF is damaged there."""
    return [_warning(_DAMAGED, pages)] if pages else []


def _warning(reason: str, pages: Sequence[int]) -> str:
    text, names = _WARNINGS[reason], name_pages(pages)
    room = _MAX_WARNING - len(text)
    if len(names) > room:
        names = names[: names.rindex(", ", 0, room - len(" and more"))] + " and more"
    return text.format(names)
