"""Networks: real channels in and out, resolution-free, unaware of MRI and of diffusion."""

from ambient_mri.networks.unet import UNet
from ambient_mri.networks.unet_complex import ComplexUNet
from ambient_mri.networks.unet_complex_mp import ComplexMagnitudePreservingUNet
from ambient_mri.networks.unet_mp import MagnitudePreservingUNet

__all__ = ["ComplexMagnitudePreservingUNet", "ComplexUNet", "MagnitudePreservingUNet", "UNet"]
