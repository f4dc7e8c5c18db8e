"""Digits in a Label Studio of this process, and what a round over them is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fake_label_studio import FakeLabelStudio

from lplgrad_backend.demo.dataset import CLASSES, Digits
from lplgrad_backend.labeling import Example, Labeling
from lplgrad_backend.rounds import Order, PoolTask
from lplgrad_backend.settings import Settings, read_settings

LABELING = Labeling(from_name="digit", to_name="image", data_key="image", classes=CLASSES, multiple=False)
LABELLED, POOL = 20, 30
BROKEN_EXAMPLE, BROKEN_TASK = 1, 101
OPTIONS = {"LPLGRAD_BACKBONE": "mobilenet_v3_small", "LPLGRAD_BACKBONE_OPTIONS": '{"width_mult": 0.25}'}


@dataclass(frozen=True)
class Site:
    """Digits in a Label Studio that listens on loopback: examples are tasks 1 …, the pool is tasks 101 …"""

    url: str
    token: str
    digits: Digits

    def settings(self, folder: Path, **environ: str) -> Settings:
        known = {"MODEL_DIR": str(folder), "LABEL_STUDIO_URL": self.url, "LABEL_STUDIO_API_KEY": self.token}
        return read_settings({**known, **OPTIONS, "LPLGRAD_THREADS": "1", **environ}, None)

    def order(self, **changes: object) -> Order:
        examples = [
            Example(number, f"/data/upload/1/{digit.file.name}", tuple(float(digit.label == name) for name in CLASSES))
            for number, digit in enumerate(self.digits.pool[:LABELLED], 1)
        ]
        pool = [
            PoolTask(task=number, uri=f"/data/upload/1/{digit.file.name}")
            for number, digit in enumerate(self.digits.pool[LABELLED : LABELLED + POOL], 101)
        ]
        examples[0] = Example(BROKEN_EXAMPLE, "/data/upload/1/broken.png", examples[0].target)
        pool[0] = PoolTask(task=BROKEN_TASK, uri="/data/upload/1/missing.png")
        return Order(project=1, labeling=LABELING, examples=examples, pool=pool).model_copy(update=changes)


@contextmanager
def digits_site(digits: Digits) -> Iterator[Site]:
    """One that is served until the block ends; an example and a task have no image."""
    fake = FakeLabelStudio()
    fake.uploads = {f"/data/upload/1/{digit.file.name}": digit.file.read_bytes() for digit in digits.pool}
    fake.uploads["/data/upload/1/broken.png"] = b"<html>not an image</html>"
    with fake.serving() as url:
        yield Site(url, fake.legacy_token(), digits)
