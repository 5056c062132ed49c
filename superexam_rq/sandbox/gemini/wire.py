"""What a `generateContent` request says, and how an answer to it is written, in the JSON of Google's API.

No HTTP and no state: `server` has those.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from superexam_rq.errors import PdfInvalid
from superexam_rq.pdf import Document
from superexam_rq.sandbox.gemini.faults import BLOCK_REASONS, FINISH_REASONS, Fault, error_body
from superexam_rq.sandbox.gemini.forms import DEFAULT_SCHEMA, fill
from superexam_rq.sandbox.gemini.questions import MARK, Question, make_questions

MODEL_VERSION = "superexam-sandbox-not-gemini"
MAX_PDF = 50 * 2**20
MAX_PAGES = 1000
TOKENS_A_PAGE = 560
MAX_OUTPUT_TOKENS = 65_536
CHARS_A_TOKEN = 4

_SCHEMA_FIELDS = frozenset(
    {"type", "format", "title", "description", "nullable", "enum", "properties", "required", "propertyOrdering",
     "items", "anyOf", "example", "default", "minItems", "maxItems", "minimum", "maximum", "minLength", "maxLength",
     "pattern", "minProperties", "maxProperties"}
)  # fmt: skip
_BOUNDS = frozenset(
    {"minItems", "maxItems", "minimum", "maximum", "minLength", "maxLength", "pattern", "minProperties",
     "maxProperties", "exclusiveMinimum", "exclusiveMaximum", "uniqueItems", "multipleOf"}
)  # fmt: skip
_THOUGHTS = {"MINIMAL": 0, "LOW": 90, "MEDIUM": 320, "HIGH": 900}


@dataclass(frozen=True)
class Asked:
    """One request: `as_ints`: enums are wanted as numbers; `prompt`: all its texts; `config`: `generationConfig`."""

    model: str
    as_ints: bool
    pdfs: tuple[bytes, ...]
    prompt: str
    config: Mapping[str, Any]
    schema: Mapping[str, Any] | None

    def digest(self) -> str:
        """Return a digest of the PDFs."""
        return hashlib.sha256(b"".join(hashlib.sha256(pdf).digest() for pdf in self.pdfs)).hexdigest()


@dataclass(frozen=True)
class Material:
    """The texts of all pages sent, a digest of each, and the questions made of them."""

    pages: tuple[str, ...]
    digests: tuple[str, ...]
    questions: tuple[Question, ...]

    @classmethod
    def of(cls, pdfs: Sequence[bytes]) -> Material:
        """Read PDFs; Refused as Google refuses them."""
        pages = tuple(text for pdf in pdfs for text in _page_texts(pdf))
        digests = tuple(hashlib.sha256(page.encode("utf-8", "replace")).hexdigest()[:16] for page in pages)
        return cls(pages, digests, tuple(make_questions(pages)))


@dataclass(frozen=True)
class Reply:
    """One HTTP answer; `finish` is the finish reason in it, for the journal."""

    status: int
    body: bytes
    content_type: str = "application/json; charset=UTF-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    finish: str = ""

    @classmethod
    def json(cls, thing: Any, status: int = 200) -> Reply:
        """Answer `thing` as JSON."""
        return cls(status, _dump(thing).encode("utf-8", "replace"))


class Refused(Exception):
    """A request that is answered with one of Google's errors."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(status)
        self.status = status
        self.body = body

    def reply(self) -> Reply:
        """Return the answer."""
        return Reply.json(self.body, self.status)


def _get(thing: Any, name: str, default: Any = None) -> Any:
    """Read a field of a Google message in JSON, which may be written in camelCase or in snake_case."""
    if not isinstance(thing, Mapping):
        return default
    snake = re.sub(r"[A-Z]", lambda m: "_" + m[0].lower(), name)
    return thing[name] if name in thing else thing.get(snake, default)


def read(body: bytes, model: str, *, as_ints: bool) -> Asked:
    """Read the JSON of a request; Refused if it can't be read."""
    try:
        return _read(json.loads(body), model, as_ints)
    except (ValueError, TypeError, AttributeError) as error:
        raise Refused(400, error_body(400, "Invalid JSON payload received.")) from error


