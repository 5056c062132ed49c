"""A stand-in for Google as a signer of ID tokens: keys of our own, the page of certificates, tokens."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from google.auth import crypt, exceptions, jwt

AUDIENCE = "https://worker.example"
HEADERS = {"Cache-Control": "public, max-age=600, no-transform"}


class Google:
    """Stand for Google: keys of our own, the page of certificates, and tokens signed with them."""

    def __init__(self) -> None:
        self.pages = 0
        self.away = False
        self.answers = threading.Event()
        self.answers.set()
        self.now = 0.0
        self.keys = {"k1": make_key()}
        self.page = {name: certificate for name, (_, certificate) in self.keys.items()}

    def fetch(self, url: str, method: str = "GET", **_: Any) -> Any:
        """Answer as google-auth's transport does."""
        self.pages += 1
        self.answers.wait()
        if self.away:
            raise exceptions.TransportError("no route to 10.0.0.1")
        return SimpleNamespace(status=200, data=json.dumps(self.page).encode(), headers=HEADERS)

    def token(self, key: str = "k1", **claims: Any) -> str:
        """Return a signed token; a claim that is None is left out."""
        now = int(time.time())
        payload = {"iss": "https://accounts.google.com", "aud": AUDIENCE, "iat": now, "exp": now + 3600, "sub": "1"}
        payload |= {"email": "web@project.example", "email_verified": True, **claims}
        signer = crypt.RSASigner.from_string(self.keys[key][0], key)
        token: bytes = jwt.encode(signer, {k: v for k, v in payload.items() if v is not None})
        return token.decode()


def make_key() -> tuple[str, str]:
    """Return a private key and a certificate for it, both as PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    today = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - dt.timedelta(days=1))
        .not_valid_after(today + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return secret.decode(), certificate.public_bytes(serialization.Encoding.PEM).decode()
