"""Too little memory: batches shrink and the result stays; coils are taken in turns where they are many."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ambient_mri import reconstruct, solve
from ambient_mri._checks import AmbientMRIError
from ambient_mri.operators import Identity, LinearOperator, coils, sense
from ambient_mri.operators.base import Composition
from ambient_mri.sampling import batching
from ambient_mri.sampling.batching import available_memory, out_of_memory, rows_per_batch
from ambient_mri.sampling.draw import RunningMoments
from ambient_mri.tensors import complex_randn, keyed_generator
from tests.oracles import StationaryDenoiser, line_mask, smooth_coils


def out_of_gpu_memory() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def out_of_cpu_memory() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory")


class SmallMemory(StationaryDenoiser):
    """A denoiser with room for a few rows."""

    def __init__(self, room: int, error: Callable[[], Exception]) -> None:
        super().__init__(sd=0.3, cutoff=0.12)
        self.room, self.error, self.sizes = room, error, list[int]()

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        self.sizes.append(len(x_t))
        if len(x_t) > self.room:
            raise self.error()
        return super().forward(x_t, sigma)


def scan() -> dict[str, object]:
    """Two slices, four coils, R = 2."""
    maps = smooth_coils(4, 16, 16).to(torch.complex64)
    mask = line_mask(16, (1, 3, 5, 7, 8, 9, 11, 14))
    images = StationaryDenoiser(sd=0.3, cutoff=0.12).draw(2, (16, 16), keyed_generator("memory"))
    clean = sense(maps, mask).forward(0.6 + images)
    noise = 0.02 * complex_randn(clean.shape, generator=keyed_generator("noise")) * mask
    return {"scan": clean + noise, "mask": mask, "coil_maps": maps[0], "noise_std": 0.02}


@pytest.mark.parametrize("error", [out_of_gpu_memory, out_of_cpu_memory])
@pytest.mark.parametrize(("room", "tried"), [(3, {8, 4, 2}), (1, {8, 4, 2, 1})])
def test_a_reconstruction_goes_on_in_smaller_batches(
    room: int, tried: set[int], error: Callable[[], Exception]
) -> None:
    """Two slices of four samples: first fewer samples at a time, then fewer slices."""
    options = {**scan(), "samples": 4, "steps": 3, "progress": False}
    plain = reconstruct(prior=SmallMemory(100, error), **options)  # type: ignore[arg-type]
    small = SmallMemory(room, error)
    found = reconstruct(prior=small, **options)  # type: ignore[arg-type]
    assert set(small.sizes) == tried
    assert np.allclose(found.samples, plain.samples, atol=1e-5 * np.abs(plain.samples).max())
    assert found.std is not None and np.allclose(found.std, plain.std, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:the solutions do not fit")  # in three steps
def test_solve_goes_on_in_smaller_batches() -> None:
    y = torch.randn(2, 1, 8, 8, generator=keyed_generator("y"))
    noisy = lambda room: SmallMemory(room, out_of_cpu_memory)  # noqa: E731
    run = lambda prior: solve(y, Identity(), prior, noise_std=0.1, samples=5, steps=3)  # noqa: E731
    plain, found = run(noisy(100)), run(noisy(4))
    assert torch.allclose(plain.mean, found.mean, atol=1e-5)
    assert plain.samples is not None and found.samples is not None
    assert torch.allclose(plain.samples, found.samples, atol=1e-5)


def test_where_a_single_sample_does_not_fit_the_error_is_passed_on() -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        reconstruct(prior=SmallMemory(0, out_of_cpu_memory), samples=4, steps=2, progress=False, **scan())  # type: ignore[arg-type]


def test_other_errors_are_not_mistaken_for_a_lack_of_memory() -> None:
    small = SmallMemory(1, lambda: RuntimeError("sizes do not match"))
    with pytest.raises(RuntimeError, match="sizes do not match"):
        reconstruct(prior=small, samples=4, steps=2, progress=False, **scan())  # type: ignore[arg-type]
    assert len(small.sizes) == 1
    assert not out_of_memory(AmbientMRIError("Fourier2d could not be applied"))
    wrapped = AmbientMRIError("Fourier2d could not be applied")
    wrapped.__cause__ = out_of_cpu_memory()
    assert out_of_memory(wrapped) and out_of_memory(MemoryError())


@pytest.mark.parametrize("keep", [True, False])
def test_without_the_samples_a_reconstruction_holds_one_batch_at_a_time(
    keep: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 2 slices of 12 samples, 4 pairs at a time: how many batches are in memory when each one is added."""
    batches, held = list["weakref.ref[Tensor]"](), list[int]()
    add = RunningMoments.add

    def watched(self: RunningMoments, x: Tensor) -> None:
        if x.is_complex():  # the samples, and not their magnitudes
            batches.append(weakref.ref(x))
            held.append(sum(batch() is not None for batch in batches))
        add(self, x)

    monkeypatch.setattr(RunningMoments, "add", watched)
    prior = StationaryDenoiser(sd=0.3, cutoff=0.12)
    options = {**scan(), "prior": prior, "batch_size": 4, "steps": 2, "keep_samples": keep, "progress": False}
    found = reconstruct(samples=12, **options)  # type: ignore[arg-type]
    per_slice = [1, 2, 3] if keep else [1, 1, 1]
    assert held == per_slice * 2
    few = reconstruct(samples=4, **options)  # type: ignore[arg-type]
    sizes = [sum(x.nbytes for x in vars(result).values() if isinstance(x, np.ndarray)) for result in (few, found)]
    assert (sizes[0] == sizes[1]) == (not keep)


