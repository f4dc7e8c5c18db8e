"""Several workers on a real Redis, and on hosts of their own: one project is one worker's, whoever dies or is cut off."""

from __future__ import annotations

import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from fake_label_studio import FakeLabelStudio
from hosts import CENTRE, Hosts, at, hosts
from learner_stage import CONFIG, choice
from programs import Program
from redis_server import local_redis, redis_server

from lplgrad_backend.jobs import Jobs, open_queue
from lplgrad_backend.status import Phase, StatusFolder
from lplgrad_backend.store import Store

SLOW = ("-c", f"import sys; sys.path.append({str(Path(__file__).parent)!r}); from slow_worker import main; main()")
NEVER = 1_000_000  # seconds between sweeps
LOCK = 3


class Site:
    """A fake Label Studio, a shared folder, and workers that come and go. Whoever rings is a web process's stand-in."""

    def __init__(self, folder: Path, stack: ExitStack, url: str, fake: FakeLabelStudio, own_url: str = "") -> None:
        self.folder, self.url, self._stack, self.fake = folder, url, stack, fake
        self._own_url = own_url or url
        self.store, self.statuses = Store(folder), StatusFolder(folder)
        self.projects = [int(fake.add_project(title, CONFIG)["id"]) for title in ("Pets", "Wolves", "Toys")]
        self.project = self.projects[0]
        self.tasks = {
            project: fake.import_tasks(project, [{"data": {"image": f"/{number}.png"}} for number in range(40)])
            for project in self.projects
        }

    def worker(self, name: str, prefix: tuple[str, ...] = (), sweep: int = NEVER, **environ: str) -> Program:
        known = {
            "MODEL_DIR": str(self.folder), "LABEL_STUDIO_URL": self.fake.url, "LPLGRAD_QUEUE_URL": self.url,
            "LABEL_STUDIO_API_KEY": self.fake.legacy_token(), "LOG_LEVEL": "INFO", "SLOW_NAME": name,
            "LPLGRAD_LOCK_SECONDS": str(LOCK), "LPLGRAD_SWEEP_SECONDS": str(sweep),
        }  # fmt: skip
        program = self._stack.enter_context(Program(SLOW, {**known, **environ}, prefix=prefix))
        program.wait_for("worker ready")
        return program

    def ring(self, project: int) -> None:
        queue = open_queue(self._own_url, self.folder)
        with closing(queue.storage.conn):
            Jobs(queue, lambda project: None).ring(project)

    def waiting(self) -> list[int]:
        queue = open_queue(self._own_url, self.folder)
        with closing(queue.storage.conn):
            return Jobs(queue, lambda project: None).waiting()

    def label(self, project: int, first: int, count: int = 10) -> None:
        for at_, task in enumerate(self.tasks[project][first : first + count]):
            self.fake.annotate(task, {"result": choice("cat" if at_ % 2 else "dog")}, "me@example.com")

    def let(self, *names: str) -> None:
        for name in names:
            (self.folder / f"{name}.go").touch()

    def begun(self, name: str) -> list[int]:
        file = self.folder / f"{name}.begun"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def ordered_by(self, project: int, version: str) -> bool:
        """Whether the queue is ordered by `version`, the newest, each task having one prediction of it."""
        row = self.fake.projects[project]
        rows = [r["task"] for r in list(self.fake.predictions.values()) if r["model_version"] == version and r["project"] == project]  # fmt: skip  # noqa: E501
        open_tasks = set(self.tasks[project]) - self.fake.labelled()
        newest = self.store.newest(project)
        return (
            (row["model_version"], row["sampling"]) == (version, "Uncertainty sampling")
            and sorted(set(rows) & open_tasks) == sorted(open_tasks)
            and len(rows) == len(set(rows))
            and newest is not None
            and newest.version == version
            and self.statuses.read(project).phase is Phase.IDLE
        )


