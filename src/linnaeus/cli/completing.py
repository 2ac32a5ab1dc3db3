"""Completion of values in a shell: files and folders, and the names that commands list. Imported only to complete."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import click
from click.shell_completion import CompletionItem

from linnaeus.device import DEVICES

Names = Callable[[], Iterable[str]]


class Value(click.types.StringParamType):
    """Text that a shell completes by one of some names, or else as the path of a file or folder."""

    def __init__(self, names: Names, paths: bool) -> None:
        self.names, self.paths = names, paths

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        items = [CompletionItem(name) for name in self.names() if name.startswith(incomplete)]
        return items + [CompletionItem(incomplete, type="file")] * self.paths


def _sources() -> Iterable[str]:
    from linnaeus.data.catalog import KNOWN

    return KNOWN


def _recipes() -> Iterable[str]:
    from linnaeus.recipe.load import recipe_names

    return recipe_names()


def _networks() -> Iterable[str]:
    from linnaeus.network_names import NETWORKS

    return NETWORKS


def _trackers() -> Iterable[str]:
    from linnaeus.runs.tracking import TRACKERS

    return TRACKERS


NAMES: dict[str, Names] = {
    "--device": lambda: DEVICES,
    "--recipe": _recipes,
    "--track": _trackers,
    "data pull name": _sources,
    "models name": _networks,
    "recipes name": _recipes,
    "source": _sources,
    "train --model": _networks,
}
"""Option or argument, where needed after its command -> the names that it accepts; none that need torch."""
PATHS = re.compile("FILE|DIR|FOLDER|RUN|source|images|model|runs?$")
"""What the placeholder of an option or the name of an argument says if it may be a path."""


def complete_values(group: click.Group) -> None:
    """Give every text argument and option of the commands its names and paths."""
    for path, command in _commands(group, ""):
        for parameter in command.params:
            name = parameter.opts[0]
            names = NAMES.get(f"{path}{name}") or NAMES.get(name) or tuple
            paths = bool(PATHS.search(parameter.metavar or (name if isinstance(parameter, click.Argument) else "")))
            if isinstance(parameter.type, click.types.StringParamType) and (paths or names is not tuple):
                parameter.type = Value(names, paths)


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """(the words before an option, command) of all commands."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name} ", command
