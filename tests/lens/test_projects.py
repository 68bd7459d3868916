"""Every callback that measures a network, attached to every strange project: right or refused, and never in the way."""

import random
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
from lit_papers.neural_collapse.functional import class_statistics, variability_collapse
from tests.lens.projects import CLASSES, INPUTS, PROJECTS, Project

CALLBACKS: dict[str, Callable[[], Record]] = {
    "NeuralCollapse": NeuralCollapse,
    "CentralPath": CentralPath,
    "InteractionStrength": lambda: InteractionStrength(
        FeaturePlayers(INPUTS), n_samples=4, pairs=3, n_contexts=2, orders=[0, 4]
    ),
    "ConvexGap": lambda: ConvexGap("relaxed", beta=0.1),
    "Forgetting": lambda: Forgetting(epochs_per_task=1, evaluate=lambda network: [float(network.training), 0.5]),
    "SeparationPower": lambda: SeparationPower([]),
    "StrideComplexity": StrideComplexity,
}
# what these refuse is refused for the network itself, whatever the project does
NEVER_FITS = {"ConvexGap", "SeparationPower", "StrideComplexity"}


def train(project: Project, folder: Path, callbacks: list[Callback]) -> tuple[LightningModule, dict[str, Any]]:
    seed_everything(5, verbose=False)
    module = project.module()
    options: dict[str, Any] = {"max_epochs": 2, **project.options}
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, callbacks=[*callbacks, *project.callbacks()], **options,
    )  # fmt: skip
    data: dict[str, Any] = {"datamodule": project.data()} if project.data else {"train_dataloaders": project.loader()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, **data)
    return module, {
        "weights and buffers": {key: value.clone() for key, value in module.state_dict().items()},
        "steps": module.steps,  # of the module itself: what a copy counts is not ours
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
    if callback in NEVER_FITS:
        if name != "plain":
            pytest.skip("refuses this network in every project alike")
        with pytest.raises((ValueError, MisconfigurationException), match=r"ConvexGap|pairs|DiffStride"):
            train(project, tmp_path, [ours])
        return
    if callback == "InteractionStrength":
        ours.dataloader = project.loader() or torch.utils.data.DataLoader(project.module().data, batch_size=6)
    started = 0
    try:
        module, after = train(project, tmp_path, [ours])
    except (ValueError, TypeError) as refusal:
        started = getattr(refusal, "steps", 0)
        assert callback in ("NeuralCollapse", "CentralPath", "InteractionStrength")
        assert started == 0
        if callback != "InteractionStrength":
            assert project.refused, f"refused: {refusal}"
        assert any(word in str(refusal) for word in ("`classifier`", "`call`", "`unpack`", "forward", "no `forward`"))
        if project.refused and callback != "InteractionStrength":
            pytest.raises(ValueError, match=project.refused, check=None) if False else None
            import re

            assert re.search(project.refused, str(refusal)), str(refusal)
        return
    assert callback == "InteractionStrength" or callback == "Forgetting" or not project.refused
    torch.testing.assert_close(after, alone(name), rtol=0, atol=0)
    assert ours.history
    assert not any("reason" in entry for entry in ours.history), ours.history[-1]
    if callback == "NeuralCollapse":
        x, y = project.rows()
        with torch.no_grad():
            dtype = next(module.parameters()).dtype
            features = module.eval().features(x.to(dtype))
        right = float(variability_collapse(class_statistics(features, y, CLASSES)))
        assert ours.history[-1]["nc1"] == pytest.approx(right, rel=project.tolerance)
