"""From image addresses to gradient norms and class probabilities: where images meet a version's network."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from lplgrad_backend.errors import ImageError, ImageUnreadable, NonFiniteScore, TrainingError, VersionDamaged
from lplgrad_backend.images import Images
from lplgrad_backend.lplgrad import acquisition
from lplgrad_backend.lplgrad.acquisition import Queue
from lplgrad_backend.lplgrad.gradnorm import GradientNorms
from lplgrad_backend.lplgrad.gradnorm.entropy import TEMPERATURES
from lplgrad_backend.lplgrad.network import Architecture, Network
from lplgrad_backend.lplgrad.ordering import Acquisition, Ordered, order_cold, order_pool
from lplgrad_backend.lplgrad.pool import AnsweredPool, Answers, answer
from lplgrad_backend.lplgrad.training import freeze
from lplgrad_backend.store import Manifest, PoolScores, address_digest

BATCH = 64
LOOKS_KEPT = 1000
HALF = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Measured:
    """One image: its gradient norm and its class probabilities [C] float32; and what a strategy may ask, where wanted."""

    norm: float
    probabilities: NDArray[np.float32]
    answers: Answers | None = None

    @property
    def predicted_loss(self) -> float:
        """NaN where it was not asked for."""
        return float("nan") if self.answers is None else float(self.answers.predicted_losses[0])


def load_network(manifest: Manifest, weights: Path) -> Network:
    """A saved version's network in eval mode, with the parameters frozen that its recipe did not train.

    Raises:
        VersionDamaged: it was saved by another release, whose networks are not these.
    """
    try:
        network = Network(Architecture.from_plain(manifest.architecture))
        network.load_state_dict(safetensors.torch.load_file(weights))
    except (KeyError, TypeError, RuntimeError, TrainingError) as error:
        reason = "its network cannot be built again, so another release saved it. Train anew, or run that release."
        raise VersionDamaged(f"Version {manifest.version} of project {manifest.project}: {reason}") from error
    freeze(network, str(manifest.recipe.get("trained", "all")))
    return network.eval()


class Scorer:
    """Measures images with one network, which is looked at once. Safe for several threads.

    Args:
        for_ordering: keep also what strategies ask of an image, which costs a forward pass more.
        temperatures: of the norms that strategies may ask for; the first is 1.
        confidence: by what logits are divided for probabilities; norms do not know of it.
        batch: images measured at once.
    """

    def __init__(
        self,
        network: Network,
        *,
        for_ordering: bool = False,
        temperatures: Sequence[float] = TEMPERATURES[:1],
        confidence: float = 1.0,
        batch: int = BATCH,
    ) -> None:
        self.network, self._for_ordering, self.confidence = network, for_ordering, confidence
        self.batch, self.temperatures = batch, tuple(temperatures)
        self._multiple = network.architecture.multiple
        self._gradient_norms = GradientNorms(network.main, multiple=self._multiple, temperatures=temperatures)
        # two batches at once would take twice the memory and no less time
        self._one_batch = threading.Lock()

    def measure(
        self, images: Images, tasks: Sequence[tuple[int, str]], done: Callable[[int], None] = lambda count: None
    ) -> Iterator[Measured | ImageError]:
        """Measure the images of (task id, address) pairs, in order; an image that cannot be used gives its error.

        Raises:
            TrainingError: not even a plain grey image has a finite score, so the fault is the network's.
        """
        for start in range(0, len(tasks), self.batch):
            part = tasks[start : start + self.batch]
            loaded = list(images.load_many(part, self.network.architecture.side))
            pixels = [one for one in loaded if not isinstance(one, ImageError)]
            uris = [uri for (_, uri), one in zip(part, loaded, strict=True) if not isinstance(one, ImageError)]
            measured = iter(self._measure_batch(as_batch(pixels), uris) if pixels else [])
            yield from (one if isinstance(one, ImageError) else next(measured) for one in loaded)
            done(start + len(part))

    def _measure_batch(self, batch: Tensor, uris: Sequence[str]) -> list[Measured | ImageError]:
        """Images without a finite norm are set apart and the others measured again."""
        try:
            return list(self.measure_pixels(batch))
        except NonFiniteScore as error:
            bad = set(error.indices)
        good = [at for at in range(len(batch)) if at not in bad]
        if not good:
            self._check_network(batch)
        measured = iter(self._measure_batch(batch[good], [uris[at] for at in good]) if good else [])
        return [
            ImageUnreadable(uris[at], "its score is not a finite number.") if at in bad else next(measured)
            for at in range(len(batch))
        ]

    def _check_network(self, batch: Tensor) -> None:
        try:
            self.measure_pixels(torch.full_like(batch[:1], 128))
        except NonFiniteScore as error:
            raise TrainingError(f"The network gives no finite score to any image: {error}") from error

    def measure_pixels(self, batch: Tensor) -> list[Measured]:
        """Measure images [N, 3, S, S] uint8.

        Raises:
            NonFiniteScore: naming positions in the batch.
        """
        if self._for_ordering:
            return self._answered(batch)
        device = next(self.network.parameters()).device
        with self._one_batch:
            found = self._gradient_norms.measure(batch.to(device).float() / 255)
        probabilities = probabilities_of(found.logits.float() / self.confidence, self._multiple).cpu().numpy()
        return [Measured(norm, row) for norm, row in zip(found.norms.tolist(), probabilities, strict=True)]

    def _answered(self, batch: Tensor) -> list[Measured]:
        with self._one_batch:
            found = answer(self.network, self._gradient_norms, batch).on_processor()
        probabilities = probabilities_of(found.logits.float() / self.confidence, self._multiple).numpy()
        rows = zip(found.ladder[0].tolist(), probabilities, found.each(), strict=True)
        return [Measured(norm, row, answers) for norm, row, answers in rows]


def as_batch(pixels: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Images [S, S, 3] -> uint8 [N, 3, S, S]."""
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()


