"""Accuracy on several data sets at several checkpoints, and what was forgotten on the way."""

import io
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lit_papers.continual import metrics
from lit_papers.continual.figures import accuracy_matrix_figure
from lit_papers.continual.lens import AccuracyLens
from lit_papers.diagnose.budget import too_dear
from lit_papers.diagnose.checkpoints import Checkpoint, weights_of
from lit_papers.diagnose.deadline import OutOfTimeError, deadline
from lit_papers.diagnose.names import FORGETTING
from lit_papers.diagnose.probing import said_of
from lit_papers.diagnose.report import Finding, Shown
from lit_papers.lens import NotApplicable, Subject

_WHAT = (
    "Each checkpoint is evaluated on each data set. Where they are tasks that were learned one after the other, the "
    "diagonal is what was known just after learning, and what falls below it later was forgotten."
)
_ERROR = "Standard errors of single accuracies, in report.json, are those of samples drawn at random."
_SOURCE = "Madaan et al., ICLR 2022, section 5 (average accuracy and forgetting)"


def accuracy_matrix(
    subjects: Mapping[str, Subject], network: nn.Module, moments: Sequence[Checkpoint], end: float = math.inf
) -> Finding:
    """A finding with one history a data set; forgetting, where there are as many checkpoints as data sets.

    Args:
        subjects: by name of the data set.
        network: whose weights the checkpoints are of.
        moments: the checkpoints, first to last.
        end: after which it is stopped, as ``time.perf_counter`` counts.
    """
    finding = Finding(FORGETTING, "Forgetting", "does not apply", _WHAT, _ERROR, _SOURCE)
    if len(subjects) < 2 or len(moments) < 2:
        finding.reason = (
            f"there are {len(subjects)} evaluation sets and {len(moments)} checkpoints, and needed are at least two of "
            "each: pass `evaluations`, loaders by name, and `checkpoints`"
        )
        return finding
    begun = time.perf_counter()
    try:
        with deadline(end):
            for name, subject in subjects.items():
                finding.histories[name] = _history(subject, network, moments)
    except OutOfTimeError:
        seconds = time.perf_counter() - begun
        finding.status, finding.reason, finding.histories = "left out", too_dear(math.inf, 0.0, seconds), {}
        return finding
    except (NotApplicable, TypeError) as error:
        finding.reason, finding.histories = str(error), {}
        return finding
    except Exception as error:  # a stranger's network or loader
        finding.status, finding.reason, finding.histories = "failed", said_of(error), {}
        return finding
    finding.status = "measured"
    rows = [[history[row]["accuracy"] for history in finding.histories.values()] for row in range(len(moments))]
    matrix = torch.tensor(rows)
    average = float(matrix[-1].mean())
    finding.shown = [Shown("mean accuracy at the last checkpoint", "accuracy", "", average, None, "1: all right")]
    if len(moments) == len(subjects):
        forgotten = float(metrics.forgetting(matrix))
        finding.shown.append(
            Shown("forgetting", "forgetting", "", forgotten, None, "0: nothing; in the units of accuracy")
        )
        content = io.BytesIO()
        accuracy_matrix_figure(matrix, average, forgotten).savefig(content, format="png")
        finding.figures["Accuracy on each data set (columns) at each checkpoint (rows)"] = content.getvalue()
    finding.seconds = time.perf_counter() - begun
    return finding


def _history(subject: Subject, network: nn.Module, moments: Sequence[Checkpoint]) -> list[dict[str, Any]]:
    lens = AccuracyLens()
    history: list[dict[str, Any]] = []
    for number, checkpoint in enumerate(moments):
        with weights_of(checkpoint, network):
            if number == 0:
                lens.check(subject)
            numbers = lens.look(subject.moment((number, checkpoint.step)), None, history)
        history.append({"checkpoint": checkpoint.name, "step": checkpoint.step, "epoch": checkpoint.epoch, **numbers})
    return history
