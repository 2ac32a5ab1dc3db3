"""Measurements of this machine, stored so that later runs make the same choice and measure only once."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from linnaeus.device import machine
from linnaeus.errors import UserError
from linnaeus.files import read_object, write_text


@dataclass(frozen=True)
class ChoiceRecord:
    """A JSON file of names or numbers by key; without a path nothing is remembered."""

    path: Path | None

    def read(self, key: str) -> str | None:
        """The choice under `key`; None if there is none, or no readable file."""
        if self.path is not None:
            name = read_object(self.path).get(key)
            return name if isinstance(name, str) else None
        return None

    def read_number(self, key: str) -> float | None:
        """The number under `key`; None if there is none, or no readable file."""
        if self.path is not None:
            value = read_object(self.path).get(key)
            return value if isinstance(value, int | float) else None
        return None

    def write(self, key: str, value: str | float) -> None:
        """Store the choice. Without it the next run measures again, so an unwritable folder is not an error."""
        if self.path is not None:
            with suppress(OSError, UserError):
                write_text(self.path, json.dumps(read_object(self.path) | {key: value}))


def record_key(*values: object) -> str:
    """A key of JSON values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def choice_key(computation: list[object]) -> str:
    """A key of everything that a speed depends on: machine, threads, libraries, and the JSON values given."""
    # What the processor can do and may do: without AVX-512, bfloat16 is several times as slow as float32.
    instructions = [torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA")]
    return record_key(machine(), torch.get_num_threads(), instructions, *computation)
