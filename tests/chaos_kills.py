"""A series of kills at random moments, repeated by its seed as far as processes can be."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from chaos_stage import ChaosStage

WITH_TRAINER = ("worker", "trainer", "trainer", "web", "server")
WITHOUT = ("worker", "worker", "worker", "web", "web", "server")
# In the order of a round: who can be killed in it, up to how many seconds after it was seen to begin, and how often at
# most in one round: where it costs starting a trainer anew, less often.
PHASES = {
    "reading": (WITHOUT, 0.6, 3),
    "loading": (WITH_TRAINER, 5.0, 1),
    "training": (WITH_TRAINER, 3.0, 1),
    "scoring": (WITH_TRAINER, 0.5, 1),
    "saving": (WITHOUT, 0.1, 1),
    "pushing": (WITHOUT, 0.9, 4),
    "pointing": (WITHOUT, 0.6, 4),
    "deleting": (WITHOUT, 0.6, 4),
}


@dataclass(frozen=True)
class Kill:
    """One kill -9.

    Attributes:
        meant, phase: when it was to be, and what was going on when it was.
        victim: "server" is what was started, "web" its child that answers.
        serving: seconds until /health was answered again; None where the victim does not answer it.
    """

    meant: str
    phase: str
    victim: str
    serving: float | None


@dataclass(frozen=True)
class Round:
    """Labels, kills, and seconds from the last of either until everything was in order again."""

    kills: tuple[Kill, ...]
    seconds: float


def rounds(
    stage: ChaosStage, count: int, seed: int, told: Callable[[Kill], object] = lambda kill: None, calm: int = 1
) -> Iterator[Round]:
    """Rounds with `count` kills in all, after `calm` ones without any. Each ends settled, or this raises AssertionError."""
    random = np.random.default_rng(seed)
    for _ in range(calm):
        yield one_round(stage, [], random, told)
    while count > 0:
        done = one_round(stage, plan(random)[:count], random, told)
        count -= len(done.kills)
        yield done


def plan(random: np.random.Generator) -> list[tuple[str, str]]:
    """(phase, victim) pairs for one round, in the order of its phases."""
    return [
        (phase, str(random.choice(victims)))
        for phase, (victims, _, most) in PHASES.items()
        for _ in range(int(random.integers(most + 1)))
    ]


def one_round(
    stage: ChaosStage,
    wanted: Sequence[tuple[str, str]],
    random: np.random.Generator,
    told: Callable[[Kill], object] = lambda kill: None,
) -> Round:
    """Labels that make a round due, and a kill of each (phase, victim) that is wanted and comes. Ends settled."""
    kills = []
    stage.label()
    last = time.monotonic()
    for phase, victim in wanted:
        if not _comes(stage, phase):
            continue
        threading.Event().wait(float(random.uniform(0, PHASES[phase][1])))
        at = stage.phase()
        if stage.kill(victim):
            last = time.monotonic()
            kills.append(Kill(phase, at, victim, _serving_again(stage, victim)))
            told(kills[-1])
    stage.settle()
    return Round(tuple(kills), time.monotonic() - last)


def _comes(stage: ChaosStage, phase: str) -> bool:
    """Wait for a phase; False when the round ended without it."""
    found = stage.wait_until(
        lambda: "seen" if stage.phase() == phase else "missed" if stage.unsettled() is None else None,
        phase,
        stage.unsettled,
        every=0.005,
    )
    return found == "seen"


def _serving_again(stage: ChaosStage, victim: str) -> float | None:
    if victim not in ("web", "server"):
        return None
    started = time.monotonic()
    if victim == "server":
        stage.serve()
    stage.wait_until(stage.serves, "an answer after the kill", every=0.02)
    return time.monotonic() - started
