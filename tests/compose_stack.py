"""The compose files of docker/, brought up under a name of their own and taken down whatever happens."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import requests

from lplgrad_backend.demo.process import DemoError, Found, free_port, wait_for

ROOT = Path(__file__).parent.parent
INHERITED = ("PATH", "HOME", "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY")
KILLED = 137  # what a container's status is that did not end within its grace period
SECONDS_TO_START, SECONDS_PER_ROUND = 1800.0, 1200.0
LAST_LINES = 40


class StackError(Exception):
    """Something is not as it must be, with what the containers said last."""


def copy_sources(folder: Path) -> None:
    """What a build sees and the compose files, so that nobody's docker/.env and weights are touched."""
    for name in (".dockerignore", "_wsgi.py", "gunicorn.conf.py", "requirements.txt"):
        shutil.copy2(ROOT / name, folder / name)
    for name in ("docker", "lplgrad_backend"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".env"))


def docker(*arguments: str | Path) -> str:
    """What `docker` with these arguments writes.

    Raises:
        StackError: it fails; with its words.
    """
    return _output(["docker", *map(str, arguments)])


def compose_command() -> list[str]:
    """Docker's Compose plugin, or the program that there was before it."""
    try:
        docker("compose", "version")
    except StackError:
        return ["docker-compose"]
    return ["docker", "compose"]


def _output(command: Sequence[str], environ: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        words = "\n".join((done.stdout + done.stderr).splitlines()[-LAST_LINES:])
        raise StackError(f"`{' '.join(command)}` ended with status {done.returncode}:\n{words}")
    return done.stdout


class Stack:
    """Label Studio, web, worker and the demo's project from a copy of the sources, with ports and an account of their own.

    Args:
        folder: empty; gets the copy.
        files: of docker/, each over those before it.
        more: lines of docker/.env beside the three of docker/example.env.

    Attributes:
        url, page: addresses of Label Studio and of the status page.
        email, password: of the first person in Label Studio.
    """

    def __init__(self, folder: Path, files: Sequence[str], more: Mapping[str, str]) -> None:
        copy_sources(folder)
        self.folder = folder
        self.email, self.password = "me@example.com", secrets.token_urlsafe(12)
        label_studio, page = free_port(), free_port()
        self.url, self.page = f"http://127.0.0.1:{label_studio}", f"http://127.0.0.1:{page}"
        lines = {
            "LABEL_STUDIO_USERNAME": self.email,
            "LABEL_STUDIO_PASSWORD": self.password,
            "LABEL_STUDIO_API_KEY": secrets.token_hex(20),
            "LABEL_STUDIO_PORT": str(label_studio),
            "LPLGRAD_PORT": str(page),
            **more,
        }
        (folder / "docker" / ".env").write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        self.name = f"lplgrad-test-{secrets.token_hex(4)}"
        named = [word for file in files for word in ("-f", str(folder / "docker" / file))]
        self._compose = [*compose_command(), "-p", self.name, *named]
        # what is set in this shell must not win over docker/.env
        self._environ = {name: os.environ[name] for name in INHERITED if name in os.environ}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.compose("down", "--volumes", "--remove-orphans")

    def compose(self, *arguments: str) -> str:
        """What Compose with these arguments writes."""
        return _output([*self._compose, *arguments], self._environ)

    def up(self, *arguments: str) -> float:
        """Bring everything up; seconds until Compose says it is."""
        started = time.monotonic()
        self.compose("up", "-d", *arguments)
        return time.monotonic() - started

    def stop(self) -> float:
        """Ask everything to end; seconds until it has."""
        started = time.monotonic()
        self.compose("stop")
        return time.monotonic() - started

    def containers(self, service: str) -> list[str]:
        """Of a service, those that ended too."""
        return self.compose("ps", "-a", "-q", service).split()

    def states(self, service: str) -> list[dict[str, Any]]:
        """What Docker knows of each container of a service: Running, ExitCode, Health, …"""
        return [json.loads(docker("inspect", one))[0]["State"] for one in self.containers(service)]

    def call(self, service: str, *command: str) -> str:
        """What a command writes that is run in a service's container.

        Raises:
            StackError: it fails.
        """
        return self.compose("exec", "-T", service, *command)

    def with_program(self, service: str, program: str) -> list[str]:
        """The running containers of a service in which this program runs."""
        found = []
        for one in self.containers(service):
            try:
                listed = docker("top", one)
            except StackError:  # it does not run
                continue
            found += [one] if program in listed else []
        return found

    def fetch(self, project: int, models: Path) -> None:
        """Copy what is kept of a project, as it is at this moment; also when nothing runs."""
        shutil.rmtree(models / str(project), ignore_errors=True)
        models.mkdir(exist_ok=True)
        docker("cp", f"{self.containers('web')[0]}:/data/{project}", models)

    def progress(self, project: int) -> dict[str, Any] | None:
        """The running round as the status page knows it: phase, done, total; None when there is none."""
        try:
            facts = requests.get(f"{self.page}/api/projects/{project}", timeout=30).json()
        except requests.RequestException:  # a busy machine
            return None
        return dict(facts["round"]) if facts.get("round") else None

    def wait(self, condition: Callable[[], Found | None], what: str, *, seconds: float = SECONDS_PER_ROUND) -> Found:
        """What the condition gives once it gives something true. It may fail while things start.

        Raises:
            StackError: it took too long.
        """
        try:
            return wait_for(condition, what, seconds=seconds, every=0.5)
        except DemoError as error:
            raise StackError(str(error)) from error

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Whatever goes wrong in the block is told with the containers' states and last words, before they go."""
        try:
            yield
        except Exception as error:
            raise StackError(f"{error}\n\n{self.last_words()}") from error

    def last_words(self) -> str:
        """The containers and the end of what each said."""
        said = []
        for command in (("ps",), ("logs", "--no-color", f"--tail={LAST_LINES}")):
            try:
                said.append(self.compose(*command))
            except StackError as error:
                said.append(str(error))
        return "\n".join(said)