def _read(given: Any, model: str, as_ints: bool) -> Asked:
    contents = _get(given, "contents")
    if not contents:
        text = "* GenerateContentRequest.contents: contents is not specified\n"
        raise Refused(400, error_body(400, text))
    if _get(contents[-1], "role") == "model":
        raise Refused(400, error_body(400, "Please ensure that the last turn is a user turn."))
    texts: list[str] = []
    pdfs: list[bytes] = []
    for content in [_get(given, "systemInstruction"), *contents]:
        for part in _get(content, "parts") or ():
            blob = _get(part, "inlineData")
            if blob is not None:
                pdfs.append(_pdf(blob))
            else:
                texts.append(str(_get(part, "text", "")))
    config = _get(given, "generationConfig") or {}
    return Asked(
        model=model,
        as_ints=as_ints,
        pdfs=tuple(pdfs),
        prompt="\n".join(texts),
        config={**config, "maxOutputTokens": int(_get(config, "maxOutputTokens") or MAX_OUTPUT_TOKENS)},
        schema=_get(config, "responseSchema") or _get(config, "responseJsonSchema"),
    )


def _pdf(blob: Any) -> bytes:
    if _get(blob, "mimeType") != "application/pdf":
        text = f"Unsupported MIME type: {_get(blob, 'mimeType')}"
        raise Refused(400, error_body(400, text))
    try:
        # google-genai writes the URL-safe alphabet.
        data = base64.b64decode(str(_get(blob, "data", "")).translate({45: 43, 95: 47}), validate=True)
    except binascii.Error as error:
        text = "Invalid value at 'contents[0].parts[0].inline_data.data' (TYPE_BYTES), Base64 decoding failed"
        raise Refused(400, error_body(400, text)) from error
    if not data:
        raise Refused(400, error_body(400, "The document has no pages."))
    if len(data) > MAX_PDF:
        raise Refused(400, error_body(400, f"The document is too large: the limit is {MAX_PDF} bytes."))
    return data


def check(asked: Asked) -> None:
    """Refuse what Google refuses before it reads the pages."""
    config = asked.config
    plain, rich = _get(config, "responseSchema"), _get(config, "responseJsonSchema")
    if plain is not None and rich is not None:
        text = "Only one of response_schema and response_json_schema can be set."
        raise Refused(400, error_body(400, text))
    if asked.schema is not None:
        if _get(config, "responseMimeType") != "application/json":
            text = "response_schema is only allowed with response_mime_type: application/json"
            raise Refused(400, error_body(400, text))
        unknown = _unknown_field(plain) if plain is not None else None
        if unknown is not None:
            text = f"Invalid JSON payload received. Unknown name \"{unknown}\" at 'generation_config.response_schema'"
            raise Refused(400, error_body(400, f"{text}: Cannot find field."))
        if any(_get(part, bound) is not None for part in _parts_of(asked.schema) for bound in _BOUNDS):
            raise Refused(400, error_body(400))
    thinking = _get(config, "thinkingConfig") or {}
    level, budget = _get(thinking, "thinkingLevel"), _get(thinking, "thinkingBudget")
    if level is not None and budget is not None:
        text = "You can only set only one of thinking budget and thinking level."
        raise Refused(400, error_body(400, text))
    if level is not None:
        name = str(level).upper()
        old = asked.model.startswith(("gemini-1", "gemini-2"))
        if old or name not in _THOUGHTS or (name == "MINIMAL" and asked.model == "gemini-3.8-flash"):
            what = "Thinking level" if old else f"Thinking level {name}"
            text = f"{what} is not supported for this model. Please retry with other thinking level."
            raise Refused(400, error_body(400, text))


def _parts_of(schema: Any) -> Iterator[Mapping[str, Any]]:
    """Yield a schema and the schemas in it; a property may well be named "pattern", so names are not looked at."""
    if isinstance(schema, list):
        for part in schema:
            yield from _parts_of(part)
    if not isinstance(schema, Mapping):
        return
    yield schema
    for key in ("items", "anyOf", "oneOf", "prefixItems"):
        yield from _parts_of(_get(schema, key))
    for key in ("properties", "$defs"):
        yield from _parts_of(list((schema.get(key) or {}).values()))


def _unknown_field(schema: Any) -> str | None:
    """Name a field that `responseSchema`, unlike a JSON Schema, does not have."""
    for part in _parts_of(schema):
        for name in part:
            if re.sub(r"_([a-z])", lambda m: m[1].upper(), name) not in _SCHEMA_FIELDS:
                return name
        if isinstance(part.get("type"), list):
            return "type"
    return None


def _dump(thing: Any) -> str:
    return json.dumps(thing, ensure_ascii=False)


def write_fault(asked: Asked, fault: Fault) -> Reply:
    """Write the body that a fault brings along."""
    text = fault.raw if fault.raw is not None else _dump(fault.body)
    body = text.replace("{model}", asked.model).encode()
    return Reply(fault.status, body, fault.content_type, fault.headers or {})


