"""The Redis user of deploy/redis/users.acl, which may touch nothing but the service's keys and channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redis import Redis

USERS = Path(__file__).resolve().parent.parent / "deploy" / "redis" / "users.acl"
NAME = "superexam"
PASSWORD = "s3cret/@:"
URL_PASSWORD = "s3cret%2F%40%3A"


def restrict(redis: Redis) -> str:
    """Create the user on a server, and return its URL."""
    [line] = [line for line in USERS.read_text().splitlines() if line.startswith(f"user {NAME} ")]
    rules = [f">{PASSWORD}" if word.startswith(">") else word for word in line.split()[2:]]
    redis.execute_command("ACL", "SETUSER", NAME, "reset", *rules)
    redis.execute_command("ACL", "LOG", "RESET")
    port = redis.connection_pool.connection_kwargs["port"]
    return f"redis://{NAME}:{URL_PASSWORD}@127.0.0.1:{port}/0"


def violations(redis: Redis) -> list[Any]:
    """Return what the user tried and may not do."""
    return [entry for entry in redis.acl_log() if entry["username"] == NAME]
