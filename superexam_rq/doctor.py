"""The doctor: look at one installation from where it stands, part after part, and say what to do about what is wrong.

Each check is bounded in time, never raises, and is skipped where a part that it needs is out of order. Nothing is
changed but for one probe document in Firestore, which is removed again; Gemini is asked nothing that costs.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError
from rq.scheduler import RQScheduler
from rq.suspension import is_suspended
from rq.utils import as_text, utcparse

from superexam_rq import gemini, queueing, store, uploads
from superexam_rq.client import ServiceClient, ServiceError, base_url
from superexam_rq.config import PLACEHOLDER_KEY, Settings, read_environment, rows
from superexam_rq.errors import ConfigError, FirestoreUnavailable, PdfMissing, SuperExamError

if TYPE_CHECKING:
    from google.cloud import firestore

# Seconds for one check, and for one call within it.
CHECK_SECONDS = 5.0
CALL_SECONDS = 3.0

# The bucket that the website uploads to unless told otherwise.
WEBSITE_BUCKET = "superexam-uploads"
# RQ's own prefix: what was started without RQ_KEY_PREFIX, and not through this package, writes there.
FORGOTTEN_PREFIX = "rq"
OLDEST_REDIS = (6, 2)

SETTLING_SECONDS = 1.0
WAITING_SECONDS = 600
OVERDUE_SECONDS = 60
# A run writes its progress at least every 15 s; a document that nobody has written for longer is stuck, not foreign.
FRESH_MS = 60_000
NEWEST_DOCUMENTS = 5
SCAN_ROUNDS = 20

# Variables of other programs that look like ours.
_KNOWN_NAMES = frozenset({"COMPOSE_FILE", "GOOGLE_APPLICATION_CREDENTIALS", "RQ_REDIS_URL", "STORAGE_EMULATOR_HOST"})


class Level(StrEnum):
    """Say how a part is: `WARNING` works, or may work, and should be looked at."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """Say what was found about one part, and what to do about it."""

    check: str
    level: Level
    text: str
    advice: str = ""


class Trouble(Exception):
    """Report what is wrong with a part, and what to do about it."""

    level = Level.FAILED

    def __init__(self, text: str, advice: str = "") -> None:
        super().__init__(text)
        self.advice = advice


class Doubt(Trouble):
    """Report what may be wrong, or will be."""

    level = Level.WARNING


class Ward:
    """Hold what the checks share: the environment, and what earlier checks have opened."""

    settings: Settings
    redis: Redis
    firestore: firestore.Client

    def __init__(self, environ: Mapping[str, str], dotenv: Path) -> None:
        self.environ = environ
        self.dotenv = dotenv
        # How many workers the API has counted; None where there is none to ask.
        self.seen_by_api: int | None = None

    @property
    def queue(self) -> queueing.JobQueue:
        """Return the queue's client side."""
        return queueing.JobQueue(self.redis, self.settings)

    def documents(self) -> Any:
        """Return the collection of documents."""
        return self.firestore.collection(self.settings.collection("documents"))


@dataclass(frozen=True)
class Check:
    """Name one check, what must be in order before, and what it does: return what is well, or raise `Trouble`."""

    name: str
    needs: tuple[str, ...]
    run: Callable[[Ward], str]


def examine(environ: Mapping[str, str], dotenv: Path, seconds: float = CHECK_SECONDS) -> Iterator[Finding]:
    """Yield what each check finds, in order; a check that takes longer than `seconds` has failed."""
    ward = Ward(environ, dotenv)
    out_of_order: set[str] = set()
    for check in CHECKS:
        broken = [name for name in check.needs if name in out_of_order]
        finding = Finding(check.name, Level.SKIPPED, f"needs {broken[0]}") if broken else _bounded(check, ward, seconds)
        if finding.level in {Level.FAILED, Level.SKIPPED}:
            out_of_order.add(check.name)
        yield finding


