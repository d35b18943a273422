"""What clean and ambient denoisers share: what the network is given, and how its output is scaled."""

from __future__ import annotations

import platform
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from ambient_mri._checks import check_option
from ambient_mri.networks.skeleton import UNetSkeleton
from ambient_mri.tensors import from_channels, per_row, to_channels

__all__ = ["ProfileEncoder", "apply_network", "checked_precision", "computes_in_bf16", "output_scale", "runs_in_bf16"]


class ProfileEncoder(nn.Module):
    """What the mask is, without a matrix size: its density along each axis, in a fixed number of bins.

    A mask aligns with k-space, not with the pixels of an image; painted on pixels it means nothing to a convolution.
    """

    def __init__(self, bins: int = 32) -> None:
        super().__init__()
        self.bins = bins

    @property
    def dim(self) -> int:
        """Length of the condition vector."""
        return 2 * self.bins

    def forward(self, mask: Tensor) -> Tensor:
        """(b, 1, 1 or H, 1 or W) -> (b, 2 * bins): density along the rows and along the columns."""
        mask = mask.float()[:, 0]
        rows = functional.adaptive_avg_pool1d(mask.mean(dim=2)[:, None], self.bins)[:, 0]
        columns = functional.adaptive_avg_pool1d(mask.mean(dim=1)[:, None], self.bins)[:, 0]
        return torch.cat([rows, columns], dim=1)


def output_scale(sigma: Tensor, sd: float, rate: Tensor | float, e0: float) -> Tensor:
    """c_out, (b,): the rms that the network's contribution is expected to have. Its inverse square weights the loss."""
    seen = sigma.square() * sd**2 / (sigma.square() + sd**2)
    return (rate * seen + (1 - rate) * e0**2).sqrt()


def apply_network(
    network: nn.Module,
    u: Tensor,
    x_lin: Tensor,
    sigma: Tensor,
    sd: float,
    condition: Tensor | None,
    precision: str,
    mask: Tensor | None = None,
) -> Tensor:
    """The network on preconditioned channels, in the chosen precision; its output in the image's dtype.

    ``"bf16"`` is float32 on devices that would only imitate it (:func:`computes_in_bf16`).
    """
    level = per_row(sigma, u)
    parts = [to_channels(u / (level.square() + sd**2).sqrt()), to_channels(x_lin / sd)]
    channels = torch.cat(parts if mask is None else [*parts, mask.to(parts[0].dtype)], dim=1)
    noise = sigma.to(u.device).float().log().expand(len(u)) / 4
    last = u.is_cuda or (isinstance(network, UNetSkeleton) and network.prefers_channels_last())
    layout = torch.channels_last if last else torch.contiguous_format
    channels = channels.float().contiguous(memory_format=layout)
    with torch.autocast(u.device.type, dtype=torch.bfloat16, enabled=runs_in_bf16(precision, u.device)):
        output = network(channels, noise, condition).float()
    return from_channels(output).to(u.dtype) if u.is_complex() else output.to(u.dtype)


def runs_in_bf16(precision: str, device: torch.device) -> bool:
    """Whether a network of a precision runs under bfloat16 autocast on a device."""
    return precision == "bf16" and computes_in_bf16(device.type)


@lru_cache
def computes_in_bf16(device_type: str) -> bool:
    """Whether this machine's processor or GPU has instructions for bfloat16; imitated, it is up to 20 times slower.

    Args:
        device_type: ``"cpu"``, ``"cuda"``, ...
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        # oneDNN accepts any AVX-512, which imitates; torch offers no public name for these two.
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def checked_precision(name: str) -> str:
    """``name``, if it is a precision that networks run in."""
    check_option("precision", name, ("bf16", "fp32"))
    return name
