"""What several commands need: the settings, and where the service is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from superexam_rq.client import ServiceClient, base_url
from superexam_rq.config import Settings
from superexam_rq.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])

_URL_HELP = "Where the service is; HOST and PORT of the settings if left out."
_KEY_HELP = "Its bearer key; the first of API_KEYS if left out. Better by the variable: others can see arguments."


def load_settings() -> Settings:
    """Return the settings of this shell, or end with the line that says what is wrong with them."""
    try:
        return Settings.from_env(os.environ, Path(".env"))
    except ConfigError as error:
        raise click.ClickException(str(error)) from None


def service_options(command: F) -> F:
    """Add --url and --key."""
    command = click.option("--key", envvar="SUPEREXAM_KEY", show_envvar=True, help=_KEY_HELP)(command)
    return click.option("--url", envvar="SUPEREXAM_URL", show_envvar=True, help=_URL_HELP)(command)


def service(settings: Settings, url: str | None, key: str | None) -> ServiceClient:
    """Return a client of the service that the options, or the settings, name."""
    return ServiceClient(url or base_url(settings), key or next(iter(settings.api_keys), ""))
