"""Large pools: seconds per phase and peak memory of a round over 1k to 1M tasks.

    make benchmark, or: .venv/bin/python -m benchmarks.scale [--tasks 1000 10000]

A simulated Label Studio in a process of its own makes each task and image from its number when it is asked for; the backend
runs one real round and one sweep in another process. Writes scale.md and scale.json beside itself.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

from lplgrad_backend.learner import Learner
from lplgrad_backend.rounds import Order, Outcome, Progress, Stop, run_round
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.sources import open_label_studio
from lplgrad_backend.status import Mark, ProjectStatus, StatusFolder
from lplgrad_backend.store import Store

HERE = Path(__file__).parent
SIZES = (1_000, 10_000, 100_000, 1_000_000)
LABELLED, PROJECT, SIDE = 20, 1, 16
LIMITS = {"LPLGRAD_POOL_LIMIT": "500", "LPLGRAD_PUBLISH_LIMIT": "200"}
CONFIG = """<View><Image name="image" value="$image"/><Choices name="kind" toName="image">
<Choice value="dark"/><Choice value="bright"/></Choices></View>"""
PHASES = ("listing", "loading images", "training", "scoring", "publishing", "all", "sweep")


# The simulated Label Studio


def image(number: int) -> bytes:
    """Noise, dark for even numbers and bright for odd ones."""
    pixels = np.random.default_rng(number).integers(0, 120, (SIDE, SIDE, 3), np.uint8) + 110 * (number % 2)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


class Simulated:
    """Tasks 1 to `size`, of which the first `LABELLED` have a label. Stores predictions' numbers and nothing else."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.predictions: dict[str, set[int]] = {}
        self.row: dict[str, Any] = {
            "id": PROJECT, "title": "Many", "label_config": CONFIG, "sampling": "Sequential sampling", "model_version": "",
            "total_annotations_number": LABELLED, "task_number": size,
        }  # fmt: skip

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        if path.startswith("/data/"):
            return image(int(re.findall(r"(\d+)\.png", path)[0]))
        if path == "/api/tasks":
            return {"total": self.size, "tasks": self._page(query)}
        if path.endswith("/export"):
            return [self._annotated(number) for number in range(1, LABELLED + 1)]
        if path.endswith("/import/predictions"):
            for one in body:
                self.predictions.setdefault(one["model_version"], set()).add(one["task"])
            return {"created": len(body)}
        if path.endswith("/model-versions"):
            if method == "DELETE":
                self.predictions.pop(body["model_version"], None)
            return {version: len(tasks) for version, tasks in self.predictions.items()}
        if path == f"/api/projects/{PROJECT}":
            self.row |= body or {}
            return self.row
        return [] if method == "GET" else {}

    def _page(self, query: dict[str, str]) -> list[dict[str, Any]]:
        after, among, lacking = LABELLED, None, set[int]()
        for item in json.loads(query["query"])["filters"]["items"]:
            if item["operator"] == "greater":
                after = max(after, item["value"])
            elif item["operator"] == "in_list":
                among = sorted(item["value"])
            elif item["operator"] == "not_contains":
                lacking = self.predictions.get(item["value"][0], set())
        numbers = range(after + 1, self.size + 1) if among is None else [n for n in among if n > after]
        page: list[dict[str, Any]] = []
        for number in numbers:
            if number not in lacking:
                page.append({"id": number, "data": {"image": f"/data/upload/{PROJECT}/{number}.png"}})
            if len(page) == int(query["page_size"]):
                break
        return page

    def _annotated(self, number: int) -> dict[str, Any]:
        value = {"choices": ["bright" if number % 2 else "dark"]}
        result = [{"from_name": "kind", "to_name": "image", "type": "choices", "value": value}]
        annotation = {"id": number, "task": number, "was_cancelled": False, "result": result}
        data = {"image": f"/data/upload/{PROJECT}/{number}.png"}
        return {"id": number, "data": data, "annotations": [annotation], "total_annotations": 1}


def serve(size: int) -> None:
    """Until standard input closes; says its address first."""
    simulated, one_at_a_time = Simulated(size), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _any(self) -> None:
            url, length = urlsplit(self.path), int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
            with one_at_a_time:
                found = simulated.answer(self.command, url.path.rstrip("/"), query, body)
            content = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Type", "image/png" if isinstance(found, bytes) else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = _any  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        sys.stdin.read()
        server.shutdown()


# The backend that is measured


