"""The page of a diagnosis at the end of a training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lit_papers.diagnose.names import check_names
from lit_papers.lens import Call, Unpack
from lit_papers.run_folder import run_folder

if TYPE_CHECKING:
    from lit_papers.diagnose.report import Report


class Diagnosis(Callback):
    """Looks at the trained network through every lens that fits, and saves one page in the folder of the run.

    Attach it to any LightningModule that classifies, or give a run the overlay ``--config diagnose``::

        trainer = Trainer(callbacks=[Diagnosis(minutes=2)])

    At the end of ``fit`` it writes ``diagnosis/report.html`` and ``report.json`` (see `lit_papers.diagnose.diagnose`)
    and gives the numbers to every logger as ``diagnose/<lens>/<key>``. The network is left bit by bit as it was, and
    nothing that fails here ends the training: it is a reason on the page, or a warning. Processes share the data.

    Args:
        minutes: that it may take, > 0.
        lenses: names of some; None for all.
        unpack: from a batch to (argument of ``forward``, class indices).
        call: from (module, batch) to (logits, class indices), where they cannot be found.
        classifier: last ``nn.Linear`` or its dotted path, where it cannot be found.

    Attributes:
        report: the last one; None before the end of a fit.

    Raises:
        ValueError: ``minutes`` is not positive, or there is no such lens.
    """

    def __init__(
        self,
        minutes: float = 5.0,
        lenses: Sequence[str] | None = None,
        unpack: Unpack | None = None,
        call: Call | None = None,
        classifier: str | nn.Module | None = None,
    ) -> None:
        if not minutes > 0:
            raise ValueError(f"minutes must be positive, got {minutes}")
        check_names(lenses)
        self.minutes = minutes
        self.lenses = lenses
        self.unpack = unpack
        self.call = call
        self.classifier = classifier
        self.report: Report | None = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look, and save the page on the first process; not after a ``fast_dev_run``, nor after an interruption."""
        if trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]  # set by a connector
            return
        from lit_papers.diagnose.diagnosis import diagnose  # all papers: not for who wants another callback

        try:
            self.report = diagnose(
                pl_module, trainer=trainer, minutes=self.minutes, lenses=self.lenses, unpack=self.unpack,
                call=self.call, classifier=self.classifier,
            )  # fmt: skip
            folder = run_folder(trainer)
            if trainer.is_global_zero:
                self.report.log(trainer.loggers, step=trainer.global_step)
                if folder is not None:
                    rank_zero_info(f"diagnosis: {self.report.save(folder / 'diagnosis')}")
        except Exception as error:  # a stranger's training is done, and stays so
            rank_zero_warn(f"Diagnosis: no page was made: {type(error).__name__}: {error}")
