"""torchrun as a round uses it: the network of one process, and nothing that stays behind, however it ends."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from test_trainer import POOL, Site
from test_trainer import site as site  # fixtures
from test_trainer import weights as weights
from torch import Tensor

from lplgrad_backend.errors import TrainingError
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.lplgrad.recipe import FROM_SCRATCH, HEAD, PAPER, Recipe
from lplgrad_backend.lplgrad.training import EpochRecord, fit, look_at
from lplgrad_backend.memory import is_out_of_memory
from lplgrad_backend.rounds import SCORES, Progress, RoundStopped, run_round
from lplgrad_backend.settings import read_settings
from lplgrad_backend.status import Phase
from lplgrad_backend.store import read_scores
from lplgrad_backend.together import fit_together, processes_for

CPU = torch.device("cpu")
COUNT = 21
TWO_STEPS = replace(FROM_SCRATCH, optimiser="sgd", rate=0.01, epochs=1, steps=0, batch=11, settling=2)


def network() -> Network:
    torch.manual_seed(0)
    return Network(Architecture("shufflenet_v2_x0_5", classes=2, multiple=False, side=16, small_stem=True))


def pictures() -> tuple[Tensor, Tensor]:
    classes, random = torch.arange(COUNT) % 2, torch.Generator().manual_seed(1)
    noise = torch.randint(0, 100, (COUNT, 3, 16, 16), generator=random)
    return (noise + 100 * classes.view(-1, 1, 1, 1)).to(torch.uint8), torch.eye(2)[classes]


def together(member: Network, recipe: Recipe, folder: Path) -> Iterator[EpochRecord]:
    return fit_together(
        member, *pictures(), recipe, seed=3, device=CPU, processes=2, threads=2, folder=folder
    )  # fmt: skip


def processes_of(folder: Path) -> list[str]:
    """Arguments of running processes that name the folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # gone meanwhile
            continue
        if str(folder) in arguments:
            found.append(arguments)
    return found


def listening(folder: Path) -> set[str]:
    """IPv4 addresses, or "::" for any of IPv6, at which processes that name the folder listen."""
    sockets = set[str]()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(folder).encode() in file.read_bytes():
                sockets |= {str(one.readlink()) for one in (file.parent / "fd").iterdir()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    ours = [row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
    return {socket.inet_ntoa(bytes.fromhex(one)[::-1]) if len(one) == 8 else "::" for one in ours}


def await_none(folder: Path) -> None:
    for _ in range(600):
        if not processes_of(folder):
            return
        threading.Event().wait(0.05)
    pytest.fail(f"still running: {processes_of(folder)}")


def test_two_processes_train_the_network_of_one(tmp_path: Path) -> None:
    """Within the stated tolerance, for a few steps; what test_team.py finds equal in float64 drifts apart in float32 as
    training goes on, as it does between one thread and two."""
    alone, shared = network(), network()
    [wanted] = fit(alone, *pictures(), TWO_STEPS, seed=3, device=CPU)
    [found] = together(shared, TWO_STEPS, tmp_path)
    for name, value in asdict(wanted).items():
        assert name == "seconds" or asdict(found)[name] == pytest.approx(value, rel=1e-4), name
    images, _ = pictures()
    torch.testing.assert_close(look_at(shared, images).logits, look_at(alone, images).logits, rtol=1e-3, atol=1e-3)
    assert not shared.training and processes_of(tmp_path) == []
    assert [one.requires_grad for one in shared.parameters()] == [one.requires_grad for one in alone.parameters()]


def test_what_one_of_them_cannot_go_on_with_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"The loss became \S+ at step \d+: use a lower learning rate"):
        list(together(network(), replace(TWO_STEPS, optimiser="sgd", rate=1e30, epochs=9), tmp_path))
    assert processes_of(tmp_path) == []


def test_one_of_them_is_killed(tmp_path: Path) -> None:
    records = together(network(), replace(TWO_STEPS, epochs=100_000), tmp_path)
    next(records)
    ranks = [one for one in Path("/proc").glob("[0-9]*/cmdline") if _is_rank(one, tmp_path)]
    assert len(ranks) == 2
    assert listening(tmp_path) == {"127.0.0.1"}, "to nobody on other machines"
    os.kill(int(ranks[0].parent.name), signal.SIGKILL)
    with pytest.raises(TrainingError, match="One of 2 training processes ended without a result"):
        list(records)
    assert processes_of(tmp_path) == []


def _is_rank(file: Path, folder: Path) -> bool:
    try:
        arguments = file.read_bytes().split(b"\0")
    except OSError:
        return False
    return (
        str(folder).encode() in arguments
        and b"lplgrad_backend.rank" in arguments
        and b"lplgrad_backend.launcher" not in arguments
    )


@pytest.mark.timeout(300)
def test_a_round_whose_trainer_is_killed_is_begun_once_more_by_several_and_leaves_no_process(
    site: Site, weights: dict[str, str], tmp_path: Path
) -> None:
    """What ends with it is told by the folder that all its processes name."""
    several = {"LPLGRAD_PROCESSES": "2", "LPLGRAD_THREADS": "2", "LPLGRAD_PRESET": "finetune"}
    settings = site.settings(tmp_path, **several, **weights)
    killed, heard, after = list[int](), list[Progress](), list[list[str]]()

    def hear(progress: Progress) -> None:
        heard.append(progress)
        if progress.phase is Phase.TRAINING and not killed:
            killed.extend(_trainers(tmp_path))
            os.kill(killed[0], signal.SIGKILL)
        elif progress.phase is Phase.SCORING and not after:
            after.append(processes_of(tmp_path))

    outcome = run_round(site.order(), tmp_path, settings, hear, threading.Event())
    assert killed and after == [[]]
    assert outcome.metrics["processes"] == 2 and outcome.recipe["trained"] == "stage"
    assert read_scores(tmp_path / SCORES).tasks.tolist() == list(range(102, 101 + POOL))
    epochs = [progress.done for progress in heard if progress.phase is Phase.TRAINING]
    assert epochs[-1] == outcome.metrics["epochs"] and max(epochs) == epochs[-1]
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("tmp")]) == 1, "of the one that was killed"
    await_none(tmp_path)


