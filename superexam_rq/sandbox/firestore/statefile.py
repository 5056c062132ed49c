"""The file that documents survive in: a log of commits, rewritten without its past at each start.

Form: a line that names the format, then one record a commit: its length (4 bytes, big endian) and a
``ListDocumentsResponse`` with the changed documents; one without ``update_time`` is a deletion. A record is
with the operating system before its commit is answered, so a killed process loses nothing that it answered.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from google.cloud.firestore_v1 import types
from google.protobuf.message import DecodeError

from superexam_rq.sandbox.firestore.values import Document, Message

if TYPE_CHECKING:
    from io import BufferedRandom
    from pathlib import Path

_HEADER = b"superexam firestore state 1\n"
_LENGTH_BYTES = 4
_Record = types.ListDocumentsResponse.pb()


class StateFile:
    """One state file, locked against a second process until ``close``.

    Raises ``OSError`` with a sentence for the operator if the file is not ours, damaged, or in use.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open_locked(path)
        try:
            self.documents = self._read()
            self._rewrite()
        except BaseException:
            self._file.close()
            raise

    def append(self, changed: dict[str, Message | None]) -> None:
        """Write one commit: documents by name, None for a deleted one."""
        record = _Record(documents=[Document(name=name) if new is None else new for name, new in changed.items()])
        self._write(record)
        self._file.flush()

    def close(self) -> None:
        """Close the file and let others have it."""
        self._file.close()

    def _write(self, record: Message) -> None:
        data = record.SerializeToString()
        self._file.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)

    def _read(self) -> dict[str, Message]:
        self._file.seek(0)
        header = self._file.readline(len(_HEADER))
        if header not in (b"", _HEADER):
            raise OSError(f"{self._path} is not a state file of this program; name another file")
        documents: dict[str, Message] = {}
        while len(prefix := self._file.read(_LENGTH_BYTES)) == _LENGTH_BYTES:
            data = self._file.read(size := int.from_bytes(prefix, "big"))
            if len(data) < size:
                break  # the process was killed while it wrote this one, so it never answered it
            try:
                record = _Record.FromString(data)
            except DecodeError:
                raise OSError(f"{self._path} is damaged; move it away to start empty") from None
            for document in record.documents:
                if document.HasField("update_time"):
                    documents[document.name] = document
                else:
                    documents.pop(document.name, None)
        return documents

    def _rewrite(self) -> None:
        draft = self._path.with_name(f"{self._path.name}.new")
        draft.unlink(missing_ok=True)
        old, self._file = self._file, _open_locked(draft)
        self._file.write(_HEADER)
        for document in self.documents.values():
            self._write(_Record(documents=[document]))
        self._file.flush()
        os.replace(draft, self._path)  # noqa: PTH105 - Path.replace says nothing else, but hides that it is atomic
        old.close()


def _open_locked(path: Path) -> BufferedRandom:
    file = path.open("a+b")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise OSError(f"{path} is in use by another process; stop that one or name another file") from None
    return file
