"""An annotator at work: labels until a round is due, waits for the reordered queue, measures, goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.table import Table

from lplgrad_backend.demo.process import DemoError
from lplgrad_backend.errors import ImageError
from lplgrad_backend.images import Images
from lplgrad_backend.labeling import image_uri
from lplgrad_backend.scoring import as_batch, load_network
from lplgrad_backend.store import Manifest

SECONDS_PER_ROUND = 900.0
BATCH = 64


class Labeler(Protocol):
    """Labels tasks in the order in which they are served; `Annotator` is the real one."""

    def label(self, count: int) -> Iterator[int]:
        """Labels up to `count` tasks and yields the number of each as it is saved."""


@dataclass(frozen=True)
class Round:
    """One row of the table; what is not known yet is None.

    Attributes:
        labels: labelled images when it began.
        version: what it made.
        seconds: since the label that made it due; of a finished round, until the queue was reordered.
        accuracy: share of the held-out images that the version names rightly, in [0, 1].
    """

    labels: int
    version: str | None = None
    seconds: float | None = None
    accuracy: float | None = None


def play(
    annotator: Labeler,
    labels: int,
    updates_per_round: int,
    version: Callable[[], str | None],
    accuracy: Callable[[], float],
) -> Iterator[Round]:
    """Labels images in the order in which they are served, and lets every due round reorder the rest.

    Args:
        labels: how many.
        updates_per_round: after how many labels a round is due.
        version: tells which version orders the queue now.
        accuracy: measures the newest version.

    Yields:
        The round in progress, whenever something about it changed.

    Raises:
        DemoError: a round took longer than `SECONDS_PER_ROUND`; also what `version` and `accuracy` raise.
    """
    done = 0
    while done < labels:
        before, start = version(), done
        for _ in annotator.label(min(updates_per_round, labels - done)):
            done += 1
            yield Round(done)
        if done - start < updates_per_round:
            return
        due = time.monotonic()
        while (new := version()) == before:
            yield Round(done, seconds=_seconds_since(due))
            time.sleep(0.25)
        seconds = _seconds_since(due)
        yield Round(done, new, seconds)
        yield Round(done, new, seconds, accuracy())


def _seconds_since(due: float) -> float:
    seconds = time.monotonic() - due
    if seconds > SECONDS_PER_ROUND:
        raise DemoError(f"The queue was not reordered within {SECONDS_PER_ROUND:.0f} s. The backend's log tells why.")
    return seconds


def measure_accuracy(
    manifest: Manifest,
    weights: Path,
    images: Images,
    tasks: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
) -> float:
    """Share of the tasks' images that a version names rightly, in [0, 1].

    Args:
        weights: the version's safetensors file.
        tasks: `{"id": ..., "data": {...}}` each, at least one.
        labels: what each of them shows.

    Raises:
        ImageError: one of the images cannot be read.
    """
    network = load_network(manifest, weights)
    addressed = [(int(task["id"]), image_uri(manifest.labeling, task)) for task in tasks]
    right = 0
    for start in range(0, len(tasks), BATCH):
        loaded = list(images.load_many(addressed[start : start + BATCH], manifest.architecture["side"]))
        for one in loaded:
            if isinstance(one, ImageError):
                raise one
        pixels = as_batch([one for one in loaded if not isinstance(one, ImageError)])
        with torch.inference_mode():
            chosen = network(pixels.float() / 255).argmax(1).tolist()
        named = [manifest.labeling.classes[index] for index in chosen]
        right += sum(name == label for name, label in zip(named, labels[start : start + BATCH], strict=True))
    return right / len(tasks)


def add_round(rounds: Sequence[Round], latest: Round) -> list[Round]:
    """The rounds with the latest news: the last row is replaced until its version's accuracy is known."""
    open_row = bool(rounds) and rounds[-1].accuracy is None
    return [*(rounds[:-1] if open_row else rounds), latest]


def table(rounds: Sequence[Round], held_out: int) -> Table:
    """What is shown, one row per round."""
    shown = Table(title="LPLgrad on handwritten digits", title_justify="left")
    columns = ("version", "labels", "seconds until reordered", f"accuracy on {held_out} held-out images")
    for column in columns:
        shown.add_column(column, justify="right")
    for entry in rounds:
        shown.add_row(
            entry.version or ("labelling" if entry.seconds is None else "learning"),
            str(entry.labels),
            "" if entry.seconds is None else f"{entry.seconds:.1f}",
            "" if entry.accuracy is None else f"{entry.accuracy:.1%}",
        )
    return shown


def sentence(finished: Round) -> str:
    """A finished round in one line, for a log."""
    return (
        f"{finished.version}: {finished.labels} labels, reordered after {finished.seconds:.1f} s, "
        f"held-out accuracy {finished.accuracy:.1%}"
    )
