"""The bytes of an uploaded PDF: a file below a directory, or an object in a Cloud Storage bucket.

What `filePath` may name is decided here. Whether the bytes are a PDF is `pdf`'s business.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import posixpath
import re
import stat
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from superexam_rq import pdf
from superexam_rq.errors import PdfMissing, TransientError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from superexam_rq.config import Settings

log = logging.getLogger(__name__)

_MAX_NAME_CHARS = 100

_MAX_OBJECT_BYTES = 1024
# Seconds: to connect and to wait for the next bytes; in all, while Google says to try again.
_STORAGE_TIMEOUT = (5.0, 30.0)
_STORAGE_RETRY_SECONDS = 60.0
_LOOK_TIMEOUT = 3.0

# Each says that there is no such file, whatever the path looks like.
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR, errno.ENXIO, errno.ENODEV}

# Without O_NONBLOCK, opening a FIFO waits for somebody to write into it.
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class UploadsUnavailable(TransientError):
    """Report that the place where uploads are kept did not answer, or refused this service."""


def read_upload(file_path: Any, settings: Settings) -> bytes:
    """Return the bytes of the PDF that a document's `filePath` names.

    Raises `PdfMissing` if there is none that may be read, `PdfInvalid` if it is larger than `MAX_PDF_MB`,
    `UploadsUnavailable` if trying again may help.
    """
    if not isinstance(file_path, str) or not file_path.strip():
        raise PdfMissing
    if any(unicodedata.category(char) in {"Cc", "Cs"} for char in file_path):
        raise PdfMissing(_bare(file_path))
    max_bytes = settings.max_pdf_mb * pdf.MEGABYTE
    if settings.gcs_bucket_name:
        return _read_object(file_path, settings, max_bytes)
    return _read_file(file_path, settings.uploads_dir, max_bytes)


def has_upload(file_path: Any, settings: Settings) -> bool:
    """Tell whether there is a file that `read_upload` would read; raises `UploadsUnavailable`."""
    if not isinstance(file_path, str) or not file_path.strip():
        return False
    if settings.gcs_bucket_name:
        with _storage(file_path, settings) as bucket:
            names = _object_names(file_path, settings.gcs_bucket_name)
            return any(bucket.get_blob(name, timeout=_LOOK_TIMEOUT, retry=None) is not None for name in names)
    try:
        root = settings.uploads_dir.resolve(strict=True)
    except OSError:
        return False
    return any(_is_file_below(root, settings.uploads_dir, spelling) for spelling in _spellings(file_path))


def _is_file_below(root: Path, directory: Path, file_path: str) -> bool:
    try:
        return (root / Path(*_resolve_below(root, directory, file_path))).is_file()
    except (OSError, ValueError):
        return False


def _bare(file_path: str) -> str:
    """Return the last part of a path, fit for a public text."""
    name = posixpath.basename(file_path.rstrip("/"))
    return "".join(char for char in name if char.isprintable())[:_MAX_NAME_CHARS]


def _spellings(path: str) -> list[str]:
    """Return the path as it is and in Unicode's two normal forms: macOS and browsers disagree about them."""
    return list(dict.fromkeys([path, unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path)]))


def _read_file(file_path: str, directory: Path, max_bytes: int) -> bytes:
    try:
        root = directory.resolve(strict=True)
    except OSError as error:
        log.warning("UPLOADS_DIR can't be used: %s", error)
        raise PdfMissing(_bare(file_path)) from None
    for spelling in _spellings(file_path):
        try:
            return _read_below(root, directory, spelling, max_bytes)
        except OSError as error:
            if error.errno not in _ABSENT:
                log.warning("The upload %r can't be read: %s", file_path, error)
                raise UploadsUnavailable(
                    f"The uploaded PDF can't be read ({os.strerror(error.errno or errno.EIO)})"
                ) from None
    raise PdfMissing(_bare(file_path))


def _resolve_below(root: Path, directory: Path, file_path: str) -> tuple[str, ...]:
    """Return the way from `root`, the resolved `directory`, to a file below it; raises `OSError` as the system does."""
    # An absolute path stays one when joined, so it has to lie below the directory like any other.
    if ".." in Path(file_path).parts:
        log.warning("The upload %r is refused: it holds '..'", file_path)
        raise FileNotFoundError(errno.ENOENT, "refused")
    try:
        resolved = (directory / file_path).resolve(strict=True)
    except RuntimeError:  # a loop of links, before Python 3.13
        raise FileNotFoundError(errno.ELOOP, "loop") from None
    if not resolved.is_relative_to(root) or resolved == root:
        log.warning("The upload %r is refused: it lies outside UPLOADS_DIR", file_path)
        raise FileNotFoundError(errno.ENOENT, "refused")
    return resolved.relative_to(root).parts


