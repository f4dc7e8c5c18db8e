"""Versions on disk: whole or absent, intact or passed over."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from versions import LABELING, pool_scores, save_version

from lplgrad_backend.checkpoint_file import write_checkpoint
from lplgrad_backend.errors import StoreError, VersionDamaged, VersionNotFound
from lplgrad_backend.store import SCORES, WEIGHTS, Store, for_classes, read_scores, version_number


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def test_an_empty_store_has_nothing(store: Store) -> None:
    assert store.projects() == []
    assert store.versions(1) == []
    assert store.newest(1) is None
    assert store.check() == []


def test_a_version_is_read_as_it_was_saved(store: Store) -> None:
    saved = save_version(store, 1, "v1", digests={"7": "abc"}, unreadable={9: "too large"})
    again = Store(store.folder)
    assert again.newest(1) == saved
    assert again.annotations(1, "v1") == {"7": "abc"}
    assert again.weights(1, "v1")["head.weight"].tolist() == [0, 1, 2, 3]
    scores, expected = again.scores(1, "v1"), pool_scores([(1, "/a.png"), (2, "/b.png")])
    for name in ("tasks", "addresses", "norms", "scores", "probabilities"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(expected, name))
    assert again.check() == []


def test_versions_are_ordered_by_number(store: Store) -> None:
    for version in ("v9", "v10", "v2"):
        save_version(store, 1, version)
    assert store.versions(1) == ["v2", "v9", "v10"]
    newest = store.newest(1)
    assert newest is not None and newest.version == "v10"


def test_projects_are_apart(store: Store) -> None:
    save_version(store, 1, "v1")
    save_version(store, 22, "v1")
    store.delete(1, "v1")
    assert store.newest(1) is None
    assert store.newest(22) is not None


def test_a_version_is_never_overwritten(store: Store) -> None:
    save_version(store, 1, "v1", digests={"1": "first"})
    with pytest.raises(StoreError, match="v1"):
        save_version(store, 1, "v1", digests={"1": "second"})
    assert store.annotations(1, "v1") == {"1": "first"}


@pytest.mark.parametrize("file", [WEIGHTS, SCORES, "annotations.json"])
def test_a_flipped_bit_is_found_and_the_version_before_serves(store: Store, file: str) -> None:
    save_version(store, 1, "v1")
    save_version(store, 1, "v2")
    assert store.manifest(1, "v2").version == "v2"
    path = store.project_folder(1) / "v2" / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(VersionDamaged, match=file):
        store.manifest(1, "v2")
    newest = store.newest(1)
    assert newest is not None and newest.version == "v1"
    assert len(store.check()) == 1


@pytest.mark.parametrize("file", [WEIGHTS, "manifest.json"])
def test_a_truncated_or_missing_file_is_found(store: Store, file: str) -> None:
    save_version(store, 1, "v1")
    path = store.project_folder(1) / "v1" / file
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(VersionDamaged):
        store.weights(1, "v1")
    path.unlink()
    with pytest.raises(VersionDamaged):
        store.weights(1, "v1")
    assert store.newest(1) is None


@pytest.mark.parametrize("name", ["../v1", "v0", "v01", "v-1", "1", "", "v1/..", "v99999999999"])
def test_only_names_of_versions_are_looked_up(store: Store, name: str) -> None:
    with pytest.raises(VersionNotFound):
        version_number(name)
    with pytest.raises(VersionNotFound):
        store.manifest(1, name)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\n"])
def test_a_manifest_names_files_of_its_own_folder_alone(store: Store, name: str) -> None:
    save_version(store, 1, "v1")
    file = store.project_folder(1) / "v1" / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(manifest | {"files": {**manifest["files"], name: "0" * 64}}))
    with pytest.raises(VersionDamaged, match="no valid manifest"):
        store.manifest(1, "v1")


def test_a_missing_version_is_named(store: Store) -> None:
    with pytest.raises(VersionNotFound, match="Project 3 has no version v4"):
        store.scores(3, "v4")


def test_a_checkpoint_ends_with_its_round_and_a_damaged_one_is_reported(store: Store) -> None:
    save_version(store, 7, "v1")
    write_checkpoint(store.checkpoint_path(7), "key", (1, 2), {"a": np.zeros(3)})
    assert store.check() == []
    store.checkpoint_path(7).write_bytes(store.checkpoint_path(7).read_bytes()[:-1])
    assert store.check() == ["Project 7: its checkpoint is damaged; the next round begins without it."]
    save_version(store, 7, "v2")
    assert not store.checkpoint_path(7).exists()


def test_leftovers_are_reported_and_tidied(store: Store) -> None:
    save_version(store, 1, "v1")
    (store.project_folder(1) / ".v2.abc.tmp").mkdir()
    (store.scratch_folder / "1-abc").mkdir(parents=True)
    (store.scratch_folder / "12-abc").mkdir()
    assert len(store.check()) == 3
    store.tidy(1)
    assert store.check() == ["scratch/12-abc was left by an interrupted round."]
    assert [path.name for path in store.scratch_folder.iterdir()] == ["12-abc"]


def test_a_full_disk_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError):
        store.save(
            {"project": 1, "version": "v1", "labeling": LABELING}, tmp_path / "no such file", {}, pool_scores([])
        )
    assert list(store.project_folder(1).iterdir()) == []


def test_a_position_needs_task_and_address() -> None:
    scores = pool_scores([(3, "/a.png"), (8, "/b.png")])
    assert scores.position(3, "/a.png") == 0
    assert scores.position(8, "/b.png") == 1
    assert scores.position(8, "/changed.png") is None
    assert scores.position(5, "/a.png") is None
    assert scores.position(99, "/a.png") is None
    assert pool_scores([]).position(1, "/a.png") is None


def test_classes_are_matched_by_name() -> None:
    probabilities = np.array([[0.7, 0.3]], dtype=np.float32)
    assert for_classes(probabilities, ("a", "b"), ("a", "b")) is probabilities
    np.testing.assert_allclose(for_classes(probabilities, ("a", "b"), ("b", "new", "a")), [[0.3, 0.0, 0.7]])


def test_scores_of_releases_that_kept_less_are_read(tmp_path: Path) -> None:
    kept = pool_scores([(1, "/a"), (2, "/b")])
    older = {name: getattr(kept, name) for name in ("tasks", "addresses", "norms", "scores", "probabilities")}
    safetensors.numpy.save_file(older, tmp_path / "scores.safetensors")
    found = read_scores(tmp_path / "scores.safetensors")
    assert found.worth.tolist() == kept.norms.tolist()
    assert np.isnan(found.predicted_losses).all() and not found.random.any()
