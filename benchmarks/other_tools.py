"""Time to a first classifier: Linnaeus against fastai and Ultralytics, each in its own environment, in turns.

Every tool gets the same images: every fourth one of the training and validation folders, unless --share says otherwise.
Timed is the whole command, from the start of the interpreter to the saved model, as wall-clock time and as processor
time of all its processes; the second is less sensitive to other programs. Linnaeus runs with empty stores, and again
with those of the first run. fastai trains the head of a ResNet-50 from the same ImageNet weights for one and for two
epochs (`fit_one_cycle` with a frozen body). Ultralytics gets no weights, since it downloads them from an address of its
own: one epoch of its smallest classifier says what an epoch costs, and nothing about accuracy.

    python benchmarks/other_tools.py [--fastai PYTHON] [--ultralytics PYTHON] [--data DIR] [--weights FILE] [--share N]

PYTHON is the interpreter of an environment with that tool: `pip install torch==2.13.0`, `pip install --no-deps
torchvision==0.28.0`, then `pip install fastai safetensors`, or `pip install ultralytics`. Beside a CPU build of torch,
torchvision's operators do not load; they are declared here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SIZE, BATCH = 224, 32


def train_fastai(images: Path, weights: Path, epochs: int, out: Path) -> dict[str, float]:
    """Train the head of a ResNet-50 with fastai; called in an environment that has it."""
    declare_operators()
    from fastai.vision.all import ImageDataLoaders, Normalize, Resize, accuracy, aug_transforms, vision_learner
    from torch import nn
    from torchvision.models import resnet50

    loaders = ImageDataLoaders.from_folder(
        images,
        valid="valid",
        item_tfms=Resize(256),
        batch_tfms=[*aug_transforms(size=SIZE), Normalize.from_stats([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])],
        bs=BATCH,
        num_workers=0,
    )
    learner = vision_learner(loaders, resnet50, metrics=accuracy, normalize=False, pretrained=False)
    learner.model[0] = nn.Sequential(*list(with_weights(resnet50(), weights).children())[:-2])
    learner.freeze()
    learner.fit_one_cycle(epochs)
    learner.export(out / "export.pkl")
    loss, right = learner.validate()
    return {"valid_accuracy": float(right), "valid_loss": float(loss)}


def with_weights(network, file: Path):
    """torchvision's ResNet-50 with ImageNet weights whose stride is in the first convolution of a block."""
    import torch
    from safetensors.torch import load_file

    network.load_state_dict({name: value.float() for name, value in load_file(file).items()}, strict=False)
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    return network.to(torch.float32)


def train_ultralytics(images: Path, weights: Path, epochs: int, out: Path) -> dict[str, float]:
    """Train the smallest YOLO classifier from random weights; called in an environment that has it."""
    declare_operators()
    from ultralytics import YOLO

    model = YOLO("yolo11n-cls.yaml")
    settings = {"imgsz": SIZE, "batch": BATCH, "workers": 0, "device": "cpu", "project": str(out), "amp": False}
    result = model.train(data=str(images), epochs=epochs, **settings)
    return {"valid_accuracy": float(result.top1)}


def declare_operators() -> None:
    """Make torchvision importable beside a CPU build of torch."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d"):
            library.define(f"{name}(Tensor x) -> Tensor")
            library.define(f"_{name}_backward(Tensor x) -> Tensor")
        KEPT.append(library)


KEPT: list[object] = []
"""Declarations that must outlive the function that made them."""
TOOLS = {"fastai": train_fastai, "ultralytics": train_ultralytics}


def copy_share(source: Path, folder: Path, share: int) -> dict[str, int]:
    """Link every `share`-th image of each class of train/ and valid/; returns the number of images by split."""
    counts = {}
    for split, name in (("train", "train"), ("valid", "valid")):
        counts[split] = 0
        for kind in sorted((source / split).iterdir()):
            (folder / name / kind.name).mkdir(parents=True)
            for file in sorted(kind.iterdir())[::share]:
                (folder / name / kind.name / file.name).symlink_to(file.resolve())
                counts[split] += 1
    return counts


def measured(name: str, command: list[str], environment: dict[str, str], folder: Path) -> dict[str, float]:
    """Run a command and print one line: its wall-clock and processor seconds, and what its last line reports."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    # Where bytecode is not written, every start compiles 300 files, which an installed package never does.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | environment
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{name}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    line = done.stdout.strip().splitlines()[-1]
    accuracy = json.loads(line)["valid_accuracy"] if line.startswith("{") else None
    result = {"wall": round(wall, 1), "processor": round(used, 1)} | ({} if accuracy is None else {"valid": accuracy})
    print(f"{name:32} {result}", flush=True)
    return result


def run_all(arguments: argparse.Namespace, work: Path) -> None:
    counts = copy_share(arguments.data, work / "images", arguments.share)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {counts}")
    here = str(Path(__file__).resolve())
    train = [sys.executable, "-m", "linnaeus", "train", "images", "--recipe", "photos", "--weights"]
    for turn in range(arguments.turns):
        cache = {"LINNAEUS_CACHE": str(work / f"cache-{turn}")}
        for state in ("cold", "warm"):
            out = work / f"linnaeus-{turn}-{state}"
            command = [*train, str(arguments.weights), "--model", "resnet50", "--out", str(out)]
            measured(f"linnaeus, {state} stores", command, cache, work)
            print(f"{'':32} {json.loads((out / 'metrics.json').read_text())['valid']['accuracy']:.4f} right")
        for tool, python in (("fastai", arguments.fastai), ("ultralytics", arguments.ultralytics)):
            for epochs in (1, 2) if python else ():
                out = work / f"{tool}-{turn}-{epochs}"
                out.mkdir()
                words = ["--inside", tool, "--data", str(work / "images"), "--weights", str(arguments.weights)]
                command = [python, here, *words, "--epochs", str(epochs), "--out", str(out)]
                measured(f"{tool}, {epochs} epoch(s)", command, {"PYTHONPATH": "", "YOLO_OFFLINE": "true"}, work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fastai", metavar="PYTHON")
    parser.add_argument("--ultralytics", metavar="PYTHON")
    parser.add_argument("--data", type=Path, default=SHARED / "flowers16")
    parser.add_argument("--weights", type=Path, default=SHARED / "weights" / "resnet50-v1-imagenet.safetensors")
    parser.add_argument("--share", type=int, default=4)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--inside", choices=TOOLS, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        result = TOOLS[arguments.inside](arguments.data, arguments.weights, arguments.epochs, arguments.out)
        print(json.dumps(result))
        return
    work = Path(tempfile.mkdtemp(prefix="linnaeus-tools-"))
    try:
        run_all(arguments, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
