"""Every callback of ours, attached to a project that has never heard of us."""

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from lit_papers.callbacks import CentralPath, NeuralCollapse
from tests import guest

GUESTS: dict[str, guest.MakeCallbacks] = {
    "NeuralCollapse": lambda: [NeuralCollapse()],
    "CentralPath": lambda: [CentralPath()],
    "both": lambda: [CentralPath(epochs=2), NeuralCollapse(epochs=[1, 3, 4])],
}
# by tests of their own, as the stranger's project needs a certain strategy for them
TESTED_ELSEWHERE = {"ConsensusDistance"}
pytestmark = pytest.mark.filterwarnings("ignore:measuring on the dataset of the training loader")

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "compiled": {"compiled": True},
    "accumulated": {"accumulate_grad_batches": 4},
    "clipped": {"gradient_clip_val": 0.1},
    "fast_dev_run": {"fast_dev_run": True},
    "max_steps": {"max_epochs": -1, "max_steps": 9},
}


@pytest.fixture(params=GUESTS)
def make(request: pytest.FixtureRequest) -> guest.MakeCallbacks:
    return GUESTS[request.param]


@pytest.mark.parametrize("setting", SETTINGS)
def test_training_is_bit_identical(make: guest.MakeCallbacks, setting: str, tmp_path: Path) -> None:
    guest.check_leaves_no_trace(make, tmp_path, **SETTINGS[setting])


def test_two_processes_record_what_one_does(make: guest.MakeCallbacks, tmp_path: Path) -> None:
    guest.check_two_processes(make, tmp_path)


@pytest.mark.parametrize("at_epoch_end", [True, False], ids=["epoch end", "validation end"])
def test_resumed_is_uninterrupted(make: guest.MakeCallbacks, at_epoch_end: bool, tmp_path: Path) -> None:
    guest.check_resume(make, tmp_path, {"save_on_train_epoch_end": at_epoch_end})


def test_resumed_in_an_epoch_keeps_its_history(make: guest.MakeCallbacks, tmp_path: Path) -> None:
    guest.check_resume(make, tmp_path, {"every_n_train_steps": 4}, mid_epoch=True)


def test_no_hook_is_left_after_an_exception(make: guest.MakeCallbacks, tmp_path: Path) -> None:
    guest.check_exception_leaves_no_hook(make, tmp_path)


def test_every_exported_callback_is_a_guest() -> None:
    import lit_papers.callbacks

    tested = {type(callback).__name__ for make in GUESTS.values() for callback in make()}
    assert tested | TESTED_ELSEWHERE == set(lit_papers.callbacks.__all__)
    assert all(issubclass(getattr(lit_papers.callbacks, name), Callback) for name in lit_papers.callbacks.__all__)
