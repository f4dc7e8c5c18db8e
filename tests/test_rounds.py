"""How a round's parent and child speak: the order, progress, the last sentence, and how each takes the other's end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from versions import LABELING

from lplgrad_backend.errors import LPLGradError, NotLearnable, TrainingError
from lplgrad_backend.labeling import Example
from lplgrad_backend.rounds import (
    Order,
    Outcome,
    PoolTask,
    Progress,
    RoundStopped,
    end_process,
    kernel_kills,
    leave_with_parent,
    run_round,
)
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.status import Phase

ORDER = Order(
    project=3,
    labeling=LABELING,
    examples=[Example(1, "/a.png", (1.0, 0.0)), Example(2, "/ü \udc80.png", (0.25, 0.75))],
    pool=[PoolTask(task=4, uri="/d.png")],
)
SECRET = "0123456789abcdef"
READS = """
import json, os, signal, sys, threading
from lplgrad_backend.rounds import OUTCOME, Outcome, receive
order, folder, settings = receive(sys.stdin.buffer)
def leave(status=0):
    sys.stdout.flush()
    os._exit(status)
"""
FOREVER = "threading.Event().wait()"
DONE = "(folder / OUTCOME).write_text(Outcome(metrics={'scale': 2.0}).model_dump_json()); leave()"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return read_settings({"MODEL_DIR": str(tmp_path), "LABEL_STUDIO_API_KEY": SECRET, "LPLGRAD_SEED": "7"}, None)


class Parent:
    """Runs stand-ins for the trainer, given as programs that begin with `READS`, and keeps what they report."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.stop, self.heard = threading.Event(), list[Progress]()
        self.at_progress: Callable[[], None] = lambda: None

    def hear(self, progress: Progress) -> None:
        self.heard.append(progress)
        self.at_progress()

    def run(self, program: str, order: Order = ORDER, reads: str = READS) -> Outcome:
        command = [sys.executable, "-c", reads + program]
        return run_round(order, self.folder, self.settings, self.hear, self.stop, command)


@pytest.fixture
def parent(tmp_path: Path, settings: Settings) -> Parent:
    return Parent(tmp_path, settings)


def test_the_child_gets_order_and_settings_and_answers_with_an_outcome(parent: Parent) -> None:
    program = """
said = [json.dumps(order.model_dump(mode='json')), settings.label_studio_api_key.get_secret_value(), str(settings.seed)]
(folder / OUTCOME).write_text(Outcome(warnings=said, unreadable={5: "why"}).model_dump_json())
leave()"""
    outcome = parent.run(program)
    assert json.loads(outcome.warnings[0]) == ORDER.model_dump(mode="json")
    assert outcome.warnings[1:] == [SECRET, "7"]
    assert outcome.unreadable == {5: "why"}


def test_no_secret_stands_in_the_childs_arguments_or_environment(parent: Parent) -> None:
    program = f"""
shown = " ".join([*sys.orig_argv[:-1], *os.environ.values()])
(folder / OUTCOME).write_text(Outcome(metrics={{"shown": {SECRET!r} in shown}}).model_dump_json())
leave()"""
    assert parent.run(program).metrics == {"shown": 0.0}


@pytest.mark.parametrize(
    ("name", "ours", "said"),
    [
        ("OMP_WAIT_POLICY", "PASSIVE", "ACTIVE"), ("MALLOC_MMAP_THRESHOLD_", "33554432", "65536"),
        ("MALLOC_TRIM_THRESHOLD_", "1073741824", "131072"),
    ],
)  # fmt: skip
def test_threads_sleep_and_memory_is_kept_unless_the_operator_wants_it_otherwise(
    parent: Parent, monkeypatch: pytest.MonkeyPatch, name: str, ours: str, said: str
) -> None:
    program = f"""
(folder / OUTCOME).write_text(Outcome(warnings=[os.environ[{name!r}]]).model_dump_json())
leave()"""
    monkeypatch.delenv(name, raising=False)
    assert parent.run(program).warnings == [ours]
    monkeypatch.setenv(name, said)
    assert parent.run(program).warnings == [said]


def test_progress_is_reported_in_order_and_chatter_passed_over(parent: Parent) -> None:
    program = """
for done in (1, 2):
    print(json.dumps({"phase": "training", "done": done, "total": 2}))
    for chatter in ("hello", "42", "null", '"failure"', "[1]", "{}", '{"phase": "cooking", "done": 1, "total": 2}'):
        print(chatter)
    sys.stdout.flush()
    sys.stdout.buffer.write(bytes([0xFF, 0xFE, 10]))
"""
    assert parent.run(program + DONE).metrics == {"scale": 2.0}
    assert parent.heard == [Progress(phase=Phase.TRAINING, done=done, total=2) for done in (1, 2)]


def test_others_are_invited_to_the_shards_that_the_child_names(tmp_path: Path, settings: Settings) -> None:
    invited: list[tuple[str, int]] = []
    program = READS + "print(json.dumps({'shards': 4}))\n" + DONE
    run_round(
        ORDER, tmp_path, settings, lambda said: None, threading.Event(), [sys.executable, "-c", program],
        lambda name, count: invited.append((name, count)),
    )  # fmt: skip
    assert invited == [(tmp_path.name, 4)]