def await_(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    for _ in range(int(seconds / 0.05)):
        if condition():
            return
        threading.Event().wait(0.05)
    pytest.fail(f"in vain awaited: {what}")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def site(tmp_path: Path, stack: ExitStack) -> Site:
    """All on this machine."""
    url = stack.enter_context(local_redis(tmp_path))
    fake = FakeLabelStudio()
    stack.enter_context(fake.serving())
    return Site(tmp_path / "models", stack, url, fake)


@pytest.fixture
def net(stack: ExitStack) -> Hosts:
    return stack.enter_context(hosts())


@pytest.fixture
def spread(tmp_path: Path, stack: ExitStack, net: Hosts) -> Site:
    """Redis and Label Studio on a host of their own."""
    prefix = ("ip", "netns", "exec", net.centre)
    socket = tmp_path / "redis.sock"  # the test's own way to it, which no cable is in
    arguments = ["--bind", CENTRE, "--protected-mode", "no", "--unixsocket", str(socket)]
    stack.enter_context(redis_server(arguments, tmp_path, prefix))
    fake = FakeLabelStudio()
    with at(net.centre):
        stack.enter_context(fake.serving(CENTRE))
    return Site(tmp_path / "models", stack, f"redis://{CENTRE}:6379/0", fake, f"unix://{socket}")


def test_projects_are_learned_side_by_side_and_each_by_one(site: Site) -> None:
    names = ("a", "b", "c")
    for name in names:
        site.worker(name)
    for project in site.projects:
        site.label(project, 0)
        for _ in range(5):
            site.ring(project)

    def begun() -> list[int]:
        return sorted(itertools.chain.from_iterable(map(site.begun, names)))

    await_(lambda: begun() == site.projects, "a round of each project")
    site.let(*names)
    for project in site.projects:
        await_(lambda project=project: site.ordered_by(project, "v1"), "an ordered queue")
    assert begun() == site.projects
    assert site.store.check() == []


def test_a_bell_during_the_round_of_another_worker_does_not_wait_for_the_sweep(site: Site) -> None:
    site.worker("first")
    site.label(site.project, 0)
    site.ring(site.project)
    await_(lambda: site.begun("first"), "a round")
    site.worker("second")
    site.label(site.project, 10)
    site.ring(site.project)
    await_(lambda: site.waiting() == [], "somebody to take the bell")
    site.let("first", "second")
    await_(lambda: site.ordered_by(site.project, "v2"), "the second round")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_another_takes_over_from_one_that_ends_in_mid_round(site: Site, number: int) -> None:
    ending = site.worker("ending")
    site.label(site.project, 0)
    site.ring(site.project)
    await_(lambda: site.begun("ending"), "a round")
    site.worker("other")
    if number == signal.SIGKILL:
        site.ring(site.project)  # as somebody's next label
    site.let("other")
    ending.send(number)
    ending.end()
    await_(lambda: site.ordered_by(site.project, "v1"), "an ordered queue")
    assert site.begun("other") == [site.project]
    assert site.store.check() == []


@pytest.mark.parametrize("stubborn", ["0", "1"])
def test_a_host_that_is_cut_off_in_mid_round_is_replaced_and_publishes_nothing(
    spread: Site, net: Hosts, stubborn: str
) -> None:
    """Stubborn: it does not hear that it is to stop, and goes on to the round's end when it is connected again."""
    site = spread
    lost = site.worker("lost", net.command("lost"), SLOW_STUBBORN=stubborn)
    site.label(site.project, 0)
    site.ring(site.project)
    await_(lambda: site.begun("lost"), "a round")
    net.pull_cable("lost")
    site.worker("other", net.command("other"), sweep=1)
    site.let("other")
    await_(lambda: site.ordered_by(site.project, "v1"), "an ordered queue")
    site.label(site.project, 10)
    await_(lambda: site.ordered_by(site.project, "v2"), "the next round")
    net.put_cable_back("lost")
    site.let("lost")
    lost.wait_for("so another worker may be at the project")
    await_(lambda: site.ordered_by(site.project, "v2"), "the order to stay")
    assert site.store.versions(site.project) == ["v1", "v2"]
    assert site.fake.model_versions(site.project).keys() == {"v1", "v2"}
    # it is a worker like others again
    site.label(site.project, 20)
    site.ring(site.project)
    await_(lambda: site.ordered_by(site.project, "v3"), "a round after that")
    assert site.store.check() == []


def test_one_that_slept_while_it_pushed_cannot_point_the_project_at_its_version(site: Site) -> None:
    """Stopped by the system between its predictions and the project's settings, and woken when another took over."""
    asleep = site.worker("asleep")
    site.let("asleep", "other")
    pushed = threading.Event()
    push = site.fake.import_predictions

    def hold_up(project: int, rows: list[dict[str, object]]) -> int:
        if not pushed.is_set():
            asleep.send(signal.SIGSTOP)
            pushed.set()
        return push(project, rows)

    site.fake.import_predictions = hold_up  # type: ignore[method-assign]
    site.label(site.project, 0)
    site.ring(site.project)
    assert pushed.wait(60)
    site.worker("other", sweep=1)
    await_(lambda: site.ordered_by(site.project, "v1"), "an ordered queue by the one that took over")
    site.label(site.project, 10)
    await_(lambda: site.ordered_by(site.project, "v2"), "the next round")
    asleep.send(signal.SIGCONT)
    asleep.wait_for("so another worker may be at the project")
    await_(lambda: site.ordered_by(site.project, "v2"), "the order to stay")
    assert site.store.check() == []
