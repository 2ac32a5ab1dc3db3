"""The library transformers: its import, and networks from a configuration without code or downloads."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from linnaeus.errors import UserError, install, one_line
from linnaeus.models.backbones.hub import PREFIX
from linnaeus.models.backbones.library_body import import_errors, without_prefix
from linnaeus.text import first_few

IGNORED = re.compile(
    r"_.*|id2label|label2id|architectures|auto_map|torch_dtype|dtype|transformers_version|quantization_config|"
    r"attn_implementation|experts_implementation|num_labels|problem_type|output_(hidden_states|attentions)|return_dict|"
    r"stage_names|out_features|out_indices|reshape_hidden_states"
)
"""Entries of a config.json that do not decide how features are computed, or that could run code or fetch kernels."""

RANDOM = ("vit_mae",)
"""Networks that hide random patches of each image, so that their features differ from one time to the next."""

LARGEST = 100_000
"""The largest number in a configuration: of a real network, the largest is its table of positions or its width."""

MANY_LAYERS = 1000


def load() -> Any:
    """The module transformers. Raises UserError, with the command that installs it, if it cannot be imported."""
    with import_errors(PREFIX, "transformers", install("transformers")):
        import transformers
        from transformers import modeling_utils  # noqa: F401 - its lazy import hides what is missing
    return transformers


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and reports of the library, whose settings are put back."""
    logging = load().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def network_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that decides how images become features: of networks for images and texts, the first.

    Raises UserError if it names no network for images, or impossible numbers.
    """
    kind = config.get("model_type")
    if isinstance(config.get("vision_config"), Mapping):
        config = {"model_type": f"{kind}_vision_model"} | dict(config["vision_config"])
        if not str(config["model_type"]).endswith("vision_model"):
            config["model_type"] = f"{kind}_vision_model"
    config = {key: value for key, value in config.items() if not IGNORED.fullmatch(key)}
    _check_numbers(name, config)
    return config


def _check_numbers(name: str, config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        for number in value if isinstance(value, list) else [value]:
            largest = MANY_LAYERS if re.search(r"layers|depths|num_stages", key) else LARGEST
            if isinstance(number, int) and not isinstance(number, bool) and abs(number) > largest:
                raise UserError(f"{name}: config: {key} = {number} is more than {largest}")


def create_body(name: str, config: Mapping[str, Any], channels: int) -> nn.Module:
    """The network of a configuration, with random weights in float32. UserError if there is no such network."""
    transformers = load()
    settings = _configuration(name, config, channels)
    try:
        with _quiet():
            body = transformers.AutoModel.from_config(settings, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # each class checks its configuration in its own way
        raise UserError(f"{name}: transformers cannot create it ({one_line(error)})") from None
    if getattr(body, "main_input_name", "") != "pixel_values" or not hasattr(body, "config"):
        raise UserError(
            f"{name}: {type(body).__name__} takes {body.main_input_name}, not images; choose another network"
        )
    return body


def _configuration(name: str, config: Mapping[str, Any], channels: int) -> Any:
    transformers = load()
    kind = str(config.get("model_type", ""))
    known = transformers.CONFIG_MAPPING
    if kind == "timm_wrapper":
        raise UserError(f"{name}: is a network of timm; use timm/{name.rpartition('/')[2].partition('.')[0]}")
    if kind in RANDOM:
        raise UserError(f"{name}: {kind} hides random patches of each image, so it gives no features; choose another")
    if kind not in known:
        close = difflib.get_close_matches(kind, list(known.keys()), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise UserError(
            f"{name}: transformers {transformers.__version__} has no model_type {kind!r}{hint}; check config.json, or "
            "install a later transformers"
        )
    options = {key: value for key, value in config.items() if key != "model_type"}
    try:
        with _quiet():
            settings = transformers.AutoConfig.for_model(kind, **options)
    except Exception as error:
        raise UserError(f"{name}: config.json cannot be used ({one_line(error)})") from None
    settings.num_channels = channels
    # Random changes of the positions in training would differ from one stage to the next.
    for option in ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"):
        if hasattr(settings, option):
            setattr(settings, option, None)
    return settings


def body_tensors(
    name: str, tensors: dict[str, Tensor], arguments: dict[str, Any], source: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors below `body.`, arguments of the network) of a state dict in any of the library's conventions.

    The library itself renames tensors of earlier versions and drops those of classifiers and text encoders. Raises
    UserError if tensors are missing.
    """
    config = network_config(name, arguments["config"])
    body: Any = create_body(name, config, _channels(config))
    tensors = without_prefix(tensors, lambda: body)
    try:
        with _quiet():
            body, report = type(body).from_pretrained(
                None,
                config=body.config,
                state_dict=dict(tensors),
                output_loading_info=True,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:
        raise UserError(f"{source}: transformers cannot load these weights ({one_line(error)})") from None
    changed: dict[str, Any] = {}
    # Mask tokens are for pretraining only.
    missing = sorted(key for key in report["missing_keys"] if not key.endswith("mask_token"))
    if missing and all(key.startswith("pooler.") for key in missing):
        # Weights of a classifier: it reads the class token itself.
        changed, missing = ({} if arguments.get("pool") else {"pool": "cls"}), []
    wrong = missing or sorted(str(key[0] if isinstance(key, tuple) else key) for key in report["mismatched_keys"])
    if wrong:
        problem = "misses" if missing else "has other shapes of"
        raise UserError(f"{source}: {problem} {first_few(wrong)}, so it does not hold the weights of {name}")
    return {f"body.{key}": tensor for key, tensor in body.state_dict().items()}, changed


def _channels(config: Mapping[str, Any]) -> int:
    channels = config.get("num_channels", 3)
    return channels if isinstance(channels, int) else 3
