"""SuperExam's processing service: a PDF goes in over HTTP, exam questions come out in Firestore.

Importing the package does one thing: it gives RQ its key prefix, since RQ 3 reads `RQ_KEY_PREFIX` once, when
`rq` is imported. A process that imported `rq` before, without the variable, is told so by `queueing.connect`.
"""

import os
from pathlib import Path

from superexam_rq.config import read_environment
from superexam_rq.errors import ConfigError

__version__ = "0.1.0"


def _export_key_prefix() -> None:
    try:
        merged = read_environment(os.environ, Path(".env"))
    except ConfigError:
        return  # whoever reads the settings says what is wrong, in one line
    prefix = merged.get("REDIS_KEY_PREFIX") or "superexam:"
    os.environ["RQ_KEY_PREFIX"] = merged.get("RQ_KEY_PREFIX") or prefix.removesuffix(":")


_export_key_prefix()