def _bounded(check: Check, ward: Ward, seconds: float) -> Finding:
    found: list[Finding] = []
    # A daemon: a library that hangs does not hold the report up.
    thread = threading.Thread(target=lambda: found.append(_run(check, ward)), name=check.name, daemon=True)
    thread.start()
    thread.join(seconds)
    if found:
        return found[0]
    return Finding(check.name, Level.FAILED, f"no answer within {seconds:g} s", "look at network and addresses")


def _run(check: Check, ward: Ward) -> Finding:
    try:
        return Finding(check.name, Level.OK, check.run(ward))
    except Trouble as trouble:
        return Finding(check.name, trouble.level, str(trouble), trouble.advice)
    except RedisError as error:
        text = queueing.away(error) or f"Redis refused a command ({type(error).__name__})"
        return Finding(check.name, Level.FAILED, text)
    except Exception as error:  # noqa: BLE001 (whatever a library raises, the other parts are looked at)
        return Finding(check.name, Level.FAILED, f"could not be looked at: {type(error).__name__}", _first_line(error))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


# --- Settings ---------------------------------------------------------------------------------------------------------


def _settings(ward: Ward) -> str:
    try:
        ward.settings = Settings.from_env(ward.environ, ward.dotenv)
    except ConfigError as error:
        raise Trouble(str(error), "correct it in .env or in the environment, which wins") from None
    where = f"{ward.dotenv.name} and the environment" if ward.dotenv.is_file() else "the environment; there is no .env"
    return f"read from {where}"


def _names(ward: Ward) -> str:
    known = {name for row in rows() for name in row.names}
    in_file = set(read_environment({}, ward.dotenv))
    prefixes = tuple({f"{name.split('_')[0]}_" for name in known if "_" in name})
    candidates = in_file | {name for name in ward.environ if name.startswith(prefixes)}
    wrong = []
    for name in sorted(candidates - known - _KNOWN_NAMES):
        near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.82)
        if near:
            wrong.append(f"{name} (is it {near[0]}?)")
    if wrong:
        raise Doubt(f"unknown and ignored: {', '.join(wrong)}", "rename what was meant as a setting")
    return "no name looks like a misspelt setting"


# --- Redis ------------------------------------------------------------------------------------------------------------


def _redis(ward: Ward) -> str:
    ward.redis = queueing.connect(ward.settings, connect_seconds=CALL_SECONDS, answer_seconds=CALL_SECONDS)
    where = _address(ward.redis)
    try:
        ward.redis.ping()
    except RedisError as error:
        text = queueing.away(error) or f"Redis refused a PING ({type(error).__name__})"
        raise Trouble(f"{text} ({where})", "check REDIS_URL, or REDIS_HOST, REDIS_PORT and REDIS_PASSWORD") from None
    return f"answers at {where}"


def _address(client: Redis) -> str:
    given = client.connection_pool.connection_kwargs
    return str(given.get("path") or f"{given.get('host', 'localhost')}:{given.get('port', 6379)}")


def _redis_info(ward: Ward) -> str:
    try:
        info: Mapping[str, Any] = ward.redis.info()
    except NoPermissionError:
        raise Trouble(
            "the Redis user may not use INFO: RQ then moves jobs in a way that loses one when a worker dies",
            "add +info to the user's rules, as in deploy/redis",
        ) from None
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_REDIS:
        raise Trouble(f"Redis {version} is too old", "upgrade it to 6.2 or newer")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if int(info.get("maxmemory", 0)) and policy != "noeviction":
        raise Doubt(
            f"Redis {version} may throw jobs away when memory is short ({policy})", "maxmemory-policy noeviction"
        )
    if info.get("role") == "slave":
        raise Trouble(f"Redis {version} here is a replica", "point REDIS_URL to the primary")
    return f"version {version}, INFO allowed"


