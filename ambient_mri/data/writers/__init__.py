"""Writers: a reconstruction as HDF5 in fastMRI's layout, .npz or NIfTI; the file's ending decides."""

from ambient_mri.data.writers.reconstruction import read_reconstruction, save_reconstruction

__all__ = ["read_reconstruction", "save_reconstruction"]
