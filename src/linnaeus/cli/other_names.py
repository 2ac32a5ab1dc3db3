"""What to type instead of the commands, options and `key=value` arguments of other tools."""

from __future__ import annotations

import os
import re
import shlex

import click

from linnaeus.errors import normalized

COMMANDS = {
    "evaluate": ("val", "valid", "validate", "validation", "test", "benchmark"),
    "train": ("fit", "finetune", "fine-tune", "learn"),
    "predict": ("infer", "inference", "classify"),
}
"""Command -> its names in other tools. Those that merely resemble ours, such as `eval`, are found by click."""
OPTIONS = {
    "--out": ("name", "save", "output"),
    "--device": ("gpu", "cuda", "accelerator"),
    "--devices": ("gpus", "num_gpus", "nproc_per_node"),
    "--to": ("format",),
    "--backbones": ("model", "models", "backbone"),
    "--model": ("a",),
    "--batch": ("b",),
}
"""Option -> what other tools call it, where click would find none or the wrong one."""
ARGUMENTS = {
    "model": ("model", "weights", "checkpoint", "ckpt"),
    **dict.fromkeys(("source", "sources"), ("source", "data", "dataset", "images", "input")),
    "images": ("source", "data", "images", "image", "input"),
    "run": ("run", "model"),
}
"""Argument -> what other tools call the option in its place."""


def refuse_other_names(context: click.Context, command: click.Command | None, words: list[str]) -> None:
    """Raise UsageError for a command or `key=value` arguments of other tools.

    `words`: the name of the command, and what follows.
    """
    if context.resilient_parsing:  # as completion does, which must not fail
        return
    if command is not None:
        _refuse_assignments(context, command, words[1:])
    for ours, names in COMMANDS.items():
        if words[0] in names:
            context.fail(f"No such command '{words[0]}'. Did you mean '{ours}'?")


def other_name(error: click.ClickException) -> str:
    """The message for an option that has another name here, such as --imgsz of `train`; "" for any other error."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return ""
    command, typed = error.ctx.command, error.option_name
    instead, reason = _instead(command, typed.strip("-"))
    if instead:
        return f"No such option '{typed}'. Did you mean '{instead}'?"
    if not reason and _argument(command, typed.strip("-")) is not None:
        arguments = (piece.rstrip(".") for piece in command.collect_usage_pieces(error.ctx)[1:])
        reason = f"its value stands without an option: {' '.join((error.ctx.command_path, *arguments))}"
    return f"No such option '{typed}': {reason}." if reason else ""


def _refuse_assignments(context: click.Context, command: click.Command, words: list[str]) -> None:
    """Raise UsageError, with the line to type, for arguments such as data=photos and epochs=10."""
    if not any("=" in word for word in words) or isinstance(command, click.Group):
        return
    parsed = click.Context(command, info_name=command.name, parent=context)
    try:
        values, extra, _ = command.make_parser(parsed).parse_args(list(words))
    except click.UsageError:
        return  # the command reports it
    arguments = [values.get(argument.name) for argument in command.params if isinstance(argument, click.Argument)]
    plain = [word for value in arguments for word in (value if isinstance(value, tuple) else (value,))] + extra
    pairs = {word: word.split("=", 1) for word in plain if isinstance(word, str) and _is_assignment(word)}
    places = {word: _argument(command, key) for word, (key, _) in pairs.items()}
    options = [word for word in pairs if places[word] is None]
    typed = {word: _as_option(command, *pairs[word]) for word in options}
    if not pairs or not all(typed.values()):
        return
    line = [word for word in words if word not in pairs]
    line += [pairs[word][1] for word in sorted(pairs.keys() - typed.keys(), key=lambda word: places[word] or 0)]
    line += [part for word in options for part in typed[word]]
    parsed.fail(f"{next(iter(pairs))}: options begin with --; type: {parsed.command_path} {shlex.join(line)}")


def _is_assignment(word: str) -> bool:
    return re.match(r"[A-Za-z]\w*=.", word) is not None and not os.path.lexists(word)


def _as_option(command: click.Command, key: str, value: str) -> list[str]:
    """`key=value` as words of the command line; none if `command` has no such option."""
    options = _options(command)
    instead = f"--{key.replace('_', '-')}"
    if instead not in options:
        instead, _ = _instead(command, key)
    if instead.startswith("--set "):
        return ["--set", instead.removeprefix("--set ").replace("…", value)]
    if instead and options[instead].is_flag:
        return [instead] if value.lower() in ("true", "1", "yes") else []
    return [instead, value] if instead else []


def _instead(command: click.Command, typed: str) -> tuple[str, str]:
    """(the option or --set that stands for an option of another tool, the reason why none does); "" where unknown."""
    options, name = _options(command), normalized(typed)
    if found := [option for option, names in OPTIONS.items() if name in names and option in options]:
        return found[0], ""
    # Without --set the command has no recipe, so no key can be meant.
    if "--set" not in options:
        return "", ""
    from linnaeus.recipe.keys import OURS, SYNONYMS, WITHOUT_KEY

    if name in WITHOUT_KEY:
        return "", WITHOUT_KEY[name]
    key = OURS.get(name, f"phase.1.{name}")
    short = f"--{key.removeprefix('model.').replace('name', 'model')}"
    return ("" if key not in SYNONYMS else short if short in options else f"--set {key}=…"), ""


def _options(command: click.Command) -> dict[str, click.Option]:
    return {text: option for option in command.params if isinstance(option, click.Option) for text in option.opts}


def _argument(command: click.Command, typed: str) -> int | None:
    """The position of the argument that an option of another tool gives; None where it gives none."""
    names = [argument.name for argument in command.params if isinstance(argument, click.Argument)]
    fitting = (i for i, name in enumerate(names) if typed.lower() in ARGUMENTS.get(name or "", ()))
    return next(fitting, None)
