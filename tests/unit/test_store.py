"""Which Firestore project the service works on."""

from __future__ import annotations

from types import SimpleNamespace

import google.auth
import pytest
from google.cloud import firestore

from superexam_rq import store
from superexam_rq.config import Settings
from superexam_rq.errors import FirestoreUnavailable


def connected(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], *, found: str | None, quota: str | None
) -> str:
    """Return the project of a client made with credentials that know these projects."""
    credentials = SimpleNamespace(quota_project_id=quota)
    monkeypatch.setattr(google.auth, "default", lambda **_: (credentials, found))
    monkeypatch.setattr(firestore, "Client", lambda project, credentials: SimpleNamespace(project=project))
    return str(store.connect(Settings.from_env(environment)).project)


def test_the_setting_comes_before_the_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """GOOGLE_CLOUD_PROJECT, or GCP_PROJECT_ID, is the project, whatever the credentials say."""
    for name in ("GOOGLE_CLOUD_PROJECT", "GCP_PROJECT_ID"):
        assert connected(monkeypatch, {name: "set"}, found="found", quota="pays") == "set"


def test_a_users_login_knows_its_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no gcloud is installed, as in a container, a login names only the project that pays: it is used."""
    assert connected(monkeypatch, {}, found="found", quota="pays") == "found"
    assert connected(monkeypatch, {}, found=None, quota="pays") == "pays"


def test_no_project_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any project the error names the variable to set."""
    with pytest.raises(FirestoreUnavailable, match="set GOOGLE_CLOUD_PROJECT"):
        connected(monkeypatch, {}, found=None, quota=None)