@pytest.mark.timeout(300)
def test_a_round_by_several_that_is_stopped_leaves_no_process(
    site: Site, weights: dict[str, str], tmp_path: Path
) -> None:
    several = {"LPLGRAD_PROCESSES": "2", "LPLGRAD_THREADS": "2", "LPLGRAD_PRESET": "finetune"}
    stop, running = threading.Event(), list[list[str]]()

    def hear(progress: Progress) -> None:
        if progress.phase is Phase.TRAINING:
            running.append(processes_of(tmp_path))
            stop.set()

    with pytest.raises(RoundStopped):
        run_round(site.order(), tmp_path, site.settings(tmp_path, **several, **weights), hear, stop)
    assert running[0]
    await_none(tmp_path)


def _trainers(folder: Path) -> list[int]:
    """Who has started torchrun for a folder below this one; of a trainer that was killed nobody's child any more."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = file.read_bytes().decode(errors="replace")
            status = (file.parent / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if "lplgrad_backend.launcher" in arguments and str(folder) in arguments:
            return [int(status[1])]
    return []


def test_one_of_them_runs_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins say so; it is an error after which the round is tried with smaller batches, as with one process."""
    stand_in = """
import sys
from lplgrad_backend.rounds import Failure
from lplgrad_backend.store import read_scores
from lplgrad_backend.together import say
print("chatter")
say(Failure(kind="out of memory", failure="no room for 8 bytes"))
sys.exit(1)
"""
    (tmp_path / "stand_in.py").write_text(stand_in)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)]))
    monkeypatch.setattr("lplgrad_backend.together.RANK", "stand_in")
    with pytest.raises(torch.OutOfMemoryError, match="no room for 8 bytes") as caught:
        list(together(network(), TWO_STEPS, tmp_path))
    assert is_out_of_memory(caught.value) and processes_of(tmp_path) == []


@pytest.mark.parametrize(
    ("environ", "recipe", "cards", "wanted"),
    [
        ({}, FROM_SCRATCH, 0, 1),
        ({"LPLGRAD_PROCESSES": "3"}, FROM_SCRATCH, 0, 3),
        ({"LPLGRAD_PROCESSES": "3"}, HEAD, 0, 1),
        ({"LPLGRAD_PROCESSES": "3"}, replace(PAPER, batch=4), 0, 2),
        ({"LPLGRAD_PROCESSES": "3"}, replace(PAPER, batch=1), 0, 1),
        ({}, FROM_SCRATCH, 4, 4),
        ({"LPLGRAD_PROCESSES": "1"}, FROM_SCRATCH, 4, 1),
        ({"LPLGRAD_PROCESSES": "9"}, FROM_SCRATCH, 4, 4),
        ({}, HEAD, 4, 1),
    ],
)
def test_how_many_train(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], recipe: Recipe, cards: int, wanted: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    device = torch.device("cuda") if cards else CPU
    assert processes_for(read_settings(environ, None), device, recipe) == wanted
    if cards:
        assert processes_for(read_settings(environ, None), torch.device("cuda", 1), recipe) == 1
