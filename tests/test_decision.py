"""Whether a round is due, decided purely."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from versions import LABELING, save_version

from lplgrad_backend.decision import needs_reading, verdict
from lplgrad_backend.labeling import Annotations, Example, Labeling
from lplgrad_backend.status import Mark, ProjectStatus
from lplgrad_backend.store import Store


def annotations(*labels: str) -> Annotations:
    examples = tuple(
        Example(n, f"/{n}", tuple(float(name == label) for name in LABELING.classes)) for n, label in enumerate(labels)
    )
    return Annotations(examples, {str(n): label for n, label in enumerate(labels)})


@given(
    labels=st.lists(st.sampled_from(["cat", "dog"]), max_size=12),
    known=st.integers(0, 12),
    asked=st.booleans(),
    each=st.integers(1, 8),
)
def test_the_verdict_is_the_rule(labels: list[str], known: int, asked: bool, each: int) -> None:
    found = annotations(*labels)
    before = {key: value for key, value in found.digests.items() if int(key) < known}
    decided = verdict(LABELING, found, None, before, asked=asked, updates_per_round=each)
    changes = len(labels) - len(before)
    assert decided.due == (len(set(labels)) == 2 and (asked or changes >= each))
    assert decided.reason


def test_a_changed_labeling_is_due_at_once(tmp_path: Path) -> None:
    newest = save_version(Store(tmp_path), 1, "v1")
    wider = Labeling("kind", "image", "image", ("cat", "dog", "owl"), False)
    found = annotations("cat", "dog")
    unchanged = verdict(LABELING, found, newest, found.digests, asked=False, updates_per_round=5)
    changed = Annotations(tuple(Example(e.task_id, e.uri, (*e.target, 0.0)) for e in found.examples), found.digests)
    assert not unchanged.due
    assert verdict(wider, changed, newest, found.digests, asked=False, updates_per_round=5).due


def test_annotations_are_read_only_when_they_may_decide() -> None:
    status = ProjectStatus(project=1, annotations_seen=20, changes=3)
    assert not needs_reading(status, 25, {}, 10, age=60)
    assert needs_reading(status, 27, {}, 10, age=60)
    assert needs_reading(status, 13, {}, 10, age=60)
    assert needs_reading(status, 20, {Mark.ANNOTATIONS: "x"}, 10, age=60)
    assert needs_reading(status, 20, {}, 10, age=7200)
    assert needs_reading(status, None, {}, 10, age=60)
    assert needs_reading(ProjectStatus(project=1), 0, {}, 10, age=60)
    assert not needs_reading(status, 20, {Mark.TASKS: "x"}, 10, age=60)
