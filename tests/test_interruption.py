"""Ctrl-C and SIGTERM: every long command ends with a sentence, leaves no process and nothing half written."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from programs import Program
from rich.console import Console
from simulated import ARCHITECTURE, digit_folder
from small_versions import save_network, small_network

from lplgrad_backend.cli.interruption import INTERRUPTED, interruptible, stop_on_interrupt
from lplgrad_backend.demo.process import wait_for
from lplgrad_backend.store import Store

ROOT = Path(__file__).parent.parent
SAID = "Stopped. What was finished is kept; run the command again to go on."


def started(folder: Path, *arguments: str, **environ: str) -> Program:
    known = {"MODEL_DIR": str(folder / "models"), "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environ}
    return Program(["-u", "-m", "lplgrad_backend", *arguments], known, folder)


def interrupt(program: Program, number: int) -> str:
    """As a terminal sends Ctrl-C, to the whole group, or a supervisor SIGTERM, to the program alone; what it said."""
    (program.send_to_all if number == signal.SIGINT else program.send)(number)
    status = program.end()  # of it and of all that it started
    said = "\n".join(program.lines)
    assert status == INTERRUPTED, said
    assert "Traceback" not in said and said.count(SAID) == 1
    return said


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A Label Studio that takes a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(100)
        yield listener


@pytest.mark.parametrize(("command", "number"), [("connect", signal.SIGINT), ("doctor", signal.SIGTERM)])
def test_waiting_for_label_studio(tmp_path: Path, silent: socket.socket, command: str, number: int) -> None:
    environ = {"LABEL_STUDIO_URL": f"http://127.0.0.1:{silent.getsockname()[1]}", "LABEL_STUDIO_API_KEY": "f" * 40}
    command_line = (command, "--project", "1", "--url", "http://127.0.0.1:9")
    with started(tmp_path, *command_line, **environ) as program, silent.accept()[0]:
        interrupt(program, number)


def test_an_export_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    save_network(store, 1, "v1", small_network(), [])
    environ = {**os.environ, "MODEL_DIR": str(store.folder), "PYTHONPATH": str(ROOT)}
    command = ["-u", "-m", "lplgrad_backend", "export", "--project", "1", "--version", "v1", "--format", "onnx"]
    program = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ,
        cwd=tmp_path,
    )  # fmt: skip
    with program:
        assert program.stdout is not None
        assert program.stdout.readline().startswith("Writing v1 of project 1")
        program.send_signal(signal.SIGINT)
        said = program.stdout.read()
    assert program.returncode == INTERRUPTED, said
    assert SAID in said and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


@pytest.fixture
def simulation(tmp_path: Path) -> Iterator[Program]:
    """At work in `tmp_path`: of its many runs one has ended."""
    network = small_network(architecture=ARCHITECTURE)
    torch.save(network.backbone.state_dict(), tmp_path / "weights.pth")
    digits = digit_folder(tmp_path / "data")
    with started(
        tmp_path, "simulate", str(digits), "--strategies", "margin", "--seeds", "99", "--budget", "6:6:18",
        "--processes", "1", LPLGRAD_BACKBONE="mobilenet_v2", LPLGRAD_BACKBONE_OPTIONS='{"width_mult": 0.25}',
        LPLGRAD_WEIGHTS=str(tmp_path / "weights.pth"), LPLGRAD_IMAGE_SIZE="32",
    ) as program:  # fmt: skip
        wait_for(lambda: list(tmp_path.glob("simulation/runs-*/*.json")), "a first run", seconds=200)
        yield program


def test_a_simulation_keeps_its_finished_runs(simulation: Program, tmp_path: Path) -> None:
    interrupt(simulation, signal.SIGTERM)
    assert 1 <= len(list(tmp_path.glob("simulation/runs-*/*.json"))) < 198
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_processes_of_a_simulation_end_with_one_that_is_killed(simulation: Program) -> None:
    assert len(simulation.children()) >= 2  # the one that runs, and multiprocessing's own
    simulation.send(signal.SIGKILL)
    assert simulation.end() == -signal.SIGKILL  # read to the end of the pipe, which they hold too


def test_a_demo_takes_its_label_studio_with_it(tmp_path: Path) -> None:
    """An interpreter that never becomes a Label Studio stands for one that is slow to start."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    python.chmod(0o755)
    with started(tmp_path, "demo", "--python", str(python), "--folder", str(tmp_path / "demo")) as program:
        pid = int(wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "it", seconds=100))
        program.send_to_all(signal.SIGINT)
        assert program.end() == 0
        assert "Traceback" not in "\n".join(program.lines)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_sets_the_event_and_the_second_raises(number: int) -> None:
    before = signal.getsignal(number)
    with stop_on_interrupt(Console(file=StringIO())) as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    found: list[object] = []
    command: Callable[[], None] = interruptible(lambda: found.append(signal.getsignal(signal.SIGTERM)))  # type: ignore[arg-type,return-value]
    thread = threading.Thread(target=command)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]
