"""The locks install with every pip that comes with a supported Python, also once newer releases are out."""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SERVICE, TESTS = ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt"


def pins(lock: Path) -> list[Requirement]:
    """Return what a lock pins for this interpreter, in its order."""
    lines = lock.read_text().splitlines()
    found = [Requirement(line.removesuffix("\\")) for line in lines if line[:1].isalnum()]
    return [pin for pin in found if pin.marker is None or pin.marker.evaluate()]


@pytest.mark.parametrize("locks", [(SERVICE,), (SERVICE, TESTS)], ids=["service", "tests"])
def test_no_package_is_asked_for_before_it_is_pinned(locks: tuple[Path, ...]) -> None:
    """Whatever is pinned with extras only comes before what asks for it without.

    pip takes a lock in its order, and pip 23.2 (with Python 3.11) does not see that `name[extra]==1.0` pins `name`
    until it gets there. Asked earlier, it looks at the newest `name`, and with hashes it refuses what is not 1.0.
    """
    listed = [pin for lock in locks for pin in pins(lock)]
    pinned = {pin.name for pin in listed if not pin.extras}
    early = []
    for pin in listed:
        pinned.add(pin.name)
        for needed in map(Requirement, distribution(pin.name).requires or []):
            applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if applies and not needed.extras and canonicalize_name(needed.name) not in pinned:
                early.append(f"{pin.name} asks for {needed.name}")
    assert not early
