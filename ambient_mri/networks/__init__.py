"""Networks: real-valued, resolution-free, unaware of MRI and of diffusion."""

from ambient_mri.networks.unet import UNet

__all__ = ["UNet"]
