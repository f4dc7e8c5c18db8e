"""What several commands share: options, and how they reach Label Studio and the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console

from lplgrad_backend.errors import LPLGradError, SettingsError
from lplgrad_backend.labelstudio import LabelStudio
from lplgrad_backend.settings import Settings
from lplgrad_backend.sources import open_label_studio

EVERYWHERE = "0.0.0.0"  # Label Studio is often in a container or on another machine  # nosec B104
Host = Annotated[str, typer.Option(help="Address to listen on; 127.0.0.1 lets in this machine alone.")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=0, max=65535)]
Project = Annotated[int, typer.Option(help="Number of the Label Studio project, as in its address.", min=1)]


def not_an_argument(context: typer.Context, parameter: typer.CallbackParam, value: str) -> str:
    """Refuses a secret that stands among a program's arguments."""
    source = context.get_parameter_source(str(parameter.name))
    if source is not None and source.name == "COMMANDLINE":
        raise SettingsError(
            f"--{parameter.name}", "***", f"nothing; give it as {parameter.envvar}, or when asked for it"
        )
    return value


def open_console() -> Console:
    """Where commands print sentences: none is broken into lines or coloured by what it looks like."""
    return Console(soft_wrap=True, highlight=False)


def needed_label_studio(settings: Settings) -> LabelStudio:
    """The client of Label Studio.

    Raises:
        SettingsError: its address or the token is not set.
    """
    client = open_label_studio(settings)
    if client is None:
        name = "LABEL_STUDIO_URL" if settings.label_studio_url is None else "LABEL_STUDIO_API_KEY"
        raise SettingsError(name, None, "Label Studio's address and a user's token, in the environment or in .env")
    return client


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Our own errors end the process with a sentence and status 1."""
    try:
        yield
    except LPLGradError as error:
        Console(stderr=True, soft_wrap=True).print(str(error), style="red", markup=False, highlight=False)
        sys.exit(1)
