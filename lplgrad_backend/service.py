"""The parts of one running backend, joined once from the settings."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

from lplgrad_backend.jobs import Jobs, Queue, open_queue
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.learner import Learner
from lplgrad_backend.locks import open_locks
from lplgrad_backend.predictor import Predictor
from lplgrad_backend.settings import Settings, read_settings
from lplgrad_backend.sources import open_images, open_label_studio
from lplgrad_backend.status import Mark, StatusFolder
from lplgrad_backend.store import Store


@dataclass(frozen=True)
class Service:
    """Everything the hooks, the endpoints and the worker stand on."""

    settings: Settings
    store: Store
    statuses: StatusFolder
    label_studio: LabelStudio | None
    learner: Learner
    predictor: Predictor
    jobs: Jobs

    def ask(self, project: int, *marks: Mark) -> None:
        """Leave marks for the worker and ring the project's bell.

        Raises:
            StoreError: MODEL_DIR refuses.
        """
        for mark in marks:
            self.statuses.set_mark(project, mark)
        self.jobs.ring(project)


def build_service(settings: Settings, queue: Queue | None = None) -> Service:
    """Join the parts. Opens the queue; touches nothing else yet."""
    store, statuses = Store(settings.model_dir), StatusFolder(settings.model_dir, open_locks(settings))
    label_studio = open_label_studio(settings)
    learner = Learner(settings, store, statuses, label_studio)
    return Service(
        settings=settings,
        store=store,
        statuses=statuses,
        label_studio=label_studio,
        learner=learner,
        predictor=Predictor(settings, store, open_images(settings, label_studio)),
        jobs=Jobs(queue or open_queue(settings.queue_url, settings.model_dir), learner.reconcile),
    )


@functools.cache
def service_of_environment() -> Service:
    """The service that the process's environment describes, joined at the first call."""
    return build_service(read_settings(os.environ))
