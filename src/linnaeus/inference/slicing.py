"""The value of a CSV column for each measured image, for figures by slice."""

from __future__ import annotations

from linnaeus.data.sources import open_source
from linnaeus.errors import UserError
from linnaeus.inference.source import LabeledImages

MAX_SLICES = 100
EMPTY = "(empty)"  # shown for images whose cell is empty


def slice_values(images: LabeledImages, column: str) -> list[str]:
    """The value of `column` for each of the images, in their order.

    Raises UserError if the source is not a CSV or lacks the column, or if it has more than MAX_SLICES values.
    """
    if images.table.kind != "csv":
        raise UserError(
            f"{images.source}: --slice {column} names a column, and only a CSV has columns; write one with path, "
            f"label and {column}"
        )
    # Opened again with the column as group, which is how a table carries one value per image.
    table = open_source(images.source, group=column, lenient=True)
    assert table.groups is not None
    by_image = {table.sample_id(i): value for i, value in enumerate(table.groups)}
    values = [by_image[images.table.sample_id(i)] or EMPTY for i in images.indices.tolist()]
    count = len(set(values))
    if count > MAX_SLICES:
        raise UserError(
            f"{images.source}: column {column!r} has {count} different values, and at most {MAX_SLICES} slices are "
            "compared; write a column with fewer, such as ranges of it"
        )
    return values
