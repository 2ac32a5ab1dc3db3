"""Which recipe, where the user names none: from the images' size, channels and number, and the weights at hand."""

from __future__ import annotations

from linnaeus.data.table import Table

SMALL = 64  # pixels: images up to this size need no stem that throws three quarters of them away


def choose_recipe(table: Table, weights_at_hand: list[str]) -> tuple[str, str]:
    """(name of a packaged recipe, why) for a source. `weights_at_hand`: names of published weights."""
    n = len(table)
    if table.images is not None:
        side = max(table.images.shape[1:3])
        if side <= SMALL:
            if table.channels == 1:
                name = "digits" if n < 10_000 else "mnist"
                return name, f"{n} gray images of {side} pixels"
            return "small", f"{n} color images of {side} pixels"
    if "resnet50" in {name.partition("-")[0] for name in weights_at_hand}:
        return "photos", f"{n} photographs, and ImageNet weights are at hand"
    return "scratch", (
        f"{n} photographs, and no ImageNet weights are at hand, with which far fewer images give far more: "
        "linnaeus weights pull resnet50-torchvision-v1"
    )
