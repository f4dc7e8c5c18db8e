"""The command line: one function per command, in modules by topic, listed here.

A module is imported when one of its commands is asked for, so that a server which is started again does not wait for what it
does not need.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import typer
from typer.core import TyperGroup

from lplgrad_backend.cli.interruption import interruptible
from lplgrad_backend.cli.options import errors_as_sentences

MODULES: Mapping[str, str] = MappingProxyType(
    {
        "serve": "running",
        "worker": "running",
        "connect": "connecting",
        "doctor": "examining",
        "check": "connecting",
        "status": "rounds",
        "train": "rounds",
        "score": "rounds",
        "versions": "undo",
        "rollback": "undo",
        "export": "exporting",
        "demo": "demonstrating",
        "simulate": "simulating",
        "example": "demonstrating",
    }
)
"""In which module a command is, in the order of the help."""


class Commands(TyperGroup):
    """Those of `MODULES`. typer keeps the types of its contexts and commands to itself."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of them; None: there is no such command."""
        if cmd_name not in MODULES:
            return None
        function = getattr(importlib.import_module(f"{__name__}.{MODULES[cmd_name]}"), cmd_name)
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command()(interruptible(function))
        return typer.main.get_command(alone)


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def described() -> None:
    """LPLgrad active learning for Label Studio: serves the image next whose label teaches the most."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command. Our own errors end it with a sentence and status 1."""
    with errors_as_sentences():
        app(args=list(arguments) if arguments is not None else None, prog_name="python -m lplgrad_backend")
