"""`env` and `completion`: what this installation has, for bug reports, and completion of commands in a shell."""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import Any

import click

from linnaeus._version import __version__
from linnaeus.console import echo
from linnaeus.text import align

PACKAGES = (
    *("torch", "numpy", "scipy", "pillow", "safetensors", "pydantic", "click", "matplotlib"),
    *("timm", "transformers", "huggingface_hub", "torchvision"),
    *("onnx", "onnxscript", "onnxruntime", "fastapi", "uvicorn", "optuna", "captum", "scikit-learn", "pi-heif"),
)
VARIABLES = (
    *("LINNAEUS_CACHE", "LINNAEUS_OFFLINE", "LINNAEUS_MIRROR", "HF_ENDPOINT", "CUDA_VISIBLE_DEVICES"),
    *("OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "RANK", "WORLD_SIZE"),
)
SHELLS = ("bash", "zsh", "fish")
COMPLETE = "_LINNAEUS_COMPLETE"  # environment variable by which a shell asks for completions


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def env(as_json: bool) -> None:
    """Describe this installation, for bug reports.

    Prints the versions, devices, cache, weights on this machine, and the environment variables that affect Linnaeus.
    """
    described = installation() | devices_and_files()
    if as_json:
        echo(json.dumps(described, indent=2, ensure_ascii=False))
        return
    rows = []
    for key, value in described.items():
        if isinstance(value, dict):
            rows += [(name, str(entry)) for name, entry in value.items()]
        else:
            rows.append((key, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    echo("\n".join(align(rows, "<<", indent="")))


def installation() -> dict[str, Any]:
    """Versions, machine and environment variables; needs no import of torch."""
    return {
        "linnaeus": __version__,
        "Python": f"{platform.python_version()} ({sys.executable})",
        "system": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _version(package: str) -> str:
    from importlib import metadata  # with the email package, 13 ms

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def devices_and_files() -> dict[str, Any]:
    """Devices as torch sees them, the cache with its size, and the names of the weights in it."""
    import torch

    from linnaeus.cache import default_cache
    from linnaeus.device import available_cores, free_memory
    from linnaeus.models.weights.store import weights_at_hand

    cache = default_cache()
    devices = [f"cpu ({available_cores()} cores, {torch.backends.cpu.get_cpu_capability()})"]
    devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    # Counted on the disk, because unfinished entries belong to the size too.
    used = sum(file.stat().st_size for file in cache.root.rglob("*") if file.is_file()) if cache.root.is_dir() else 0
    return {
        "devices": devices,
        "free memory": f"{free_memory(torch.device('cpu')) / 1e9:.1f} GB",
        "cache": f"{cache.root} ({used / 1e9:.2f} GB)",
        "weights": weights_at_hand() or ["none downloaded (`linnaeus weights list` shows what is available)"],
    }


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands in a shell.

    \b
    bash: eval "$(linnaeus completion bash)"       in ~/.bashrc
    zsh:  eval "$(linnaeus completion zsh)"        in ~/.zshrc
    fish: linnaeus completion fish | source        in ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    echo(kind(context.find_root().command, {}, "linnaeus", COMPLETE).source())
