"""Real workers on a real Redis score one pool together: with the scores of one alone, also when one dies or is cut off."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_label_studio import Asked, FakeLabelStudio
from hosts import CENTRE, Hosts, at, hosts
from learner_stage import CONFIG, choice
from PIL import Image
from programs import Program
from redis_server import local_redis, redis_server
from test_hosts import await_

from lplgrad_backend.jobs import Jobs, open_queue
from lplgrad_backend.labeling import parse_label_config, read_annotations
from lplgrad_backend.rounds import SCORES, Order, PoolTask, run_round
from lplgrad_backend.settings import read_settings
from lplgrad_backend.sources import open_label_studio
from lplgrad_backend.status import StatusFolder
from lplgrad_backend.store import PoolScores, Store, read_scores

LABELLED, POOL = 12, 250
OPTIONS = {
    "LPLGRAD_BACKBONE": "mobilenet_v3_small", "LPLGRAD_BACKBONE_OPTIONS": '{"width_mult": 0.25}', "LPLGRAD_WEIGHTS": "none",
    "LPLGRAD_THREADS": "1", "LPLGRAD_SHARD_SIZE": "64", "LPLGRAD_LOCK_SECONDS": "3", "LPLGRAD_SWEEP_SECONDS": "1000000",
    "LPLGRAD_DEVICE": "cpu", "LOG_LEVEL": "INFO",
}  # fmt: skip
OWNERS, HELPERS = f"/data/upload/1/{LABELLED + 70}.png", f"/data/upload/1/{LABELLED + POOL - 1}.png"


def picture(dark: bool, seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 90, (16, 16, 3)) + (0 if dark else 160)
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


class Gate(FakeLabelStudio):
    """Gives two images late: one of the second shard, at which the round's owner then waits, and, to who asks first, one of
    the last shard, with which whoever helps begins."""

    def __init__(self) -> None:
        super().__init__()
        self.owner_may, self.helper_may, self.helper_is_at_it = threading.Event(), threading.Event(), threading.Event()

    def answer(self, asked: Asked) -> tuple[int, Any, list[tuple[str, str]]]:
        if asked.path == OWNERS:
            self.owner_may.wait()
        if asked.path == HELPERS and not self.helper_is_at_it.is_set():
            self.helper_is_at_it.set()
            self.helper_may.wait()
        return super().answer(asked)


class Site:
    def __init__(self, folder: Path, fake: Gate, url: str, own_url: str, stack: ExitStack) -> None:
        self.folder, self.fake, self.url, self._own_url, self._stack = folder, fake, url, own_url, stack
        self.store = Store(folder)
        self.project = int(fake.add_project("Pets", CONFIG)["id"])
        for n in range(LABELLED + POOL):
            fake.uploads[f"/data/upload/1/{n}.png"] = picture(bool(n % 2), n)
        rows = [{"data": {"image": f"/data/upload/1/{n}.png"}} for n in range(LABELLED + POOL)]
        self.tasks = fake.import_tasks(self.project, rows)
        for n, task in enumerate(self.tasks[:LABELLED]):
            fake.annotate(task, {"result": choice("dog" if n % 2 else "cat")}, "me@example.com")

    def environ(self, **changes: str) -> dict[str, str]:
        known = {
            "MODEL_DIR": str(self.folder), "LABEL_STUDIO_URL": self.fake.url, "LPLGRAD_QUEUE_URL": self.url,
            "LABEL_STUDIO_API_KEY": self.fake.legacy_token(),
        }  # fmt: skip
        return {**known, **OPTIONS, **changes}

    def worker(self, prefix: tuple[str, ...] = ()) -> Program:
        program = Program(("-m", "lplgrad_backend.worker"), self.environ(), prefix=prefix)
        self._stack.enter_context(program).wait_for("worker ready")
        return program

    def ring(self) -> None:
        queue = open_queue(self._own_url, self.folder)
        Jobs(queue, lambda project: None).ring(self.project)
        queue.storage.pool.disconnect()

    def is_published(self) -> bool:
        return StatusFolder(self.folder).read(self.project).published == "v1"

    def scores(self) -> PoolScores:
        return self.store.scores(self.project, "v1")


def alone(site: Site, folder: Path) -> PoolScores:
    """What a round without a shared queue finds."""
    site.fake.owner_may.set()
    site.fake.helper_may.set()
    settings = read_settings(site.environ(LPLGRAD_QUEUE_URL="", MODEL_DIR=str(folder)), None)
    client, labeling = open_label_studio(settings), parse_label_config(CONFIG, None)
    assert client is not None
    examples = read_annotations(labeling, client.annotated_tasks(site.project)).examples
    pool = [PoolTask(task=task, uri=f"/data/upload/1/{n}.png") for n, task in enumerate(site.tasks)][LABELLED:]
    order = Order(project=site.project, labeling=labeling, examples=list(examples), pool=pool)
    folder.mkdir()
    run_round(order, folder, settings, lambda said: None, threading.Event())
    return read_scores(folder / SCORES)


def equal(one: PoolScores, other: PoolScores) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name == "predicted_losses")
        for name in PoolScores.__dataclass_fields__
    )


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def net(stack: ExitStack) -> Hosts:
    return stack.enter_context(hosts())


def on_this_machine(folder: Path, stack: ExitStack) -> Site:
    url, fake = stack.enter_context(local_redis(folder)), Gate()
    stack.enter_context(fake.serving())
    return Site(folder / "models", fake, url, url, stack)


def on_hosts(folder: Path, stack: ExitStack, net: Hosts) -> Site:
    prefix, socket = ("ip", "netns", "exec", net.centre), folder / "redis.sock"
    arguments = ["--bind", CENTRE, "--protected-mode", "no", "--unixsocket", str(socket)]
    stack.enter_context(redis_server(arguments, folder, prefix))
    fake = Gate()
    with at(net.centre):
        stack.enter_context(fake.serving(CENTRE))
    return Site(folder / "models", fake, f"redis://{CENTRE}:6379/0", f"unix://{socket}", stack)


def lose_a_helper(site: Site, *prefixes: tuple[str, ...]) -> Program:
    """Begin a round of which one helper stands in the middle of a shard, another has scored one, and the owner is at the
    third. Returns the first. `prefixes`: of the three."""
    owner_at, helper_at, other_at = prefixes
    owner = site.worker(owner_at)
    site.ring()
    owner.wait_for("round on 12 examples, pool of 250")
    helper = site.worker(helper_at)
    assert site.fake.helper_is_at_it.wait(100)
    site.worker(other_at).wait_for("scored 1 of 4 shards")
    return helper


def test_a_helper_killed_in_the_middle_of_a_shard_changes_nothing(tmp_path: Path, stack: ExitStack) -> None:
    site = on_this_machine(tmp_path, stack)
    lose_a_helper(site, (), (), ()).send(signal.SIGKILL)
    site.fake.owner_may.set()
    await_(site.is_published, "a published version", 100)
    assert equal(site.scores(), alone(site, tmp_path / "alone"))
    assert site.store.check() == []


def test_a_helper_on_a_host_that_is_cut_off_changes_nothing(tmp_path: Path, stack: ExitStack, net: Hosts) -> None:
    site = on_hosts(tmp_path, stack, net)
    helper = lose_a_helper(site, *(net.command(name) for name in ("owner", "helper", "other")))
    net.pull_cable("helper")
    site.fake.owner_may.set()
    await_(site.is_published, "a published version", 100)
    before = site.scores()
    net.put_cable_back("helper")
    site.fake.helper_may.set()
    helper.wait_for("scored ")  # with the shard that it was at, which nobody wants any more
    assert equal(site.scores(), before) and site.store.versions(site.project) == ["v1"]
    assert site.store.check() == []
