"""SuperExam's processing service: a PDF goes in over HTTP, exam questions come out in Firestore.

Importing the package puts into the environment what libraries read there themselves, whatever program it is that
imports it: the key prefix of RQ 3, which reads `RQ_KEY_PREFIX` once, when `rq` is imported (a process that imported
`rq` before, without the variable, is told so by `queueing.connect`), and what Google's libraries would not find in
`.env`.
"""

import os
from pathlib import Path

from superexam_rq.config import key_prefix, read_environment
from superexam_rq.errors import ConfigError

__version__ = "0.1.0"


_READ_BY_GOOGLE = ("FIRESTORE_EMULATOR_HOST", "STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS")


def _export() -> None:
    try:
        merged = read_environment(os.environ, Path(".env"))
    except ConfigError:
        return  # whoever reads the settings says what is wrong, in one line
    os.environ["RQ_KEY_PREFIX"] = key_prefix(merged)
    for name in _READ_BY_GOOGLE:
        if merged.get(name):
            os.environ[name] = merged[name]


_export()
