"""Which questions repeat an earlier one, exactly or nearly."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

from rapidfuzz import fuzz

from superexam_rq.texts import fold

if TYPE_CHECKING:
    from collections.abc import Sequence

# Signs and names of one letter; with words that hold a digit: a question with another one is another question.
_SIGN = re.compile(r"[-+*/=<>^%\u2264\u2265\u2260\u00d7\u00f7]|(?<!\w)[b-z](?!\w)")
_TOKEN = re.compile(r"\w+")
_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?")
_NEGATION_WORDS = (
    "not no never none neither nor cannot except false incorrect untrue wrong least without unlike "
    "nicht kein keine keinen nie ohne falsch außer pas aucun aucune jamais sauf faux sans ne "
    "nu niciun nicio niciodată fără greșit excepția fals no nunca ningún ninguna excepto falso sin "
    "non mai nessun nessuna tranne senza não nenhum nenhuma exceto sem не нет никогда кроме"
)
_SMALL_WORDS = (
    "a an the of in on at to for by with from as is are was were be been do does did which what that this these those "
    "following one it its their there how when where who whom statement correct true best describes according text "
    "passage document given der die das den dem ein eine einer ist sind welche welcher welches was le la les un une "
    "des du de est sont quel quelle quels quelles que qui el los las es son cuál qué ce care este sunt din lui al ale "
    "o i il lo gli è sono quale"
)
_NEGATIONS = frozenset(_NEGATION_WORDS.split())
_SMALL = frozenset(_SMALL_WORDS.split())
# Of 100: how alike two texts must be.
_NEAR_STEM = 80
_NEAR_ANSWER = 85
# Letters that two forms of a word begin with at least, and that may follow.
_MIN_WORD_STEM = 4
_ENDING = 3
_SAME_CHOICES = 0.5
# Pathological answers put thousands of questions into one block; a real repetition is near the front of few.
_MAX_BLOCK = 50


class _Print:
    """Hold what two questions are compared by."""

    def __init__(self, question: dict[str, Any]) -> None:
        self.stem = fold(question["questionText"])
        right = set(question["correctAnswers"])
        texts = {choice["index"]: fold(choice["text"]) for choice in question["choices"]}
        self.choices = frozenset(texts.values())
        self.answers = " | ".join(sorted(texts[index] for index in right))
        self.exact = _exact(self.stem), _exact(self.answers)
        words = _WORD.findall(self.stem)
        self.negations = sum(word in _NEGATIONS or word.endswith(("n't", "n\u2019t")) for word in words)
        self.content = [word for word in words if word not in _SMALL]
        # Endings differ between two wordings of one question; beginnings hardly ever do.
        self.beginnings = {word[:5] for word in self.content}


def _exact(text: str) -> tuple[str, ...]:
    """Return what must be the same, in the same order: 2.5 is not 5.2."""
    numbers = (token for token in _TOKEN.findall(text) if any(char.isdigit() for char in token))
    return (*numbers, *_SIGN.findall(text))


def deduplicate(questions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the questions without those that repeat an earlier one, exactly or nearly."""
    prints = [_Print(question) for question in questions]
    rarity = Counter(beginning for entry in prints for beginning in entry.beginnings)
    blocks: defaultdict[tuple[Any, ...], list[_Print]] = defaultdict(list)
    kept = []
    for question, entry in zip(questions, prints, strict=True):
        # Two wordings of one question share nearly all they are about, hence one of their three rarest words.
        rarest = sorted(entry.beginnings, key=lambda beginning: (rarity[beginning], beginning))[:3]
        keys = [(entry.stem,), *((entry.exact, beginning) for beginning in rarest)]
        earlier = (other for key in keys for other in blocks[key])
        if any(_repeats(entry, other) for other in earlier):
            continue
        kept.append(question)
        for key in keys:
            if len(blocks[key]) < _MAX_BLOCK:
                blocks[key].append(entry)
    return kept


def _repeats(one: _Print, other: _Print) -> bool:
    """Return whether two questions ask the same and have the same answer.

    When in doubt they do not: a repeated question is a blemish, a lost one is a loss.
    """
    if one.stem == other.stem:
        # "Which statement is true?" is asked of many things, with other choices each time.
        common = len(one.choices & other.choices) / len(one.choices | other.choices)
        return common >= _SAME_CHOICES or one.answers == other.answers
    return (
        one.exact == other.exact
        and one.negations == other.negations
        and fuzz.ratio(one.answers, other.answers, score_cutoff=_NEAR_ANSWER) > 0
        and fuzz.token_sort_ratio(one.stem, other.stem, score_cutoff=_NEAR_STEM) > 0
        and _same_content(one, other)
    )


def _same_content(one: _Print, other: _Print) -> bool:
    """Return whether two stems differ in small words, endings and additions only, never in what they are about."""
    shorter, longer = sorted((one.content, other.content), key=len)
    if not shorter:
        return False
    # To "true or false?" an addition may be all the difference.
    if len(longer) > len(shorter) and min(len(one.choices), len(other.choices)) < 3:
        return False
    rest = iter(longer)
    return all(any(_same_word(word, there) for there in rest) for word in shorter)


def _same_word(one: str, other: str) -> bool:
    """Return whether two words differ in their ending alone: nitrate is not nitrite, hyper- is not hypotension."""
    shorter, longer = sorted((one, other), key=len)
    stem = max(len(shorter) - 1, _MIN_WORD_STEM)
    return one == other or (shorter[:stem] == longer[:stem] and len(shorter) >= stem and len(longer) <= stem + _ENDING)
