"""The worker beside a web process: always one, restarted when it dies, gone when the web process is."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import Program

WEB = """
import os, sys, threading
from lplgrad_backend.embedded import EmbeddedWorker
from lplgrad_backend.logs import start_logging
from lplgrad_backend.settings import read_settings
settings = read_settings(os.environ, None)
start_logging(settings)
worker = EmbeddedWorker(settings)
requests = [threading.Thread(target=worker.ensure) for _ in range(20)]
for request in requests: request.start()
for request in requests: request.join()
"""
UNTIL_LET_GO = "sys.stdin.read()\n"


def web(folder: Path, program: str = WEB + UNTIL_LET_GO) -> Program:
    known = {"MODEL_DIR": str(folder), "LABEL_STUDIO_URL": "", "LABEL_STUDIO_API_KEY": "", "LOG_LEVEL": "INFO"}
    return Program(("-c", program), known)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Program]:
    with web(tmp_path) as program:
        program.wait_for("worker ready")
        yield program


def test_many_requests_at_once_start_one_worker(running: Program) -> None:
    assert len(running.children()) == 1


def test_it_ends_with_a_web_process_that_ends(running: Program) -> None:
    running.let_go()
    assert running.end() == 0
    assert "worker ends" in running.lines[-1]


def test_it_ends_with_a_web_process_that_is_killed(running: Program) -> None:
    running.send(signal.SIGKILL)
    assert running.end() == -signal.SIGKILL
    assert "worker ends" in running.lines[-1]


def test_it_is_started_again_when_it_dies(running: Program) -> None:
    first = running.children()
    os.kill(first[0], signal.SIGKILL)
    running.wait_for("the worker ended with status -9; starting another")
    running.wait_for("worker ready")
    assert len(running.children()) == 1 and running.children() != first
    running.let_go()
    assert running.end() == 0


def test_ctrl_c_reaches_the_web_process_which_ends_the_worker_in_order(running: Program) -> None:
    os.killpg(running.pid, signal.SIGINT)
    assert running.end() != 0
    assert any("worker ends" in line for line in running.lines)
    assert not any("starting another" in line for line in running.lines)


def test_a_server_that_forks_gets_one_that_works_and_one_that_waits(tmp_path: Path) -> None:
    forks = """
sys.stderr.flush()
if os.fork() == 0:
    worker.ensure()
    sys.stdin.read()
    sys.exit()
sys.stdin.read()
os.wait()
"""
    with web(tmp_path, WEB + forks) as program:
        program.wait_for("another worker is at")
        if not any("worker ready" in line for line in program.lines):  # it has the lock and is about to say so
            program.wait_for("worker ready")
        assert sum("worker ready" in line for line in program.lines) == 1
        program.let_go()
        assert program.end() == 0


def test_a_fork_waits_for_a_spawn_to_end(tmp_path: Path) -> None:
    """Else the forked process holds the spawn's pipes, and the worker that is being started never hears its settings."""
    slow = """
import sys, threading, time
begun = threading.Event()
def spawn_slowly(event, arguments):
    if event == "subprocess.Popen":
        begun.set()
        time.sleep(0.5)  # the slowness itself: the fork has to come in the middle of it
        print("spawned", file=sys.stderr, flush=True)
sys.addaudithook(spawn_slowly)
"""
    forks = """
begun.wait()
if os.fork() == 0:
    print("forked", file=sys.stderr, flush=True)
    os._exit(0)
sys.stdin.read()
os.wait()
"""
    with web(tmp_path, slow + WEB + forks) as program:
        program.wait_for("forked")
        assert "spawned" in program.lines
        program.wait_for("worker ready")
        program.let_go()
        assert program.end() == 0
