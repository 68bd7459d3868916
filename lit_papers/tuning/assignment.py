"""Which trial of which study a process works on: what the search tells it, and what it tells the study."""

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.study import Study

VARIABLE = "LIT_PAPERS_TRIAL"
# user attributes of a trial
VALUE, PRUNED, LOGGED = "value", "pruned", "logged"


@dataclass(frozen=True)
class Assignment:
    """Which trial of which study a process works on; travels in an environment variable, as a URL may hold a password.

    Attributes:
        storage: database URL of the study.
        study: its name.
        trial_id: of the trial, in the storage.
        metric: logged key to report.
        min_iter: see `Sweep`; None never stops a trial early.
        eta: see `Sweep`.
    """

    storage: str
    study: str
    trial_id: int
    metric: str
    min_iter: int | None
    eta: int

    def to_environment(self) -> dict[str, str]:
        """The variable that `from_environment` reads."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> "Assignment":
        """What the process that started this one has assigned."""
        return cls(**json.loads(os.environ[VARIABLE]))


def open_study(assignment: Assignment) -> "Study":
    """The study of an assignment, with its pruner."""
    import optuna

    from lit_papers.tuning.storage import open_storage

    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if assignment.min_iter is not None:
        # W&B's hyperband has one bracket, whose rungs are min_iter * eta^k: asynchronous successive halving
        pruner = optuna.pruners.SuccessiveHalvingPruner(assignment.min_iter, reduction_factor=assignment.eta)
    storage = open_storage(assignment.storage)
    return optuna.load_study(study_name=assignment.study, storage=storage, pruner=pruner)
