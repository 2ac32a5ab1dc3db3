"""The reference, made from the program itself each time the pages are built: none of it is kept, so none goes stale.

Commands come from click, the keys of a recipe from its models and the docstrings beside them, file formats and the
Python interface from docstrings. Each function returns a page in Markdown.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

import click
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import linnaeus
from linnaeus.cli.main import cli
from linnaeus.recipe import spec

NOTE = "<!-- made by docs/hooks/generate.py -->\n\n"

# Heading -> modules, classes and constants whose docstrings say what the file holds.
FORMATS = {
    "The run folder": ("runs.folder",),
    "model.safetensors": ("modelfile.safetensors",),
    "history.csv": ("runs.history:Row",),
    "predictions.csv": ("runs.compare:PREDICTION_COLUMNS",),
    "metrics.json and evaluation.json": ("training.results",),
    "check.json": ("check.findings", "check.findings:Finding"),
    "Output of predict": ("inference.writers",),
    "checkpoint/": ("training.checkpoint",),
    "Shards": ("data.shards",),
    "The space of a sweep": ("sweeps.space",),
}

TABLES: tuple[tuple[str, type[BaseModel]], ...] = (
    ("Top of the file", spec.Recipe),
    ("[model]", spec.Model),
    ("[model] head", spec.HeadOf),
    ("[data]", spec.Data),
    ("[data] split", spec.Split),
    ("[[phase]]", spec.Phase),
    ("[[phase]] augment", spec.Augment),
    ('[[phase]] schedule: name = "constant"', spec.Constant),
    ('[[phase]] schedule: name = "step"', spec.Step),
    ('[[phase]] schedule: name = "plateau"', spec.Plateau),
    ('[[phase]] schedule: name = "cosine"', spec.Cosine),
    ('[[phase]] schedule: name = "onecycle"', spec.OneCycle),
)


def pages() -> dict[str, str]:
    """Path below docs/ -> text."""
    return {
        "reference/commands.md": commands_page(),
        "reference/recipe.md": recipe_page(),
        "reference/formats.md": formats_page(),
        "reference/python.md": python_page(),
    }


def commands() -> Iterator[tuple[str, click.Command]]:
    """("data pull", its command) for every command, subcommands too; groups themselves come first."""
    for name, command in sorted(cli.commands.items()):
        yield name, command
        if isinstance(command, click.Group):
            for below, each in sorted(command.commands.items()):
                yield f"{name} {below}", each


def commands_page() -> str:
    parts = [
        "# Commands\n\n`linnaeus COMMAND --help` says the same. Every command has `-q` (only what went wrong) and `-v` "
        "(more). Exit status: 0 done, 1 the job failed, 2 the input was wrong.\n"
    ]
    for name, command in commands():
        context = click.Context(command, info_name=f"linnaeus {name}")
        parts.append(f"\n## {name}\n\n```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n")
        parts.append(f"\n{plain(inspect.cleandoc(command.help or ''))}\n")
        rows = [option_row(o) for o in command.params if isinstance(o, click.Option) and o.name not in SHARED]
        if rows:
            parts.append("\n| option | |\n|---|---|\n" + "".join(rows))
    return NOTE + "".join(parts)


SHARED = ("quiet", "verbose")


def option_row(option: click.Option) -> str:
    """A line of a command's table: its names, what it takes, what it is for."""
    takes = "" if option.is_flag else " " + (option.metavar or option.make_metavar(click.Context(cli)))
    shown = ", ".join(f"`{name}{takes}`" for name in option.opts)
    default = f" Default: `{option.default}`." if option.show_default and option.default is not None else ""
    return f"| {cell(shown)} | {cell(plain(option.help or ''))}{default} |\n"


def recipe_page() -> str:
    parts = [
        "# Recipe keys\n\nA recipe is a TOML file. A key that is not in these tables is refused; one that is left out "
        "has its default, and `recipe.toml` in a run folder shows them all. `linnaeus recipes NAME` prints one to "
        "start from, and `--set` takes the same keys with dots: `data.size=288`, `phase.1.lr=1e-3` (phases count "
        "from 1), `phase.1.augment.hflip=0.5`.\n"
    ]
    for heading, model in TABLES:
        parts.append(f"\n## {plain(heading)}\n\n")
        if model.__doc__ and model is not spec.Recipe:
            parts.append(inspect.cleandoc(model.__doc__) + "\n\n")
        parts.append("| key | type | default | |\n|---|---|---|---|\n")
        for key, kind, default, words in keys(model):
            parts.append(f"| `{key}` | {cell(kind)} | {cell(default)} | {cell(words)} |\n")
    return NOTE + "".join(parts)


