"""The Flask application: put together here, and nothing else; the routes are in `views`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from flask import Flask
from flask_cors import CORS
from redis import Redis

from superexam_rq import auth, openapi, queueing, views
from superexam_rq.config import Settings
from superexam_rq.events import Hub
from superexam_rq.settling import Settler


def create_app(
    settings: Settings,
    *,
    connect: Callable[..., Redis] = queueing.connect,
    google_certs_url: str = auth.GOOGLE_CERTS_URL,
) -> Flask:
    """Return the API for these settings; opens no connection yet. Its `extensions["hub"]` holds the event streams."""
    app = Flask("superexam_rq", static_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    # A redirect would be an answer outside the contract. Slashes that lead are dropped all the same, as when the
    # website's URL of this service ends with one.
    app.url_map.merge_slashes = False
    app.url_map.converters["job_id"] = views.JobIdConverter
    queue = queueing.JobQueue(connect(settings), settings, time.time)
    hub = app.extensions["hub"] = Hub(queue, settings)
    verify = auth.GoogleTokens(settings, google_certs_url) if settings.google_id_token_audience else None
    views.register_guard(app, auth.Guard(settings, verify), settings)
    limiter = auth.create_limiter(app, settings, connect)
    app.register_blueprint(views.create_blueprint(queue, hub, Settler(queue), limiter, settings))
    app.register_blueprint(openapi.create_blueprint(settings))
    views.register_errors(app, limiter)
    if origins := settings.cors_origins:
        CORS(
            app,
            # As patterns that match themselves: flask-cors would guess what is one.
            origins=[origin if origin == "*" else re.compile(re.escape(origin) + r"\Z") for origin in origins],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
            expose_headers=["Location", "Retry-After"],
            max_age=600,
        )
    app.wsgi_app = views.secured(app.wsgi_app)  # type: ignore[assignment, method-assign]
    return app
