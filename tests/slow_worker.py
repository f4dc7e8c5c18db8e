"""A worker process whose rounds are a stand-in's: real but for the trainer, slow for as long as a test wants.

    python -c "from slow_worker import main; main()"    with SLOW_NAME in its environment

A round goes on when the file `<SLOW_NAME>.go` is in MODEL_DIR; SLOW_STUBBORN=1 makes it deaf to being stopped, as a machine
that was asleep. It says "begun" in `<SLOW_NAME>.begun` and its end in `<SLOW_NAME>.ended`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy
from versions import pool_scores

from lplgrad_backend.logs import start_logging
from lplgrad_backend.rounds import SCORES, WEIGHTS, Order, Outcome, Progress, RoundStopped, Stop
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.status import Phase
from lplgrad_backend.store import write_scores
from lplgrad_backend.worker import run_worker

FOREVER = threading.Event()


def heavy(order: Order, folder: Path, settings: Settings, report: Callable[[Progress], None], stop: Stop) -> Outcome:
    """Scores rise with the task's number."""
    name, stubborn = os.environ["SLOW_NAME"], os.environ.get("SLOW_STUBBORN") == "1"
    report(Progress(phase=Phase.TRAINING, done=1, total=2))
    with (settings.model_dir / f"{name}.begun").open("a") as file:
        file.write(f"{order.project}\n")
    while not (settings.model_dir / f"{name}.go").exists():
        if not stubborn and stop.is_set():
            raise RoundStopped
        FOREVER.wait(0.02)
    folder.mkdir(parents=True, exist_ok=True)  # who took over has tidied it away
    pool = sorted((entry.task, entry.uri) for entry in order.pool)
    write_scores(pool_scores(pool, [task / (task + 10) for task, _ in pool]), folder / SCORES)
    safetensors.numpy.save_file({"w": np.zeros(1, np.float32)}, folder / WEIGHTS)
    (settings.model_dir / f"{name}.ended").touch()
    return Outcome(metrics={"scale": 1.0})


def main() -> None:
    settings = read_settings(os.environ, None)
    start_logging(settings)
    run_worker(settings, sys.stdin.buffer, heavy)
