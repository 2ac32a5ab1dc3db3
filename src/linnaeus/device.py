"""Compute devices and memory: resolve a device name, count cores, measure free memory, keep freed memory."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnaeus.errors import UserError, did_you_mean, install

if TYPE_CHECKING:  # the launcher of several processes needs the number of cores, and not torch
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")

# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4

# The values that both thresholds reach by themselves in a process that frees blocks of 32 MB. Once set, they no longer
# adapt, so these are the values to leave behind.
LARGEST_MMAP_THRESHOLD = 32 << 20
GROWN_TRIM_THRESHOLD = 2 * LARGEST_MMAP_THRESHOLD

_lock = threading.Lock()
_holders = 0


def unknown_device(name: str) -> UserError:
    """The error for a name that is none of `DEVICES`; other tools number the GPUs, as in `cuda:0` and `0,1`."""
    gpu = re.fullmatch(r"(?:cuda|gpu)?:?([\d,]*)", name.lower())
    hint = did_you_mean(name.lower(), DEVICES)
    if gpu:
        chosen = f"; CUDA_VISIBLE_DEVICES={gpu[1]} before the command chooses the GPU" if gpu[1] else ""
        hint = f" (did you mean cuda?){chosen}"
    return UserError(f"--device {name}: not one of {', '.join(DEVICES)}{hint}")


def choose_device(name: str) -> torch.device:
    """Resolve `auto` to the fastest device. Raises UserError if the device is not available."""
    if name not in DEVICES:
        raise unknown_device(name)
    # torch takes a second to import, and the check above does not need it.
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: this torch sees no CUDA device; use --device cpu, or install a CUDA build of torch"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: this machine has no Apple GPU; use --device cpu")
    return torch.device(name)


def require_int8(device: str) -> None:
    """Raise UserError unless `model.frozen_precision = "int8"` can run on this kind of device."""
    if device != "cpu":
        raise UserError(
            f'model.frozen_precision = "int8": runs on a CPU only, not on {device}; use --device cpu, or "bf16"'
        )
    if find_spec("onnxruntime") is None:
        raise UserError(
            f'model.frozen_precision = "int8": needs ONNX Runtime: {install("onnx")}; or remove the setting'
        )


def machine() -> dict[str, Any]:
    """Key of a measured speed: on another machine, or with other versions, another executor may be the fastest."""
    from importlib.metadata import PackageNotFoundError, version  # with the email package, 13 ms

    description = {"machine": platform.machine(), "processor": platform.processor(), "cores": os.cpu_count()}
    for package in ("torch", "onnxruntime"):
        try:
            description[package] = version(package)
        except PackageNotFoundError:
            description[package] = None
    return description


def available_cores() -> int:
    """Number of cores that this process may use: a container or `taskset` may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory(device: torch.device) -> int:
    """Free memory of `device` in bytes; on CPU within the limit of the control group (container)."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = _available()
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max", which means no limit
            continue
    return max(0, free)


def _available() -> int:
    """Bytes that the operating system can provide without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:  # Windows has no sysconf
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # type: ignore[attr-defined, unused-ignore]
    except (ValueError, OSError, AttributeError):
        return 4 << 30  # a small laptop, if the system does not tell


@contextmanager
def steady_heap() -> Iterator[None]:
    """Inside the block, freed memory of any size is kept for the next allocation, instead of returned to the system.

    glibc returns every freed block above 32 MB and maps it again, page by page, at the next allocation: for the feature
    maps of a network, in every batch. On CPU that takes a third of the time of ResNet-50, in training and inference
    (`docs/LOG.md` has the measurements). Keeping the memory costs up to a quarter more of it in training, since blocks
    of many sizes leave holes. Without glibc nothing changes. Blocks may be nested and held by several threads; when the
    last one ends, free memory is returned to the system.
    """
    _hold(1)
    try:
        yield
    finally:
        _hold(-1)


def _hold(change: int) -> None:
    global _holders
    with _lock:
        before, _holders = _holders, _holders + change
        if before == 0 or _holders == 0:
            _keep(_holders > 0)


def _keep(keep: bool) -> None:
    libc = _glibc()
    if libc is None:
        return
    if keep:
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(MMAP_MAX, 0)
    else:
        libc.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        libc.mallopt(TRIM_THRESHOLD, GROWN_TRIM_THRESHOLD)
        libc.mallopt(MMAP_MAX, 65536)
        return_freed_memory()


def return_freed_memory() -> None:
    """Return freed memory to the system, also what lies between blocks in use; takes milliseconds."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library if it is glibc with the needed functions; else None."""
    if platform.system() != "Linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if all(hasattr(libc, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim")) else None
