"""The short form of `make chaos`: a kill in each phase of a round, a storm of webhooks, two backends; nothing is lost."""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from chaos_kills import one_round
from chaos_stage import KEEP, ChaosStage, chaos_stage
from learner_stage import choice

from lplgrad_backend.demo.process import free_port

Sent = tuple[str, str, object, Mapping[str, str]]
Call = Callable[[str, str, object, Mapping[str, str]], tuple[int, Any]]

pytestmark = pytest.mark.timeout(400)

PACE = 0.2  # seconds that Label Studio takes before and after each step, so that it can be met in each
SURE = (
    ("reading", "worker"),
    ("loading", "trainer"),
    ("pushing", "worker"),
    ("pointing", "server"),
    ("deleting", "worker"),
)
# may be over when they are looked for, and the round with them
FLEETING = (
    ("training", "trainer"),
    ("saving", "worker"),
)
ROUNDS = 4


def test_a_kill_in_each_phase_of_a_round_loses_nothing(tmp_path: Path) -> None:
    random, left = np.random.default_rng(0), list(SURE)
    with chaos_stage(tmp_path, PACE) as stage:
        for _ in range(KEEP):  # the next round has a version to delete
            one_round(stage, (), random)
        for _ in range(ROUNDS):
            done = [(kill.meant, kill.victim) for kill in one_round(stage, left, random).kills]
            left = [pair for pair in left if pair not in done]
            if not left:
                break
        assert not left
        for pair in FLEETING:
            one_round(stage, [pair], random)


class Weather:
    """Between Label Studio and the backend: each webhook arrives, arrives twice, late, or not at all."""

    def __init__(self, call: Call) -> None:
        self._call, self._seen, self._late = call, itertools.count(), deque[Sent]()
        self.statuses: Counter[int] = Counter()

    def __call__(self, method: str, url: str, body: object, headers: Mapping[str, str]) -> tuple[int, Any]:
        sent = method, url, body, headers
        if not url.endswith("/webhook"):
            return self._call(*sent)
        number = next(self._seen)
        if number % 4 == 1:
            raise OSError("lost on its way")
        if number % 4 == 2:
            self._late.append(sent)
            return 200, {}
        for _ in range(1 + number % 4 // 3):
            self._deliver(sent)
        while self._late and number % 8 == 0:
            self._deliver(self._late.popleft())
        return 200, {}

    def _deliver(self, sent: Sent) -> None:
        status, _ = self._call(*sent)
        self.statuses[status] += 1


def person(stage: ChaosStage, name: str, labels: int, calls: int) -> Counter[int]:
    """Labels what is served, and beside that lets `calls` more webhooks come than anybody caused; their statuses."""
    body = {"action": "ANNOTATION_UPDATED", "project": {"id": stage.project}, "annotation": {"id": 10**6}}
    statuses: Counter[int] = Counter()
    with requests.Session() as session:
        for _ in range(labels):
            task = stage.fake.next_task(stage.project, name)
            stage.fake.annotate(
                task["id"], {"result": choice("cat" if "cat" in task["data"]["image"] else "dog")}, name
            )
            for _ in range(calls // labels):
                statuses[session.post(f"{stage.url}/webhook", json=body, timeout=60).status_code] += 1
    return statuses


def test_twenty_people_and_two_thousand_webhooks_while_a_round_runs_lose_nothing(tmp_path: Path) -> None:
    with chaos_stage(tmp_path, LPLGRAD_SWEEP_SECONDS="2") as stage:
        stage.add_tasks(100)
        stage.label()
        stage.wait_until(lambda: stage.status.round_started is not None, "a round")
        assert stage.fake.call is not None
        stage.fake.call = weather = Weather(stage.fake.call)
        with ThreadPoolExecutor(20) as people:
            asked = [people.submit(person, stage, f"{number}@example.com", 5, 95) for number in range(20)]
            statuses = sum((one.result() for one in asked), Counter())
        assert statuses == Counter({201: 1900})
        assert set(weather.statuses) == {201} and weather.statuses[201] >= 60
        stage.label()  # what came last may be too little for a round
        stage.settle()
        assert len(stage.fake.annotations) == 4 + 100 + 4


def test_two_backends_on_one_folder_take_turns(tmp_path: Path) -> None:
    with chaos_stage(tmp_path, LPLGRAD_SWEEP_SECONDS="2") as stage:
        first, port = stage.servers[0], free_port()
        stage.serve(port)
        second = f"http://127.0.0.1:{port}"
        stage.wait_until(lambda: stage.is_up(second), "the second backend")
        stage.label()
        most = 0

        def has_trained() -> bool:
            nonlocal most
            most = max(most, list(stage.processes().values()).count("trainer"))
            return stage.status.published == "v1" and not stage.status.busy

        stage.wait_until(has_trained, "v1")
        assert most == 1
        first.kill()
        stage.url = second
        stage.label()
        stage.settle()  # by what is left: one server, one worker
        assert stage.status.published == "v2"