def _prefix(ward: Ward) -> str:
    queue = ward.settings.queue_name
    names = [f"{FORGOTTEN_PREFIX}:queue:{queue}", f"{FORGOTTEN_PREFIX}:workers:{queue}"]
    if ward.settings.rq_key_prefix == FORGOTTEN_PREFIX:
        return f"{ward.settings.redis_key_prefix} (RQ's own: not safe beside other projects)"
    try:
        forgotten = [name for name in names if ward.redis.exists(name)]
    except NoPermissionError:
        return f"{ward.settings.redis_key_prefix}; the Redis user can't leave it"
    if forgotten:
        raise Trouble(
            f"there are keys of this queue without the prefix: {', '.join(forgotten)}",
            f"a worker or a tool runs without RQ_KEY_PREFIX={ward.settings.rq_key_prefix}: end it, and start it after "
            'eval "$(python -m superexam_rq env)"',
        )
    return f"{ward.settings.redis_key_prefix}, and nothing of this queue under {FORGOTTEN_PREFIX}:"


def _leaks(ward: Ward) -> str:
    ours = f"{ward.settings.rq_key_prefix}:"
    foreign: Counter[str] = Counter()
    queues: set[str] = set()
    cursor: Any = 0
    try:
        for _ in range(SCAN_ROUNDS):
            cursor, keys = ward.redis.scan(cursor, count=500)
            for key in map(_decoded, keys):
                if not key.startswith(ours):
                    foreign[key.partition(":")[0]] += 1
                    if key.endswith(f":queue:{ward.settings.queue_name}"):
                        queues.add(key.removesuffix(f"queue:{ward.settings.queue_name}"))
            if not cursor:
                break
    except NoPermissionError:
        return "not allowed to look, which is as it should be"
    # RQ's own prefix is `prefix`'s.
    queues.discard(f"{FORGOTTEN_PREFIX}:")
    if queues:
        raise Doubt(
            f"a queue of the same name has keys under {', '.join(sorted(queues))}",
            "if REDIS_KEY_PREFIX was changed, these are left from before: let them run dry, then delete them; "
            "if another installation is meant to be there, all is well",
        )
    if foreign:
        return f"others' keys on this Redis: {', '.join(name for name, _ in foreign.most_common(5))}"
    return "no keys but ours on this Redis"


def _decoded(key: bytes | str) -> str:
    return key if isinstance(key, str) else key.decode(errors="replace")


def _api(ward: Ward) -> str:
    url = base_url(ward.settings)
    client = ServiceClient(url, timeout=CALL_SECONDS)
    try:
        health = client.health()
    except ServiceError as error:
        raise Doubt(str(error), "fine if the API runs elsewhere; else start it: python -m superexam_rq api") from None
    finally:
        client.close()
    if health.get("status") != "healthy":
        raise Trouble(f"{url} says: {health.get('error')}", "the API has other settings for Redis than this shell")
    theirs = (health.get("prefix"), health.get("queue"))
    if theirs != (ward.settings.redis_key_prefix, ward.settings.queue_name):
        raise Trouble(f"{url} uses prefix and queue {theirs}", "restart it with these settings, or ask the right one")
    ward.seen_by_api = int(health.get("workers", 0))
    return f"healthy at {url}"


def _workers(ward: Ward) -> str:
    health = ward.queue.health()
    theirs = ward.seen_by_api
    if theirs is not None and theirs != health.workers:
        # One may have started or ended just now.
        time.sleep(SETTLING_SECONDS)
        _api(ward)
        health, theirs = ward.queue.health(), ward.seen_by_api
        if theirs != health.workers:
            raise Trouble(
                f"the API sees {theirs} alive, this shell {health.workers}: they look at different Redis servers",
                "compare REDIS_URL, or REDIS_HOST, REDIS_PORT and REDIS_DB, of both",
            )
    if not health.workers:
        raise Trouble(
            f"no worker listens on the queue {ward.settings.queue_name!r}; {health.queued} jobs wait",
            "start one: python -m superexam_rq worker; or look whether it has another Redis or prefix",
        )
    if is_suspended(ward.redis):
        raise Trouble(f"{health.workers} alive, but suspended: they take no jobs", "rq resume")
    return f"{health.workers} alive"


