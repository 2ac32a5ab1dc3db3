"""A plain state dict for torchvision's networks, where they are the same network; torchvision itself is not needed."""

from __future__ import annotations

import io
import os
from pathlib import Path

import torch

from linnaeus.console import counted
from linnaeus.errors import UserError
from linnaeus.export.model_card import CARD, is_unedited, model_card, with_checksum
from linnaeus.files import atomic, check_output, write_text
from linnaeus.inference.classifier import Classifier
from linnaeus.models import Network
from linnaeus.models.resnet import RESNETS, Bottleneck

NAME = "torchvision.pth"
COMMENT = b"written by linnaeus"
"""The comment of the zip archive, by which an export may be replaced. PyTorch writes none."""
OTHERWISE = "--to onnx takes any network"


def export_torchvision(classifier: Classifier, out: Path | None = None) -> tuple[Path, Path]:
    """Write the weights under torchvision's names, and a model card beside them. Returns both files.

    The file is what `torch.save` makes of a dict of tensors: `torch.load(file, weights_only=True)` reads it, and the
    network that the card names loads it strictly. Raises UserError if torchvision has no such network.
    """
    classifier.require_one_label("export")
    network = classifier.network
    call = torchvision_call(network, str(classifier.path))
    path = out or classifier.path.with_name(NAME)
    beside = path.with_name(CARD)
    check_output(path, _has_comment)
    check_output(beside, is_unedited)
    # Clones, so that tensors which share memory are written in full.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    with atomic(path) as temporary:
        # torch's own writer of files raises no OSError if the disk is full.
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        with temporary.open("wb") as file:
            # An archive ends with the length of its comment.
            file.write(buffer.getbuffer()[:-2])
            file.write(len(COMMENT).to_bytes(2, "little") + COMMENT)
    write_text(beside, with_checksum(model_card(classifier, path.name, call)))
    return path, beside


def _has_comment(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-min(len(COMMENT), path.stat().st_size), os.SEEK_END)
        return file.read() == COMMENT


def torchvision_call(network: Network, path: str) -> str:
    """The Python that makes the same network with torchvision. Raises UserError, with the reason, where none does."""
    arch = network.arch
    name, arguments = arch["name"], arch["arguments"]
    if name not in RESNETS and name != "inception_v1":
        title = "a network of your own" if name == "custom" else name
        raise UserError(f"{path}: torchvision has no {title}; {OTHERWISE}")
    if network.head_stages:
        stages = " and ".join(network.head_stages)
        raise UserError(f"{path}: its head uses {stages}, and torchvision's {name} only the last; {OTHERWISE}")
    if arch["channels"] != 3:
        takes = counted(arch["channels"], "channel")
        raise UserError(f"{path}: takes {takes}, and torchvision's {name} takes 3; {OTHERWISE}")
    if name == "inception_v1":
        if arguments["branch5x5"] != "3x3":
            raise UserError(
                f"{path}: has the paper's 5x5 branch, where torchvision's googlenet has 3x3, so its weights do not "
                f"fit; train with --set model.arguments.branch5x5=3x3, or {OTHERWISE}"
            )
        return f"googlenet(num_classes={arch['classes']}, aux_logits=False, init_weights=False)"
    if arguments["stem"] != "imagenet":
        raise UserError(f"{path}: has the small stem for small images, which torchvision lacks; {OTHERWISE}")
    # Only bottleneck blocks have a 1x1 convolution that may carry the stride.
    if RESNETS[name][0] is Bottleneck and arguments["stride_in"] != "3x3":
        raise UserError(
            f"{path}: has its strides in the 1x1 convolutions, as its weights were trained, but torchvision's {name} "
            f"has them in the 3x3: it would load every tensor, and its accuracy would be some 10 points lower; "
            f"{OTHERWISE}, or train from weights whose stride lies in the 3x3: `linnaeus weights list`"
        )
    return f"{name}(num_classes={arch['classes']})"
