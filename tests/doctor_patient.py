"""A connected project with one published version in a fake Label Studio, for the doctor to look at and tests to break."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

from learner_stage import Stage
from PIL import Image

from lplgrad_backend.connection import connect
from lplgrad_backend.doctor import Finding, Outcome, examine
from lplgrad_backend.status import Mark


class _Listening(BaseHTTPRequestHandler):
    """A backend that answers every webhook with `server.status`, after `server.seconds`."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        threading.Event().wait(self.server.seconds)  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class Patient:
    """A connected project with one published version, and all that may break."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _Listening)
        self.server.status, self.server.seconds = 201, 0.0  # type: ignore[attr-defined]
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        known = {"LABEL_STUDIO_URL": "http://127.0.0.1:8080", "LABEL_STUDIO_API_KEY": "f" * 40}
        self.stage = Stage(folder, tasks=0, **{**known, **environ})
        self.fake, self.project = self.stage.fake, self.stage.project
        self.reachable, self.fake.call = True, self.called
        for number in range(30):
            path = f"/data/upload/{self.project}/{number}.png"
            self.fake.uploads[path] = picture(number)
            self.stage.tasks += self.fake.import_tasks(self.project, [{"data": {"image": path}}])
        self.stage.label(10)
        self.stage.look()
        connect(
            self.stage.client,
            self.project,
            self.url,
            basic_auth=self.stage.settings.basic_auth,
            current_version="v1",
        )

    def called(self, method: str, url: str, body: object, headers: Mapping[str, str]) -> tuple[int, object]:
        """What Label Studio gets to hear from this backend, whose web server notes a webhook."""
        if url.endswith("/webhook"):
            if not self.reachable:
                raise ConnectionError(url)
            self.stage.statuses.hear(self.project)
        return 200, {"model_version": "untrained"}

    def findings(self, **options: str) -> dict[str, Finding]:
        found = examine(self.stage.settings, self.project, options.get("url"), client=self.stage.client)
        return {finding.hop: finding for finding in found}

    def failures(self, **options: str) -> dict[str, str]:
        return {hop: one.says for hop, one in self.findings(**options).items() if one.outcome is Outcome.FAILED}

    def add(self, address: str) -> list[int]:
        return self.fake.import_tasks(self.project, [{"data": {"image": address}}])

    def score_new_tasks(self) -> None:
        self.stage.statuses.set_mark(self.project, Mark.TASKS)
        self.stage.look()

    @property
    def webhook(self) -> dict[str, object]:
        return next(iter(self.fake.webhooks.values()))

    @property
    def backend(self) -> dict[str, object]:
        return next(iter(self.fake.backends.values()))

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def picture(shade: int) -> bytes:
    content = BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(content, "PNG")
    return content.getvalue()
