"""compile = "auto": a trial of torch.compile, for phases on a GPU that are long enough for a gain."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from linnaeus.console import duration
from linnaeus.distributed.engine import Engine
from linnaeus.errors import first_line
from linnaeus.training.phase import PhaseRun
from linnaeus.training.tuning.precision import time_steps

WORTH_TRYING = 300.0  # seconds of a phase from which on a trial is made: the compiler takes a half to a whole minute
STEPS = 8  # timed steps: the fifth is the first one that is launched as a whole
SAVED = 1.2  # the compiler must save this many times the seconds that it takes


@dataclass(frozen=True)
class CompilationTrial:
    """Whether to compile, and why."""

    chosen: bool
    reason: str = ""  # for a message; empty where nothing was measured


def choose_compilation(run: PhaseRun, engine: Engine, longest: float) -> CompilationTrial:
    """Time whole batches on copies of the network, with and without torch.compile.

    `longest`: an upper bound of the seconds of the phase; short phases are not tried.
    """
    if longest < WORTH_TRYING:
        return CompilationTrial(False)
    batch, steps = next(iter(run.train.batches.epoch())), len(run.train.batches) * run.phase.epochs
    usual, _ = time_steps(run, engine, batch, STEPS)
    if usual * steps < WORTH_TRYING:
        return CompilationTrial(False)
    started = time.perf_counter()
    try:
        compiled, _ = time_steps(replace(run, compiled=True), engine, batch, STEPS)
    except Exception as error:  # compilers fail in many ways, and none of them should end the run
        return CompilationTrial(False, f"torch.compile failed ({first_line(error)})")
    needed = time.perf_counter() - started
    speed = f"{usual / compiled:.2f} times as fast, after {duration(needed)} of the compiler"
    return CompilationTrial((usual - compiled) * steps > SAVED * needed, speed)
