"""The service's tests: unit (no sockets), integration (real processes), bench (figures)."""

import superexam_rq  # noqa: F401  (gives RQ its key prefix before a test imports rq)
