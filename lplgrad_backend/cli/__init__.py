"""The command line: one function per command, in modules by topic, listed here."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from lplgrad_backend.cli.connecting import check, connect
from lplgrad_backend.cli.examining import doctor
from lplgrad_backend.cli.exporting import export
from lplgrad_backend.cli.interruption import interruptible
from lplgrad_backend.cli.options import errors_as_sentences
from lplgrad_backend.cli.rounds import score, status, train
from lplgrad_backend.cli.running import demo, example, serve, worker
from lplgrad_backend.cli.simulating import simulate
from lplgrad_backend.cli.template import start
from lplgrad_backend.cli.undo import rollback, versions

__all__ = ["app", "main", "start"]

app = typer.Typer(
    help="LPLgrad active learning for Label Studio: serves the image next whose label teaches the most.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
COMMANDS = (
    serve, worker, connect, doctor, check, status, train, score, versions, rollback, export, demo, simulate, example,
)  # fmt: skip
for command in COMMANDS:
    app.command()(interruptible(command))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Our own errors end it with a sentence and status 1."""
    with errors_as_sentences():
        app(args=list(arguments) if arguments is not None else None, prog_name="python -m lplgrad_backend")
