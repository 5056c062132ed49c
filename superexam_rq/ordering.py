"""The order of a question's choices: shuffled so that the right answer stands in each place equally often."""

from __future__ import annotations

import hashlib
import random
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_REFERS_TO_CHOICES = re.compile(
    r"\b(?:all|none|any|some|both|neither|either|each|two|three|one)\s+(?:of\s+)?(?:the\s+)?(?:above|below|these|those|"
    r"following|options|choices|answers|others?|previous|preceding|statements)\b|\bthe\s+(?:above|others?|rest)\b"
    r"|^(?:both|neither|all|none|either)\b|\b(?:option|choice|answer)s?\s+(?:[A-H]|\d)\b"
    r"|de mai sus|niciun|nicio|toate\b|anterioare|ambele"
    r"|anteriores|ninguna|ninguno|todas\b|ambas|ambos|nenhuma|nenhum|acima"
    r"|ci-dessus|aucune?\b|toutes\b|tous\b|les deux|précédent"
    r"|oben|genannte|keine[rs]?\b|\balle\b|beide|obige"
    r"|precedenti|nessun|tutte\b|tutti\b|entramb"
    r"|вышеперечисл|перечисленн|ничего из|все ответы|оба\b|以上|上記|すべて",  # noqa: RUF001
    re.IGNORECASE,
)
# "A and C", "(a), (b)", "B only": letters, in the text of a choice, that mean other choices.
_LETTERS_JOINED = re.compile(
    r"(?<![\w'\u2019])\(?[A-Ha-h]\)?\s*(?:[,;&]|\b(?:and|or|und|oder|et|ou|y|e|o|și|si|sau|и|или)\b)\s*"
    r"\(?[A-Ha-h]\)?(?![\w'\u2019])"
    r"|\b(?i:only|just|nur|doar|numai|seulement|solo|sólo|apenas|somente|только)\s+\(?[A-H]\b"
    r"|\b[A-H]\)?\s+(?:only|alone)\b"
)
# Words for a choice, with the letter or number of one: "option B", "the answer is (c)", "choices 1 and 2".
_WORD_AND_LETTER = re.compile(
    r"\b(?i:options?|choices?|answers?|alternatives?|variant\w*|răspuns\w*|antwort\w*|réponses?|opci[oó]n\w*|respuestas?"
    r"|rispost\w+|opzion\w+|opç\w+|respostas?|вариант\w*|ответ\w*)\s*(?:is|are|ist|est|es|este|è|é)?\s*[\"'(«„:]*\s*"
    r"(?:[A-Z]|[b-h]|\d{1,2}|[А-Е])(?!\w)"  # noqa: RUF001
    r"|\b(?i:first|second|third|fourth|fifth|last|former|latter|other|remaining|above|below)\s+"
    r"(?:two\s+|three\s+)?(?:options?|choices?|answers?|alternatives?|ones?)\b"
)
_LETTER = re.compile(r"(?<![\w'\u2019-])[A-Z](?![\w'\u2019-])|(?<=\()[a-z](?=\))|(?<![\w(])[a-z](?=\))")
# "A" that begins a sentence is mostly an article: a noun follows, seldom one that ends in s.
_ARTICLE = re.compile(r"A\s+(?!(?:is|was|are|and|or|has|can|would|does|\w+s)\b)\w")
_VERDICT = re.compile(
    r"[A-Z]\)?\s+(?:is|are|was|were)\s+(?:the\s+|not\s+)*(?:in)?(?:correct|right|wrong|true|false|best)"
)


def shuffle(questions: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the questions with their choices in another order, the right answer equally often in each place.

    The order follows from the texts alone, so that the same questions always come out the same. Choices that
    refer to others, or to which the text refers by letter, stay where they are.
    """
    decks: defaultdict[int, list[int]] = defaultdict(list)
    return [_shuffled(question, decks) if _movable(question) else question for question in questions]


def _movable(question: dict[str, Any]) -> bool:
    texts = [choice["text"] for choice in question["choices"]]
    return not refer_to_others(texts) and not names_letters(
        question["questionText"], question["explanation"], len(texts)
    )


def refer_to_others(texts: Iterable[str]) -> bool:
    """Return whether one of the choices may mean others: all of the above, A and B."""
    return any(_REFERS_TO_CHOICES.search(text) or _LETTERS_JOINED.search(text) for text in map(_one_line, texts))


def names_letters(question_text: str, explanation: str, count: int) -> bool:
    """Return whether a question's texts may name one of its `count` choices by letter or place.

    A letter that the question itself uses (the language C, a point B) is taken for that, unless called right or wrong.
    """
    question_text, explanation = _one_line(question_text), _one_line(explanation)
    if _WORD_AND_LETTER.search(question_text) or _WORD_AND_LETTER.search(explanation):
        return True
    own = {match[0].upper() for match in _LETTER.finditer(question_text)}
    for match in _LETTER.finditer(explanation):
        letter = match[0].upper()
        if letter not in LETTERS[:count] or _ARTICLE.match(explanation, match.start()):
            continue
        if letter not in own or _VERDICT.match(explanation, match.start()):
            return True
    return False


def _one_line(text: str) -> str:
    # Also for speed: thousands of spaces, which a looping model writes, would take the patterns long.
    return " ".join(text.split())


def _shuffled(question: dict[str, Any], decks: defaultdict[int, list[int]]) -> dict[str, Any]:
    texts = [choice["text"] for choice in question["choices"]]
    right = {choice["text"] for choice in question["choices"] if choice["index"] in question["correctAnswers"]}
    digest = hashlib.sha256("\0".join([question["questionText"], *sorted(texts)]).encode()).digest()
    # Not a secret: the order must come out the same again.
    rng = random.Random(digest)  # noqa: S311
    order = sorted(texts)
    rng.shuffle(order)
    if len(right) == 1:
        deck = decks[len(texts)]
        if not deck:
            deck.extend(rng.sample(range(len(texts)), len(texts)))
        (answer,) = right
        order.remove(answer)
        order.insert(deck.pop(), answer)
    return {
        **question,
        "choices": [{"index": LETTERS[place], "text": text} for place, text in enumerate(order)],
        "correctAnswers": [LETTERS[place] for place, text in enumerate(order) if text in right],
    }
