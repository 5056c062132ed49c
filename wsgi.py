"""The door for gunicorn: `gunicorn -c deploy/gunicorn.conf.py wsgi:app`."""

import os
import sys
from pathlib import Path

from superexam_rq import logs
from superexam_rq.app import create_app
from superexam_rq.config import Settings
from superexam_rq.errors import ConfigError

try:
    settings = Settings.from_env(os.environ, Path(".env"))
    logs.configure(settings)
    api = create_app(settings)
except ConfigError as error:
    sys.exit(f"superexam: {error}")

# What gunicorn serves: the API, and beside it whatever else is mounted.
app = logs.RequestLog(api)
