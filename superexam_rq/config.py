"""The settings: one frozen table, each row with its type, default and help.

Values come from the environment and from `.env` in the working directory (the environment wins). What is
read, checked and derived is here; what a setting does is with whoever uses it. `.env.example` is printed by
`env_example()` and tested against it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, urlsplit

from dotenv.parser import parse_stream

from superexam_rq.errors import ConfigError
from superexam_rq.request import MODEL_PATTERN

Parser = Callable[[str], Any]

# What .env.example holds: not a key.
PLACEHOLDER_KEY = "your-api-key-here"

# The characters that RQ 3 takes in a key prefix (rq.defaults).
_PREFIX = re.compile(r"[A-Za-z0-9_.:{}-]+")
_HOST_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
# Nothing that could be taken for a pattern.
_ORIGIN = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")
_NUMBER = re.compile(r"[0-9]{1,9}")
_RATE = re.compile(r"\s*[1-9]\d{0,8}\s*(/|per)\s*([1-9]\d{0,5}\s*)?(second|minute|hour|day)s?\s*", re.IGNORECASE)
# A comment behind a value: systemd's EnvironmentFile and `docker run --env-file` keep it in the value.
_TRAILING_COMMENT = re.compile(r"(^|\s+)#.*$", re.DOTALL)


def _text(value: str) -> str:
    return value


def _model(value: str) -> str:
    if not re.fullmatch(MODEL_PATTERN, value):
        raise ValueError("a model's name, such as gemini-flash-latest")
    return value


def _whole(minimum: int, maximum: int = 2**31 - 1) -> Parser:
    def parse(value: str) -> int:
        if not re.fullmatch(r"\d{1,10}", value) or not minimum <= int(value) <= maximum:
            raise ValueError(f"a whole number from {minimum}" + (f" to {maximum}" if maximum < 2**31 - 1 else ""))
        return int(value)

    return parse


def _one_of(*words: str) -> Parser:
    def parse(value: str) -> str:
        for word in words:
            if value.lower() == word.lower():
                return word
        raise ValueError(f"one of {', '.join(words)}")

    return parse


def _words(value: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _intervals(value: str) -> tuple[int, ...]:
    words = _words(value)
    if not words or not all(re.fullmatch(r"\d{1,6}", word) for word in words):
        raise ValueError("seconds, separated by commas, such as 10,30,90")
    return tuple(int(word) for word in words)


def _prefix(value: str) -> str:
    if not _PREFIX.fullmatch(value) or not value.strip(":"):
        raise ValueError("letters, digits and _ . : { } -, such as superexam:")
    return value


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", value):
        raise ValueError("letters, digits and _ . -")
    return value


def _collection_prefix(value: str) -> str:
    if "/" in value or len(value) > 200:
        raise ValueError("at most 200 characters without a /")
    return value


def _host(value: str) -> str:
    """Return a host's name or address, an IPv6 address without brackets."""
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(bare)
        return bare
    if not _HOST_NAME.fullmatch(value):
        raise ValueError("a host's name or address without a port, such as localhost")
    return value


def _url(value: str, *schemes: str) -> SplitResult:
    """Take a URL apart; raises `ValueError` where it is none of one of these schemes, or its host or port is odd."""
    parts = urlsplit(value)
    if not value.startswith(tuple(f"{scheme}://" for scheme in schemes)):
        raise ValueError(value)
    if parts.hostname is not None:
        _host(parts.hostname)
    _ = parts.port
    return parts


def _redis_url(value: str) -> str:
    with contextlib.suppress(ValueError):
        parts = _url(value, "redis", "rediss", "unix")
        databases = parse_qs(parts.query, keep_blank_values=True).get("db", [])
        if parts.scheme != "unix":
            databases.append(parts.path.removeprefix("/") or "0")
        if (parts.path or parts.scheme != "unix") and all(map(_NUMBER.fullmatch, databases)):
            return value
    raise ValueError("a URL such as redis://localhost:6379/0, rediss://user:password@host:6379/0 or unix:///path")


