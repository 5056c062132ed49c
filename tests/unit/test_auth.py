"""Who is let in, as whom, and what the others are told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from superexam_rq import auth
from superexam_rq.auth import Caller, CertificatesAway, GoogleTokens, Guard, Refused, is_on_this_machine
from superexam_rq.config import Settings
from tests.google import AUDIENCE, Google, make_key


def environ(address: str | None = "127.0.0.1", host: str = "localhost:8000", **headers: str) -> dict[str, Any]:
    """Return the parts of a WSGI environment that tell who calls."""
    named = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    return {"REMOTE_ADDR": address, "HTTP_HOST": host, **named}


def proxied(address: str, by: str) -> dict[str, Any]:
    """Return the environment of a request through one trusted proxy, as `behind_proxies` hands it on."""
    return environ(address, x_forwarded_for=address) | {"werkzeug.proxy_fix.orig": {"REMOTE_ADDR": by}}


def guard(verify: auth.TokenVerifier | None = None, **settings: Any) -> Guard:
    """Return a guard with these settings."""
    return Guard(Settings(**settings), verify)


class TestThisMachine:
    @pytest.mark.parametrize("address", ["127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", ""])
    def test_loopback_and_unix_sockets_are_this_machine(self, address: str) -> None:
        """IPv4, IPv6, IPv4 within IPv6, and a Unix socket, whose peer has no address."""
        assert is_on_this_machine(environ(address), 0)

    @pytest.mark.parametrize("address", ["10.0.0.1", "::2", "::ffff:10.0.0.1", "0.0.0.0", "localhost", "unix", None])
    def test_other_addresses_are_not(self, address: str | None) -> None:
        """Neither another machine nor what is no address."""
        assert not is_on_this_machine(environ(address), 0)

    @pytest.mark.parametrize(
        "header",
        [
            "x_forwarded_for",
            "x_forwarded_proto",
            "x_forwarded_host",
            "x_forwarded_prefix",
            "forwarded",
            "x_real_ip",
            "via",
        ],
    )
    def test_a_proxy_hides_who_calls(self, header: str) -> None:
        """Whatever came through a proxy is somebody else's, even if the header says otherwise."""
        assert not is_on_this_machine(environ(**{header: "127.0.0.1"}), 0)

    def test_a_trusted_proxy_tells_who_calls(self) -> None:
        """Behind one trusted proxy the address put in place is believed."""
        assert is_on_this_machine(proxied("127.0.0.1", by="127.0.0.1"), 1)
        assert not is_on_this_machine(proxied("10.0.0.1", by="127.0.0.1"), 1)

    def test_a_proxy_elsewhere_does_not_vouch_for_this_machine(self) -> None:
        """Without one, anybody could name loopback as the client."""
        assert not is_on_this_machine(proxied("127.0.0.1", by="10.1.2.3"), 1)
        assert not is_on_this_machine(environ("127.0.0.1", x_forwarded_for="127.0.0.1"), 1)

    def test_a_chain_shorter_than_the_trusted_one_is_not_believed(self) -> None:
        """Then the address is a proxy's own, which may well be loopback."""
        assert not is_on_this_machine(environ(x_forwarded_for="127.0.0.1"), 2)
        assert not is_on_this_machine(environ(via="1.1 proxy"), 1)

    @pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "api:8000", ""])
    def test_local_names_are_served(self, host: str) -> None:
        """A name without a dot, or an address."""
        assert is_on_this_machine(environ(host=host), 0)

    @pytest.mark.parametrize(
        "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "[", "127.0.0.1.nip.io"]
    )
    def test_a_public_name_is_not_served(self, host: str) -> None:
        """A page on the web can make its own name point to this machine."""
        assert not is_on_this_machine(environ(host=host), 0)


class TestKeys:
    def test_every_key_is_good(self) -> None:
        """Several at once, for rotation; each is a caller of its own, whatever the address."""
        both = guard(api_keys=("old", "new"))
        old = both.identify(environ("10.0.0.1", authorization="Bearer old"))
        new = both.identify(environ("10.0.0.1", authorization="bearer  new"))
        assert old != new
        assert "old" not in old.name

    @pytest.mark.parametrize(
        "header",
        [
            "",
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            "Bearer keykey",
            "Basic key",
            "key",
            "Bearer ke\xff",
            "Bearer key,key",
        ],
    )
    def test_anything_else_is_refused_also_on_this_machine(self, header: str) -> None:
        """Where keys are set, everyone needs one."""
        with pytest.raises(Refused, match="Bearer"):
            guard(api_keys=("key",)).identify(environ(authorization=header))

    def test_a_key_may_hold_any_characters(self) -> None:
        """The header's bytes are compared, not their reading."""
        header = "Bearer " + "schlüssel".encode().decode("latin-1")
        assert guard(api_keys=("schlüssel",)).identify(environ(authorization=header))

    def test_without_keys_this_machine_is_served(self) -> None:
        """Also if it sends a token that nobody can check."""
        assert guard().identify(environ()) == Caller("this-machine")
        assert guard().identify(environ(authorization="Bearer a.b.c")) == Caller("this-machine")

    def test_without_keys_others_are_told_what_to_set(self) -> None:
        """The line names the setting, and the proxy if that is why."""
        with pytest.raises(Refused, match="set API_KEYS"):
            guard().identify(environ("10.0.0.1"))
        with pytest.raises(Refused, match="through a proxy"):
            guard().identify(environ(x_forwarded_for="10.0.0.1"))
        with pytest.raises(Refused, match="localhost"):
            guard().identify(environ(host="my.example"))


@pytest.fixture(scope="module")
def keys() -> Google:
    """Make the keys once: it takes a while."""
    return Google()


@pytest.fixture
def google(keys: Google) -> Iterator[Google]:
    """Give Google as it is at the beginning."""
    yield keys
    keys.__dict__.update(pages=0, away=False, now=0.0, keys={"k1": keys.keys["k1"]}, page={"k1": keys.keys["k1"][1]})


@pytest.fixture
def verifier(google: Google, monkeypatch: pytest.MonkeyPatch) -> Callable[..., GoogleTokens]:
    """Build verifiers whose transport is `google`."""
    monkeypatch.setattr("google.auth.transport.requests.Request", lambda: google.fetch)

    def build(**settings: Any) -> GoogleTokens:
        given = {"google_id_token_audience": AUDIENCE, **settings}
        return GoogleTokens(Settings(**given), "http://google", lambda: google.now)

    return build


class TestIdTokens:
    @pytest.mark.parametrize(("sent", "audience"), [("", ""), ("/", ""), ("", "/")])
    def test_the_audience_is_compared_without_a_trailing_slash(
        self, google: Google, verifier: Callable[..., GoogleTokens], sent: str, audience: str
    ) -> None:
        """The website sends its setting as it stands."""
        verify = verifier(google_id_token_audience=AUDIENCE + audience)
        assert verify(google.token(aud=AUDIENCE + sent)) == "web@project.example"

    @pytest.mark.parametrize(
        "claims",
        [
            {"aud": "https://other.example"},
            {"aud": None},
            {"iss": "https://evil.example"},
            {"exp": int(time.time()) - 100, "iat": int(time.time()) - 4000},
            {"iat": int(time.time()) + 1000},
        ],
        ids=["audience", "no audience", "issuer", "expired", "from the future"],
    )
    def test_other_tokens_are_refused(
        self, google: Google, verifier: Callable[..., GoogleTokens], claims: dict[str, Any]
    ) -> None:
        """For another audience, by another issuer, out of time."""
        with pytest.raises(Refused):
            verifier()(google.token(**claims))

    def test_clocks_may_differ_a_little(self, google: Google, verifier: Callable[..., GoogleTokens]) -> None:
        """A token that ended seconds ago, or begins in seconds, is good."""
        now = int(time.time())
        assert verifier()(google.token(exp=now - 10, iat=now - 3000))
        assert verifier()(google.token(iat=now + 10))

    @pytest.mark.parametrize("token", ["a.b.c", "..", "e30.e30.e30", "W10.W10.AA", "ÿ.ÿ.ÿ"])
    def test_nonsense_is_refused(self, verifier: Callable[..., GoogleTokens], token: str) -> None:
        """What is no token is no defect either."""
        with pytest.raises(Refused):
            verifier()(token)

    def test_a_foreign_signature_is_refused(self, google: Google, verifier: Callable[..., GoogleTokens]) -> None:
        """A token whose key is not on Google's page is not Google's."""
        google.keys["k2"] = make_key()
        with pytest.raises(Refused, match="not signed by Google"):
            verifier()(google.token("k2"))

    def test_only_listed_accounts_are_let_in(self, google: Google, verifier: Callable[..., GoogleTokens]) -> None:
        """And only if Google has verified the address."""
        verify = verifier(google_id_token_emails=("Web@Project.example",))
        assert verify(google.token()) == "web@project.example"
        for claims in ({"email": "other@project.example"}, {"email_verified": False}, {"email": None}):
            with pytest.raises(Refused, match="GOOGLE_ID_TOKEN_EMAILS"):
                verify(google.token(**claims))

    def test_certificates_are_fetched_once(self, google: Google, verifier: Callable[..., GoogleTokens]) -> None:
        """They are kept as long as the answer says."""
        verify = verifier()
        for google.now in (0.0, 300.0, 599.0):
            verify(google.token())
        assert google.pages == 1
        google.now = 601.0
        verify(google.token())
        assert google.pages == 2

    def test_a_new_key_is_found(self, google: Google, verifier: Callable[..., GoogleTokens]) -> None:
        """Google changes its keys; a token signed with a new one makes the page be fetched again."""
        verify = verifier()
        verify(google.token())
        google.keys["k2"] = make_key()
        google.page["k2"] = google.keys["k2"][1]
        google.now = 61.0
        assert verify(google.token("k2"))

    def test_forged_tokens_do_not_make_us_ask_google_each_time(
        self, google: Google, verifier: Callable[..., GoogleTokens]
    ) -> None:
        """At most once a minute."""
        verify = verifier()
        for _ in range(5):
            with pytest.raises(Refused):
                verify("a.b.c")
        assert google.pages == 1

    def test_without_google_nothing_can_be_said(self, google: Google, verifier: Callable[..., GoogleTokens]) -> None:
        """That is no refusal; and not every caller waits for Google in turn."""
        google.away = True
        verify = verifier()
        for _ in range(3):
            with pytest.raises(CertificatesAway):
                verify(google.token())
        assert google.pages == 1

    def test_a_google_that_hangs_is_given_up(
        self, google: Google, verifier: Callable[..., GoogleTokens], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In one time for all, though a transport's time-out counts for each address of a name anew."""
        monkeypatch.setattr(auth, "CERTS_SECONDS", 0.05)
        verify = verifier()
        google.answers.clear()
        with pytest.raises(CertificatesAway):
            verify(google.token())
        google.answers.set()

    def test_forged_tokens_wait_for_an_absent_google_once(
        self, google: Google, verifier: Callable[..., GoogleTokens]
    ) -> None:
        """With certificates that have grown old, it is asked for new ones, and not again for an unknown key."""
        verify = verifier()
        verify(google.token())
        google.away, google.now = True, 1000.0
        with pytest.raises(Refused):
            verify("a.b.c")
        assert google.pages == 2

    def test_the_last_certificates_serve_while_google_is_away(
        self, google: Google, verifier: Callable[..., GoogleTokens]
    ) -> None:
        """Keys live for days."""
        verify = verifier()
        verify(google.token())
        google.away, google.now = True, 1000.0
        assert verify(google.token())

    def test_a_token_names_its_account(self, google: Google, verifier: Callable[..., GoogleTokens]) -> None:
        """Two tokens of one account are one caller; keys are good besides."""
        both = guard(verifier(), api_keys=("key",), google_id_token_audience=AUDIENCE)
        first = both.identify(environ("10.0.0.1", authorization=f"Bearer {google.token()}"))
        second = both.identify(environ("10.0.0.1", authorization=f"Bearer {google.token(iat=int(time.time()) - 5)}"))
        assert first == second
        assert first.name.startswith("account-")
        assert both.identify(environ("10.0.0.1", authorization="Bearer key")).name.startswith("key-")

    def test_without_keys_this_machine_needs_no_valid_token(
        self, google: Google, verifier: Callable[..., GoogleTokens]
    ) -> None:
        """A bad token is refused from elsewhere only."""
        no_keys = guard(verifier(), google_id_token_audience=AUDIENCE)
        assert no_keys.identify(environ(authorization="Bearer a.b.c")) == Caller("this-machine")
        with pytest.raises(Refused):
            no_keys.identify(environ("10.0.0.1", authorization="Bearer a.b.c"))
