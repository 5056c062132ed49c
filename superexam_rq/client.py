"""The service's HTTP API from a caller's side; what can go wrong there is one line for whoever called."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import requests

from superexam_rq.config import Settings, netloc

TIMEOUT_SECONDS = 10.0


class ServiceError(Exception):
    """Say in one line why the service did not do what it was asked."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


def base_url(settings: Settings) -> str:
    """Return where the service of these settings listens, as seen from this machine."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    return f"http://{netloc(host, settings.port)}"


class ServiceClient:
    """Call one service; every method raises `ServiceError`."""

    def __init__(self, url: str, key: str = "", timeout: float = TIMEOUT_SECONDS) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._session = requests.Session()
        # No .netrc and no proxy of the environment: they would put another key in, or send ours elsewhere.
        self._session.trust_env = False
        if key:
            self._session.headers["Authorization"] = f"Bearer {key}"

    def submit(self, **request: Any) -> str:
        """Submit a document and return the job's id; options that are None are left out."""
        body = {name: value for name, value in request.items() if value is not None}
        return str(self._call("POST", "/jobs/process", json=body)["job_id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job object."""
        return self._call("GET", f"/jobs/{quote(job_id, safe='')}")

    def jobs(self, **query: Any) -> dict[str, Any]:
        """Return `{"jobs": […], "total": …}`, newest first."""
        return self._call("GET", "/jobs", params={name: value for name, value in query.items() if value is not None})

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job."""
        return self._call("DELETE", f"/jobs/{quote(job_id, safe='')}")

    def retry(self, job_id: str) -> dict[str, Any]:
        """Run a failed or cancelled job again."""
        return self._call("POST", f"/jobs/{quote(job_id, safe='')}/retry")

    def health(self) -> dict[str, Any]:
        """Return what /health says, healthy or not."""
        return self._call("GET", "/health", accept=503)

    def close(self) -> None:
        """Close the idle connections."""
        self._session.close()

    def _call(self, method: str, path: str, accept: int | None = None, **options: Any) -> dict[str, Any]:
        try:
            answer = self._session.request(
                method, self.url + path, timeout=self._timeout, allow_redirects=False, **options
            )
            body = answer.json()
        except requests.JSONDecodeError:
            raise ServiceError(f"{self.url} answered {answer.status_code}, but is not this service") from None
        except requests.Timeout:
            raise ServiceError(f"{self.url} does not answer within {self._timeout:g} s") from None
        except requests.RequestException as error:
            raise ServiceError(
                f"{self.url} can't be reached ({type(error).__name__}): is the API running, and is --url right?"
            ) from None
        if not isinstance(body, dict):
            raise ServiceError(f"{self.url} answered {answer.status_code}, but is not this service")
        if not answer.ok and answer.status_code != accept:
            raise ServiceError(_sentence(answer.status_code, body), answer.status_code)
        return body


def _sentence(status: int, body: dict[str, Any]) -> str:
    text = str(body.get("message") or f"the service answered {status}")
    details = body.get("details")
    if status == 422 and isinstance(details, dict):
        parts = (f"{name}: {' '.join(map(str, texts))}" for name, texts in details.items() if isinstance(texts, list))
        return "; ".join(parts) or text
    return text
