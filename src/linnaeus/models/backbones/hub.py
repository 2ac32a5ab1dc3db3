"""Repositories of the Hugging Face hub: configuration, preprocessing and license.

What the hub says is recorded beside the weights, so that it is asked once. A folder that holds a copy of a repository
(`config.json`, `preprocessor_config.json`, `README.md`, `model.safetensors`) needs no network at all.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from linnaeus.environment import offline
from linnaeus.errors import JobError, UserError, did_you_mean, install, one_line
from linnaeus.models.weights.records import key_of, read_record, write_record

PREFIX, MODEL_PREFIX = "hf/", "hf:"
HUB = "https://huggingface.co"
CONFIG, PREPROCESSOR, CARD = "config.json", "preprocessor_config.json", "README.md"
TIMEOUT = 10.0  # seconds until the hub begins to answer
UPLOAD_TIMEOUT = 120.0  # seconds without a byte in either direction; a commit is answered once its files were checked

WELL_KNOWN = (
    "facebook/dinov2-small",
    "facebook/dinov2-base",
    "facebook/dinov2-large",
    "facebook/dinov2-with-registers-small",
    "facebook/dinov2-with-registers-base",
    "facebook/dinov3-vits16-pretrain-lvd1689m",
    "facebook/dinov3-vitb16-pretrain-lvd1689m",
    "facebook/dinov3-convnext-tiny-pretrain-lvd1689m",
    "facebook/convnext-tiny-224",
    "facebook/convnextv2-tiny-22k-224",
    "google/siglip-base-patch16-224",
    "google/siglip2-base-patch16-224",
    "google/vit-base-patch16-224",
    "google/vit-base-patch16-224-in21k",
    "microsoft/resnet-50",
    "microsoft/swin-tiny-patch4-window7-224",
    "openai/clip-vit-base-patch32",
)
"""Repositories to suggest where a name is unknown."""


@dataclass(frozen=True)
class Repository:
    """What is known about a repository besides its weights."""

    config: dict[str, Any]
    preprocessor: dict[str, Any] = field(default_factory=dict)
    license: str = ""
    gated: bool = False  # whether the authors ask for consent before a download


def endpoint() -> str:
    """The address of the hub, or of a mirror in HF_ENDPOINT."""
    return os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or HUB


def repository_of(name: str) -> str:
    """'hf/facebook/dinov2-small' -> 'facebook/dinov2-small'. Raises UserError if it cannot be a repository."""
    repo = name.removeprefix(PREFIX)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo) or ".." in repo or "--" in repo:
        raise UserError(f"{name}: not a repository of the hub; write hf/OWNER/NAME, such as hf/{WELL_KNOWN[0]}")
    return repo


def repository(name: str, folder: Path | None = None) -> Repository:
    """What is known about `hf/REPO`: from a copy in `folder`, the record of an earlier time, or the hub.

    Raises UserError, with the next step, if it is unknown, gated or out of reach.
    """
    repo = repository_of(name)
    if folder is not None and (folder / CONFIG).is_file():
        return read_folder(folder)
    record = read_record(key_of(name)).get("repository")
    if isinstance(record, dict) and isinstance(record.get("config"), dict):
        # Records of other versions may have other fields.
        return Repository(**{key: value for key, value in record.items() if key in Repository.__dataclass_fields__})
    if offline():
        known = [PREFIX + entry for entry in WELL_KNOWN]
        hint = "" if name in known else did_you_mean(name, known)
        raise UserError(
            f"{name}: not on this machine, and LINNAEUS_OFFLINE is set; bring config.json and model.safetensors in one "
            f"folder and run: linnaeus weights import {name} FOLDER/model.safetensors{hint}"
        )
    contents = _ask(name, repo)
    remember_repository(name, contents)
    return contents


def remember_repository(name: str, repository: Repository) -> None:
    """Record what is known about a repository beside its weights."""
    write_record(key_of(name), {"repository": asdict(repository)})


def read_folder(folder: Path) -> Repository:
    """A copy of a repository. Raises UserError if a file in it is damaged."""
    config = _read_json(folder / CONFIG)
    preprocessor = _read_json(folder / PREPROCESSOR) if (folder / PREPROCESSOR).is_file() else {}
    try:
        card = (folder / CARD).read_text(encoding="utf-8", errors="replace")
    except OSError:
        card = ""
    return Repository(config, preprocessor, card_license(card))


def card_license(card: str) -> str:
    """The license that the header of a model card states, as text; empty if it states none."""
    header = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    entries = dict(re.findall(r"^(license(?:_name)?):\s*['\"]?([\w.+-]+)", header[1], re.MULTILINE)) if header else {}
    return _license(entries)


def _license(entries: Mapping[str, Any]) -> str:
    """The name of a license: that of its own behind `other`."""
    license, name = (str(entries.get(key) or "") for key in ("license", "license_name"))
    return name if license in ("", "other") and name else license


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); get a fresh copy") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__} instead of named values; get a fresh copy")
    return content


# Asking the hub


def client(name: str) -> Any:
    """The package huggingface_hub. Raises UserError, which begins with `name`, where it is not installed."""
    try:
        hub: Any = importlib.import_module("huggingface_hub")
        constants: Any = importlib.import_module("huggingface_hub.constants")
        utils: Any = importlib.import_module("huggingface_hub.utils")
    except ImportError:
        raise UserError(f"{name}: needs the package huggingface_hub: {install('hub')}") from None
    # Another library may have imported it already, and it reads the environment only then.
    constants.HF_HUB_DISABLE_TELEMETRY = True  # requests name the installed torch and the calling program otherwise
    constants.HF_HUB_DISABLE_XET = True  # hf_xet repeats failed requests for minutes, and ignores Ctrl-C
    utils.logging.set_verbosity_error()  # the error itself is one line
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    hub.get_session().timeout = UPLOAD_TIMEOUT  # by default, it waits forever
    return hub


def _ask(name: str, repo: str) -> Repository:
    hub = client(name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            # Without a connection this fails at once, and the download would try again for twenty seconds.
            hub.get_hf_file_metadata(hub.hf_hub_url(repo, CONFIG, endpoint=endpoint()), timeout=TIMEOUT)
            for file in (CONFIG, PREPROCESSOR):
                try:
                    hub.hf_hub_download(repo, file, local_dir=folder, endpoint=endpoint(), etag_timeout=TIMEOUT)
                except hub.errors.RemoteEntryNotFoundError:
                    if file == CONFIG:
                        raise
        except Exception as error:  # the client has many exceptions of its own
            raise refusal(name, repo, error) from None
        files = read_folder(Path(folder))
    license, gated = license_of(name, repo)
    return Repository(files.config, files.preprocessor, license, gated)


def license_of(name: str, repo: str) -> tuple[str, bool]:
    """(license, whether the repository is gated) by the hub's card; ("", False) if it cannot be asked."""
    try:
        info = client(name).HfApi(endpoint=endpoint()).model_info(repo, timeout=TIMEOUT)
    except Exception:  # a mirror may serve files alone
        return "", False
    card: Any = getattr(info, "card_data", None)
    entries = {} if card is None else card.to_dict()
    tag = next((t.removeprefix("license:") for t in getattr(info, "tags", None) or [] if t.startswith("license:")), "")
    return _license(entries) or tag, bool(getattr(info, "gated", False))


