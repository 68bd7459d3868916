"""Ending a measurement that takes longer than was thought."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook


class OutOfTimeError(BaseException):
    """A layer was called after the deadline.

    Like ``KeyboardInterrupt`` it is no ``Exception``, which a lens may take for the reason to try another way.
    """


@contextmanager
def deadline(end: float) -> Iterator[None]:
    """End what calls layers after a moment; what does not, such as linear algebra, goes on.

    Args:
        end: as ``time.perf_counter`` counts; infinite for none.

    Raises:
        OutOfTimeError: in the first call of a layer after ``end``.

    >>> with deadline(time.perf_counter() - 1):
    ...     nn.Identity()(0)
    Traceback (most recent call last):
    ...
    lit_papers.diagnose.deadline.OutOfTimeError
    """
    if math.isinf(end):
        yield
        return

    def check(module: nn.Module, inputs: object) -> None:
        if time.perf_counter() > end:
            raise OutOfTimeError

    handle = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()
