"""`demo` and `example`: digits to label, in a Label Studio of our own or in one that is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lplgrad_backend.cli.options import Port, not_an_argument
from lplgrad_backend.demo import run as demo_run
from lplgrad_backend.demo.example import make_example
from lplgrad_backend.settings import read_settings


def demo(
    auto: Annotated[int, typer.Option(help="Let a program label this many images.", min=0)] = 0,
    port: Port = 9090,
    label_studio_port: Annotated[int, typer.Option(help="Port of the demo's Label Studio.")] = 8080,
    folder: Annotated[Path, typer.Option(help="Where all of the demo is kept.")] = Path(".label-studio/demo"),
    python: Annotated[Path, typer.Option(help="Interpreter of Label Studio's own environment.")] = Path(
        ".label-studio/venv/bin/python"
    ),
) -> None:
    """Run a real Label Studio with digits to label, connected to this backend."""
    demo_run.run(
        read_settings(os.environ),
        python=python,
        folder=folder,
        auto=auto,
        port=port,
        label_studio_port=label_studio_port,
    )


def example(
    email: Annotated[str, typer.Option(envvar="LABEL_STUDIO_USERNAME", help="Whose project it becomes.")],
    password: Annotated[
        str,
        typer.Option(
            envvar="LABEL_STUDIO_PASSWORD",
            prompt=True,
            hide_input=True,
            callback=not_an_argument,
            help="That person's password; not as an argument, which everybody on this machine can read.",
        ),
    ],
    labels: Annotated[int, typer.Option(help="Digits that a program labels, for the first round.", min=0)] = 10,
) -> None:
    """Make the demo's project in the Label Studio that is set, connect it, and wait until its queue is ordered."""
    make_example(read_settings(os.environ), email, password, labels)
