"""The stand-in as a process of its own: ``python -m superexam_rq.sandbox.gemini --port 9090 [--latency 2]``."""

from __future__ import annotations

import argparse
import errno
import signal
import sys

from superexam_rq.sandbox.gemini import GeminiServer


def main() -> int:
    """Serve until SIGINT or SIGTERM; exit code 1 and one line if that can't be started."""
    parser = argparse.ArgumentParser(
        "python -m superexam_rq.sandbox.gemini", description="Gemini stand-in (not Gemini)"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9090, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds that each call takes at least")
    options = parser.parse_args()
    # Blocked before any thread starts, so that every thread leaves them to sigwait below.
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    server = GeminiServer(options.host, options.port, latency=options.latency)
    try:
        server.start()
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        why = "is taken" if taken else f"cannot be used ({error})"
        print(
            f"Gemini stand-in: port {options.port} on {options.host} {why}: choose another with --port", file=sys.stderr
        )
        return 1
    print(f"Gemini stand-in (not Gemini): export GEMINI_API_ENDPOINT={server.url}", flush=True)
    signal.sigwait(ends)
    server.stop()
    return 0


sys.exit(main())
