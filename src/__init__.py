"""The work behind the notebooks: one sub-package per notebook.

With OFFLINE=1 in the environment, which the parameter `offline` sets, no connection leaves
the machine.
"""

import os
import sys

LOCAL_HOSTS = ("localhost", "::1", "0.0.0.0")


def _host_of(event: str, arguments: tuple) -> str | None:
    """The host that a socket event is about; None for a local socket."""
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return None
    return host.decode(errors="replace") if isinstance(host, bytes) else host


def _stay_here(event: str, arguments: tuple) -> None:
    """An audit hook: OSError for a connection to, or a look-up of, another machine."""
    if event not in ("socket.connect", "socket.getaddrinfo"):
        return

    host = _host_of(event, arguments)
    if host and host not in LOCAL_HOSTS and not str(host).startswith("127."):
        raise OSError(
            f"offline is set, so no connection to {host}: "
            "give a folder or local-dir: instead of a hub's name"
        )


if os.environ.get("OFFLINE") == "1":
    sys.addaudithook(_stay_here)
