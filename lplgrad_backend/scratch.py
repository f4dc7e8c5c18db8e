"""Where rounds leave their results until they are saved: folders called <project>-… below MODEL_DIR/scratch.

Each is locked by the process whose round it is, and the kernel frees the lock when that ends; so what a killed one left can
be told from what another works in.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lplgrad_backend.files import written
from lplgrad_backend.locks import file_lock, is_locked

LOCK = "lock"


@contextmanager
def scratch(folder: Path, project: int) -> Iterator[Path]:
    """A new folder below `folder` for a round of the project, gone at the block's end.

    Raises:
        StoreError: it cannot be made.
    """
    with written(f"A round of project {project}", folder):
        folder.mkdir(parents=True, exist_ok=True)
        # another worker that scores a shard of the round may write into it while it is removed: `remove_scratch` has the
        # rest
        made = tempfile.TemporaryDirectory(prefix=f"{int(project)}-", dir=folder, ignore_cleanup_errors=True)
    with made as name, file_lock(Path(name) / LOCK):
        yield Path(name)


def remove_scratch(folder: Path, project: int) -> None:
    """Remove what rounds of the project left. Only for the holder of its lock."""
    for left in folder.glob(f"{int(project)}-*"):
        shutil.rmtree(left, ignore_errors=True)


def left_scratch(folder: Path) -> list[str]:
    """Names of the folders that no process works in any more."""
    return sorted(path.name for path in folder.glob("*-*") if not is_locked(path / LOCK))
