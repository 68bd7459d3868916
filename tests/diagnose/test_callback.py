"""The page at the end of a fit: it leaves no trace, two processes say what one does, and the overlay attaches it."""

import json
import warnings
from pathlib import Path

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from lit_papers.callbacks import Diagnosis
from tests import guest

LENSES = ["collapse", "central_path", "head"]
pytestmark = pytest.mark.filterwarnings("ignore")


def diagnosis() -> Diagnosis:
    return Diagnosis(minutes=10, lenses=[*LENSES, "interactions", "cost"], classifier="head")


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"precision": "bf16-mixed"}, marks=pytest.mark.slow)], ids=["plain", "bf16-mixed"]
)
def test_training_is_bit_identical(options: dict[str, str], tmp_path: Path) -> None:
    guest.check_leaves_no_trace(lambda: [diagnosis()], tmp_path, **options)


def test_the_page_lies_in_the_run_and_the_numbers_reach_the_logger(tmp_path: Path) -> None:
    callback = Diagnosis(minutes=10, lenses=LENSES, classifier="head")
    logger = CSVLogger(tmp_path)
    guest.foreign_trainer(tmp_path, [callback], logger=logger).fit(guest.ForeignModule())
    found = json.loads((Path(logger.log_dir) / "diagnosis/report.json").read_text())
    assert [lens["status"] for lens in found["lenses"]] == ["measured"] * 3
    assert "diagnose/collapse/train/nc1" in (Path(logger.log_dir) / "metrics.csv").read_text()
    assert (Path(logger.log_dir) / "diagnosis/report.html").is_file()


class Write(Callback):
    def __init__(self, folder: Path, callback: Diagnosis) -> None:
        self.folder, self.callback = folder, callback

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.folder.mkdir(exist_ok=True)
        assert self.callback.report is not None
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.callback.report.numbers()))


def test_two_processes_say_what_one_says(tmp_path: Path) -> None:
    said = []
    for processes in (1, 2):
        seed_everything(3)
        strategy = DDPStrategy(process_group_backend="gloo", start_method="fork") if processes == 2 else "auto"
        callback = Diagnosis(minutes=5, lenses=LENSES, classifier="head")
        write = Write(tmp_path / str(processes), callback)
        trainer = guest.foreign_trainer(
            tmp_path, [callback, write], devices=processes, strategy=strategy, precision="64-true"
        )
        trainer.fit(guest.ForeignModule(random=False).double())
        said += [json.loads(path.read_text()) for path in sorted((tmp_path / str(processes)).glob("*.json"))]
    single, first, second = said
    assert single["collapse/train/nc1"] == single["collapse/train/nc1"]  # a number
    assert first == pytest.approx(second, rel=0, abs=0, nan_ok=True)
    assert first == pytest.approx(single, rel=1e-9, nan_ok=True)


def test_what_fails_does_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = Diagnosis(minutes=10, lenses=["head"], classifier="head")
    monkeypatch.setattr("lit_papers.diagnose.report.Report.log", lambda *_, **__: 1 / 0)
    trainer = guest.foreign_trainer(tmp_path, [callback])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(guest.ForeignModule())
    assert any("no page was made: ZeroDivisionError" in str(warning.message) for warning in caught)
    assert trainer.global_step > 0


def test_arguments_are_refused_before_the_fit() -> None:
    with pytest.raises(ValueError, match="minutes"):
        Diagnosis(minutes=0)
    with pytest.raises(ValueError, match="did you mean 'head'"):
        Diagnosis(lenses=["haed"])


def test_a_trial_run_leaves_no_page(tmp_path: Path) -> None:
    callback = diagnosis()
    guest.foreign_trainer(tmp_path, [callback], fast_dev_run=True).fit(guest.ForeignModule())
    assert callback.report is None
