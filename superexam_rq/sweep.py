"""The sweep: find what no callback saw, and give it the truth.

Run every half minute by a short-lived child of one worker (`worker`), never twice at a time.
"""

from __future__ import annotations

from redis import Redis

from superexam_rq.config import Settings


def run(connection: Redis, settings: Settings) -> None:
    """Sweep once; raises what Redis and Firestore raise."""
