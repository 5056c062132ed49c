"""The engine, with a model that says what the test wants; no call and no wait takes any time."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from superexam_rq import errors
from superexam_rq.checkpoints import Checkpoint
from superexam_rq.config import Settings
from superexam_rq.gemini import MAX_PDF, GeminiSlow, ModelAnswer, ModelRequest, Outcome, RequestAdapted, Usage
from superexam_rq.generation import Ask, BatchResult, Cost, Generation, Source, generate, total_cost
from superexam_rq.prices import estimate
from tests.clocks import HastyEvent

Reply = ModelAnswer | Exception
Script = Callable[[tuple[int, ...], int, str], Reply]


def answer(
    pages: Sequence[int], outcome: Outcome = Outcome.COMPLETE, text: str | None = None, reason: str = "STOP"
) -> ModelAnswer:
    """Return an answer with one item a page."""
    written = json.dumps({"questions": [{"page": page} for page in pages]}) if text is None else text
    return ModelAnswer(written, outcome, reason, Usage(100, 10, 1), "gemini-3.8-flash")


def complete(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
    """Be the model that always answers."""
    return answer(pages)


class Model:
    """A client whose answers are scripted by the pages, the turn (from 1, for these pages) and the prompt."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.calls: list[tuple[int, ...]] = []
        self.lock = threading.Lock()

    def generate(self, request: ModelRequest, *, timeout: float) -> ModelAnswer:
        pages = tuple(json.loads(request.pdf))
        with self.lock:
            self.calls.append(pages)
            turn = Counter(self.calls)[pages]
        reply = self.script(pages, turn, request.prompt)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self) -> None:
        """Have nothing to close."""


class Pace:
    """A throttle that holds nobody back and notes the pauses."""

    def __init__(self) -> None:
        self.pauses: list[float] = []

    def acquire(self, stop: threading.Event) -> bool:
        return not stop.is_set()

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)


class Kept(dict[str, Checkpoint]):
    """Checkpoints in a dictionary."""

    def put(self, name: str, checkpoint: Checkpoint) -> None:
        self[name] = checkpoint

    def drop(self, name: str) -> None:
        self.pop(name, None)


class Bench:
    """One run after the other on the same document, with the same checkpoints."""

    def __init__(self, script: Script = complete, *, concurrency: int = 4) -> None:
        self.model = Model(script)
        self.settings = Settings(gemini_concurrency=concurrency)
        self.pace, self.kept = Pace(), Kept()
        self.cuts: list[tuple[int, ...]] = []
        self.progress: list[tuple[int, int]] = []
        self.stop, self.cost = HastyEvent(), Cost()
        self.cut: Callable[[Sequence[int]], bytes] = self.note_cut

    def note_cut(self, pages: Sequence[int]) -> bytes:
        self.cuts.append(tuple(pages))
        return json.dumps(list(pages)).encode()

    def run(self, *batches: Sequence[int], watch: Callable[[int, int], None] | None = None, **more: Any) -> Generation:
        """Run once, with a new stop and a new account."""
        self.stop, self.cost = HastyEvent(), Cost()
        self.model.calls.clear()
        ask = Ask("gemini-flash-latest", "system", lambda count: f"Ask about {count} pages", {"type": "object"})
        return generate(
            batches,
            source=Source("digest", self.cut),
            ask=ask,
            client=self.model,
            throttle=self.pace,
            checkpoints=self.kept,
            settings=self.settings,
            cost=self.cost,
            progress=watch or (lambda done, total: self.progress.append((done, total))),
            stop=self.stop,
            **more,
        )


def pages_of(generation: Generation) -> list[int]:
    """Return the pages that the items were written about."""
    return [item["page"] for result in generation.results for item in result.items]


def stopped(bench: Bench) -> bool:
    """Wait, for real, until the run of `bench` has failed."""
    return threading.Event.wait(bench.stop, 10)


TEN = tuple(range(1, 11))


