"""Many runs, in processes of one thread each. Every one that has ended is kept whole at once, so that what is interrupted
goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path

import torch

from lplgrad_backend.errors import LPLGradError, NonFiniteScore, TrainingError
from lplgrad_backend.files import write_whole
from lplgrad_backend.simulation.material import Budget, Material
from lplgrad_backend.simulation.replay import Replay, Run

Wanted = tuple[str, int]
"""A strategy's name and a seed."""


@dataclass(frozen=True)
class Diverged:
    """A run without a result: a loss or a score grew beyond all numbers, as it may at the rate of the preset `paper`."""

    strategy: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Ended:
    """What became of the runs that were wanted, both in their order."""

    runs: list[Run]
    diverged: list[Diverged]


@dataclass
class _Desk:
    """What a worker process works with; set once when it starts."""

    replay: Replay | None = None


_DESK = _Desk()


def wanted_runs(strategies: Sequence[str], seeds: int) -> list[Wanted]:
    """Seed by seed, so that what is there when a simulation is stopped can be compared."""
    return [(strategy, seed) for seed in range(seeds) for strategy in strategies]


class RunFolder:
    """Runs that ended, a file each. One that diverged would do so again, so that is kept as well."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, wanted: Iterable[Wanted]) -> dict[Wanted, Run | Diverged]:
        """Those of the wanted runs that are there. One that cannot be read counts as missing: it is made anew."""
        found: dict[Wanted, Run | Diverged] = {}
        for one in wanted:
            try:
                values = json.loads(self._file(one).read_bytes())
                found[one] = Diverged(**values) if "reason" in values else Run.from_plain(values)
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return found

    def keep(self, one: Run | Diverged) -> None:
        """Write what became of a run, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(asdict(one), allow_nan=False).encode()
        write_whole(self._file((one.strategy, one.seed)), content, durable=False)

    def _file(self, wanted: Wanted) -> Path:
        return self._folder / f"{wanted[0]}-{wanted[1]}.json"


def run_all(
    material: Material,
    budget: Budget,
    wanted: Sequence[Wanted],
    folder: Path,
    processes: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Ended:
    """The wanted runs; those already in `folder` are not made again.

    Args:
        folder: of this material and budget alone.
        report: told how many runs have ended, of how many, now and whenever one does.

    Raises:
        TrainingError: the data cannot be learned from within this budget.
    """
    kept = RunFolder(folder)
    done = kept.read(wanted)
    missing = [one for one in wanted if one not in done]
    report(len(done), len(wanted))
    if missing:
        for ended in _each(material, budget, missing, processes):
            kept.keep(ended)
            done[ended.strategy, ended.seed] = ended
            report(len(done), len(wanted))
    in_order = [done[one] for one in wanted]
    return Ended(
        [one for one in in_order if isinstance(one, Run)], [one for one in in_order if isinstance(one, Diverged)]
    )


def _each(material: Material, budget: Budget, missing: Sequence[Wanted], processes: int) -> Iterator[Run | Diverged]:
    """The runs as they end. However that goes, no process is left behind: their parent's end ends them."""
    pool = ProcessPoolExecutor(
        min(processes, len(missing)), get_context("spawn"), initializer=_begin, initargs=(material, budget)
    )
    try:
        with _deaf_to_interrupts():
            open_ones: set[Future[Run | Diverged | str]] = {pool.submit(_run, *one) for one in missing}
        while open_ones:
            ended, open_ones = wait(open_ones, return_when=FIRST_COMPLETED)
            for future in ended:
                one = future.result()
                if isinstance(one, str):
                    raise TrainingError(one)
                yield one
    finally:
        _end(pool)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that start in this block stay deaf to the terminal's Ctrl-C, which is their parent's to answer."""
    if threading.current_thread() is not threading.main_thread():  # only that one may say how signals are handled
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(pool: ProcessPoolExecutor) -> None:
    """End the processes at once, whatever they are at: a run takes minutes, and nothing of an open one is kept."""
    workers = list((pool._processes or {}).values())  # the executor itself only waits for them
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()


def _begin(material: Material, budget: Budget) -> None:
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _DESK.replay = Replay(material, budget)


def _leave_with_parent() -> None:
    """A process of a pool waits for ever for work, also from a parent that was killed."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _run(strategy: str, seed: int) -> Run | Diverged | str:
    """A run, or why there can be none: our errors do not travel between processes, their sentences do."""
    assert _DESK.replay is not None
    try:
        return _DESK.replay.run(strategy, seed)
    except (TrainingError, NonFiniteScore) as error:
        return Diverged(strategy, seed, str(error))
    except LPLGradError as error:
        return f"Strategy {strategy}, seed {seed}: {error}"
