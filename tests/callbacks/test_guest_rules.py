"""Every callback of ours, attached to a project that has never heard of us."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lit_papers.callbacks import CentralPath, NeuralCollapse
from lit_papers.callbacks.feature_pass import Measurement
from tests import guest

GUESTS: dict[str, guest.MakeCallbacks] = {
    "NeuralCollapse": lambda: [NeuralCollapse()],
    "CentralPath": lambda: [CentralPath()],
    "both": lambda: [CentralPath(epochs=2), NeuralCollapse(epochs=[1, 3, 4])],
}
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


def test_two_processes_count_each_sample_once(tmp_path: Path) -> None:
    """Shares that overlap would give the same means: the counts tell."""

    class Counting(NeuralCollapse):
        def record(self, measurement: Measurement, trainer: Trainer) -> dict[str, Any]:
            return {"samples": float(measurement.stats.counts.sum())}

    guest.check_two_processes(lambda: [Counting()], tmp_path)


def test_measuring_compiles_nothing(tmp_path: Path) -> None:
    compilations = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compilations.append(graph)
        return graph.forward

    counts = []
    for callbacks in ([], [NeuralCollapse(), CentralPath()]):
        torch.compiler.reset()
        compilations.clear()
        guest.foreign_trainer(tmp_path, callbacks).fit(torch.compile(guest.ForeignModule(), backend=backend))
        counts.append(len(compilations))
    assert counts[0] == counts[1] > 0


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
    assert tested == set(lit_papers.callbacks.__all__)
    assert all(issubclass(getattr(lit_papers.callbacks, name), Callback) for name in lit_papers.callbacks.__all__)
