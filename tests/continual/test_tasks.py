"""Who says which task runs, and who hears it."""

import pytest

from lit_papers.continual.tasks import TaskEvents


def test_listeners_hear_each_event_once_and_in_order() -> None:
    events, heard = TaskEvents(), []
    events.listen(begin=lambda task: heard.append(f"begin {task}"), end=lambda task: heard.append(f"end {task}"))
    events.listen(end=lambda task: heard.append(f"also {task}"))
    events.reach(1)
    events.reach(1)
    events.begin_task(4)  # ends the one that runs
    events.end_task()
    assert heard == ["begin 0", "end 0", "also 0", "begin 1", "end 1", "also 1", "begin 4", "end 4", "also 4"]
    assert (events.task, events.running) == (4, False)
    events.reach(4)  # it was reached
    assert not events.running
    events.begin_task()
    assert events.task == 5


def test_a_restored_one_goes_on_silently() -> None:
    events, heard = TaskEvents(), []
    events.listen(begin=heard.append, end=heard.append)
    other = TaskEvents()
    other.reach(2)
    events.load_state_dict(other.state_dict())
    assert heard == []
    events.end_task()
    assert heard == [2]


def test_what_ends_a_task_that_fails_is_done_again() -> None:
    events = TaskEvents()
    events.begin_task()

    def fails(task: int) -> None:
        raise RuntimeError("a listener failed")

    events.listen(end=fails)
    with pytest.raises(RuntimeError, match="listener"):
        events.end_task()
    assert events.running


def test_refusals() -> None:
    with pytest.raises(RuntimeError, match="no task runs"):
        TaskEvents().end_task()
    with pytest.raises(ValueError, match="`task`"):
        TaskEvents().begin_task(-1)
