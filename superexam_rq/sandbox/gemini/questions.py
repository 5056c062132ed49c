"""Makes exam questions from the text of pages: pure functions, the same on every machine.

They are cloze questions: a sentence with a term left out, other terms of the same pages as wrong choices. That is
enough to try the service with, and no claim to a model's quality. The form of the answer is in `forms`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

MARK = "(made by the sandbox, not by Gemini)"
BLANK = "_____"

_WORD = re.compile(r"[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”\u2019)]?\s+(?=[\"“\u2018(]?[^\W\d_a-z])")
# What stands between a determiner or a preposition and a verb or a comma is mostly a noun.
_AFTER = r"\b(?:the|a|an|of|its|their|this|each|every|into|by|from|with|between)\s+"
_NOUN = re.compile(
    _AFTER + r"([a-z]{4,})\b"
    r"(?=[,.;:)]|\s+(?:is|are|was|were|of|in|on|and|or|that|which|to|from|by|has|have|can|at|with|for|as)\b)"
)
_NOUN_AFTER_ADJECTIVE = re.compile(
    _AFTER + r"[a-z]{3,12}\s+([a-z]{4,})\b(?=[,.;:)]|\s+(?:is|are|was|were|of|and|that|which)\b)"
)
_NAME = re.compile(r"(?<=[a-z,;:] )[A-Z][a-z]{3,}\b")
# What a text defines is what a reader should remember.
_DEFINED = re.compile(r"\bcalled (?:an? |the )?([a-z]{4,}(?: [a-z]{4,})?)(?=[,.;])")
_STOP_WORDS = """
    about above after again also among another because been before being below between both called
    cannot case chapter could does done down during each either else even ever every example figure
    first following from further given have having here however instead into itself just kind last least
    less like made make makes many might more most much must need needs next none often once only other
    others otherwise over page part rather same second section several shall should since some such
    table than that their them then there therefore these they thing things this those through thus time
    under unless until upon used user uses using value very want well were what when where whether which
    while whose will with within without would your
