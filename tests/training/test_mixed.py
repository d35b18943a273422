"""One training set of scans that differ: fully sampled ones, other R, coils, sizes and noise levels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ambient_mri._checks import AmbientMRIError
from ambient_mri.data.datasets import ImageDataset, ScanDataset, StepSampler
from ambient_mri.data.schema import read_prepared, write_prepared
from ambient_mri.masks import IndependentLines, RandomLines
from ambient_mri.measurement import Measurement
from ambient_mri.train import compose
from ambient_mri.training.estimates import sd_of_images, sd_of_scans
from ambient_mri.training.run import train
from ambient_mri.training.simulated import Phantoms
from tests.training.conftest import make_scan
from tests.training.test_run import TINY

LAW = RandomLines(4, 4)


def phantoms(cache: Path, fraction: float, volumes: int = 8) -> Phantoms:
    options = {"size": 32, "train_volumes": volumes, "val_volumes": 1, "slices": 1}
    return Phantoms("mixed", cache=str(cache), fully_sampled_fraction=fraction, **options)


def test_a_fraction_of_the_volumes_keeps_all_of_k_space(tmp_path: Path) -> None:
    scans = phantoms(tmp_path, 0.5).prepare(LAW)
    full = {p.stem for p in scans.train if bool(read_prepared(p).mask.all())}
    assert 1 <= len(full) <= 7, "about half of eight"
    source = phantoms(tmp_path / "elsewhere", 0.5, volumes=4)
    again = {v for v in source.volumes()[0] if source.is_fully_sampled(v)}
    assert again == full & set(source.volumes()[0]), "chosen by name, whatever else is in the set"
    assert not any(bool(read_prepared(p).mask.all()) for p in phantoms(tmp_path, 0.0).prepare(LAW).train)
    # What is estimated from measurements alone stays right: the images are the same.
    data, images = ScanDataset(scans.train), ImageDataset(scans.train_references())
    assert sd_of_scans(data, LAW) == pytest.approx(sd_of_images(images), rel=0.15)


def test_other_laws_do_not_mix(tmp_path: Path) -> None:
    with pytest.raises(AmbientMRIError, match="fully_sampled_fraction needs corruption=random_lines"):
        phantoms(tmp_path, 0.5).prepare(IndependentLines(4, 4))
    with pytest.raises(AmbientMRIError, match=r"fully_sampled_fraction must lie in \[0, 1\]; got 1.5"):
        phantoms(tmp_path, 1.5)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sizes, two numbers of coils, three accelerations, three noise levels."""
    folder = tmp_path_factory.mktemp("mixed")
    settings = [
        {"size": (32, 24), "coils": 3, "noise_std": 0.01, "law": RandomLines(2, 4)},
        {"size": (32, 24), "coils": 4, "noise_std": 0.03, "law": RandomLines(3, 4)},
        {"size": (24, 20), "coils": 2, "noise_std": 0.02, "law": RandomLines(1, 0)},
    ]
    for i, setting in enumerate(settings):
        write_prepared(folder / f"m{i}.h5", make_scan(f"m{i}", **setting)[0])  # type: ignore[arg-type]
    return folder


def test_batches_hold_one_size_and_everything_else_mixed(mixed: Path) -> None:
    data = ScanDataset(sorted(mixed.glob("*.h5")))
    sampler = StepSampler(data.sizes, 4, 12, seed=3)
    batches = [Measurement.collate([data[i] for i in items]) for items in sampler]
    assert {b.image_shape for b in batches} == {(32, 24), (24, 20)}
    together = [b for b in batches if len(b.noise_std.unique()) > 1]
    assert together and all(b.num_coils == 4 for b in together), "coils are filled up with empty ones"
    assert list(StepSampler(data.sizes, 4, 12, seed=3, start=5)) == list(sampler)[5:], "a resumed run goes on in place"
    assert list(StepSampler(data.sizes, 4, 12, seed=4)) != list(sampler)


def test_a_mixed_set_trains(mixed: Path, tmp_path: Path) -> None:
    """The law of a fixed number of lines reads the number off each scan's own mask: one law serves every R."""
    overrides = ["data=prepared", f"data.root={mixed}", f"run_dir={tmp_path}", "trainer.max_steps=4", *TINY]
    folder = train(compose([*overrides, "trainer.val_check_interval=4"]))
    assert (folder / "weights.safetensors").is_file()


def test_padded_and_whole_scans_of_one_size_share_a_batch(tmp_path: Path) -> None:
    """The law's draw counts inside the extent that each of them covers; nothing else of a scan knows of it."""
    law, files = RandomLines(2, 4), []
    for name, extent in (("whole", None), ("padded", ((0, 32), (3, 20)))):
        scan = make_scan(name, slices=1, law=law)[0]
        if extent is not None:
            inside = np.zeros(24, dtype=bool)
            inside[slice(*extent[1])] = True
            scan = replace(scan, kspace=scan.kspace * inside, mask=scan.mask & inside, acquired_extent=extent)
        files.append(tmp_path / f"{name}.h5")
        write_prepared(files[-1], scan)
    for in_memory in (True, False):
        rows = [ScanDataset(files, in_memory=in_memory)[i] for i in range(2)]
        assert rows[0].acquired is None and rows[1].acquired is not None
        assert torch.equal(rows[1].acquired, read_prepared(files[1]).measurement().acquired)  # type: ignore[arg-type]
        m = Measurement.collate(rows)
        assert m.acquired is not None and m.acquired[:, 0, 0].sum(dim=1).tolist() == [24, 17]
        kept = m.mask & law.always((32, 24))
        found = law.probability_sampled(m.mask, kept, torch.full((2,), 0.5), m.acquired)
        outer = (m.mask & ~law.always((32, 24)))[:, 0, 0].sum(dim=1)
        assert found[:, 0, 0, 4].tolist() == pytest.approx([float(outer[0]) / 20, float(outer[1]) / 13])
    assert Measurement.collate([rows[0], rows[0]]).acquired is None
