"""The short form of `make chaos`: a kill in each phase of a round, and two backends that meet; nothing is lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from chaos_kills import Kill, one_round
from chaos_stage import KEEP, chaos_stage

pytestmark = pytest.mark.timeout(400)

PACE = 0.2  # seconds that Label Studio takes before and after each step, so that it can be met in each
BEFORE = (("reading", "worker"), ("training", "trainer"), ("scoring", "web"))
AFTER = (("saving", "worker"), ("pushing", "worker"), ("pointing", "server"), ("deleting", "worker"))


def test_a_kill_in_each_phase_of_a_round_loses_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    with chaos_stage(tmp_path, PACE) as stage:
        for _ in range(KEEP):  # the next round has a version to delete
            one_round(stage, (), random)
        before, after = (one_round(stage, wanted, random).kills for wanted in (BEFORE, AFTER))
    assert victims(before) == BEFORE
    assert set(AFTER) - set(victims(after)) <= {
        AFTER[0]
    }  # saving takes milliseconds, and may be over when it is looked for


def victims(kills: Sequence[Kill]) -> tuple[tuple[str, str], ...]:
    return tuple((kill.meant, kill.victim) for kill in kills)
