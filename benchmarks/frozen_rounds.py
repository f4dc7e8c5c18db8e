"""What keeping the features saves: the second round of a project whose last layer alone is trained.

    make benchmark, or: .venv/bin/python -m benchmarks.frozen_rounds [--images 400] [--repeats 3]

Digits are served on loopback and enlarged to 224 pixels for a MobileNet of random weights, which cost what good ones do.
The second round has ten labels more. It is done with the features that the first has kept, without them, and image by
image through the whole network, as rounds of other recipes are and those of this one were before; in turn, several times,
in wall and in processor seconds. Writes frozen_rounds.md and frozen_rounds.json beside itself.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from typing import Any

import safetensors.torch
import torch
import torchvision

from lplgrad_backend.demo.dataset import CLASSES, Digits, write_digits
from lplgrad_backend.examination import opinion
from lplgrad_backend.labeling import Example, Labeling
from lplgrad_backend.lplgrad.gradnorm.entropy import TEMPERATURES
from lplgrad_backend.lplgrad.training import fit
from lplgrad_backend.preparation import start_of
from lplgrad_backend.rounds import Order, PoolTask
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.sight import Sight
from lplgrad_backend.sources import open_images
from lplgrad_backend.trainer import run

HERE = Path(__file__).parent
LABELING = Labeling("digit", "image", "image", CLASSES, multiple=False)
LABELS, MORE = 100, 10
CPU = torch.device("cpu")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder's address on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def order_of(digits: Digits, url: str, labels: int) -> Order:
    addressed = [(number, f"{url}/{digit.file.name}", digit.label) for number, digit in enumerate(digits.pool, 1)]
    examples = [
        Example(number, uri, tuple(float(label == name) for name in CLASSES))
        for number, uri, label in addressed[:labels]
    ]
    pool = [PoolTask(task=number, uri=uri) for number, uri, _ in addressed[labels:]]
    return Order(project=1, labeling=LABELING, examples=examples, pool=pool)


def image_by_image(order: Order, settings: Settings) -> None:
    """The same round with no feature kept, and exact norms by a forward and a backward pass."""
    start = start_of(settings, 224, len(CLASSES), False, len(order.examples), CPU)
    sight = Sight(start.network, open_images(settings, None), None)
    labelled = sight.labelled(order.examples)
    for _ in fit(start.network, labelled.images, labelled.targets, start.recipe, seed=0, device=CPU):
        pass
    opinion(start.network, labelled.images, labelled.targets)
    sight.features(labelled.images)
    sight.pool([(entry.task, entry.uri) for entry in order.pool], TEMPERATURES[:1], 1.0, lambda done: None)


def timed(what: Callable[[], object]) -> dict[str, float]:
    wall, processor = time.perf_counter(), time.process_time()
    what()
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}


def measured(images: int, repeats: int, folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(width_mult=0.35)
    safetensors.torch.save_file(network.state_dict(), folder / "pretrained.safetensors")
    digits = write_digits(folder / "digits", pool=images + LABELS, held_out=0)
    settings = read_settings({
        "MODEL_DIR": str(folder / "models"), "LPLGRAD_ALLOW_PRIVATE_IMAGES": "true", "LPLGRAD_PRESET": "frozen",
        "LPLGRAD_BACKBONE": "mobilenet_v2", "LPLGRAD_BACKBONE_OPTIONS": '{"width_mult": 0.35}',
        "LPLGRAD_WEIGHTS": str(folder / "pretrained.safetensors"), "LPLGRAD_DEVICE": "cpu",
    }, None)  # fmt: skip
    found: dict[str, list[dict[str, float]]] = {"kept": [], "not kept": [], "image by image": []}
    features = folder / "models" / "images" / "features"
    with served(digits.pool[0].file.parent) as url:
        first = timed(lambda: run(order_of(digits, url, LABELS), folder, settings))
        second = order_of(digits, url, LABELS + MORE)
        for _ in range(repeats):
            found["kept"].append(timed(lambda: run(second, folder, settings)))
            found["image by image"].append(timed(lambda: image_by_image(second, settings)))
            shutil.rmtree(features)
            found["not kept"].append(timed(lambda: run(second, folder, settings)))
    return {"images": images + LABELS, "repeats": repeats, "cores": os.cpu_count(), "load": os.getloadavg()[0],
            "first": first, "second": found}  # fmt: skip


def written(found: dict[str, Any]) -> str:
    middle = {
        name: {kind: median(one[kind] for one in of) for kind in ("wall", "processor")}
        for name, of in found["second"].items()
    }
    ratio = {name: middle[name]["processor"] / middle["kept"]["processor"] for name in ("not kept", "image by image")}
    names = {
        "kept": "with the features that the first round kept",
        "not kept": "without them: every image through the frozen layers once",
        "image by image": "image by image, with exact norms by forward and backward passes, as before",
    }
    rows = "\n".join(f"| {names[name]} | {of['processor']:.1f} | {of['wall']:.1f} |" for name, of in middle.items())
    return f"""# Rounds of the last layer, measured

Made by `benchmarks/frozen_rounds.py`: {found["images"]} digits at 224 px through a MobileNetV2 of width 0.35,
{LABELS + MORE} of them labelled, {found["repeats"]} second round(s) each, in turn, on {found["cores"]} cores (load
{found["load"]:.0f} when it ended: processor seconds and their ratios say more than wall seconds).

| second round | processor seconds | wall seconds |
|---|---|---|
{rows}

With the features kept the second round costs 1/{ratio["image by image"]:.1f} of what it did image by image, and
1/{ratio["not kept"]:.1f} of what it does without them. What is left is training: the head that is kept, and four
cross-fitted ones for confidences and suspected labels, which rounds had not before and which the last row is without. With
more images or a larger network the ratios grow.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(asked.images, asked.repeats, Path(folder))
    (HERE / "frozen_rounds.json").write_text(json.dumps(found, indent=1) + "\n")
    (HERE / "frozen_rounds.md").write_text(written(found))


if __name__ == "__main__":
    main()
