"""A real redis-server of a test's own, which keeps nothing on disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

READY = "eady to accept connections"


@contextmanager
def redis_server(arguments: Sequence[str], folder: Path, prefix: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """One that is ready, until the block ends. `prefix`: a command that starts commands, such as `ip netns exec NAME`."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("redis-server is not installed here: apt install redis-server, as .ci/run does.")
    command = [*prefix, program, "--save", "", "--appendonly", "no", "--dir", str(folder), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if READY in line:
                break
        else:
            pytest.fail("redis-server did not start:\n" + "".join(lines))
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def local_redis(folder: Path) -> Iterator[str]:
    """The address of one that listens on a socket in `folder`, which no other test can meet."""
    with redis_server(["--port", "0", "--unixsocket", str(folder / "redis.sock")], folder):
        yield f"unix://{folder}/redis.sock"
