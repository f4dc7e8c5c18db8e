"""Images that came after a round: where they stand in its queue, apart from look-alikes, with scores of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from versions import pool_scores

from lplgrad_backend.latecomers import insert
from lplgrad_backend.lplgrad.pool import Answers
from lplgrad_backend.lplgrad.spreading import GAP
from lplgrad_backend.scoring import Measured, among
from lplgrad_backend.store import PoolScores

COUNT, WIDTH = 300, 12


def queue(count: int = COUNT) -> PoolScores:
    """A round's queue in the paper's order; its first images look like nothing else."""
    scores = pool_scores(
        [(task, f"/{task}.png") for task in range(1, count + 1)], np.linspace(0.1, 0.9, count).tolist()
    )
    looks = np.random.default_rng(0).normal(size=(min(count, 100), WIDTH)).astype(np.float16)
    return PoolScores(**{**vars(scores), "head": np.arange(len(looks)), "looks": looks})


def measured(norm: float, look: np.ndarray | None) -> Measured:
    answers = None
    if look is not None:
        features = torch.from_numpy(look).float().unsqueeze(0)
        one = torch.ones(1)
        answers = Answers(logits=torch.zeros(1, 2), features=features, predicted_losses=one, ladder=one.unsqueeze(0))
    return Measured(norm, np.array([0.5, 0.5], np.float32), answers)


def places(known: PoolScores, scores: np.ndarray) -> list[int]:
    """In the whole queue."""
    order = np.argsort(np.concatenate([known.scores, scores]), kind="stable").tolist()
    return [order.index(len(known.scores) + at) for at in range(len(scores))]


@given(norms=st.lists(st.floats(0, 20), min_size=1, max_size=30), apart=st.booleans())
def test_no_score_is_that_of_another(norms: list[float], apart: bool) -> None:
    known, look = queue(), np.ones(WIDTH) if apart else None
    scores = insert(range(1000, 1000 + len(norms)), [measured(norm, look) for norm in norms], known, 1.0).scores
    assert len({*known.scores.tolist(), *scores.tolist()}) == COUNT + len(norms)
    assert scores.min() > 0 and scores.max() < 1


@given(norms=st.lists(st.integers(1, 2000), min_size=1, max_size=9, unique=True))
def test_unlike_ones_stand_where_their_norm_stands_among_the_norms(norms: list[int]) -> None:
    known = queue()
    late = [measured(norm / 100, None) for norm in norms]
    found = insert(range(1000, 1000 + len(norms)), late, known, 1.0)
    alone = among(late, known, 1.0)
    assert places(known, found.scores) == places(known, alone.scores)
    assert found.worth.tolist() == alone.worth.tolist()
    np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-8)


def test_look_alikes_among_them_are_apart() -> None:
    known = queue()
    late = [measured(5.0, np.full(WIDTH, 3.0) + 0.01 * at) for at in range(5)]
    at = places(known, insert(range(1000, 1005), late, known, 1.0).scores)
    assert np.diff(sorted(at)).min() >= GAP
    assert min(at) < min(places(known, insert([1000], [measured(4.9, None)], known, 1.0).scores))


@pytest.mark.parametrize("of", [0, 10, 60])
def test_one_that_looks_like_an_image_of_the_queue_stands_behind_it(of: int) -> None:
    known = queue()
    late = [measured(float(known.norms[of]), known.looks[of].astype(float)), measured(0.2, None)]
    [at, _] = places(known, insert([1000, 1001], [late[0], measured(0.2, np.ones(WIDTH))], known, 1.0).scores)
    assert at >= of + GAP


def test_batches_that_come_one_after_the_other_share_no_score() -> None:
    known = queue()
    alike = [insert([task], [measured(3.0, None)], known, 1.0).scores[0] for task in range(1000, 1200)]
    assert len(set(alike)) == 200
    assert alike[0] == insert([1000], [measured(3.0, None)], known, 1.0).scores[0]  # and the same image the same


def test_where_neighbours_leave_no_room_they_wait() -> None:
    known = queue(3)
    first = float(known.scores[0])
    tight = PoolScores(**{**vars(known), "scores": np.array([first, np.nextafter(first, 1), 0.9])})
    scores = insert([7], [measured(float(np.mean(known.norms[:2])), None)], tight, 1.0).scores
    assert first < scores[0] < 0.9 and scores[0] not in tight.scores


def test_without_a_queue_the_norm_is_all_there_is() -> None:
    assert insert([1], [measured(0.5, None)], queue(0), 1.5).scores.tolist() == [0.75]
    assert insert([], [], queue(), 1.0).scores.tolist() == []
