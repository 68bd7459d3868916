"""From what lenses found, or why they found nothing, to findings."""

import io
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lit_papers.diagnose import figures
from lit_papers.diagnose.entries import Entry
from lit_papers.diagnose.probing import said_of
from lit_papers.diagnose.report import Finding, Shown
from lit_papers.lens import Lens, NotApplicable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def conclude(tasks: Sequence[Any], finding: Finding, *, over_time: bool) -> None:
    """Status, shown numbers and figures, from what the tasks of a lens found."""
    finding.histories = {task.data: task.history for task in tasks if task.history}
    found = {data: [each for each in history if "reason" not in each] for data, history in finding.histories.items()}
    found = {data: history for data, history in found.items() if any(each["epoch"] for each in history)}
    if not found:
        told = [each["reason"] for history in finding.histories.values() for each in history if "reason" in each]
        finding.reason = finding.reason or (told[0] if told else "nothing was measured")
        return
    finding.status, finding.reason = "measured", None
    finding.shown = _shown(tasks[0].entry, found, over_time)
    finding.figures = _drawn(tasks[0].entry, tasks[0].lens, found, finding, over_time)


def empty(entry: Entry) -> Finding:
    """A finding before anything was tried."""
    return Finding(entry.name, entry.title, "failed", entry.what, entry.error, entry.source)


@contextmanager
def reason_into(finding: Finding) -> Iterator[None]:
    """What keeps a lens from looking becomes the reason on the page."""
    try:
        yield
    except (NotApplicable, TypeError) as error:  # the latter asks for `unpack`
        refused = isinstance(error, NotApplicable) or "unpack" in str(error)
        finding.status, finding.reason = ("does not apply", str(error)) if refused else ("failed", said_of(error))
    except Exception as error:  # a stranger's network, loader or data set may raise anything
        finding.status, finding.reason = "failed", str(error) if type(error) is ValueError else said_of(error)


@contextmanager
def account(finding: Finding) -> Iterator[None]:
    """Time, refusals and errors of a lens go to its finding; so do our warnings, which stand on the page alone."""
    begun = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught, reason_into(finding):
        warnings.simplefilter("always")
        try:
            yield
        finally:  # also when it is stopped
            finding.seconds += time.perf_counter() - begun
    told = (str(warning.message) for warning in caught if _is_ours(warning))
    finding.notes += [message for message in dict.fromkeys(told) if message not in finding.notes]


def _shown(entry: Entry, histories: Mapping[str, Sequence[Mapping[str, Any]]], over_time: bool) -> list[Shown]:
    shown = []
    for row in entry.rows:
        if row.when == "over time" and not over_time:
            continue
        for data, history in histories.items():
            value = history[-1].get(row.key)
            if isinstance(value, float):
                error = history[-1].get(row.error) if row.error else None
                several = data if len(histories) > 1 else ""
                scaled = None if error is None else row.scale * error
                shown.append(Shown(row.label, row.key, several, row.scale * value, scaled, row.meaning))
    return shown


def _drawn(
    entry: Entry,
    lens: Lens,
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    finding: Finding,
    over_time: bool,
) -> dict[str, bytes]:
    """The figures as PNG; one that cannot be drawn is a note."""
    rows = [(row.key, row.label, row.error) for row in entry.rows if row.when != "now"]
    wanted: dict[str, Callable[[], Figure | None]] = {
        entry.caption or entry.title: lambda: entry.draw(lens, histories),
    }
    if over_time:
        trained = {
            data: [each for each in history if each["checkpoint"] != "untrained"] for data, history in histories.items()
        }
        wanted["Over the checkpoints"] = lambda: figures.over_steps(trained, rows)
    found = {}
    for caption, draw in wanted.items():
        try:
            figure = draw()
            if figure is not None:
                content = io.BytesIO()
                figure.savefig(content, format="png")
                found[caption] = content.getvalue()
        except Exception as error:  # no figure ends a diagnosis
            finding.notes.append(f"the figure {caption!r} could not be drawn: {said_of(error)}")
    return found


def _is_ours(warning: warnings.WarningMessage) -> bool:
    return "lit_papers" in warning.filename and not issubclass(warning.category, (DeprecationWarning, FutureWarning))
