"""A process of the group that never comes: the processes that wait for it can be stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

WAIT = """
import signal, sys
for name in ("SIGINT", "SIGTERM"):
    signal.signal(getattr(signal, name), lambda *_: sys.exit(9))
from linnaeus.distributed import environment
from linnaeus.distributed.engine import join_process_group
environment.PATIENCE = 0.5
print("waits", flush=True)
join_process_group("cpu")
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_waiting_for_a_process_that_never_comes_can_be_stopped(number: signal.Signals):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    environment = {**os.environ, **place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waits\n"
        assert process.stderr is not None
        line = process.stderr.readline().decode()  # it waits in C++ by now
        assert line.startswith(f"waiting   process RANK=0 of WORLD_SIZE=2 waits for the others at 127.0.0.1:{port} ")
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(20) == -number
    finally:
        process.kill()
        process.communicate()
