"""Every callback of ours, attached to a project that has never heard of us."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy

from lit_papers.callbacks import CentralPath, InteractionStrength, NeuralCollapse
from lit_papers.callbacks.watching import Watch
from lit_papers.interactions.players import FeaturePlayers
from lit_papers.lens import Moment
from lit_papers.neural_collapse.lens import CollapseLens
from tests import guest

GUESTS: dict[str, guest.MakeCallbacks] = {
    "NeuralCollapse": lambda: [NeuralCollapse(classifier="head")],
    "CentralPath": lambda: [CentralPath(classifier="head")],
    "InteractionStrength": lambda: [
        InteractionStrength(
            FeaturePlayers(10),
            respond=lambda network, x: network(x)[0],
            n_samples=5,
            n_contexts=2,
            pairs=4,
            orders=[0, 4],
        )
    ],
    "both": lambda: [CentralPath(classifier="head", epochs=2), NeuralCollapse(classifier="head", epochs=[1, 3, 4])],
}
# by tests of their own, as the stranger's project needs a certain strategy, certain layers, or tasks for them, or as
# it keeps a page and no history
TESTED_ELSEWHERE = {"ConsensusDistance", "ConvexGap", "Diagnosis", "Forgetting", "SeparationPower", "StrideComplexity"}
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

    class Counting(CollapseLens):
        def look(self, moment: Moment, prepared: None, history: Any) -> dict[str, Any]:
            return {"samples": float(moment.gathered(("class statistics", torch.float64)).counts.sum())}

    guest.check_two_processes(lambda: [Watch(Counting(), classifier="head")], tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore:.*nothing measured")
def test_a_failure_on_one_process_does_not_hang_the_other(tmp_path: Path) -> None:
    """Without agreement before the first collective, the healthy process would wait for the other's statistics."""

    def unpack(batch: Any) -> Any:
        if torch.distributed.get_rank() == 1 and (batch["label"] == 3).all():
            raise OSError("disk of rank 1")
        return batch["image"], batch["label"]

    samples = guest.ForeignData(torch.float64)
    loader = torch.utils.data.DataLoader(samples, sampler=torch.argsort(samples.labels).tolist(), batch_size=4)
    strategy = DDPStrategy(process_group_backend="gloo", start_method="fork")
    callbacks = [NeuralCollapse(loader, classifier="head", unpack=unpack), guest.WriteHistories(tmp_path / "of_2")]
    trainer = guest.foreign_trainer(tmp_path, callbacks, devices=2, strategy=strategy, precision="64-true")
    trainer.fit(guest.ForeignModule(random=False).double())
    for rank, reason in enumerate(("measuring failed on another process", "disk of rank 1")):
        ((*_, last),) = json.loads((tmp_path / f"of_2/rank_{rank}.json").read_text())
        assert reason in last["reason"]
    assert not multiprocessing.active_children()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_gpu_records_what_the_cpu_does_of_the_same_weights(precision: str, tmp_path: Path) -> None:
    callbacks = GUESTS["both"]()
    trainer = guest.foreign_trainer(tmp_path, callbacks, accelerator="gpu", precision=precision)
    module = guest.ForeignModule()
    trainer.fit(module)
    again = GUESTS["both"]()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0, weight_decay=1e-3)
    guest.foreign_trainer(tmp_path, again, max_epochs=1, num_sanity_val_steps=0).fit(module.eval())
    on_gpu, on_cpu = callbacks[1].history[-1], again[1].history[-1]
    for key in ("nc1", "nc3_self_duality", "nc2_max_angle_means"):
        # batch norm's running statistics move in the epoch without learning; the weights do not
        assert on_cpu[key] == pytest.approx(on_gpu[key], rel=0.05)


def test_measuring_compiles_nothing(tmp_path: Path) -> None:
    compilations = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compilations.append(graph)
        return graph.forward

    counts = []
    for callbacks in ([], [NeuralCollapse(classifier="head"), CentralPath(classifier="head")]):
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


@pytest.mark.filterwarnings("ignore:.*nothing measured")
def test_a_failure_is_recorded_and_training_goes_on(make: guest.MakeCallbacks, tmp_path: Path) -> None:
    guest.check_failure_is_recorded(make, tmp_path)


def test_every_exported_callback_is_a_guest() -> None:
    import lit_papers.callbacks

    tested = {type(callback).__name__ for make in GUESTS.values() for callback in make()}
    assert tested | TESTED_ELSEWHERE == set(lit_papers.callbacks.__all__)
    assert all(issubclass(getattr(lit_papers.callbacks, name), Callback) for name in lit_papers.callbacks.__all__)
