"""The served OpenAPI document holds: schemathesis makes requests out of it and compares the answers.

No 5xx, no undocumented status, content type or shape, nothing without the key, no undocumented method. The seed is
fixed and the number of cases small; `SCHEMATHESIS_EXAMPLES=1300` makes over 5,000 of them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.stack import Stack, stack

EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "25"))
# A run that makes fewer has not looked at every call.
FEWEST_CASES = 4 * EXAMPLES
EVENTS = "/jobs/{job_id}/events"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give an API that wants a key."""
    with stack(tmp_path_factory.mktemp("schemathesis"), API_KEYS="key", RATE_LIMIT="") as servers:
        servers.start_api()
        yield servers
        log = servers.children.log("api").read_text()
        assert "Traceback" not in log


def run(api: Stack, *options: str) -> int:
    """Run schemathesis, and return how many cases it made."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--no-color", "run", f"{api.url}/openapi.json"),
        *("--seed", "20261123", "--generation-database", "none"),
        *("--max-examples", str(EXAMPLES), "--request-timeout", "10", "--header", "Authorization: Bearer key"),
        # A pattern can't say that pages must rise, nor that a text holds a JSON Schema; and DELETE cancels a job,
        # which can be looked at all the same.
        *("--exclude-checks", "positive_data_acceptance,use_after_free"),
        *options,
    ]
    done = subprocess.run(command, cwd=api.folder, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) generated", done.stdout)
    assert found, done.stdout
    return int(found[1])


@pytest.mark.timeout(1000)
def test_every_call_answers_as_documented(api: Stack) -> None:
    """One by one, and one after the other on the jobs that came of it."""
    assert run(api, "--exclude-path", EVENTS) >= FEWEST_CASES


@pytest.mark.timeout(1000)
def test_event_streams_answer_as_documented(api: Stack) -> None:
    """For jobs that do not exist; a stream of one that does would not end."""
    run(api, "--include-path", EVENTS, "--phases", "examples,coverage,fuzzing")