def probabilities_of(logits: Tensor, multiple: bool) -> Tensor:
    """Logits [N, C] -> class probabilities [N, C]."""
    return torch.sigmoid(logits) if multiple else torch.softmax(logits, 1)


def scores_of(norms: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
    """Gradient norms [N] -> Label Studio's scores in (0, 1), lowest for the largest norm."""
    scores: NDArray[np.float64] = acquisition.scores(torch.from_numpy(norms), scale).numpy()
    return scores


def scale_of(norms: NDArray[np.float64]) -> float:
    """The s of score = s / (s + g): the median of the pool's norms or worths, or 1 where that says nothing."""
    median = float(np.median(norms)) if len(norms) else 0.0
    return median if median > 0 else 1.0


@dataclass(frozen=True)
class Standing:
    """Where N images stand in the queue.

    Attributes:
        worth: float64 [N], what each is worth at its turn; the gradient norm itself in the paper's order.
        scores: float64 [N] in (0, 1), lowest is served first.
        scale: the worth that gets 0.5.
        random: bool [N], which were drawn at random for their place; None: none was.
    """

    worth: NDArray[np.float64]
    scores: NDArray[np.float64]
    scale: float
    random: NDArray[np.bool_] | None = None


def by_norm(measured: Sequence[Measured], scale: float | None = None) -> Standing:
    """The paper's order: each image by its own norm. The scale is the median unless given."""
    norms = _norms(measured)
    used = scale_of(norms) if scale is None else scale
    return Standing(norms, scores_of(norms, used), used)


def in_queue(queue: Queue, count: int, drawn: Tensor | None = None) -> Standing:
    """All `count` images as a queue has them: the score rises strictly along it. `drawn`: bool [count], which of the queue
    were drawn at random."""
    worth, scores = np.zeros(count), np.zeros(count)
    at, along = queue.positions.numpy(), queue.worth.clamp(min=0)
    worth[at] = along.numpy()
    scale = scale_of(worth)
    scores[at] = acquisition.queue_scores(along, scale).numpy()
    random = np.zeros(count, dtype=bool)
    random[at] = False if drawn is None else drawn.numpy()
    return Standing(worth, scores, scale, random)


def among(measured: Sequence[Measured], known: PoolScores, scale: float) -> Standing:
    """Images that came after a round: each is worth what an image of that round with its gradient norm's rank is worth, so
    that it stands in the published queue where its norm stands among the norms. In the paper's order that is the norm."""
    norms = _norms(measured)
    if len(known.norms) == 0:
        return by_norm(measured, scale)
    ranks, worths = np.sort(known.norms), np.sort(known.worth)
    worth = np.interp(norms, ranks, worths)
    for outside, end in ((norms < ranks[0], 0), (norms > ranks[-1], -1)):
        if ranks[end] > 0 and worths[end] > 0:
            with np.errstate(over="ignore"):  # by a norm that is as good as nothing
                beyond = worths[end] * (norms[outside] / ranks[end])
            worth[outside] = np.minimum(beyond, np.finfo(np.float64).max)
    return Standing(worth, scores_of(worth, scale), scale)


def order_measured(
    measured: Sequence[Measured],
    labelled: Tensor,
    counts: Tensor,
    multiple: bool,
    wanted: Acquisition,
    seed: int,
    *,
    cold: bool = False,
) -> Ordered:
    """Order images, at least one, that were measured for it; `labelled` are the features [L, D] of those with a label, and
    `counts` [C] how many show each class. `cold`: these are too few to ask the network."""
    answers = [one.answers for one in measured if one.answers is not None]
    pool = AnsweredPool(Answers.joined(answers), labelled, counts, multiple)
    return order_cold(pool, wanted, seed) if cold else order_pool(pool, wanted, seed)


def _norms(measured: Sequence[Measured]) -> NDArray[np.float64]:
    return np.array([one.norm for one in measured], dtype=np.float64)


@dataclass(frozen=True)
class Readable:
    """Tasks whose image was measured, by ascending number, and why the others' was not."""

    tasks: list[tuple[int, str]]
    measured: list[Measured]
    unreadable: dict[int, str]


def readable(tasks: Sequence[tuple[int, str]], measured: Sequence[Measured | ImageError]) -> Readable:
    """Tell the (task id, address) pairs with a measured image from those without."""
    pairs = sorted(zip(tasks, measured, strict=True), key=lambda pair: pair[0][0])
    good = [(task, one) for task, one in pairs if isinstance(one, Measured)]
    unreadable = {task: one.reason for (task, _), one in pairs if isinstance(one, ImageError)}
    return Readable([task for task, _ in good], [one for _, one in good], unreadable)


def _looks(answers: Sequence[Answers]) -> NDArray[np.float16]:
    """Features [K, D]."""
    if not answers:
        return np.zeros((0, 0), np.float16)
    found: NDArray[np.float16] = torch.cat([one.features for one in answers]).float().clamp(-HALF, HALF).half().numpy()
    return found


def pool_scores(found: Readable, standing: Standing, classes: int) -> PoolScores:
    """What a version keeps of its pool."""
    answers = [one.answers for one in found.measured if one.answers is not None]
    whole = len(answers) == len(found.measured)
    head = np.argsort(standing.scores, kind="stable")[: LOOKS_KEPT if whole else 0]
    return PoolScores(
        tasks=np.array([task for task, _ in found.tasks], dtype=np.int64),
        addresses=np.array([address_digest(uri) for _, uri in found.tasks], dtype=np.int64),
        norms=_norms(found.measured),
        worth=standing.worth,
        scores=standing.scores,
        probabilities=np.array([one.probabilities for one in found.measured], dtype=np.float32).reshape(-1, classes),
        predicted_losses=np.array([one.predicted_loss for one in found.measured], dtype=np.float64),
        random=np.zeros(len(found.measured), dtype=bool) if standing.random is None else standing.random,
        head=head,
        looks=_looks([answers[at] for at in head.tolist()]),
    )
