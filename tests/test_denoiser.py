"""Denoisers: EDM's preconditioning, the analytic denoiser, and an ambient network seen as a denoiser of x_t."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ambient_mri._checks import AmbientMRIError
from ambient_mri.corruption import Undersampling
from ambient_mri.denoiser import (
    AmbientDenoiser,
    CleanDenoiser,
    ConditionalDenoiser,
    GaussianDenoiser,
    ProfileEncoder,
    output_scale,
    preconditioning,
)
from ambient_mri.masks import ObservedMasks, RandomLines
from ambient_mri.measurement import Measurement
from ambient_mri.networks import UNet
from ambient_mri.operators import Identity, LinearOperator, sense
from ambient_mri.tensors import complex_randn, keyed_generator, to_channels
from tests.oracles import GaussianWorld, dense_matrix, line_mask, small_sense, smooth_coils


class Recorder(nn.Module):
    """A network that keeps its inputs and answers with a fixed linear function of them."""

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        self.x, self.noise, self.condition = x, noise, condition
        return 0.7 * x[:, :2] - 0.2 * x[:, 2:]


def test_a_clean_denoiser_is_preconditioned_as_edm() -> None:
    sd, sigma = 0.3, torch.tensor([0.01, 0.2, 5.0])
    network = Recorder()
    x_t = complex_randn((3, 1, 8, 6), generator=keyed_generator("edm"))
    found = CleanDenoiser(network, sd=sd, precision="fp32")(x_t, sigma)
    # Karras et al. 2022, Table 1.
    level = sigma.reshape(3, 1, 1, 1)
    c_skip, c_in = sd**2 / (level**2 + sd**2), (level**2 + sd**2).rsqrt()
    c_out = level * sd * (level**2 + sd**2).rsqrt()
    channels = to_channels(x_t)
    assert torch.allclose(network.x[:, :2], c_in * channels, atol=1e-6)
    assert torch.allclose(network.x[:, 2:], c_skip * channels / sd, atol=1e-6)
    assert torch.allclose(network.noise, sigma.log() / 4)
    output = c_out * (0.7 * c_in - 0.2 * c_skip / sd) * channels
    assert torch.allclose(to_channels(found), c_skip * channels + output, atol=1e-5)


def unet(profile: ProfileEncoder) -> UNet:
    torch.manual_seed(0)
    network = UNet(4, 2, channels=8, multipliers=[1, 2], condition_dim=profile.dim)
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    return network


def test_an_ambient_network_that_sees_everything_is_a_clean_denoiser() -> None:
    profile = ProfileEncoder(4)
    network = unet(profile)
    x_t, sigma = complex_randn((3, 1, 9, 8), generator=keyed_generator("A = I")), torch.tensor([0.02, 0.3, 4.0])
    clean = CleanDenoiser(network, sd=0.3, profile=profile, precision="fp32")
    ambient = ConditionalDenoiser(network, sd=0.3, profile=profile, precision="fp32")
    kept = torch.ones(3, 1, 1, 8, dtype=torch.bool)
    assert torch.allclose(ambient(x_t, sigma, Identity(), kept), clean(x_t, sigma), atol=1e-5)


def test_the_output_scale_knows_what_is_missing() -> None:
    sigma = torch.tensor([1e-4, 0.3])
    assert torch.allclose(output_scale(sigma, 0.3, 1.0, 0.1), sigma * 0.3 / (sigma**2 + 0.09).sqrt())
    assert torch.allclose(output_scale(sigma, 0.3, 0.0, 0.1), torch.tensor(0.1))
    model = ConditionalDenoiser(Recorder(), sd=0.3)
    assert model.e0 == pytest.approx(0.075)
    weight = model.loss_weight(sigma, torch.tensor([0.25, 0.25]))
    assert torch.allclose(weight, 1 / output_scale(sigma, 0.3, 0.25, 0.075).square())


class Zero(nn.Module):
    """A network that adds nothing, so that D = x_lin."""

    def forward(self, x: Tensor, noise: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x[:, :2])


def linear_part() -> tuple[ConditionalDenoiser, LinearOperator, Tensor]:
    """D = x_lin, A_tilde, and (A^H A + (sigma/sd)^2)^-1 A^H as a matrix, at sigma = 0.2, sd = 0.5."""
    operator = small_sense(size=8)
    matrix = dense_matrix(operator, (1, 8, 8))
    solve = torch.linalg.solve(matrix.mH @ matrix + 0.16 * torch.eye(64, dtype=matrix.dtype), matrix.mH)
    return ConditionalDenoiser(Zero(), sd=0.5, cg_iterations=60, precision="fp32"), operator, solve


def test_the_linear_part_is_the_regularised_solution() -> None:
    model, operator, solve = linear_part()
    z = operator.forward(complex_randn((2, 1, 8, 8), generator=keyed_generator("z"), dtype=torch.complex128))
    found = model(z, torch.full((2,), 0.2, dtype=torch.float64), operator, operator.factors[0].mask)  # type: ignore[attr-defined]
    assert torch.allclose(found.flatten(1), z.flatten(1) @ solve.T, atol=1e-8)


def test_gradients_pass_through_the_linear_part() -> None:
    model, operator, solve = linear_part()
    z = operator.forward(complex_randn((1, 1, 8, 8), generator=keyed_generator("z"), dtype=torch.complex128))
    z.requires_grad_()
    found = model(z, torch.tensor([0.2], dtype=torch.float64), operator, operator.factors[0].mask)  # type: ignore[attr-defined]
    cotangent = complex_randn(found.shape, generator=keyed_generator("v"), dtype=torch.complex128)
    (gradient,) = torch.autograd.grad(found, z, cotangent)
    # Torch's convention: the vector-Jacobian product of a linear map M is M^H v.
    assert torch.allclose(gradient.flatten(1), cotangent.flatten(1) @ solve.conj(), atol=1e-8)


def measurement(rows: int, height: int, width: int, mask: Tensor) -> Measurement:
    maps = smooth_coils(3, height, width).to(torch.complex64).expand(rows, -1, -1, -1)
    ones = torch.ones(rows)
    keys = tuple(map(str, range(rows)))
    return Measurement(torch.zeros(maps.shape, dtype=torch.complex64), mask, maps, ones, ones, keys)


class Lifted(ConditionalDenoiser):
    """Keeps the data that it is given."""

    def forward(self, z: Tensor, sigma: Tensor, operator: LinearOperator, kept: Tensor) -> Tensor:
        self.z, self.kept = z, kept
        return operator.adjoint(z)


def test_the_lifted_state_has_white_noise_for_each_coil_and_the_right_signal() -> None:
    rows, mask = 6000, line_mask(6, (0, 2, 3, 4))
    m = measurement(rows, 4, 6, mask)
    generators = [keyed_generator("lift", i) for i in range(rows)]
    model = Lifted(Zero(), sd=0.5)
    corruption = Undersampling(ObservedMasks([mask]), core=6)  # the core is all there is: B keeps everything
    image = complex_randn((1, 1, 4, 6), generator=keyed_generator("image"))
    noise = complex_randn((rows, 1, 4, 6), generator=keyed_generator("image noise"))
    denoiser = model.as_denoiser(corruption, m, generators)
    assert isinstance(denoiser, AmbientDenoiser)
    denoiser(image + 0.3 * noise, torch.full((rows,), 0.3))
    seen = model.kept[0].expand(3, 4, 6)
    assert torch.equal(seen[0, 0], mask[0, 0, 0]) and not model.z[:, ~seen].any()
    expected = sense(m.coil_maps[:1], mask).forward(image)[0][seen]  # type: ignore[index]
    values = (model.z[:, seen] - expected) / 0.3
    assert values.mean(dim=0).abs().max() < 0.1
    covariance = values.T @ values.conj() / (2 * rows)
    assert torch.allclose(covariance, torch.eye(int(seen.sum()), dtype=covariance.dtype), atol=0.08)


def test_an_ambient_denoiser_averages_fresh_masks_of_its_own_lines() -> None:
    mask = line_mask(16, (1, 4, 6, 7, 8, 9, 12, 15))
    m = measurement(2, 8, 16, mask)
    model = Lifted(Zero(), sd=0.5)
    corruption = Undersampling(RandomLines(2, 4), core=2, keep=(0.3, 0.6))
    x_t, sigma = torch.ones(2, 1, 8, 16, dtype=torch.complex64), torch.tensor([0.2, 0.2])
    denoiser = model.as_denoiser(corruption, m, [keyed_generator(i) for i in range(2)])
    drawn = []
    for _ in range(6):
        denoiser(x_t, sigma)
        assert not (model.kept & ~mask).any()
        drawn.append(model.kept)
    assert not all(torch.equal(drawn[0], other) for other in drawn[1:])
    single = [model.as_denoiser(corruption, m, [keyed_generator(9), keyed_generator(8)]) for _ in range(2)]
    mean = (single[0](x_t, sigma) + single[0](x_t, sigma)) / 2
    assert torch.allclose(model.as_denoiser(corruption, m, single[1].generators, masks=2)(x_t, sigma), mean, atol=1e-6)
    with pytest.raises(AmbientMRIError, match="masks must be at least 1"):
        model.as_denoiser(corruption, m, single[0].generators, masks=0)


def test_what_is_missing_stays_uncertain_for_an_ambient_network() -> None:
    m = measurement(2, 8, 16, line_mask(16, (6, 7, 8, 9)))
    denoiser = Lifted(Zero(), sd=0.5, e0=0.2).as_denoiser(Undersampling(RandomLines(4, 4)), m, [keyed_generator(0)] * 2)
    small = denoiser.posterior_std(torch.tensor([1e-6, 1e-6]))
    assert torch.allclose(small, torch.full((2,), 0.75**0.5 * 0.2), atol=1e-4)


def test_the_analytic_denoiser_is_the_conditional_mean() -> None:
    world = GaussianWorld.with_decaying_spectrum(6, 5)
    denoiser, sigma = world.denoiser(), torch.tensor([0.05, 0.4], dtype=torch.float64)
    x_t = complex_randn((2, 1, 6, 5), generator=keyed_generator("x_t"), dtype=torch.complex128)
    found = denoiser(x_t, sigma)
    assert float(world.covariance.imag.abs().max()) > 1e-3  # a missing conjugate would show
    for row, level in enumerate(sigma.tolist()):
        exact = world.posterior(torch.eye(30, dtype=torch.complex128), x_t[row : row + 1], level)
        assert torch.allclose(found[row : row + 1], exact.mean, atol=1e-10)
        r_t = denoiser.posterior_std(sigma[row : row + 1])
        assert torch.allclose(r_t.square(), exact.variance.mean(), atol=1e-10)
    assert denoiser.sd == pytest.approx(0.25)


def test_draws_of_the_world_have_its_covariance() -> None:
    world = GaussianWorld.with_decaying_spectrum(4, 4)
    images = (world.draw(40000, keyed_generator("draws")) - world.mean).flatten(1)
    found = images.T @ images.conj() / (2 * len(images))
    assert (found - world.covariance).abs().max() < 0.02 * world.covariance.abs().max()


def test_the_error_curve_is_interpolated_and_never_exceeds_the_prior() -> None:
    denoiser = GaussianDenoiser(torch.eye(4, dtype=torch.complex128), torch.zeros(2, 2, dtype=torch.complex128))
    clean = CleanDenoiser(Recorder(), sd=0.5)
    clean.set_error_curve(torch.tensor([0.01, 0.1, 1.0]), torch.tensor([0.01, 0.04, 0.9]))
    sigma = torch.tensor([0.001, 0.01**0.5 * 0.1**0.5, 0.1, 1.0])
    prior = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    expected = torch.tensor([prior[0], 0.02, 0.04, prior[3]])  # the ends are held, and capped by the prior's own spread
    assert torch.allclose(clean.posterior_std(sigma), expected, rtol=1e-4)
    assert torch.allclose(denoiser.posterior_std(torch.tensor([1.0])), torch.tensor([0.5**0.5]))
    with pytest.raises(AmbientMRIError, match="sigmas ascending"):
        clean.set_error_curve(torch.tensor([1.0, 0.1]), torch.tensor([1.0, 0.1]))


def test_the_mask_profile_has_no_size() -> None:
    encoder = ProfileEncoder(4)
    lines = torch.zeros(1, 1, 1, 16, dtype=torch.bool)
    lines[..., :8] = True
    expected = torch.tensor([[0.5] * 4 + [1.0, 1.0, 0.0, 0.0]])
    assert torch.allclose(encoder(lines), expected)
    assert torch.allclose(encoder(lines.expand(1, 1, 12, 16)), expected)
    assert torch.allclose(encoder(lines.mT), torch.tensor([[1.0, 1.0, 0.0, 0.0] + [0.5] * 4]))


def test_settings_are_checked() -> None:
    with pytest.raises(AmbientMRIError, match="sd must be a positive"):
        CleanDenoiser(Recorder(), sd=0.0)
    with pytest.raises(AmbientMRIError, match="precision must be one of"):
        ConditionalDenoiser(Recorder(), sd=1.0, precision="half")


@pytest.mark.parametrize("native", [True, False])
def test_bf16_runs_where_the_device_computes_in_it(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imitated bfloat16 takes 20 times the time of float32, on processors of many laptops."""
    seen = []

    class Probe(torch.nn.Module):
        def forward(self, x: torch.Tensor, noise: torch.Tensor, condition: torch.Tensor | None) -> torch.Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return x[:, :2]

    monkeypatch.setattr(preconditioning, "computes_in_bf16", lambda device_type: native)
    x_t, sigma = torch.ones(1, 1, 8, 8, dtype=torch.complex64), torch.tensor([0.1])
    CleanDenoiser(Probe(), sd=0.5, precision="bf16")(x_t, sigma)
    CleanDenoiser(Probe(), sd=0.5, precision="fp32")(x_t, sigma)
    assert seen == [native, False]


def test_what_the_processor_computes_in_is_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for amx, avx512 in ((True, False), (False, True), (False, False)):
        preconditioning.computes_in_bf16.cache_clear()
        monkeypatch.setattr(preconditioning.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        assert preconditioning.computes_in_bf16("cpu") is (amx or avx512)
    preconditioning.computes_in_bf16.cache_clear()
    assert preconditioning.computes_in_bf16("mps") is False
