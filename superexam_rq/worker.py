"""ExamWorker: what only a subclass of RQ's worker can do.

What a job does is in `jobs`, what may happen to it in `lifecycle`. Started with RQ's own command,
`rq worker -S json -w superexam_rq.worker.ExamWorker --with-scheduler superexam`; all else that a good worker needs
it sets by itself, since an operator forgets flags and `rq worker-pool` has none.
Importing this module imports what a job needs, once, before the worker forks: a work-horse then starts in
milliseconds instead of a second and shares that memory. Clients are built in the horse, never here: a child forked
from a process with a gRPC channel hangs. What the parent has to tell Firestore, a short-lived child does.

A run is given up when its heartbeat has stood still for `PATIENCE` seconds before the eyes of another worker. RQ
compares the heartbeat's time with the clock instead, and so takes every run for dead after an outage of Redis.
Workers that can't see Redis see nothing stand still: they begin anew when it is back.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from redis import ConnectionPool, Redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.connection import UnixDomainSocketConnection
from redis.exceptions import BusyLoadingError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from rq import Queue, worker_registration
from rq.connections import parse_connection
from rq.exceptions import NoSuchJobError, StopRequested
from rq.executions import Execution
from rq.job import Job
from rq.registry import ScheduledJobRegistry
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer
from rq.suspension import is_suspended
from rq.timeouts import JobTimeoutException
from rq.utils import now
from rq.worker import WorkerStatus
from rq.worker_registration import WORKERS_BY_QUEUE_KEY

from superexam_rq import gemini, jobs, lifecycle, logs, sweep  # noqa: F401  (jobs: preloaded for the horse)
from superexam_rq.config import Settings
from superexam_rq.errors import ConfigError, JobTimeout, SuperExamError, WorkerLost
from superexam_rq.lifecycle import ExamJob
from superexam_rq.processes import die_with_parent
from superexam_rq.queueing import away, check_key_prefix
from superexam_rq.worker_logs import LoggedWorker

# Seconds. A run shows that it lives every HEARTBEAT; a worker looks around every LOOK while idle, HEARTBEAT while busy.
HEARTBEAT = 5
LOOK = 2
PATIENCE = 18.0
# RQ's own tools (`rq info`, the dashboard) take a run for dead after this and HEARTBEAT: long after the workers did.
STALE_SECONDS = 600
# How long a retry may be overdue until a worker queues it in place of the scheduler.
OVERDUE = 3
SWEEP_INTERVAL = 30
# Documents of jobs that have run and wait, for a retry or for a worker, are told again so often (contract §3).
REMIND_INTERVAL = 10
MAX_REMINDED = 500
# A child that tells Firestore something gives up after this; less than SWEEP_INTERVAL, so that sweeps never overlap.
CHILD_SECONDS = 25
# Tries after which an outage of Redis is told, and the pause after a refusal.
TOLD_AFTER = 4
REFUSAL_PAUSE = 1.0
# How long a worker that stops tries to hand its job back, and waits for its children.
HAND_BACK_SECONDS = 10.0
LAST_SECONDS = 5.0
SCHEDULER_INTERVAL = 10.0


class Watch:
    """Tell which of the things that one sees again and again have not changed for a while.

    Time counts only while somebody looks: after a gap of more than `max_gap` seconds it begins anew.
    """

    def __init__(
        self, patience: float = PATIENCE, max_gap: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._patience = patience
        self._max_gap = max_gap
        self._clock = clock
        self._looked = float("-inf")
        self._since: dict[str, tuple[float, float]] = {}

    def look(self, seen: Mapping[str, float]) -> list[str]:
        """Take what is seen now, each thing with a value; return what has had the same value for `patience` s."""
        moment = self._clock()
        before = self._since if moment - self._looked <= self._max_gap else {}
        self._looked = moment
        self._since = {
            name: before[name] if name in before and before[name][0] == value else (value, moment)
            for name, value in seen.items()
        }
        return [name for name, (_, since) in self._since.items() if moment - since >= self._patience]


class Patience(ExponentialWithJitterBackoff):
    """Wait between tries to reach Redis, unless the worker is to stop and has nothing to lose."""

    def __init__(self, may_give_up: Callable[[], bool]) -> None:
        super().__init__(cap=3.0, base=0.1)
        self._may_give_up = may_give_up

    def __deepcopy__(self, memo: Any) -> Patience:
        # Each connection gets a copy of its pool's retry; the worker behind this one must not be copied with it.
        return self

    def compute(self, failures: int) -> float:
        """Return the seconds to wait; raises RQ's `StopRequested`."""
        if self._may_give_up():
            raise StopRequested
        if failures == TOLD_AFTER:
            logging.getLogger("rq.worker").warning("Redis can't be reached; trying again")
        return super().compute(failures)