def test_results_come_in_reading_order() -> None:
    """Whichever batch is answered first, the results stand in the order of the pages."""
    last_is_done = threading.Event()

    def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
        if pages == (5, 6):
            last_is_done.set()
        else:
            last_is_done.wait(10)
        return answer(pages)

    bench = Bench(script)
    generation = bench.run((1, 2), (3, 4), (5, 6))
    assert [result.pages for result in generation.results] == [(1, 2), (3, 4), (5, 6)]
    assert generation.warnings == []


def test_as_many_calls_as_allowed_are_in_flight() -> None:
    """GEMINI_CONCURRENCY calls run at once, never more."""
    together = threading.Barrier(3, timeout=10)
    flying, most, lock = 0, 0, threading.Lock()

    def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
        nonlocal flying, most
        with lock:
            flying += 1
            most = max(most, flying)
        together.wait()
        with lock:
            flying -= 1
        return answer(pages)

    Bench(script, concurrency=3).run(*((page,) for page in range(1, 10)))
    assert most == 3


def test_a_batch_is_cut_when_it_is_asked_for() -> None:
    """The first call does not wait for all batches to be cut, and few of them are in memory at once."""
    cut_before_first_answer: list[int] = []

    def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
        cut_before_first_answer.append(len(bench.cuts))
        return answer(pages)

    bench = Bench(script, concurrency=2)
    bench.run(*((page,) for page in range(1, 21)))
    assert cut_before_first_answer[0] <= 2
    assert len(bench.cuts) == 20


def test_progress_follows_the_pages_that_are_settled() -> None:
    """Progress starts at none, never falls and ends at all pages."""
    bench = Bench()
    bench.run((1, 2, 3), (4, 5))
    assert bench.progress[0] == (0, 5)
    assert bench.progress[-1] == (5, 5)
    assert bench.progress == sorted(bench.progress)


def test_a_truncated_batch_is_asked_in_halves() -> None:
    """Smaller batches are asked until they fit; nothing is asked twice in the same size."""

    def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
        return answer(pages, Outcome.TRUNCATED, reason="MAX_TOKENS") if len(pages) > 3 else answer(pages)

    bench = Bench(script)
    generation = bench.run(TEN)
    assert pages_of(generation) == list(TEN)
    assert sorted(map(len, bench.model.calls)) == [2, 2, 3, 3, 5, 5, 10]
    assert generation.warnings == []


def test_a_truncated_page_keeps_its_complete_questions() -> None:
    """What can't be made smaller gives what it has, and says so."""

    def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
        return answer(pages, Outcome.TRUNCATED, '{"questions": [{"page": 7}, {"pa', "MAX_TOKENS")

    generation = Bench(script).run((7,))
    assert pages_of(generation) == [7]
    assert generation.warnings == ["Perhaps not all questions from page 7: the answer was cut short"]


def test_a_truncated_page_without_a_complete_question_is_asked_again_by_the_next_run() -> None:
    """It is no answer, and so not kept as one."""

    def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
        return answer(pages, Outcome.TRUNCATED, '{"questions": [{"pa', "MAX_TOKENS") if 7 in pages else answer(pages)

    bench = Bench(script)
    for _ in range(2):
        generation = bench.run((7,), (8,))
        assert generation.warnings == ["No questions from page 7: the model gave no usable answer"]
    assert bench.model.calls == [(7,)]


def test_recitation_is_asked_to_paraphrase_then_page_by_page() -> None:
    """A batch that the model would recite is asked again in other words, then each page alone, then left out."""
    prompts: dict[tuple[int, ...], list[str]] = {}

    def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
        prompts.setdefault(pages, []).append(prompt)
        return answer(pages, Outcome.RECITATION, "", "RECITATION") if 2 in pages else answer(pages)

    bench = Bench(script)
    generation = bench.run((1, 2, 3))
    assert sorted(bench.model.calls) == [(1,), (1, 2, 3), (1, 2, 3), (2,), (3,)]
    assert ["paraphrase" in prompt for prompt in prompts[(1, 2, 3)]] == [False, True]
    assert all("paraphrase" in prompts[(page,)][0] for page in (1, 2, 3))
    assert pages_of(generation) == [1, 3]
    assert generation.warnings == [
        "No questions from page 2: the model would have copied the text word for word",
    ]


