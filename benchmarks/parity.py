"""Parity of backbones with their libraries: the same weights give the same features and logits in float32.

Each library creates its own network with random weights and statistics; its state dict is saved, loaded into the
backbone as `--weights` loads it, and both networks see the same images. Lite0 also has its real weights. A difference
is the largest one of any value, relative to the largest value of the library:

- whole: of features and of logits, in one pass through all stages;
- cuts: of the logits from the stored activations at every cut, the worst;
- executors: of the features with merged BatchNorms, and of an exported ONNX graph of them, the worse.

Fails where one of them is larger than 1e-5. `--out` adds to a file that exists.

    OMP_NUM_THREADS=1 python benchmarks/parity.py [--only NAME,…] [--lite0 FILE] [--out docs/results/parity.json]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "models"))

from reference import torchvision
from tiny_transformers import CONFIGS, write_repository

from linnaeus.models.executors import FrozenPart
from linnaeus.models.network import Network
from linnaeus.models.onnx_graph import export_graph, fuse_batchnorms, inference_session
from linnaeus.models.weights.loading import load_weights

LITE0 = (
    Path(__file__).resolve().parents[2] / "shared" / "data" / "weights" / "tf_efficientnet_lite0-imagenet.safetensors"
)
TOLERANCE = 1e-5
CLASSES = 7

TIMM = {
    "convnext_atto": "ConvNeXt",
    "densenet121": "DenseNet",
    "eva02_tiny_patch14_224": "EVA-02",
    "maxvit_rmlp_pico_rw_256": "MaxViT",
    "mixer_s32_224": "MLP-Mixer",
    "mobilenetv3_small_050": "MobileNetV3",
    "mobilenetv4_conv_small": "MobileNetV4",
    "regnetx_002": "RegNet",
    "repvgg_a0": "RepVGG",
    "resnet18": "ResNet",
    "swin_tiny_patch4_window7_224": "Swin",
    "tf_efficientnet_lite0": "EfficientNet",
    "vit_small_patch14_dinov2": "DINOv2",
    "vit_tiny_patch16_224": "ViT",
}
HUB = {
    "beit": "BEiT",
    "clip_vision_model": "CLIP",
    "convnext": "ConvNeXt",
    "deit": "DeiT",
    "dinov2": "DINOv2",
    "dinov3_vit": "DINOv3",
    "regnet": "RegNet",
    "resnet": "ResNet",
    "siglip_vision_model": "SigLIP",
    "swinv2": "Swin V2",
    "vit": "ViT",
}
"""Tiny configurations of each."""


def make_unequal(network: nn.Module, x: Tensor) -> None:
    """Give every parameter and running statistic a value of its own: fresh norms and layer scales would hide a swap."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * parameter.std(correction=0).clamp(min=0.2) * torch.randn_like(parameter))
        network.train()
        network(x)
        network.eval()


def difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def compare(ours: Network, x: Tensor, features: Tensor, logits: Tensor) -> dict[str, Any]:
    """The differences of a backbone from its library's features (N, F) and logits (N, classes)."""
    ours.eval()
    with torch.inference_mode():
        whole = max(difference(ours.pool(ours.run(x, stop="head")), features), difference(ours(x), logits))
        cuts = max(difference(ours.run(FrozenPart(ours, cut)(x), start=cut), logits) for cut in ours.stages[1:])
        part = FrozenPart(ours, "head").eval()
        fused = difference(fuse_batchnorms(part, x)(x), features)
    (graph,) = inference_session(export_graph(part, x)).run(None, {"x": x.numpy()})
    exported = difference(torch.from_numpy(graph), features)
    return {
        "stages": len(ours.stages),
        "parameters": sum(p.numel() for p in ours.parameters()),
        "whole": whole,
        "cuts": cuts,
        "executors": max(fused, exported),
    }


