"""Checks of a command's arguments that need no torch: a mistake is reported within half a second, not after four.

They find the same mistakes as the commands themselves, with the same messages, and never refuse anything else.
"""

from __future__ import annotations

import errno
import os
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnaeus.cli.replacing import refuse_to_replace
from linnaeus.cli.settings import parse_settings
from linnaeus.console import Console
from linnaeus.distributed.environment import process_info
from linnaeus.errors import MODEL, UserError, no_model, refuse_name
from linnaeus.files import disk_errors
from linnaeus.runs.ownership import taken

if TYPE_CHECKING:  # pydantic takes long to import
    from linnaeus.recipe import Recipe

MOST_ENTRIES = 2000  # a source with more files is not read here, because it will be read again
MOST_BYTES = 1 << 22
LITTLE_MEMORY = 4_000_000_000
"""Bytes of address space. On one thread the import of torch takes 0.6 GB, and training small images 1.9 GB."""
OTHER_FORMATS = frozenset(
    (
        ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".txt", ".xlsx", ".xls", ".ods",
        ".parquet", ".html", ".htm", ".xml", ".yaml", ".yml", ".toml", ".md", ".pdf",
        ".png", ".jpg", ".jpeg", ".svg", ".zip", ".gz", ".db", ".sqlite", ".pkl",
        ".npy", ".npz", ".feather", ".arrow",
    )
)  # fmt: skip
"""Suffixes of formats, by which another program would open a file."""
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


@contextmanager
def one_report() -> Iterator[None]:
    """Let only the first process of each machine print a mistake that all of them find."""
    try:
        yield
    except UserError as error:
        error.told = process_info().local_rank > 0
        raise


def check_training(parameters: Mapping[str, Any]) -> None:
    """Raise UserError for a mistake in the parameters of `train`, which are given by name."""
    from linnaeus.runs.tracking import check_trackers
    from linnaeus.training.interval import CheckpointInterval

    with one_report():
        check_device(parameters["device"])
        CheckpointInterval.parse(parameters["checkpoint_every"])
        check_trackers(("tensorboard",) * parameters["tensorboard"] + parameters["track"])
        if parameters["resume"]:
            parse_settings(parameters["settings"])
            return  # the run that is resumed completes the arguments
        check_source(parameters["source"])  # first, because recipes take longer to import
        settings = parse_settings(parameters["settings"])
        recipe = _check_recipe(parameters, settings)
        check_not_a_run(parameters["source"])
        _check_device_of(recipe, parameters["device"])
        # Without a recipe the images will choose one, whose lists are not known here.
        data = recipe.data.model_dump() if parameters["recipe"] is not None else {}
        lists = {split: data.get(split, settings.get(f"data.{split}")) for split in ("train", "valid", "test")}
        check_source(parameters["source"], lists)
        _check_network(
            parameters["model"] or settings.get("model.name"), parameters["weights"] or settings.get("model.weights")
        )
        if parameters["out"] is not None:
            check_new_folder(parameters["out"])


def _check_recipe(parameters: Mapping[str, Any], settings: Mapping[str, Any]) -> Recipe:
    """The recipe, or one with the same overrides where the images will choose the recipe."""
    from linnaeus.recipe import load_recipe, parse_epochs, recipe_names, without_recipe
    from linnaeus.recipe.keys import refuse_twice

    overrides, epochs = dict(settings), parse_epochs(parameters["epochs"])
    refuse_twice(overrides, **{option: parameters[option] for option in ("model", "weights", "seed", "epochs")})
    if parameters["recipe"] is not None:
        return load_recipe(parameters["recipe"], overrides, epochs)
    reasons = {}
    for name in ("photos", "scratch", *recipe_names()):  # a mistake is what no recipe accepts
        try:
            return load_recipe(name, overrides, epochs)
        except UserError as error:
            reasons[name] = without_recipe(error, name).replace(f"recipe {name}", "recipe")
    # Most recipes object to the value; a few have no use for the key, which is not the mistake then.
    common, n = Counter(reasons.values()).most_common(1)[0]
    raise UserError(common if 2 * n >= len(reasons) else reasons["photos"])  # else each objects with its own values


