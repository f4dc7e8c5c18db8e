"""Log lines to standard error, the same in every process."""

from __future__ import annotations

import logging

from lplgrad_backend.settings import Settings

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def start_logging(settings: Settings) -> None:
    """Log to standard error, unless the server that runs us has set up logging already."""
    logging.basicConfig(level=settings.log_level, format=FORMAT)
    logging.getLogger("huey").setLevel(logging.WARNING)
