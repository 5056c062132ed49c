"""gunicorn's settings: few processes, many threads, since a request waits for Redis and computes little."""

import os
import sys
from pathlib import Path

from superexam_rq.config import Settings
from superexam_rq.errors import ConfigError

try:
    _settings = Settings.from_env(os.environ, Path(".env"))
except ConfigError as error:
    sys.exit(f"superexam: {error}")

bind = f"{_settings.host}:{_settings.port}"
worker_class = "gthread"
workers = 2
threads = 16
# gunicorn 27 opens a control socket at one path for all instances; a second instance would unlink the first's.
control_socket_disable = True
# A worker that hangs is replaced after this many seconds; event streams live in threads and do not count.
timeout = 60
graceful_timeout = 30
keepalive = 65
loglevel = _settings.log_level.lower()