def _scheduler(ward: Ward) -> str:
    jobs = ward.queue
    overdue = ward.redis.zcount(jobs.scheduled.key, "-inf", time.time() - OVERDUE_SECONDS)
    alive = ward.redis.exists(RQScheduler.get_locking_key(ward.settings.queue_name))
    advice = "start a worker with --with-scheduler, as python -m superexam_rq worker does"
    if overdue:
        raise Trouble(f"{overdue} retries wait although their time has come", advice)
    if not alive:
        raise Doubt("no scheduler: workers queue retries in its place, some seconds late", advice)
    return "alive"


def _queue(ward: Ward) -> str:
    jobs = ward.queue
    ids: list[Any] = [ward.redis.lindex(jobs.queue.key, index) for index in (0, -1)]
    ages = []
    for job_id in filter(None, ids):
        created = ward.redis.hget(ward.settings.key("job", as_text(job_id)), "enqueued_at")
        if created:
            ages.append(time.time() - utcparse(as_text(created)).timestamp())
    length = ward.redis.llen(jobs.queue.key)
    oldest = max(ages, default=0.0)
    if oldest > WAITING_SECONDS:
        raise Doubt(f"{length} jobs wait, one of them for {oldest / 60:.0f} min", "start more workers")
    return f"{length} jobs wait" + (f", the oldest for {oldest:.0f} s" if length else "")


# --- Google -----------------------------------------------------------------------------------------------------------


def _credentials(ward: Ward) -> str:
    if ward.settings.firestore_emulator_host:
        return f"none needed: Firestore is an emulator at {ward.settings.firestore_emulator_host}"
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
    from google.auth.transport.requests import Request

    try:
        credentials, project = google.auth.default(scopes=["https://www.googleapis.com/auth/datastore"])
        project = ward.settings.google_cloud_project or project
        if not project:
            raise Trouble("they name no project", "set GOOGLE_CLOUD_PROJECT")
        credentials.refresh(Request())
    except DefaultCredentialsError as error:
        advice = "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS in the environment"
        raise Trouble(f"none: {_first_line(error)}", advice) from None
    except GoogleAuthError as error:
        advice = "gcloud auth application-default login; then look at the network"
        raise Trouble(f"they can't be used: {_first_line(error)}", advice) from None
    return f"{getattr(credentials, 'service_account_email', None) or 'a user'}, project {project}"


def _firestore(ward: Ward) -> str:
    try:
        ward.firestore = store.connect(ward.settings)
    except FirestoreUnavailable as error:
        raise Trouble(str(error), "see credentials") from None
    name = ward.settings.collection("documents")
    with _google("read", f"the collection {name}"):
        found = ward.documents().limit(1).get(timeout=CALL_SECONDS, retry=None)
    if not found:
        raise Doubt(
            f"{name} is empty",
            "fine before the first upload; else check FIRESTORE_COLLECTION_PREFIX and GOOGLE_CLOUD_PROJECT",
        )
    return f"{name} can be read (project {ward.firestore.project})"


def _firestore_write(ward: Ward) -> str:
    collection = ward.settings.collection("doctor")
    probe = ward.firestore.document(collection, secrets.token_hex(8))
    with _google("written", f"a probe in {collection}"):
        probe.set({"createdAt": int(time.time() * 1000)}, timeout=CALL_SECONDS, retry=None)
        probe.delete(timeout=CALL_SECONDS, retry=None)
    return f"a probe in {collection} was written and removed"


