"""Measurement: what the scanner gave, scaled, and nothing that it did not give.

    y = A x0 + noise,   A = P F S

There is deliberately no field for a reference image: an objective or a sampler that receives a ``Measurement`` cannot
see a clean image by accident. ``scale`` is divided out on input and multiplied back on output: raw k-space = y *
scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ambient_mri._checks import check_finite, check_shape, require
from ambient_mri.operators.fourier import ifft

__all__ = ["Measurement"]


@dataclass(frozen=True)
class Measurement:
    """A batch of measured slices.

    Attributes:
        y: Measured data, scaled. MRI: k-space (batch, coils, H, W) complex64, zero where not sampled; the zero
            frequency is at index n//2. Other corruptions: whatever their operator returns, batch first.
        mask: Sampled locations, bool, (batch or 1, 1, H or 1, W or 1); a channel a colour where colours differ.
        coil_maps: (batch, coils, H, W) complex64 with sum over coils of |S|^2 = 1, or None where A has no coils.
        noise_std: Noise standard deviation per real and per imaginary part of ``y``, in the units of the scaled y,
            (batch,).
        scale: Raw units per scaled unit, (batch,).
        key: The identity of each row (volume and slice), to which random streams are tied.
        axes: Image axes that y is the Fourier transform of: both, or the phase-encode axis alone after
            :meth:`cancel_readout`; none for other corruptions.
        parameters: (batch, p) float64, what else A depends on (the bandwidth of a blur, the seed of a projection), or
            None.
        acquired: Locations that could have been sampled, bool, (batch or 1, 1, H or 1, W or 1): all but zero padding.
            None for all.
    """

    y: Tensor
    mask: Tensor
    coil_maps: Tensor | None
    noise_std: Tensor
    scale: Tensor
    key: tuple[str, ...]
    axes: tuple[int, ...] = (-2, -1)
    parameters: Tensor | None = None
    acquired: Tensor | None = None

    def __len__(self) -> int:
        return self.y.shape[0]

    def __getitem__(self, rows: slice | int) -> Measurement:
        """The selected rows as a Measurement (an int keeps the batch axis)."""
        if isinstance(rows, int):
            rows = slice(rows, rows + 1) if rows != -1 else slice(-1, None)
        pick = lambda t: t[rows] if t.shape[0] == len(self) else t  # noqa: E731
        return Measurement(
            y=self.y[rows],
            mask=pick(self.mask),
            coil_maps=None if self.coil_maps is None else self.coil_maps[rows],
            noise_std=self.noise_std[rows],
            scale=self.scale[rows],
            key=self.key[rows],
            axes=self.axes,
            parameters=None if self.parameters is None else self.parameters[rows],
            acquired=None if self.acquired is None else pick(self.acquired),
        )

    @property
    def num_coils(self) -> int:
        """Number of coils (1 where the operator has none)."""
        return 1 if self.coil_maps is None else self.coil_maps.shape[1]

    @property
    def image_shape(self) -> tuple[int, int]:
        """Rows and columns of the image."""
        return int(self.y.shape[-2]), int(self.y.shape[-1])

    @property
    def is_complete(self) -> bool:
        """Whether all was sampled that could be, in every row."""
        return bool((self.mask if self.acquired is None else self.mask | ~self.acquired).all())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Measurement:
        """The same measurement on another device."""
        y, mask, noise_std, scale = (
            t.to(device, non_blocking=non_blocking) for t in (self.y, self.mask, self.noise_std, self.scale)
        )
        maps = None if self.coil_maps is None else self.coil_maps.to(device, non_blocking=non_blocking)
        parameters = None if self.parameters is None else self.parameters.to(device, non_blocking=non_blocking)
        acquired = None if self.acquired is None else self.acquired.to(device, non_blocking=non_blocking)
        moved = replace(self, y=y, mask=mask, coil_maps=maps, noise_std=noise_std, scale=scale)
        return replace(moved, parameters=parameters, acquired=acquired)

    def cancel_readout(self) -> Measurement:
        """The same measurement with the readout transformed back to the image where the mask is constant along it.

        The transform is unitary: the noise stays white, norms stay the same, A^H A is the same operator, and half of
            the
        Fourier transforms are gone. Rows of a scan whose mask varies along both axes are returned as they are.
        """
        if self.axes != (-2, -1):
            return self
        constant = [axis for axis in (-2, -1) if self.mask.shape[axis] == 1]
        if len(constant) != 1:
            return self
        (axis,) = constant
        return replace(self, y=ifft(self.y, (axis,)), axes=((-1,) if axis == -2 else (-2,)))

    def check(self) -> Measurement:
        """Check shapes and values of an MRI measurement; returns itself.

        Raises:
            AmbientMRIError: Naming the field, what was expected, what came, and the likely cause.
        """
        require(
            self.y.ndim == 4 and self.y.is_complex(), f"y must be complex (batch, coils, H, W); got {_say(self.y)}."
        )
        batch, coils, height, width = self.y.shape
        require(self.mask.dtype == torch.bool and self.mask.ndim == 4, f"mask must be 4-D bool; got {_say(self.mask)}.")
        for axis, (found, full) in enumerate(zip(self.mask.shape, (batch, 1, height, width), strict=True)):
            require(
                found in (1, full),
                f"mask has shape {tuple(self.mask.shape)}, which does not broadcast to k-space "
                f"{tuple(self.y.shape)} along axis {axis}. Was it made for another matrix size?",
            )
        require(bool(self.mask.any()), "the mask selects no k-space location: nothing was measured. Is it inverted?")
        if self.coil_maps is not None:
            check_shape(
                "coil_maps", self.coil_maps, (batch, coils, height, width), "Were the maps estimated from another scan?"
            )
            check_finite("coil_maps", self.coil_maps)
        check_finite("y", self.y, "Check the file, or the step that made these numbers.")
        check_shape("noise_std", self.noise_std, (batch,))
        check_shape("scale", self.scale, (batch,))
        require(len(self.key) == batch, f"key must name every row: {batch} rows, {len(self.key)} keys.")
        return self

    @staticmethod
    def collate(items: Sequence[Measurement]) -> Measurement:
        """One batch out of many; rows with fewer coils get coils whose map and data are zero, which A^H A never sees.

        Raises:
            AmbientMRIError: If the matrix sizes differ.
        """
        require(len(items) > 0, "cannot collate an empty list of measurements.")
        sizes = sorted({tuple(m.y.shape[-2:]) for m in items})
        require(len(sizes) == 1, f"one batch holds one matrix size; got {sizes}. Group scans by size.")
        coils = max(m.y.shape[1] for m in items)
        maps = None
        if items[0].coil_maps is not None:
            maps = torch.cat([_pad_coils(m.coil_maps, coils) for m in items])  # type: ignore[arg-type]
        height, width = max(m.mask.shape[-2] for m in items), max(m.mask.shape[-1] for m in items)
        channels = max(m.mask.shape[1] for m in items)
        masks = [m.mask.expand(len(m), channels, height, width) for m in items]
        parameters = [m.parameters for m in items if m.parameters is not None]
        padded = any(m.acquired is not None for m in items)
        everywhere = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=items[0].mask.device)
        acquired = [
            (everywhere if m.acquired is None else m.acquired).expand(len(m), 1, height, width) for m in items if padded
        ]
        return Measurement(
            y=torch.cat([_pad_coils(m.y, coils) for m in items]),
            mask=torch.cat(masks),
            coil_maps=maps,
            noise_std=torch.cat([m.noise_std for m in items]),
            scale=torch.cat([m.scale for m in items]),
            key=tuple(k for m in items for k in m.key),
            axes=items[0].axes,
            parameters=torch.cat(parameters) if parameters else None,
            acquired=torch.cat(acquired) if padded else None,
        )


def _pad_coils(x: Tensor, coils: int) -> Tensor:
    if x.shape[1] == coils:
        return x
    return torch.cat([x, x.new_zeros(x.shape[0], coils - x.shape[1], *x.shape[2:])], dim=1)


def _say(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
