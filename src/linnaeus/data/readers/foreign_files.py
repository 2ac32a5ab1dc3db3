"""Recognize files of other programs that are given as a source, and tell how to read their content."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from linnaeus.console import counted

UNPACK = "unpack it, and give its folder"
EXPORT = "save the table as CSV, with a row `path,label` for each image"
MANIFEST = "download the images that it names by address, and write a CSV with a row `path,label` for each"
SAVE = "save each one in a folder of its class, for example with the package datasets"

BY_FIRST_BYTES = {
    b"7z\xbc\xaf\x27\x1c": f"a 7z archive, which is not supported: {UNPACK}",
    b"Rar!": f"a RAR archive, which is not supported: {UNPACK}",
    b"\x28\xb5\x2f\xfd": f"compressed with Zstandard, which is not supported: {UNPACK}",
    b"\x89HDF": "an HDF5 file, which is not supported: write its images as files, in a folder for each class",
    b"\x93NUMPY": "an array of NumPy: write its images as files, or use linnaeus.sklearn.ImageClassifier on the array",
    b"SQLite format 3": f"an SQLite database: {EXPORT}",
    b"PAR1": f"a Parquet file: if it holds the images, {SAVE}; else {EXPORT}, or give the DataFrame to linnaeus.train",
    b"MATLAB": f"a MATLAB file: {EXPORT}",
    b"%PDF": f"a PDF, not a list: {EXPORT}",
    b"\xd0\xcf\x11\xe0": f"an Excel workbook: {EXPORT}",
}
BY_SUFFIX = {
    **dict.fromkeys((".xlsx", ".xlsm", ".ods"), f"a spreadsheet: {EXPORT}"),
    **dict.fromkeys((".json", ".ndjson"), f"JSON, which is not supported as a source: {EXPORT}"),
    **dict.fromkeys((".pkl", ".pickle"), f"a pickle, which may run code and is not opened: {EXPORT}"),
    **dict.fromkeys((".yaml", ".yml"), "a YAML file, not images: give the folder with the class folders"),
    **dict.fromkeys((".safetensors", ".pth", ".pt", ".onnx"), "a model or weights, not images: give the images"),
    ".manifest": f"a manifest of SageMaker: {MANIFEST}",
    ".tfrecord": "a TFRecord file, which is not supported: write its images as files, in a folder for each class",
}

CONVERT = "save them as PNG or TIFF"
UNREAD_IMAGES = {
    **dict.fromkeys(
        (".dcm", ".dicom"),
        f"DICOM, which is not supported: {CONVERT}, for example with pydicom, all with the same window of intensities",
    ),
    **dict.fromkeys((".nii", ".nii.gz", ".nrrd", ".mha"), "volumes, not images: save the slices as PNG or TIFF"),
    **dict.fromkeys(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2", ".pef"),
        "raw photos, which are not supported: export them as JPEG or TIFF from the camera's program, or with rawpy",
    ),
    **dict.fromkeys(
        (".npy", ".npz"), "arrays of NumPy: save each image as PNG, or use linnaeus.sklearn.ImageClassifier"
    ),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm"), "videos: save frames of them as JPEG, grouped by video"),
    **dict.fromkeys(
        (".svs", ".ndpi", ".czi", ".lif", ".mrxs"), f"microscope slides, which are not supported: {CONVERT} tiles"
    ),
    **dict.fromkeys(
        (".psd", ".svg", ".eps", ".ai", ".pdf"), "drawings or documents, which are not supported: export them as PNG"
    ),
    **dict.fromkeys((".parquet", ".arrow", ".tfrecord"), f"tables, not images: if they hold the images, {SAVE}"),
    **dict.fromkeys((".exr", ".hdr", ".mat", ".h5", ".jxl"), f"a format that is not read: {CONVERT}"),
}
"""Ending -> what files of images are that no reader opens, and what to do with them."""


def unread_images(names: Iterable[str]) -> str | None:
    """The most frequent kind of unread images among file names, with what to do; None where there is none."""
    endings = Counter(end for name in names if (end := _ending(name.lower())) in UNREAD_IMAGES)
    if not endings:
        return None
    ending, count = endings.most_common(1)[0]
    return f"{counted(count, 'file')} ending in {ending} ({UNREAD_IMAGES[ending]})"


def _ending(name: str) -> str:
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def foreign_file(path: Path, head: bytes) -> str | None:
    """What a file is that begins with `head`, with what to do; None where it may be a list or an array."""
    by_bytes = next((what for start, what in BY_FIRST_BYTES.items() if head.startswith(start)), None)
    return by_bytes or BY_SUFFIX.get(path.suffix.lower())
