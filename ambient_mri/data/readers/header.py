"""The ISMRMRD header of a fastMRI file: the few numbers that a reconstruction needs, out of its XML.

Schema: ISMRMRD, https://ismrmrd.readthedocs.io. In fastMRI files x is the readout (axis H of k-space) and y the
phase-encode direction (axis W). The scanner counts phase-encode lines from ``minimum`` to ``maximum``, and its line
``center`` is the one that lands on the zero frequency, index n//2 of the stored axis; lines elsewhere are zero padding:

    first = n//2 - center + minimum ,    last + 1 = n//2 - center + maximum + 1
"""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import numpy as np

from ambient_mri._checks import DataError, require

__all__ = ["acquired_interval", "image_affine", "parse_header", "readout_axis", "recon_shape"]

_LIMITS = ("kspace_encoding_step_0", "kspace_encoding_step_1", "kspace_encoding_step_2", "slice")


def parse_header(xml: bytes | str, where: object) -> dict[str, Any]:
    """Read the first encoding of an ISMRMRD header; what the XML does not say is left out of the dictionary.

    Returns:
        Keys ``encoded_matrix``, ``recon_matrix`` (x, y, z), ``encoded_fov_mm``, ``recon_fov_mm`` (x, y, z; mm),
        ``encoding_limits`` (name -> minimum, maximum, center), ``acceleration`` (step 1, step 2), ``trajectory``,
        ``receiver_channels``, ``num_encodings``.

    Raises:
        DataError: If the text is not XML, or the trajectory is not Cartesian.
    """
    text = xml.decode("utf-8", errors="replace") if isinstance(xml, bytes) else str(xml)
    try:
        # An XML declaration of an encoding is only allowed in bytes.
        root = ElementTree.fromstring(text.strip("\x00 \r\n\t").encode("utf-8"))
    except ElementTree.ParseError as error:
        raise DataError(
            f"{where}: dataset 'ismrmrd_header' is not readable XML ({error}). Copy the file again, or delete it."
        ) from error
    encodings = _children(root, "encoding")
    encoding = encodings[0] if encodings else None
    trajectory = _text(encoding, "trajectory")
    require(
        trajectory is None or trajectory.lower() == "cartesian",
        f"{where}: the header names a {trajectory} trajectory; only Cartesian k-space is read. Grid it first.",
        DataError,
    )
    found = {
        "encoded_matrix": _triple(encoding, "encodedSpace", "matrixSize", int),
        "encoded_fov_mm": _triple(encoding, "encodedSpace", "fieldOfView_mm", float),
        "recon_matrix": _triple(encoding, "reconSpace", "matrixSize", int),
        "recon_fov_mm": _triple(encoding, "reconSpace", "fieldOfView_mm", float),
        "encoding_limits": _limits(encoding),
        "acceleration": _acceleration(encoding),
        "trajectory": trajectory,
        "receiver_channels": _number(_child(root, "acquisitionSystemInformation"), "receiverChannels", int),
        "num_encodings": len(encodings),
    }
    return {key: value for key, value in found.items() if value is not None}


def readout_axis(header: dict[str, Any], shape: tuple[int, int]) -> int:
    """Which axis of k-space (H, W) is the header's x: -2 as in fastMRI, -1 where only the swapped sizes fit."""
    x, y, _ = header.get("encoded_matrix", (*shape, 1))
    return -1 if (x, y) != shape and (y, x) == shape else -2


def acquired_interval(header: dict[str, Any], step: str, size: int) -> tuple[int, int] | None:
    """First and one past the last acquired index along an axis of length ``size``; None where the header is silent.

    Limits that contradict themselves, or leave nothing inside the axis, count as silence.
    """
    limits = header.get("encoding_limits", {}).get(step)
    if limits is None:
        return None
    first = max(size // 2 - limits["center"] + limits["minimum"], 0)
    last = min(size // 2 - limits["center"] + limits["maximum"] + 1, size)
    return (first, last) if last > first else None


def recon_shape(header: dict[str, Any], shape: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the reconstructed image after the centre crop, never more than k-space has."""
    x, y, _ = header.get("recon_matrix", (*shape, 1))
    rows, columns = (x, y) if readout_axis(header, shape) == -2 else (y, x)
    return min(rows, shape[0]), min(columns, shape[1])


def image_affine(header: dict[str, Any], shape: tuple[int, int], image: tuple[int, int]) -> np.ndarray | None:
    """(4, 4) map of (row, column, slice) of the cropped image to mm, or None where the header gives no field of view.

    Only voxel sizes are known: the axes stay those of the array and the centre pixel is the origin. The slice spacing
    is the slice thickness.

    Args:
        header: From :func:`parse_header`.
        shape: H and W of k-space.
        image: Rows and columns of the cropped image.
    """
    matrix, fov = header.get("recon_matrix"), header.get("recon_fov_mm")
    if matrix is None or fov is None or min(matrix) <= 0 or min(fov) <= 0:
        return None
    x, y, z = (f / m for f, m in zip(fov, matrix, strict=True))
    rows, columns = (x, y) if readout_axis(header, shape) == -2 else (y, x)
    affine = np.diag([rows, columns, z, 1.0])
    affine[:2, 3] = -rows * (image[0] // 2), -columns * (image[1] // 2)
    return affine


def _children(node: ElementTree.Element | None, name: str) -> list[ElementTree.Element]:
    """Children by local name: vendors write the ISMRMRD namespace, another one, or none."""
    return [] if node is None else [child for child in node if child.tag.rpartition("}")[2] == name]


def _child(node: ElementTree.Element | None, name: str) -> ElementTree.Element | None:
    found = _children(node, name)
    return found[0] if found else None


def _text(node: ElementTree.Element | None, name: str) -> str | None:
    child = _child(node, name)
    return child.text.strip() if child is not None and child.text else None


def _number(node: ElementTree.Element | None, name: str, kind: type) -> Any:
    text = _text(node, name)
    try:
        return None if text is None else kind(float(text))
    except ValueError:
        return None


def _triple(node: ElementTree.Element | None, space: str, name: str, kind: type) -> tuple[Any, Any, Any] | None:
    parent = _child(_child(node, space), name)
    x, y, z = (_number(parent, axis, kind) for axis in "xyz")
    return None if x is None or y is None else (x, y, kind(1) if z is None else z)


def _limits(node: ElementTree.Element | None) -> dict[str, dict[str, int]] | None:
    parent = _child(node, "encodingLimits")
    limits = {}
    for name in _LIMITS:
        entry = _child(parent, name)
        numbers = {key: _number(entry, key, int) for key in ("minimum", "maximum", "center")}
        if None not in numbers.values():
            limits[name] = numbers
    return limits or None


def _acceleration(node: ElementTree.Element | None) -> tuple[int, int] | None:
    factors = _child(_child(node, "parallelImaging"), "accelerationFactor")
    first, second = (_number(factors, f"kspace_encoding_step_{i}", int) for i in (1, 2))
    return None if first is None else (first, second or 1)
