"""Where the ranks of one machine meet: on 127.0.0.1 alone.

torch's own rendezvous, told to use localhost, still listens on all addresses of the machine (measured with
2.13), where anybody may write into the store that the ranks read pickled values from. So the socket is
bound here, and torch's store takes it over.
"""

import socket

from torch.distributed import TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

HOST = "127.0.0.1"
BACKEND = "adamwprune-loopback"


class Loopback(RendezvousHandler):
    """The rendezvous of a launcher that is alone, with a store on a free port that its ranks share."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        listening = socket.create_server((HOST, 0))
        port = listening.getsockname()[1]
        self._store = TCPStore(
            *(HOST, port),
            is_master=True,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=listening.detach(),
        )
        self._place = RendezvousStoreInfo(HOST, port)
        self._is_closed = False

    @property
    def use_agent_store(self) -> bool:
        """Ranks join this store and start none of their own."""
        return True

    def get_backend(self) -> str:
        """Its name."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """This launcher is the only one."""
        return RendezvousInfo(self._store, 0, 1, self._place)

    def is_closed(self) -> bool:
        """Whether the ranks have ended."""
        return self._is_closed

    def set_closed(self) -> None:
        """Nobody else needs to be told."""
        self._is_closed = True

    def num_nodes_waiting(self) -> int:
        """Nobody ever waits."""
        return 0

    def get_run_id(self) -> str:
        """The name of this launch."""
        return self._run_id

    def shutdown(self) -> bool:
        """The store goes with its process."""
        self._is_closed = True
        return True


def register() -> str:
    """Make the rendezvous known to torch; calling it again changes nothing. Returns its name."""
    rendezvous_handler_registry.register(BACKEND, _create)
    return BACKEND


def _create(parameters: RendezvousParameters) -> Loopback:
    return Loopback(parameters.run_id)


def interface() -> str | None:
    """The machine's loopback interface, for Gloo, which else listens where the host's name leads."""
    names = {name for _, name in socket.if_nameindex()}
    return next((name for name in ("lo", "lo0") if name in names), None)
