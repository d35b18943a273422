"""CIFAR-10 as ``data=cifar10`` reads it, from the archive or the folder of its *binary* version.

    python data_prep/cifar10.py cifar-10-binary.tar.gz cifar10.npz
    python -m ambient_mri.train experiment=cifar10_inpainting data.root=cifar10.npz

The archive comes from https://www.cs.toronto.edu/~kriz/cifar.html ("CIFAR-10 binary version"): the version "for Python"
holds pickles, which run code as they are read. ``images`` (60000, 32, 32, 3) and ``labels`` in the order of the files;
``split`` says "train" for the training batches but for the last 2000 images, which are "val", and "test" for the rest.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from pathlib import Path

import numpy as np

from ambient_mri._checks import AmbientMRIError, DataError, reason_of, require
from ambient_mri._files import write_atomically

TRAINING = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
TEST = "test_batch.bin"
# A byte of label; 32 x 32 of red, of green, of blue.
RECORD = 1 + 3 * 32 * 32
HELD_OUT = 2000


def read_batches(source: Path) -> dict[str, bytes]:
    """The contents of the six files, by name.

    Raises:
        DataError: If the source is missing or damaged, or lacks one of them.
    """
    names = (*TRAINING, TEST)
    require(source.exists(), f"{source} does not exist. Download the binary version of CIFAR-10 first.", DataError)
    if source.is_dir():
        found = {p.name: p.read_bytes() for p in source.rglob("*.bin") if p.name in names}
    else:
        try:
            with tarfile.open(source) as archive:
                members = {Path(m.name).name: m for m in archive.getmembers() if Path(m.name).name in names}
                found = {name: _content(archive, member) for name, member in members.items()}
        except (tarfile.TarError, OSError, EOFError) as error:
            reason = reason_of(error)
            raise DataError(f"{source}: cannot be read as an archive ({reason}). Is the download complete?") from error
    missing = [name for name in names if name not in found]
    require(
        not missing,
        f"{source}: lacks {', '.join(missing)}. Take the binary version of CIFAR-10, not that for Python or Matlab.",
        DataError,
    )
    return found


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = archive.extractfile(member)
    return b"" if opened is None else opened.read()


def arrays_of(batches: dict[str, bytes], source: Path) -> dict[str, np.ndarray]:
    """``images``, ``labels`` and ``split`` of the whole set.

    Raises:
        DataError: If a file is not made of whole records.
    """
    parts = []
    for name in (*TRAINING, TEST):
        size = len(batches[name])
        whole = size > 0 and size % RECORD == 0
        require(
            whole,
            f"{source}: {name} has {size} bytes, which are no whole images of {RECORD}. Copy it again.",
            DataError,
        )
        parts.append(np.frombuffer(batches[name], dtype=np.uint8).reshape(-1, RECORD))
    records = np.concatenate(parts)
    training = sum(len(part) for part in parts[:-1])
    held_out = min(HELD_OUT, training // 10)
    split = np.array(["train"] * (training - held_out) + ["val"] * held_out + ["test"] * len(parts[-1]))
    images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return {"images": images, "labels": records[:, 0].astype(np.int64), "split": split}


def main(arguments: list[str] | None = None) -> int:
    """Convert; 2 where that is not possible."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="cifar-10-binary.tar.gz, or the folder that it was unpacked into")
    parser.add_argument("out", type=Path, help="a .npz file")
    options = parser.parse_args(arguments)
    try:
        require(options.out.suffix == ".npz", f"{options.out}: the ending must be .npz.")
        arrays = arrays_of(read_batches(options.source), options.source)
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomically(options.out, content.getvalue())
    except AmbientMRIError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    counts = {name: int((arrays["split"] == name).sum()) for name in ("train", "val", "test")}
    sys.stdout.write(f"{options.out}: {len(arrays['images'])} images, {counts}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