def _check_device_of(recipe: Recipe, device: str) -> None:
    """Raise UserError for a recipe that a device cannot compute; of `auto` only the run knows which one it is."""
    from linnaeus.device import require_int8

    if device == "cpu" and recipe.precision == "16-mixed":
        raise UserError("precision = 16-mixed: not available on CPU; use 32, bf16-mixed or auto")
    if recipe.model.frozen_precision == "int8":
        require_int8("cpu" if device == "auto" else device)


def _check_network(model: object, weights: object) -> None:
    """Raise UserError for a network or a file of weights that does not exist."""
    from linnaeus.network_names import LIBRARIES, NETWORKS, unknown_network

    if isinstance(model, str) and ".py:" in model:
        file = Path(model.rpartition(":")[0])
        if not file.is_file():
            raise UserError(f"{file}: there is no such file; --model takes FILE.py:FUNCTION")
    # Libraries are too slow to import for this check.
    elif isinstance(model, str) and model not in (*NETWORKS, "custom") and model.partition("/")[0] not in LIBRARIES:
        raise unknown_network(model)
    # Only what looks like a file is checked here; names are resolved when the recipe is known.
    if isinstance(weights, str) and weights.lower().endswith(WEIGHT_SUFFIXES) and not Path(weights).exists():
        raise UserError(f"{weights}: there is no such weights file; check the path, or see `linnaeus weights list`")


