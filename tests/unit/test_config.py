"""The settings: what they take, what they refuse, and that every one is documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from superexam_rq.client import base_url
from superexam_rq.config import Settings, env_example, rows
from superexam_rq.errors import ConfigError
from tests.stack import ROOT


def test_nothing_set_gives_the_contracts_defaults() -> None:
    """An empty environment gives the defaults of the contract."""
    settings = Settings.from_env({})
    assert settings.redis_url == "redis://localhost:6379/0"
    assert (settings.redis_key_prefix, settings.rq_key_prefix) == ("superexam:", "superexam")
    assert settings.queue_name == "superexam"
    assert settings.retry_intervals == (10, 30, 90)
    assert settings.max_retry_attempts == 3
    assert settings.gemini_model == "gemini-flash-latest"
    assert settings.uploads_dir == Path("/uploads")
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.api_keys == ()


def test_a_comment_behind_a_value_is_no_part_of_it(tmp_path: Path) -> None:
    """The seed's line `REDIS_KEY_PREFIX=superexam:  # Prefix …` means `superexam:`, in .env and in the environment."""
    line = "superexam:  # Prefix to avoid key conflicts"
    dotenv = tmp_path / ".env"
    dotenv.write_text(f"REDIS_KEY_PREFIX={line}\n")
    assert Settings.from_env({}, dotenv).redis_key_prefix == "superexam:"
    assert Settings.from_env({"REDIS_KEY_PREFIX": line}).redis_key_prefix == "superexam:"


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """A variable of the environment hides the same one of .env."""
    dotenv = tmp_path / ".env"
    dotenv.write_text("PORT=9001\nQUEUE_NAME=exams\n")
    settings = Settings.from_env({"PORT": "9002"}, dotenv)
    assert (settings.port, settings.queue_name) == (9002, "exams")


def test_the_url_is_built_from_the_four_parts_and_escapes_the_password() -> None:
    """REDIS_HOST, PORT, DB and PASSWORD make the URL; any character may stand in the password."""
    settings = Settings.from_env(
        {"REDIS_HOST": "cache", "REDIS_PORT": "6380", "REDIS_DB": "2", "REDIS_PASSWORD": "p@ss/w #1"}
    )
    assert settings.redis_url == "redis://:p%40ss%2Fw%20%231@cache:6380/2"
    assert Settings.from_env({"REDIS_URL": "rediss://h:1/0", "REDIS_HOST": "x"}).redis_url == "rediss://h:1/0"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PORT", "eighty", "a whole number from 0 to 65535"),
        ("MAX_RETRY_ATTEMPTS", "-1", "a whole number from 0"),
        ("RETRY_INTERVALS", "10;30", "seconds, separated by commas"),
        ("GEMINI_SDK", "openai", "one of google-generativeai, google-genai"),
        ("REDIS_URL", "http://localhost", "redis://"),
        ("REDIS_KEY_PREFIX", "super exam:", "letters, digits"),
        ("RQ_KEY_PREFIX", "other", "REDIS_KEY_PREFIX without its last colon"),
        ("GEMINI_API_ENDPOINT", "localhost:9090", "http://"),
        ("RATE_LIMIT", "often", "a count per time"),
        ("LOG_FORMAT", "xml", "one of text, json"),
        ("REDIS_HOST", "localhost:6379", "without a port"),
        ("REDIS_HOST", "redis://localhost", "without a port"),
        ("REDIS_HOST", "a..b", "a host's name"),
        ("HOST", "127.0.0.1:8000", "without a port"),
        ("REDIS_URL", "redis:localhost", "a URL such as redis://"),
        ("REDIS_URL", "redis://host:port", "a URL such as redis://"),
        ("REDIS_URL", "redis://[bad", "a URL such as redis://"),
        ("REDIS_URL", "unix://", "unix:///path"),
        ("GEMINI_API_ENDPOINT", "http://[x", "http://"),
        ("RATE_LIMIT", "0/minute", "a count per time"),
        ("RATE_LIMIT", "5/0 minutes", "a count per time"),
        ("RATE_LIMIT", "1" * 20 + "/minute", "a count per time"),
        ("REDIS_URL", "redis://localhost/abc", "a URL such as redis://"),
        ("REDIS_URL", "redis://localhost/1/2", "a URL such as redis://"),
        ("REDIS_URL", "redis://localhost?db=x", "a URL such as redis://"),
        ("REDIS_URL", "unix:///redis.sock?db=x", "a URL such as redis://"),
        ("GEMINI_API_ENDPOINT", "http://h/base?x=1", "without ? and #"),
        ("GEMINI_MODEL", "foo bar", "a model's name"),
        ("GEMINI_MODEL", "../x", "a model's name"),
        ("CORS_ORIGINS", ".*", "origins such as"),
        ("CORS_ORIGINS", "https://*.example.com", "origins such as"),
        ("CORS_ORIGINS", "https://example.com/", "origins such as"),
    ],
)
def test_a_wrong_value_is_named_in_one_line(variable: str, value: str, words: str) -> None:
    """A wrong value raises one line that names the variable and what it takes."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({variable: value})
    text = str(caught.value)
    assert text.startswith(variable)
    assert words in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ('API_KEYS="k1","k2"\nPORT=1', ".env, line 1: 'API_KEYS'"),
        ('GEMINI_MODEL="abc\nDASHBOARD_PASSWORD="x"\n', ".env, line 1: 'GEMINI_MODEL'"),
        ('A=b\nDASHBOARD_PASSWORD="two\nlines"\n', ".env, line 2: 'DASHBOARD_PASSWORD'"),
        ("this is no setting\n", ".env, line 1: 'this is no setting'"),
    ],
)
def test_a_line_that_can_not_be_read_is_no_line_to_pass_over(tmp_path: Path, lines: str, told: str) -> None:
    """It may hold a password, or swallow the next line that does; the value is not repeated."""
    dotenv = tmp_path / ".env"
    dotenv.write_text(lines)
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({}, dotenv)
    assert str(caught.value).startswith(told)
    assert "k1" not in str(caught.value)


def test_other_programs_lines_may_be_longer(tmp_path: Path) -> None:
    """A `.env` may be shared, with a private key in it."""
    dotenv = tmp_path / ".env"
    dotenv.write_text("export PRIVATE_KEY='one\ntwo'\nPORT=9001\n\n# the end\nEMPTY\n")
    assert Settings.from_env({}, dotenv).port == 9001


def test_a_comment_behind_keys_is_no_key() -> None:
    """Where systemd or Docker leave it in the value; a password is taken as it is."""
    settings = Settings.from_env({"API_KEYS": "a,b # two", "GEMINI_API_KEY": "k # mine", "REDIS_PASSWORD": "p # q"})
    assert (settings.api_keys, settings.gemini_api_key, settings.redis_password) == (("a", "b"), "k", "p # q")


def test_a_wrong_secret_is_not_repeated() -> None:
    """The line about a wrong value of a secret does not hold the value."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_env({"REDIS_URL": "http://:hunter2@h"})
    assert "hunter2" not in str(caught.value)


