"""The shipped experiments themselves, shortened: what they log, what they show, and that they resume."""

import csv
import sys
from pathlib import Path

import pytest
import yaml

from lit_papers.cli import main


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lit_papers"])  # LightningCLI warns of two command lines


def last_row(folder: Path) -> dict[str, float]:
    """The last value of every column of ``metrics.csv``."""
    values = {}
    with (folder / "metrics.csv").open() as stream:
        for row in csv.DictReader(stream):
            values |= {key: float(value) for key, value in row.items() if value}
    return values


def small(players: str, arguments: dict[str, int], **settings: object) -> str:
    """A file that puts a callback with a small budget in place of the configured one: lists are replaced."""
    grid = {"class_path": f"lit_papers.interactions.players.{players}", "init_args": arguments}
    callback = {
        "class_path": "lit_papers.callbacks.InteractionStrength",
        "init_args": {"players": grid, "pairs": "all", **settings},
    }
    Path("budget.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    return "budget.yaml"


def fit(config: str, *arguments: str) -> dict[str, float]:
    assert main(["fit", "--config", config, "--trainer.enable_progress_bar=false", *arguments]) == 0
    folders = sorted(Path(f"runs/{config}").glob("version_*"))
    return last_row(folders[-1])


@pytest.mark.slow
def test_a_digit_classifier_favours_simple_interactions(tmp_path: Path) -> None:
    """Exact, n = 16: most strength at order 0, least in between (Deng et al., figure 1)."""
    budget = small("PatchGrid", {"grid": 4}, n_samples=3, method="exact", baseline=-0.39, epochs=99)
    found = fit("interactions/digits", "--config", budget, "--trainer.max_epochs=10")
    j = [found[f"interactions/J/m{m}"] for m in range(15)]
    assert j[0] >= 1.15
    assert 0 < j.index(min(j)) < 14
    assert sum(j) == pytest.approx(15, rel=1e-5)
    assert found["val/acc"] > 0.9
    assert (tmp_path / "runs/interactions/digits/version_0/interactions.png").is_file()


@pytest.mark.parametrize("bias", [pytest.param("normal", marks=pytest.mark.slow), "mid"])
def test_adult_trains_with_and_without_a_bias(bias: str) -> None:
    pytest.importorskip("shapiq", reason="the table comes with it")
    budget = small("FeaturePlayers", {"n_features": 14}, n_samples=2, only_correct=False)
    options = ["--model.encourage=[0.3,0.7]"] if bias == "mid" else []
    found = fit("interactions/adult", "--config", budget, "--trainer.max_epochs=2", "--model.lr=0.05", *options)
    assert ("train/loss_encourage" in found) == (bias == "mid")
    assert {"train/loss", "train/loss_cls", "train/acc", "val/loss", "val/acc", "interactions/J_centroid"} <= set(found)
    assert found["val/acc"] > 0.74
    assert {f"interactions/J/m{m}" for m in range(13)} <= set(found)


def test_a_run_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    budget = small("PatchGrid", {"grid": 2}, n_samples=4, method="exact")
    biased = ["--config", budget, "--model.penalize=[0,0.5]", "--model.players.init_args.grid=2"]
    fit("interactions/digits", *biased, "--trainer.max_epochs=1")
    (checkpoint,) = tmp_path.glob("runs/interactions/digits/version_0/checkpoints/*.ckpt")
    found = fit("interactions/digits", *biased, "--trainer.max_epochs=3", f"--ckpt_path={checkpoint}")
    assert found["epoch"] == 2
    assert "train/loss_penalize" in found


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ("cifar10", []),
        pytest.param("tiny_imagenet", ["--data.n_classes=2", "--data.image_size=64"], marks=pytest.mark.slow),
    ],
)
def test_image_folders_run_through_the_shipped_configurations(config: str, options: list[str], tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for split in ("train", "val"):
        for k, name in enumerate(("cat", "dog")):
            for i in range(3):
                path = tmp_path / f"images/{split}/{name}/{i}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.new("RGB", (64, 64), (90 * k, 80, 10 * i)).save(path)
    orders = [0, 127, 254]
    budget = small("PatchGrid", {"grid": 16}, n_samples=1, pairs=1, n_contexts=1, orders=orders, only_correct=False)
    short = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--data.batch_size=3", "--data.num_workers=0"]
    found = fit(f"interactions/{config}", "--config", budget, "--data.root=images", *short, *options)
    assert {"interactions/J/m0", "interactions/J/m254", "val/acc"} <= set(found)
