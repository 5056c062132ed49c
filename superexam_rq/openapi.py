"""The OpenAPI document, made from the schemas, and a page to try the API that loads nothing from elsewhere.

The routes themselves are in `views`; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Blueprint, Response, jsonify, send_from_directory
from flask.typing import ResponseReturnValue
from marshmallow import Schema
from swagger_ui_bundle import swagger_ui_path

from superexam_rq import __version__, schemas
from superexam_rq.config import Settings

# What Swagger UI needs: its own files, styles that it sets on elements, and icons written into its style sheet.
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
_ASSET_SECONDS = 86400

_PAGE = """<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>SuperExam Processing Service</title>
    <link rel="stylesheet" href="docs/swagger-ui.css">
    <link rel="icon" type="image/png" href="docs/favicon-32x32.png">
  </head>
  <body>
    <div id="swagger-ui"></div>
    <script src="docs/swagger-ui-bundle.js"></script>
    <script src="docs/start.js"></script>
  </body>
</html>
"""

_START = """SwaggerUIBundle({
  url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null, tryItOutEnabled: true,
  displayRequestDuration: true, presets: [SwaggerUIBundle.presets.apis]
});
"""

_INTRODUCTION = """A PDF becomes exam questions in Firestore: submit a document, then follow its job.

Every error has one shape: `error` (a code), `message` (what happened and what to do) and `details` (texts for each
field). A path that is neither listed here nor a page is answered with `404`, a method that is not listed with `405`.
Where a key is needed, a request without one is answered with `401` before anything else."""

_WAIT = {"description": "Seconds to wait before the next try.", "schema": {"type": "integer", "minimum": 0}}
_JOB_ID = {
    "in": "path",
    "name": "job_id",
    "required": True,
    "description": "As the submission answered it.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": 64},
}


def create_blueprint(settings: Settings) -> Blueprint:
    """Return the routes `/openapi.json` and `/docs`."""
    routes = Blueprint("openapi", __name__)
    written = document(settings)

    @routes.get("/openapi.json")
    def openapi() -> ResponseReturnValue:
        return jsonify(written)

    @routes.get("/docs")
    def docs() -> ResponseReturnValue:
        return _page(_PAGE, "text/html")

    @routes.get("/docs/start.js")
    def start() -> ResponseReturnValue:
        return _page(_START, "text/javascript")

    @routes.get(f"/docs/<any({', '.join(repr(name) for name in _ASSETS)}):name>")
    def asset(name: str) -> ResponseReturnValue:
        return send_from_directory(str(swagger_ui_path), name, max_age=_ASSET_SECONDS)

    return routes


def _page(text: str, mimetype: str) -> Response:
    answer = Response(text, mimetype=mimetype)
    answer.headers["Content-Security-Policy"] = _DOCS_POLICY
    return answer


def document(settings: Settings) -> dict[str, Any]:
    """Return the OpenAPI document of the service with these settings."""
    spec = APISpec(
        title="SuperExam Processing Service",
        version=__version__,
        # Swagger UI 4, the newest that a Python package ships, reads no 3.1.
        openapi_version="3.0.3",
        info={"description": _INTRODUCTION},
        plugins=[MarshmallowPlugin()],
    )
    spec.components.security_scheme(
        "bearer",
        {"type": "http", "scheme": "bearer", "description": "A key of API_KEYS, or a Google-signed ID token."},
    )
    # Without keys, callers on the service's own machine need none.
    needed: list[dict[str, list[str]]] = [{"bearer": []}] if settings.api_keys else [{"bearer": []}, {}]
    for path, operations in _paths().items():
        for operation in operations.values():
            operation["tags"] = ["Jobs" if path.startswith("/jobs") else "Service"]
            if 401 in operation["responses"]:
                operation["security"] = needed
        spec.path(path, operations=operations)
    return spec.to_dict()


def _paths() -> dict[str, dict[str, Any]]:
    return {
        "/jobs/process": {
            "post": _operation(
                "Submit a document",
                {
                    202: _answer("A job was queued.", schemas.SubmittedSchema, Location="Where the job is."),
                    200: _answer(
                        "The document has a job pending or running: here it is; nothing new was queued.",
                        schemas.SubmittedSchema,
                    ),
                    400: _error("The body is not JSON, empty, or nested too deep."),
                    **_guarded("The caller has submitted too often."),
                    413: _error("The body is larger than 1 MiB."),
                    415: _error("The body is not application/json in UTF-8."),
                    422: _error("A field is invalid or unknown, or the Idempotency-Key was used for another body."),
                },
                operationId="submit",
                parameters=[
                    {
                        "in": "header",
                        "name": "Idempotency-Key",
                        "description": "The same key and body get the first answer again, for as long as an ended job "
                        "is kept. Keys are kept apart for each caller.",
                        "schema": {"type": "string", "pattern": "^[!-~]+$", "minLength": 1, "maxLength": 255},
                    }
                ],
                requestBody={
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": schemas.SubmissionSchema,
                            "example": {"doc_id": "doc1", "system_prompt_id": "sys1", "custom_prompt_id": "cus1"},
                        }
                    },
                },
            )
        },
        "/jobs": {
            "get": _operation(
                "List jobs, newest first",
                {
                    200: _answer("A page of jobs.", schemas.JobListSchema),
                    **_guarded(),
                    422: _error("A parameter is invalid or unknown."),
                },
                operationId="list_jobs",
                parameters=[{"in": "query", "schema": schemas.JobListQuerySchema}],
            )
        },
        "/jobs/{job_id}": {
            "get": _operation(
                "Look at a job",
                {200: _answer("The job.", schemas.JobSchema), **_guarded(), 404: _error("There is no such job.")},
                operationId="show_job",
                parameters=[_JOB_ID],
            ),
            "delete": _operation(
                "Cancel a job, pending or running",
                {
                    200: _answer("A pending job is cancelled; a running one stops soon.", schemas.MessageSchema),
                    **_guarded(),
                    404: _error("There is no such job."),
                    409: _error("The job has ended."),
                },
                operationId="cancel_job",
                parameters=[_JOB_ID],
            ),
        },
        "/jobs/{job_id}/retry": {
            "post": _operation(
                "Run a failed or cancelled job again; finished batches are kept",
                {
                    202: _answer("The job was queued again.", schemas.SubmittedSchema, Location="Where the job is."),
                    **_guarded(),
                    404: _error("There is no such job."),
                    409: _error("The job has not failed, or its document has another job pending or running."),
                },
                operationId="retry_job",
                parameters=[_JOB_ID],
            )
        },
        "/jobs/{job_id}/events": {
            "get": _operation(
                "Follow a job until it ends",
                {
                    200: {
                        "description": "Server-sent events: the job object now and at each change. Ends with the job.",
                        "content": {"text/event-stream": {"schema": {"type": "string"}}},
                    },
                    204: {"description": "The job has ended, and Last-Event-ID says that this was seen: stop."},
                    **_guarded(),
                    404: _error("There is no such job."),
                    503: _error("Redis is away, or too many streams are open.", wait=True),
                },
                operationId="follow_job",
                parameters=[
                    _JOB_ID,
                    {
                        "in": "header",
                        "name": "Last-Event-ID",
                        "description": "The id of the last event seen, to resume.",
                        "schema": {"type": "string", "pattern": "^[!-~]*$"},
                    },
                ],
            )
        },
        "/metrics": {
            "get": _operation(
                "Tell the metrics",
                {
                    200: {
                        "description": "Prometheus text, or OpenMetrics where the Accept header asks for it.",
                        "content": {
                            "text/plain": {"schema": {"type": "string"}},
                            "application/openmetrics-text": {"schema": {"type": "string"}},
                        },
                    },
                    **_guarded(),
                },
                operationId="metrics",
            )
        },
        "/health": {
            "get": _operation(
                "Tell whether the service can take jobs",
                {
                    200: _answer("Redis answers.", schemas.HealthSchema),
                    503: _answer("Redis is away.", schemas.UnhealthySchema, wait=True),
                },
                operationId="health",
            )
        },
        "/health/live": {
            "get": _operation(
                "Tell that the process answers", {200: _answer("It does.", schemas.LiveSchema)}, operationId="live"
            )
        },
        "/": {
            "get": _operation(
                "Name the service", {200: _answer("What this is.", schemas.ServiceSchema)}, operationId="index"
            )
        },
    }


def _operation(summary: str, responses: Mapping[int, Any], **more: Any) -> dict[str, Any]:
    return {"summary": summary, "responses": dict(sorted(responses.items())), **more}


def _answer(description: str, schema: type[Schema], wait: bool = False, **headers: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in headers.items()
    }
    if wait:
        shown["Retry-After"] = _WAIT
    answer: dict[str, Any] = {"description": description, "content": {"application/json": {"schema": schema}}}
    return answer | ({"headers": shown} if shown else {})


def _error(description: str, *, wait: bool = False) -> dict[str, Any]:
    return _answer(description, schemas.ErrorSchema, wait=wait)


def _guarded(too_often: str = "") -> dict[int, Any]:
    """Return the errors of every call that needs a key and Redis."""
    errors = {
        401: _error("No valid key was sent, and the caller is not on the service's own machine."),
        503: _error("Redis is away (or Google, where an ID token was sent).", wait=True),
    }
    return errors | ({429: _error(too_often, wait=True)} if too_often else {})
