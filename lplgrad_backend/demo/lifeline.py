"""Runs a module as a program that ends when whoever started it does.

    python -P lifeline.py MODULE [ARGUMENT ...]

Standard input is the lifeline: its other end closes when the parent ends, however it ends, and then the whole process
group is asked to stop and, after a while, made to. Standard library only: this also runs inside Label Studio's own
virtual environment.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time

GRACE = 20.0  # seconds between being asked and being made to stop


def stop_when_alone() -> None:
    """Blocks until standard input closes, then ends the process group, of which this process is the leader."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=stop_when_alone, daemon=True).start()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
