"""Who may work on a project: one process at a time.

On one machine a lock is a file, which the kernel frees when its holder ends. On several it is a key in Redis that runs out
unless its holder renews it, so that a machine that is cut off, asleep or gone keeps nothing. Such a holder knows by its
own clock that its time is over, without asking anybody, and asks Redis before each step that others see.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from redis import ConnectionPool, Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from lplgrad_backend.errors import HoldLost, StoreError
from lplgrad_backend.files import written
from lplgrad_backend.settings import Settings

log = logging.getLogger(__name__)
RENEWALS = 4  # within the time that a lock holds by itself
# A webhook rings the bell while somebody waits, and Label Studio waits a second.
CONNECT_SECONDS, ANSWER_SECONDS = 1.0, 2.0

RENEW = "return redis.call('get', KEYS[1]) == ARGV[1] and redis.call('pexpire', KEYS[1], ARGV[2]) or 0"
# or the answer to a first try was lost
TAKE = "if redis.call('set', KEYS[1], ARGV[1], 'nx', 'px', ARGV[2]) then return 1 end " + RENEW
FREE = "return redis.call('get', KEYS[1]) == ARGV[1] and redis.call('del', KEYS[1]) or 0"


class Hold(Protocol):
    """A project that is this process's alone until it is let go or lost."""

    @property
    def lost(self) -> bool:
        """Whether another process may be at the project by now. Asks nobody."""

    def confirm(self) -> None:
        """Make sure that the project is still held, before a step that others see.

        Raises:
            HoldLost: it is not, or nobody can say.
        """


class Stopping:
    """Says that a look at a project is to end: this process does, or the project is no longer its own."""

    def __init__(self, stop: threading.Event, hold: Hold) -> None:
        self._stop, self._hold = stop, hold

    def is_set(self) -> bool:
        """Whether it is."""
        return self._stop.is_set() or self._hold.lost

    def wait(self, timeout: float) -> bool:
        """Wait until it is, at most so many seconds. Returns whether it is."""
        return self._hold.lost or self._stop.wait(timeout) or self._hold.lost


class Locks(Protocol):
    """A lock for every project."""

    def hold(self, project: int) -> AbstractContextManager[Hold | None]:
        """Take a project, or None when another process has it. It is let go at the block's end.

        Raises:
            StoreError: the lock cannot be asked for.
        """

    def held(self, project: int) -> bool:
        """Whether some process is at the project; also when nobody can say."""


def open_locks(settings: Settings) -> Locks:
    """The locks that all processes with these settings share."""
    if settings.queue_url is None:
        return FileLocks(settings.model_dir)
    return RedisLocks(open_redis(settings.queue_url), settings.lock_seconds)


# On one machine


class FileHold:
    """Held as long as this process lives."""

    lost = False

    def confirm(self) -> None:
        """Nothing can have happened to it."""


class FileLocks:
    """Locks in the projects' folders; they die with their holder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def hold(self, project: int) -> Iterator[Hold | None]:
        """See `Locks`."""
        with file_lock(self._file(project)) as ours:
            yield FileHold() if ours else None

    def held(self, project: int) -> bool:
        """See `Locks`."""
        return is_locked(self._file(project))

    def _file(self, project: int) -> Path:
        return self._folder / str(int(project)) / "lock"


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[bool]:
    """Yields whether the lock at `path` is now held by this process; the kernel frees it when the process ends.

    Raises:
        StoreError: the lock's file cannot be made.
    """
    with written(path.name, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock at `path`. Several may ask at once without taking each other for its holder."""
    try:
        file = path.open("rb")
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# On several


def open_redis(url: str) -> Redis:
    """A client that gives up soon on a Redis that does not answer; connects when first used. Its errors are RedisErrors."""
    pool = ConnectionPool.from_url(
        url,
        socket_connect_timeout=CONNECT_SECONDS,
        socket_timeout=ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 1),  # once, for a connection that broke while it was idle
    )
    return Redis(connection_pool=pool)


def elapsed() -> float:
    """Seconds that pass also while this machine is suspended, where the system counts those."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


class RedisLocks:
    """Locks as keys of a Redis.

    Args:
        seconds: how long a lock holds that is not renewed.
    """

    def __init__(self, client: Redis, seconds: float, clock: Callable[[], float] = elapsed) -> None:
        self._client, self._seconds, self._clock = client, seconds, clock

    @contextlib.contextmanager
    def hold(self, project: int) -> Iterator[Hold | None]:
        """See `Locks`."""
        lease = Lease(self._client, _key(project), self._seconds, self._clock)
        try:
            ours = lease.take()
        except RedisError as error:
            raise StoreError(f"The lock of project {project} cannot be asked for: {error}. See LPLGRAD_QUEUE_URL.") from error  # fmt: skip  # noqa: E501
        if not ours:
            yield None
            return
        with lease.kept():
            yield lease

    def held(self, project: int) -> bool:
        """See `Locks`."""
        try:
            return bool(self._client.exists(_key(project)))
        except RedisError:
            return True


def _key(project: int) -> str:
    return f"lplgrad.lock.{int(project)}"


class Lease:
    """A key in Redis that this process renews and that runs out by itself."""

    def __init__(self, client: Redis, key: str, seconds: float, clock: Callable[[], float]) -> None:
        self._client, self._key, self._seconds, self._clock = client, key, seconds, clock
        self._token = uuid.uuid4().hex
        self._until = 0.0  # by our clock: counted from before the request, so never later than Redis lets go
        self._taken = threading.Event()

    @property
    def lost(self) -> bool:
        """See `Hold`."""
        return self._taken.is_set() or self._clock() >= self._until

    def confirm(self) -> None:
        """See `Hold`."""
        if not self.lost:
            try:
                self._renew()
            except RedisError as error:
                raise HoldLost(f"{self._key} cannot be confirmed: {error}. See LPLGRAD_QUEUE_URL.") from error
        if self.lost:
            raise HoldLost(f"{self._key} ran out, so another worker may be at the project; what was begun is given up.")

    def take(self) -> bool:
        """Ask for the key. Returns whether it is ours.

        Raises:
            RedisError
        """
        return self._ask(TAKE)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Renew the key until the block ends, then let it go."""
        ended = threading.Event()
        thread = threading.Thread(target=self._keep, args=(ended,), name=f"keeps {self._key}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            with contextlib.suppress(RedisError):  # it runs out
                self._client.eval(FREE, 1, self._key, self._token)

    def _keep(self, ended: threading.Event) -> None:
        while not ended.wait(self._seconds / RENEWALS) and not self.lost:
            try:
                self._renew()
            except RedisError as error:
                log.warning("%s was not renewed: %s", self._key, error)
        if self.lost and not ended.is_set():
            log.warning("%s is lost: Redis could not be reached in time, or lost it", self._key)

    def _renew(self) -> None:
        if not self._ask(RENEW):
            self._taken.set()

    def _ask(self, script: str) -> bool:
        asked = self._clock()
        ours = bool(self._client.eval(script, 1, self._key, self._token, round(self._seconds * 1000)))
        if ours:
            self._until = asked + self._seconds
        return ours
