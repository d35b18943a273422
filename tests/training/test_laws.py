"""The law of scans: estimated from volumes, not slices; and named laws that their masks contradict."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ambient_mri._checks import AmbientMRIError
from ambient_mri.corruption import Undersampling
from ambient_mri.data.datasets import ScanDataset
from ambient_mri.data.schema import write_prepared
from ambient_mri.masks import EquispacedLines, IndependentLines, ObservedMasks, PoissonDisc, RandomLines, SamplingLaw
from ambient_mri.train import compose
from ambient_mri.training.laws import check_law, scan_corruption
from ambient_mri.training.sources import ScanSet
from tests.training.conftest import make_scan

SIZE = (16, 40)


def volumes(folder: Path, law: Callable[[int], SamplingLaw], count: int = 14, **options: int) -> ScanDataset:
    """Scans that came undersampled: their files say nothing of the law."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        scan, _ = make_scan(f"s{i}", law=law(i), size=SIZE, **{"slices": 1, "coils": 4, **options})
        write_prepared(folder / f"s{i:02d}.h5", replace(scan, sampling_law={}))
    return ScanDataset(sorted(folder.glob("*.h5")))


def checked(scans: ScanDataset, law: SamplingLaw) -> None:
    check_law(Undersampling(law, core=2), ScanSet(tuple(scans.files), ()), scans)


@pytest.mark.parametrize("in_memory", [True, False])
def test_slices_that_share_a_mask_are_one_draw_of_the_law(in_memory: bool, tmp_path: Path) -> None:
    """Four slices of a volume do not make its random mask one of a few that recur."""
    found = volumes(tmp_path, lambda i: RandomLines(2, 4), slices=4)
    scans = ScanDataset(found.files, in_memory=in_memory)
    assert [m.shape for m in scans.masks(100)] == [(1, 1, 1, 40)] * 14 and len(scans.masks(5)) == 5
    law = scan_corruption(compose(["data=prepared", "corruption=observed"]), scans).law
    assert isinstance(law, ObservedMasks) and len(law.masks) == 14 and not law.exact
    rows = [scan for i in range(14) for scan in [scans[4 * i].mask] * 4]
    assert ObservedMasks(rows).exact, "what the slices would have made of it"


def test_slices_with_masks_of_their_own_are_draws(tmp_path: Path) -> None:
    scan, _ = make_scan("s", slices=2, size=SIZE)
    other, _ = make_scan("t", slices=2, size=SIZE)
    mask = np.concatenate([scan.mask, other.mask])
    write_prepared(tmp_path / "s.h5", replace(scan, mask=mask, kspace=scan.kspace * mask, sampling_law={}))
    for in_memory in (True, False):
        masks = ScanDataset([tmp_path / "s.h5"], in_memory=in_memory).masks(8)
        assert [np.array_equal(m, want) for m, want in zip(masks, mask[:, None], strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("drawn", "named", "words"),
    [
        (RandomLines(2, 4), IndependentLines(4, 4), r"sample 20\.0 locations .*, law=IndependentLines.* 10\.0: the "),
        (RandomLines(2, 4), EquispacedLines(4, 4), "the weights of the loss would be wrong"),
        (IndependentLines(2, 8), IndependentLines(2, 2), r"locations \[16, 17, 18, .*\] of k-space are sampled in"),
        (RandomLines(3, 8), RandomLines(3, 4), r"locations \[16, 17, 22, 23\] of k-space are sampled in every one"),
        (PoissonDisc(3, 4), RandomLines(3, 4), r"the mask of scan s0/0 is one of points, and law=RandomLines"),
        (RandomLines(2, 4), PoissonDisc(2, 2), r"the mask of scan s0/0 is one of lines, and law=PoissonDisc"),
    ],
)  # fmt: skip
def test_a_law_that_the_masks_contradict(drawn: SamplingLaw, named: SamplingLaw, words: str, tmp_path: Path) -> None:
    with pytest.raises(AmbientMRIError, match=words):
        checked(volumes(tmp_path, lambda i: drawn, 20), named)


@pytest.mark.parametrize(
    "law",
    [RandomLines(2, 4), RandomLines(4, 2), IndependentLines(2, 4), IndependentLines(3, 0), EquispacedLines(2, 4)],
)
@pytest.mark.parametrize("count", [1, 3, 14])
def test_the_law_that_drew_the_masks_is_let_through(law: SamplingLaw, count: int, tmp_path: Path) -> None:
    checked(volumes(tmp_path, lambda i: law, count), law)


def test_random_lines_of_several_accelerations_are_told_of_not_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their number is read off each mask: the weights are right, and only sd is not."""
    mixed: Sequence[SamplingLaw] = (RandomLines(2, 4), RandomLines(4, 4), RandomLines(1, 4))
    scans = volumes(tmp_path, lambda i: mixed[i % 3], count=12)
    with caplog.at_level(logging.WARNING):
        checked(scans, RandomLines(4, 4))
    assert "sample 15.0 locations of k-space on average" in caplog.text and "sd is measured wrongly" in caplog.text


@pytest.mark.parametrize(
    ("count", "slices", "observed", "refused"),
    [(2, 1, False, False), (3, 1, False, True), (1, 12, False, True), (2, 6, False, True), (1, 12, True, True)],
)
def test_one_mask_for_all(count: int, slices: int, observed: bool, refused: bool, tmp_path: Path) -> None:
    """Three random volumes do not have one mask by chance; twelve slices with one are no training set."""
    same, _ = make_scan("the same", slices=slices, size=SIZE)
    for i in range(count):
        write_prepared(tmp_path / f"s{i}.h5", replace(same, source=f"s{i}", sampling_law={}))
    scans = ScanDataset(sorted(tmp_path.glob("*.h5")))
    if refused:
        with pytest.raises(AmbientMRIError, match=f"all of {count} volumes have the same mask"):
            checked(scans, ObservedMasks(scans.masks(8)) if observed else RandomLines(2, 4))
    else:
        checked(scans, RandomLines(2, 4))