def refusal(name: str, repo: str, error: Exception) -> UserError:
    """One line that says why the hub refused a request for `name`, and what to do.

    `name` is a backbone, or `hf:REPO` for a model file, which `linnaeus push` writes.
    """
    errors = client(name).errors
    page, tokens = f"{endpoint()}/{repo}", f"{endpoint()}/settings/tokens"
    backbone = not name.startswith(MODEL_PREFIX)
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # it says only that the upload of a file failed
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return UserError(
            f"{name}: access is refused (HTTP {status or 403}); accept the conditions at {page}, and set HF_TOKEN to a "
            f"token of {tokens} that may read it, or write to it"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return UserError(
            f"{name}: has no {CONFIG}, so transformers cannot load it; look at {page}, or choose another one"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{name}: has no such revision; {page}/commits lists them")
    # The hub hides private repositories: 401 and 404 may mean either.
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        hint = _suggestion(name, repo) if backbone else ""
        expired = ", or HF_TOKEN has expired" if status == 401 and client(name).get_token() else ""
        return UserError(
            f"{name}: no such repository on the hub, or a private one{expired} (HTTP {status}){hint}; check the name "
            f"at {page}, or set HF_TOKEN to a token of {tokens}"
        )
    if status is not None:
        words = one_line(getattr(error, "server_message", None) or error.response.reason_phrase)  # type: ignore[attr-defined]
        return JobError(f"{name}: {endpoint()} refused the request (HTTP {status}: {words}); {_next_step(status)}")
    by_hand = (
        f"or bring config.json and model.safetensors in one folder and run: linnaeus weights import {name} "
        "FOLDER/model.safetensors"
    )
    step = by_hand if backbone else "or check the network"
    # The page where a hotel's network asks for a password, say: the client finds no JSON, or not the fields of a hub.
    foreign = isinstance(error, AttributeError | LookupError | TypeError | ValueError)
    failed = "does not answer as the hub does" if foreign else "cannot be reached"
    return JobError(f"{name}: {endpoint()} {failed} ({one_line(error)}); set HF_ENDPOINT to a mirror, {step}")


def _next_step(status: int) -> str:
    """What to do after a refusal that is not about access."""
    if status == 429:
        return "too many requests: wait some minutes, then run the command again"
    if status in (408, 409, 412) or status >= 500:
        return "run the command again, or look at https://status.huggingface.co"
    return "change what the hub objects to, then run the command again"


def _suggestion(name: str, repo: str) -> str:
    """A similar name: one that is well known, or the most downloaded one that the hub finds."""
    hint = did_you_mean(name, [PREFIX + known for known in WELL_KNOWN])
    if hint:
        return hint
    short = repo.rpartition("/")[2]
    same = next((known for known in WELL_KNOWN if known.rpartition("/")[2] == short), None)
    if same is None:
        with suppress(Exception):  # a suggestion is not worth an error
            models = client(name).HfApi(endpoint=endpoint()).list_models(search=short, limit=1)
            same = next((model.id for model in models), None)
    return f" (did you mean {PREFIX}{same}?)" if same else ""
