"""The stand-in as a process of its own: ``python -m superexam_rq.sandbox.firestore --port 8080``."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from superexam_rq.sandbox.firestore import FirestoreServer


def main() -> None:
    """Serve until SIGINT or SIGTERM; exit code 1 and one line if that can't be started."""
    parser = argparse.ArgumentParser("python -m superexam_rq.sandbox.firestore", description="Firestore stand-in")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--state", type=Path, metavar="FILE", help="keep documents in this file")
    options = parser.parse_args()
    # Blocked before any thread starts, so that every thread leaves them to sigwait below.
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        with FirestoreServer(options.host, options.port, options.state) as server:
            print(f"Firestore stand-in: export FIRESTORE_EMULATOR_HOST={server.address}", flush=True)
            signal.sigwait(ends)
    except OSError as error:
        sys.exit(f"Firestore stand-in: {error}")


main()
