"""What was answered and paid for is kept in Redis at once, so that no later run asks for it again.

An entry belongs to the pages of one call and to everything that decides its answer; its key is a digest of
these. It says what came of the pages: questions as the model wrote them, nothing for a reason that will not
change, or the parts that they had to be asked in. Entries are compressed JSON, expire, and are bounded in size,
each and together; the oldest leave first.

What is not here: the ladder that leads to an entry (`generation`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis import Redis

    from superexam_rq.config import Settings

log = logging.getLogger(__name__)

# To be raised when entries change their meaning, so that old ones are not found any more.
_VERSION = 1
# Bytes: of one entry compressed, of one entry unpacked, and of all entries together.
MAX_ENTRY = 1 << 20
MAX_UNPACKED = 16 << 20
MAX_TOTAL = 128 << 20
# Seconds that an entry is kept at least.
MIN_TTL = 86_400

# KEYS: entry, index. ARGV: value, milliseconds to live, digest, prefix of the entries' keys, bytes for all.
# The index holds "digest:bytes" by the time of writing.
_PUT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[3] .. ':' .. #ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
local total = 0
local entries = redis.call('ZREVRANGE', KEYS[2], 0, -1)
for _, entry in ipairs(entries) do
    local digest, size = string.match(entry, '^(%x+):(%d+)$')
    total = total + size
    if total > tonumber(ARGV[5]) then
        redis.call('ZREM', KEYS[2], entry)
        redis.call('DEL', ARGV[4] .. digest)
    end
end
"""


@dataclass(frozen=True)
class Checkpoint:
    """Say what came of the pages of one call: `items`, or nothing because of `missing`, or `parts` to ask instead.

    `note` is a reason why `items` may be incomplete; `parts` are page numbers of the document.
    """

    items: tuple[Any, ...] = ()
    missing: str = ""
    note: str = ""
    parts: tuple[tuple[int, ...], ...] = ()


def digest(document: str, pages: Sequence[int], model: str, texts: Sequence[str], schema: Mapping[str, Any]) -> str:
    """Return the name of an entry: a SHA-256 over everything that decides an answer.

    `document` is a digest of the PDF's bytes, `texts` are the system's and the other prompts.
    """
    whole = json.dumps([_VERSION, document, list(pages), model, list(texts), schema], sort_keys=True)
    return hashlib.sha256(whole.encode()).hexdigest()


class Checkpoints:
    """Keep entries in Redis; without it nothing is kept, which is logged. Safe to use from several threads."""

    def __init__(self, redis: Redis, settings: Settings, *, max_total: int = MAX_TOTAL) -> None:
        self._redis = redis
        self._settings = settings
        self._ttl = max(settings.job_ttl, MIN_TTL) * 1000
        self._max_total = max_total
        self._put: Any = redis.register_script(_PUT)

    def get(self, name: str) -> Checkpoint | None:
        """Return the entry named by `digest`, or None."""
        try:
            value: Any = self._redis.get(self._settings.key("batch", name))
        except RedisError as error:
            log.warning("Finished batches can't be looked up: Redis is away (%s)", type(error).__name__)
            return None
        return _unpack(value) if value else None

    def put(self, name: str, checkpoint: Checkpoint) -> None:
        """Keep an entry, unless it is too large."""
        value = _pack(checkpoint)
        if len(value) > MAX_ENTRY:
            log.warning("A finished batch is too large to be kept: %d bytes", len(value))
            return
        keys = (self._settings.key("batch", name), self._settings.key("batches"))
        try:
            self._put(keys, (value, self._ttl, name, self._settings.key("batch", ""), self._max_total))
        except RedisError as error:
            log.warning("A finished batch can't be kept: Redis is away (%s)", type(error).__name__)

    def drop(self, name: str) -> None:
        """Forget an entry; the index forgets it in time."""
        try:
            self._redis.delete(self._settings.key("batch", name))
        except RedisError as error:
            log.warning("A batch can't be forgotten: Redis is away (%s)", type(error).__name__)


def _pack(checkpoint: Checkpoint) -> bytes:
    fields = {
        "items": checkpoint.items,
        "missing": checkpoint.missing,
        "note": checkpoint.note,
        "parts": checkpoint.parts,
    }
    return zlib.compress(json.dumps(fields, separators=(",", ":")).encode())


def _unpack(value: bytes) -> Checkpoint | None:
    """Read an entry; one that can't be read counts as none."""
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(value, MAX_UNPACKED)
        fields = json.loads(text)
        return Checkpoint(
            items=tuple(fields["items"]),
            missing=str(fields["missing"]),
            note=str(fields["note"]),
            parts=tuple(tuple(int(page) for page in part) for part in fields["parts"]),
        )
    except (zlib.error, ValueError, KeyError, TypeError, RecursionError):
        log.warning("A kept batch can't be read and is asked for again")
        return None
