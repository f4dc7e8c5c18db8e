"""`doctor`: every hop from label to queue."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
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
    if as_json:
        found = list(examine_environment(os.environ, project, url))
        sys.stdout.write(json.dumps(as_plain(found), indent=1) + "\n")
    else:
        found = _show(examine_environment(os.environ, project, url))
    raise typer.Exit(count_failures(found))


def _show(findings: Iterator[Finding]) -> list[Finding]:
    """Print each as it is found, for a Label Studio that does not answer is waited for."""
    shown: list[Finding] = []
    console = open_console()
    for number, of_project in groupby(findings, key=lambda finding: finding.project):
        console.print("This backend" if number is None else f"Project {number}", markup=False)
        for finding in of_project:
            console.print(f"  {finding.outcome.value:8}", style=STYLES[finding.outcome], end="")
            console.print(f"{finding.hop}: {finding.says}", markup=False)
            shown.append(finding)
    console.print(f"{count_failures(shown)} failure(s)")
    return shown
