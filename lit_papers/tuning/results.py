"""What a search leaves behind: a table, figures, and the best configuration as a file that ``fit`` takes."""

from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from lit_papers.files import write_whole
from lit_papers.tuning.search import KILLED, REASON, counts
from lit_papers.tuning.sweep_file import Sweep

_SHOWN = 15


def ended(study: Study) -> list[FrozenTrial]:
    """Trials that ran to their end, or failed; best first, then pruned ones, then failed ones."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    order = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state in order and counts(trial)]
    return sorted(trials, key=lambda t: (order.index(t.state), sign * t.value if t.value is not None else t.number))


def summary(study: Study) -> str:
    """How many trials ended in which way."""
    states = [trial.state for trial in ended(study)]
    return (
        f"{states.count(TrialState.COMPLETE)} trials complete, {states.count(TrialState.PRUNED)} stopped early, "
        f"{states.count(TrialState.FAIL)} failed"
    )


def table(study: Study, sweep: Sweep) -> Table:
    """The best trials, and what became of the others."""
    trials = ended(study)
    names = short_names(list(sweep.space))
    shown = Table("trial", sweep.metric, *names.values(), "seconds", title=sweep.name)
    has_remarks = any(trial.state != TrialState.COMPLETE for trial in trials[:_SHOWN])
    if has_remarks:
        shown.add_column("remark")
    for trial in trials[:_SHOWN]:
        cells = [str(trial.number), "" if trial.value is None else f"{trial.value:.4g}"]
        cells += [format_value(trial.params.get(key, "")) for key in names]
        cells += [f"{trial.duration.total_seconds():.0f}" if trial.duration else ""]
        remark = {TrialState.PRUNED: "stopped early", TrialState.FAIL: trial.user_attrs.get(REASON, "failed")}
        shown.add_row(*cells, *([remark.get(trial.state, "")] if has_remarks else []))
    if len(trials) > _SHOWN:
        shown.caption = f"and {len(trials) - _SHOWN} more"
    return shown


def describe(trial: FrozenTrial, sweep: Sweep) -> str:
    """One line about a trial that has ended."""
    names = short_names(list(sweep.space))
    params = ", ".join(f"{name}={format_value(trial.params[key])}" for key, name in names.items())
    outcome = {
        TrialState.COMPLETE: f"{sweep.metric} {trial.value:.4g}" if trial.value is not None else "",
        TrialState.PRUNED: "stopped early",
        TrialState.FAIL: f"failed, {trial.user_attrs.get(REASON)}"
        if counts(trial)
        else f"interrupted by {trial.user_attrs[KILLED]}, to be run again"
        if KILLED in trial.user_attrs
        else "not heard of for long, so that another search has taken it over",
    }[trial.state]
    return f"trial {trial.number}: {outcome} ({params})"


def short_names(keys: list[str]) -> dict[str, str]:
    """The end of each dotted key, as long as it takes to tell them apart.

    >>> short_names(["model.init_args.lr", "data.init_args.seed", "model.seed"])
    {'model.init_args.lr': 'lr', 'data.init_args.seed': 'init_args.seed', 'model.seed': 'model.seed'}
    """
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        names[key] = next((end for end in ends if not any(k != key and k.endswith(f".{end}") for k in keys)), key)
    return names


def format_value(value: Any) -> str:
    """A parameter as a table or an axis shows it.

    >>> format_value(0.0123456), format_value(None), format_value("[1, 2]")
    ('0.01235', 'null', '[1, 2]')
    """
    if value is None:
        return "null"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def write_best(path: Path, study: Study, sweep: Sweep, configuration: str) -> None:
    """Write the configuration of the best trial, with a comment that says what it reached."""
    best = study.best_trial
    header = (
        f"# Best of {len(ended(study))} trials of the sweep {sweep.name}: trial {best.number} with {sweep.metric} = "
        f"{best.value:.6g} ({'maximize' if sweep.maximize else 'minimize'}).\n"
        f"#   python -m lit_papers fit --config {path}\n"
    )
    write_whole(path, header + configuration)
