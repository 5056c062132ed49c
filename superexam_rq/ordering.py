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
    r"|^(?:both|neither|all|none|either)\b|\b(?:option|choice|answer)s?\b"
    r"|de mai sus|niciun|nicio|toate\b|anterioare|ambele"
    r"|anteriores|ninguna|ninguno|todas\b|ambas|ambos|nenhuma|nenhum|acima"
    r"|ci-dessus|aucune?\b|toutes\b|tous\b|les deux|précédent"
    r"|oben|genannte|keine[rs]?\b|\balle\b|beide|obige"
    r"|precedenti|nessun|tutte\b|tutti\b|entramb"
    r"|вышеперечисл|перечисленн|ничего из|все ответы|оба\b|以上|上記|すべて",  # noqa: RUF001
    re.IGNORECASE,
)
# "A and C", "(a), (b)", "Nur B": a letter that stands alone, in the text of a choice.
_LETTER_ALONE = re.compile(
    r"(?<![\w'\u2019.-])[A-Za-z](?=\s*(?:[,;&/+)]|$|and\b|or\b|und\b|et\b|y\b|e\b|și\b|si\b|oder\b|ou\b))"
)
_LETTER_IN_PROSE = re.compile(
    r"(?<![\w'\u2019-])[B-HJ-Z](?![\w'\u2019-])"
    r"|(?<![\w'\u2019-])A(?=\s*(?:[,;:.)&/]|$|(?:is|was|are|and|or|has|can|would|does|\w+s)\b))"
    r"|\([a-z]\)|(?<![\w(])[a-h]\)"
    r"|\b(?:options?|choices?|answers?|alternatives?|variant\w*|răspuns\w*|antwort\w*|option\w*|réponses?|opci[oó]n\w*|"
    r"respuestas?|rispost\w+|opzion\w+|op[cç][aã]o|respostas?|вариант\w*|ответ\w*)\s*[\"'(«„:]*\s*(?:\w\b|\d)"
    r"|\b(?:first|second|third|fourth|fifth|last|former|latter|other|remaining|above|below)\s+"
    r"(?:two\s+|three\s+)?(?:options?|choices?|answers?|alternatives?|ones?)\b"
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
    if any(_REFERS_TO_CHOICES.search(text) for text in texts):
        return False
    # Choices that are letters themselves (blood groups, grades) refer to nothing: all are short.
    if any(len(text) > 2 and _LETTER_ALONE.search(text) for text in texts):
        return False
    prose = (question["questionText"], question["explanation"])
    return not any(_LETTER_IN_PROSE.search(text) for text in prose)


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
