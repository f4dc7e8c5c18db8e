"""From addresses to norms and probabilities: batches, images that cannot be used, scores of a pool."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_versions import ARCHITECTURE, SIDE, Dazzled, MadeImages, made, save_network, small_network
from torch import Tensor

from lplgrad_backend.errors import ImageError, ImageUnreadable, NonFiniteScore, TrainingError, VersionDamaged
from lplgrad_backend.lplgrad.acquisition import STRATEGIES
from lplgrad_backend.lplgrad.gradnorm.entropy import TEMPERATURES
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.lplgrad.ordering import Acquisition
from lplgrad_backend.scoring import (
    BATCH,
    Measured,
    Scorer,
    among,
    as_batch,
    by_norm,
    freeze,
    in_queue,
    load_network,
    order_measured,
    pool_scores,
    probabilities_of,
    readable,
    scale_of,
    scores_of,
)
from lplgrad_backend.store import Store

POOL = [(task, f"/{task}.png") for task in range(1, BATCH + 7)]


@pytest.fixture(scope="module")
def network() -> Network:
    return small_network()


@pytest.fixture
def images() -> MadeImages:
    return MadeImages()


def pixels(uris: list[str]) -> Tensor:
    return as_batch([made(uri) for uri in uris])


class TestMeasuring:
    def test_images_are_measured_in_order_over_batches(self, network: Network, images: MadeImages) -> None:
        done: list[int] = []
        found = list(Scorer(network).measure(images, POOL, done.append))
        batch = pixels([uri for _, uri in POOL]).float() / 255
        norms = [one.norm for one in found if isinstance(one, Measured)]
        wanted = reference.gradient_norms(network.main, batch)
        torch.testing.assert_close(
            torch.tensor(norms, dtype=torch.float64), wanted, rtol=1e-3, atol=1e-6 * wanted.max()
        )
        with torch.no_grad():
            said = torch.softmax(network(batch), 1).numpy()
        np.testing.assert_allclose([one.probabilities for one in found if isinstance(one, Measured)], said, atol=1e-5)
        assert done == [BATCH, len(POOL)]
        assert images.asked == POOL

    def test_an_unreadable_image_keeps_its_place(self, network: Network, images: MadeImages) -> None:
        tasks = [(1, "/a.png"), (2, "/broken.png"), (3, "/b.png"), (4, "")]
        found = list(Scorer(network).measure(images, tasks))
        assert [isinstance(one, ImageError) for one in found] == [False, True, False, True]
        alone = next(Scorer(network).measure(images, [(3, "/b.png")]))
        assert isinstance(found[2], Measured) and isinstance(alone, Measured)
        assert found[2].norm == pytest.approx(alone.norm, rel=1e-4)

    def test_a_batch_of_which_nothing_can_be_read(self, network: Network, images: MadeImages) -> None:
        found = list(Scorer(network).measure(images, [(task, f"/broken{task}.png") for task in range(3)]))
        assert [str(one) for one in found] == [f"Image /broken{task}.png: it is broken." for task in range(3)]

    def test_nothing_at_all(self, network: Network, images: MadeImages) -> None:
        assert list(Scorer(network).measure(images, [])) == []

    def test_pixels_that_are_not_finite_are_named_by_position(self) -> None:
        with pytest.raises(NonFiniteScore) as caught:
            Scorer(Dazzled()).measure_pixels(pixels(["/a.png", "/white.png", "/b.png"]))
        assert caught.value.indices == [1]


class TestWithoutAFiniteScore:
    def test_an_image_is_set_apart_and_named(self, images: MadeImages) -> None:
        tasks = [(1, "/a.png"), (2, "/white1.png"), (3, "/b.png"), (4, "/white2.png")]
        found = list(Scorer(Dazzled()).measure(images, tasks))
        assert [isinstance(one, Measured) for one in found] == [True, False, True, False]
        assert isinstance(found[1], ImageUnreadable)
        assert str(found[1]) == "Image /white1.png: its score is not a finite number."
        alone = next(Scorer(Dazzled()).measure(images, tasks[2:3]))
        assert isinstance(found[2], Measured) and isinstance(alone, Measured)
        assert found[2].norm == pytest.approx(alone.norm, rel=1e-5)

    def test_alone_in_the_last_batch_it_still_costs_itself_alone(self, images: MadeImages) -> None:
        tasks = [*POOL[:BATCH], (999, "/white.png")]
        found = list(Scorer(Dazzled()).measure(images, tasks))
        assert [isinstance(one, Measured) for one in found] == [True] * BATCH + [False]

    @pytest.mark.filterwarnings("ignore::lplgrad_backend.lplgrad.gradnorm.SlowGradientNorms")
    def test_a_network_that_says_nothing_finite_is_an_error(self, images: MadeImages) -> None:
        broken = small_network()
        with torch.no_grad():
            broken.head.get_parameter("bias").fill_(torch.nan)
        with pytest.raises(TrainingError, match="no finite score to any image"):
            list(Scorer(broken).measure(images, POOL[:3]))


class TestNetworks:
    def test_freezing_leaves_what_was_trained(self) -> None:
        network = small_network()
        freeze(network, "head")
        trained = [name for name, one in network.named_parameters() if one.requires_grad]
        assert trained == ["main.backbone.fc.weight", "main.backbone.fc.bias"]
        freeze(network, "all")
        assert all(one.requires_grad for one in network.parameters())

    def test_a_frozen_backbone_does_not_count(self, images: MadeImages) -> None:
        network = small_network()
        freeze(network, "head")
        found = list(Scorer(network).measure(images, POOL[:3]))
        batch = pixels([uri for _, uri in POOL[:3]]).float() / 255
        wanted = reference.gradient_norms(network.main, batch)
        assert [one.norm for one in found if isinstance(one, Measured)] == pytest.approx(wanted.tolist(), rel=1e-3)

    @pytest.mark.parametrize("trained", ["all", "head"])
    def test_a_saved_network_measures_as_before(self, tmp_path: Path, images: MadeImages, trained: str) -> None:
        store, network = Store(tmp_path), small_network(seed=3)
        manifest = save_network(store, 1, "v1", network, POOL[:2])
        loaded = load_network(manifest.model_copy(update={"recipe": {"trained": trained}}), store.weights_path(1, "v1"))
        freeze(network, trained)
        before, after = (list(Scorer(one).measure(images, POOL[:4])) for one in (network, loaded))
        assert [vars(one)["norm"] for one in before] == [vars(one)["norm"] for one in after]
        assert not loaded.training

    @pytest.mark.parametrize(
        "architecture",
        [
            {},
            {"backbone": "resnet18"},
            replace(ARCHITECTURE, classes=5).as_plain(),
            ARCHITECTURE.as_plain() | {"depth": 3},
        ],
    )
    def test_a_network_of_another_release_is_damaged(self, tmp_path: Path, architecture: dict[str, object]) -> None:
        store = Store(tmp_path)
        manifest = save_network(store, 1, "v1", small_network(), [])
        other = manifest.model_copy(update={"architecture": architecture})
        with pytest.raises(VersionDamaged, match="v1 of project 1"):
            load_network(other, store.weights_path(1, "v1"))


@pytest.mark.parametrize("multiple", [False, True])
def test_probabilities(multiple: bool) -> None:
    found = probabilities_of(torch.tensor([[0.0, 0.0], [200.0, -200.0]]), multiple)
    assert found.tolist() == [[0.5, 0.5], [1.0, 0.0]]
    assert probabilities_of(torch.full((1, 2), 9.0), multiple).sum() == pytest.approx(
        2.0 if multiple else 1.0, abs=1e-3
    )


def test_many_classes_per_image_are_measured_as_such(images: MadeImages) -> None:
    architecture = Architecture("shufflenet_v2_x0_5", classes=3, multiple=True, side=SIDE, small_stem=True)
    network = small_network(architecture=architecture)
    found = next(Scorer(network).measure(images, POOL[:1]))
    wanted = reference.gradient_norms(network.main, pixels([POOL[0][1]]).float() / 255, multiple=True)
    assert isinstance(found, Measured) and found.norm == pytest.approx(float(wanted), rel=1e-3)


class TestScores:
    def test_the_largest_norm_is_served_first(self) -> None:
        found = scores_of(np.array([1.0, 3.0, 0.0, 1.0]), 1.0)
        assert found.tolist() == [0.5, 0.25, pytest.approx(1.0), 0.5]
        assert found.dtype == np.float64 and found.max() < 1

    def test_none_of_none(self) -> None:
        assert scores_of(np.zeros(0), 1.0).shape == (0,)

    @pytest.mark.parametrize(
        ("norms", "scale"), [([1.0, 5.0, 2.0], 2.0), ([1.0, 2.0], 1.5), ([0.0, 0.0], 1.0), ([], 1.0)]
    )
    def test_the_scale_is_the_median_where_that_says_something(self, norms: list[float], scale: float) -> None:
        assert scale_of(np.array(norms)) == scale


def measured(norm: float) -> Measured:
    return Measured(norm, np.array([norm, 1 - norm], np.float32))


TASKS = [(9, "/i.png"), (2, "/b.png"), (5, "/broken.png"), (3, "/c.png")]
FOUND = [measured(0.3), measured(0.1), ImageUnreadable("/broken.png", "it is broken."), measured(0.2)]


class TestPool:
    def test_is_sorted_by_task_and_keeps_what_belongs_together(self) -> None:
        found = readable(TASKS, FOUND)
        standing = by_norm(found.measured)
        scores = pool_scores(found, standing, 2)
        assert standing.scale == pytest.approx(0.2)
        assert found.unreadable == {5: "it is broken."}
        assert scores.tasks.tolist() == [2, 3, 9]
        assert scores.norms.tolist() == scores.worth.tolist() == [0.1, 0.2, 0.3]
        assert scores.probabilities[:, 0].tolist() == pytest.approx([0.1, 0.2, 0.3])
        assert scores.scores.tolist() == sorted(scores.scores.tolist(), reverse=True)
        assert [scores.position(task, uri) for task, uri in TASKS] == [2, 0, None, 1]

    def test_a_given_scale_is_used(self) -> None:
        assert by_norm([measured(0.5)], 1.5).scores.tolist() == [0.75]

    def test_an_empty_pool(self) -> None:
        found = readable([], [])
        standing = by_norm(found.measured)
        assert (standing.scale, found.unreadable) == (1.0, {})
        assert pool_scores(found, standing, 3).probabilities.shape == (0, 3)


@pytest.fixture(scope="module")
def found(network: Network) -> list[Measured]:
    """The whole pool, measured for an order."""
    scorer = Scorer(network, for_ordering=True, temperatures=TEMPERATURES)
    return [one for one in scorer.measure(MadeImages(), POOL) if isinstance(one, Measured)]


class TestOrder:
    """Answers of a real network, ordered."""

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_scores_rise_strictly_along_every_queue(self, found: list[Measured], strategy: str) -> None:
        labelled = torch.cat([one.answers.features for one in found[:3] if one.answers])
        ordered = order_measured(found, labelled, torch.ones(2), False, Acquisition(strategy, strict=True), 0)
        standing = in_queue(ordered.queue, len(ordered.pool))
        along = standing.scores[ordered.queue.positions.numpy()]
        assert (np.diff(along) > 0).all() and along.min() > 0 and along.max() < 1
        assert sorted(ordered.queue.positions.tolist()) == list(range(len(POOL)))
        expected = standing.scale / (standing.scale + standing.worth)
        np.testing.assert_allclose(standing.scores, expected, rtol=1e-9)

    def test_for_an_order_the_same_is_measured_as_without(self, network: Network, found: list[Measured]) -> None:
        plain = [one for one in Scorer(network).measure(MadeImages(), POOL) if isinstance(one, Measured)]
        np.testing.assert_allclose([one.norm for one in found], [one.norm for one in plain], rtol=1e-5)
        np.testing.assert_allclose(
            [one.probabilities for one in found], [one.probabilities for one in plain], atol=1e-6
        )

    def test_without_coverage_the_worth_is_the_norm(self, found: list[Measured]) -> None:
        labelled = torch.zeros(0, found[0].answers.features.shape[1]) if found[0].answers else torch.zeros(0, 1)
        ordered = order_measured(found, labelled, torch.ones(2), False, Acquisition(sharpness=None, strict=True), 0)
        standing = in_queue(ordered.queue, len(found))
        np.testing.assert_allclose(standing.worth, [one.norm for one in found])


class TestLaterImages:
    def test_in_the_papers_order_they_are_worth_their_norm(self) -> None:
        found = readable(TASKS, FOUND)
        known = pool_scores(found, by_norm(found.measured), 2)
        later = [measured(norm) for norm in (0.05, 0.1, 0.17, 0.3, 0.9, 0.0)]
        np.testing.assert_allclose(among(later, known, 0.2).worth, [0.05, 0.1, 0.17, 0.3, 0.9, 0.0])

    def test_a_norm_beside_others_of_next_to_nothing(self) -> None:
        found = readable([(1, "/1.png")], [measured(5e-324)])
        known = pool_scores(found, replace(by_norm(found.measured, 1.0), worth=np.array([1.0])), 2)
        standing = among([measured(1.0)], known, 1.0)
        assert np.isfinite(standing.worth).all() and 0 < standing.scores[0] < 1

    @given(
        norms=st.lists(st.floats(0, 10), min_size=1, max_size=9),
        worths=st.lists(st.floats(0, 10), min_size=9, max_size=9),
        later=st.lists(st.floats(0, 20), min_size=1, max_size=9),
    )
    def test_a_larger_norm_is_never_worth_less(
        self, norms: list[float], worths: list[float], later: list[float]
    ) -> None:
        found = readable([(at, f"/{at}.png") for at in range(len(norms))], [measured(norm) for norm in norms])
        standing = replace(by_norm(found.measured), worth=np.array(worths[: len(norms)]))
        worth = among([measured(norm) for norm in sorted(later)], pool_scores(found, standing, 2), 1.0).worth
        assert np.isfinite(worth).all() and (worth >= 0).all()
        assert (np.diff(worth) >= -1e-12).all()

    def test_where_the_round_scored_nothing_the_norm_is_all_there_is(self) -> None:
        found = readable([], [])
        known = pool_scores(found, by_norm(found.measured), 2)
        assert among([measured(0.5)], known, 1.5).scores.tolist() == [0.75]
