"""`simulate`: what would active learning have saved on data that are labelled already?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lplgrad_backend.cli.options import open_console
from lplgrad_backend.processors import usable_processors
from lplgrad_backend.settings import read_settings
from lplgrad_backend.simulation import study

Data = Annotated[
    str,
    typer.Argument(
        help="Folder per class, CSV of path and label (several with | between), zip of either, or labelstudio:PROJECT.",
        metavar="DATA",
    ),
]
ColdStart = Annotated[
    bool, typer.Option("--cold-start", help="Begin with the images that the backend asks for first, instead of any.")
]
Preset = Annotated[str | None, typer.Option(help="Training recipe, as in LPLGRAD_PRESET.")]


def simulate(
    data: Data,
    strategies: Annotated[str, typer.Option(help="Names separated by commas, or `all`.")] = ",".join(study.USUAL),
    seeds: Annotated[int, typer.Option(help="Repetitions; a claim of one point takes 15 to 30.", min=1)] = 10,
    budget: Annotated[str, typer.Option(help="FIRST:EACH:LAST labels.")] = "20:20:200",
    cold_start: ColdStart = False,
    preset: Preset = None,
    out: Annotated[Path, typer.Option(help="Where results and finished runs are kept.")] = Path("simulation"),
    processes: Annotated[int, typer.Option(help="Runs at once; 0: one per core.", min=0)] = 0,
) -> None:
    """Replay labelling on labelled images: what would each strategy have saved? Run it again to go on after a stop."""
    asked = study.Study(study.strategies_named(strategies), seeds, study.budget_named(budget, cold_start))
    settings = read_settings({**os.environ, **({"LPLGRAD_PRESET": preset} if preset else {})})
    console = open_console()
    say = partial(console.print, markup=False)
    with _live(console) as progress:
        lines = study.simulate(data, settings, asked, out, processes or usable_processors(), progress, say)
    for line in lines:
        say(line)
    say(f"Written: {out / 'curves.png'}, {out / 'table.md'}, {out / 'results.json'}")


@contextmanager
def _live(console: Console) -> Iterator[study.Progress]:
    """A bar for each thing that is done, with the time it will take."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bars:
        tasks = {what: bars.add_task(what, total=None, visible=False) for what in ("reading images", "runs")}
        yield lambda what, done, total: bars.update(tasks[what], completed=done, total=total, visible=True)