class _google:  # noqa: N801 (used as a function is)
    """Turn Google's errors into `Trouble`."""

    def __init__(self, verb: str, what: str) -> None:
        self._verb = verb
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError

        if error is None:
            return
        text = f"{self._what} can't be {self._verb}: "
        if isinstance(error, exceptions.PermissionDenied):
            advice = "give the account the role roles/datastore.user in the project"
            raise Trouble(f"{text}permission denied", advice) from None
        if isinstance(error, exceptions.NotFound):
            raise Trouble(f"{text}the project has no Firestore database", "create it (Native mode)") from None
        if isinstance(error, exceptions.Unauthenticated | GoogleAuthError):
            raise Trouble(f"{text}the credentials were refused", "see credentials") from None
        if isinstance(error, exceptions.GoogleAPICallError | exceptions.RetryError):
            advice = "look at the network, and at FIRESTORE_EMULATOR_HOST if it is set"
            raise Trouble(f"{text}Firestore does not answer ({type(error).__name__})", advice) from None


def _neighbours(ward: Ward) -> str:
    from google.cloud.firestore import FieldFilter

    with _google("read", "the documents under way"):
        query = ward.documents().where(filter=FieldFilter("status", "==", "processing")).limit(50)
        found = [(item.id, item.to_dict() or {}) for item in query.get(timeout=CALL_SECONDS, retry=None)]
    now = time.time() * 1000
    foreign = []
    for doc_id, fields in found:
        # `jobId` is that of the last exam until there is a new one.
        job_id, updated = str(fields.get("run", "")).rpartition(":")[0], fields.get("updatedAt")
        fresh = isinstance(updated, int) and now - updated < FRESH_MS
        if job_id and fresh and not ward.redis.exists(ward.settings.key("job", job_id)):
            foreign.append(doc_id)
    if foreign:
        raise Trouble(
            f"{len(foreign)} documents are being worked on by jobs that this Redis does not know ({foreign[0]})",
            "another installation has the same project and FIRESTORE_COLLECTION_PREFIX: give each a prefix of its own",
        )
    return f"{len(found)} documents under way, none by another installation"


# --- Uploads ----------------------------------------------------------------------------------------------------------


def _uploads(ward: Ward) -> str:
    bucket = ward.settings.gcs_bucket_name
    if bucket:
        return _bucket(ward)
    directory = ward.settings.uploads_dir
    if not directory.is_dir():
        raise Trouble(
            f"UPLOADS_DIR, {directory}, {'is no directory' if directory.exists() else 'does not exist'}",
            f"mount the uploads there, or set GCS_BUCKET_NAME (the website's default bucket is {WEBSITE_BUCKET})",
        )
    if not os.access(directory, os.R_OK | os.X_OK):
        raise Trouble(f"UPLOADS_DIR, {directory}, can't be read by this user", "give it read and search permission")
    return f"the directory {directory} can be read"


def _bucket(ward: Ward) -> str:
    from google.api_core.exceptions import Forbidden, GoogleAPIError, NotFound
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage import Client

    name = ward.settings.gcs_bucket_name
    try:
        client = Client(project=ward.settings.google_cloud_project or None)
        try:
            # Not the bucket itself: the role that is needed, objectViewer, may list objects only.
            list(client.list_blobs(name, max_results=1, timeout=CALL_SECONDS, retry=None))
        finally:
            client.close()
    except NotFound:
        raise Trouble(f"there is no bucket {name}", "check GCS_BUCKET_NAME") from None
    except Forbidden:
        advice = "give the account the role roles/storage.objectViewer on the bucket"
        raise Trouble(f"the bucket {name} can't be read", advice) from None
    except (GoogleAPIError, GoogleAuthError, OSError) as error:
        raise Trouble(f"the bucket {name} does not answer ({type(error).__name__})", "see credentials") from None
    return f"the bucket {name} can be read"


