"""Whitening, coil compression and readout oversampling: each against what linear algebra says it must give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ambient_mri._checks import AmbientMRIError, DataError
from ambient_mri.data.coil_compression import coil_compression
from ambient_mri.data.oversampling import readout_oversampling, remove_readout_oversampling
from ambient_mri.data.readers import DataWarning, RawScan, from_arrays, read_scan
from ambient_mri.data.schema import read_prepared
from ambient_mri.data.whitening import noise_covariance, periphery_covariance, read_noise_scan, whitening
from ambient_mri.masks import RandomLines
from ambient_mri.operators.fourier import fft, ifft
from ambient_mri.prepare import Preparation, prepare_file, prepare_scan
from ambient_mri.prepare.scan import condition
from tests.data.fastmri_files import knee, simulated_kspace, with_size

LAW = RandomLines(2.0, 12)


def random_mix(coils: int, seed: int = 0) -> np.ndarray:
    """A mixing matrix: correlated coils whose noise levels differ by a factor of three or so."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((coils, coils)) + 1j * rng.standard_normal((coils, coils))
    return (np.eye(coils) + 0.3 * mix) * np.linspace(0.5, 1.5, coils)[:, None]


def white(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Complex noise of unit variance per part."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape) + 1j * rng.standard_normal(shape)


def covariance_of(noise: np.ndarray) -> np.ndarray:
    flat = noise.reshape(len(noise), -1)
    return flat @ flat.conj().T / flat.shape[1]


class TestWhitening:
    def test_the_whitened_covariance_is_the_identity_at_the_mean_level(self) -> None:
        mix = random_mix(5)
        sigma = 2 * mix @ mix.conj().T
        found = whitening(sigma)
        level = np.diagonal(sigma).real.mean()
        np.testing.assert_allclose(found.matrix @ sigma @ found.matrix.conj().T, level * np.eye(5), atol=1e-10)
        assert found.noise_std == pytest.approx(np.sqrt(level / 2))
        assert found.spread == pytest.approx(np.sqrt(np.diagonal(sigma).real.max() / np.diagonal(sigma).real.min()))

    def test_white_coils_are_left_alone(self) -> None:
        found = whitening(2 * 0.3**2 * np.eye(4))
        np.testing.assert_allclose(found.matrix, np.eye(4), atol=1e-12)
        assert found.noise_std == pytest.approx(0.3) and found.correlation == pytest.approx(0, abs=1e-12)

    def test_samples_give_the_covariance_that_made_them(self) -> None:
        mix = random_mix(4)
        noise = np.einsum("cd,dn->cn", mix, white((4, 200_000))) + 7  # and a constant offset of the receiver
        expected = 2 * mix @ mix.conj().T
        np.testing.assert_allclose(noise_covariance(noise), expected, atol=0.02 * np.abs(expected).max())

    def test_the_periphery_says_what_a_noise_scan_says(self) -> None:
        mix = random_mix(4)
        noise = 0.02 * np.einsum("cd,sdhw->schw", mix, white((3, 4, 96, 80)))
        clean = simulated_kspace(3, 4, 96, 80, noise_std=0)
        mask = LAW.draw((96, 80), torch.Generator().manual_seed(0)).numpy()
        kspace = ((clean + noise) * mask).astype(np.complex64)
        found = periphery_covariance(kspace, mask, ((0, 96), (0, 80)))
        expected = 2 * 0.02**2 * mix @ mix.conj().T
        np.testing.assert_allclose(found, expected, atol=0.15 * np.abs(expected).max())

    def test_a_silent_coil_stays_silent(self) -> None:
        sigma = np.zeros((3, 3))
        sigma[:2, :2] = [[2, 0.5], [0.5, 1]]
        kspace = np.concatenate([white((1, 2, 8, 8)), np.zeros((1, 1, 8, 8))], axis=1)
        out = whitening(sigma).apply(kspace)
        assert out.dtype == np.complex64 and not out[:, 2].any() and out[:, :2].any()

    def test_preparation_with_a_noise_scan_knows_its_noise(self, tmp_path: Path) -> None:
        mix = random_mix(4)
        clean = simulated_kspace(2, 4, 64, 48, noise_std=0)
        noise = 0.03 * np.einsum("cd,sdhw->schw", mix, white((2, 4, 64, 48)))
        np.save(tmp_path / "noise.npy", 0.03 * mix @ white((4, 50_000), seed=1))
        raw = from_arrays((clean + noise).astype(np.complex64))
        scan = prepare_scan(raw, LAW, Preparation(whiten=str(tmp_path / "noise.npy")))
        expected = 0.03 * np.sqrt(np.diagonal(mix @ mix.conj().T).real.mean())
        assert scan.noise_std[0] == pytest.approx(expected, rel=0.02)
        assert scan.preparation["noise_source"] == "noise scan"
        assert scan.preparation["whiten"].startswith("sha256:") and str(tmp_path) not in str(scan.preparation)
        assert scan.preparation["whitening"]["spread"] > 2
        silent = replace(raw, kspace=noise.astype(np.complex64))
        done = condition(silent, None, Preparation(whiten=str(tmp_path / "noise.npy"))).raw.kspace
        found = covariance_of(done.swapaxes(0, 1).astype(complex))
        np.testing.assert_allclose(found, 2 * expected**2 * np.eye(4), atol=0.1 * 2 * expected**2)

    def test_a_periphery_of_image_is_told(self) -> None:
        clean = simulated_kspace(2, 4, 96, 80, noise_std=0)
        raw = from_arrays((clean + 1e-3 * white(clean.shape)).astype(np.complex64))
        with pytest.warns(DataWarning, match=r"times as strong as the noise: whitening by it takes image for noise"):
            scan = prepare_scan(raw, LAW, Preparation(whiten="periphery"))
        assert any("takes image for noise" in note for note in scan.preparation["notes"])

    def test_preparation_from_the_periphery(self) -> None:
        mix = random_mix(4)
        clean = simulated_kspace(2, 4, 96, 80, noise_std=0)
        noise = 0.03 * np.einsum("cd,sdhw->schw", mix, white((2, 4, 96, 80)))
        scan = prepare_scan(from_arrays((clean + noise).astype(np.complex64)), LAW, Preparation(whiten="periphery"))
        assert scan.preparation["whitening"]["source"] == "periphery"
        expected = 0.03 * np.sqrt(np.diagonal(mix @ mix.conj().T).real.mean())
        assert scan.noise_std[0] == pytest.approx(expected, rel=0.15)
        np.testing.assert_array_equal((scan.kspace != 0).any(axis=(0, 1)), np.broadcast_to(scan.mask[0, 0], (96, 80)))

    @pytest.mark.parametrize("name", ["noise.npy", "noise.npz", "noise.h5"])
    def test_noise_scans_are_read_from_any_file(self, name: str, tmp_path: Path) -> None:
        noise, path = white((4, 300)), tmp_path / name
        if name.endswith(".h5"):
            with h5py.File(path, "w") as handle:
                handle["noise"] = noise
        elif name.endswith(".npz"):
            np.savez(path, noise=noise)
        else:
            np.save(path, noise)
        np.testing.assert_array_equal(read_noise_scan(path), noise)

    def test_four_axes_are_slices_coils_rows_columns(self, tmp_path: Path) -> None:
        np.save(tmp_path / "n.npy", white((3, 4, 8, 10)))
        assert read_noise_scan(tmp_path / "n.npy").shape == (4, 3, 8, 10)

    def test_mistakes(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"must be complex \(coils, samples\); got float64"):
            noise_covariance(np.ones((4, 100)))
        with pytest.raises(DataError, match="5 samples of 8 coils are too few; at least 20 a coil"):
            noise_covariance(white((8, 5)))
        with pytest.raises(DataError, match="not positive definite: two coils hold the same noise"):
            whitening(np.ones((2, 2)))
        with pytest.raises(DataError, match="must be Hermitian"):
            whitening(np.array([[1, 2], [0, 1.0]]))
        with pytest.raises(DataError, match="the noise covariance is zero"):
            whitening(np.zeros((2, 2)))
        np.savez(tmp_path / "n.npz", other=white((2, 50)))
        with pytest.raises(DataError, match=r"n\.npz: array 'noise' is missing \(the file holds other\)"):
            read_noise_scan(tmp_path / "n.npz")
        np.save(tmp_path / "n.npy", white((2, 50)))
        with pytest.raises(DataError, match="the noise scan has 2 coils, the scan 4"):
            prepare_scan(from_arrays(simulated_kspace(1, 4, 32, 32)), None, Preparation(whiten=str(tmp_path / "n.npy")))


def varying_mix(length: int, coils: int, sources: int) -> np.ndarray:
    """(length, coils, sources): mixing matrices that turn smoothly along the readout, so that all coils are in use."""
    rng = np.random.default_rng(3)
    start = np.linalg.qr(rng.standard_normal((coils, coils)) + 1j * rng.standard_normal((coils, coils)))[0]
    turn = rng.standard_normal((coils, coils)) + 1j * rng.standard_normal((coils, coils))
    values, vectors = np.linalg.eigh(turn + turn.conj().T)
    angles = np.linspace(0, 1.5, length)
    turned = [(vectors * np.exp(1j * a * values)) @ vectors.conj().T @ start for a in angles]
    return np.stack(turned)[..., :sources]


class TestCompression:
    @pytest.mark.parametrize("method", ["svd", "geometric"])
    def test_coils_that_hold_few_signals_lose_nothing(self, method: str) -> None:
        few = simulated_kspace(2, 3, 48, 40, noise_std=0)
        mix = np.linalg.qr(white((8, 3)))[0]
        kspace = np.einsum("cd,sdhw->schw", mix, few).astype(np.complex64)
        mask = LAW.draw((48, 40), torch.Generator().manual_seed(0)).numpy()
        found = coil_compression(kspace * mask, mask, 3, method=method)
        assert found.coils == 3 and found.energy == pytest.approx(1, abs=1e-6)
        out = found.apply(kspace)
        energy = (np.abs(kspace) ** 2).sum(axis=1)
        if method == "svd":
            np.testing.assert_allclose((np.abs(out) ** 2).sum(axis=1), energy, rtol=1e-3, atol=1e-6 * energy.max())
        image = lambda k: np.sqrt((np.abs(ifft(torch.from_numpy(k)).numpy()) ** 2).sum(axis=1))  # noqa: E731
        np.testing.assert_allclose(image(out), image(kspace), atol=1e-4 * image(kspace).max())

    def test_svd_keeps_the_largest_share_that_so_many_channels_can(self) -> None:
        kspace = simulated_kspace(1, 6, 48, 40)
        mask = np.ones((1, 1, 1, 1), dtype=bool)
        centre = kspace[0, :, 12:36, 8:32].reshape(6, -1)
        values = np.linalg.svd(centre, compute_uv=False) ** 2
        for number in (1, 3, 6):
            assert coil_compression(kspace, mask, number).energy == pytest.approx(
                values[:number].sum() / values.sum(), rel=1e-5
            )

    def test_energy_chooses_the_number(self) -> None:
        kspace, mask = simulated_kspace(1, 6, 48, 40), np.ones((1, 1, 1, 1), dtype=bool)
        held = [coil_compression(kspace, mask, n).energy for n in range(1, 7)]
        for share in (0.5 * (held[0] + held[1]), 0.5 * (held[2] + held[3])):
            found = coil_compression(kspace, mask, share)
            assert found.energy >= share > held[found.coils - 2]

    def test_geometric_needs_fewer_coils_where_the_mix_varies_along_the_readout(self) -> None:
        """Two sources at every position, mixed differently everywhere: two coils hold all, by SVD they do not."""
        few = simulated_kspace(1, 2, 48, 40, noise_std=0)
        hybrid = ifft(torch.from_numpy(few), (-2,)).numpy()
        mixed = np.einsum("hcd,sdhw->schw", varying_mix(48, 6, 2), hybrid).astype(np.complex64)
        kspace = fft(torch.from_numpy(mixed), (-2,)).numpy()
        mask = np.ones((1, 1, 1, 1), dtype=bool)
        geometric = coil_compression(kspace, mask, 2, method="geometric")
        assert geometric.energy == pytest.approx(1, abs=1e-5)
        assert coil_compression(kspace, mask, 2).energy < 0.9
        out = ifft(torch.from_numpy(geometric.apply(kspace))).abs().square().sum(dim=1)
        torch.testing.assert_close(
            out, ifft(torch.from_numpy(kspace)).abs().square().sum(dim=1), atol=1e-4 * float(out.max()), rtol=0
        )

    def test_neighbours_are_aligned(self) -> None:
        """Without alignment the virtual coils of neighbouring positions differ by any unitary matrix."""
        found = coil_compression(
            simulated_kspace(1, 6, 64, 40), np.ones((1, 1, 1, 1), dtype=bool), 3, method="geometric"
        )
        overlap = found.matrices[1:] @ found.matrices[:-1].conj().swapaxes(-2, -1)
        # The closest unitary alignment leaves a positive semi-definite overlap; the middle aligns to both sides.
        assert np.abs(overlap - overlap.conj().swapaxes(-2, -1)).max() < 1e-6
        assert np.linalg.eigvalsh(overlap).min() > -1e-6
        first = overlap[20:44, 0, 0].real  # the strongest virtual coil inside the object
        assert first.min() > 0.95

    @pytest.mark.parametrize("method", ["svd", "geometric"])
    @pytest.mark.parametrize("axis", [-2, -1])
    def test_noise_stays_white_and_unsampled_lines_stay_empty(self, method: str, axis: int) -> None:
        noise = white((1, 5, 64, 60)).astype(np.complex64)
        mask = np.ones((1, 1, 64, 60), dtype=bool)
        (mask[..., ::3] if axis == -2 else mask[..., ::3, :])[:] = False
        mask[:, :, 24:40, 20:40] = True
        if axis == -2:
            mask = mask[:, :, :1] | mask.all(axis=-2, keepdims=True)
            mask[..., 20:40] = True
        else:
            mask = mask[..., :1].copy()
            mask[:, :, 24:40] = True
        kspace = (noise * mask).astype(np.complex64)
        signal = simulated_kspace(1, 5, 64, 60) * mask  # matrices of another scan: those fitted to noise prefer it
        out = coil_compression(signal, mask, 3, method=method, readout_axis=axis).apply(kspace)
        full = np.broadcast_to(mask[0, 0], (64, 60))
        assert not out[0][:, ~full].any()
        found = covariance_of(out[0][:, full].astype(complex))
        np.testing.assert_allclose(found, 2 * np.eye(3), atol=0.25)

    @pytest.mark.filterwarnings("ignore:.*the periphery of k-space is")  # so small a k-space is all signal
    def test_preparation_records_what_it_did(self, tmp_path: Path) -> None:
        source = with_size(64, 40, 6).write(tmp_path / "a.h5")
        settings = Preparation(coils=3, compression="geometric", whiten="periphery", crop_readout=True)
        scan = read_prepared(prepare_file(source, tmp_path / "out.h5", law=LAW, settings=settings))
        assert scan.kspace.shape == (1, 3, 32, 40)
        assert scan.preparation["coil_compression"]["coils"] == 3 and scan.preparation["compression"] == "geometric"
        assert 0.8 < scan.preparation["coil_compression"]["energy"] < 1
        one = with_size(64, 40, 2).write(tmp_path / "b.h5")  # fewer coils than asked for: all of them
        assert read_prepared(prepare_file(one, tmp_path / "2.h5", law=LAW, settings=settings)).kspace.shape[1] == 2

    def test_mistakes(self) -> None:
        kspace, mask = simulated_kspace(1, 4, 32, 32), np.ones((1, 1, 1, 1), dtype=bool)
        for wrong in (0, 5, 2.5, -1):
            with pytest.raises(AmbientMRIError, match="coils must be 1 to 4, or a share of the energy"):
                coil_compression(kspace, mask, wrong)
        with pytest.raises(AmbientMRIError, match="method must be one of 'svd', 'geometric'"):
            coil_compression(kspace, mask, 2, method="pca")
        hole = mask.repeat(32, axis=-1)
        hole[..., 16] = False
        with pytest.raises(DataError, match="needs calibration lines, and the scan has none"):
            coil_compression(kspace, hole, 2)
        square = np.zeros((1, 1, 32, 32), dtype=bool)
        square[..., 10:22, 10:22] = True
        with pytest.raises(DataError, match="needs a fully sampled readout"):
            coil_compression(kspace, square, 2, method="geometric")
        with pytest.raises(AmbientMRIError, match="coils must be a number of coils, or a share"):
            Preparation(coils=2.5)
        brings = replace(from_arrays(kspace), coil_maps=np.ones((1, 4, 32, 32), np.complex64) / 2)
        with pytest.raises(DataError, match="the file brings coil maps, which whitening and coil compression"):
            prepare_scan(brings, None, Preparation(coils=2))


class TestOversampling:
    def test_the_image_is_cropped_along_the_readout_alone(self, tmp_path: Path) -> None:
        raw = read_scan(knee().write(tmp_path / "a.h5"))
        out = remove_readout_oversampling(raw)
        assert readout_oversampling(raw) == 2 and out.shape == (32, 37) and out.recon_shape == (32, 32)
        assert out.acquired_extent == ((0, 32), (0, 37)) and "64 -> 32" in out.notes[-1]
        full, cropped = (ifft(torch.from_numpy(r.kspace)) for r in (raw, out))
        torch.testing.assert_close(cropped, full[..., 16:48, :])
        np.testing.assert_array_equal(out.affine, raw.affine)

    def test_noise_keeps_its_level(self, tmp_path: Path) -> None:
        noise = white((1, 2, 128, 64)).astype(np.complex64)
        raw = read_scan(replace(with_size(128, 64, 2), kspace=noise).write(tmp_path / "a.h5"))
        assert remove_readout_oversampling(raw).kspace.real.std() == pytest.approx(1, rel=0.02)

    def test_unsampled_lines_stay_empty(self, tmp_path: Path) -> None:
        raw = read_scan(with_size(64, 37, 3, lines=33).write(tmp_path / "a.h5"))
        out = remove_readout_oversampling(raw)
        assert not out.kspace[..., :2].any() and not out.kspace[..., 35:].any()

    @pytest.mark.parametrize("rows", [65, 66, 67])
    def test_odd_sizes_keep_their_centre(self, rows: int, tmp_path: Path) -> None:
        image = torch.zeros(1, 2, rows, 20, dtype=torch.complex64)
        image[..., rows // 2, 10] = 1
        window = torch.hann_window(rows + 2)[1:-1, None] * torch.hann_window(22)[None, 1:-1]
        kspace = (fft(image) * window).numpy()
        raw = read_scan(replace(with_size(rows, 20, 2), kspace=kspace, reference=None).write(tmp_path / "a.h5"))
        out = ifft(torch.from_numpy(remove_readout_oversampling(raw).kspace)).abs()[0, 0]
        assert tuple(int(i) for i in (out == out.max()).nonzero()[0]) == (out.shape[0] // 2, 10)

    def test_without_oversampling_nothing_happens(self, tmp_path: Path) -> None:
        raw = from_arrays(simulated_kspace(1, 2, 32, 32))
        assert remove_readout_oversampling(raw) is raw

    def test_a_partial_echo_is_refused(self, tmp_path: Path) -> None:
        file = knee()
        file.kspace[..., :10, :] = 0
        raw: RawScan = read_scan(file.write(tmp_path / "a.h5"))
        with pytest.raises(DataError, match="only where every sample of the readout was acquired"):
            remove_readout_oversampling(raw)
