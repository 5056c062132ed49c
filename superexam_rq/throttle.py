"""One pace for all workers: `GEMINI_RPM` and the pause that a 429 asks for, both kept in Redis.

The limit is a moving window, counted by one script with the clock of Redis, so that the clocks of the workers'
machines don't matter and a worker that has to wait is told for how long. A call is counted when it is granted,
but the server counts it when it arrives: the window is longer than a minute by what this may vary, which costs
3 % of the limit.

What is not here: the retries of one call (`generation`) and what a 429 looks like (`gemini`).
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

if TYPE_CHECKING:
    import threading

    from redis import Redis

    from superexam_rq.config import Settings

log = logging.getLogger(__name__)

# Seconds: the minute of GEMINI_RPM, and by how much the ways of two calls to the server may differ.
WINDOW = 60.0 + 2.0
# Seconds; the contract's bound for a delay that is waited for.
MAX_PAUSE = 60.0
# Seconds over which those who waited for the same pause spread, lest they cause the next one.
_SPREAD = 1.0

# KEYS: grants (newest first, milliseconds), pause. ARGV: limit (0: none), window in milliseconds.
# Returns the milliseconds to wait (0: granted), and 1 if they are a pause.
_ACQUIRE = """
local pause = redis.call('PTTL', KEYS[2])
if pause > 0 then
    return {pause, 1}
end
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
if limit == 0 then
    return {0, 0}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local oldest = redis.call('LINDEX', KEYS[1], limit - 1)
if oldest and oldest + window >= now then
    return {math.min(oldest + window - now + 1, window), 0}
end
redis.call('LPUSH', KEYS[1], string.format('%.0f', now))
redis.call('LTRIM', KEYS[1], 0, limit - 1)
redis.call('PEXPIRE', KEYS[1], window)
return {0, 0}
"""

# KEYS: pause. ARGV: milliseconds. A pause is only ever made longer.
_PAUSE = """
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[1]) then
    redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
end
"""


class Throttle:
    """Hold calls back until all workers together may make one more; safe to use from several threads.

    Without Redis nothing is held back: at worst Gemini answers 429, which is dealt with, while failing the run
    would throw away what is being paid for. `window` is in seconds; only tests shorten it.
    """

    def __init__(self, redis: Redis, settings: Settings, *, window: float = WINDOW) -> None:
        self._keys = (settings.key("gemini", "calls"), settings.key("gemini", "pause"))
        self._arguments = (settings.gemini_rpm, round(window * 1000))
        self._acquire: Any = redis.register_script(_ACQUIRE)
        self._pause: Any = redis.register_script(_PAUSE)

    def acquire(self, stop: threading.Event) -> bool:
        """Wait until a call may be made, and count it; return False if `stop` was set before."""
        while not stop.is_set():
            try:
                milliseconds, paused = self._acquire(self._keys, self._arguments)
            except RedisError as error:
                log.warning("Gemini is called without the shared limit: Redis is away (%s)", type(error).__name__)
                return True
            if not milliseconds:
                return True
            stop.wait(milliseconds / 1000 + random.uniform(0, _SPREAD if paused else 0))  # noqa: S311 (no secret)
        return False

    def pause(self, seconds: float) -> None:
        """Let every worker wait `seconds`, at most `MAX_PAUSE`, before its next call."""
        milliseconds = round(min(seconds, MAX_PAUSE) * 1000)
        if milliseconds < 1:
            return
        try:
            self._pause(self._keys[1:], (milliseconds,))
        except RedisError as error:
            log.warning("The other workers can't be told to wait: Redis is away (%s)", type(error).__name__)
