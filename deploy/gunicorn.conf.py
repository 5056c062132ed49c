"""gunicorn's settings: few processes, many threads, since a request waits for Redis and computes little.

Measured with `python -m tests.bench.bench_http --threads` on two cores that Redis and the load shared: from 4 to 116
threads submissions differed by less than two runs of one setting (1,600 to 1,900 a second at 32 connections with two
processes), so the number follows from the event streams alone; a third process on two cores made them slower (740 to
1,200). With more cores: GUNICORN_CMD_ARGS="--workers N". 100 open streams left p99 of submissions as it was.
"""

import os
import sys
from pathlib import Path
from typing import Any

from superexam_rq import logs
from superexam_rq.config import Settings
from superexam_rq.errors import ConfigError

try:
    _settings = Settings.from_env(os.environ, Path(".env"))
except ConfigError as error:
    sys.exit(f"superexam: {error}")

bind = f"{_settings.host}:{_settings.port}"
# gunicorn's gthread, with errors in the one shape.
worker_class = "superexam_rq.server.ApiWorker"
workers = 2
# An event stream blocks a thread, asleep. A process takes at most events.MAX_LISTENERS (100) of them, so that these
# are left for requests. Threads are started when first needed.
threads = 100 + 16
# gunicorn 27 opens a control socket at one path for all instances; a second instance would unlink the first's.
control_socket_disable = True
# A worker that hangs is replaced after this many seconds; event streams live in threads and do not count.
timeout = 60
graceful_timeout = 30
keepalive = 65
loglevel = _settings.log_level.lower()
# Requests are logged by the application, which knows caller and job.
logger_class = "superexam_rq.server.ServerLogger"
logconfig_dict = logs.config(_settings)


def post_worker_init(worker: Any) -> None:
    """Tell the worker where its event streams are, since it ends them when it is told to stop."""
    worker.hub = sys.modules["wsgi"].app.extensions["hub"]
