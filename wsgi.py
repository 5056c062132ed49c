"""The doors for gunicorn: `gunicorn -c deploy/gunicorn.conf.py wsgi:app`, the API with the dashboard under /dashboard.

`wsgi:dashboard` is the dashboard alone, at /.
"""

import os
import sys
from pathlib import Path

from werkzeug.middleware.dispatcher import DispatcherMiddleware

from superexam_rq import auth, logs
from superexam_rq.app import create_app
from superexam_rq.config import Settings
from superexam_rq.dashboard import create_dashboard
from superexam_rq.errors import ConfigError

try:
    settings = Settings.from_env(os.environ, Path(".env"))
    logs.configure(settings)
    app, pages = create_app(settings), create_dashboard(settings)
except ConfigError as error:
    sys.exit(f"superexam: {error}")
# A proxy's path goes before the mount.
site = auth.behind_proxies(DispatcherMiddleware(app.wsgi_app, {"/dashboard": pages}), settings)
app.wsgi_app = logs.RequestLog(site)  # type: ignore[method-assign]
dashboard = logs.RequestLog(auth.behind_proxies(pages, settings))