def test_a_blocked_batch_is_left_out() -> None:
    """The rest of the document is published, and the pages that are missing are named."""

    def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
        return answer(pages, Outcome.BLOCKED, "", "SAFETY") if 3 in pages else answer(pages)

    bench = Bench(script)
    generation = bench.run((1, 2), (3, 4))
    assert pages_of(generation) == [1, 2]
    assert generation.warnings == ["No questions from pages 3-4: refused by the model's filters"]
    assert len(bench.model.calls) == 2


def test_a_document_that_is_blocked_as_a_whole_fails_so() -> None:
    """Filters that refuse everything are told from a document that yields nothing."""
    bench = Bench(lambda pages, turn, prompt: answer(pages, Outcome.BLOCKED, "", "PROHIBITED_CONTENT"))
    with pytest.raises(errors.Blocked, match="blocked"):
        bench.run((1,), (2,))


@pytest.mark.parametrize(
    "first",
    [
        answer((), Outcome.EMPTY, ""),
        answer((), Outcome.UNKNOWN, "half an ans", "OTHER"),
        answer((), Outcome.COMPLETE, "I can't help with that."),
    ],
    ids=["empty", "unknown", "not JSON"],
)
class TestUnusableAnswer:
    def test_it_is_asked_once_more(self, first: ModelAnswer) -> None:
        """An answer with nothing in it is mostly a whim."""
        bench = Bench(lambda pages, turn, prompt: first if turn == 1 else answer(pages))
        assert pages_of(bench.run((1, 2))) == [1, 2]
        assert bench.model.calls == [(1, 2)] * 2

    def test_then_it_is_left_out(self, first: ModelAnswer) -> None:
        """A second one is taken as it is, with a warning; but the next run may ask again."""
        bench = Bench(lambda pages, turn, prompt: first if 1 in pages else answer(pages))
        generation = bench.run((1, 2), (3,))
        assert generation.warnings == ["No questions from pages 1-2: the model gave no usable answer"]
        assert Counter(bench.model.calls) == {(1, 2): 2, (3,): 1}
        bench.run((1, 2), (3,))
        assert bench.model.calls == [(1, 2)] * 2

    def test_a_document_of_nothing_else_fails(self, first: ModelAnswer) -> None:
        """Nothing usable is a permanent failure."""
        bench = Bench(lambda pages, turn, prompt: first)
        with pytest.raises(errors.NoQuestions):
            bench.run((1, 2), (3,))


def test_pages_without_anything_to_ask_are_no_failure() -> None:
    """An empty list of questions is an answer: it is kept, and not warned of."""
    bench = Bench(lambda pages, turn, prompt: answer([page for page in pages if page > 2]))
    generation = bench.run((1, 2), (3, 4))
    assert (pages_of(generation), generation.warnings) == ([3, 4], [])
    bench.run((1, 2), (3, 4))
    assert bench.model.calls == []


def test_a_document_without_anything_to_ask_fails() -> None:
    """A title page alone makes no exam; whoever tries again has the model asked again."""
    bench = Bench(lambda pages, turn, prompt: answer(()))
    for _ in range(2):
        with pytest.raises(errors.NoQuestions, match="nothing in this document"):
            bench.run((1,))
        assert bench.model.calls == [(1,)]


def test_answers_without_a_usable_question_are_asked_for_again_if_there_are_no_others() -> None:
    """Whoever takes them says of what use they are; where one is of use, none is paid for twice."""
    bench = Bench()
    bench.run((1, 2), (3, 4), take=lambda result: result.pages != (1, 2))
    bench.run((1, 2), (3, 4))
    assert bench.model.calls == []
    bench.run((5,), (6,), take=lambda _result: False)
    bench.run((5,), (6,))
    assert sorted(bench.model.calls) == [(5,), (6,)]


