"""The demo's parts: digits on disk, child processes, a real Label Studio, the annotator."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from rich.console import Console

from lplgrad_backend.demo.annotator import Annotator
from lplgrad_backend.demo.dataset import CLASSES, LABEL_CONFIG, Digits, write_digits
from lplgrad_backend.demo.person import Person
from lplgrad_backend.demo.process import ChildProcess, DemoError, free_port, wait_for
from lplgrad_backend.demo.server import LabelStudioServer
from lplgrad_backend.demo.session import Round, add_round, play, sentence, table
from lplgrad_backend.errors import LabelStudioError, LabelStudioUnreachable
from lplgrad_backend.labeling import parse_label_config

THIS_PYTHON = Path(sys.executable)


class TestDigits:
    def test_pool_and_held_out_are_disjoint_and_complete(self, tmp_path: Path) -> None:
        digits = write_digits(tmp_path, pool=1000)
        files = [digit.file for digit in digits.pool + digits.held_out]
        assert (len(digits.pool), len(digits.held_out)) == (1000, 797)
        assert len(set(files)) == 1797 == len(digits.truth)
        assert {digit.label for digit in digits.pool} == {digit.label for digit in digits.held_out} == set(CLASSES)

    def test_a_seed_repeats_the_division_and_another_changes_it(self, tmp_path: Path) -> None:
        def pool(seed: int) -> list[str]:
            return [digit.file.name for digit in write_digits(tmp_path, pool=20, held_out=5, seed=seed).pool]

        assert pool(1) == pool(1) != pool(2)

    def test_enlarging_repeats_pixels(self, tmp_path: Path) -> None:
        small = write_digits(tmp_path / "small", pool=1, held_out=0).pool[0]
        large = write_digits(tmp_path / "large", pool=1, held_out=0, side=32).pool[0]
        with Image.open(small.file) as before, Image.open(large.file) as after:
            assert (before.size, after.size, before.mode) == ((8, 8), (32, 32), "L")
            np.testing.assert_array_equal(np.asarray(after)[::4, ::4], np.asarray(before))
            assert np.asarray(before).max() > 200

    def test_the_label_config_asks_for_the_classes(self) -> None:
        labeling = parse_label_config(LABEL_CONFIG)
        assert labeling.classes == CLASSES
        assert not labeling.multiple


class TestChildProcess:
    def serve(self, tmp_path: Path, *arguments: str) -> ChildProcess:
        return ChildProcess(THIS_PYTHON, "http.server", arguments, environment={}, log=tmp_path / "child.log")

    def test_it_runs_until_it_is_stopped(self, tmp_path: Path) -> None:
        port = free_port()
        with self.serve(tmp_path, "--bind", "127.0.0.1", str(port)) as child:
            child.wait_until(lambda: answers(port), "the file server", seconds=30)
        assert not answers(port)
        assert not is_running(child.pid)

    def test_one_that_fails_says_its_last_words(self, tmp_path: Path) -> None:
        with self.serve(tmp_path, "--no-such-option") as child, pytest.raises(DemoError, match="unrecognized"):
            child.wait_until(lambda: False, "nothing", seconds=30)

    def test_waiting_ends(self, tmp_path: Path) -> None:
        with self.serve(tmp_path, str(free_port())) as child, pytest.raises(DemoError, match="in vain for rain"):
            child.wait_until(lambda: False, "rain", seconds=0.3)

    def test_it_ends_when_its_parent_is_killed(self, tmp_path: Path) -> None:
        program = (
            "import sys, signal; from pathlib import Path; from lplgrad_backend.demo.process import ChildProcess\n"
            f"child = ChildProcess(Path(sys.executable), 'http.server', ['{free_port()}'], environment={{}},\n"
            f"                     log=Path({str(tmp_path / 'child.log')!r}))\n"
            "print(child.pid, flush=True); signal.pause()"
        )
        parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        with parent:
            assert parent.stdout
            child = int(parent.stdout.readline())
            assert is_running(child)
            parent.kill()
        assert wait_for(lambda: not is_running(child), "the child's end", seconds=30)


def answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}", timeout=5).ok
    except requests.RequestException:
        return False


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class ScriptedAnnotator:
    """Labels tasks 0, 1, 2, … of a pool and makes a version whenever so many are labelled."""

    def __init__(self, pool: int, updates_per_round: int) -> None:
        self.left, self.updates_per_round, self.done = pool, updates_per_round, 0

    def label(self, count: int) -> Iterator[int]:
        for _ in range(min(count, self.left)):
            self.left -= 1
            self.done += 1
            yield self.done

    def version(self) -> str | None:
        rounds = self.done // self.updates_per_round
        return f"v{rounds}" if rounds else None


class TestSession:
    def play(self, labels: int, *, pool: int = 100) -> list[Round]:
        """The table's rows at the end."""
        annotator, rounds = ScriptedAnnotator(pool, 10), list[Round]()
        for latest in play(annotator, labels, 10, annotator.version, lambda: annotator.done / 100):
            rounds = add_round(rounds, latest)
        return rounds

    def test_a_row_per_round_and_one_for_the_labels_after_the_last(self) -> None:
        first, second, after = self.play(25)
        assert (first.version, first.labels, first.accuracy) == ("v1", 10, 0.1)
        assert (second.version, second.labels, second.accuracy) == ("v2", 20, 0.2)
        assert (after.version, after.labels, after.accuracy) == (None, 25, None)

    def test_it_ends_with_the_pool(self) -> None:
        assert [entry.labels for entry in self.play(60, pool=15)] == [10, 15]

    def test_the_table_shows_what_is_known(self) -> None:
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(table([Round(10, "v1", 12.34, 0.875), Round(20, seconds=3.0), Round(21)], held_out=8))
        text = console.export_text()
        for shown in ("v1", "12.3", "87.5%", "learning", "labelling", "8 held-out images"):
            assert shown in text

    def test_a_finished_round_is_a_line_of_a_log(self) -> None:
        said = "v1: 10 labels, reordered after 12.3 s, held-out accuracy 87.5%"
        assert sentence(Round(10, "v1", 12.34, 0.875)) == said