"""
_STOP = frozenset(_STOP_WORDS.split())
_LEANING = "and but hence her here his it its she so such that their there these they this those thus also he"
_LEANS_BACK = frozenset(_LEANING.split())
_EXPLAINS = re.compile(r"\b(?:is the|are the|is an?|because|means|consists? of|causes?|since)\b")
_UNUSABLE = re.compile(r"[\ufffe\ufffd\x02_={}|\\]|\. ?\.|//")


@dataclass(frozen=True)
class Question:
    """One question with what it rests on.

    `page` counts from 1; `quote` is the whole sentence, `statement` the same sentence with the term or, if
    `statement_holds` is false, with a wrong one; `right` holds places in `choices`, from 0.
    """

    page: int
    quote: str
    text: str
    choices: tuple[str, ...]
    right: tuple[int, ...]
    explanation: str
    statement: str
    statement_holds: bool

    @property
    def right_texts(self) -> tuple[str, ...]:
        """The texts of the right choices."""
        return tuple(self.choices[i] for i in self.right)


def fold(text: str) -> str:
    """Collapse every run of white space to one space, as quotes and pages are compared."""
    return " ".join(text.split())


def number(*parts: object) -> int:
    """Draw a number that depends on `parts` alone, the same in every process."""
    return int.from_bytes(hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=6).digest())


def sentences(page: str) -> list[str]:
    """List the whole sentences of a page that a question can be made of, white space collapsed.

    Headings, lists of numbers, code, cut sentences and hyphenated line ends are left out.
    """
    lines = [line.strip() for line in page.splitlines()]
    width = max((len(line) for line in lines), default=0)
    blocks: list[list[str]] = [[]]
    for line in lines:
        if not line:
            blocks.append([])
            continue
        blocks[-1].append(line)
        # A short line ends a paragraph or is a heading, which must not head the next sentence.
        if len(line) < 0.72 * width:
            blocks.append([])
    found: list[str] = []
    for block in blocks:
        found.extend(s.strip() for s in _SENTENCE_END.split(fold(" ".join(block))) if _usable(s.strip()))
    return found


def _usable(sentence: str) -> bool:
    if not 45 <= len(sentence) <= 280 or sentence[-1] not in ".!?" or not sentence[0].isupper():
        return False
    if _UNUSABLE.search(sentence):
        return False
    if sentence.count("(") != sentence.count(")"):
        return False
    letters = sum(c.isalpha() or c == " " for c in sentence)
    return letters >= 0.88 * len(sentence) and len(_WORD.findall(sentence)) >= 8


def terms(text: str) -> Counter[str]:
    """Count the words of a text that look like nouns or names; few of them if it is not English."""
    counted = Counter(
        word
        for pattern in (_NOUN, _NOUN_AFTER_ADJECTIVE)
        for word in pattern.findall(text)
        if word not in _STOP and not word.endswith(("ed", "ing", "ly"))
    )
    counted.update(word for word in _NAME.findall(text) if word.lower() not in _STOP)
    return counted


def _any_long_words(text: str) -> Counter[str]:
    return Counter(w for w in _WORD.findall(text) if len(w) >= 6 and w.islower() and w not in _STOP)


@dataclass(frozen=True)
class _Terms:
    """The words to choose from: how often each occurs, those of one page, those the text defines."""

    everywhere: Mapping[str, int]
    here: Collection[str]
    defined: Collection[str]


def make_questions(pages: Sequence[str], most: int = 20) -> list[Question]:
    """Make questions from the texts of `pages`: one a page (two if there are few), at most `most`, in order.

    Pages without a usable sentence are skipped; if there are more than `most`, questions are spread evenly.
    """
    of_page = [sentences(page) for page in pages]
    prose = " ".join(sentence for found in of_page for sentence in found)
    everywhere = terms(prose)
    if len(everywhere) < 8:
        everywhere.update(_any_long_words(prose))
    defined = {term for term in _DEFINED.findall(prose) if not _STOP.intersection(term.split())}
    a_page = 2 if len(pages) <= 4 else 1
    seen: set[str] = set()
    made: list[Question] = []
    for n in _spread([n for n, found in enumerate(of_page) if found], most):
        new = [sentence for sentence in dict.fromkeys(of_page[n]) if sentence not in seen]
        seen.update(new)
        vocabulary = _Terms(everywhere, terms(" ".join(new)), defined)
        ranked = sorted(new, key=lambda s: (-_promise(s, vocabulary), number(s)))
        best = list(islice(filter(None, (_cloze(s, n + 1, vocabulary) for s in ranked)), a_page))
        made.extend(sorted(best, key=lambda q: new.index(q.quote)))
    return made[:most]


def _spread(items: list[int], most: int) -> list[int]:
    if len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


def _promise(sentence: str, vocabulary: _Terms) -> float:
    """Rate how good a question a sentence would make: self-contained, not too long, saying what is what."""
    words = _WORD.findall(sentence)
    rate = 3.0 - abs(len(words) - 20) / 8
    if words[0].lower() in _LEANS_BACK:
        rate -= 2
    if any(term in vocabulary.defined for term in _DEFINED.findall(sentence)):
        rate += 2
    elif _EXPLAINS.search(sentence):
        rate += 1
    return rate + min(2, sum(vocabulary.everywhere.get(word, 0) > 1 for word in words)) * 0.5


def _cloze(sentence: str, page: int, vocabulary: _Terms) -> Question | None:
    """Leave a term (of some sentences two) out of `sentence`; None without a term or a wrong choice."""
    chosen = _blanks(sentence, vocabulary)
    wrong = _wrong(chosen[0], sentence, vocabulary)[:3] if chosen else []
    if not wrong:
        return None
    text = sentence
    for term in chosen:
        text = _put(text, term, BLANK)
    choices = sorted((*chosen, *wrong), key=lambda term: number(sentence, "order", term))
    holds = number(sentence, "holds") % 2 == 0
    named = " and ".join(f"“{term}”" for term in chosen)
    which = "Which two terms complete" if len(chosen) == 2 else "Which term completes"
    return Question(
        page=page,
        quote=sentence,
        text=f"{which} this sentence: “{text}”",
        choices=tuple(choices),
        right=tuple(i for i, choice in enumerate(choices) if choice in chosen),
        explanation=f"The text has {named} in this place. {MARK}",
        statement=sentence if holds else _put(sentence, chosen[0], wrong[0]),
        statement_holds=holds,
    )


def _put(sentence: str, term: str, instead: str) -> str:
    return re.sub(rf"\b{re.escape(term)}\b", instead, sentence)


def _blanks(sentence: str, vocabulary: _Terms) -> list[str]:
    """Pick the terms to leave out, in the order of the sentence: what it defines, else what it is about."""
    words = _WORD.findall(sentence)
    for term in _DEFINED.findall(sentence):
        if term in vocabulary.defined and sentence.count(term) == 1:
            return [term]
    once = [word for word in words[1:] if words.count(word) == 1 and vocabulary.everywhere.get(word)]
    # The commonest words of a text are guessed without having read it.
    ranked = sorted(once, key=lambda w: (vocabulary.everywhere[w] > 12, w.islower(), -len(w), number(sentence, w)))
    wanted = 2 if number(sentence, "two") % 5 == 0 else 1
    return sorted(ranked[:wanted], key=words.index)


def _wrong(term: str, sentence: str, vocabulary: _Terms) -> list[str]:
    """List terms that could stand where `term` stands, the likeliest first, none that is in the sentence."""
    stems = {word.lower().rstrip("s") for word in _WORD.findall(sentence)}
    defined = term in vocabulary.defined

    def unlike(other: str) -> tuple[bool, bool, bool, bool, int]:
        return (
            defined and other not in vocabulary.defined,
            other[0].isupper() != term[0].isupper(),
            other.endswith("s") != term.endswith("s"),
            other not in vocabulary.here,
            number(term, other),
        )

    found: dict[str, str] = {}
    candidates = {*vocabulary.everywhere, *(vocabulary.defined if defined else ())}
    for other in sorted(candidates, key=unlike):
        stem = other.lower().rstrip("s")
        if stem not in stems and not stems.issuperset(stem.split()):
            found.setdefault(stem, other)
    return list(found.values())
