"""`linnaeus sweep`. Optuna and torch are imported inside."""

from __future__ import annotations

import click

from linnaeus.cli.options import verbosity
from linnaeus.console import Console


@click.command()
@click.argument("source")
@click.option("--recipe", metavar="NAME|FILE", help="What to train, how; chosen from the data without it.")
@click.option("--space", metavar="FILE", required=True, help="TOML: which keys of the recipe vary, over what.")
@click.option("--trials", default=20, show_default=True, type=click.IntRange(1), help="Of the whole sweep.")
@click.option("--out", metavar="DIR", help="The sweep's folder; one that holds it goes on.  [runs/<recipe>-sweep-<n>]")
@click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="A key of the recipe, fixed: data.size=96.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of everything random.")
@verbosity
def sweep(
    source: str, recipe: str | None, space: str, trials: int, out: str | None, settings: tuple[str, ...], device: str,
    seed: int | None, quiet: bool, verbose: bool,
) -> None:  # fmt: skip
    """Train a recipe on SOURCE many times, with settings drawn from a space, and keep the best.

    A line of FILE: "phase.1.lr" = { low = 1e-4, high = 0.1, log = true }, or { choices = ["sgd", "adamw"] }; whole
    numbers may have a step. The same command with the same --out goes on, and several may run on it at once. The best
    recipe is best.toml: `linnaeus train SOURCE --recipe DIR/best.toml` makes a model of it.
    """
    from linnaeus.recipe import parse_setting
    from linnaeus.sweeps.results import counts
    from linnaeus.sweeps.run import sweep as run_sweep

    console = Console(quiet=quiet, verbose=verbose)
    done = run_sweep(
        source, recipe, space, trials=trials, out=out, settings=dict(map(parse_setting, settings)), device=device,
        seed=seed, console=console,
    )  # fmt: skip
    found = done.best.figures
    low, high = found["accuracy_ci95"]
    console.say()
    console.say(f"trials    {len(done.trials)}: {counts(done.trials)}")
    console.say(
        f"best      trial {done.best.number}, validation {found['accuracy']:.2%} ({found['correct']} of {found['n']}, "
        f"95 % interval {low:.1%} to {high:.1%})"
    )
    console.say(f"          selected among {len(done.trials)} trials on these images, so the figure flatters")
    if done.importances:
        shares = ", ".join(f"{key} {share:.0%}" for key, share in done.importances.items())
        console.say(f"mattered  {shares}")
    for word, name in (("recipe", "best.toml"), ("trials", "trials.csv"), ("plot", "sweep.png")):
        console.say(f"{word:9} {done.path / name}")
    if done.interrupted:
        console.warn("stopped before its end: the same command with this --out goes on")
        raise SystemExit(1)
