"""Fixtures: one installation for a module, with an API and a worker that all its tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stack import Stack, stack


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Give the servers of an installation of the module's own; nothing of the service runs yet."""
    with stack(tmp_path_factory.mktemp("stack")) as servers:
        servers.add_prompts()
        yield servers


@pytest.fixture(scope="module")
def service(installation: Stack) -> Stack:
    """Give an installation with a running API and one worker."""
    installation.start_api()
    installation.start_worker()
    return installation
