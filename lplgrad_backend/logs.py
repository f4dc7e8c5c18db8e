"""Log lines to standard error, the same in every process: as text, or with LOG_FORMAT=json as one JSON object a line.

What a line is about stands in every JSON line: the project, the job (one look at the project, in all processes that take
part in it) and the version that is made, served or published. A thread says it by `about`; a process that does one job
alone says it once, in `start_logging`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from lplgrad_backend.settings import Settings

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# At DEBUG they write whole addresses, in whose queries signatures may stand, and every chunk of a picture.
TALKATIVE = ("urllib3", "PIL")


@dataclass(frozen=True)
class About:
    """What log lines are about; None is not known or does not apply."""

    project: int | None = None
    job: str | None = None
    version: str | None = None


_about: ContextVar[About | None] = ContextVar("about", default=None)


def current() -> About:
    """What this thread's lines are about."""
    return _about.get() or About()


@contextmanager
def about(**changes: Any) -> Iterator[None]:
    """Within the block this thread's lines are about this project, job or version, too."""
    token = _about.set(replace(current(), **changes))
    try:
        yield
    finally:
        _about.reset(token)


def note(**changes: Any) -> None:
    """From here to the end of the block of `about` that stands around, lines are about this, too."""
    _about.set(replace(current(), **changes))


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON. `everywhere`: what lines are about of threads that do not say it."""

    def __init__(self, everywhere: About | None = None) -> None:
        super().__init__()
        self._everywhere = everywhere or About()

    def format(self, record: logging.LogRecord) -> str:
        everywhere = asdict(self._everywhere)
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            **{name: value if value is not None else everywhere[name] for name, value in asdict(current()).items()},
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["error"] = self.formatException(record.exc_info)
        return json.dumps(said)


def start_logging(settings: Settings, everywhere: About | None = None) -> None:
    """Log to standard error, unless the server that runs us has set up logging already."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(everywhere) if settings.log_format == "json" else logging.Formatter(FORMAT))
    logging.basicConfig(level=settings.log_level, handlers=[handler])
    logging.captureWarnings(settings.log_format == "json")
    logging.getLogger("huey").setLevel(logging.WARNING)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLevelName(settings.log_level)))
