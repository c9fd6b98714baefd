"""The work behind the notebooks: one sub-package per notebook.

With OFFLINE=1 in the environment, which the parameter `offline` sets, no connection leaves the machine.
"""

import os
import sys


def _stay_here(event: str, arguments: tuple) -> None:
    """An audit hook: OSError for a connection to, or a look-up of, another machine."""
    if event not in ("socket.connect", "socket.getaddrinfo"):
        return
    address = arguments[1] if event == "socket.connect" else arguments[0]
    host = (
        address[0]
        if isinstance(address, tuple)
        else address
        if event == "socket.getaddrinfo"
        else None
    )  # else a local socket
    host = host.decode(errors="replace") if isinstance(host, bytes) else host
    if host and host not in ("localhost", "::1", "0.0.0.0") and not str(host).startswith("127."):
        raise OSError(
            f"offline is set, so no connection to {host}: give a folder or local-dir: instead of a hub's name"
        )


if os.environ.get("OFFLINE") == "1":
    sys.addaudithook(_stay_here)
