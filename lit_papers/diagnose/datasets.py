"""A network bound to each of the data sets of a diagnosis."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from lit_papers.diagnose.entries import Data, Entry
from lit_papers.lens import NotApplicable, Subject
from lit_papers.lens import data as readings


class Datasets:
    """The data sets, each made a subject when it is asked for.

    Args:
        network: that is looked at.
        loaders: the data by name; None takes that of the trainer.
        trainer: that trains the network, where there is one.
        options: of every subject: ``call``, ``unpack``, ``classifier``.
        seed: of what is drawn from a data set.

    Attributes:
        most: samples of a batch, where a larger one would take too long; None for the loaders' own.
        processes: that look together.
        device: of the numbers.
    """

    def __init__(
        self,
        network: nn.Module,
        loaders: Mapping[Data, Any],
        trainer: Trainer | None,
        options: Mapping[str, Any],
        seed: int,
    ) -> None:
        self.most: int | None = None
        self._network = network
        self._loaders = loaders
        self._trainer = trainer
        self._options = options
        self._seed = seed
        self._subjects: dict[tuple[Data, Any, Any], Subject] = {}
        alone = Subject(network, trainer=trainer, reads=None, **options)
        self.processes, self.device = alone.processes, alone.device

    def subject(self, data: Data, limit: int | None = None, most: int | None = None) -> Subject:
        """The network bound to one data set.

        Args:
            data: which.
            limit: batches of it, with samples from all over.
            most: samples of a batch; None for the attribute.

        Raises:
            NotApplicable: there are no such data.
        """
        most = self.most if most is None else most
        if (data, limit, most) not in self._subjects:
            loader = self._loaders[data]
            if loader is None and self._trainer is None:
                raise NotApplicable(
                    f"there are no data to measure on: pass a loader, `{'train' if data == 'train' else 'val'}`"
                )
            subject = self._bound(loader, data, limit)
            if not (limit is None and most is None) and readings.is_indexed(subject.loader):
                subject = self._bound(readings.scattered(subject.loader, None, self._seed, most), data, limit)
            self._subjects[data, limit, most] = subject
        return self._subjects[data, limit, most]

    def evaluated(self, evaluations: Mapping[str, Any] | None) -> dict[str, Subject]:
        """A subject for each data set that accuracies are wanted of."""
        return {name: self._bound(loader, "validation", None) for name, loader in (evaluations or {}).items()}

    def loaders(self) -> dict[str, Any]:
        """The loaders that there are."""
        found: dict[str, Any] = {}
        for data in self._loaders:
            with suppress(Exception):  # its reason stands where it matters
                found[data] = self.subject(data).loader
        return found

    def present(self) -> list[Data]:
        """Names of those that there are."""
        return [data for data in self._loaders if self._has(data)]

    def read_by(self, entry: Entry) -> list[Data]:
        """What a lens is measured on: the training data in place of validation data that there are not."""
        if entry.data == ("validation",) and not self._has("validation"):
            return ["train"]
        return [data for data in entry.data if data == "train" or self._has(data)]

    def _bound(self, loader: Any, data: Data, limit: int | None) -> Subject:
        return Subject(self._network, loader, trainer=self._trainer, reads=data, max_batches=limit, **self._options)

    def _has(self, data: Data) -> bool:
        try:
            return self.subject(data).loader is not None
        except NotApplicable:
            return False