def test_the_environment_wins_under_either_name(tmp_path: Path) -> None:
    """GCP_PROJECT_ID in the environment hides GOOGLE_CLOUD_PROJECT in .env."""
    dotenv = tmp_path / ".env"
    dotenv.write_text("GOOGLE_CLOUD_PROJECT=dev\n")
    assert Settings.from_env({"GCP_PROJECT_ID": "prod"}, dotenv).google_cloud_project == "prod"
    assert Settings.from_env({"GCP_PROJECT_ID": ""}, dotenv).google_cloud_project == "dev"


@pytest.mark.parametrize("given", ["::1", "[::1]"])
def test_an_ipv6_address_is_taken_with_brackets_and_without(given: str) -> None:
    """For Redis and for the API; URLs get the brackets they need."""
    settings = Settings.from_env({"HOST": given, "REDIS_HOST": given})
    assert settings.host == "::1"
    assert base_url(settings) == "http://[::1]:8000"
    assert settings.redis_url == "redis://[::1]:6379/0"


@pytest.mark.parametrize(
    "url",
    ["unix:///run/redis.sock?db=1", "unix://user:p%40ss@/run/redis.sock", "rediss://:pw@h.example:1/0?ssl_ca_certs=x"],
)
def test_every_form_of_a_redis_url_is_taken(url: str) -> None:
    """A socket, a login, TLS."""
    assert Settings.from_env({"REDIS_URL": url}).redis_url == url


def test_an_empty_rate_limit_switches_it_off() -> None:
    """RATE_LIMIT= means off, while any other empty value means the default."""
    assert Settings.from_env({"RATE_LIMIT": ""}).rate_limit == ""
    assert Settings.from_env({"QUEUE_NAME": ""}).queue_name == "superexam"


def test_cors_for_everybody_is_refused_where_keys_are_set() -> None:
    """CORS_ORIGINS=* together with API_KEYS stops the process."""
    with pytest.raises(ConfigError, match="CORS_ORIGINS"):
        Settings.from_env({"CORS_ORIGINS": "*", "API_KEYS": "k"})


def test_the_example_file_is_the_table() -> None:
    """`.env.example` is what the table prints, so no setting is missing from it, and it is itself valid."""
    assert (ROOT / ".env.example").read_text() == env_example()
    Settings.from_env({}, ROOT / ".env.example")
    assert all(row.help for row in rows())