def keys(model: type[BaseModel]) -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, description) of each key of a recipe's table."""
    docs = attribute_docstrings(model)
    for key, field in model.model_fields.items():
        default = field.default
        if field.is_required():
            shown = "required"
        elif default is None:
            shown = "none"
        elif default is PydanticUndefined or isinstance(default, BaseModel):
            shown = "see below" if isinstance(default, BaseModel) else "empty"
        else:
            shown = f"`{toml(default)}`"
        yield key, type_name(field.annotation, field.metadata), shown, docs.get(key, "")


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def type_name(annotation: Any, metadata: list[Any] | None = None) -> str:
    """A type in words: `"sgd"`, `"adam"`; whole number, at least 1; a table of its own."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return type_name(arguments[0], list(arguments[1:]))
    if origin is typing.Literal:
        return ", ".join(f"`{toml(a)}`" for a in arguments)
    if origin is list:
        return f"list of {type_name(arguments[0])}s"
    if origin is tuple:
        return "two numbers"
    if arguments and origin is not dict:  # a union
        tables = [a for a in arguments if inspect.isclass(a) and issubclass(a, BaseModel)]
        if len(tables) > 1:
            return "table"
        return " or ".join(dict.fromkeys(type_name(a) for a in arguments if a is not type(None)))
    if (inspect.isclass(annotation) and issubclass(annotation, BaseModel)) or origin is dict:
        return "table"
    name = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}[annotation]
    return ", ".join([name, *bounds(metadata or [])])


def bounds(metadata: list[Any]) -> list[str]:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    flat = [m for each in metadata for m in (getattr(each, "metadata", None) or [each])]
    return [f"{word} {getattr(m, key):g}" for m in flat for key, word in words.items() if hasattr(m, key)]


def formats_page() -> str:
    parts = [
        "# File formats\n\nText files are UTF-8. Every file is written whole under another name and then renamed, so a "
        "killed run leaves none of them half written. The ONNX file has [a page of its own](../onnx.md).\n"
    ]
    for heading, sources in FORMATS.items():
        parts.append(f"\n## {heading}\n")
        for source in sources:
            parts.append("\n" + described(source) + "\n")
    return NOTE + "".join(parts)


def described(source: str) -> str:
    """The docstring of `module` or `module:Name`; of a data class with its fields, of a constant with its value."""
    module_name, _, name = source.partition(":")
    module = import_module(f"linnaeus.{module_name}")
    if not name:
        return markdown(inspect.getdoc(module) or "")
    value = getattr(module, name)
    if not inspect.isclass(value):
        columns = ", ".join(f"`{each}`" for each in value)
        return f"{attribute_docstrings(module)[name]}\n\nColumns: {columns}."
    docs = attribute_docstrings(value)
    rows = "".join(f"| `{key}` | {cell(docs.get(key, ''))} |\n" for key in annotations_of(value))
    return f"{markdown(inspect.getdoc(value) or '')}\n\n| field | |\n|---|---|\n{rows}"


def python_page() -> str:
    parts = [
        "# Python\n\nAll of these are attributes of `linnaeus`, imported when they are first used; the estimator is in "
        "`linnaeus.sklearn`. What is wrong with the input is raised as `UserError`, whose text is one line.\n"
    ]
    for name, value in public_names():
        if isinstance(value, str):
            parts.append(f'\n## {name}\n\nThe version, as text: `"{value}"`.\n')
            continue
        parts.append(f"\n## {name}\n\n{told(name.rpartition('.')[2], value)}\n")
        if inspect.isclass(value) and is_dataclass(value):
            below = attribute_docstrings(value)
            rows = "".join(f"| `{key}` | {cell(below.get(key, ''))} |\n" for key in annotations_of(value))
            parts.append(f"\n| attribute | |\n|---|---|\n{rows}")
        for member, each in members(value):
            parts.append(f"\n### {name}.{member}\n\n{told(member, each)}\n")
    return NOTE + "".join(parts)


def public_names() -> list[tuple[str, Any]]:
    found = [(name, getattr(linnaeus, name)) for name in sorted(linnaeus.__all__, key=str.lower)]
    return [*found, ("sklearn.ImageClassifier", import_module("linnaeus.sklearn").ImageClassifier)]


def members(value: Any) -> Iterator[tuple[str, Any]]:
    """Methods and properties of a class that are its own and public, and attributes with a docstring."""
    if not inspect.isclass(value):
        return
    for name, each in vars(value).items():
        if name.startswith("_") or isinstance(each, type) or name.startswith("model_"):
            continue
        inner = each.__func__ if isinstance(each, classmethod | staticmethod) else each
        if (inspect.isfunction(inner) or isinstance(inner, property)) and inspect.getdoc(inner):
            yield name, inner


def told(name: str, value: Any) -> str:
    """The signature in a block of Python, one parameter a line where it would be long; and the docstring."""
    return f"{signature(name, value)}\n{markdown(inspect.getdoc(value) or '')}"


def signature(name: str, value: Any) -> str:
    if isinstance(value, property):
        return f"```python\n{name}: {inspect.signature(value.fget).return_annotation}\n```\n" if value.fget else ""
    if inspect.isclass(value) and issubclass(value, BaseException | BaseModel):
        return ""
    given = inspect.signature(value)
    shown: list[str] = []
    for each in given.parameters.values():
        if each.name in ("self", "cls"):
            continue
        if each.kind is each.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        default = "" if each.default is each.empty else f" = {each.default!r}"
        stars = "**" if each.kind is each.VAR_KEYWORD else ""
        shown.append(f"{stars}{each.name}: {each.annotation}{default}")
    none = (inspect.Signature.empty, None, "None")
    returns = "" if given.return_annotation in none or inspect.isclass(value) else f" -> {given.return_annotation}"
    line = f"{name}({', '.join(shown)}){returns}"
    if len(line) > 88:
        line = f"{name}(\n" + "".join(f"    {each},\n" for each in shown) + f"){returns}"
    return f"```python\n{line}\n```\n"


def attribute_docstrings(owner: Any) -> dict[str, str]:
    """Name -> the string that stands right below its assignment in a class or a module, as one paragraph or several."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    body = tree.body[0].body if inspect.isclass(owner) and isinstance(tree.body[0], ast.ClassDef) else tree.body
    found = {}
    for line, below in itertools.pairwise(body):
        targets = [line.target] if isinstance(line, ast.AnnAssign) else getattr(line, "targets", [None])
        target = targets[0]
        if isinstance(target, ast.Name) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            found[target.id] = inspect.cleandoc(str(below.value.value))
    return found


def annotations_of(owner: type) -> list[str]:
    return [name for name in vars(owner).get("__annotations__", {}) if not name.startswith("_")]


def markdown(text: str) -> str:
    """A docstring as Markdown: what is indented, tables and code, stays as it is written, in a block of its own."""
    out: list[str] = []
    block: list[str] = []
    for line in [*text.splitlines(), "end"]:
        if line.startswith("    ") or (block and not line):
            block.append(line)
            continue
        if block:
            body = textwrap.dedent("\n".join(block)).strip("\n")
            out += ["```text", body, "```", ""]
            block = []
        out.append(plain(line))
    return "\n".join(out[:-1]).strip()


def plain(text: str) -> str:
    """Text outside of code, so that brackets and angles are shown as they are."""
    pieces = text.split("`")
    for i in range(0, len(pieces), 2):
        pieces[i] = pieces[i].replace("<", "&lt;").replace("[", "&#91;").replace("*", "&#42;")
    return "`".join(pieces)


def cell(text: str) -> str:
    """Text for a cell of a table. A bar ends a cell everywhere but in code."""
    pieces = " ".join(text.split()).split("`")
    return "`".join(each.replace("|", "&#124;") if i % 2 == 0 else each for i, each in enumerate(pieces))