def write_answer(asked: Asked, material: Material, fault: Fault | None) -> Reply:
    """Write a `GenerateContentResponse`: the true one, or as a fault wants it."""
    fault = fault or Fault(kind="")
    text = _true_text(asked, material, fault.wrap) if fault.text is None else fault.text
    finish, shape, thoughts = fault.finish, fault.parts, _thoughts(asked)
    room = max(0, asked.config["maxOutputTokens"] - thoughts) * CHARS_A_TOKEN
    if shape == "partial":
        text = text[: int(len(text) * fault.keep)]
    elif finish == "STOP" and len(text) > room:
        text, finish, shape = text[:room], "MAX_TOKENS", "complete" if room else "none"
    if fault.block is not None:
        finish, thoughts, shape = f"blocked: {fault.block}", 0, "none"
        reason: int | str = BLOCK_REASONS[fault.block] if asked.as_ints else fault.block
        reply: dict[str, Any] = {"promptFeedback": {"blockReason": reason}}
    else:
        candidate: dict[str, Any] = {"content": {"parts": _parts(text, shape), "role": "model"}}
        if shape == "none":
            del candidate["content"]["parts"]
        elif shape == "no_content":
            del candidate["content"]
        candidate["finishReason"] = FINISH_REASONS[finish] if asked.as_ints else finish
        candidate["index"] = 0
        reply = {"candidates": [candidate]}
    tokens_in = TOKENS_A_PAGE * len(material.pages) + len(asked.prompt) // CHARS_A_TOKEN
    tokens_out = 0 if shape in ("none", "no_content", "empty") else -(-len(text) // CHARS_A_TOKEN)
    usage = {"promptTokenCount": tokens_in, "candidatesTokenCount": tokens_out, "thoughtsTokenCount": thoughts}
    reply |= {
        # As in protobuf's JSON, what is 0 is left out.
        "usageMetadata": {key: n for key, n in usage.items() if n} | {"totalTokenCount": sum(usage.values())},
        "modelVersion": MODEL_VERSION,
        "responseId": hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:22],
    }
    body = _dump(reply).encode("utf-8", "replace")
    return Reply(200, body[: len(body) // 2] if fault.cut else body, finish=finish)


def _true_text(asked: Asked, material: Material, wrap: str) -> str:
    if not asked.pdfs:
        return f"No document was sent. {MARK}"
    made = fill(asked.schema or DEFAULT_SCHEMA, material.questions)
    if wrap == "list" and isinstance(made, dict):
        made = next((value for value in made.values() if isinstance(value, list)), made)
    text = _dump(made)
    if wrap == "fence" or _get(asked.config, "responseMimeType") != "application/json":
        text = f"```json\n{text}\n```"
    return text


def describe_model(name: str) -> dict[str, Any]:
    """Describe a model as `models.get` does."""
    return {
        "name": f"models/{name}",
        "version": MODEL_VERSION,
        "displayName": f"{name} {MARK}",
        "description": "Answers with questions made from the text of the pages; no language model.",
        "inputTokenLimit": 1_048_576,
        "outputTokenLimit": MAX_OUTPUT_TOKENS,
        "supportedGenerationMethods": ["generateContent"],
    }


def _thoughts(asked: Asked) -> int:
    thinking = _get(asked.config, "thinkingConfig") or {}
    usual = "MINIMAL" if "lite" in asked.model else "MEDIUM"
    budget = _get(thinking, "thinkingBudget")
    most = _THOUGHTS[str(_get(thinking, "thinkingLevel") or usual).upper()]
    return most if budget is None or budget < 0 else min(most, int(budget))


def _parts(text: str, shape: str) -> list[dict[str, Any]]:
    signature = base64.b64encode(b"not a real signature").decode()
    if shape == "split":
        return [{"text": text[: len(text) // 2]}, {"text": text[len(text) // 2 :]}]
    if shape == "thought":
        return [{"text": "Let me think about the pages first.", "thought": True}, {"text": text}]
    if shape == "signature":
        return [{"text": text}, {"thoughtSignature": signature}]
    return [{"text": "" if shape == "empty" else text}]


def _page_texts(pdf: bytes) -> list[str]:
    try:
        with Document.open(pdf, max_bytes=MAX_PDF, max_pages=10**6) as document:
            count = document.page_count
            if count > MAX_PAGES:
                text = f"The document contains {count} pages, which exceeds the limit of {MAX_PAGES} pages."
                raise Refused(400, error_body(400, text))
            return [document.text(page) for page in range(1, count + 1)]
    except PdfInvalid as error:
        # Of a locked file Google says no more than that an argument is invalid.
        locked = "locked" in str(error)
        raise Refused(400, error_body(400, None if locked else "The document has no pages.")) from error
