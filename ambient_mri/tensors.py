"""Complex tensors and randomness: the few primitives that every other module shares.

Complex noise in this package has unit variance *per real part* (E|n|^2 = 2), the convention of methods with a
real-valued
network on (real, imaginary) channels. ``torch.randn`` of a complex dtype has variance 1/2 a part; nothing else in the
package calls it.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError, require

__all__ = [
    "RowGenerators",
    "RowStreams",
    "add_scaled",
    "choose_device",
    "complex_randn",
    "from_channels",
    "full_precision",
    "keyed_generator",
    "per_row",
    "rand_rows",
    "randn_like_rows",
    "real_inner",
    "squared_modulus",
    "to_channels",
]

# splitmix64 (Steele et al. 2014): increment and multipliers, as signed 64-bit numbers.
_GOLDEN, _MULTIPLY_1, _MULTIPLY_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


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


class RowStreams:
    """Independent random streams, one a row, drawn together: what a GPU needs in place of one generator a row.

    Number n of a stream is hash(key + n * increment): a pure function of the row's key and of how much the stream has
    given, whatever the other rows are. The streams are not those of :func:`keyed_generator` with the same keys.

    Args:
        common: Keys shared by all rows, as for :func:`keyed_generator`.
        rows: What tells the rows apart: their places in the batch of all processes together.
        device: Where the numbers are drawn.

    Source: Steele et al. 2014, OOPSLA (splitmix64); counter-based as in Salmon et al. 2011, SC11.
    """

    def __init__(self, *common: int | str, rows: range, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        base = _digest(*common)
        # Made on the device: nothing waits for a copy. Hashed twice: no two rows share one stream, shifted.
        places = torch.arange(rows.start, rows.stop, rows.step, device=self.device)
        self._keys = _splitmix(_splitmix(places.mul_(_GOLDEN).add_(base)).bitwise_xor_(base))
        self._given = 0

    def __len__(self) -> int:
        return self._keys.shape[0]

    def __getitem__(self, rows: slice) -> RowStreams:
        """The streams of some rows, going on from where all of them are."""
        part = copy.copy(self)
        part._keys = self._keys[rows]
        return part

    def uniform(self, count: int) -> Tensor:
        """(rows, count) float32 in [0, 1), on the device."""
        return _unit(self._bits(count) >> 40)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """(rows, *shape) standard normal (Box & Muller 1958); a complex one has unit variance per real part."""
        count = math.prod(shape)
        bits = self._bits(count if dtype.is_complex else -(-count // 2))
        # log1p(-u): u is below one, and may be zero.
        radius = torch.log1p(-_unit(bits >> 40)).mul_(-2).sqrt_()
        angle = _unit(bits).mul_(2 * math.pi)
        del bits
        if dtype.is_complex:
            return torch.polar(radius, angle).to(dtype).reshape(len(self), *shape)
        pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
        return pairs.flatten(1)[:, :count].to(dtype).reshape(len(self), *shape)

    def _bits(self, count: int) -> Tensor:
        """The next ``count`` numbers of every stream, (rows, count) int64."""
        steps = torch.arange(self._given + 1, self._given + count + 1, device=self.device).mul_(_GOLDEN)
        self._given += count
        return _splitmix(self._keys[:, None] + steps)


RowGenerators: TypeAlias = Sequence[torch.Generator] | RowStreams


def _splitmix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64, in place; >> of int64 keeps the sign, which the mask takes away."""
    for shift, factor in ((30, _MULTIPLY_1), (27, _MULTIPLY_2)):
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    return z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))


def _unit(bits: Tensor) -> Tensor:
    """The lowest 24 bits as float32 in [0, 1)."""
    return bits.bitwise_and(0xFFFFFF).float().mul_(2.0**-24)