@pytest.fixture(scope="module")
def project(owner: Person, digits: Digits) -> int:
    """A project of the digits, without a backend."""
    project = owner.create_project("Demo's parts", LABEL_CONFIG)
    owner.upload(project, [digit.file for digit in digits.pool])
    return project


@pytest.mark.e2e
@pytest.mark.timeout(400)
class TestLabelStudio:
    def annotations(self, owner: Person, project: int) -> dict[int, list[str]]:
        """What the export says was chosen, by task."""
        exported = owner.call("GET", f"/api/projects/{project}/export?exportType=JSON")
        return {
            task["id"]: [
                choice
                for annotation in task["annotations"]
                for region in annotation["result"]
                for choice in region["value"]["choices"]
            ]
            for task in exported
        }

    def test_every_file_becomes_a_task(self, owner: Person, project: int) -> None:
        assert owner.call("GET", f"/api/projects/{project}/")["task_number"] == 250

    def test_the_annotator_labels_what_is_served_with_the_truth(
        self, owner: Person, project: int, digits: Digits
    ) -> None:
        annotator = Annotator(owner, project, parse_label_config(LABEL_CONFIG), digits.truth)
        labelled = list(annotator.label(12))
        assert len(set(labelled)) == 12
        chosen = self.annotations(owner, project)
        for task_id in labelled:
            task = owner.call("GET", f"/api/tasks/{task_id}/")
            assert chosen[task_id] == [annotator.true_label(task)]

    def test_a_person_skips_changes_and_deletes(self, owner: Person, project: int, digits: Digits) -> None:
        annotator = Annotator(owner, project, parse_label_config(LABEL_CONFIG), digits.truth)
        skipped = owner.next_task(project)
        assert skipped
        owner.skip(skipped["id"])
        labelled = owner.next_task(project)
        assert labelled
        assert labelled["id"] != skipped["id"]
        annotation = owner.annotate(labelled["id"], annotator.result("3"))
        owner.change(annotation, annotator.result("7"))
        assert self.annotations(owner, project)[labelled["id"]] == ["7"]
        owner.delete(annotation)
        assert labelled["id"] not in self.annotations(owner, project)

    def test_an_empty_project_serves_nothing(self, owner: Person) -> None:
        project = owner.create_project("Nothing to do", LABEL_CONFIG)
        annotator = Annotator(owner, project, parse_label_config(LABEL_CONFIG), {})
        assert list(annotator.label(3)) == []

    def test_two_people_get_different_tasks(self, label_studio: LabelStudioServer, owner: Person, project: int) -> None:
        with Person(label_studio.url, "second@example.com", "another long 9 password", new=True) as second:
            first_task, second_task = owner.next_task(project), second.next_task(project)
            assert first_task
            assert second_task
            assert first_task["id"] != second_task["id"]
            assert second.legacy_token() != owner.legacy_token() == label_studio.account.token

    def test_a_wrong_password_is_said(self, label_studio: LabelStudioServer) -> None:
        with pytest.raises(LabelStudioError, match="wrong password"):
            Person(label_studio.url, label_studio.account.email, "wrong")

    def test_the_account_is_private(self, label_studio: LabelStudioServer) -> None:
        assert stat.S_IMODE((label_studio.folder / "account.json").stat().st_mode) == 0o600

    def test_nobody_there_is_said(self) -> None:
        with pytest.raises(LabelStudioUnreachable):
            Person(f"http://127.0.0.1:{free_port()}", "a@example.com", "b")
