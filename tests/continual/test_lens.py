"""What features are worth over all classes seen: as a lens, and as rows of Forgetting."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lit_papers.callbacks import Forgetting
from lit_papers.continual.lens import SeenAccuracy
from lit_papers.continual.methods import ER
from lit_papers.lens import NotApplicable
from tests.continual.small import stream, supervised, trainer


def test_a_lens_and_both_ways_into_the_matrix_agree(tmp_path: Path) -> None:
    data, module = stream(epochs_per_task=1), supervised(ER())
    logged, looked = Forgetting("val/knn_accuracy_seen"), Forgetting(evaluate=SeenAccuracy(data).accuracies, name="eye")
    trainer(tmp_path, [logged, looked], check_val_every_n_epoch=1).fit(module, datamodule=data)
    torch.testing.assert_close(looked.matrix, logged.matrix, equal_nan=True)
    assert logged.matrix[0, 1:].isnan().all()
    assert looked.forward_transfer != looked.forward_transfer  # unseen tasks have no baseline
    numbers = SeenAccuracy(data)(module)
    assert numbers["accuracy_task_1"] == pytest.approx(looked.matrix[2, 1].item())
    assert numbers["accuracy"] == pytest.approx(looked.average_accuracy)
    linear = SeenAccuracy(data, "linear")
    assert 0 <= linear(module)["accuracy"] <= 1
    axis = linear.figure([{"epoch": 1, **numbers}, {"epoch": 2, **numbers}]).axes[0]
    assert axis.get_ylabel() == "accuracy over all classes seen (%)"
    assert len(axis.lines) == 3


def test_refusals() -> None:
    with pytest.raises(ValueError, match="`classifier`"):
        SeenAccuracy(stream(), "forest")  # type: ignore[arg-type]
    with pytest.raises(NotApplicable, match="Linear is none"):
        SeenAccuracy(stream())(nn.Linear(2, 2))
