"""CIFAR binaries and IDX files: the real ones, and hostile ones under a memory limit."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laid_out import refused

from linnaeus.data.archives.tar import read_files
from linnaeus.data.readers.cifar import CIFAR100
from linnaeus.data.readers.idx import read_idx
from linnaeus.data.sources import open_source
from linnaeus.errors import UserError

COMPRESSORS = [gzip.compress, bz2.compress, lzma.compress]
FUZZ = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
RNG = np.random.default_rng(0)


def records(n: int, classes: int = 10, header: int = 1) -> bytes:
    rows = RNG.integers(0, 256, (n, header + 3072), dtype=np.uint8)
    rows[:, header - 1] = np.arange(n) % classes
    return rows.tobytes()


def cifar_files() -> dict[str, bytes]:
    names = "\n".join(f"class {i}" for i in range(10)) + "\n\n"
    return {"data_batch_1.bin": records(20), "test_batch.bin": records(10), "batches.meta.txt": names.encode()}


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


def pack(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, raw in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    return path


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def mnist_like(folder: Path, prefix: str = "", zipped: bool = True, n: int = 20) -> tuple[Path, np.ndarray]:
    pictures = RNG.integers(0, 256, (n, 5, 4), dtype=np.uint8)
    files = {}
    for part in ("train", "t10k" if not prefix else "test"):
        files[f"{prefix}{part}-images-idx3-ubyte"] = idx(pictures)
        files[f"{prefix}{part}-labels-idx1-ubyte"] = idx((np.arange(n) % 3).astype(np.uint8))
    if zipped:
        files = {f"{name}.gz": gzip.compress(raw) for name, raw in files.items()}
    return lay(folder, files), pictures


def test_cifar10_12k(shared_data: Path):
    table = open_source(shared_data / "cifar10-12k")
    assert (table.kind, table.channels, len(table)) == ("cifar", 3, 12000)
    assert table.classes[0] == "airplane"
    assert {split: counts.sum() for split, counts in table.counts().items()} == {"train": 10000, "test": 2000}
    raw = np.fromfile(shared_data / "cifar10-12k/cifar-10-batches-bin/test_batch.bin", np.uint8)
    record = raw[7 * 3073 : 8 * 3073]
    i = int(table.where("test")[7])
    assert table.images is not None
    assert table.labels[i] == record[0]
    for channel in range(3):
        assert (table.images[i, :, :, channel].ravel() == record[1 + 1024 * channel :][:1024]).all()


def test_mnist(shared_data: Path):
    table = open_source(shared_data / "mnist")
    assert (table.kind, table.channels, len(table)) == ("idx", 1, 70000)
    assert table.images is not None
    assert table.images.shape == (70000, 28, 28)
    assert table.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]  # the first ten labels of MNIST
    assert table.labels[table.where("test")][:5].tolist() == [7, 2, 1, 0, 4]
    assert table.counts()["train"][:2].tolist() == [5923, 6742]
    assert 33.31 < table.images[:60000].mean() < 33.33  # 0.1307 of 255
    assert table.sample_id(0) == "train[0]"


@pytest.mark.parametrize("form", ["folder", "above", "tar.gz", "tar", "folder with tar.gz"])
def test_cifar_in_every_form(tmp_path: Path, form: str):
    files = cifar_files()
    inside = {f"cifar-10-batches-bin/{name}": raw for name, raw in files.items()}
    if form in ("folder", "above"):
        lay(tmp_path / "cifar-10-batches-bin", files)
        path = tmp_path / "cifar-10-batches-bin" if form == "folder" else tmp_path
    elif form == "tar":
        path = pack(tmp_path / "c.tar", inside, "w")
    else:
        path = pack(tmp_path / "cifar-10-binary.tar.gz", inside)
        path = path if form == "tar.gz" else tmp_path
    table = open_source(path)
    assert table.classes == tuple(f"class {i}" for i in range(10))
    assert {split: counts.sum() for split, counts in table.counts().items()} == {"train": 20, "test": 10}
    assert table.sample_id(0) == "train[0]"
    assert open_source(path).fingerprint() == table.fingerprint()


def test_planes_become_channels(tmp_path: Path):
    planes = RNG.integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    raw = b"".join(bytes([label]) + image.tobytes() for label, image in enumerate(planes))
    table = open_source(lay(tmp_path, {"data_batch_1.bin": raw}))
    assert table.images is not None
    assert (table.images[1, :, :, 2] == planes[1, 2]).all()
    assert (table.images[0, 5, 30] == planes[0, :, 5, 30]).all()


def test_batches_are_read_in_order(tmp_path: Path):
    files = {f"data_batch_{i}.bin": bytes([i % 10]) + bytes([i]) * 3072 for i in (10, 2, 1)}
    table = open_source(lay(tmp_path, files))
    assert table.images is not None
    assert table.images[:, 0, 0, 0].tolist() == [1, 2, 10]
    assert table.classes[3] == "cat"  # without batches.meta.txt: the published names


def test_cifar100_takes_the_fine_label(tmp_path: Path):
    names = "\n".join(f"fine {i}" for i in range(100)).encode()
    lay(tmp_path, {"train.bin": records(200, 100, 2), "test.bin": records(100, 100, 2), "fine_label_names.txt": names})
    table = open_source(tmp_path)
    assert table.classes[99] == "fine 99"
    assert table.counts()["train"].tolist() == [2] * 100
    assert CIFAR100.header == 2


def test_damaged_cifar(tmp_path: Path):
    files = cifar_files()
    for name, raw, said in (
        (
            "data_batch_1.bin",
            files["data_batch_1.bin"][:-5],
            "data_batch_1.bin: 61455 bytes is not a whole number of 3073-byte",
        ),
        ("test_batch.bin", b"", "test_batch.bin: 0 bytes is not a whole"),
        ("test_batch.bin", b"\x0a" + bytes(3072), "test_batch.bin: record 0 has label 10, but there are 10 classes"),
        ("batches.meta.txt", b"a\nb\n", "batches.meta.txt: 2 names"),
        ("batches.meta.txt", b"a\n" * 10, "batches.meta.txt: 10 names (1 different)"),
    ):
        refused(lay(tmp_path / "c", {**files, name: raw}), said)
    refused(lay(tmp_path / "pickled", {"data_batch_1": b""}), "pickled and may hold code; get the binary version")
    whole = pack(tmp_path / "c.tar.gz", files).read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.tar.gz", "cut.tar.gz: not a readable tar archive", "download it again")
    (tmp_path / "cut.tar").write_bytes(pack(tmp_path / "c.tar", files, "w").read_bytes()[:20_000])
    refused(tmp_path / "cut.tar", "cut.tar: not a readable tar archive", "unexpected end of data")
    other = pack(tmp_path / "other.tar.gz", {"x/readme": b"hello"})
    with mock.patch("linnaeus.data.readers.cifar.read_files", wraps=read_files) as read:
        refused(other, "holds neither images nor CIFAR binaries", "but 1 other file: readme; pack a folder")
    assert read.call_count == 1, "an archive is decompressed once"
    refused(pack(tmp_path / "empty.tar", {}, "w"), "empty.tar: holds no files; pack the folder again")
    python = pack(tmp_path / "python.tar.gz", {"cifar-10-batches-py/data_batch_1": b"hello"})
    refused(python, "python.tar.gz: the Python version of CIFAR, which is pickled")
    (tmp_path / "folders" / "data_batch_1.bin").mkdir(parents=True)
    refused(tmp_path / "folders", "folders: holds no files of CIFAR")
    refused(lay(tmp_path / "one", {"x.bin": b""}) / "x.bin", "one file of several; give its folder")


def test_nothing_is_written_at_the_hostile_names_of_an_archive(tmp_path: Path):
    files = cifar_files()
    path = tmp_path / "inner" / "c.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        for name, link in (("data_batch_2.bin", "/etc/passwd"), ("cifar/data_batch_3.bin", "../../secret")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, link
            archive.addfile(member)
        for name, raw in (
            ("../../evil.bin", b"x"),
            ("/tmp/abs.txt", b"x"),
            *((f"../../{n}", r) for n, r in files.items()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    before = sorted(tmp_path.rglob("*"))
    assert len(open_source(path)) == 30
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_raw_and_zipped(tmp_path: Path, zipped: bool):
    folder, pictures = mnist_like(tmp_path / "m", zipped=zipped)
    table = open_source(folder)
    assert table.images is not None
    assert (table.images[:20] == pictures).all()
    assert table.classes == ("0", "1", "2")
    assert table.split.tolist() == ["train"] * 20 + ["test"] * 20
    one = open_source(next(folder.glob("train-images*")))
    assert one.fingerprint() == table.fingerprint()


def test_raw_files_come_before_zipped_ones_and_a_folder_raw_is_searched(tmp_path: Path):
    mnist_like(tmp_path / "raw", zipped=False)
    folder, pictures = mnist_like(tmp_path / "raw", zipped=False)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(b"broken")
    table = open_source(tmp_path)
    assert table.images is not None
    assert (table.images[:20] == pictures).all()


def test_emnist_is_turned_upright(tmp_path: Path):
    folder, pictures = mnist_like(tmp_path, "emnist-letters-")
    (folder / "emnist-letters-mapping.txt").write_text("0 65 97\n1 66 98\n2 67 99\n")
    table = open_source(folder)
    assert table.images is not None
    assert table.images.shape == (40, 4, 5)
    assert (table.images[3] == pictures[3].T).all()
    assert table.names == ("A/a", "B/b", "C/c")
    assert table.classes == ("0", "1", "2")
    mnist_like(tmp_path, "emnist-digits-")
    refused(folder, "holds several sets ('emnist-digits', 'emnist-letters')", "point at the images file")
    assert len(open_source(folder / "emnist-letters-train-images-idx3-ubyte.gz")) == 40


def test_idx_names_and_labels(tmp_path: Path):
    folder, _ = mnist_like(tmp_path)
    (folder / "classes.txt").write_text("shirt\nshoe\nbag\n")
    assert open_source(folder).names == ("shirt", "shoe", "bag")
    (folder / "classes.txt").write_text("shirt\n")
    refused(folder, "classes.txt: no line for label '1', '2'")


def test_damaged_idx(tmp_path: Path):
    folder, pictures = mnist_like(tmp_path, zipped=False)
    images, labels = folder / "train-images-idx3-ubyte", folder / "train-labels-idx1-ubyte"
    good = images.read_bytes()
    for raw, said in (
        (good[:-1], "train-images-idx3-ubyte: 415 bytes, but its header says 416; it is cut short"),
        (good + b"x", "417 bytes, but its header says 416"),
        (good[:7], "ends inside its header"),
        (b"", "starts with nothing"),
        (b"\0\0\x0d\x03" + good[4:], "holds float32; only uint8 is read"),
        (b"GIF8" + good[4:], "starts with 47 49 46 38, but an IDX file starts with 00 00 08"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 0, 5, 4), "dimensions (0, 5, 4)"),
        (idx(pictures[0]), "shape (5, 4) is not that of gray or RGB images"),
        (idx(pictures[:7]), "7 images, but 20 labels"),
        (gzip.compress(good)[:-9], "cannot be read"),
        (gzip.compress(good[:-1]), "415 bytes unpacked, but its header says 416; it is cut short"),
        (gzip.compress(good + b"x"), "more bytes unpacked"),
        (gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12), "its header claims"),
    ):
        images.write_bytes(raw)
        refused(folder, "train-images-idx3-ubyte", said)
    images.write_bytes(good)
    labels.write_bytes(idx(pictures))
    refused(folder, "is not one label per image")
    labels.unlink()
    refused(folder, "its labels are missing; put", "train-labels-idx1-ubyte beside it")
    images.unlink()
    (folder / "strange").write_bytes(good)
    refused(folder / "strange", "an IDX file under another name")


@given(raw=st.binary(max_size=200), zipped=st.booleans(), magic=st.booleans())
@FUZZ
def test_any_idx_bytes(tmp_path: Path, raw: bytes, zipped: bool, magic: bool):
    path = tmp_path / "x-idx3-ubyte"
    raw = b"\0\0\x08\x03" + raw if magic else raw
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    try:
        assert read_idx(path).size <= len(raw)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017


@given(raw=st.binary(max_size=1500), at=st.integers(0, 2000), form=st.sampled_from([bytes, *COMPRESSORS]))
@FUZZ
def test_any_archive_bytes(tmp_path: Path, raw: bytes, at: int, form: Callable[[bytes], bytes]):
    """Random bytes, and a sound archive with random bytes somewhere in its headers."""
    sound = bytearray(
        pack(tmp_path / "sound.tar", {"a/data_batch_1.bin": records(1), "b": b"x" * 600}, "w").read_bytes()
    )
    sound[at : at + len(raw)] = raw
    for content in (raw, bytes(sound)):
        (tmp_path / "x.tar.gz").write_bytes(form(content))
        try:
            open_source(tmp_path / "x.tar.gz")
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tar", "cifar-10-binary.tar.gz"])
@pytest.mark.parametrize("compress", COMPRESSORS)
def test_damage_anywhere_in_a_compressed_archive_is_one_line(
    tmp_path: Path, compress: Callable[[bytes], bytes], name: str
):
    raw = pack(tmp_path / "sound.tar", {"a/data_batch_1.bin": records(1), "b": b"x" * 600}, "w").read_bytes()
    sound, path, rng = compress(raw), tmp_path / name, np.random.default_rng(1)
    for at in rng.integers(0, len(sound), 60):
        for damaged in (sound[:at], sound[:at] + rng.bytes(8) + sound[at + 8 :], sound[:6] + rng.bytes(at)):
            path.write_bytes(damaged)
            with pytest.raises(UserError) as refused:
                open_source(path)
            assert "\n" not in str(refused.value)
            assert str(path) in str(refused.value)


BOMBS = """
import gzip, io, resource, sys, tarfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock
from linnaeus.data.sources import open_source
from linnaeus.errors import UserError
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
root = Path(sys.argv[1])
zeros = bytes(1 << 20)

