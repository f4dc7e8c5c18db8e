"""What a network says of held-out images."""

from __future__ import annotations

import torch
from small_versions import SIDE, MadeImages, made, small_network

from lplgrad_backend.comparison import image_key
from lplgrad_backend.examination import examine
from lplgrad_backend.labeling import Example
from lplgrad_backend.scoring import as_batch


def test_each_readable_image_gets_the_class_of_its_largest_logit() -> None:
    network = small_network()
    network.train()
    held_out = [Example(at, f"/{at}.png", (1.0, 0.0)) for at in range(70)] + [Example(99, "/broken.png", (1.0, 0.0))]
    found = examine(network, MadeImages(), held_out, ("cat", "dog"))  # type: ignore[arg-type]
    with torch.no_grad():
        logits = network(as_batch([made(one.uri, SIDE) for one in held_out[:70]]).float() / 255)
    assert found == {
        image_key(one.uri): [("cat", "dog")[at]]
        for one, at in zip(held_out, logits.argmax(1).tolist(), strict=False)
    }  # fmt: skip
    assert examine(network, MadeImages(), [], ("cat", "dog")) == {}  # type: ignore[arg-type]
