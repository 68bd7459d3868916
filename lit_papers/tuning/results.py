"""What a search leaves behind: a table, figures, and the best configuration as a file that ``fit`` takes."""

from pathlib import Path
from typing import Any

import optuna
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from rich.table import Table

from lit_papers.tuning.search import INTERRUPTED, REASON
from lit_papers.tuning.sweep_file import Sweep

_SHOWN = 15


def ended(study: Study) -> list[FrozenTrial]:
    """Trials that ran to their end, or failed; best first, then pruned ones, then failed ones."""
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    order = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    trials = [t for t in study.get_trials(deepcopy=False) if t.state in order and not t.user_attrs.get(INTERRUPTED)]
    return sorted(trials, key=lambda t: (order.index(t.state), sign * t.value if t.value is not None else t.number))


def summary(study: Study, sweep: Sweep) -> Table:
    """The best trials and what became of the others."""
    trials = ended(study)
    names = short_names(list(sweep.space))
    counts = {state: sum(trial.state == state for trial in trials) for state in TrialState}
    title = (
        f"{sweep.name}: {counts[TrialState.COMPLETE]} trials complete, {counts[TrialState.PRUNED]} stopped early, "
        f"{counts[TrialState.FAIL]} failed"
    )
    table = Table("trial", sweep.metric, *names.values(), "seconds", title=title)
    if counts[TrialState.COMPLETE] < len(trials[:_SHOWN]):
        table.add_column("remark")
    for trial in trials[:_SHOWN]:
        value = "" if trial.value is None else f"{trial.value:.4g}"
        params = [format_value(trial.params.get(key, "")) for key in names]
        seconds = f"{trial.duration.total_seconds():.0f}" if trial.duration else ""
        remark = {TrialState.PRUNED: "stopped early", TrialState.FAIL: trial.user_attrs.get(REASON, "failed")}
        table.add_row(*[str(trial.number), value, *params, seconds, remark.get(trial.state, "")][: len(table.columns)])
    if len(trials) > _SHOWN:
        table.caption = f"and {len(trials) - _SHOWN} more"
    return table


def describe(trial: FrozenTrial, sweep: Sweep) -> str:
    """One line about a trial that has ended."""
    names = short_names(list(sweep.space))
    params = ", ".join(f"{name}={format_value(trial.params[key])}" for key, name in names.items())
    outcome = {
        TrialState.COMPLETE: f"{sweep.metric} {trial.value:.4g}" if trial.value is not None else "",
        TrialState.PRUNED: "stopped early",
        TrialState.FAIL: f"failed, {trial.user_attrs.get(REASON)}",
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
    path.write_text(header + configuration)
