"""Unit tests open no sockets, and leave no ids bound for the logs of the next one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_socket import disable_socket, enable_socket

from superexam_rq import logs


@pytest.fixture(autouse=True)
def _no_sockets() -> Iterator[None]:
    disable_socket()
    yield
    enable_socket()


@pytest.fixture(autouse=True)
def _no_bound_ids() -> Iterator[None]:
    yield
    logs.unbind()
