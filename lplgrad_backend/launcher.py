"""torchrun for the processes of one machine (`python -m lplgrad_backend.launcher …`, arguments as torchrun's).

torchrun's own ways to meet open a port on all of the machine's addresses, and one of them unpickles what it reads there.
Here processes meet by a file, in a folder that nobody else can write.
"""

from __future__ import annotations

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.run import main as torchrun

BACKEND = "file"


class FileRendezvous(RendezvousHandler):
    """One launcher that meets itself. `file`: does not exist yet."""

    def __init__(self, file: str, run: str) -> None:
        self._file, self._run = file, run

    def get_backend(self) -> str:
        """Its name."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """At once."""
        # the address is what MASTER_ADDR and MASTER_PORT become, by which nobody meets here
        store = dist.FileStore(self._file, 1)  # type: ignore[attr-defined]  # public, but not in __all__
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo("127.0.0.1", 0))

    def is_closed(self) -> bool:
        """Never."""
        return False

    def set_closed(self) -> None:
        """Nobody else looks."""

    def num_nodes_waiting(self) -> int:
        """None."""
        return 0

    def get_run_id(self) -> str:
        """As given."""
        return self._run

    def shutdown(self) -> bool:
        """Nothing is open."""
        return True


def made(parameters: RendezvousParameters) -> RendezvousHandler:
    """For torchrun: --rdzv-endpoint is the file."""
    return FileRendezvous(parameters.endpoint, parameters.run_id)


def main() -> None:
    """torchrun, which now knows `--rdzv-backend=file`."""
    rendezvous_handler_registry.register(BACKEND, made)
    torchrun()


if __name__ == "__main__":
    main()
