"""What benchmarks/priors/ship.py writes into a model card, and what ``ambient-mri info`` says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ambient_mri.cli.info import describe
from ambient_mri.prior import Prior, build_model, load_prior, read_card
from ambient_mri.report.records import read_records
from benchmarks.quality.ledger import Ledger, provenance
from tests.test_benchmarks import BENCHMARKS, load

ARCHITECTURE = {
    "kind": "clean",
    "network": {"name": "UNet", "channels": 8, "multipliers": [1]},
    "sd": 0.3,
    "precision": "fp32",
}


def saved(folder: Path, fill: float) -> Path:
    model = build_model(ARCHITECTURE)
    for tensor in model.state_dict().values():
        tensor.fill_(fill)
    return Prior(model, "clean", ARCHITECTURE, name="run").save(folder)


def record(path: Path, prior: Path) -> Path:
    """Two slices at R = 8 and one at R = 4, for the prior (there called em2) and another one."""
    named = {"priors": {"em2": provenance(load_prior(prior)), "other": {"weights": "0"}}}
    rows = []
    for case, law, rate, psnr in (("a", "poisson", 8, 30.0), ("b", "poisson", 8, 33.0), ("a", "random", 4, 27.0)):
        shared = {"case": case, "law": law, "acceleration": rate, "mask": 0, "n": 1, "ci95": None}
        for name, more in (("em2", 0.0), ("other", 9.0)):
            method = f"{name}/split_gibbs/mean8"
            scores = {"psnr": psnr + more, "ssim": psnr / 100, "nrmse": 0.1}
            rows += [{**shared, "method": method, "metric": k, "value": v} for k, v in scores.items()]
            rows.append({**shared, "method": method, "metric": "psnr", "value": 99.0, "region": "inside"})
    Ledger(path, "python benchmarks/quality/selection.py", {"samples": 8, "data": "two heads"}, named).add(rows)
    return path


def test_a_card_gets_the_scores_of_its_own_weights(tmp_path: Path) -> None:
    ship = load("priors/ship")
    folder = saved(tmp_path / "prior", 0.1)
    result = read_records(record(tmp_path / "selection.json", folder))
    prior = load_prior(folder)
    found = ship.metrics_of(prior, "em2", result)
    first, second = found["values"]
    assert first == {
        "law": "random",
        "acceleration": 4,
        "method": "split_gibbs/mean8",
        "psnr": 27.0,
        "ssim": pytest.approx(0.27),
        "n": 1,
    }
    assert (second["law"], second["psnr"], second["ssim"], second["n"]) == ("poisson", 31.5, pytest.approx(0.315), 2)
    assert set(found["definitions"]) == {"psnr", "ssim"} and found["settings"] == {"samples": 8}
    assert found["data"] == "two heads" and found["weights"] == provenance(prior)["weights"]
    with pytest.raises(SystemExit, match=r"has no prior 'em3'; it has em2, other"):
        ship.metrics_of(prior, "em3", result)
    with pytest.raises(SystemExit, match=r"made with other weights of 'em2'"):
        ship.metrics_of(load_prior(saved(tmp_path / "later", 0.2)), "em2", result)

    prior.metadata["metrics"] = found
    _, facts = describe(str(prior.save(tmp_path / "shipped")))
    expected = "split_gibbs/mean8, random R = 4: 27.00 dB (0.270), poisson R = 8: 31.50 dB (0.315)\ntwo heads"
    assert facts["quality"] == expected
    assert "quality" not in describe(str(folder))[1]


def test_the_shipped_card_says_what_the_record_says() -> None:
    card = read_card("brain128")["metrics"]
    result = read_records(BENCHMARKS / "results" / f"{card['benchmark']}.json")
    (name,) = [n for n, prior in result.settings["priors"].items() if prior["weights"] == card["weights"]]
    for line in card["values"]:
        factors = {"law": line["law"], "acceleration": line["acceleration"], "region": None}
        for metric in ("psnr", "ssim"):
            rows = result.select(method=f"{name}/{line['method']}", metric=metric, **factors)
            mean = sum(row["value"] for row in rows) / len(rows)
            assert len(rows) == line["n"] and line[metric] == pytest.approx(mean)
