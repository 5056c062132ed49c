"""Who may call: bearer keys, Google ID tokens, callers on this machine; and how often.

A caller is known by a digest, never by its key. What a caller may see or do is not decided here: whoever is let in
may do everything.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import urlsplit

from flask import Flask, g
from flask_limiter import Limiter
from limits.storage import RedisStorage
from redis import Redis
from redis.exceptions import RedisError
from werkzeug.middleware.proxy_fix import ProxyFix

from superexam_rq import queueing
from superexam_rq.config import Settings

log = logging.getLogger(__name__)

GOOGLE_CERTS_URL = "https://www.googleapis.com/oauth2/v1/certs"
GOOGLE_ISSUERS = frozenset({"accounts.google.com", "https://accounts.google.com"})
# A submission is answered within 1 s, a refusal within 2 s, also where Google does not answer.
CERTS_SECONDS = 1.5
CERTS_DEFAULT_TTL = 3600.0
# A token signed with a key that is not known yet makes the keys be fetched again, but not more often than this.
CERTS_MIN_TTL = 60.0
# While Google does not answer, callers are told so at once instead of each waiting in turn.
CERTS_RETRY_SECONDS = 5.0
CLOCK_SKEW_SECONDS = 30

# The rate limit's own trip to Redis: what is left of 2 s is for the submission.
LIMIT_SECONDS = 0.3

_PROXY_HEADERS = frozenset(
    {
        "HTTP_FORWARDED",
        "HTTP_VIA",
        "HTTP_X_REAL_IP",
        "HTTP_X_CLIENT_IP",
        "HTTP_X_CLUSTER_CLIENT_IP",
        "HTTP_X_ORIGINAL_FORWARDED_FOR",
        "HTTP_TRUE_CLIENT_IP",
        "HTTP_CF_CONNECTING_IP",
        "HTTP_FASTLY_CLIENT_IP",
    }
)


class Refused(Exception):
    """Report that a caller is not let in; the text tells its operator what to set or send."""

    def __init__(self, text: str, *, token_given: bool = False) -> None:
        super().__init__(text)
        self.token_given = token_given


class CertificatesAway(Exception):
    """Report that Google's certificates can't be had, so that an ID token can't be checked now."""


@dataclass(frozen=True)
class Caller:
    """Name a caller: the way it was let in and a digest of what it showed."""

    name: str


class TokenVerifier(Protocol):
    """Check an ID token and return the account it stands for."""

    def __call__(self, token: str) -> str:
        """Return the account; raises `Refused` or `CertificatesAway`."""


class Guard:
    """Decide who a request comes from, from its WSGI environment alone."""

    def __init__(self, settings: Settings, verify_token: TokenVerifier | None = None) -> None:
        self._keys = tuple(_digest(key.encode()) for key in settings.api_keys)
        self._trusted_proxies = settings.trusted_proxies
        self._verify_token = verify_token

    def identify(self, environ: Mapping[str, Any]) -> Caller:
        """Return the caller; raises `Refused`, or `CertificatesAway` where an ID token can't be checked now."""
        token = _bearer(environ.get("HTTP_AUTHORIZATION", ""))
        if token:
            digest = _digest(token)
            # No early end: the time taken tells nothing about which key was nearly right.
            matches = [hmac.compare_digest(digest, key) for key in self._keys]
            if any(matches):
                return Caller(f"key-{digest.hex()[:16]}")
            if self._verify_token is not None and token.count(b".") == 2:
                try:
                    account = self._verify_token(token.decode("latin-1"))
                    return Caller(f"account-{_digest(account.encode()).hex()[:16]}")
                except Refused:
                    if self._keys or not is_on_this_machine(environ, self._trusted_proxies):
                        raise
        if not self._keys and is_on_this_machine(environ, self._trusted_proxies):
            return Caller("this-machine")
        raise Refused(self._hint(environ), token_given=bool(token))

    def _hint(self, environ: Mapping[str, Any]) -> str:
        if self._keys or self._verify_token:
            return "Send a key of API_KEYS, or an ID token, as `Authorization: Bearer KEY`"
        why = "only callers on this machine are served"
        if _came_through_proxy(environ):
            why += ", and this request came through a proxy"
        elif not _is_local_name(environ.get("HTTP_HOST", "")):
            why += " under its address or as localhost"
        return f"No API_KEYS are set, so {why}: set API_KEYS, and send one as `Authorization: Bearer KEY`"