def test_batches_fit_the_memory_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it, up to what serves speed; that alone where the system does not tell."""
    meminfo, row = tmp_path / "meminfo", 64 * 64 * (batching._NETWORK_BYTES + 8 * batching._COIL_BYTES)
    monkeypatch.setattr(batching, "_MEMINFO", meminfo)

    def rows(content: str, batch_size: int | str = "auto") -> int:
        meminfo.write_text(content)
        return rows_per_batch(batch_size, (64, 64), 8, torch.device("cpu"))

    told = "MemTotal:       99999999 kB\nMemAvailable:   {} kB\n"
    assert rows(told.format(2 * 5 * row // 1024)) == 5
    assert rows(told.format(2 * 5 * row // 1024), batch_size=9) == 9
    assert rows(told.format(10)) == 1
    largest = batching._PIXELS["cpu"][0] // 64**2
    assert rows(told.format(10**9)) == rows("MemTotal: 4 kB\n") == largest
    meminfo.unlink()
    assert rows_per_batch("auto", (64, 64), 8, torch.device("cpu")) == largest

    # A GPU: what is free, and what the allocator holds for later.
    known = {"mem_get_info": (4 * row, 100 * row), "memory_reserved": 9 * row, "memory_allocated": 7 * row}
    for name, value in known.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert rows_per_batch("auto", (64, 64), 8, torch.device("cuda")) == 3
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**12, 10**12))
    assert rows_per_batch("auto", (64, 64), 8, torch.device("cuda")) == batching._PIXELS["cuda"][0] // 64**2


@pytest.mark.parametrize("version", [0, 1])
def test_a_container_leaves_what_its_limit_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable: 1000 kB\n")
    monkeypatch.setattr(batching, "_MEMINFO", meminfo)
    _, limit, used, cache = batching._CGROUPS[version]
    monkeypatch.setattr(batching, "_CGROUPS", ((tmp_path, limit, used, cache),))
    assert available_memory(torch.device("cpu")) == 1024_000  # no group
    for name, content in ((limit, "500000\n"), (used, "300000\n"), ("memory.stat", f"anon 5\n{cache} 50000\n")):
        (tmp_path / name).write_text(content)
    assert available_memory(torch.device("cpu")) == 250_000
    (tmp_path / limit).write_text("2000000\n")
    assert available_memory(torch.device("cpu")) == 1024_000  # the machine has less than that
    (tmp_path / limit).write_text("max\n")
    assert available_memory(torch.device("cpu")) == 1024_000


def test_the_result_does_not_depend_on_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> tuple[np.ndarray, set[int]]:
        prior = SmallMemory(100, out_of_cpu_memory)
        found = reconstruct(prior=prior, samples=4, steps=3, progress=False, **scan())  # type: ignore[arg-type]
        assert found.samples is not None
        return found.samples, set(prior.sizes)

    plenty, sizes = run()
    monkeypatch.setattr(batching, "available_memory", lambda device: 1)
    little, small = run()
    assert sizes == {8} and small == {1}
    assert np.allclose(little, plenty, atol=1e-5 * np.abs(plenty).max())


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("axes", [(-2, -1), (-1,)])
def test_coils_in_turns_give_the_same_normal_operator(
    rows: int, axes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = smooth_coils(5, 7, 8)
    operator = sense(maps, line_mask(8, (1, 3, 4, 6)), axes=axes)
    x = complex_randn((rows, 1, 7, 8), generator=keyed_generator("x"), dtype=torch.complex128)
    whole, largest = operator.normal(x), list[int]()
    assert torch.allclose(whole, operator.adjoint(operator.forward(x)))
    monkeypatch.setitem(coils._PIXELS, "cpu", 2 * rows * 56 + 5)
    forward = coils.CoilSensitivities.forward

    def watched(self: LinearOperator, image: Tensor) -> Tensor:
        largest.append(self.coil_maps.shape[1])  # type: ignore[attr-defined]
        return forward(self, image)  # type: ignore[arg-type]

    monkeypatch.setattr(coils.CoilSensitivities, "forward", watched)
    # What a GPU computes; a CPU goes row by row.
    assert torch.allclose(Composition.normal(operator, x), whole, atol=1e-12)
    assert largest == [2, 2, 1]


def test_a_mask_of_each_coils_own_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.cat([line_mask(8, (1, 3, 4)), line_mask(8, (2, 4, 6))], dim=1)
    maps, x = smooth_coils(2, 7, 8), complex_randn((1, 1, 7, 8), generator=keyed_generator("x"), dtype=torch.complex128)
    shared = sense(maps, line_mask(8, (4,)))
    operator = type(shared.factors[0])(masks) @ shared.factors[1] @ shared.factors[2]  # type: ignore[attr-defined, operator]
    monkeypatch.setitem(coils._PIXELS, "cpu", 56)
    assert torch.allclose(operator.normal(x), operator.adjoint(operator.forward(x)))