class ExamScheduler(RQScheduler):
    """Be RQ's scheduler, and end with the worker that started it."""

    def work(self) -> None:
        """Queue retries when their time has come, until told to stop, or Redis can't serve: then it is started anew."""
        _die_with_parent(signal.SIGKILL)
        try:
            super().work()  # type: ignore[no-untyped-call]
        except RedisError as error:
            if (reason := away(error)) is None:
                raise
            self.log.warning("The scheduler ends: %s", reason)


class ExamWorker(LoggedWorker):
    """Run exam jobs; look after those of workers that are gone."""

    job_class = ExamJob

    def __init__(
        self,
        queues: str | Queue | Sequence[str] | Sequence[Queue],
        name: str | None = None,
        *,
        connection: Redis | None = None,
        prepare_for_work: bool = True,
        **options: Any,
    ) -> None:
        names = _names(queues)
        try:
            self.settings = Settings.from_env(os.environ, Path(".env"))
            check_key_prefix(self.settings)
            if prepare_for_work:
                _check(self.settings, names)
        except ConfigError as error:
            sys.exit(f"superexam: {error}")
        if connection is None:
            connection = Redis.from_url(self.settings.redis_url)
        if prepare_for_work:
            _die_with_parent(signal.SIGTERM)  # that of a pool
            logs.configure(self.settings)
            gemini.preload(self.settings)
            connection = self._patient(connection)
        options |= {
            "worker_ttl": 30,
            "maintenance_interval": LOOK,
            "job_monitoring_interval": HEARTBEAT,
            "job_class": ExamJob,
            "serializer": JSONSerializer,
        }
        super().__init__(names, name, connection=connection, prepare_for_work=prepare_for_work, **options)
        self._looked = float("-inf")
        self._scheduler_checked = time.monotonic()
        self._runs, self._popped = Watch(), Watch()
        self._children: list[multiprocessing.process.BaseProcess] = []
        self._stop_requested_at = 0.0
        self._grace_ends = float("inf")
        self._handing_back = ""
        self._death: SuperExamError = WorkerLost("The process that ran the job died")

    # Redis

    def _patient(self, connection: Redis) -> Redis:
        """Return a client like the given one that outlives an outage of a minute or two."""
        client_class, connection_class, options = parse_connection(connection)
        options |= {
            "retry": Retry(
                Patience(self._may_give_up), 60, (RedisConnectionError, RedisTimeoutError, BusyLoadingError)
            ),
            "retry_on_error": [BusyLoadingError],
            "socket_connect_timeout": 5,
            "socket_timeout": self.connection_timeout,
            "health_check_interval": 15,
        }
        if not issubclass(connection_class, UnixDomainSocketConnection):
            options["socket_keepalive"] = True
        return client_class(connection_pool=ConnectionPool(connection_class=connection_class, **options))

    def _may_give_up(self) -> bool:
        if not getattr(self, "_stop_requested", False) or self._is_horse:
            return False
        return not self.executions or time.monotonic() >= self._grace_ends

    @contextlib.contextmanager
    def _outlive_refusals(self) -> Iterator[None]:
        """Go on where Redis can't serve now: it is a replica after a failover, out of memory, or gone.

        What was under way stands still before the eyes of all workers, and is taken up when Redis is back. Raises
        `StopRequested` where the worker is to stop anyway, and what is a defect of ours.
        """
        try:
            yield
        except RedisError as error:
            reason = away(error)
            if reason is None:
                raise
            # Others were refused too: what stood still meanwhile need not be dead.
            self._runs, self._popped = Watch(), Watch()
            if self._may_give_up():
                raise StopRequested from None
            self.log.warning("%s; trying again", reason)
            time.sleep(REFUSAL_PAUSE)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        """Show that the worker lives, if Redis takes it now."""
        with self._outlive_refusals():
            super().heartbeat(timeout, pipeline)

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """Wait for a job, however long Redis can't serve."""
        while True:
            with self._outlive_refusals():
                return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)

    @property
    def dequeue_timeout(self) -> int:
        """Return how long to wait for a job before looking around again."""
        return LOOK

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Return after how many seconds without a heartbeat RQ's own tools may give up a run."""
        return HEARTBEAT + STALE_SECONDS

    def _pubsub_exception_handler(self, exc: Exception, pubsub: Any, pubsub_thread: Any) -> None:
        """Stay subscribed until the end: a worker that hears no commands can't cancel a job."""
        if isinstance(exc, StopRequested):
            pubsub_thread.stop()
            return
        if isinstance(exc, RedisError):
            self.log.warning("no commands can be heard: %s", exc)
            time.sleep(2)
            return
        super()._pubsub_exception_handler(exc, pubsub, pubsub_thread)

    # One job

    @property
    def queue(self) -> Queue:
        """Return the one queue."""
        return self.queues[0]

    def execute_job(self, job: Job, queue: Queue) -> None:
        """Claim a job that was popped, run it in a work-horse, and see to the end of it."""
        with self._outlive_refusals():
            try:
                self._execute(job, queue)
            finally:
                self.executions.clear()

    def _execute(self, job: Job, queue: Queue) -> None:
        if self._stop_requested:
            lifecycle.put_back(self.queue, job.id)
            return
        execution = lifecycle.claim(
            self.queue, self.settings, _ours(job), self.name, self.get_heartbeat_ttl(job), self._busy
        )
        if execution is None:
            self.log.warning("job %s: popped, but not to be run any more", job.id)
            return
        self.executions[execution.id] = execution
        self._state = WorkerStatus.BUSY
        self.fork_work_horse(job, queue)
        self.monitor_work_horse(job, queue, execution)
        self.executions.clear()
        self._drop(job, execution)
        self.set_state(WorkerStatus.IDLE)

    def _busy(self, pipe: Any) -> None:
        pipe.hset(self.key, "state", WorkerStatus.BUSY)

    def _drop(self, job: Job, execution: Execution) -> None:
        """Remove what a run that found itself superseded has left in the registry of running jobs."""
        if self.connection.zscore(self.queue.started_job_registry.key, execution.composite_key) is not None:
            with self.connection.pipeline() as pipe:
                execution.delete(job=job, pipeline=pipe)
                pipe.execute()

    def setup_work_horse_signals(self) -> None:
        """Make the work-horse die with this worker, and by nothing else: an orphan would run beside its own retry.

        A service manager may send SIGTERM to every process; how long the job may go on is the parent's to say.
        """
        die_with_parent(self.pid or 0, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        """Kill the work-horse and what it started; RQ's own would kill the worker before the horse has its group."""
        pid = self.horse_pid
        if not pid:
            return
        try:
            if os.getpgid(pid) == pid:
                os.killpg(pid, sig)
            else:
                os.kill(pid, sig)
        except ProcessLookupError:
            return

    def prepare_job_execution(self, job: Job, remove_from_intermediate_queue: bool = False) -> None:
        """Do nothing: `claim` did it, and a job that was deleted since must not come back as half a hash."""

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Note what a failure means, and log it: an expected one in one line, a traceback is for defects."""
        error = exc_info[1]
        if isinstance(error, JobTimeoutException):
            error = JobTimeout(f"The job took longer than {self.settings.job_timeout} s")
        lifecycle.note_failure(_ours(job), error)
        if isinstance(error, SuperExamError):
            self.log.warning("job %s failed: %s (%s)", job.id, error, error.code)
        else:
            super().handle_exception(job, *exc_info)

    def handle_execution_ended(self, job: Job, queue: Queue, heartbeat_ttl: int) -> None:
        """Note the time, and write nothing: of a job that was deleted, half a hash would stay for ever."""
        job.ended_at = now()

    def handle_job_success(self, job: Job, queue: Queue, started_job_registry: Any, execution: Execution) -> None:
        """Mark the job finished, unless the run was given up meanwhile."""
        if lifecycle.is_current(_ours(job), execution):
            super().handle_job_success(job, queue, started_job_registry, execution)
            lifecycle.announce(self.connection, self.settings, job.id)

    def handle_job_failure(
        self,
        job: Job,
        queue: Queue,
        started_job_registry: Any = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        """Retry, fail or cancel a job whose run ended without success, and tell its document."""
        if execution is None:
            raise RuntimeError("a run that was never claimed can't fail")
        if not self.is_horse:
            self._bury(job, execution)
            return
        if not lifecycle.is_current(_ours(job), execution):
            return
        if self.connection.hexists(job.key, "cancel_requested") or job.meta.get("error_code") == "cancelled":
            lifecycle.finish_cancelled(_ours(job), self.queue, self.settings, execution)
            _guarded(lifecycle.settle, self.connection, self.settings, [job.id], 5.0)
            return
        _guarded(lifecycle.tell_failure, self.settings, _ours(job))
        super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)
        lifecycle.announce(self.connection, self.settings, job.id)

    def handle_work_horse_killed(self, job: Job, retpid: int, ret_val: int | None, rusage: Any) -> None:
        """Note why the work-horse died."""
        if ret_val is None:
            self._death = JobTimeout(f"The job took longer than {self.settings.job_timeout} s")
        elif os.WIFSIGNALED(ret_val) and os.WTERMSIG(ret_val) == signal.SIGKILL:
            self._death = WorkerLost("The worker was killed, perhaps for lack of memory (signal 9)")
        elif os.WIFSIGNALED(ret_val):
            self._death = WorkerLost(f"The worker died (signal {os.WTERMSIG(ret_val)})")
        else:
            self._death = WorkerLost("The worker could not say how the job ended")

    def _handle_stopped_job(self, job: Job, queue: Queue, execution: Execution) -> None:
        """Turn a job that was stopped by a command into a cancelled one."""
        self._stopped_job_id = None
        with contextlib.suppress(NoSuchJobError):
            job = lifecycle.fetch(self.queue, job.id)  # with what the work-horse wrote
        lifecycle.finish_cancelled(_ours(job), self.queue, self.settings, execution)
        self._spawn(lifecycle.settle, self.connection, self.settings, [job.id])

    def _bury(self, job: Job, execution: Execution) -> None:
        """Do what follows from the death of a work-horse."""
        if self._handing_back == job.id:
            self._hand_back(execution)
            self.log.info("job %s: handed back to the queue", job.id)
            return
        self.log.warning("job %s: %s", job.id, self._death)
        if lifecycle.recover(self.queue, self.settings, execution.composite_key, self._death):
            self._spawn(lifecycle.settle, self.connection, self.settings, [job.id])

    def _hand_back(self, execution: Execution) -> None:
        """Hand a job back, also where Redis can't serve for some seconds: found by others, it would lose an attempt."""
        give_up = time.monotonic() + HAND_BACK_SECONDS
        while True:
            try:
                lifecycle.hand_back(self.queue, execution)
            except (RedisError, StopRequested):
                if time.monotonic() > give_up:
                    raise
                time.sleep(REFUSAL_PAUSE)
            else:
                return

    # Looking around

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """Tell whether it is time to look around; raises `StopRequested` where an idle worker is to stop.

        RQ asks this before each wait for a job, when nothing is popped: the one safe moment to stop.
        """
        if self._stop_requested and not self.executions:
            raise StopRequested
        return time.monotonic() - self._looked >= self.maintenance_interval

    def run_maintenance_tasks(self) -> None:
        """Recover what other workers lost, queue retries that are overdue, start the sweep; heed `rq suspend`."""
        with self._outlive_refusals():
            self._check_scheduler()
            self._look_around()
            if not self.executions:
                # RQ looks only before it begins to wait for a job: an idle worker would take one more.
                self.check_for_suspension(burst=False)
        self._looked = time.monotonic()

    def check_for_suspension(self, burst: bool) -> None:
        """Take no job while `rq suspend` is in force, as RQ does, and go on looking after what others lost."""
        if burst:
            super().check_for_suspension(burst)
            return
        state = None
        suspended = True  # until Redis has said that it is not
        while suspended and not self._stop_requested:
            with self._outlive_refusals():
                suspended = is_suspended(self.connection, self)
                if suspended:
                    if state is None:
                        self.log.info("Worker %s: suspended, run `rq resume` to resume", self.name)
                        state = self.get_state()
                        self.set_state(WorkerStatus.SUSPENDED)
                    self._check_scheduler()
                    self._look_around()
                elif state is not None:
                    self.set_state(state)
            if suspended:
                time.sleep(1)

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Show that the run lives, look around, and break the run off where the time to stop has come."""
        try:
            super().maintain_heartbeats(job, execution)
            self.run_maintenance_tasks()
        except RedisError as error:
            self.log.warning("%s", away(error) or error)
        except StopRequested:
            pass  # Redis is away, and the time to stop has come
        if time.monotonic() >= self._grace_ends:
            self._break_off()
        elif self._stop_requested:
            self.job_monitoring_interval = max(1, min(HEARTBEAT, int(self._grace_ends - time.monotonic())))

    def _look_around(self) -> None:
        started, scheduled = self.queue.started_job_registry.key, ScheduledJobRegistry(queue=self.queue).key
        with self.connection.pipeline(transaction=False) as pipe:
            pipe.zrange(started, 0, -1, withscores=True)
            pipe.lrange(self.queue.intermediate_queue_key, 0, -1)
            pipe.zrangebyscore(scheduled, "-inf", time.time() - OVERDUE, start=0, num=100)
            pipe.zcard(scheduled)
            pipe.llen(self.queue.key)
            pipe.set(self.settings.key("sweep"), self.name, nx=True, ex=SWEEP_INTERVAL)
            pipe.hexists(self.key, "birth")
            pipe.sismember(WORKERS_BY_QUEUE_KEY % self.queue.name, self.key)
            runs, popped, overdue, retries, queued, sweeping, *registered = pipe.execute()
        if not all(registered):
            self._register_again()
        seen = {entry.decode(): float(score) for entry, score in runs}
        lost = []
        for entry in self._runs.look(seen):
            error = WorkerLost("The worker that ran the job is gone")
            if lifecycle.recover(self.queue, self.settings, entry, error, seen[entry]):
                lost.append(entry.rpartition(":")[0])
                self.log.warning("job %s: its worker is gone", lost[-1])
        for job_id in self._popped.look(dict.fromkeys((job_id.decode() for job_id in popped), 0.0)):
            lifecycle.put_back(self.queue, job_id)
            self.log.warning("job %s: the worker that popped it is gone", job_id)
        for job_id in overdue:
            lifecycle.promote(self.queue, job_id.decode())
        if lost:
            self._spawn(lifecycle.settle, self.connection, self.settings, lost)
        if sweeping:
            self._spawn(sweep.run, self.connection, self.settings)
        if retries or queued:
            self._remind()

    def _remind(self) -> None:
        """Have the documents told again whose jobs have run and wait; the website writes over what they show."""
        if not self.connection.set(self.settings.key("remind"), self.name, nx=True, ex=REMIND_INTERVAL):
            return
        with self.connection.pipeline(transaction=False) as pipe:
            pipe.zrange(ScheduledJobRegistry(queue=self.queue).key, 0, -1)
            pipe.lrange(self.queue.key, 0, -1)
            waiting, queued = ([job_id.decode() for job_id in ids] for ids in pipe.execute())
            for job_id in queued:
                pipe.hexists(Job.key_for(job_id), "runs")
            waiting += [job_id for job_id, has_run in zip(queued, pipe.execute(), strict=True) if has_run]
        if waiting:
            self._spawn(lifecycle.settle, self.connection, self.settings, waiting[:MAX_REMINDED])

    def _register_again(self) -> None:
        """Register as at birth: Redis was emptied, or had no sign of this worker for longer than it keeps one."""
        self.log.warning("Worker %s: Redis had forgotten it; it registers again", self.name)
        with self.connection.pipeline() as pipe:
            pipe.hset(self.key, mapping=self.serialize() | {"state": self._state})
            worker_registration.register(self, pipe)
            pipe.expire(self.key, self.worker_ttl + 60)
            pipe.execute()

    def _spawn(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call a function in a child process of its own, which ends by itself."""
        child = multiprocessing.get_context("fork").Process(
            target=_in_child, args=(function, *arguments), name=function.__name__, daemon=True
        )
        child.start()
        self._children = [*(other for other in self._children if other.is_alive()), child]

    # The scheduler

    def _start_scheduler(
        self, burst: bool = False, logging_level: str | None = "INFO", date_format: str = "", log_format: str = ""
    ) -> None:
        """Start the process that queues retries on the second; overdue ones are queued by every worker."""
        self.scheduler = ExamScheduler(
            self.queues,
            connection=self.connection,
            logging_level=logging_level or self.log.level,
            serializer=JSONSerializer,
        )
        if not burst:
            self.scheduler.acquire_locks(auto_start=True)  # type: ignore[no-untyped-call]

    def _check_scheduler(self) -> None:
        if self.scheduler is None or time.monotonic() - self._scheduler_checked < SCHEDULER_INTERVAL:
            return
        self._scheduler_checked = time.monotonic()
        process: Any = self.scheduler._process
        if not self._stop_requested and (process is None or not process.is_alive()):
            self.scheduler.acquire_locks(auto_start=True)

    def stop_scheduler(self) -> None:
        """End the scheduler's process, soon: it may be waiting for Redis."""
        process: Any = self.scheduler._process if self.scheduler else None
        if process is None or not process.is_alive():
            return
        process.terminate()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()

    # The end

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Take no further job, and let the one that runs go on for `SHUTDOWN_GRACE` seconds."""
        self._stop_requested_at = time.monotonic()
        self._grace_ends = self._stop_requested_at + self.settings.shutdown_grace
        super().request_stop(signum, frame)  # type: ignore[no-untyped-call]

    def _shutdown(self) -> None:
        self._stop_requested = True

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """Hand the running job back at once on a second signal; one that comes with the first is no second one."""
        if time.monotonic() - self._stop_requested_at >= 1:
            self._grace_ends = time.monotonic()
            self._break_off()

    def _break_off(self) -> None:
        execution = next(iter(self.executions.values()), None)
        if execution is not None:
            self._handing_back = execution.job_id
            self.kill_horse()

    def teardown(self) -> None:
        """Leave nothing running, and say goodbye to Redis if it is there."""
        if self.is_horse:
            return
        give_up = time.monotonic() + LAST_SECONDS
        for child in self._children:
            child.join(max(0.0, give_up - time.monotonic()))
            child.kill()  # a sweep of another worker does what this child could not
        try:
            super().teardown()  # type: ignore[no-untyped-call]
        except (RedisError, StopRequested) as error:
            reason = away(error) or error if isinstance(error, RedisError) else "Redis can't be reached"
            self.log.warning("this worker's end could not be registered: %s", reason)


def _check(settings: Settings, names: Sequence[str]) -> None:
    settings.require_gemini_key()
    if list(names) != [settings.queue_name]:
        # With several queues RQ pops without a trace, and a crash just then loses the job.
        raise ConfigError(f"a worker takes exactly one queue, {settings.queue_name!r}, not {', '.join(names)!r}")


def _ours(job: Job) -> ExamJob:
    assert isinstance(job, ExamJob)  # `job_class` sees to it  # noqa: S101
    return job


def _names(queues: Any) -> list[str]:
    given = [queues] if isinstance(queues, str | Queue) else list(queues)
    return [queue.name if isinstance(queue, Queue) else str(queue) for queue in given]


def _die_with_parent(number: signal.Signals) -> None:
    """Do so in a process that `multiprocessing` started; nothing elsewhere."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(parent.pid, number)


def _in_child(function: Callable[..., None], *arguments: Any) -> None:
    logs.unbind()  # it looks at other jobs than the one that runs
    _die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(CHILD_SECONDS)
    _guarded(function, *arguments)


def _guarded(function: Callable[..., None], *arguments: Any) -> None:
    """Call what must not end the caller: what it could not do now, the next sweep does."""
    log = logging.getLogger("rq.worker")
    try:
        function(*arguments)
    except (SuperExamError, RedisError, StopRequested) as error:
        log.warning("%s: %s", function.__name__, str(error) or "Redis can't be reached")
    except Exception:
        log.exception("%s failed", function.__name__)