def is_on_this_machine(environ: Mapping[str, Any], trusted_proxies: int) -> bool:
    """Tell whether a request comes from this machine itself: from loopback or a Unix socket, through no proxy.

    `trusted_proxies` many are believed (`behind_proxies` has put the client's address in place), if the last of them
    is on this machine too: from elsewhere anybody could claim to be one. A host name with a dot is refused: a page on
    the web can make its own name point here (DNS rebinding).
    """
    if _came_through_proxy(environ):
        chain = [word for word in environ.get("HTTP_X_FORWARDED_FOR", "").split(",") if word.strip()]
        before = environ.get("werkzeug.proxy_fix.orig", {}).get("REMOTE_ADDR")
        if not trusted_proxies or len(chain) < trusted_proxies or not _is_local_peer(before):
            return False
    if not _is_local_name(environ.get("HTTP_HOST", "")):
        return False
    return _is_local_peer(environ.get("REMOTE_ADDR"))


def _is_local_peer(address: str | None) -> bool:
    # A Unix socket's peer has no address.
    return address == "" or (address is not None and _is_loopback(address))


def behind_proxies(application: Any, settings: Settings) -> Any:
    """Return the WSGI application behind as many proxies as the settings trust."""
    count = settings.trusted_proxies
    return ProxyFix(application, x_for=count, x_proto=count, x_host=count, x_prefix=count) if count else application


def _came_through_proxy(environ: Mapping[str, Any]) -> bool:
    return any(name.startswith("HTTP_X_FORWARDED") or name in _PROXY_HEADERS for name in environ)


@lru_cache(256)
def _is_loopback(address: str) -> bool:
    try:
        peer = ipaddress.ip_address(address)
    except ValueError:
        return False
    return bool((getattr(peer, "ipv4_mapped", None) or peer).is_loopback)


@lru_cache(256)
def _is_local_name(host: str) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name == "localhost" or name.endswith(".localhost") or "." not in name:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _bearer(header: str) -> bytes:
    scheme, _, token = header.partition(" ")
    # WSGI hands over the header's bytes as Latin-1.
    return token.strip().encode("latin-1", "replace") if scheme.lower() == "bearer" else b""


def _digest(secret: bytes) -> bytes:
    return hashlib.sha256(secret).digest()


class GoogleTokens:
    """Check Google's ID tokens against an audience and a list of accounts (empty: any).

    Google's certificates are fetched when first needed and kept as long as Google says.
    """

    def __init__(self, settings: Settings, certs_url: str, clock: Callable[[], float] = time.monotonic) -> None:
        # Imported here: most installations use keys, and need neither this nor requests.
        from google.auth.transport.requests import Request
        from google.oauth2 import id_token

        self._audience = settings.google_id_token_audience.rstrip("/")
        self._emails = frozenset(email.lower() for email in settings.google_id_token_emails)
        self._certs_url = certs_url
        self._certs = _CachedCerts(Request(), clock)
        self._verify = id_token.verify_token

    def __call__(self, token: str) -> str:
        """Return the account of a token; raises `Refused` or `CertificatesAway`."""
        from google.auth.exceptions import GoogleAuthError, TransportError

        try:
            claims = self._claims(token)
        except TransportError:
            raise CertificatesAway("Google's certificates can't be fetched, so the ID token can't be checked") from None
        except (GoogleAuthError, ValueError, TypeError, AttributeError, LookupError):
            raise Refused("The ID token is not valid: expired, or not signed by Google", token_given=True) from None
        if claims.get("iss") not in GOOGLE_ISSUERS:
            raise Refused("The ID token is not Google's", token_given=True)
        if str(claims.get("aud", "")).rstrip("/") != self._audience:
            raise Refused("The ID token is for another audience than GOOGLE_ID_TOKEN_AUDIENCE", token_given=True)
        email = str(claims.get("email", "")).lower()
        if self._emails and not (email in self._emails and claims.get("email_verified") is True):
            raise Refused("The ID token's account is not in GOOGLE_ID_TOKEN_EMAILS", token_given=True)
        return email or str(claims.get("sub", ""))

    def _claims(self, token: str) -> Mapping[str, Any]:
        from google.auth.exceptions import GoogleAuthError, TransportError

        # google-auth calls it as it would its own transport, and needs no more of it.
        transport: Any = self._certs

        def verify() -> Mapping[str, Any]:
            found: Mapping[str, Any] = self._verify(
                token,
                transport,
                audience=None,
                certs_url=self._certs_url,
                clock_skew_in_seconds=CLOCK_SKEW_SECONDS,
            )
            return found

        try:
            return verify()
        except TransportError:
            raise
        except (GoogleAuthError, ValueError, TypeError, AttributeError, LookupError):
            # Google may have begun to sign with a new key.
            if not self._certs.forget(older_than=CERTS_MIN_TTL):
                raise
        return verify()


