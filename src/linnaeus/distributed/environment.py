"""Rank and world size of this process, from the variables that torchrun, srun or `--devices N` set."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from linnaeus.console import echo_error
from linnaeus.errors import UserError

PATIENCE = 30.0  # seconds after which a process says that it waits for others to start

FIRST_PORT = 15_000
"""Ports from here on are used by jobs of SLURM: not those of services, and below those given to clients."""
PARENT = "LINNAEUS_PARENT"  # environment variable: process id of the launcher, where `--devices N` started this process


@dataclass(frozen=True)
class ProcessInfo:
    """The place of this process among the processes of one command."""

    rank: int = 0  # global rank; rank 0, the main process, writes files and prints
    world_size: int = 1  # number of processes on all machines
    local_rank: int = 0  # rank among the processes on this machine
    local_world_size: int = 1  # number of processes on this machine
    slurm: bool = False  # whether srun started the processes

    @property
    def nodes(self) -> int:
        """Number of machines."""
        return self.world_size // self.local_world_size

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def process_info(environment: Mapping[str, str] | None = None) -> ProcessInfo:
    """Read the place of this process from `environment` (default: os.environ); a single process if nothing is set.

    Raises UserError if variables are missing or the machines run different numbers of processes.
    """
    env = os.environ if environment is None else environment
    try:
        # torchrun sets these three.
        if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= env.keys():
            world_size = int(env["WORLD_SIZE"])
            local_world_size = int(env.get("LOCAL_WORLD_SIZE", world_size))
            info = ProcessInfo(int(env["RANK"]), world_size, int(env["LOCAL_RANK"]), local_world_size)
        elif int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # set by srun; sbatch alone starts a single process
            world_size = int(env["SLURM_STEP_NUM_TASKS"])
            if "SLURM_NTASKS_PER_NODE" not in env:
                raise UserError(
                    "SLURM_NTASKS_PER_NODE is not set; start with srun --ntasks-per-node N, so that every machine runs "
                    "the same number of processes"
                )
            local_world_size = int(env["SLURM_NTASKS_PER_NODE"])
            rank, local_rank = int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"])
            info = ProcessInfo(rank, world_size, local_rank, local_world_size, slurm=True)
        else:
            return ProcessInfo()
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the environment variables of torchrun or SLURM are incomplete or invalid ({error}); start the command "
            "with torchrun or srun again"
        ) from None
    if info.world_size % info.local_world_size:
        raise UserError(
            f"the world size, {info.world_size}, is not a multiple of {info.local_world_size} processes per machine; "
            "start the same number of processes on every machine"
        )
    return info


def slurm_address(environment: Mapping[str, str]) -> tuple[str, str]:
    """(host, port) where the processes of srun meet, the same for all: the first machine, and a port for each job.

    MASTER_ADDR and MASTER_PORT override them.
    """
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST") or "127.0.0.1"
    # The first machine of each range: node[03-05,09],gpu1 -> node03,gpu1
    host = re.split(r"[ ,]", re.sub(r"\[([^],-]*)[^]]*\]", r"\1", nodes))[0]
    # The end of the job's number: two jobs may have processes on the same machine.
    job = environment.get("SLURM_JOB_ID", "")[-4:]
    port = FIRST_PORT + int(job) if job.isdecimal() else FIRST_PORT
    return environment.get("MASTER_ADDR", host), environment.get("MASTER_PORT", str(port))


def exit_with_launcher() -> None:
    """End this process when the launcher of `--devices N` is gone, for example after kill -9.

    A watching thread is needed because a killed launcher cannot signal its children. On Windows nothing is watched:
    there orphans keep the id of their parent, and in a virtual environment python.exe is itself a launcher.
    """
    parent = os.environ.get(PARENT)
    if parent is None or os.name == "nt":
        return

    def watch() -> None:
        # An orphan is adopted by another process, so its parent's id changes.
        while os.getppid() == int(parent):
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="linnaeus-parent", daemon=True).start()


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP end the process at once, inside a call of C++ that never returns to Python.

    For work that leaves nothing to clean up.
    """
    signals = (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
    in_main = threading.current_thread() is threading.main_thread()  # only there can handlers be set
    handlers = {number: signal.getsignal(number) for number in signals} if in_main else {}
    handlers = {number: handler for number, handler in handlers.items() if handler not in (None, signal.SIG_IGN)}
    for number in handlers:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def meeting(info: ProcessInfo) -> Iterator[None]:
    """Let signals end the process while it waits for the others, and say after PATIENCE what it waits for.

    A process may be missing, or a variable of the launcher wrong.
    """
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    line = (
        f"waiting   process RANK={info.rank} of WORLD_SIZE={info.world_size} waits for the others at {address} "
        "(MASTER_ADDR, MASTER_PORT); if they are not starting, stop it with Ctrl-C and correct these variables"
    )
    timer = threading.Timer(PATIENCE, echo_error, [line])
    timer.daemon = True
    timer.start()
    try:
        with stopped_by_signals():
            yield
    finally:
        timer.cancel()
