"""A worker that scores shards of another's round: in a child, as long as there are some that nobody is at."""

from __future__ import annotations

import logging

from lplgrad_backend.errors import LPLGradError, StoreError
from lplgrad_backend.learner import Heavy
from lplgrad_backend.locks import open_redis
from lplgrad_backend.logs import about
from lplgrad_backend.rounds import Order, RoundStopped, Stop
from lplgrad_backend.settings import Settings
from lplgrad_backend.shards import Board, Claims, Plan
from lplgrad_backend.store import Store

log = logging.getLogger(__name__)


def assist(name: str, settings: Settings, stop: Stop, heavy: Heavy) -> None:
    """Help with the round whose folder has this name. Nothing when it is over, or others do all of it.

    Whatever ends this early costs time alone: the round's owner scores what is left.

    Args:
        name: as it came from the queue, so of anybody.
    """
    if settings.queue_url is None:
        return
    with open_redis(settings.queue_url) as client:
        try:
            board = Board(Store(settings.model_dir).scratch_folder, name, Claims(client, settings.lock_seconds))
        except StoreError as error:
            log.warning("%s", error)
            return
        plan = board.plan()
        if plan is not None and board.has_work(plan):
            _help(board, plan, settings, stop, heavy)


def _help(board: Board, plan: Plan, settings: Settings, stop: Stop, heavy: Heavy) -> None:
    order = Order(project=plan.project, labeling=plan.labeling, pool=[], helps=board.name)
    with about(project=plan.project, job=plan.about.job, version=None):
        log.info("project %d: scores shards of %s", plan.project, board.name)
        try:
            heavy(order, board.helper_folder(), settings, lambda progress: None, stop)
        except RoundStopped:
            return
        except LPLGradError as error:
            log.log(logging.WARNING if board.is_open else logging.DEBUG, "project %d: %s", plan.project, error)
