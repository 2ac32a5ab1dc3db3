"""`sweep`: hyperparameter search. Optuna and torch are imported when the command runs."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import click

from linnaeus.cli.options import (
    device_option,
    make_console,
    recipe_option,
    seed_option,
    verbosity,
)
from linnaeus.cli.settings import parse_settings, settings_option
from linnaeus.text import percent
from linnaeus.training.stop import status_of

if TYPE_CHECKING:
    from linnaeus.console import Console
    from linnaeus.sweeps.run import Sweep


@click.command()
@click.argument("source")
@recipe_option
@click.option("--space", metavar="FILE", required=True, help="Search space: TOML with the recipe keys that vary.")
@click.option(
    "--trials",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Total number of trials of the sweep.",
)
@click.option(
    "--out", metavar="DIR", help="Sweep folder; an existing sweep is resumed.  [default: runs/<recipe>-sweep-<n>]"
)
@settings_option
@device_option
@seed_option
@verbosity
def sweep(
    source: str,
    recipe: str | None,
    space: str,
    trials: int,
    out: str | None,
    settings: tuple[str, ...],
    device: str,
    seed: int | None,
) -> None:
    """Search for the best settings of a recipe.

    A line of the search space is "phase.1.lr" = { low = 1e-4, high = 0.1, log = true }, or { choices = ["sgd",
    "adamw"] }; integer ranges may have a step. The same command with the same --out resumes the sweep, and several
    processes may work on it at once. The best recipe is written to best.toml; train it with
    `linnaeus train SOURCE --recipe DIR/best.toml`.
    """
    from linnaeus.sweeps.run import sweep as run_sweep

    console = make_console()
    result = run_sweep(
        source,
        recipe,
        space,
        trials=trials,
        out=out,
        settings=parse_settings(settings),
        device=device,
        seed=seed,
        console=console,
    )
    _print_sweep(result, console)
    if result.interrupted:
        console.warn("the sweep was interrupted; run the same command with this --out to resume it")
        raise SystemExit(status_of(signal.SIGINT))


def _print_sweep(result: Sweep, console: Console) -> None:
    from linnaeus.metrics.multilabel import read_headline
    from linnaeus.sweeps.results import counts

    console.say()
    console.say(f"trials    {len(result.trials)}: {counts(result.trials)}")
    console.say(f"best      trial {result.best.number}, validation {read_headline(result.best.figures)}")
    # The best of many trials was selected on these very images: its accuracy is biased upwards.
    console.say(f"          selected from {len(result.trials)} trials on the same images, so this score is optimistic")
    if result.importances:
        shares = ", ".join(f"{key} {percent(share, 0)}" for key, share in result.importances.items())
        console.say(f"important {shares}")
    for label, name in (("recipe", "best.toml"), ("trials", "trials.csv"), ("plot", "sweep.png")):
        console.say(f"{label:9} {result.path / name}")
