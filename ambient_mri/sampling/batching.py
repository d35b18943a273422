"""How many (row, sample) pairs are computed at a time, and what to do where they are too many.

A batch is as large as serves speed, and takes no more than half of the memory that is there. The other half is for what
the estimate leaves out: gradients through the network, workspaces of transforms, exact data steps. Where that does not
suffice either, the batch is halved and made again (:func:`~ambient_mri.sampling.draw.draw`). A result depends on none
of it: each pair owns its random stream.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ambient_mri._checks import check_option, require

__all__ = ["available_memory", "free_memory", "out_of_memory", "rows_per_batch"]

# How torch's allocators for the CPU and for accelerators say that there is no more.
# Libraries of CUDA that keep workspaces of their own end in the last one.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
# Pixels of images, and of coil images, in one batch at most: more of them is no faster.
_PIXELS = {"cpu": (2**17, 2**24), "cuda": (2**22, 2**27)}
# Bytes a pixel of an image takes in the network: the shipped prior's 240, measured, to the 1250 of 64 channels at full
# resolution; and of a coil image: complex64, with the copies that a data step makes.
_NETWORK_BYTES, _COIL_BYTES = 2048, 64
_SHARE = 0.5  # of the available memory
_MEMINFO = Path("/proc/meminfo")
# A container's limit and use in control groups of version 2 and 1, and the name of the cache that can be dropped.
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def rows_per_batch(batch_size: int | str, shape: tuple[int, int], coils: int, device: torch.device) -> int:
    """(row, sample) pairs at a time.

    Args:
        batch_size: A number, or ``"auto"`` to go by the size of the images and the memory of the device.
        shape: H and W.
        coils: Coil images a pair.
        device: Where the batch is computed.

    Raises:
        AmbientMRIError: If the number is below one, or another word is given.
    """
    if not isinstance(batch_size, str):
        require(batch_size >= 1, f"batch_size must be at least 1, or 'auto'; got {batch_size}.")
        return batch_size
    check_option("batch_size", batch_size, ("auto",))
    images, coil_images = _PIXELS.get(device.type, _PIXELS["cpu"])
    pixels, coils = shape[0] * shape[1], max(coils, 1)
    rows = min(images // pixels, coil_images // (pixels * coils))
    available = available_memory(device)
    if available is not None:
        rows = min(rows, int(_SHARE * available) // (pixels * (_NETWORK_BYTES + coils * _COIL_BYTES)))
    return max(1, rows)


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on ``device``; None where the system does not tell.

    On a GPU what is free, and what torch's allocator holds without using it; elsewhere the kernel's own estimate,
    ``MemAvailable``, of what programs can have without swapping, or what the limit of a container leaves.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None  # no Linux
    kibibytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    machine = [] if kibibytes is None else [1024 * int(kibibytes)]
    return min(machine + [left for group in _CGROUPS if (left := _left_in(*group)) is not None], default=None)


def _left_in(folder: Path, limit: str, used: str, cache: str) -> int | None:
    """Bytes that a control group's limit leaves; None where there is no group or no limit."""
    try:
        most, current = (folder / limit).read_text().strip(), int((folder / used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    return None if most == "max" else max(0, int(most) - current + int(stat.get(cache, 0)))


def out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is for want of memory: the allocators of torch and Python."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY):
            return True
        error = error.__cause__
    return False


def free_memory(device: torch.device) -> None:
    """Give back what the allocator of an accelerator keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
