"""A chain of runs sees one draw of every subject: what is refused, what passes, and what a card hands on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ambient_mri._checks import AmbientMRIError
from ambient_mri.cli.info import describe
from ambient_mri.data.datasets import write_images
from ambient_mri.data.schema import read_prepared
from ambient_mri.prior import load_prior, read_card
from ambient_mri.sampling import make_sampler
from ambient_mri.train import compose
from ambient_mri.training import em
from ambient_mri.training.draws import (
    Draw,
    draw_of,
    draw_of_simulation,
    draws_of_card,
    draws_of_prior,
    require_one_draw,
    second_draws,
)
from ambient_mri.training.rounds import expectation_maximisation
from ambient_mri.training.run import train
from ambient_mri.training.simulated import SimulatedSet

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "network=unet_small", "network.channels=8", "network.multipliers=[1]", "model.precision=fp32",
    "corruption.law.acceleration=2", "corruption.law.acs_lines=4", "corruption.core=2", "loader.batch_size=4",
    "data=brain_images", "data.exclude=[]", "data.files=[heads.npz]", "data.scanner.coils=[2,2]", "trainer.max_steps=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``heads.npz`` with four subjects, three to train on; in ``other/`` a file of that name with other subjects."""
    folder = tmp_path_factory.mktemp("heads")
    (folder / "other").mkdir()
    for place, seed in ((folder, 0), (folder / "other", 1)):
        images = np.random.default_rng(seed).random((8, 16, 16)).astype(np.float32)
        np.savez(
            place / "heads.npz",
            images=images,
            subject=np.repeat(list("abcd"), 2),
            slice=np.tile([0, 1], 4),
            split=np.repeat(["train", "train", "train", "val"], 2),
        )
    return folder


def config(root: Path, run_dir: Path, *overrides: str) -> Any:
    return compose([*TINY, f"data.root={root}", f"data.cache={root}/cache", f"run_dir={run_dir}", *overrides])


