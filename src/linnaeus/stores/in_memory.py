"""Rows of stores in the memory of the device, where there is room."""

from __future__ import annotations

import numpy as np
import torch

from linnaeus.data.batches import InMemoryRows, Rows
from linnaeus.device import free_memory
from linnaeus.stores.activations import ActivationStore
from linnaeus.stores.pixelstore import PixelStore

RESIDENT = 0.25  # share of a GPU's free memory that rows may fill
SMALL = 32 << 20  # bytes of rows that are loaded into memory on CPU: more would make memory grow with the images


def in_memory(store: ActivationStore, device: torch.device) -> Rows:
    """All rows of the store in the device's memory where there is room, else the store on the disk."""
    if store.nbytes > (SMALL if device.type == "cpu" else RESIDENT * free_memory(device)):
        return store
    return InMemoryRows(torch.from_numpy(np.array(store.array)).to(device))


def on_device(rows: Rows, device: torch.device) -> Rows:
    """Rows of one shape in a GPU's memory where there is room, so that no batch crosses the bus. On CPU unchanged."""
    if device.type != "cuda" or not isinstance(rows, PixelStore) or rows.uniform is None or rows.failed:
        return rows
    if rows.nbytes > RESIDENT * free_memory(device):
        return rows
    pixels, _ = rows.gather(np.arange(len(rows)))
    return InMemoryRows(torch.from_numpy(pixels).to(device))