@pytest.mark.parametrize(("kind", "error"), [("not learnable", NotLearnable), ("failed", TrainingError)])
def test_a_child_that_gives_up_says_why(parent: Parent, kind: str, error: type[LPLGradError]) -> None:
    program = f"print(json.dumps({{'kind': {kind!r}, 'failure': 'The cat ate it.'}})); leave()"
    with pytest.raises(error, match=r"^The cat ate it\.$"):
        parent.run(program)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("leave(3)", "status 3"),
        ("leave(0)", "status 0 and no result; see the log"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed twice, most likely for memory"),
        ("(folder / OUTCOME).write_text('{}'); leave(1)", "status 1"),
    ],
)
def test_a_child_that_ends_without_a_result_is_an_error(parent: Parent, program: str, said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        parent.run(program)


def test_a_child_that_is_killed_is_started_once_more(parent: Parent) -> None:
    once = "if not (folder / 'begun').exists(): (folder / 'begun').touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
    assert parent.run(once + DONE).metrics == {"scale": 2.0}


class TestOutOfMemory:
    SAYS = "print(json.dumps({'kind': 'out of memory', 'failure': ' (no room for 8 bytes)'})); leave()\n"

    def test_the_batches_are_halved_until_they_fit(self, parent: Parent) -> None:
        program = f"if order.share < 4:\n    {self.SAYS}"
        done = "(folder / OUTCOME).write_text(Outcome(metrics={'share': order.share}).model_dump_json()); leave()"
        assert parent.run(program + done).metrics == {"share": 4.0}

    def test_of_the_smallest_it_is_an_error_that_says_what_to_do(self, parent: Parent) -> None:
        with pytest.raises(TrainingError, match=r"8 times smaller.*no room for 8 bytes.*LPLGRAD_IMAGE_SIZE"):
            parent.run(self.SAYS)

    def test_the_kernel_says_whom_it_killed(self, tmp_path: Path) -> None:
        counts = tmp_path / "memory.events"
        counts.write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
        assert kernel_kills([counts, tmp_path / "missing"]) == 2


def test_a_child_that_is_gone_before_it_has_read_its_order(parent: Parent) -> None:
    many = ORDER.model_copy(update={"pool": [PoolTask(task=task, uri="/" + "x" * 200) for task in range(2000)]})
    with pytest.raises(TrainingError, match="status 4"):
        parent.run("import os; os._exit(4)", many, reads="")


def test_a_round_ends_when_asked_to_stop(parent: Parent) -> None:
    parent.at_progress = parent.stop.set
    with pytest.raises(RoundStopped):
        parent.run("print(json.dumps({'phase': 'training', 'done': 1, 'total': 9}), flush=True)\n" + FOREVER)
    assert len(parent.heard) == 1


def test_a_round_that_was_stopped_before_it_began(parent: Parent) -> None:
    parent.stop.set()
    with pytest.raises(RoundStopped):
        parent.run(FOREVER)


def test_an_error_of_the_listener_ends_the_child(parent: Parent) -> None:
    def refuse() -> None:
        raise OSError("the disk is full")

    parent.at_progress = refuse
    with pytest.raises(OSError, match="the disk is full"):
        parent.run("print(json.dumps({'phase': 'training', 'done': 1, 'total': 9}), flush=True)\n" + FOREVER)


def test_a_process_that_will_not_end_is_made_to() -> None:
    program = "import signal, threading; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); "
    command = [sys.executable, "-c", program + FOREVER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == b"deaf\n"
    end_process(process, grace_seconds=0.1)
    assert process.returncode == -9
    assert process.stdin.closed and process.stdout.closed
    end_process(process)  # of one that is gone already: nothing


def test_the_child_ends_with_its_parent(tmp_path: Path, settings: Settings) -> None:
    """The parent is killed, so that it can do nothing. Both hold the pipe that is read here, until they end."""
    child = READS + "print(json.dumps({'phase': 'training', 'done': 1, 'total': 9}), flush=True)\n" + FOREVER
    program = f"""
import sys, threading
from pathlib import Path
from lplgrad_backend.rounds import Order, run_round
from lplgrad_backend.settings import read_settings
order = Order.model_validate({ORDER.model_dump(mode="json")!r})
run_round(order, Path({str(tmp_path)!r}), read_settings({settings.environ()!r}, None),
          lambda progress: print("heard", flush=True), threading.Event(), [sys.executable, "-c", {child!r}])
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        assert process.stdout.readline() == b"heard\n"
        process.kill()
        process.stderr.read()  # ends when the child has ended, too
    process.wait()


def test_the_end_of_a_pipe_is_told_once_whatever_was_written() -> None:
    reading, writing = os.pipe()
    told = threading.Event()
    with os.fdopen(reading, "rb") as pipe:
        leave_with_parent(pipe, told.set)
        os.write(writing, b"noise")
        assert not told.is_set()
        os.close(writing)
        assert told.wait(30)