def test_a_part_that_is_too_large_is_sent_in_halves() -> None:
    """Gemini takes 50 MB at most; the next run knows that the whole is too large without cutting it."""
    bench = Bench()
    bench.cut = lambda pages: bench.note_cut(pages).ljust(len(pages) * MAX_PDF // 2)
    assert pages_of(bench.run((1, 2, 3, 4))) == [1, 2, 3, 4]
    assert sorted(bench.model.calls) == [(1, 2), (3, 4)]
    bench.cuts.clear()
    bench.run((1, 2, 3, 4))
    assert not bench.cuts


class TestDamagedPart:
    def test_it_is_left_out(self) -> None:
        """Pages that PDFium can't copy cost the exam no others."""
        bench = Bench()
        bench.cut = refuse(bench.cut, 3)
        generation = bench.run((1, 2), (3,), (4,))
        assert pages_of(generation) == [1, 2, 4]
        assert generation.warnings == ["No questions from page 3: the PDF is damaged there"]

    def test_a_document_of_nothing_else_is_refused(self) -> None:
        """Then the PDF is at fault, and a retry would not mend it."""
        bench = Bench()
        bench.cut = refuse(bench.cut, 1, 2)
        with pytest.raises(errors.PdfInvalid, match="PDF is damaged"):
            bench.run((1,), (2,))


def refuse(cut: Callable[[Sequence[int]], bytes], *damaged: int) -> Callable[[Sequence[int]], bytes]:
    """Return a `cut` that can't copy some pages."""

    def refusing(pages: Sequence[int]) -> bytes:
        if set(pages) & set(damaged):
            raise errors.PdfInvalid("damaged")
        return cut(pages)

    return refusing


def test_answers_are_handed_over_as_they_come() -> None:
    """While the second batch is still asked for, the others are being worked on."""
    taken: list[BatchResult] = []
    others_taken = threading.Event()

    def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
        if pages == (2,):
            assert others_taken.wait(10)
        return answer(pages)

    def take(result: BatchResult) -> bool:
        taken.append(result)
        if len(taken) == 2:
            others_taken.set()
        return True

    generation = Bench(script).run((1,), (2,), (3,), take=take)
    assert [result.pages for result in taken][-1] == (2,)
    assert sorted(taken, key=lambda result: result.pages) == generation.results


def test_other_work_is_done_while_the_model_writes() -> None:
    """All of it, if there is time; and it holds no answer up."""
    done: list[int] = []

    def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
        assert worked.wait(10)
        return answer(pages)

    worked = threading.Event()

    def work() -> Iterator[None]:
        for number in range(100):
            done.append(number)
            yield
        worked.set()

    Bench(script).run((1,), (2,), meanwhile=work())
    assert done == list(range(100))


class TestRefusedRequest:
    def test_the_page_at_fault_is_found_and_left_out(self) -> None:
        """A bare 400 names no reason: halves show which page it is."""

        def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
            return errors.GeminiRequestRefused("no") if 4 in pages else answer(pages)

        bench = Bench(script)
        generation = bench.run(TEN)
        assert pages_of(generation) == [1, 2, 3, 5, 6, 7, 8, 9, 10]
        assert generation.warnings == ["No questions from page 4: Gemini could not read the PDF there"]
        assert len(bench.model.calls) <= 9

    def test_a_request_that_is_never_taken_fails_soon(self) -> None:
        """If nothing at all is answered, it is not the pages: no hundred calls are spent on it."""
        bench = Bench(lambda pages, turn, prompt: errors.GeminiRequestRefused("no"))
        with pytest.raises(errors.GeminiRequestRefused, match="every request"):
            bench.run(*(tuple(range(start, start + 20)) for start in range(1, 601, 20)))
        assert len(bench.model.calls) <= 12 + 4


class TestTransientError:
    def test_it_is_asked_again_after_growing_waits(self) -> None:
        """A batch is asked at most four times, and waits at most 30 s in all (contract §1)."""
        bench = Bench(lambda pages, turn, prompt: answer(pages) if turn == 4 else errors.GeminiUnavailable("503"))
        assert pages_of(bench.run((1, 2))) == [1, 2]
        assert bench.model.calls == [(1, 2)] * 4
        assert len(bench.stop.waits) == 3
        assert all(wait <= 4 * 2**turn for turn, wait in enumerate(bench.stop.waits))
        assert sum(bench.stop.waits) <= 30
        assert (bench.cost.calls, bench.cost.retries) == (4, 3)

    def test_it_goes_up_after_the_fourth_time(self) -> None:
        """What remains is left to the queue's retry."""
        bench = Bench(lambda pages, turn, prompt: errors.GeminiUnavailable("503"))
        with pytest.raises(errors.GeminiUnavailable, match="503"):
            bench.run((1, 2))
        assert bench.model.calls == [(1, 2)] * 4

    def test_a_stated_delay_is_honoured_by_all(self) -> None:
        """A 429 with a delay pauses every worker, and the batch itself waits it out, whatever Redis does."""
        bench = Bench(lambda pages, turn, prompt: answer(pages) if turn == 2 else errors.RateLimited("429", 37.1))
        bench.run((1, 2))
        assert bench.pace.pauses == [37.1]
        assert 37.1 <= bench.stop.waits[0] <= 38.1

    def test_a_rate_limit_without_a_delay_backs_off(self) -> None:
        """Nothing is known that others could wait for."""
        bench = Bench(lambda pages, turn, prompt: answer(pages) if turn == 2 else errors.RateLimited("429"))
        bench.run((1, 2))
        assert bench.pace.pauses == []
        assert bench.stop.waits[0] <= 4

    def test_a_delay_longer_than_a_minute_goes_up(self) -> None:
        """Waiting longer is the queue's affair (contract §1)."""
        bench = Bench(lambda pages, turn, prompt: errors.RateLimited("429", 61.0))
        with pytest.raises(errors.RateLimited):
            bench.run((1, 2))
        assert len(bench.model.calls) == 1

    def test_what_is_too_slow_is_asked_in_halves(self) -> None:
        """After a 504 less is asked for at once."""
        bench = Bench(lambda pages, turn, prompt: GeminiSlow("504") if len(pages) > 5 else answer(pages))
        assert pages_of(bench.run(TEN)) == list(TEN)
        assert sorted(bench.model.calls) == [TEN[:5], TEN, TEN[5:]]

    def test_what_is_always_too_slow_is_asked_four_times(self) -> None:
        """Halves of a slow batch are no new batches: no page is asked for more than four times."""
        bench = Bench(lambda pages, turn, prompt: GeminiSlow("504"))
        with pytest.raises(errors.GeminiUnavailable):
            bench.run(TEN)
        assert max(Counter(page for call in bench.model.calls for page in call).values()) == 4

    def test_an_option_that_the_model_refuses_costs_no_time(self) -> None:
        """The request goes out again at once without it; it counts among the four all the same."""

        def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
            if turn <= 2:
                return RequestAdapted("no such level")
            return answer(pages) if turn == 4 and pages == (1,) else errors.GeminiUnavailable("503")

        bench = Bench(script)
        assert pages_of(bench.run((1,))) == [1]
        assert len(bench.stop.waits) == 1
        with pytest.raises(errors.GeminiUnavailable):
            bench.run((2,))
        assert len(bench.model.calls) == 4


class TestFailure:
    def test_a_permanent_error_stops_what_has_not_started(self) -> None:
        """A refused key is not tried on the other batches."""

        def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
            return errors.GeminiKeyRefused("API key") if pages == (1,) else answer(pages)

        bench = Bench(script, concurrency=1)
        with pytest.raises(errors.GeminiKeyRefused):
            bench.run(*((page,) for page in range(1, 51)))
        assert len(bench.model.calls) <= 3

    def test_a_permanent_error_is_told_before_a_transient_one(self) -> None:
        """If a call under way finds out that nothing will help, that is what the job ends with."""
        both = threading.Barrier(2, timeout=10)

        def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
            both.wait()
            if pages == (1,):
                return errors.RateLimited("429", 600.0)
            assert stopped(bench)
            return errors.GeminiQuotaExhausted("quota")

        bench = Bench(script, concurrency=2)
        with pytest.raises(errors.GeminiQuotaExhausted):
            bench.run((1,), (2,))

    def test_what_was_answered_is_kept_of_a_failed_run(self) -> None:
        """The next run asks only for what is missing, also if the answer came after the failure."""
        both, broken = threading.Barrier(2, timeout=10), True

        def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
            if broken:
                both.wait()
            if broken and pages == (2,):
                return errors.RateLimited("429", 600.0)
            if broken:
                assert stopped(bench)
            return answer(pages)

        bench = Bench(script, concurrency=2)
        with pytest.raises(errors.RateLimited):
            bench.run((1,), (2,))
        broken = False
        generation = bench.run((1,), (2,))
        assert bench.model.calls == [(2,)]
        assert pages_of(generation) == [1, 2]
        assert (bench.cost.calls, bench.cost.cached_batches) == (1, 1)

    def test_a_split_batch_is_not_asked_as_a_whole_again(self) -> None:
        """That a batch was too large is known to the next run, together with the halves that were answered."""
        broken = True

        def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
            if len(pages) > 2:
                return answer(pages, Outcome.TRUNCATED, "", "MAX_TOKENS")
            return errors.RateLimited("429", 600.0) if broken and 3 in pages else answer(pages)

        bench = Bench(script, concurrency=1)
        with pytest.raises(errors.RateLimited):
            bench.run((1, 2, 3, 4))
        broken = False
        assert pages_of(bench.run((1, 2, 3, 4))) == [1, 2, 3, 4]
        assert bench.model.calls == [(3, 4)]

    def test_whoever_sets_stop_ends_the_run(self) -> None:
        """Nothing new is called once the run is told to stop."""

        def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
            bench.stop.set()
            return answer(pages)

        bench = Bench(script, concurrency=1)
        with pytest.raises(errors.Cancelled):
            bench.run(*((page,) for page in range(1, 51)))
        assert len(bench.model.calls) == 1

    @pytest.mark.parametrize("by_signal", [True, False], ids=["a signal", "the progress"])
    def test_an_exception_in_the_caller_s_thread_ends_the_run(self, by_signal: bool) -> None:
        """A time-out or a cancellation, which the queue raises by a signal, leaves nothing behind that calls."""
        going, seen = threading.Event(), threading.Event()

        def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
            going.set()
            assert seen.wait(10)
            return answer(pages)

        def raise_timeout(*args: object) -> None:
            raise errors.JobTimeout("too long")

        def watch(done: int, total: int) -> None:
            if going.is_set() and by_signal:
                signal.setitimer(signal.ITIMER_REAL, 0.01)
            elif going.is_set():
                raise_timeout()

        before = signal.signal(signal.SIGALRM, raise_timeout)
        bench = Bench(script, concurrency=1)
        try:
            with pytest.raises(errors.JobTimeout):
                bench.run(*((page,) for page in range(1, 51)), watch=watch)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert bench.stop.is_set()
        seen.set()
        for thread in threading.enumerate():
            if thread.name.startswith("gemini"):
                thread.join(10)
        assert len(bench.model.calls) == 1

    def test_a_defect_is_not_taken_for_a_failure_of_gemini(self) -> None:
        """An error that nobody expects comes out as it is."""
        with pytest.raises(ZeroDivisionError):
            Bench(lambda pages, turn, prompt: ZeroDivisionError()).run((1,))


class TestCost:
    def test_it_counts_what_was_paid_in_this_run(self) -> None:
        """Tokens of each answer count, also of those that were of no use; a batch from an earlier run is free."""
        bench = Bench(lambda pages, turn, prompt: answer(pages, Outcome.EMPTY, "") if turn == 1 else answer(pages))
        bench.run((1, 2))
        assert bench.cost.summary() == {
            "calls": 2,
            "retries": 1,
            "cached_batches": 0,
            "prompt_tokens": 200,
            "output_tokens": 20,
            "thought_tokens": 2,
            "usd": pytest.approx(estimate("gemini-3.8-flash", Usage(200, 20, 2), datetime.now(UTC).date()), abs=1e-6),
            "prices_as_of": "2026-10-07",
            "models": ["gemini-3.8-flash"],
            "outcomes": {"empty": 1, "complete": 1},
        }
        bench.run((1, 2))
        assert bench.cost.summary()["cached_batches"] == 1
        assert bench.cost.summary()["usd"] == 0

    def test_it_counts_how_calls_ended(self) -> None:
        """Each call counts once: by its answer's outcome, or by the kind of its error."""
        failures: dict[int, Exception] = {
            1: GeminiSlow("slow"),
            2: errors.RateLimited("limit"),
            3: errors.GeminiUnavailable("away"),
        }
        bench = Bench(lambda pages, turn, prompt: failures.get(turn) or answer(pages))
        bench.run((1,))
        outcomes = {"timeout": 1, "rate_limited": 1, "gemini_unavailable": 1, "complete": 1}
        assert bench.cost.summary()["outcomes"] == outcomes

    def test_it_does_not_guess_the_price_of_an_unknown_model(self) -> None:
        """No estimate is better than a wrong one."""
        cost = Cost()
        cost.add("gemini-9-flash", Usage(1, 1, 1))
        assert cost.summary()["usd"] is None


def test_a_job_s_runs_are_counted_together() -> None:
    """What a failed run was paid for is not forgotten; a price that is not known of one is not known of both."""
    bench = Bench(lambda pages, turn, prompt: answer(pages) if 1 in pages else errors.GeminiKeyRefused("no"))
    with pytest.raises(errors.GeminiKeyRefused):
        bench.run((1,), (2,))
    first = bench.cost.summary()
    bench.model.script = complete
    bench.run((1,), (2,))
    second = bench.cost.summary()
    both = total_cost(first, second)
    assert both["calls"] == first["calls"] + second["calls"] == 3
    assert both["prompt_tokens"] == first["prompt_tokens"] + second["prompt_tokens"] > second["prompt_tokens"]
    assert both["usd"] == pytest.approx(first["usd"] + second["usd"])
    assert both["outcomes"] == {"complete": 2, "gemini_key": 1}
    assert total_cost({}, second) == second
    assert total_cost({**first, "usd": None}, second)["usd"] is None
    assert total_cost({**first, "usd": None}, Cost().summary())["calls"] == first["calls"]


def test_warnings_stay_short() -> None:
    """A warning fits into a line, whatever pages are missing."""

    def script(pages: tuple[int, ...], turn: int, prompt: str) -> Reply:
        return answer(pages, Outcome.BLOCKED, "", "SAFETY") if pages[0] % 2 else answer(pages)

    generation = Bench(script).run(*((page,) for page in range(1, 201)))
    (warning,) = generation.warnings
    assert len(warning) <= 120
    assert warning.startswith("No questions from pages 1, 3, 5, 7,")
    assert warning.endswith(" and more: refused by the model's filters")


def test_no_document_leaves_a_thread() -> None:
    """After a run the pool is gone."""
    Bench().run((1,), (2,))
    for thread in threading.enumerate():
        if thread.name.startswith("gemini"):
            thread.join(10)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("gemini")]


def test_results_are_plain_json() -> None:
    """What goes into a checkpoint comes out of it as it went in."""
    items: list[Any] = [{"a": None}, "text", 3]
    bench = Bench(lambda pages, turn, prompt: answer(pages, text=json.dumps(items)))
    assert list(bench.run((1,)).results[0].items) == items
