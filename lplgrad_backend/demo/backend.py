"""This backend as a child process, the way `make run` starts it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from lplgrad_backend.demo.process import ChildProcess, LocalServer, free_port

SECONDS_TO_START = 120.0
ROOT = Path(__file__).parent.parent.parent


class Backend(LocalServer):
    """`python -m lplgrad_backend serve` with the given settings.

    Args:
        settings: environment variables beside those of this process; MODEL_DIR among them.
        log: where its output goes.
        port: 0 takes a free one.

    Raises:
        DemoError: it did not answer `/health` in time, or ended.
    """

    def __init__(self, settings: Mapping[str, str], log: Path, *, port: int = 0) -> None:
        port = port or free_port()
        self.models = Path(settings["MODEL_DIR"])
        process = ChildProcess(
            Path(sys.executable), "lplgrad_backend", ["serve", "--host", "127.0.0.1", "--port", str(port)],
            environment={**os.environ, **settings, "PYTHONPATH": str(ROOT)}, log=log,
        )  # fmt: skip
        super().__init__(f"http://127.0.0.1:{port}", process, SECONDS_TO_START)
