"""Ctrl-C, and SIGTERM as supervisors send it, end a command in order: status 130, and a sentence instead of a traceback."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ParamSpec

import typer
from rich.console import Console

INTERRUPTED = 130  # as a shell says of a program that SIGINT ended
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Arguments = ParamSpec("Arguments")
Handler = Callable[[int, FrameType | None], object]


def interruptible(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """The same command, ended by KeyboardInterrupt with a sentence; SIGTERM raises that too. Commands that run until they
    are ended put handlers of their own in its place."""

    @functools.wraps(command)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        with _handled_by(signal.default_int_handler):
            try:
                command(*args, **kwargs)
            except KeyboardInterrupt:
                said = "Stopped. What was finished is kept; run the command again to go on."
                Console(stderr=True, soft_wrap=True, highlight=False).print(said, markup=False)
                raise typer.Exit(INTERRUPTED) from None

    return run


@contextmanager
def stop_on_interrupt(console: Console) -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; the second one raises KeyboardInterrupt, as the first usually does."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)
        stop.set()
        console.print("Stopping. Nothing is lost but this round; press Ctrl-C again to leave at once.", markup=False)

    with _handled_by(handle):
        yield stop


@contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    """Only the main thread may handle signals; in any other the block runs as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, handler) for number in SIGNALS]
    try:
        yield
    finally:
        for number, known in zip(SIGNALS, before, strict=True):
            signal.signal(number, known)