def _http_url(value: str) -> str:
    with contextlib.suppress(ValueError):
        parts = _url(value, "http", "https")
        if parts.netloc and not parts.query and not parts.fragment:
            return value.rstrip("/")
    raise ValueError("a URL that begins with http:// or https://, without ? and #")


def _origins(value: str) -> tuple[str, ...]:
    words = _words(value)
    for word in words:
        if word != "*" and not _ORIGIN.fullmatch(word):
            raise ValueError("origins such as https://exam.example, separated by commas")
    return words


def _host_port(value: str) -> str:
    if not re.fullmatch(r"[^\s/]+:\d{1,5}", value):
        raise ValueError("host:port, such as 127.0.0.1:8080")
    return value


def _path(value: str) -> Path:
    return Path(value).expanduser()


def _rate(value: str) -> str:
    if not _RATE.fullmatch(value):
        raise ValueError("a count per time, such as 300/minute; empty switches it off")
    return value.strip()


def _setting(
    default: Any, text: str, parse: Parser = _text, *, secret: bool = False, whole: bool = False, names: str = ""
) -> Any:
    """Return one row of the table; `names` are further variables that are read where the first is unset.

    A `whole` value may hold a " #" itself, as a password may: nothing behind it is taken for a comment.
    """
    return field(
        default=default, metadata={"help": text, "parse": parse, "secret": secret, "whole": whole, "names": names}
    )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Hold every setting, checked, for the life of a process; attribute names are the variables in lower case."""

    redis_url: str = _setting(
        "", "redis://, rediss:// or unix://; wins over the next four", _redis_url, secret=True, whole=True
    )
    redis_host: str = _setting("localhost", "where Redis is", _host)
    redis_port: int = _setting(6379, "its port", _whole(1, 65535))
    redis_db: int = _setting(0, "its database", _whole(0))
    redis_password: str = _setting("", "its password", secret=True, whole=True)
    redis_key_prefix: str = _setting("superexam:", "every key and channel starts with it", _prefix)
    rq_key_prefix: str = _setting(
        "", "RQ's own name for the prefix: the above without its last colon; set it for the stock rq tools", _prefix
    )
    queue_name: str = _setting("superexam", "the one named queue", _name)

    google_cloud_project: str = _setting(
        "", "Firestore's project; from the credentials if unset", names="GCP_PROJECT_ID"
    )
    firestore_emulator_host: str = _setting("", "host:port of a Firestore emulator; no credentials then", _host_port)
    firestore_collection_prefix: str = _setting(
        "superexam-", "before documents, system-prompts and custom-prompts", _collection_prefix
    )

    gemini_api_key: str = _setting("", "required by workers, not by the API", secret=True)
    gemini_model: str = _setting("gemini-flash-latest", "any model name that the key can use", _model)
    gemini_sdk: str = _setting(
        "google-generativeai", "google-generativeai or google-genai", _one_of("google-generativeai", "google-genai")
    )
    gemini_api_endpoint: str = _setting("", "base URL instead of Google's: a proxy, or the sandbox", _http_url)
    gemini_timeout: int = _setting(600, "seconds for one call", _whole(1, 3600))
    gemini_concurrency: int = _setting(8, "calls in flight for one document", _whole(1, 256))
    gemini_rpm: int = _setting(0, "calls per minute, all workers together; 0: no limit", _whole(0))
    pages_per_batch: int = _setting(20, "pages sent in one call", _whole(1, 1000))

    uploads_dir: Path = _setting(Path("/uploads"), "where a document's filePath is looked up", _path)
    gcs_bucket_name: str = _setting("", "if set, filePath is an object in this Cloud Storage bucket instead")
    max_pdf_mb: int = _setting(100, "a larger PDF is refused", _whole(1))
    max_pdf_pages: int = _setting(3000, "a longer PDF is refused", _whole(1))

    max_retry_attempts: int = _setting(3, "retries after the first run; 0: none", _whole(0, 100))
    retry_intervals: tuple[int, ...] = _setting(
        (10, 30, 90), "seconds before each retry; the last is repeated", _intervals
    )
    shutdown_grace: int = _setting(600, "seconds that a worker told to stop lets its job go on", _whole(0))
    job_timeout: int = _setting(3600, "seconds for one run of a job", _whole(1))
    job_ttl: int = _setting(86400, "seconds that an ended job stays readable", _whole(1))

    api_keys: tuple[str, ...] = _setting(
        (), "bearer keys, separated by commas; none: only loopback callers are served", _words, secret=True
    )
    google_id_token_audience: str = _setting("", "if set, Google ID tokens for this audience are accepted too")
    google_id_token_emails: tuple[str, ...] = _setting((), "and only from these accounts", _words)
    dashboard_username: str = _setting("admin", "login of /dashboard/")
    dashboard_password: str = _setting("", "its password; none: only loopback callers", secret=True, whole=True)
    trusted_proxies: int = _setting(0, "how many proxies' X-Forwarded-* headers to believe", _whole(0, 10))
    cors_origins: tuple[str, ...] = _setting((), "origins whose pages may call the API", _origins)
    rate_limit: str = _setting("300/minute", "submissions for one caller; empty: off", _rate)

    host: str = _setting("127.0.0.1", "address that gunicorn binds", _host)
    port: int = _setting(8000, "port that gunicorn binds", _whole(0, 65535))
    log_level: str = _setting(
        "INFO", "DEBUG, INFO, WARNING or ERROR", _one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
    )
    log_format: str = _setting("text", "text, or json: one JSON object a line", _one_of("text", "json"))

    @classmethod
    def from_env(cls, environ: Mapping[str, str], dotenv: Path | None = None) -> Settings:
        """Read the settings from `environ` and, behind it, from the file `dotenv`.

        Raises `ConfigError` with one line that names the variable and what it takes.
        """
        merged = read_environment(environ, dotenv)
        values: dict[str, Any] = {}
        for row in rows():
            raw = next((merged[name] for name in row.names if merged.get(name, "") != ""), None)
            # An empty value means the default, but for what is switched off by emptying it.
            if raw is None and row.attribute == "rate_limit" and "RATE_LIMIT" in merged:
                values[row.attribute] = ""
            if raw is None:
                continue
            try:
                values[row.attribute] = row.parse(raw)
            except ValueError as error:
                shown = "the value given" if row.secret else repr(raw)
                raise ConfigError(f"{row.names[0]} takes {error}, not {shown}") from None
        settings = cls(**values)
        return settings._derived()

    def _derived(self) -> Settings:
        """Fill what is built from other settings, and refuse what contradicts."""
        prefix = self.redis_key_prefix.removesuffix(":")
        if self.rq_key_prefix and self.rq_key_prefix != prefix:
            raise ConfigError(
                f"RQ_KEY_PREFIX takes REDIS_KEY_PREFIX without its last colon, {prefix!r}, not {self.rq_key_prefix!r}"
            )
        if "*" in self.cors_origins and (self.api_keys or self.google_id_token_audience):
            raise ConfigError("CORS_ORIGINS takes a list of origins, never *, where API_KEYS are set")
        object.__setattr__(self, "rq_key_prefix", prefix)
        if not self.redis_url:
            login = f":{quote(self.redis_password, safe='')}@" if self.redis_password else ""
            address = netloc(self.redis_host, self.redis_port)
            object.__setattr__(self, "redis_url", f"redis://{login}{address}/{self.redis_db}")
        return self

    def require_gemini_key(self) -> None:
        """Raise `ConfigError` where there is no key, without which a worker can do nothing."""
        if not self.gemini_api_key:
            raise ConfigError("GEMINI_API_KEY is not set: a worker needs the key of the Gemini API")

    def key(self, *parts: str) -> str:
        """Return the name of a Redis key or channel of ours, under the prefix that RQ's keys have too."""
        return ":".join((self.rq_key_prefix, *parts))

    def collection(self, name: str) -> str:
        """Return the name of a Firestore collection, such as `superexam-documents`."""
        return self.firestore_collection_prefix + name


