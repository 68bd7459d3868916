"""Every callback that measures a network, attached to every strange project: right or refused, and never in the way."""

import random
import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from lit_papers.callbacks import (
    CentralPath,
    ConvexGap,
    Forgetting,
    InteractionStrength,
    NeuralCollapse,
    SeparationPower,
    StrideComplexity,
)
from lit_papers.callbacks.record import Record
from lit_papers.interactions.players import FeaturePlayers
from lit_papers.lens import NotApplicable
from lit_papers.neural_collapse.functional import class_statistics, variability_collapse
from tests.lens.projects import BATCH, CLASSES, INPUTS, PROJECTS, Project, blobs

CALLBACKS: dict[str, Callable[[], Record]] = {
    "NeuralCollapse": NeuralCollapse,
    "CentralPath": CentralPath,
    "InteractionStrength": lambda: InteractionStrength(
        FeaturePlayers(INPUTS), n_samples=4, pairs=3, n_contexts=2, orders=[0, 4], only_correct=False,
        dataloader=DataLoader(blobs(), batch_size=BATCH),
    ),
    "ConvexGap": lambda: ConvexGap("relaxed", seconds=0.1),
    "Forgetting": lambda: Forgetting(epochs_per_task=1, evaluate=lambda network: [float(network.training), 0.5]),
}  # fmt: skip
NEED_THE_HEAD = ("NeuralCollapse", "CentralPath")
# masked inputs are sent through `forward`, which must tell the logits
NEEDS_RESPOND = {"no forward", "forward(**batch)"}


def train(project: Project, folder: Path, callbacks: list[Callback]) -> tuple[LightningModule, dict[str, Any]]:
    seed_everything(5, verbose=False)
    module = project.module()
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, callbacks=[*callbacks, *project.callbacks()],
        **{"max_epochs": 2, **project.options},
    )  # fmt: skip
    data: dict[str, Any] = {"datamodule": project.data()} if project.data else {"train_dataloaders": project.loader()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trainer.fit(module, **data)
        finally:
            assert trainer.global_step == 0 or trainer.state.finished, "training died on the way"
    return module, {
        "weights and buffers": {key: value.clone() for key, value in module.state_dict().items()},
        "steps": module.steps,
        "global step": trainer.global_step,
        "modes": [part.training for part in module.modules()],
        "optimizer": trainer.optimizers[0].state_dict(),
        "torch RNG": torch.get_rng_state(),
        "numpy RNG": np.random.get_state()[1],  # noqa: NPY002
        "python RNG": random.getstate(),
    }


@cache
def alone(name: str) -> dict[str, Any]:
    return train(PROJECTS[name], Path.cwd(), [])[1]


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("name", PROJECTS)
def test_right_or_refused_and_never_in_the_way(name: str, callback: str, tmp_path: Path) -> None:
    project, ours = PROJECTS[name], CALLBACKS[callback]()
    refused = project.refused if callback in NEED_THE_HEAD else None
    if callback == "InteractionStrength" and name in NEEDS_RESPOND:
        refused = "`forward`.*`respond`"
    try:
        module, after = train(project, tmp_path, [ours])
    except (NotApplicable, TypeError) as refusal:  # a batch of an unknown kind is a TypeError
        said = str(refusal)
    else:
        said = None
    if callback == "ConvexGap" and said is not None:  # it is of one kind of network, on rows that stay
        assert name not in ("plain", "shuffled", "no forward"), said
        return
    if said is not None:
        assert refused, f"refused: {said}"
        assert re.search(refused, said)
        return
    assert not refused
    torch.testing.assert_close(after, alone(name), rtol=0, atol=0)
    assert ours.history
    if name == "growing data" and callback == "ConvexGap":  # an objective is of one data set
        assert "reason" not in ours.history[0]
        assert "others than before training" in ours.history[-1]["reason"]
    elif name != "frozen backbone" or callback != "ConvexGap":  # its batch norm is an identity until it is trained
        assert not any("reason" in entry for entry in ours.history), ours.history[-1]
    if callback == "NeuralCollapse" and project.ends_as_measured:
        assert ours.history[-1]["nc1"] == pytest.approx(nc1_of(module, *project.rows()), rel=project.tolerance)


def nc1_of(module: LightningModule, x: torch.Tensor, y: torch.Tensor) -> float:
    dtype = next(module.parameters()).dtype
    torch.set_default_dtype(dtype)
    try:
        with torch.no_grad():
            features = module.eval().features(x.to(dtype))
    finally:
        torch.set_default_dtype(torch.float32)
    return float(variability_collapse(class_statistics(features, y, CLASSES)))


@pytest.mark.parametrize(
    ("make", "cure"),
    [
        (lambda: SeparationPower([]), "`pairs`"),
        (StrideComplexity, "DiffStride2d"),
    ],
    ids=["SeparationPower", "StrideComplexity"],
)
@pytest.mark.parametrize("name", ["plain", "no forward", "stream"])
def test_what_fits_no_classifier_says_so_before_the_first_step(
    name: str, make: Callable[[], Record], cure: str, tmp_path: Path
) -> None:
    with pytest.raises((ValueError, MisconfigurationException), match=cure):
        train(PROJECTS[name], tmp_path, [make()])
