"""The SENSE operator A = P F S (Pruessmann et al. 1999): a composition, with a faster A^H A on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from ambient_mri._checks import check_option, require
from ambient_mri.operators.base import Composition, LinearOperator
from ambient_mri.operators.coils import CoilSensitivities
from ambient_mri.operators.fourier import Fourier2d
from ambient_mri.operators.masking import Mask
from ambient_mri.tensors import per_row, squared_modulus

__all__ = ["SenseNormal", "sense"]

# Coil pixels (8 bytes each) at a time: what the cache of one core holds, with their transform.
_BLOCK = 2**17
# Numbers in coil maps up to which their conjugates are stored beside them.
_COPIED = 2**23


def sense(
    coil_maps: Tensor, mask: Tensor, *, axes: tuple[int, ...] = (-2, -1), backend: str = "torch"
) -> LinearOperator:
    """A = P F S: image (b, 1, H, W) -> k-space (b, coils, H, W).

    Args:
        coil_maps: (b or 1, coils, H, W) complex.
        mask: bool, (b or 1, 1, H or 1, W or 1).
        axes: Axes that F transforms; one axis for data in hybrid space (see :class:`Fourier2d`), torch backend only.
        backend: ``"torch"`` (ours) or ``"sigpy"`` (``sigpy.mri.linop.Sense`` through the adapter: the same numbers,
            slower).

    Raises:
        AmbientMRIError: If mask and maps do not fit, or the backend is unknown.
    """
    check_option("backend", backend, ("torch", "sigpy"))
    fits = mask.ndim == 4 and all(m in (1, n) for m, n in zip(mask.shape[-2:], coil_maps.shape[-2:], strict=True))
    require(
        fits,
        f"mask {tuple(mask.shape)} does not broadcast to coil_maps {tuple(coil_maps.shape)}. "
        "Was it made for another matrix size?",
    )
    if backend == "sigpy":
        from ambient_mri.operators.sigpy_adapter import sigpy_sense

        require(tuple(axes) == (-2, -1), "backend='sigpy' transforms both axes; use backend='torch' for hybrid space.")
        return sigpy_sense(coil_maps, mask)
    return _Sense(Mask(mask) @ Fourier2d(axes), CoilSensitivities(coil_maps))


class _Sense(Composition):
    """P F S, whose A^H A is :class:`SenseNormal` where that is faster: on a CPU, outside of training of the maps."""

    def normal(self, x: Tensor) -> Tensor:
        rows = self._rows
        if rows is None or rows.coil_maps.requires_grad or len(x) % rows.slices or not x.is_complex():
            return super().normal(x)
        return rows(x)

    def repeat_interleave(self, repeats: int) -> LinearOperator:
        masking, fourier, coils = (factor.repeat_interleave(repeats) for factor in self.factors)
        return _Sense(masking @ fourier, coils)

    @cached_property
    def _rows(self) -> SenseNormal | None:
        rows = SenseNormal.of(self)
        return rows if rows is not None and rows.coil_maps.device.type == "cpu" else None


class SenseNormal:
    """A^H A of SENSE on a CPU, a row and a few coils at a time: coil images and spectra never leave the processor's
    cache, and A^H e, for noise e in k-space, costs no transform of its own. The diagonal in k-space serves any device.

    Every row is computed by itself, so that its numbers do not depend on the batch.

    Args:
        coil_maps: (n or 1, coils, H, W).
        mask: bool, (n or 1, 1, H or 1, W or 1).
        axes: Axes that F transforms.
    """

    def __init__(self, coil_maps: Tensor, mask: Tensor, axes: tuple[int, ...]) -> None:
        self.coil_maps, self.mask = coil_maps, mask
        self.slices = max(len(coil_maps), len(mask))
        #: Where the mask is constant along an axis, that axis' transform is the identity.
        self.axes = tuple(axis for axis in axes if mask.shape[axis] > 1)
        self.cancels = len(self.axes) < len(axes)
        # The zero frequency goes to index 0: no array of the size of the k-space is shifted. Complex: a product with
        # truth values would convert them every time.
        shifted = torch.fft.ifftshift(mask, dim=self.axes) if self.axes else mask
        self._shifted = shifted.to(coil_maps.dtype)
        self._places: dict[int, tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, operator: LinearOperator) -> SenseNormal | None:
        """For ``Mask @ Fourier2d @ CoilSensitivities`` with one mask for all coils; None for other operators."""
        if not isinstance(operator, Composition) or len(operator.factors) != 3:
            return None
        masking, fourier, coils = operator.factors
        if not (isinstance(masking, Mask) and isinstance(fourier, Fourier2d) and isinstance(coils, CoilSensitivities)):
            return None
        return None if masking.mask.shape[1] != 1 else cls(coils.coil_maps, masking.mask, fourier.axes)

    def __call__(self, x: Tensor) -> Tensor:
        """A^H A x, (b, 1, H, W) -> same; b a multiple of the slices, rows slice by slice."""
        return torch.cat([self._row(x[i : i + 1], i * self.slices // len(x), None) for i in range(len(x))])

    def residual(self, x: Tensor, noise: Callable[[int], Tensor]) -> Tensor:
        """A^H ( e - A x ).

        Args:
            x: (b, 1, H, W).
            noise: Gives e of row ``i`` where the mask is True, in the order of :class:`MeasurementNoise`: coil by coil,
                (coils * count,).

        Raises:
            AmbientMRIError: If the transform of an axis cancels: e has no place in the space that is left.
        """
        require(not self.cancels, "A^H e is not known where a transform cancels; transform fewer axes.")
        # e - A x as A(-x) + e: the spectrum is masked in place, and e added where it lives.
        negative = -x
        rows = range(len(x))
        return torch.cat([self._row(negative[i : i + 1], i * self.slices // len(x), noise(i)) for i in rows])

    @cached_property
    def conj_maps(self) -> Tensor:
        """Conjugate of the coil maps, a copy where that is small."""
        return self.coil_maps.conj().resolve_conj() if self.coil_maps.numel() <= _COPIED else self.coil_maps.conj()

    @cached_property
    def coils(self) -> list[int]:
        """Coils of every row that see anything: scans with fewer than others of their batch are padded with zeros."""
        return [_present(maps) for maps in self.coil_maps]

    def precondition(self, x: Tensor, gain: Tensor) -> Tensor:
        """F^H gain F x: D^-1 x for the reciprocal of :meth:`diagonal`.

        Args:
            x: (b, 1, H, W).
            gain: (b, 1, H, W) real.
        """
        if not self.axes:
            return x * gain
        return torch.fft.ifftn(torch.fft.fftn(x, dim=self.axes).mul_(gain), dim=self.axes)

    def diagonal(self, lam: Tensor) -> Tensor:
        """Diagonal of F (A^H A + lam) F^H, (b, 1, H, W) real, for lam (b,)."""
        density = self.density if self.slices == 1 else self.density.repeat_interleave(len(lam) // self.slices, dim=0)
        return density + per_row(lam, density)

    @cached_property
    def density(self) -> Tensor:
        """Diagonal of F A^H A F^H, (n, 1, H, W) real: the mask, blurred by the spectra of the coil maps."""
        shape = torch.broadcast_shapes(self._shifted.shape[-2:], self.coil_maps.shape[-2:])
        mask = self._shifted.real.expand(-1, -1, *shape)
        if not self.axes:
            return mask * self.coil_maps.abs().square().sum(dim=1, keepdim=True)
        count = math.prod(shape[axis] for axis in self.axes)
        power = torch.zeros_like(self.coil_maps.real[:, :1])
        for coil in range(self.coil_maps.shape[1]):
            spectrum = torch.fft.fftn(self.coil_maps[:, coil : coil + 1], dim=self.axes) / count
            power = power + squared_modulus(spectrum)
        blur = torch.fft.fftn(power, dim=self.axes).conj()
        return torch.fft.ifftn(torch.fft.fftn(mask, dim=self.axes) * blur, dim=self.axes).real.clamp_min(0)

    def _row(self, x: Tensor, row: int, noise: Tensor | None) -> Tensor:
        """A^H (A x + e) of one row (1, 1, H, W)."""
        here, mask = min(row, len(self.coil_maps) - 1), self._shifted[min(row, len(self._shifted) - 1)]
        maps, conj_maps = self.coil_maps[here], self.conj_maps[here]
        coils, size = self.coils[here], max(1, _BLOCK // x.numel())
        total = None
        for first in range(0, coils, size):
            group = slice(first, min(first + size, coils))
            k = maps[group] * x[0]
            if self.axes:
                k = torch.fft.fftn(k, dim=self.axes)
            k = k.mul_(mask)
            if noise is not None:
                k = k.contiguous()
                self._add(k, row, noise.reshape(len(maps), -1)[group])
            if self.axes:
                k = torch.fft.ifftn(k, dim=self.axes)
            part = k.mul_(conj_maps[group]).sum(dim=0, keepdim=True)
            total = part if total is None else total + part
        return torch.zeros_like(x) if total is None else total[None]

    def _add(self, k: Tensor, row: int, noise: Tensor) -> None:
        """Add ``noise`` (coils, count) to the spectra ``k`` (coils, H, W), in place."""
        places, phase = self._where(min(row, len(self.mask) - 1), k)
        k.view(-1).index_add_(0, places[: len(k)].view(-1), (noise * phase).view(-1))

    def _where(self, row: int, k: Tensor) -> tuple[Tensor, Tensor]:
        """Where the samples lie in unshifted spectra (coils, H, W), (coils, count), and the factor that centring puts
        on them, (count,).
        """
        if row not in self._places:
            height, width = k.shape[-2:]
            centred = self.mask[row, 0].expand(height, width).nonzero()
            phase = torch.zeros(len(centred), dtype=torch.float64)
            gain = 1.0
            index = []
            for axis, n in ((-2, height), (-1, width)):
                place = centred[:, axis]
                if axis in self.axes:
                    place = (place - n // 2) % n
                    phase, gain = phase - place.double() * (n // 2) / n, gain * n**0.5
                index.append(place)
            factor = torch.polar(torch.full_like(phase, gain), 2 * torch.pi * phase).to(k.dtype)
            coils = torch.arange(self.coil_maps.shape[1], device=k.device)[:, None]
            self._places[row] = (index[0] * width + index[1] + height * width * coils, factor)
        return self._places[row]


def _present(maps: Tensor) -> int:
    """How many coils (coils, H, W) there are, less the last ones that are zero everywhere."""
    count = len(maps)
    while count and not bool(maps[count - 1].any()):
        count -= 1
    return count
