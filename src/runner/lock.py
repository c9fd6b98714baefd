"""One run at a time in an output folder."""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from src import paths
from src.errors import UserError
from src.paths import display_path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Hold `output` for this run. Raises UserError naming the process that holds it already."""
    with _open_lock(output) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another run"
            raise UserError(
                f"{display_path(output)} is in use by {holder}: "
                "wait for it, stop it, or use another output_dir"
            ) from None

        # who holds it, for the message above
        now = f"{datetime.now():%Y-%m-%d %H:%M:%S}"
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {now}")
        lock.flush()

        yield
        lock.truncate(0)


def _open_lock(output: Path) -> TextIO:
    """The lock file, with its folder made; UserError where the folder cannot be written."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        return (output / paths.LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        if error.errno in DISK_FULL:
            raise
        raise UserError(
            f"output_dir: {display_path(output)} cannot be written ({error.strerror}): "
            "set another one"
        ) from None
