"""`doctor`: every hop from label to queue."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Annotated

import typer

from lplgrad_backend.cli.options import open_console
from lplgrad_backend.doctor import Finding, Outcome, as_plain, count_failures, examine_environment

STYLES = {Outcome.OK: "green", Outcome.FAILED: "bold red", Outcome.SKIPPED: "dim"}


def doctor(
    project: Annotated[
        int | None, typer.Option(help="Number of the Label Studio project; without, all that are known.", min=1)
    ] = None,
    url: Annotated[str | None, typer.Option(help="Address of this backend as Label Studio reaches it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look at every hop from label to queue, and say what mends it. Exits with the number of failures."""
    found = examine_environment(os.environ, project, url)
    if as_json:
        sys.stdout.write(json.dumps(as_plain(found), indent=1) + "\n")
    else:
        _show(found)
    raise typer.Exit(count_failures(found))


def _show(findings: Sequence[Finding]) -> None:
    console = open_console()
    for number, of_project in groupby(findings, key=lambda finding: finding.project):
        console.print("This backend" if number is None else f"Project {number}", markup=False)
        for finding in of_project:
            console.print(f"  {finding.outcome.value:8}", style=STYLES[finding.outcome], end="")
            console.print(f"{finding.hop}: {finding.says}", markup=False)
    console.print(f"{count_failures(findings)} failure(s)")
