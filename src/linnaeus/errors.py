"""Exceptions that are shown to the user as one line, without a traceback."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

MODEL = "model.safetensors"  # the model file of a run folder
CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
EXTRAS = {
    "digits": "scikit-learn",
    "explain": "captum",
    "heic": "pi-heif",
    "hub": "huggingface-hub",
    "mlflow": "mlflow",
    "onnx": "onnx onnxruntime onnxscript",
    "parquet": "pyarrow",
    "serve": "fastapi prometheus-client python-multipart segno starlette uvicorn",
    "sweep": "optuna",
    "tensorboard": "tensorboard",
    "timm": "timm",
    "trackio": "trackio",
    "transformers": '"transformers<6"',
}
"""The packages of the extras, as pip takes them. Messages name these, because the package itself is not on PyPI yet."""
_VISIBLE = {code: chr(code).encode("unicode_escape").decode() for code in CONTROLS}


def refuse_name(path: str | os.PathLike[str]) -> None:
    """Raise UserError for a path that no model file can have: too long, with a NUL, or not UTF-8."""
    name = os.fspath(path)
    shown = visible(name if len(name) < 200 else name[:200] + "…")
    if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name):
        # safetensors opens no file whose path is not UTF-8.
        raise UserError(f"{shown}: a name with bytes that are not UTF-8 or are 0; rename it, or choose another")
    try:
        Path(name).lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{shown}: a name that is too long; choose a shorter one") from None


def visible(text: str) -> str:
    r"""`text` on one line, with escapes for everything that could change how a terminal shows it.

    Line breaks, control characters, marks that change the direction of writing, and bytes that are not UTF-8 become
    escapes: `\n`, `\x1b`, `\u202e`, `\udcff`. File names may contain them.
    """
    if text.isprintable():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8").translate(_VISIBLE)


class UserError(Exception):
    """Bad input: one line that names the file, the value and the next step.

    The message is escaped by `visible`, so that it stays one line whatever names it contains. The command line prints
    it to stderr and exits with `status`; in Python it is an exception like any other.
    """

    status = 2
    told = False
    """Whether rank 0 reports the same error, so that the other ranks need not."""

    def __init__(self, message: str = ""):
        super().__init__(visible(message))


class UnknownNameError(UserError):
    """A name that nothing has: a slip of the keyboard, found before any work."""


class UnreadableError(UserError):
    """An image that cannot be decoded; `reason` is the message without the file name.

    `passing`: the cause is outside of the image (a missing file, a permission, lack of memory) and may disappear.
    `kind`: "empty", "truncated", "too-large", or "unreadable" for everything else.
    """

    def __init__(self, name: str, reason: str, *, passing: bool = False, kind: str = "unreadable"):
        super().__init__(f"{name}: {reason}")
        self.reason = reason
        self.passing = passing
        self.kind = kind


class JobError(UserError):
    """The input was valid, but the job failed: the loss became NaN, the disk is full."""

    status = 1


class DiskError(JobError):
    """A file could not be written: the disk is full, read-only or failing."""


LACKING = {
    errno.EAGAIN: "processes",  # of fork
    errno.EMFILE: "open files",
    errno.ENFILE: "open files",
    errno.ENOMEM: "memory",
}


def exhausted(error: BaseException) -> str:
    """What the process has run out of, such as `memory` or `memory or threads`; empty for any other error."""
    if isinstance(error, OSError):
        return LACKING.get(error.errno or 0, "")
    if not isinstance(error, MemoryError | RuntimeError | ImportError):
        return ""
    text = str(error)
    if isinstance(error, ImportError):  # of the loader of shared libraries
        return "memory" if "failed to map segment" in text or "annot allocate memory" in text else ""
    if "can't start new thread" in text:
        return "memory or threads"
    # The allocators of torch and oneDNN raise a plain RuntimeError on the CPU.
    short = any(part in text for part in ("out of memory", "can't allocate memory", "could not create a primitive"))
    return "memory" if short or isinstance(error, MemoryError) else ""


def out_of(lack: str, during: str = "") -> str:
    """One line that says what the process has run out of (`exhausted`), and what to do."""
    return f"out of {lack}{during and f' ({during})'}; close other programs, or allow this one more"


class LostError(JobError):
    """Another process of the group has ended; that process, or the launcher, reports which one and why."""

    status = 70


def install(extra: str) -> str:
    """The command that installs the packages of an extra."""
    return f"pip install {EXTRAS[extra]}"


def one_line(value: object) -> str:
    """Foreign text, or what an exception of another library says, on one line and not too long; else its class."""
    return " ".join(str(value).split())[:200] or type(value).__name__


def first_line(error: BaseException) -> str:
    """As `one_line`, without the lines after the first, which some libraries fill with a traceback or advice."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0] if lines else error)


def described(error: BaseException) -> str:
    """The message of a UserError; for any other exception its class, too."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".removesuffix(": ")


AGAIN = "check the file and the disk, then run the command again"


def next_step(error: OSError, advice: str = AGAIN) -> str:
    """What to do about a file that cannot be read: `advice`, unless permissions or a limit are the reason."""
    if error.errno in (errno.EACCES, errno.EPERM):
        return "check its permissions"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "allow more open files with `ulimit -n`, then run the command again"
    if error.errno == errno.ENAMETOOLONG:
        return "choose a shorter name"
    return advice


def not_read(path: object, error: OSError, advice: str = AGAIN) -> UserError:
    """The error for a file that cannot be read; `advice` as in `next_step`."""
    return UserError(f"{path}: cannot be read ({error.strerror or error}); {next_step(error, advice)}")


def refuse_unreadable(path: Path) -> None:
    """Raise UserError for a file that cannot be opened: the libraries that read it would call it missing or damaged."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise not_read(path, error) from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean resnet50?)` if `word` resembles a known name, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def normalized(name: str) -> str:
    """An option or a key without dashes and capitals: `--batch-size` -> `batch_size`."""
    return name.strip("-").lower().replace("-", "_")


def did_you_mean_run(path: Path) -> str:
    """` (did you mean runs/photos-1?)`: a finished run in `path`, beside it or in runs/, or an empty string.

    The run has a similar name if there is one, and is the newest otherwise.
    """
    for folder in (path, path.parent, Path("runs")):
        found = {}
        with suppress(OSError):  # a folder that may not be read
            finished = (file for file in folder.glob("*/metrics.json") if file.with_name(MODEL).is_file())
            found = {file.parent: file.stat().st_mtime for file in finished if file.parent != path}
        if found:
            similar = difflib.get_close_matches(path.name, [run.name for run in found], n=1)
            run = folder / similar[0] if similar else max(found, key=found.__getitem__)
            return f" (did you mean {run}?)"
    return ""


def no_model(path: Path) -> UserError:
    """The error for a path that is neither a model file nor a run folder with one."""
    reason = f"holds no {MODEL}" if path.is_dir() else "no such model file"
    return UserError(f"{path}: {reason}{did_you_mean_run(path)}; give a run folder or a {MODEL}")


def no_run(path: Path, missing: str) -> UserError:
    """The error for a path that is not the folder of a finished run, because it lacks the file `missing`."""
    reason = f"holds no {missing}" if path.is_dir() else "no such run folder"
    other = "" if (path / MODEL).is_file() else did_you_mean_run(path)
    return UserError(f"{path}: {reason}{other}; give the folder of a run that `linnaeus train` finished")