def check_process() -> None:
    """Raise UserError where the working folder was removed, and warn where the memory is limited (`ulimit -v`)."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError(
            "the working folder has been removed; change to another one, and run the command again"
        ) from None
    # The numerical libraries end the process by a signal where an allocation fails.
    with suppress(ImportError):  # Windows has no such limit
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if 0 <= limit < LITTLE_MEMORY:
            Console().warn(
                f"the address space is limited to {limit / 1e9:.1f} GB (ulimit -v), in which torch may crash without "
                f"a message; allow {LITTLE_MEMORY / 1e9:.0f} GB"
            )


def check_device(name: str) -> None:
    """Raise UserError for a device that does not exist anywhere."""
    from linnaeus.device import DEVICES, unknown_device

    if name not in DEVICES:
        raise unknown_device(name)


def check_not_a_run(source: str) -> None:
    """Raise UserError, with the two commands that the user may mean, if a source is a run folder."""
    from linnaeus.data.sources import is_run_folder
    from linnaeus.runs.parsing import recorded_source

    folder = Path(source)
    if folder.is_dir() and is_run_folder({path.name for path in folder.iterdir()}):
        images, run = recorded_source(folder) or "SOURCE", shlex.quote(source)
        raise UserError(
            f"{source}: a run folder, not images; to continue it: linnaeus train {run} --resume; to train its recipe "
            f"again: linnaeus train {images if images == 'SOURCE' else shlex.quote(images)} --recipe {run}"
        )


def check_source(source: str, lists: Mapping[str, str | None] | None = None) -> None:
    """Raise UserError if a source is missing or, where it is small enough to be read twice, cannot be read.

    `lists`: names of list files by split; None checks only whether the source is there.
    """
    from linnaeus.data.catalog import KNOWN, not_found

    path = Path(source).expanduser()
    try:
        exists = path.exists()
        # Only the readers know what a range of shards and a path into an archive lead to.
        missing = not exists and "{" not in source and not any(parent.is_file() for parent in path.parents)
    except (OSError, ValueError):  # a name too long, or with a zero byte
        exists = missing = False
    if not exists and (source in KNOWN or source.lower().startswith(("http://", "https://"))):
        return  # it may be downloaded
    if missing:
        raise UserError(not_found(source))
    if not exists or (lists is not None and _is_small(path)):
        from linnaeus.data.sources import open_source  # with all readers, which take long to import

        files = {split: name for split, name in (lists or {}).items() if (split, name) != ("valid", "test")}
        open_source(source, train=files.get("train"), valid=files.get("valid"), test=files.get("test"))


def _is_small(path: Path) -> bool:
    if path.is_file():
        return path.stat().st_size <= MOST_BYTES
    files = (name for _, folders, names in os.walk(path) for name in (*folders, *names))
    return sum(1 for _ in islice(files, MOST_ENTRIES + 1)) <= MOST_ENTRIES


def check_token(token: str | None) -> None:
    """Raise UserError for a token that a header cannot carry."""
    if token is not None and not (token.isascii() and token.isprintable() and token.strip() == token and token):
        raise UserError(
            "--token: must be printable ASCII without leading or trailing spaces; omit --token to serve without one"
        )


def check_model(model: str) -> None:
    """Raise UserError if there is no such model file or run folder."""
    path = Path(model)
    if path.is_dir():
        path /= MODEL
    if not path.is_file():
        raise no_model(Path(model))


def check_images(images: Iterable[str]) -> None:
    """Raise UserError for a folder without images and a pattern without matches, if they come first; or if all are
    files that do not exist.

    What comes before a later one is predicted before it is reported.
    """
    from linnaeus.data.images.decode import clipped, no_path
    from linnaeus.inference.inputs import expand, is_missing

    images = list(images)
    if images and all(map(is_missing, images)):
        raise UserError(f"{clipped(images[0])}: {no_path(images[0]) or 'no such file; check the path'}")
    for image in islice(images, 1):
        if image != "-":
            for _ in islice(expand([image]), 1):
                pass


def check_examples(folder: str | None) -> None:
    """Raise UserError unless `folder` is one with images, or None."""
    if folder is not None:
        if not Path(folder).is_dir():
            raise UserError(f"--examples {folder}: no such folder; give a folder of images")
        check_images([folder])


def check_new_folder(out: str) -> None:
    """Raise UserError if a run folder exists already, and JobError or UserError if it cannot be made."""
    refuse_name(out)
    folder = Path(out)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    used = any(not name.startswith(".") and name != "checkpoint" for name in names)
    if used or (os.path.lexists(folder) and not folder.is_dir()):
        raise taken(out)
    _check_writable(folder / "recipe.toml", folder)


def check_output(option: str, file: str | None, suffixes: tuple[str, ...] = (), command: str | None = None) -> None:
    """Raise UserError or JobError if an output file cannot be written, or has the suffix of another format.

    An existing file is replaced unless it belongs to a run, or is an image or a page that was not written here, or a
    file of results that `command`, a key of `RESULTS`, did not write.
    `suffixes`: those of the formats that the option writes. Names without a suffix and devices are accepted.
    """
    if file is None:
        return
    path = Path(file)
    if suffixes and path.suffix.lower() in OTHER_FORMATS and path.suffix.lower() not in suffixes:
        names = " or ".join(suffixes)
        raise UserError(f"{option} {file}: unsupported format; give a name that ends in {names}")
    if not os.path.lexists(path):
        _check_writable(path, path)
    else:
        refuse_to_replace(option, path, command)


def check_beside(model: str) -> None:
    """Raise JobError if nothing can be written to the folder of a model that exists."""
    folder = Path(model) if Path(model).is_dir() else Path(model).parent
    if folder.is_dir():
        _check_writable(folder / MODEL, folder)


def _check_writable(file: Path, named: Path) -> None:
    """Make a temporary file in the folder of `file`, or in the lowest folder above it that exists."""
    folder = next(parent for parent in file.absolute().parents if os.path.lexists(parent))
    with disk_errors(named):
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(named))
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            error.filename = str(named)
            raise