def randn_like_rows(x: Tensor, generators: RowGenerators) -> Tensor:
    """Unit-variance noise (per real part) shaped like ``x``, row ``i`` drawn from ``generators[i]``.

    Every row owns its stream, so that a result does not depend on the batch it was computed in.

    Args:
        x: (b, ...) real or complex tensor; only shape, dtype and device are used.
        generators: One generator a row, or streams; drawn on their own device, then moved.

    Raises:
        AmbientMRIError: If the number of generators is not b.
    """
    require(
        len(generators) == x.shape[0],
        f"one generator a row is needed: got {len(generators)} generators for {x.shape[0]} rows.",
    )
    shape = tuple(x.shape[1:])
    if isinstance(generators, RowStreams):
        return generators.normal(shape, x.dtype).to(x.device)
    if x.is_complex():
        rows = [complex_randn(shape, generator=g, device=g.device, dtype=x.dtype) for g in generators]
    else:
        rows = [torch.randn(shape, generator=g, device=g.device, dtype=x.dtype) for g in generators]
    return torch.stack(rows).to(x.device)


def keyed_generator(*keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a pure function of ``keys`` (SHA-256), the same on any machine, worker or rank."""
    return torch.Generator(device=device).manual_seed(_digest(*keys))


def _digest(*keys: int | str) -> int:
    """63 bits of the SHA-256 of ``keys``."""
    digest = hashlib.sha256("\x1f".join(f"{type(k).__name__}:{k}" for k in keys).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def real_inner(a: Tensor, b: Tensor) -> Tensor:
    """Re <a, b> for every batch row: (b, ...) x (b, ...) -> (b,)."""
    if a.is_complex() and b.is_complex():  # a third of the work of (conj(a) b).real
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    elif a.is_complex() or b.is_complex():
        a, b = a.real, b.real
    return (a * b).flatten(1).sum(dim=1)


def add_scaled(x: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    """x + scale y for a real ``scale`` that broadcasts to them, in one pass: complex times real is not promoted."""
    if not x.is_complex():
        return torch.addcmul(x, scale, y)
    parts = torch.addcmul(torch.view_as_real(x.resolve_conj()), scale[..., None], torch.view_as_real(y.resolve_conj()))
    return torch.view_as_complex(parts)


def squared_modulus(x: Tensor) -> Tensor:
    """|x|^2, real, in the shape of ``x``: without the root that ``x.abs()`` takes, forward and backward."""
    return torch.view_as_real(x.resolve_conj()).square().sum(dim=-1) if x.is_complex() else x.square()


def per_row(value: Tensor | float, like: Tensor) -> Tensor:
    """A scalar or (b,) tensor as (b, 1, 1, 1) in the real dtype of ``like`` and on its device, ready to broadcast."""
    dtype = like.real.dtype if like.is_complex() else like.dtype
    tensor = torch.as_tensor(value, dtype=dtype, device=like.device)
    return tensor.reshape(-1, *([1] * (like.ndim - 1)))


def rand_rows(generators: RowGenerators, count: int, device: torch.device | str | None = None) -> Tensor:
    """Uniform numbers in [0, 1), (b, count) float32, row ``i`` from ``generators[i]``; on ``device`` or where drawn."""
    if isinstance(generators, RowStreams):
        drawn = generators.uniform(count)
    else:
        drawn = torch.stack([torch.rand(count, generator=g, device=g.device) for g in generators])
    return drawn if device is None else drawn.to(device)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products of float32 and complex64 tensors on a GPU with all of their 24 bits, whatever TensorFloat-32 is set to.

    For what lam_t divides: 11 bits of data are noise of a thousandth of them, and lam_t may be a ten-thousandth.
    """
    before = torch.get_float32_matmul_precision()
    if device.type != "cuda" or before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose_device(device: str | torch.device) -> torch.device:
    """The device; "auto" takes a GPU where there is one.

    Raises:
        AmbientMRIError: If nothing can be put on it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(0, device=device)
        return torch.device(device)  # as it was named: "cuda" is any GPU, "cuda:0" is one
    except (RuntimeError, AssertionError) as error:  # a name that is none; a build without this device
        raise AmbientMRIError(f"device {device!s} cannot be used: {' '.join(str(error).split())}") from error