def _files(ward: Ward) -> str:
    newest = _newest_paths(ward)
    if not newest:
        return "no documents yet"
    here = [path for path in newest if _has_upload(path, ward.settings)]
    missing = len(newest) - len(here)
    if not missing:
        return f"the newest {len(newest)} documents' PDFs are there"
    text = f"{missing} of the newest {len(newest)} documents' PDFs are missing ({_shown(newest, here)})"
    if ward.settings.gcs_bucket_name:
        raise _serious(missing, newest)(text, "is it the bucket that the website uploads to (its GCS_BUCKET_NAME)?")
    in_bucket = dataclasses.replace(ward.settings, gcs_bucket_name=WEBSITE_BUCKET)
    if _has_upload(next(path for path in newest if path not in here), in_bucket):
        text += f": the website put them into the bucket {WEBSITE_BUCKET}"
        raise Trouble(text, f"set GCS_BUCKET_NAME={WEBSITE_BUCKET}")
    raise _serious(missing, newest)(
        text,
        f"the website uploads to a bucket, {WEBSITE_BUCKET} unless told otherwise, and never to a directory: set "
        f"GCS_BUCKET_NAME to it, or let what fills {ward.settings.uploads_dir} catch up",
    )


def _serious(missing: int, newest: Sequence[str]) -> type[Trouble]:
    # One file may have been deleted; all of them can't.
    return Trouble if missing == len(newest) else Doubt


def _shown(newest: Sequence[str], here: Sequence[str]) -> str:
    return json.dumps(next(path for path in newest if path not in here), ensure_ascii=False)[:100]


def _newest_paths(ward: Ward) -> list[str]:
    from google.cloud.firestore import Query

    documents = ward.documents()
    with _google("read", "the newest documents"):
        found = documents.order_by("createdAt", direction=Query.DESCENDING).limit(NEWEST_DOCUMENTS)
        items = found.get(timeout=CALL_SECONDS, retry=None)
        if not items:  # none has the field
            items = documents.limit(NEWEST_DOCUMENTS).get(timeout=CALL_SECONDS, retry=None)
    paths = [(item.to_dict() or {}).get("filePath") for item in items]
    return [path for path in paths if isinstance(path, str) and path]


def _has_upload(path: str, settings: Settings) -> bool:
    try:
        return uploads.has_upload(path, settings)
    except (uploads.UploadsUnavailable, PdfMissing):
        return False


# --- Gemini -----------------------------------------------------------------------------------------------------------


def _gemini(ward: Ward) -> str:
    settings = ward.settings
    if settings.gemini_api_key in {"", PLACEHOLDER_KEY}:
        what = "not set" if not settings.gemini_api_key else "still the placeholder of .env.example"
        raise Trouble(f"GEMINI_API_KEY is {what}", "get a key at https://aistudio.google.com/apikey; workers need it")
    module = "google.genai" if settings.gemini_sdk == "google-genai" else "google.generativeai"
    if importlib.util.find_spec(module) is None:
        raise Trouble(
            f"GEMINI_SDK is {settings.gemini_sdk}, which is not installed", f"pip install {settings.gemini_sdk}"
        )
    try:
        name = gemini.check_model(settings, CALL_SECONDS)
    except SuperExamError as error:
        advice = {
            "gemini_key": "check GEMINI_API_KEY",
            "gemini_model": "set GEMINI_MODEL to a model of this key, such as gemini-flash-latest",
            "gemini_quota": "look at the plan of the key's project",
        }.get(error.code, "look at the network, and at GEMINI_API_ENDPOINT if it is set")
        raise Trouble(str(error), advice) from None
    return f"the key is good for {name}"


CHECKS = (
    Check("settings", (), _settings),
    Check("names", ("settings",), _names),
    Check("redis", ("settings",), _redis),
    Check("redis info", ("redis",), _redis_info),
    Check("prefix", ("redis",), _prefix),
    Check("other keys", ("redis",), _leaks),
    Check("api", ("settings",), _api),
    Check("workers", ("redis",), _workers),
    Check("scheduler", ("redis", "workers"), _scheduler),
    Check("queue", ("redis",), _queue),
    Check("credentials", ("settings",), _credentials),
    Check("firestore read", ("settings", "credentials"), _firestore),
    Check("firestore write", ("firestore read",), _firestore_write),
    Check("neighbours", ("redis", "firestore read"), _neighbours),
    Check("uploads", ("settings",), _uploads),
    Check("files", ("firestore read", "uploads"), _files),
    Check("gemini", ("settings",), _gemini),
)
