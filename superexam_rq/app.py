"""The Flask application: put together here, and nothing else; the routes are in `views`."""

from __future__ import annotations

import time

from flask import Flask

from superexam_rq import queueing, views
from superexam_rq.config import Settings

# A larger body is refused with 413 (contract §2).
MAX_BODY_BYTES = 2**20


def create_app(settings: Settings) -> Flask:
    """Return the API for these settings; opens no connection yet."""
    app = Flask("superexam_rq")
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json.sort_keys = False  # type: ignore[attr-defined]
    queue = queueing.JobQueue(queueing.connect(settings), settings, time.time)
    app.register_blueprint(views.create_blueprint(queue, settings))
    views.register_errors(app)
    return app