@pytest.fixture(scope="module")
def first(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ambient run on the draw of seed 0."""
    run_dir = tmp_path_factory.mktemp("first")
    train(config(root, run_dir))
    return run_dir


@pytest.fixture(scope="module")
def second(root: Path, first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that goes on from the first with less data of the same draw: a chain of two."""
    run_dir = tmp_path_factory.mktemp("second")
    train(config(root, run_dir, f"init={first}", "data.exclude=[heads_000a]"))
    return run_dir


def test_a_chain_on_one_draw_says_so(second: Path) -> None:
    draws = draws_of_prior(second)
    assert len(draws) == 1 and draws[0].how["seed"] == 0 and len(draws[0].subjects) == 3
    assert describe(str(second))[1]["draws"] == "one of each subject"
    assert "allow_second_draw" not in read_card(second)


@pytest.mark.parametrize(
    ("objective", "override", "words"),
    [
        ("ambient", "data.seed=1", r"data\.seed is 0 there and 1 here"),
        ("em", "corruption.law.acceleration=3", r"corruption\.law\.acceleration is 2 there and 3 here"),
        ("em", "data.scanner.noise_std=[0.1,0.2]", r"data\.scanner\.noise_std is \[0\.002, 0\.01\] there and \[0"),
    ],
)
def test_another_draw_is_refused_before_anything_is_simulated(
    override: str, words: str, objective: str, root: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SimulatedSet, "_simulate_missing", lambda *_: pytest.fail("simulated first"))
    cfg = config(root, tmp_path, f"init={second}", override, f"objective={objective}")
    with pytest.raises(AmbientMRIError, match=rf"init=.*another draw .*'brain_images': {words}.*start from scratch"):
        expectation_maximisation(cfg) if objective == "em" else train(cfg)


def test_other_names_of_the_same_subjects_are_seen_through(root: Path, first: Path, tmp_path: Path) -> None:
    other = tmp_path / "renamed"
    other.mkdir()
    (other / "mine.npz").write_bytes((root / "heads.npz").read_bytes())
    renamed = ["data.files=[mine.npz]", "data.name=mine", f"data.root={other}", "data.seed=1", f"init={first}"]
    with pytest.raises(AmbientMRIError, match=r"another draw of the same subjects of 'mine': data\.seed is 0 there"):
        train(config(root, tmp_path / "r", *renamed))


@pytest.mark.parametrize("how", ["another root", "other volumes"])
def test_other_subjects_pass(how: str, root: Path, first: Path, tmp_path: Path) -> None:
    if how == "another root":
        chain = [f"init={first}", f"data.root={root / 'other'}"]
    else:  # the first run saw a, this one sees b and c
        train(config(root, tmp_path / "a", "data.limit=1"))
        chain = [f"init={tmp_path / 'a'}", "data.exclude=[heads_000a]"]
    train(config(root, tmp_path / "r", *chain, "data.seed=1", f"data.cache={tmp_path}"))
    assert len(draws_of_prior(tmp_path / "r")) == 2 and "allow_second_draw" not in read_card(tmp_path / "r")


def test_an_allowed_second_draw_is_inherited(root: Path, second: Path, tmp_path: Path) -> None:
    train(config(root, tmp_path / "a", f"init={second}", "data.seed=1", "allow_second_draw=true"))
    card = read_card(tmp_path / "a")
    assert card["allow_second_draw"] and "data.seed is 0 in one and 1 in the other" in card["second_draws"][0]
    # Neither draw is one that the chain has not mixed; the next run knows of both.
    for seed in (0, 1):
        with pytest.raises(AmbientMRIError, match=r"another draw of the same subjects"):
            train(config(root, tmp_path / f"b{seed}", f"init={tmp_path / 'a'}", f"data.seed={seed}"))
    # Other subjects make no third conflict; that of the start stays on the card.
    other = [f"init={tmp_path / 'a'}", f"data.root={root / 'other'}", f"data.cache={tmp_path}"]
    train(config(root, tmp_path / "c", *other))
    assert read_card(tmp_path / "c")["allow_second_draw"]
    assert "data.seed is 0 in one and 1 in the other" in describe(str(tmp_path / "c"))[1]["draws"]


def test_a_checkpoint_knows_its_draw_and_a_run_goes_on_without_its_start(
    root: Path, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = next((first / "checkpoints").glob("*.ckpt"))
    with pytest.raises(AmbientMRIError, match=r"init=.*\.ckpt learned from another draw"):
        train(config(root, tmp_path / "a", f"init={checkpoint}", "data.seed=1"))
    train(config(root, tmp_path / "r", f"init={first}"))
    monkeypatch.setattr("ambient_mri.training.setup.draws_of_prior", lambda _: pytest.fail("the start was read again"))
    train(config(root, tmp_path / "r", f"init={first}", "trainer.max_steps=2"))
    assert len(draws_of_prior(tmp_path / "r")) == 1


def e_step(root: Path, prior: Path, seed: int, folder: Path) -> list[str]:
    """Reconstructions of the training scans of a draw, as the command makes them; overrides of the M-step."""
    scans = sorted(p for p in (root / "cache").glob("*/scans") if _seed(p) == seed)
    files = sorted(scans[0].glob("*.h5"))
    em.expectation(load_prior(prior / "prior"), files, folder, sampler=make_sampler("one_step"))
    return ["objective=supervised", f"data.references={folder}", f"data.seed={seed}"]


def _seed(scans: Path) -> int:
    return int(json.loads((scans.parent / "manifest.json").read_text())["settings"]["seed"])


def test_references_come_from_the_draw_of_the_chain(
    root: Path, first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    m_step = e_step(root, first, 0, tmp_path / "recon")
    train(config(root, tmp_path / "r", *m_step, f"init={first}"))
    assert draws_of_card(load_prior(tmp_path / "r" / "prior").metadata) == draws_of_prior(first)
    assert read_card(tmp_path / "r")["data"]["references"] == {"made_by": f"E-step, one_step, prior {first.name}"}
    # The images of one draw with the scans of another: also where only files are there to tell.
    with pytest.raises(AmbientMRIError, match=r"what made data\.references=.*another draw .*data\.seed is 0 there"):
        train(config(root, tmp_path / "a", *m_step, "data.seed=1"))
    (tmp_path / "recon" / "draws.json").unlink()
    with pytest.raises(AmbientMRIError, match=r"was reconstructed from another draw of the scan heads_000a"):
        train(config(root, tmp_path / "a", *m_step, "data.seed=1"))


def test_an_e_step_on_another_draw_leads_nowhere(
    root: Path, first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The samples carry the first draw through their prior, even where the M-step starts from scratch."""
    train(config(root, tmp_path / "scans", "data.seed=1"))
    m_step = e_step(root, first, 1, tmp_path / "recon")
    assert "another draw of the subjects of these scans: no M-step will start" in caplog.text
    with pytest.raises(AmbientMRIError, match=r"what made data\.references=.*data\.seed is 0 there and 1 here"):
        train(config(root, tmp_path / "r", *m_step))


def test_images_of_no_e_step_are_not_judged(root: Path, first: Path, tmp_path: Path) -> None:
    """References of the user's own, with a scale of their own."""
    (tmp_path / "own").mkdir()
    for path in sorted((root / "cache").glob("*/scans/*.h5")):
        scan = read_prepared(path)
        image = np.ones((len(scan), 1, 16, 16), np.complex64)
        write_images(tmp_path / "own" / path.name, image, [f"{scan.source}/{i}" for i in range(len(scan))])
    train(config(root, tmp_path / "r", "objective=supervised", f"data.references={tmp_path / 'own'}"))
    assert read_card(tmp_path / "r")["data"]["references"] == "given"


BRAIN = {
    "set": "brain_images", "seed": 0, "files": ["brain_flair_128.npz", "brain_t1pre_128.npz"],
    "law": {"law": "RandomLines", "acceleration": 4, "acs_lines": 12},
    "scanner": {
        "coils": [4, 8], "noise_std": [0.002, 0.01], "phase": 1.0, "zoom": [0.85, 1.1], "shift": 0.03, "turn": True,
        "absorb_phase": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["benchmarks/priors/brain_R4_ambient", "ambient_mri/priors/brain128"])
def test_the_priors_behind_the_tables_are_of_one_draw(name: str) -> None:
    now = draw_of_simulation("brain_images", BRAIN)
    before = draws_of_prior(ROOT / name)
    assert len(before) == 1 and not second_draws(before)
    require_one_draw(now, before, source="init", allowed=False)
    with pytest.raises(AmbientMRIError, match=r"data\.seed is 0 there and 1 here"):
        require_one_draw(draw_of_simulation("brain_images", {**BRAIN, "seed": 1}), before, source="init", allowed=False)
    others = draw_of_simulation("brain_images", {**BRAIN, "seed": 1}, ["a", "b"])
    require_one_draw(others, before, source="init", allowed=False)
    require_one_draw(draw_of_simulation("heads", {**BRAIN, "seed": 1}), before, source="init", allowed=False)


def test_a_card_without_draws_speaks_for_its_chain() -> None:
    card = {"data": {"set": "brain_images", "settings": {**BRAIN, "seed": 1}}}
    assert len(second_draws(draws_of_card(card))) == 0
    older = {"data": {"set": "brain_images", "settings": BRAIN}}
    assert "data.seed is 1 in one and 0 in the other" in second_draws(draws_of_card({**card, "chain": [older]}))[0]
    assert draws_of_card({"data": {"set": "mine", "settings": {"seed": 0}}}) == []


def test_scans_with_masks_of_their_own_have_no_second_draw() -> None:
    own, seeded = Draw("s", {}, frozenset("a")), Draw("s", {"seed": 1}, frozenset("a"))
    assert not own.contradicts(Draw("s", {}, frozenset("ab"))) and own.contradicts(seeded)


def test_the_seed_of_procedural_heads_makes_other_heads() -> None:
    zero, one = ({"set": "phantom", "settings": {**BRAIN, "seed": s, "size": 16}} for s in (0, 1))
    for manifest in (zero, one):
        del manifest["settings"]["files"]
    a, b = draw_of(zero), draw_of(one)
    assert a is not None and b is not None and not a.contradicts(b)
    harder = {"set": "phantom", "settings": {**zero["settings"], "law": {"law": "RandomLines", "acceleration": 8}}}
    assert a.contradicts(draw_of(harder) or a)
