"""The stationary model of images: exact posterior means and errors, the fit, and the linear start that rests on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ambient_mri._checks import AmbientMRIError
from ambient_mri.denoiser import ConditionalDenoiser
from ambient_mri.operators import Mask, gaussian_blur
from ambient_mri.prior import Prior, build_model, load_prior
from ambient_mri.stationary import StationaryGaussian, fit_stationary, products_of
from ambient_mri.tensors import keyed_generator

ANGLE = torch.tensor(0.6, dtype=torch.float64)
TURN = [[float(ANGLE.cos()), float(-ANGLE.sin())], [float(ANGLE.sin()), float(ANGLE.cos())]]
TWO: dict[str, Any] = {"colours": TURN, "weights": [[0.02, 0.03], [0.2, 0.5]], "lengths": [1.0, 4.0]}
ONE: dict[str, Any] = {"colours": [[1.0]], "weights": [[0.3, 0.5]], "lengths": [1.0, 3.0]}


def covariance(model: StationaryGaussian, height: int, width: int, *, nugget: bool = True) -> Tensor:
    """C as a matrix over (colour, row, column)."""
    places = torch.cartesian_prod(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    ).reshape(-1, 2)
    kernel = model.kernel(torch.cdist(places, places))
    if nugget:
        kernel = kernel + model.nugget * torch.eye(len(places), dtype=torch.float64)
    full = torch.einsum("ck,kpq,dk->cpdq", model.colours, kernel, model.colours)
    return full.reshape(full.shape[0] * len(places), -1)


def sample(model: StationaryGaussian, count: int, height: int, width: int) -> Tensor:
    root = torch.linalg.cholesky(covariance(model, height, width))
    white = torch.randn(count, len(root), dtype=torch.float64, generator=keyed_generator("stationary sample"))
    return (white @ root.T).reshape(count, -1, height, width)


@pytest.mark.parametrize(("settings", "per_colour"), [(ONE, False), (TWO, False), (TWO, True)])
@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_the_posterior_mean_is_the_exact_one(settings: dict[str, Any], per_colour: bool, sigma: float) -> None:
    """Against the dense solve C A^H (A C A^H + sigma^2)^-1 z; lengths are short, for the grid is a torus."""
    model, height, width = StationaryGaussian(**settings | {"lengths": [0.6, 1.2]}), 15, 12
    colours = len(settings["colours"])
    shape = (3, colours if per_colour else 1, height, width)
    mask = torch.rand(shape, generator=keyed_generator("mask")) < 0.5
    z = (sample(model, 3, height, width) + sigma) * mask
    level, rate = torch.full((3,), sigma), mask.float().mean((1, 2, 3))
    found = model.posterior_mean(Mask(mask), z, level, rate, iterations=120)
    full = covariance(model, height, width)
    for row in range(3):
        seen = mask[row].expand(colours, height, width).flatten()
        inner = full[seen][:, seen] + sigma**2 * torch.eye(int(seen.sum()), dtype=torch.float64)
        wanted = full[:, seen] @ torch.linalg.solve(inner, z[row].flatten()[seen])
        gap = (found[row].flatten() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
        assert float(gap) < 0.01, "what remains is what goes around the torus"
    if sigma == 0:
        assert torch.allclose(found * mask, z, atol=1e-6), "data without noise are met"


def test_the_posterior_mean_is_linear_and_differentiable() -> None:
    """Its vector-Jacobian product is that of the converged, linear map."""
    model = StationaryGaussian(**ONE)
    mask = torch.rand(1, 1, 8, 8, generator=keyed_generator("mask")) < 0.5
    level, rate = torch.tensor([0.4]), torch.tensor([0.5])
    z, v = (torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=keyed_generator(k)) * mask for k in "zv")
    apply = lambda t: model.posterior_mean(Mask(mask), t, level, rate, iterations=60)  # noqa: E731
    _, product = torch.autograd.functional.jvp(apply, z, v)
    assert torch.allclose(product, apply(v), atol=1e-6)
    backward = torch.autograd.functional.vjp(apply, z, v)[1]
    assert torch.allclose(backward * mask, apply(v) * mask, atol=1e-6), "on measured pixels the map is symmetric"


def test_the_error_is_what_is_left() -> None:
    model, level, rate = StationaryGaussian(**TWO), torch.full((64,), 0.2), torch.full((64,), 0.4)
    x = sample(model, 64, 16, 16)
    mask = torch.rand(64, 1, 16, 16, generator=keyed_generator("mask")) < 0.4
    z = (x + 0.2 * torch.randn(x.shape, dtype=x.dtype, generator=keyed_generator("noise"))) * mask
    error = (model.posterior_mean(Mask(mask), z, level, rate, iterations=30) - x).square().mean().sqrt()
    assert float(error) == pytest.approx(float(model.error(level, rate)[0]), rel=0.08)
    sigma = torch.logspace(-3, 3, 40)
    curve = model.error(sigma, torch.full((40,), 0.7))
    assert bool((curve[1:] >= curve[:-1]).all()) and float(curve[-1]) == pytest.approx(model.std, rel=0.01)


def test_the_fit_finds_the_covariance_behind_mask_and_noise() -> None:
    model = StationaryGaussian(colours=TURN, weights=[[0.05, 0.0], [0.2, 0.5]], lengths=[1.2, 4.8])
    x = sample(model, 400, 16, 16)
    mask = torch.rand(400, 2, 16, 16, generator=keyed_generator("mask")) < 0.5
    noise = torch.full((400,), 0.3)
    y = (x + 0.3 * torch.randn(x.shape, dtype=x.dtype, generator=keyed_generator("noise"))) * mask
    parts = [products_of(y[rows], mask[rows], noise[rows]) for rows in (slice(0, 150), slice(150, None))]
    fitted = StationaryGaussian(**fit_stationary(parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]))
    wanted, found = covariance(model, 6, 6, nugget=False), covariance(fitted, 6, 6, nugget=False)
    assert float((wanted - found).norm() / wanted.norm()) < 0.12


def test_grey_images_stored_as_colours_can_be_fitted() -> None:
    grey = sample(StationaryGaussian(**ONE), 50, 8, 8).expand(-1, 3, -1, -1)
    fitted = StationaryGaussian(**fit_stationary(*products_of(grey, torch.ones(50, 1, 8, 8) > 0, torch.zeros(50))))
    mask = torch.rand(2, 1, 8, 8, generator=keyed_generator("mask")) < 0.5
    rate = torch.full((2,), 0.5)
    x = fitted.posterior_mean(Mask(mask), (grey[:2] * mask).float(), torch.zeros(2), rate, iterations=30)
    assert bool(torch.isfinite(x).all()) and float((x - x.mean(1, keepdim=True)).abs().max()) < 0.02


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": [[0.1, -0.1], [1.0, 1.0]]}, "must not be negative"),
        ({"weights": [[0.0, 0.0], [1.0, 1.0]]}, "nor all zero"),
        ({"lengths": [1.0]}, r"weights \(c, 1\)"),
        ({"nugget": 0.0}, "nugget must be"),
    ],
)
def test_impossible_models_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(AmbientMRIError, match=words):
        StationaryGaussian(**(TWO | change))


def test_an_untrained_network_interpolates(tmp_path: Any) -> None:
    """The linear start: a U-Net begins with zeros, so that the denoiser begins at the posterior mean."""
    architecture = {"kind": "ambient", "network": {"channels": 8, "multipliers": [1]}, "sd": 0.6, "precision": "fp32"}
    architecture |= {"image_channels": 2, "mask_channels": 1, "covariance": TWO, "cg_iterations": 20}
    model = build_model(architecture)
    assert isinstance(model, ConditionalDenoiser) and model.stationary is not None
    assert not [k for k in model.state_dict() if "stationary" in k], "the card holds the covariance, not the weights"
    x = sample(model.stationary, 4, 16, 16).float()
    mask = torch.rand(4, 1, 16, 16, generator=keyed_generator("mask")) < 0.5
    sigma, rate = torch.full((4,), 0.01), mask.float().mean((1, 2, 3))
    with torch.no_grad():
        found = model(x * mask, sigma, Mask(mask), mask)
        again = load_prior(Prior(model, "ambient", architecture).save(tmp_path)).model(
            x * mask, sigma, Mask(mask), mask
        )
    assert torch.equal(found, again)
    white = ConditionalDenoiser(model.network, sd=0.6, profile=model.profile, mask_channels=1, precision="fp32")
    with torch.no_grad():
        plain = white(x * mask, sigma, Mask(mask), mask)
    assert float((found - x).square().mean()) < 0.25 * float((plain - x).square().mean())
    expected = model.stationary.error(sigma, rate)
    assert torch.allclose(model.loss_weight(sigma, rate), expected.square().reciprocal())


def test_any_operator_has_a_linear_start() -> None:
    model, operator = StationaryGaussian(**ONE), gaussian_blur(1.0)
    x = sample(model, 2, 16, 16)
    back = model.posterior_mean(operator, operator(x), torch.full((2,), 0.01), torch.ones(2), iterations=30)
    assert float((back - x).square().mean()) < 0.5 * float((operator(x) - x).square().mean())
