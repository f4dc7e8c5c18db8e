"""`serve` and `worker`: the commands that run until they are ended."""

from __future__ import annotations

import os

from lplgrad_backend.cli.options import EVERYWHERE, Host, Port
from lplgrad_backend.logs import start_logging
from lplgrad_backend.serving import serve as serve_app
from lplgrad_backend.settings import read_settings
from lplgrad_backend.worker import run_worker


def serve(host: Host = EVERYWHERE, port: Port = 9090) -> None:
    """Run the backend: web server, and a worker that trains (not with LPLGRAD_WORKER=external)."""
    serve_app(read_settings(os.environ), host, port)


def worker() -> None:
    """Run a worker alone, beside a server started with LPLGRAD_WORKER=external."""
    settings = read_settings(os.environ)
    start_logging(settings)
    run_worker(settings)
