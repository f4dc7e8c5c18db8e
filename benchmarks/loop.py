"""What people wait for: webhooks and health while a round trains, the reordered queue, memory over many predictions.

    make benchmark, or: .venv/bin/python -m benchmarks.loop [--digits 1000] [--minutes 5]

Runs the demo's Label Studio and backend as processes, labels digits through the task stream until a round is due, and
asks the backend all the while. With --minutes rounds follow each other until webhooks have come for so long while one
trained or scored. Writes loop.md and loop.json beside itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import requests

from lplgrad_backend.demo.dataset import LABEL_CONFIG, Digits, write_digits
from lplgrad_backend.demo.run import SIDE, Stage, build_stage
from lplgrad_backend.settings import read_settings
from lplgrad_backend.status import Phase, StatusFolder

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".label-studio/venv/bin/python"
WEBHOOKS_PER_SECOND = 50
PREDICT_CALLS, TASKS_PER_CALL = 1000, 100


def milliseconds(call: Callable[[], requests.Response]) -> float:
    start = time.perf_counter()
    call().raise_for_status()
    return 1000 * (time.perf_counter() - start)


class Caller(threading.Thread):
    """Asks one endpoint at a steady rate while `wanted()` holds, and keeps how long each answer took."""

    def __init__(self, call: Callable[[], requests.Response], per_second: float, wanted: Callable[[], bool]) -> None:
        super().__init__()
        self.taken: list[float] = []
        self.failures = 0
        self._call, self._every, self._wanted = call, 1 / per_second, wanted
        self.ended = threading.Event()

    def run(self) -> None:
        due = time.monotonic()
        while not self.ended.wait(max(0.0, due - time.monotonic())):
            due = max(due + self._every, time.monotonic() - 1.0)  # catches up, but not with more than a second's calls
            if not self._wanted():
                continue
            try:
                self.taken.append(milliseconds(self._call))
            except requests.RequestException:
                self.failures += 1

    def summary(self) -> dict[str, float]:
        quantiles = dict(zip(("p50", "p99", "max"), np.quantile(self.taken, (0.5, 0.99, 1.0)).round(1), strict=True))
        return {
            **{name: float(value) for name, value in quantiles.items()},
            "calls": len(self.taken),
            "failed": self.failures,
        }


def label_until_reordered(stage: Stage) -> tuple[float, str]:
    """Seconds from the last due annotation until Label Studio serves by a new version, and that version."""
    before = stage.version()
    for _ in stage.annotator.label(stage.settings.updates_per_round):
        pass
    due = time.monotonic()
    while (version := stage.version()) in (before, None):
        time.sleep(0.1)
    return time.monotonic() - due, str(version)


def measure_loop(stage: Stage, rounds: int, minutes: float) -> dict[str, Any]:
    status = StatusFolder(stage.settings.model_dir)

    def training() -> bool:
        return status.read(stage.project_id).phase in (Phase.TRAINING, Phase.SCORING)

    webhooks, health = requests.Session(), requests.Session()
    event = {
        "action": "ANNOTATION_CREATED",
        "project": {"id": stage.project_id},
        "annotation": {"id": 1},
        "task": {"id": 1},
    }
    callers = [
        Caller(
            lambda: webhooks.post(f"{stage.backend.url}/webhook", json=event, timeout=10), WEBHOOKS_PER_SECOND, training
        ),
        Caller(lambda: health.get(f"{stage.backend.url}/health", timeout=10), 10, training),
    ]
    for caller in callers:
        caller.start()
    found: list[dict[str, Any]] = []
    while len(found) < rounds or len(callers[0].taken) < 60 * minutes * WEBHOOKS_PER_SECOND:
        seconds, version = label_until_reordered(stage)
        found.append({"version": version, "seconds": round(seconds, 1), "accuracy": round(stage.accuracy(), 3)})
    for caller in callers:
        caller.ended.set()
        caller.join()
    return {"rounds": found, "webhook_ms": callers[0].summary(), "health_ms": callers[1].summary()}


def web_process_megabytes(stage: Stage) -> float:
    """Resident memory of the process that answers: the one below gunicorn's with the most."""
    resident = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            status = (folder / "status").read_text()
        except OSError:
            continue
        if b"lplgrad" in command and b"worker" not in command and b"trainer" not in command:
            resident += [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")]
    return max(resident)


def measure_memory(stage: Stage) -> dict[str, Any]:
    """Megabytes of the web process after 100, 200, … /predict calls on images that no round scored."""
    session, series = requests.Session(), []
    for call in range(1, PREDICT_CALLS + 1):
        start = call * TASKS_PER_CALL % len(stage.held_out)
        tasks = (stage.held_out + stage.held_out)[start : start + TASKS_PER_CALL]
        if call % 10:  # nine of ten calls ask about tasks that the round scored, which costs no processor time
            tasks = stage_pool(stage)[:TASKS_PER_CALL]
        body = {"tasks": tasks, "project": f"{stage.project_id}.0", "label_config": LABEL_CONFIG, "params": {}}
        answer = session.post(f"{stage.backend.url}/predict", json=body, timeout=300)
        answer.raise_for_status()
        assert len(answer.json()["results"]) == len(tasks)
        if call % 100 == 0:
            series.append(round(web_process_megabytes(stage), 1))
    return {"calls": PREDICT_CALLS, "tasks_per_call": TASKS_PER_CALL, "megabytes": series}


def stage_pool(stage: Stage) -> list[dict[str, Any]]:
    listed = stage.person.call(
        "GET", f"/api/tasks?project={stage.project_id}&include=id,data&page_size={TASKS_PER_CALL}"
    )
    return [{"id": task["id"], "data": task["data"]} for task in listed["tasks"]]


def machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def as_markdown(results: dict[str, Any]) -> str:
    webhook, health, memory = results["webhook_ms"], results["health_ms"], results["memory"]
    machine, updates = results["machine"], results["updates_per_round"]
    rows = "\n".join(f"| {r['version']} | {r['seconds']} | {r['accuracy']:.1%} |" for r in results["rounds"])
    return f"""# The loop, measured

Made by `benchmarks/loop.py` on {machine["cores"]} cores ({machine["processor"]}), Label Studio, backend,
worker, trainer and the measuring program all on them. {results["digits"]} digit images, a round every {updates} labels.

| version | seconds from the last due label to the reordered queue | accuracy on held-out digits |
|---|---|---|
{rows}

While rounds trained and scored:

| endpoint | calls | p50 ms | p99 ms | largest ms | failed |
|---|---|---|---|---|---|
| `POST /webhook` at {WEBHOOKS_PER_SECOND}/s | {cells(webhook)} |
| `GET /health` at 10/s | {cells(health)} |

Memory of the web process after every 100 of {memory["calls"]} `/predict` calls of {memory["tasks_per_call"]} tasks, in MB:
{", ".join(map(str, memory["megabytes"]))}.
"""


def cells(milliseconds: dict[str, Any]) -> str:
    return " | ".join(str(milliseconds[column]) for column in ("calls", "p50", "p99", "max", "failed"))


def digits_in(folder: Path, pool: int) -> Digits:
    return write_digits(folder / "digits", pool=pool, side=SIDE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=0.0)
    options = parser.parse_args()
    settings = read_settings({"LPLGRAD_SWEEP_SECONDS": "600"}, None)
    with (
        tempfile.TemporaryDirectory() as folder,
        build_stage(settings, digits_in(Path(folder), options.digits), PYTHON, Path(folder), 0, 0) as stage,
    ):
        results = measure_loop(stage, options.rounds, options.minutes) | {"memory": measure_memory(stage)}
    results |= {"machine": machine(), "digits": options.digits, "updates_per_round": settings.updates_per_round}
    (HERE / "loop.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "loop.md").write_text(as_markdown(results))
    print(as_markdown(results))


if __name__ == "__main__":
    main()