def netloc(host: str, port: int) -> str:
    """Return a host and a port as a URL holds them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True)
class Row:
    """Describe one setting, for its reader, `.env.example` and the tests."""

    attribute: str
    names: tuple[str, ...]
    default: Any
    help: str
    parse: Parser
    secret: bool
    whole: bool

    def default_text(self) -> str:
        """Return the default as it would be written into `.env`."""
        value = self.default
        return ",".join(str(item) for item in value) if isinstance(value, tuple) else str(value)


def rows() -> tuple[Row, ...]:
    """Return the table of settings, in the order in which they are documented."""
    return tuple(_row(entry) for entry in fields(Settings))


def _row(entry: Field[Any]) -> Row:
    about = entry.metadata
    names = (entry.name.upper(), *((about["names"],) if about["names"] else ()))
    return Row(entry.name, names, entry.default, about["help"], about["parse"], about["secret"], about["whole"])


def read_environment(environ: Mapping[str, str], dotenv: Path | None = None) -> dict[str, str]:
    """Return the variables of the file `dotenv` with those of `environ` over them, comments behind values cut."""
    known = {name: row for row in rows() for name in row.names}
    merged = {name: value for name, value in _read_dotenv(dotenv, known).items() if value is not None}
    for row in rows():
        if any(environ.get(name) for name in row.names):
            # Under whichever of its names: the environment wins.
            merged = {name: value for name, value in merged.items() if name not in row.names}
    merged |= environ
    for name, value in merged.items():
        found = known.get(name)
        if found is not None:
            merged[name] = value.strip() if found.whole else _TRAILING_COMMENT.sub("", value).strip()
    return merged


def _read_dotenv(path: Path | None, known: Container[str | None]) -> dict[str, str | None]:
    if path is None or not path.is_file():
        return {}
    values: dict[str, str | None] = {}
    try:
        with path.open(encoding="utf-8") as file:
            # Not `dotenv_values`, which passes over what it can't read, be it a password.
            for line in parse_stream(file):
                broken = "\n" in (line.value or "") and line.key in known
                if line.error or broken:
                    name = line.key or line.original.string.strip().partition("=")[0][:40]
                    where = f"{path.name}, line {line.original.line}"
                    raise ConfigError(f"{where}: {name!r} can't be read: a quote must be closed, and end its line")
                if line.key is not None:
                    values[line.key] = line.value
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} can't be read: {type(error).__name__}") from None
    return values


def env_example() -> str:
    """Return the text of `.env.example`: every setting with its default, commented out where it is optional."""
    lines = [
        "# Settings of the SuperExam processing service: copy this file to .env and edit it.",
        "# Every line is optional but GEMINI_API_KEY, which the workers need. The environment wins over this file.",
        "",
        "# Read by docker-compose, not by the service: the seed commands work from the project's root with it.",
        "COMPOSE_FILE=deploy/docker-compose.yml",
        "COMPOSE_PROJECT_NAME=superexam",
    ]
    for row in rows():
        default = row.default_text()
        lines += ["", f"# {row.help}"]
        if row.attribute in {"redis_host", "redis_port", "redis_key_prefix"}:
            lines.append(f"{row.names[0]}={default}")
        elif row.attribute == "gemini_api_key":
            lines.append(f"GEMINI_API_KEY={PLACEHOLDER_KEY}")
        else:
            lines.append(f"# {row.names[0]}={default}")
    return "\n".join(lines) + "\n"


def key_prefix(variables: Mapping[str, str]) -> str:
    """Return the prefix that RQ is to use; the default where that is given is none, since RQ's import would fail."""
    given = variables.get("RQ_KEY_PREFIX") or variables.get("REDIS_KEY_PREFIX", "").removesuffix(":")
    return given if _PREFIX.fullmatch(given) else Settings.redis_key_prefix.removesuffix(":")
