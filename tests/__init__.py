"""The service's tests: unit (no sockets), integration (real processes), bench (figures).

RQ reads its key prefix once, when it is imported: the import below gives it the service's before any test does.
"""

import superexam_rq  # noqa: F401