def timm_network(name: str, weights: Path | None, folder: Path) -> dict[str, Any]:
    """A network of timm, with the classifier of timm's own network as its head."""
    import timm

    torch.manual_seed(0)
    options: dict[str, Any] = {"dynamic_img_size": True} if "dinov2" in name else {}
    theirs: Any = timm.create_model(name, num_classes=1000 if weights else CLASSES, **options).eval()
    size = 224 if "dinov2" in name else int(theirs.pretrained_cfg["input_size"][-1])
    x = torch.randn(2, 3, size, size)
    if weights:
        theirs.load_state_dict({key: t.float() for key, t in load_file(weights).items()})
    else:
        make_unequal(theirs, x)
    file = folder / "model.safetensors"
    save_file({key: t.contiguous() for key, t in theirs.state_dict().items()}, file)
    ours = load_weights(f"timm/{name}", str(file), classes=theirs.num_classes).model
    classifier = theirs.get_classifier()
    ours.fc.load_state_dict(classifier.state_dict())
    with torch.inference_mode():
        features = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
        return compare(ours, x, features, theirs(x))


def hub_network(kind: str, folder: Path) -> dict[str, Any]:
    """A network of transformers; its logits are those of our head on the library's features."""
    from transformers import AutoModel

    write_repository(folder, kind)
    theirs = AutoModel.from_pretrained(folder)
    x = torch.randn(2, 3, int(CONFIGS[kind]["image_size"]), int(CONFIGS[kind]["image_size"]))
    make_unequal(theirs, x)
    theirs.save_pretrained(folder)
    ours = load_weights(f"hf/somebody/{kind}", str(folder), classes=CLASSES).model
    with torch.inference_mode():
        outputs = theirs(pixel_values=x)
        pooled = getattr(outputs, "pooler_output", None)
        if pooled is None:  # DeiT and BEiT without a pooler: the class token
            pooled = outputs.last_hidden_state[:, 0]
        features = pooled.flatten(1)
        return compare(ours, x, features, ours.fc(features))


def onnx_network(folder: Path) -> dict[str, Any]:
    """A graph of timm's ResNet-18, exported from timm's own network."""
    import timm

    torch.manual_seed(0)
    theirs, x = timm.create_model("resnet18", num_classes=0), torch.randn(2, 3, 224, 224)
    make_unequal(theirs, x)
    (folder / "net.onnx").write_bytes(export_graph(theirs, x))
    name = f"onnx/{folder / 'net.onnx'}"
    ours = load_weights(name, "pretrained", classes=CLASSES).model.eval()
    with torch.inference_mode():
        features = theirs(x)
        whole = max(difference(ours.pool(ours.run(x, stop="head")), features), difference(ours(x), ours.fc(features)))
        cuts = difference(ours.run(FrozenPart(ours, "head")(x), start="head"), ours.fc(features))
    parameters = sum(p.numel() for p in theirs.parameters())
    return {"stages": len(ours.stages), "parameters": parameters, "whole": whole, "cuts": cuts, "executors": None}


def networks(lite0: Path) -> dict[str, tuple[str, Callable[[Path], dict[str, Any]]]]:
    """Name -> (family, its comparison in an empty folder)."""
    found: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {}
    for name, family in TIMM.items():
        found[f"timm/{name}"] = family, partial(timm_network, name, None)
    if lite0.is_file():
        real = "timm/tf_efficientnet_lite0, ImageNet weights"
        found[real] = "EfficientNet", partial(timm_network, "tf_efficientnet_lite0", lite0)
    for kind, family in HUB.items():
        found[f"hf/{kind}, tiny"] = family, partial(hub_network, kind)
    found["onnx/resnet18"] = "ResNet", onnx_network
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="parts of names, with commas")
    parser.add_argument("--lite0", type=Path, default=LITE0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ["LINNAEUS_OFFLINE"] = "1"
    torchvision()  # timm and transformers import it
    from transformers.utils import logging

    logging.disable_progress_bar()
    results: dict[str, Any] = {}
    if options.out is not None and options.out.exists():
        results = json.loads(options.out.read_text(encoding="utf-8"))
    for name, (family, work) in networks(options.lite0).items():
        if options.only and not any(part in name for part in options.only.split(",")):
            continue
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            results[name] = {"family": family, **work(Path(folder))}
        row = results[name]
        shown = "  ".join(f"{key} {row[key]:.1e}" for key in ("whole", "cuts", "executors") if row[key] is not None)
        print(
            f"{name:46} {family:12} {row['stages']:2} stages  {shown}  {time.process_time() - started:.0f} s",
            flush=True,
        )
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    worst = [
        name for name, row in results.items() if not max(row["whole"], row["cuts"], row["executors"] or 0) <= TOLERANCE
    ]
    if worst:
        sys.exit(f"differs by more than {TOLERANCE:g}: {', '.join(worst)}")


if __name__ == "__main__":
    main()
