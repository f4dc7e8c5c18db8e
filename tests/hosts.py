"""Hosts of their own on one machine: network namespaces around a switch, each with a cable that can be pulled.

They are made and removed here and touch none of the machine's own network. Wants root and Linux, as CI has.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

NETWORK = "192.0.2"  # for documentation: outside of these namespaces nobody has such an address
CENTRE = f"{NETWORK}.1"
CLONE_NEWNET = 0x40000000


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Hosts:
    """A switch with the address `CENTRE`, and hosts that are plugged into it as they are asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._names = stack, dict[str, str]()
        self.centre = self._namespace("switch")
        ip("-n", self.centre, "link", "add", "switch", "type", "bridge")
        ip("-n", self.centre, "addr", "add", f"{CENTRE}/24", "dev", "switch")
        ip("-n", self.centre, "link", "set", "switch", "up")

    def command(self, name: str) -> tuple[str, ...]:
        """What to put before a command to run it on the host `name`; makes the host at the first call."""
        if name not in self._names:
            self._plug_in(name)
        return "ip", "netns", "exec", self._names[name]

    def pull_cable(self, name: str) -> None:
        """Nothing that the host sends arrives, and nothing comes back."""
        ip("-n", self.centre, "link", "set", name, "down")

    def put_cable_back(self, name: str) -> None:
        ip("-n", self.centre, "link", "set", name, "up")

    def _plug_in(self, name: str) -> None:
        host = self._namespace(name)
        ip("-n", self.centre, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", host)
        ip("-n", self.centre, "link", "set", name, "master", "switch", "up")
        ip("-n", host, "addr", "add", f"{NETWORK}.{len(self._names)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", host, "link", "set", device, "up")

    def _namespace(self, name: str) -> str:
        namespace = f"lplgrad-{os.getpid()}-{name}"
        try:
            ip("netns", "add", namespace)
        except OSError as error:
            pytest.fail(f"Hosts of their own want Linux, iproute2 and root, as .ci/run has: {error}")
        self._stack.callback(ip, "netns", "delete", namespace)
        self._names[name] = namespace
        return namespace


@contextmanager
def hosts() -> Iterator[Hosts]:
    """Some hosts; gone at the block's end, when nothing may run on them any more."""
    with ExitStack() as stack:
        yield Hosts(stack)


@contextmanager
def at(namespace: str) -> Iterator[None]:
    """Sockets that this thread makes in the block are that host's."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as own, Path(f"/run/netns/{namespace}").open() as other:
        try:
            if libc.setns(other.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"the namespace {namespace} cannot be entered")
            yield
        finally:
            libc.setns(own.fileno(), CLONE_NEWNET)
