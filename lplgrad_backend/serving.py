"""The web process: gunicorn with threads around the app."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from wsgiref.types import WSGIApplication

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from lplgrad_backend.api import create_app
from lplgrad_backend.embedded import EmbeddedWorker
from lplgrad_backend.errors import LPLGradError, SettingsError
from lplgrad_backend.files import keep_private
from lplgrad_backend.logs import JsonFormatter, start_logging
from lplgrad_backend.service import build_service
from lplgrad_backend.settings import ENV_FILE, Settings, read_settings

log = logging.getLogger(__name__)
ADDRESS_SECONDS = 5.0
# gunicorn.conf.py says the same to `gunicorn _wsgi:app`
OPTIONS = {
    "worker_class": "gthread",
    "threads": 8,
    "graceful_timeout": 20,
    "control_socket_disable": True,
    "proc_name": "lplgrad",
}


def application(settings: Settings) -> WSGIApplication:
    """The WSGI app; with LPLGRAD_WORKER=embedded it keeps a worker running.

    Raises:
        SettingsError: MODEL_DIR cannot be written.
        StoreError: the queue in it cannot be opened.
    """
    check_folder(settings)
    worker = EmbeddedWorker(settings) if settings.worker == "embedded" else None
    app = create_app(build_service(settings), worker)
    if worker is not None:
        worker.ensure()
    return app


def application_of_environment() -> WSGIApplication:
    """The app for a server that is not ours (`gunicorn _wsgi:app`). What cannot be used ends that server with a sentence."""
    try:
        settings = read_settings(os.environ)
        keep_private()
        start_logging(settings)
        say_what_is_missing(settings)
        return application(settings)
    except LPLGradError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(Arbiter.APP_LOAD_ERROR)  # the status for which gunicorn stops, instead of trying for ever


def missing_settings(settings: Settings) -> list[str]:
    """What will not work with these settings, one sentence each."""
    found = []
    if not settings.label_studio_is_known:
        names = {"LABEL_STUDIO_URL": settings.label_studio_url, "LABEL_STUDIO_API_KEY": settings.label_studio_api_key}
        missing = " and ".join(name for name, value in names.items() if value is None)
        found.append(
            f"{missing} not set: nothing is trained or published, and images uploaded to Label Studio cannot be read. "
            "/predict is answered all the same. Set them in the environment or in .env."
        )
    if settings.basic_auth is None:
        found.append(
            "BASIC_AUTH_USER and BASIC_AUTH_PASS not set: whoever reaches this port may ask for predictions and training."
        )
    return found


def say_what_is_missing(settings: Settings, env_file: Path = ENV_FILE) -> None:
    """Log as warnings `missing_settings`, and that others may read the file of settings."""
    for sentence in missing_settings(settings):
        log.warning(sentence)
    with suppress(OSError):
        if stat.S_IMODE(env_file.stat().st_mode) & 0o007:
            log.warning("%s can be read by everybody on this machine, the token in it too: chmod 600 it.", env_file)


def check_folder(settings: Settings) -> None:
    """Make MODEL_DIR and write in it.

    Raises:
        SettingsError: that is refused.
    """
    try:
        settings.model_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.model_dir):
            pass
    except OSError as error:
        raise SettingsError(
            "MODEL_DIR", str(settings.model_dir), f"a folder that can be written ({error.strerror})"
        ) from error


def check_address(host: str, port: int, patience: float = 0.0) -> None:
    """Listen there for a moment, since gunicorn tries for five seconds and then says less.

    Args:
        patience: seconds in which it may still come free: the child of a server that was killed takes a moment to leave.

    Raises:
        SettingsError: naming --host or --port.
    """
    if not 0 <= port <= 65535:
        raise SettingsError("--port", port, "a number from 0 to 65535")
    until = time.monotonic() + patience
    try:
        while not _listened(host, port, last=time.monotonic() >= until):
            time.sleep(0.1)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise SettingsError("--port", port, f"a free port that you may use ({error.strerror})") from error
        raise SettingsError(
            "--host", host, f"an address of this machine, such as 127.0.0.1 ({error.strerror})"
        ) from error


class JsonLog(Logger):  # type: ignore[misc]
    """gunicorn's own lines in the form of ours."""

    def setup(self, cfg: object) -> None:
        super().setup(cfg)
        for handler in (*self.error_log.handlers, *self.access_log.handlers):
            handler.setFormatter(JsonFormatter())


def _listened(host: str, port: int, *, last: bool) -> bool:
    """Whether that worked; False for an address in use, unless it is the last try."""
    family, kind, _, _, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            if last or error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn around `application`, listening on one address."""

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        self._settings, self._bind = settings, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        super().__init__()

    def load_config(self) -> None:
        options: dict[str, Any] = {"bind": self._bind, "workers": 1, **OPTIONS}
        if self._settings.log_format == "json":
            options["logger_class"] = JsonLog
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> WSGIApplication:
        return application(self._settings)


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT, which end the worker and its children too.

    Raises:
        SettingsError: the address or MODEL_DIR cannot be used.
    """
    keep_private()
    start_logging(settings)
    check_folder(settings)
    check_address(host, port, ADDRESS_SECONDS)
    say_what_is_missing(settings)
    Server(settings, host, port).run()