class Watched(StatusFolder):
    """Keeps when each phase began."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.began: list[tuple[str, float]] = []

    def write(self, status: ProjectStatus) -> None:
        super().write(status)
        self.mark(status.phase.value)

    def mark(self, phase: str) -> None:
        if not self.began or self.began[-1][0] != phase:
            self.began.append((phase, time.monotonic()))

    def seconds(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for (phase, start), (_, end) in zip(self.began, self.began[1:], strict=False):
            found[phase] = found.get(phase, 0.0) + end - start
        return found


def measure(url: str, folder: Path) -> dict[str, Any]:
    """One round and one sweep in this process, its trainer in another as ever."""
    environ = {
        "LABEL_STUDIO_URL": url,
        "LABEL_STUDIO_API_KEY": "0" * 40,
        "MODEL_DIR": str(folder),
        "LPLGRAD_THREADS": "1",
    }
    settings = read_settings({**environ, **LIMITS, "LPLGRAD_WEIGHTS": "none"}, None)
    store, statuses = Store(folder), Watched(folder)
    scored = []

    def heavy(order: Order, scratch: Path, known: Settings, report: Callable[[Progress], None], stop: Stop) -> Outcome:
        scored.append(len(order.pool))
        statuses.began[-1] = ("listing", statuses.began[-1][1])
        statuses.mark("loading images")
        return run_round(order, scratch, known, report, stop)

    learner = Learner(settings, store, statuses, open_label_studio(settings), heavy=heavy)
    before, start = peak(resource.RUSAGE_SELF), time.monotonic()
    learner.reconcile(PROJECT)
    end = time.monotonic()
    status = statuses.read(PROJECT)
    if status.published != "v1":
        raise SystemExit(f"no version was published: {status.last_error}")
    seconds = statuses.seconds() | {"all": end - start}
    statuses.set_mark(PROJECT, Mark.TASKS)
    learner.reconcile(PROJECT)
    seconds["sweep"] = time.monotonic() - end
    return {
        "seconds": {name: round(seconds.get(name, 0.0), 2) for name in PHASES},
        "scored": scored[0],
        "memory": {"before": before, "worker": peak(resource.RUSAGE_SELF), "trainer": peak(resource.RUSAGE_CHILDREN)},
    }


def peak(who: int) -> float:
    """Highest resident memory so far, in MB."""
    return round(resource.getrusage(who).ru_maxrss / 1024, 1)


def run(size: int) -> dict[str, Any]:
    """One size, in processes of its own."""
    module = [sys.executable, "-m", "benchmarks.scale"]
    with subprocess.Popen([*module, "--serve", str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:  # fmt: skip  # noqa: E501
        assert server.stdout is not None and server.stdin is not None
        url = server.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([*module, "--measure", url, folder], capture_output=True, text=True, check=False)
        server.stdin.close()
    if done.returncode:
        raise SystemExit(done.stderr)
    return {"tasks": size, **json.loads(done.stdout.splitlines()[-1])}


def table(results: list[dict[str, Any]]) -> str:
    head = f"| tasks | scored | {' | '.join(PHASES)} | worker, MB | trainer, MB |"
    rows = [head, "|" + "---|" * (len(PHASES) + 4)]
    for one in results:
        seconds = " | ".join(f"{one['seconds'][name]:.1f}" for name in PHASES)
        memory = f"{one['memory']['worker']:.0f} | {one['memory']['trainer']:.0f}"
        rows.append(f"| {one['tasks']:,} | {one['scored']:,} | {seconds} | {memory} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="*", default=SIZES)
    parser.add_argument("--serve", type=int)
    parser.add_argument("--measure", nargs=2)
    asked = parser.parse_args()
    if asked.serve is not None:
        serve(asked.serve)
    elif asked.measure is not None:
        print(json.dumps(measure(asked.measure[0], Path(asked.measure[1]))))
    else:
        results = []
        for size in asked.tasks:
            results.append(run(size))
            print(table(results), flush=True)
        facts = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version(), **LIMITS}
        (HERE / "scale.json").write_text(json.dumps({"facts": facts, "results": results}, indent=1) + "\n")
        document = HERE / "scale.md"
        marker = r"(<!-- measured -->\n)(?:.*\n)?(<!-- /measured -->)"
        text = re.sub(
            marker,
            lambda found: found[1] + "\n" + table(results) + "\n\n" + found[2],
            document.read_text(),
            flags=re.DOTALL,
        )
        document.write_text(text)


if __name__ == "__main__":
    main()