class _CachedCerts:
    """Stand between google-auth and its transport, and keep the one answer that is asked for again and again."""

    def __init__(self, fetch: Callable[..., Any], clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = threading.Lock()
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="certificates")
        self._answer: Any = None
        self._fetched = 0.0
        self._expires = 0.0
        self._failed = -CERTS_RETRY_SECONDS

    def __call__(self, url: str, method: str = "GET", **options: Any) -> Any:
        from google.auth.exceptions import TransportError

        with self._lock:
            now = self._clock()
            if self._answer is not None and now < self._expires:
                return self._answer
            if self._answer is None and now - self._failed < CERTS_RETRY_SECONDS:
                raise TransportError("not asked again yet")
            try:
                answer = self._fetch_in_time(url, method=method, **options)
                if answer.status != 200:
                    raise TransportError(f"status {answer.status}")
            except TransportError as error:
                log.warning("Google's certificates can't be fetched: %s", type(error).__name__)
                self._failed = now
                if self._answer is None:
                    raise
                # Keys live for days: the last ones known are better than none.
                self._expires = now + CERTS_MIN_TTL
                return self._answer
            self._answer, self._fetched = answer, now
            self._expires = now + _max_age(answer.headers)
            return answer

    def forget(self, *, older_than: float) -> bool:
        """Let the next call fetch again if the answer has this age in seconds; tell whether it will.

        It will not where Google has just failed to answer.
        """
        with self._lock:
            now = self._clock()
            again = now - self._fetched >= older_than and now - self._failed >= CERTS_RETRY_SECONDS
            if again:
                self._expires = 0.0
            return again

    def _fetch_in_time(self, url: str, **options: Any) -> Any:
        """Fetch, for at most `CERTS_SECONDS` in all: as a time-out they would count for each address of the name."""
        from google.auth.exceptions import TransportError

        fetched = self._fetcher.submit(self._fetch, url, **(options | {"timeout": CERTS_SECONDS}))
        try:
            return fetched.result(timeout=CERTS_SECONDS)
        except TimeoutError:
            raise TransportError("no answer in time") from None


def _max_age(headers: Mapping[str, str]) -> float:
    text = next((value for name, value in headers.items() if name.lower() == "cache-control"), "")
    for word in text.split(","):
        name, _, seconds = word.strip().partition("=")
        if name.lower() == "max-age" and seconds.isdigit():
            return max(float(seconds), CERTS_MIN_TTL)
    return CERTS_DEFAULT_TTL


class FailOpenRedisStorage(RedisStorage):
    """Count in Redis; where Redis is away nothing is limited, since nothing is queued then either."""

    STORAGE_SCHEME = ["superexam+redis"]  # noqa: RUF012 (the base class's own type)

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count one, and return the count; 0 where Redis is away."""
        try:
            return super().incr(key, expiry, amount)
        except RedisError as error:
            log.warning("no rate limit: %s", queueing.away(error) or type(error).__name__)
            return 0


def create_limiter(app: Flask, settings: Settings, connect: Callable[..., Redis]) -> Limiter:
    """Return the rate limit of the caller that `g.caller` names; `limit` decorates what it applies to."""
    client = connect(settings, connect_seconds=LIMIT_SECONDS, answer_seconds=LIMIT_SECONDS)
    return Limiter(
        lambda: g.caller.name,
        app=app,
        storage_uri="superexam+redis://",
        # Typed as texts only, though they go to the storage's constructor as they are.
        storage_options={"connection_pool": client.connection_pool, "key_prefix": settings.key("limits")},  # type: ignore[dict-item]
        strategy="fixed-window",
        enabled=bool(settings.rate_limit),
    )
