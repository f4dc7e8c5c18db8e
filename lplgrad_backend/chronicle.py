"""Keeps a project's history in step with what the worker reads, makes and shows. For the holder of the project's lock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from lplgrad_backend.errors import StoreError
from lplgrad_backend.history import History, Suspect, read_history, with_choices, with_version, write_history
from lplgrad_backend.labeling import Example, Labeling
from lplgrad_backend.random_share import with_missed, with_shown
from lplgrad_backend.store import Manifest, PoolScores, Store, version_number


class Chronicle:
    """The history of one project. Whatever changes it raises StoreError where the disk refuses."""

    def __init__(self, store: Store, project: int) -> None:
        self._store, self._project = store, project

    def read(self) -> History:
        """What is kept by now."""
        return read_history(self._store, self._project)

    def catch_up(self) -> None:
        """Note versions that a process saved and was killed before it noted them. What it alone knew, image addresses and
        suspected mistakes, comes with the next round."""
        known = history = self.read()
        last = version_number(history.newest.version) if history.newest else 0
        for version in self._store.versions(self._project):
            if version_number(version) > last:
                with suppress(StoreError):  # a damaged one is no version
                    manifest = self._store.manifest(self._project, version)
                    scores = self._store.scores(self._project, version)
                    side = int(manifest.architecture.get("side", 0))
                    history = with_version(history, manifest, scores, {}, (), side)
        if history != known:
            self._write(history)

    def labels_read(self, labeling: Labeling, examples: Sequence[Example], shown: str | None) -> None:
        """All labels were read, while the queue of version `shown` was in charge."""
        known = self.read()
        compared = with_choices(known, self._store, self._project, labeling, examples)
        compared = with_shown(compared, self._store, self._project, labeling, examples, shown)
        if compared != known:
            self._write(compared)

    def version_made(
        self,
        manifest: Manifest,
        scores: PoolScores,
        addresses: Mapping[int, str],
        suspects: Sequence[Suspect],
        side: int,
    ) -> None:
        """A round ended; arguments as of `with_version`."""
        self._write(with_version(self.read(), manifest, scores, addresses, suspects, side))

    def queue_shown(self, manifest: Manifest, unlabelled: Iterable[int]) -> None:
        """The queue of a new version is about to be shown; what of its pool has a label by now it did not ask for."""
        pool = set(self._store.scores(self._project, manifest.version).tasks.tolist())
        self._write(with_missed(self.read(), manifest.version, pool.difference(unlabelled)))

    def _write(self, history: History) -> None:
        write_history(self._store, self._project, history)
