"""Which of several processes this one is: as torchrun, SLURM's srun or `--devices N` say it, in the environment."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from linnaeus.errors import UserError

PARENT = "LINNAEUS_PARENT"
"""The process that started this one, where `--devices N` did."""


@dataclass(frozen=True)
class Processes:
    """One process among those that train one network together."""

    rank: int = 0
    """Of all processes; 0 is the one that writes and prints."""
    world: int = 1
    """How many there are."""
    local_rank: int = 0
    """Of those on this machine."""
    local_world: int = 1
    """How many there are on this machine."""
    slurm: bool = False

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.world // self.local_world

    @property
    def first(self) -> bool:
        return self.rank == 0


def processes(environment: Mapping[str, str] | None = None) -> Processes:
    """What the environment says; alone where it says nothing. Raises UserError where machines have unequal shares."""
    env = os.environ if environment is None else environment
    try:
        if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= env.keys():
            world = int(env["WORLD_SIZE"])
            local = int(env.get("LOCAL_WORLD_SIZE", world))
            found = Processes(int(env["RANK"]), world, int(env["LOCAL_RANK"]), local)
        elif int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # srun sets it; sbatch alone starts a single process
            world = int(env["SLURM_STEP_NUM_TASKS"])
            if "SLURM_NTASKS_PER_NODE" not in env:
                raise UserError("SLURM: give srun --ntasks-per-node, so that every machine gets as many processes")
            local = int(env["SLURM_NTASKS_PER_NODE"])
            found = Processes(int(env["SLURM_PROCID"]), world, int(env["SLURM_LOCALID"]), local, slurm=True)
        else:
            return Processes()
    except (KeyError, ValueError) as error:
        raise UserError(f"the variables that torchrun or SLURM set are incomplete: {error}; start it anew") from None
    if found.world % found.local_world:
        raise UserError(f"{found.world} processes, {found.local_world} on this machine: give every machine as many")
    return found


def end_with_parent() -> None:
    """Where `--devices N` started this process: end when that launcher is gone, even if nobody can say so."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="linnaeus-parent", daemon=True).start()
