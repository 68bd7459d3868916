"""The comparison in one command: composed from a user's configuration, resumed cell by cell, and reported."""

import json
import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from lit_papers import catalog
from lit_papers.interactions import experiment
from lit_papers.interactions.experiment import Attack, Cell, comparison_figure, main, masking_figure, run_cell, table
from lit_papers.interactions.samples import balanced


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    """The command quietens Lightning."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """The shipped configuration of the digits, with four players and two samples."""
    config = yaml.safe_load((catalog.CONFIG_FOLDER / "interactions/digits.yaml").read_text())
    (callback,) = config["trainer"]["callbacks"]
    callback["init_args"] |= {"players": {**callback["init_args"]["players"], "init_args": {"grid": 2}}}
    callback["init_args"] |= {"n_samples": 2, "epochs": 1, "only_correct": False}
    config["trainer"]["max_epochs"] = 1
    config["model"]["init_args"]["players"] = callback["init_args"]["players"]
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return str(path)


ATTACK = ["--eps=0.1", "--steps=2", "--samples=20"]


def cell(bias: str = "normal", seed: int = 0, images: bool = False, **changes: object) -> Cell:
    known = Cell(
        command="", bias=bias, seed=seed, test_accuracy=0.8, pgd_accuracy=0.3, orders=[0, 1, 2], n_players=4,
        strength=[0.2, 0.1, 0.3], relative_strength=[1.0, 0.5, 1.5], untrained=[1.5, 0.5, 1.0],
        random=[1 - k / 10 for k in range(11)] if images else None,
        border=[1 - (k / 10) ** 2 for k in range(11)] if images else None, seconds=1.0,
    )  # fmt: skip
    return replace(known, **changes)


def test_the_command_runs_keeps_and_reports(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", tiny, "--seeds", "0", "--biases", "normal", "mid", "--out", "out", *ATTACK]
    assert main(arguments) == 0
    out = tmp_path / "out"
    for bias, encourage in (("normal", None), ("mid", [0.3, 0.7])):
        config = yaml.safe_load((out / f"{bias}_0/config.yaml").read_text())
        assert config["model"]["init_args"]["encourage"] == encourage
        assert config["seed_everything"] == 0
        assert (out / f"{bias}_0/interactions.png").is_file()
        found = json.loads((out / f"{bias}_0/cell.json").read_text())
        assert len(found["random"]) == len(found["border"]) == 11
        assert found["random"][10] == found["border"][10], "nothing is left either way"
        assert found["orders"] == [0, 1, 2]
        assert 0 < found["test_accuracy"] <= 1
    for name in ("comparison.png", "masking.png"):
        assert (out / name).stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert (out / "table.md").read_text() in printed
    assert "| mid | 1 |" in printed

    # a second call trains nothing, and neither does one with a seed more repeat the first
    written = (out / "mid_0/cell.json").stat().st_mtime_ns
    assert main([*arguments[:3], "0", "1", *arguments[4:]]) == 0
    assert (out / "mid_0/cell.json").stat().st_mtime_ns == written
    assert (out / "mid_1/cell.json").is_file()
    first, second = (json.loads((out / f"normal_{seed}/cell.json").read_text()) for seed in (0, 1))
    assert first["strength"] != second["strength"]


def test_a_cell_of_other_settings_is_not_taken_for_this_one(tiny: str, tmp_path: Path) -> None:
    folder = tmp_path / "normal_0"
    folder.mkdir()
    (folder / "cell.json").write_text(json.dumps(vars(cell(command="other"))))
    with pytest.raises(ValueError, match=r"cell\.json was made by other settings: choose another --out"):
        run_cell(tiny, "normal", 0, folder, Attack())


def test_a_changed_configuration_makes_another_cell(tiny: str, tmp_path: Path) -> None:
    attack = Attack(eps=0.1, steps=1, samples=5)
    run_cell(tiny, "normal", 0, tmp_path / "normal_0", attack)
    run_cell(tiny, "normal", 0, tmp_path / "normal_0", attack)
    Path(tiny).write_text(Path(tiny).read_text().replace("lr: 0.05", "lr: 0.01"))
    with pytest.raises(ValueError, match="made by other settings"):
        run_cell(tiny, "normal", 0, tmp_path / "normal_0", attack)
    with pytest.raises(ValueError, match="--config nothing: no such file, and no shipped configuration"):
        run_cell("nothing", "normal", 0, tmp_path / "normal_1", attack)


def test_a_cell_depends_on_its_seed_alone(tiny: str, tmp_path: Path) -> None:
    attack = Attack(eps=0.1, steps=2, samples=10)
    one, two = (run_cell(tiny, "high", 3, tmp_path / name / "high_3", attack) for name in ("a", "b"))
    assert replace(one, seconds=0.0) == replace(two, seconds=0.0)


def test_a_configuration_without_the_callback_is_refused(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give its trainer the callback InteractionStrength"):
        run_cell(tiny, "normal", 0, tmp_path / "x", Attack(), ["--trainer.callbacks=[]"])


def test_a_network_that_learned_nothing_is_not_taken_for_its_control(tiny: str, tmp_path: Path) -> None:
    text = Path(tiny).read_text()
    Path(tiny).write_text(text.replace("only_correct: false", "only_correct: true").replace("samples: 2", "samples: 1"))
    complaint = pytest.raises(ValueError, match="normal, seed 1: after training no sample is classified correctly")
    with pytest.warns(UserWarning, match="nothing measured after epoch"), complaint:
        run_cell(tiny, "normal", 1, tmp_path / "x", Attack(), ["--model.lr=1e-30"])


def test_missing_data_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "interactions/cifar10", "--out", "out", "--", "--data.root=nowhere"]) == 1
    assert "there is nothing at nowhere" in capsys.readouterr().err


def test_the_table_has_means_and_deviations() -> None:
    cells = [cell(), cell(seed=1, test_accuracy=0.9, relative_strength=[2.0, 0.5, 0.5]), cell("mid", seed=0)]
    lines = table(cells).splitlines()
    assert lines[2] == (
        "| normal | 2 | 0.850 ± 0.071 | 0.300 ± 0.000 | 1.50 ± 0.71 | 1.00 ± 0.71 | 1.00 2.00 | 0.200 ± 0.000 |"
    )
    assert lines[3] == "| mid | 1 | 0.800 | 0.300 | 1.00 | 1.50 | 1.00 | 0.200 |"
    assert lines[4] == "| untrained | 2 |  |  | 1.50 ± 0.00 | 1.00 ± 0.00 | 1.50 1.50 |  |"
    assert len({line.count("|") for line in lines}) == 1


def test_images_have_an_area() -> None:
    pictured = cell(images=True)
    assert pictured.area == pytest.approx(1 / 6, abs=2e-3)
    assert math.isnan(cell().area)
    lines = table([pictured, cell("mid", images=True)]).splitlines()
    assert lines[0].endswith("| area between masking curves |")
    assert len({line.count("|") for line in lines}) == 1
    figure = masking_figure([pictured, cell("mid", images=True)])
    assert [axis.get_title() for axis in figure.axes] == ["normal", "mid"]


def test_the_figure_compares_biases_with_the_control() -> None:
    cells = [cell(bias, seed) for bias in ("normal", "low", "mid", "high") for seed in (0, 1)]
    relative, raw, accuracy = comparison_figure(cells).axes
    labels = [text.get_text() for text in relative.get_legend().get_texts()]
    assert labels == ["normal", "low", "mid", "high", "untrained"]
    assert raw.get_yscale() == "log"
    assert [label.get_text() for label in accuracy.get_xticklabels()] == labels[:4]


def test_test_samples_of_all_classes_are_attacked() -> None:
    """Folders list a class after the other."""
    loader = [(torch.full((30, 2), float(k)), torch.full((30,), k)) for k in range(4)]
    x, y = experiment._balanced(loader, 10)
    assert sorted(torch.bincount(y).tolist()) == [2, 2, 3, 3]
    assert torch.equal(x[:, 0], y.float())


def test_every_first_part_of_a_balanced_choice_is_balanced() -> None:
    labels = torch.arange(5).repeat_interleave(torch.tensor([40, 3, 40, 10, 7]))
    for wanted in (5, 12, 40, 100, 1000):
        counts = torch.bincount(labels[balanced(labels, wanted)], minlength=5)
        assert counts.sum() == min(wanted, 100)
        assert (counts >= torch.minimum(torch.bincount(labels), torch.tensor(wanted // 5))).all()
    assert torch.equal(balanced(labels, 100)[:12], balanced(labels, 12))
    assert not torch.equal(balanced(labels, 12), balanced(labels, 12, seed=1))
