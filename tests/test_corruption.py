"""Corruptions of images: weights against brute-force simulation, what belongs to an image, and refused laws."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from torch import Tensor, nn

from ambient_mri._checks import AmbientMRIError
from ambient_mri.corruption import (
    AdditiveNoise,
    BlockAveraging,
    ImageCorruption,
    PixelMasking,
    RandomBlur,
    RandomBoxes,
    RandomPatches,
    RandomProjections,
    Undersampling,
    check_learnable,
)
from ambient_mri.corruption.blur import gaussian_gain
from ambient_mri.denoiser import ConditionalDenoiser
from ambient_mri.masks import EquispacedLines, IndependentLines, ObservedMasks, RandomLines, SamplingLaw
from ambient_mri.measurement import Measurement
from ambient_mri.operators import gaussian_blur
from ambient_mri.tensors import RowStreams, keyed_generator, real_inner

SHAPE = (1, 4, 6)

CORRUPTIONS: dict[str, ImageCorruption] = {
    "pixels": PixelMasking(0.6, keep=(0.5, 0.5)),
    "colours": PixelMasking(0.6, keep=(0.3, 0.8), per="colour"),
    "boxes": RandomBoxes((1, 2)),
    "patches": RandomPatches((3, 4), inner=(0.4, 0.8)),
    "averaging": BlockAveraging(2, 0.6, keep=(0.3, 0.7)),
    "projections": RandomProjections(7, keep=(0.3, 0.7)),
    "blur": RandomBlur((0.2, 0.7)),
    "noise": AdditiveNoise(),
}


class Nothing(nn.Module):
    """A network that adds nothing."""

    def forward(self, x: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :2])


def measure(corruption: ImageCorruption, images: Tensor, noise_std: float = 0.0) -> Measurement:
    rows = [
        corruption.measure(x[None], noise_std=noise_std, key=str(i), generator=keyed_generator("image", i))
        for i, x in enumerate(images)
    ]
    return Measurement.collate(rows)


@pytest.fixture(params=CORRUPTIONS)
def corruption(request: pytest.FixtureRequest) -> ImageCorruption:
    return CORRUPTIONS[request.param]


@pytest.mark.parametrize("name", ["pixels", "boxes", "patches", "averaging"])
def test_weights_make_the_mean_of_w_p_one_given_what_b_kept(name: str) -> None:
    """E[W P | A_tilde] = 1, by simulation, for every A_tilde that came up often enough."""
    corruption = CORRUPTIONS[name]
    shape = {"pixels": (1, 1, 6), "boxes": (1, 2, 5), "patches": (1, 4, 6), "averaging": (1, 2, 6)}[name]
    rows = 12_000
    masks = torch.cat([corruption.draw(shape, keyed_generator("P", i))[0] for i in range(rows)])
    blank = torch.zeros(rows, *shape)
    m = Measurement(blank, masks, None, torch.zeros(rows), torch.ones(rows), ("",) * rows, axes=())
    further = corruption.further(m, RowStreams("B", rows=range(rows)))
    assert bool((further.kept <= masks).all()) and bool((further.weights[~masks] == 0).all())
    groups: dict[tuple[bool, ...], list[int]] = defaultdict(list)
    for row, kept in enumerate(further.kept.flatten(1).tolist()):
        groups[tuple(kept)].append(row)
    tested = 0
    for members in groups.values():
        if len(members) < 200:
            continue
        tested += 1
        weights = further.weights[members].flatten(1).double()
        error = (weights.mean(0) - 1).abs()
        bound = 5 * weights.std(0) / len(members) ** 0.5 + 1e-3
        reach = weights.amax(0) > 0 if name == "patches" else torch.ones_like(error, dtype=torch.bool)
        assert bool((error <= bound)[reach].all())
    assert tested >= 8


@pytest.mark.parametrize("law", [RandomLines(2, 2), RandomLines(3, 0), IndependentLines(2, 2)])
def test_lines_of_the_core_that_scans_lack_are_learned_as_well(law: SamplingLaw) -> None:
    """A core beyond the calibration lines: E[W P] = 1 on every line that B removed, in the middle above all."""
    corruption, width, rows = Undersampling(law, core=6, keep=(0.5, 0.5)), 12, 8000
    generator = keyed_generator("core", str(law.describe()))
    masks = torch.cat([law.draw((1, width), generator) for _ in range(rows)])
    maps = torch.ones(rows, 1, 1, width, dtype=torch.complex64)
    m = Measurement(maps, masks, maps, torch.zeros(rows), torch.ones(rows), tuple(str(i) for i in range(rows)))
    found = corruption.further(m, RowStreams("core", rows=range(rows)))
    removed = (~found.kept)[:, 0, 0]
    if isinstance(law, RandomLines):  # where B removed nothing, the number of lines tells that nothing is missing
        removed &= (masks & ~found.kept).any(dim=-1)[:, 0]
    counted = removed.sum(dim=0)
    estimate = (found.weights[:, 0, 0] * removed).sum(dim=0) / counted.clamp_min(1)
    often = counted > 1000
    assert bool(often[width // 2 - 3 : width // 2 + 3].sum() >= 4)
    assert torch.allclose(estimate[often], torch.ones(int(often.sum())), atol=0.05)


def test_weights_of_projections_make_the_normal_operator_the_identity() -> None:
    """Inside what is kept exactly; outside on average, for vectors that depend on A_tilde."""
    corruption, rows = CORRUPTIONS["projections"], 3000
    m = measure(corruption, torch.zeros(rows, *SHAPE))
    further = corruption.further(m, RowStreams("B", rows=range(rows)))
    full = corruption.forward_operator(m)
    v = torch.randn(rows, *SHAPE, generator=keyed_generator("v"))
    seen = further.operator.adjoint(further.operator.forward(v))
    normal = lambda x: full.adjoint(further.weights * full.forward(x))  # noqa: E731
    assert float((normal(seen) - seen).abs().max()) < 1e-4
    unseen = v - seen
    ratio = real_inner(unseen, normal(unseen)) / real_inner(unseen, unseen)
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / rows**0.5
    assert float(real_inner(seen, normal(unseen)).abs().max()) < 1e-4
    assert bool((further.kept.sum(dim=(1, 2, 3)) < corruption.count).all())  # type: ignore[attr-defined]


def test_weights_of_blur_undo_its_gain() -> None:
    corruption = RandomBlur((0.2, 0.7), weight_cap=None)
    m = measure(corruption, torch.zeros(5, *SHAPE))
    weights = corruption.further(m, [keyed_generator(i) for i in range(5)]).weights
    full, x = corruption.forward_operator(m), torch.randn(5, *SHAPE, generator=keyed_generator("x"))
    assert torch.allclose(full.adjoint(weights * full.forward(x)), x, atol=1e-5)


def test_the_blur_of_the_law_is_that_of_the_restoration_operator() -> None:
    m = measure(RandomBlur((1.5, 1.5)), torch.randn(2, 1, 24, 18, generator=keyed_generator("x")))
    operator = RandomBlur((1.5, 1.5)).forward_operator(m)
    x = torch.randn(2, 1, 24, 18, generator=keyed_generator("x"), dtype=torch.float64)
    m = Measurement(**{**vars(m), "y": x})
    transform = operator.factors[-1]  # type: ignore[attr-defined]
    operator = RandomBlur((1.5, 1.5)).forward_operator(m)
    assert torch.allclose(transform.adjoint(operator.forward(x)), gaussian_blur(1.5)(x), atol=1e-3)
    assert float(gaussian_gain(torch.tensor([[1.5]]), (24, 18)).max()) == 1.0


@pytest.mark.parametrize("channels", [1, 3])
def test_further_corruptions_of_real_and_complex_images(corruption: ImageCorruption, channels: int) -> None:
    for dtype in (torch.float32, torch.complex64):
        images = torch.randn(3, channels, *SHAPE[1:], generator=keyed_generator("x"), dtype=dtype)
        m = measure(corruption, images)
        assert m.y.dtype == dtype and len(m) == 3
        draw = lambda key: corruption.further(m, [keyed_generator(key, i) for i in range(3)])  # noqa: E731, B023
        further, again = draw("a"), draw("a")
        assert torch.equal(further.kept, again.kept)
        assert further.kept.sum() < m.mask.sum() or isinstance(corruption, AdditiveNoise)
        tilde = further.operator.forward(images)
        assert torch.allclose(tilde, m.y * further.kept, atol=1e-5)
        assert further.rate.shape == (3,) and bool((further.rate > 0).all())
        torch.testing.assert_close(corruption.forward_operator(m).forward(images), m.y, rtol=1e-5, atol=1e-6)


def test_the_network_and_the_loss_know_the_same_share_of_an_image(corruption: ImageCorruption) -> None:
    """trace(A_tilde^H A_tilde) / n, for a further mask and for all that was measured: one c_out in both."""
    images = torch.randn(3, *SHAPE, generator=keyed_generator("x"))
    m, told = measure(corruption, images), list[Tensor]()

    class Spy(ConditionalDenoiser):
        def expected_error(self, sigma: Tensor, rate: Tensor) -> Tensor:
            told.append(rate)
            return super().expected_error(sigma, rate)

    model, sigma = Spy(Nothing(), sd=0.5, precision="fp32"), torch.full((3,), 0.1)
    basis = torch.eye(images[0].numel()).reshape(-1, *SHAPE)
    further = corruption.further(m, [keyed_generator("B", i) for i in range(3)])
    for operator, kept, rate in (
        (further.operator, further.kept, further.rate),
        (corruption.forward_operator(m), m.mask, corruption.rate(m, m.mask)),
    ):
        traces = sum(operator.forward(e.expand_as(images)).square().flatten(1).sum(1) for e in basis)
        assert torch.allclose(rate.expand(3), torch.as_tensor(traces) / len(basis), rtol=1e-4)
        model(operator.forward(images) * kept, sigma, operator, kept)
        assert torch.allclose(told.pop().expand(3), rate.expand(3), rtol=1e-5)
    denoiser = model.as_denoiser(corruption, m, [keyed_generator(i) for i in range(3)])
    denoiser.posterior_std(sigma)
    assert torch.allclose(told.pop(), corruption.rate(m, m.mask).expand(3))


def test_what_belongs_to_an_image_is_a_function_of_its_key(corruption: ImageCorruption) -> None:
    image = torch.randn(1, *SHAPE, generator=keyed_generator("x"))
    one, two, other = (
        corruption.measure(image, noise_std=0.1, key="k", generator=keyed_generator("data", k)) for k in (1, 1, 2)
    )
    assert torch.equal(one.y, two.y) and torch.equal(one.mask, two.mask)
    assert not torch.equal(one.y, other.y)
    assert one.parameters is None or not torch.equal(one.parameters, other.parameters)  # type: ignore[arg-type]
    assert bool((one.y[~one.mask.expand_as(one.y)] == 0).all())


def test_image_power_is_unbiased(corruption: ImageCorruption) -> None:
    """White images of variance 4, so that what a law leaves out is as strong as what it keeps; noise is taken off."""
    rows = 1500
    images = 2 * torch.randn(rows, *SHAPE, generator=keyed_generator("white"))
    if isinstance(corruption, RandomBlur):
        images = images.mean(dim=(2, 3), keepdim=True).expand_as(images)  # its bias is stated: smooth images have none
    power = corruption.image_power(measure(corruption, images, noise_std=0.7)).double()
    truth = images.square().flatten(1).mean(1).double()
    error = (power - truth).mean()
    assert abs(float(error)) < 5 * float((power - truth).std()) / rows**0.5


def test_noise_of_the_lifted_state_is_white(corruption: ImageCorruption) -> None:
    """x_t = sigma n in, noise of variance sigma^2 at every kept location out: what training adds."""
    rows, sigma = 2000, 0.7
    m = measure(corruption, torch.zeros(1, *SHAPE))
    further = corruption.further(m, [keyed_generator("B")])
    x_t = sigma * torch.randn(rows, *SHAPE, generator=keyed_generator("n"))
    generators = RowStreams("lift", rows=range(rows))
    lifted = corruption.lift(m, x_t, torch.full((rows,), sigma), further.operator, generators) * further.kept
    values = lifted.flatten(1)[:, further.kept.expand(1, *lifted.shape[1:]).flatten()].double()
    covariance = values.mT @ values / rows / sigma**2
    assert float((covariance - torch.eye(len(covariance))).abs().max()) < 0.15


@pytest.mark.parametrize(
    ("corruption", "shape", "words"),
    [
        (PixelMasking(law=ObservedMasks([torch.eye(8, dtype=torch.bool)[None, None]])), (8, 8),
         r"56 of the 64 pixels are missing in every image.*must vary from image to image"),
        (PixelMasking(law=ObservedMasks([(torch.eye(8) == i)[None, None] for i in (0, 1)] * 3)), (8, 8),
         r"which of a few masks.*never shows these pixels together"),
        (PixelMasking(law=EquispacedLines(4, 2)), (8, 8), "which of a few masks"),
        (RandomBoxes(4, rows=(2, 2), columns=(2, 2)), (8, 8), "16 pixels are behind the box in every image.*move"),
        (RandomBoxes(4), (8, 8), "some boxes of 4 x 4 leave no place for a second one.*Use a smaller box"),
        (RandomBoxes(9), (8, 8), "a box of 9 x 9 does not fit"),
        (RandomPatches(4, rows=(1, 1), columns=(2, 2)), (8, 8), "48 pixels are outside the one fixed patch.*or crop"),
        (RandomPatches(4, rows=(1, 2)), (8, 8), "outside every patch"),
        (BlockAveraging(4, 0.0), (8, 8), "every block of 4 x 4 is averaged in every image.*Leave some"),
        (BlockAveraging(3, 0.5), (8, 8), "do not tile"),
        (RandomProjections(9, fixed=3), (8, 8), "seen through the same 9 directions.*fresh projections"),
        (RandomProjections(65), (8, 8), "65 rows are more than an image of 64 pixels has"),
        (RandomBlur((1.5, 3.0)), (32, 32), "even the sharpest images.*a pure low-pass"),
    ],
)  # fmt: skip
def test_unlearnable_laws_are_refused(corruption: ImageCorruption, shape: tuple[int, int], words: str) -> None:
    with pytest.raises(AmbientMRIError, match=words):
        corruption.learnability(shape)


def test_learnable_laws_are_let_through(corruption: ImageCorruption) -> None:
    m = measure(corruption, torch.zeros(1, *SHAPE))
    result = check_learnable(corruption, m)
    assert result.exact_weights
    assert (result.smallest_eigenvalue > 0) != isinstance(corruption, RandomPatches)
    assert bool(result.notes) == isinstance(corruption, RandomPatches | RandomBlur)
    assert not RandomBlur((0.2, 0.5)).learnability((32, 32)).notes


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PixelMasking(0.0), r"probability must be in \(0, 1\]"),
        (lambda: PixelMasking(0.5, per="channel"), "per must be one of 'pixel', 'colour'"),
        (lambda: PixelMasking(0.5, keep=(0.5, 1.0)), "keep must satisfy"),
        (lambda: RandomBoxes(0), "the size of a box must be positive"),
        (lambda: RandomPatches(4, inner=(0.5, 1.0)), "inner must satisfy"),
        (lambda: BlockAveraging(1), "block must be at least 2"),
        (lambda: BlockAveraging(4, 1.5), r"probability must be in \[0, 1\]"),
        (lambda: RandomProjections(1), "count must be at least 2"),
        (lambda: RandomBlur((1.0, 0.5)), "bandwidth must satisfy"),
        (lambda: RandomBlur(weight_cap=0.5), "weight_cap must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(make: object, words: str) -> None:
    with pytest.raises(AmbientMRIError, match=words):
        make()  # type: ignore[operator]


def test_descriptions_are_plain_data(corruption: ImageCorruption) -> None:
    found = corruption.describe()
    assert found["law"] and all(isinstance(v, int | float | str | list | None) for v in found.values())