def _read_below(root: Path, directory: Path, file_path: str, max_bytes: int) -> bytes:
    """Read a file that lies below `root`, the resolved `directory`; raises `OSError` as the system does."""
    descriptor = _open_beneath(root, _resolve_below(root, directory, file_path))
    with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123 (a descriptor, not a path)
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            log.warning("The upload %r is refused: it is not a regular file", file_path)
            raise FileNotFoundError(errno.ENOENT, "refused")
        if status.st_size > max_bytes:
            raise pdf.too_large(status.st_size, max_bytes)
        return _read_all(file.fileno(), max_bytes)


def _open_beneath(root: Path, parts: tuple[str, ...]) -> int:
    """Open a path step by step without following a link: nobody can put one in after the path was resolved."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            os.close(directory)
            directory = below
        return os.open(parts[-1], _OPEN_FLAGS, dir_fd=directory)
    finally:
        os.close(directory)


def _read_all(descriptor: int, max_bytes: int) -> bytes:
    """Read to the end, and no further than one byte past the limit: a file may grow while it is read."""
    parts = []
    size = 0
    while size <= max_bytes and (part := os.read(descriptor, min(1 << 20, max_bytes + 1 - size))):
        parts.append(part)
        size += len(part)
    if size > max_bytes:
        raise pdf.too_large(size, max_bytes)
    return b"".join(parts)


def _read_object(file_path: str, settings: Settings, max_bytes: int) -> bytes:
    with _storage(file_path, settings) as bucket:
        for name in _object_names(file_path, settings.gcs_bucket_name):
            content = _download(bucket, name, max_bytes)
            if content is not None:
                return content
    raise PdfMissing(_bare(file_path))


@contextlib.contextmanager
def _storage(file_path: str, settings: Settings) -> Iterator[Any]:
    """Give the bucket; what goes wrong with it meanwhile is `UploadsUnavailable`, or `PdfMissing`."""
    # Here, so that a service without a bucket does not pay for the import.
    from google.api_core.exceptions import GoogleAPIError, NotFound
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage import Client
    from google.cloud.storage.exceptions import InvalidResponse

    try:
        with contextlib.closing(Client(project=settings.google_cloud_project or None)) as client:
            yield client.bucket(settings.gcs_bucket_name)
    except NotFound:  # deleted or replaced between the two calls
        raise PdfMissing(_bare(file_path)) from None
    except (GoogleAPIError, GoogleAuthError, InvalidResponse, OSError) as error:
        log.warning("The upload %r can't be read from Cloud Storage: %s", file_path, error)
        raise UploadsUnavailable(f"Cloud Storage did not hand out the PDF ({type(error).__name__})") from None


def _object_names(file_path: str, bucket_name: str) -> list[str]:
    """Return the names that an object may have: as given, without `gs://bucket/`, without a leading slash."""
    match = re.fullmatch(r"gs://([^/]+)/(.+)", file_path)
    if match and match[1] != bucket_name:
        log.warning("The upload %r is refused: it lies in another bucket", file_path)
        return []
    names = [match[2]] if match else [file_path, file_path.lstrip("/")]
    spelled = dict.fromkeys(spelling for name in names for spelling in _spellings(name))
    return [name for name in spelled if 0 < len(name.encode()) <= _MAX_OBJECT_BYTES]


def _download(bucket: Any, name: str, max_bytes: int) -> bytes | None:
    from google.cloud.storage.retry import DEFAULT_RETRY

    options = {"timeout": _STORAGE_TIMEOUT, "retry": DEFAULT_RETRY.with_timeout(_STORAGE_RETRY_SECONDS)}
    blob = bucket.get_blob(name, **options)
    if blob is None:
        return None
    if blob.size > max_bytes:
        raise pdf.too_large(blob.size, max_bytes)
    # The generation whose size was checked, should somebody replace the object meanwhile.
    content: bytes = blob.download_as_bytes(if_generation_match=blob.generation, **options)
    if len(content) > max_bytes:  # stored compressed
        raise pdf.too_large(len(content), max_bytes)
    return content
