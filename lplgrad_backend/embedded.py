"""A worker process kept alive by the web process, so that one command runs everything on one machine."""

from __future__ import annotations

import atexit
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress

from lplgrad_backend.rounds import end_process
from lplgrad_backend.settings import Settings, without_secrets
from lplgrad_backend.worker import SETTINGS_BY_PIPE

log = logging.getLogger(__name__)
RESTART_SECONDS = 2.0


class EmbeddedWorker:
    """Keeps `python -m lplgrad_backend.worker` running for as long as this process lives.

    The worker takes a lock below MODEL_DIR, so that of several web processes' workers one works and the others wait in
    line. It leaves when the pipe to this process closes, however this process ends.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._owner: int | None = None
        self._starting = threading.Lock()
        self._spawning = threading.Lock()
        # a fork in the middle of a spawn keeps that spawn's pipes open, and Popen would wait for their end for ever
        release = self._spawning.release
        os.register_at_fork(before=self._spawning.acquire, after_in_parent=release, after_in_child=release)

    def ensure(self) -> None:
        """Start keeping a worker, unless this process does. Cheap: called at every request, since servers fork after
        the app was made."""
        if self._owner == os.getpid():
            return
        with self._starting:
            if self._owner != os.getpid():
                self._owner = os.getpid()
                stop = threading.Event()
                keeper = threading.Thread(target=self._keep, args=(stop,), name="worker keeper", daemon=True)
                keeper.start()
                atexit.register(_leave, stop, keeper)

    def _keep(self, stop: threading.Event) -> None:
        environment = without_secrets(os.environ)
        settings = json.dumps(self._settings.environ()).encode() + b"\n"
        while not stop.is_set():
            with self._spawning:
                worker = _worker(environment)
            assert worker.stdin is not None
            with suppress(BrokenPipeError):  # it died at once; the loop below says so
                worker.stdin.write(settings)
                worker.stdin.flush()
            while worker.poll() is None and not stop.wait(0.2):
                pass
            end_process(worker)
            if not stop.is_set():
                log.warning("the worker ended with status %s; starting another", worker.returncode)
                stop.wait(RESTART_SECONDS)


def _worker(environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C in a terminal reaches this process, which then ends the worker in order."""
    command = [sys.executable, "-m", "lplgrad_backend.worker", SETTINGS_BY_PIPE]
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)


def _leave(stop: threading.Event, keeper: threading.Thread) -> None:
    stop.set()
    keeper.join()