def refuse(path, said):
    try:
        open_source(path)
    except UserError as error:
        assert said in str(error), error
    else:
        raise SystemExit(f"{path} was read")

(root / "m").mkdir()
for dims in (b"\\xff" * 12, b"\\x00\\xff\\xff\\xff" * 3):        # a header that claims 2^96 or 2^72 bytes
    for write in (bytes, gzip.compress):
        (root / "m/train-images-idx3-ubyte").write_bytes(write(b"\\0\\0\\x08\\x03" + dims + bytes(100)))
        (root / "m/train-labels-idx1-ubyte").write_bytes(b"\\0\\0\\x08\\x01\\0\\0\\0\\x01\\0")
        refuse(root / "m", "header")
with gzip.open(root / "m/train-images-idx3-ubyte", "wb", 1) as file:   # 1.5 GB of zeros behind a modest header
    file.write(b"\\0\\0\\x08\\x03" + bytes([0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]))
    for _ in range(1500):
        file.write(zeros)
refuse(root / "m", "more bytes unpacked")

class Zeros(io.RawIOBase):
    def read(self, n=-1):
        return bytes(n)

def bomb(name, kind, said):
    with tarfile.open(root / name, "w:gz", compresslevel=1) as archive:
        member = tarfile.TarInfo("data_batch_1.bin")
        member.type, member.size = kind, 1 << 30
        archive.addfile(member, Zeros())
    refuse(root / name, said)

bomb("file.tar.gz", tarfile.REGTYPE, "unpacks to more than")
bomb("longname.tar.gz", tarfile.GNUTYPE_LONGNAME, "claims 1,073,741,824 bytes")
bomb("pax.tar.gz", tarfile.XHDTYPE, "claims 1,073,741,824 bytes")
print("peak", int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1024)
"""


@pytest.mark.long
def test_decompression_bombs_are_refused_with_little_memory(tmp_path: Path):
    """False lengths and bombs are refused with little memory: 3 GB of addresses, and under 1.5 GB ever resident."""
    done = subprocess.run([sys.executable, "-c", BOMBS, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) < 1500
