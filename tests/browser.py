"""A headless Chromium for tests, driven over WebDriver's HTTP: what a person sees and clicks."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from superexam_rq.sandbox.processes import free_port
from tests.stack import eventually

# The key under which WebDriver sends a reference to an element (W3C WebDriver, "Elements").
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"

AVAILABLE = all(shutil.which(name) for name in ("chromium", "chromedriver"))


class Browser:
    """One window of Chromium."""

    def __init__(self, session: str) -> None:
        self._session = session
        self._http = requests.Session()

    def _send(self, method: str, path: str, **body: Any) -> Any:
        json = body if method == "POST" else None
        answer = self._http.request(method, f"{self._session}/{path}", json=json, timeout=60)
        value = answer.json()["value"]
        assert answer.ok, f"{path}: {value['error']}: {value['message'].splitlines()[0]}"
        return value

    def open(self, url: str) -> None:
        """Go to an address and wait until it has loaded."""
        self._send("POST", "url", url=url)

    @property
    def url(self) -> str:
        """Return the address of the page shown."""
        return str(self._send("GET", "url"))

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript as the body of a function in the page and return what it returns."""
        return self._send("POST", "execute/sync", script=script, args=list(arguments))

    def text(self, css: str = "body") -> str:
        """Return the visible text of the first element, or "" if there is none."""
        return str(self.run("return document.querySelector(arguments[0])?.innerText ?? ''", css))

    def count(self, css: str) -> int:
        """Return how many elements there are."""
        return int(self.run("return document.querySelectorAll(arguments[0]).length", css))

    def wait_for_text(self, text: str, css: str = "body", seconds: float = 20) -> None:
        """Wait until an element shows a text."""
        try:
            eventually(lambda: text in self.text(css), f"{text!r} in {css} of {self.url}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; shown: {self.text(css)!r}") from None

    def click(self, css: str) -> None:
        """Click an element as a mouse does, once it is there and nothing covers it."""

        def attempt() -> bool:
            try:
                element = self._send("POST", "element", using="css selector", value=css)[ELEMENT]
                self._send("POST", f"element/{element}/click")
            except AssertionError:
                return False
            return True

        eventually(attempt, f"a click on {css} of {self.url}", 20)

    def type(self, css: str, text: str) -> None:
        """Type into an element as a keyboard does."""
        element = self._send("POST", "element", using="css selector", value=css)[ELEMENT]
        self._send("POST", f"element/{element}/value", text=text)

    def errors(self) -> list[str]:
        """Return what the console has reported as errors since the last call."""
        return [
            entry["message"] for entry in self._send("POST", "se/log", type="browser") if entry["level"] == "SEVERE"
        ]

    def requested(self) -> list[str]:
        """Return the addresses that the page shown has loaded."""
        found: list[str] = self.run("return performance.getEntriesByType('resource').map(entry => entry.name)")
        return found

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self._send("GET", "screenshot")))


@contextlib.contextmanager
def chromium(*, width: int = 1280, height: int = 800, timezone: str = "UTC") -> Iterator[Browser]:
    """Start Chromium with a profile of its own, and leave no process or file behind."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"],
            env=os.environ | {"TZ": timezone, "HOME": profile},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            eventually(lambda: _ready(url), "chromedriver")
            options = {
                "goog:chromeOptions": {
                    "args": [
                        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                        "--hide-scrollbars", f"--window-size={width},{height}", f"--user-data-dir={profile}/data",
                    ],
                },
                "goog:loggingPrefs": {"browser": "ALL"},
            }  # fmt: skip
            answer = requests.post(f"{url}/session", json={"capabilities": {"alwaysMatch": options}}, timeout=60)
            value = answer.json()["value"]
            assert answer.ok, value["message"]
            session = f"{url}/session/{value['sessionId']}"
            yield Browser(session)
            requests.delete(session, timeout=30)
        finally:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()


def _ready(url: str) -> bool:
    try:
        return bool(requests.get(f"{url}/status", timeout=1).json()["value"]["ready"])
    except requests.RequestException:
        return False
