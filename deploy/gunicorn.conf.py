"""gunicorn's settings: two processes, many threads, of which few work at a time.

Measured with `python -m tests.bench.bench_http --at-once`, submissions to two processes on two cores that Redis and
the load shared: with two requests worked on at once in each process (`superexam_rq.server`), p99 was half of what it
was without that bound, at 8 connections (6.7 against 12.8 ms) and at 32 (23 against 49 ms), and the rate a fifth
higher. One or four at once did about as well as two, a third process did not help. With more cores:
GUNICORN_CMD_ARGS="--workers N". 100 open event streams left p99 as it was (`--listeners`: 0.95 times its idle value).
"""

import os
import sys
from pathlib import Path
from typing import Any

from superexam_rq import logs, queueing
from superexam_rq.config import Settings, netloc
from superexam_rq.errors import ConfigError

try:
    _settings = Settings.from_env(os.environ, Path(".env"))
    queueing.connect(_settings).close()
except ConfigError as error:
    sys.exit(f"superexam: {error}")

bind = netloc(_settings.host, _settings.port)
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
# By default gunicorn takes the path's prefix from a caller's header; TRUSTED_PROXIES is who may tell it.
forwarder_headers = ""
loglevel = _settings.log_level.lower()
# Requests are logged by the application, which knows caller and job.
logger_class = "superexam_rq.server.ServerLogger"
logconfig_dict = logs.config(_settings)


def post_worker_init(worker: Any) -> None:
    """Tell the worker where its event streams are, since it ends them when it is told to stop."""
    worker.hub = sys.modules["wsgi"].app.extensions["hub"]
