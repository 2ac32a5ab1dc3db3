"""Several real processes that train together: forks of this one, which has torch in memory already."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forking import fork

LIMIT = 60.0
"""Seconds within which all processes must end, whatever happens to one of them."""


def several(world: int, work: Callable[[int], Any], limit: float = LIMIT) -> list[Any]:
    """Run `work(rank)` in each of `world` processes and return the results, which must be JSON values.

    For a process that failed, the result is its exit status, or minus the number of the signal that ended it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        children = {}
        for rank in range(world):
            pid = fork()
            if pid == 0:
                _work(work, rank, world, port, Path(folder) / str(rank))
            children[pid] = rank
        results: list[Any] = [None] * world
        deadline = time.monotonic() + limit
        while children and time.monotonic() < deadline:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                time.sleep(0.01)
                continue
            rank, code = children.pop(pid), os.waitstatus_to_exitcode(status)
            results[rank] = json.loads((Path(folder) / str(rank)).read_text()) if code == 0 else code
        for pid in children:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        assert not children, f"process(es) {sorted(children.values())} did not end within {limit:.0f} s"
    return results


def _work(work: Callable[[int], Any], rank: int, world: int, port: int, answer: Path) -> None:
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in variables.items()}})
    try:
        answer.write_text(json.dumps(work(rank)))
        os._exit(0)
    except BaseException as error:
        traceback.print_exc()
        os._exit(getattr(error, "status", 99))
