"""Complex tensors and randomness: the few primitives that every other module shares.

Complex noise in this package has unit variance *per real part* (E|n|^2 = 2), the convention of methods with a
real-valued
network on (real, imaginary) channels. ``torch.randn`` of a complex dtype has variance 1/2 a part; nothing else in the
package calls it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from ambient_mri._checks import require

__all__ = [
    "complex_randn",
    "from_channels",
    "keyed_generator",
    "per_row",
    "rand_rows",
    "randn_like_rows",
    "real_inner",
    "to_channels",
]


def to_channels(x: Tensor) -> Tensor:
    """Complex (b, c, H, W) to real (b, 2c, H, W): all real parts, then all imaginary parts. Real input is returned as
    is.
    """
    if not x.is_complex():
        return x
    return torch.cat([x.real, x.imag], dim=1)


def from_channels(x: Tensor) -> Tensor:
    """Inverse of :func:`to_channels`: real (b, 2c, H, W) to complex (b, c, H, W).

    Raises:
        AmbientMRIError: If the number of channels is odd.
    """
    require(x.shape[1] % 2 == 0, f"from_channels needs an even number of channels; got shape {tuple(x.shape)}.")
    real, imag = x.float().chunk(2, dim=1)
    return torch.complex(real.contiguous(), imag.contiguous())


def complex_randn(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.complex64,
) -> Tensor:
    """White complex Gaussian noise with variance one per real and per imaginary part."""
    real_dtype = torch.empty(0, dtype=dtype).real.dtype
    parts = torch.randn((*shape, 2), generator=generator, device=device, dtype=real_dtype)
    return torch.view_as_complex(parts)


def randn_like_rows(x: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Unit-variance noise (per real part) shaped like ``x``, row ``i`` drawn from ``generators[i]``.

    Every row owns its stream, so that a result does not depend on the batch it was computed in.

    Args:
        x: (b, ...) real or complex tensor; only shape, dtype and device are used.
        generators: One generator a row; drawn on their own device, then moved.

    Raises:
        AmbientMRIError: If the number of generators is not b.
    """
    require(
        len(generators) == x.shape[0],
        f"one generator a row is needed: got {len(generators)} generators for {x.shape[0]} rows.",
    )
    shape = tuple(x.shape[1:])
    if x.is_complex():
        rows = [complex_randn(shape, generator=g, device=g.device, dtype=x.dtype) for g in generators]
    else:
        rows = [torch.randn(shape, generator=g, device=g.device, dtype=x.dtype) for g in generators]
    return torch.stack(rows).to(x.device)


def keyed_generator(*keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a pure function of ``keys`` (SHA-256), the same on any machine, worker or rank."""
    digest = hashlib.sha256("\x1f".join(f"{type(k).__name__}:{k}" for k in keys).encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def real_inner(a: Tensor, b: Tensor) -> Tensor:
    """Re <a, b> for every batch row: (b, ...) x (b, ...) -> (b,)."""
    product = (a.conj() * b).real if a.is_complex() or b.is_complex() else a * b
    return product.flatten(1).sum(dim=1)


def per_row(value: Tensor | float, like: Tensor) -> Tensor:
    """A scalar or (b,) tensor as (b, 1, 1, 1) in the real dtype of ``like`` and on its device, ready to broadcast."""
    dtype = like.real.dtype if like.is_complex() else like.dtype
    tensor = torch.as_tensor(value, dtype=dtype, device=like.device)
    return tensor.reshape(-1, *([1] * (like.ndim - 1)))


def rand_rows(generators: Sequence[torch.Generator], count: int, device: torch.device | str = "cpu") -> Tensor:
    """Uniform numbers in [0, 1), (b, count) float32, row ``i`` from ``generators[i]``."""
    return torch.stack([torch.rand(count, generator=g, device=g.device) for g in generators]).to(device)
