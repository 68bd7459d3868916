"""What a continual learner's features are worth, task by task, over all classes seen; and any accuracy."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torchmetrics import MeanMetric, Metric

from lit_papers.continual.evaluation import features_of
from lit_papers.continual.figures import accuracy_lines_figure
from lit_papers.continual.knn import KNNClassifier
from lit_papers.continual.learner import ContinualLearner
from lit_papers.continual.probe import LinearProbe
from lit_papers.lens import Lens, Moment, NotApplicable, Numbers, Seen, Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SeenAccuracy(Lens):
    """Accuracy on each task's validation images by a classifier that knows no tasks (see `continual.evaluation`).

    A classifier is made of the frozen features of the training images of all tasks seen, by nearest neighbours or as a
    linear probe, the same for learners with labels and without. Tasks that were not seen are NaN. It also serves
    `lit_papers.callbacks.Forgetting` as ``evaluate``::

        Forgetting(evaluate=SeenAccuracy(stream, "linear").accuracies)

    Args:
        stream: a `TaskSequence`, or what has ``num_tasks``, ``memory_dataloader`` and ``val_dataloader`` like it.
        classifier: ``"knn"``, with the learner's own ``knn_k`` and ``knn_temperature``, or ``"linear"``.

    Raises:
        ValueError: there is no such classifier.
    """

    name = "seen_accuracy"
    reads = None

    def __init__(self, stream: Any, classifier: Literal["knn", "linear"] = "knn") -> None:
        if classifier not in ("knn", "linear"):
            raise ValueError(f"`classifier` must be 'knn' or 'linear', got {classifier!r}")
        self.stream = stream
        self.classifier = classifier

    def check(self, subject: Subject) -> None:
        """Refuse networks that are no continual learner."""
        if not isinstance(subject.network, ContinualLearner):
            raise NotApplicable(
                f"SeenAccuracy asks a ContinualLearner which tasks it has seen, and {type(subject.network).__name__} "
                "is none: for another module give `Forgetting` a function as `evaluate`"
            )

    def look(self, moment: Moment, prepared: Any, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """``accuracy``, the mean over the tasks seen, and ``accuracy_task_i``."""
        with moment.network() as network:
            assert isinstance(network, ContinualLearner)  # noqa: S101
            found = self.accuracies(network)
        seen = [value for value in found if value == value]
        return {"accuracy": sum(seen) / len(seen), **{f"accuracy_task_{i}": value for i, value in enumerate(found)}}

    @torch.no_grad()
    def accuracies(self, module: ContinualLearner) -> list[float]:
        """The accuracy on each task of the stream, in [0, 1]; NaN for those that were not seen."""
        last = max(module.tasks.task, 0)
        seen = list(range(self.stream.num_tasks))[: last + 1]
        bank = features_of(module, (batch for task in seen for batch in self.stream.memory_dataloader(task)))
        classifier: KNNClassifier | LinearProbe
        if self.classifier == "knn":
            k = len(seen) if module.knn_k == "tasks_seen" else int(module.knn_k)
            classifier = KNNClassifier(k, module.knn_temperature)
            classifier.update(*bank)
        else:
            classifier = LinearProbe().fit(*bank)
        found = []
        for task, loader in enumerate(self.stream.val_dataloader()):
            if task not in seen:
                found.append(float("nan"))
                continue
            features, truth = features_of(module, loader)
            found.append((classifier.predict(features) == truth).double().mean().item())
        return found

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """The accuracy on each task over epochs."""
        return accuracy_lines_figure(history)


class AccuracyLens(Lens):
    """Share of right decisions of any classifier: one cell of a task-accuracy matrix, for each data set and moment."""

    name = "accuracy"
    reads = "validation"

    def check(self, subject: Subject) -> None:
        """Find the classifier, and have its decisions gathered."""
        _ = subject.route  # a refusal comes now
        subject.gather(self.name, _mean, _add_right)

    def look(self, moment: Moment, prepared: None, history: Sequence[Mapping[str, Any]]) -> Numbers:
        """``accuracy`` in [0, 1], and ``accuracy_error``, its standard error if the samples were drawn at random."""
        share, samples = moment.gathered(self.name)
        return {"accuracy": share, "accuracy_error": (share * (1 - share) / samples) ** 0.5}

    def unknown(self, prepared: None) -> Numbers:
        """NaN."""
        return {"accuracy": float("nan"), "accuracy_error": float("nan")}

    def figure(self, history: Sequence[Mapping[str, Any]]) -> "Figure":
        """Accuracy over epochs."""
        return accuracy_lines_figure([{**entry, "accuracy_task_0": entry["accuracy"]} for entry in history])


class _Share(MeanMetric):
    """A mean, and of how many."""

    def compute(self) -> Any:
        """Both, as plain numbers."""
        return float(self.mean_value / self.weight), float(self.weight)


def _mean() -> Metric:
    return _Share().set_dtype(torch.float64)


def _add_right(metric: MeanMetric, seen: Seen) -> None:
    metric.update((seen.outputs.argmax(dim=1) == seen.targets).to(metric.device, torch.float64))
