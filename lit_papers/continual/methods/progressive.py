"""Progressive networks: a column for each task that reads the frozen ones before it (Rusu et al. 2016)."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from lit_papers.continual.methods.base import Method


class Lateral(nn.Module):
    """From the maps of earlier columns to what is added to a column's own."""

    def __init__(self, columns: int, channels: int) -> None:
        super().__init__()
        self.scales = nn.Parameter(0.1 * torch.rand(columns))
        self.adapter = nn.Conv2d(columns * channels, channels, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps ``(N, channels, H, W)``."""
        scaled = [scale * earlier for scale, earlier in zip(self.scales, maps, strict=True)]
        return cast(Tensor, self.adapter(torch.cat(scaled, dim=1)).relu())


class ProgressiveColumns(nn.Module):
    """Columns of one architecture; the newest trains.

    Before each stage but the first, column t gets what a `Lateral` makes of the same maps of columns 0..t-1. Features
    are the last maps, averaged over positions.

    Args:
        backbone: has ``.stages``, each from maps to maps; it becomes the first column.
        example: a batch of its input.
        num_tasks: columns.
    """

    def __init__(self, backbone: nn.Module, example: Tensor, num_tasks: int) -> None:
        super().__init__()
        first = cast(nn.ModuleList, backbone.stages)
        channels, maps = [], example
        with torch.no_grad():
            for stage in copy.deepcopy(first).eval():
                maps = stage(maps)
                channels.append(maps.shape[1])
        self.num_features = channels[-1]
        self.columns = nn.ModuleList([first, *(_fresh(first) for _ in range(num_tasks - 1))])
        self.laterals = nn.ModuleList(
            nn.ModuleList([Lateral(task, width) for width in channels[:-1]] if task else [])
            for task in range(num_tasks)
        )
        self.task = 0

    def begin(self, task: int) -> None:
        """Freeze all columns but that of a task."""
        self.task = task
        for number, (column, laterals) in enumerate(zip(self.columns, self.laterals, strict=True)):
            column.requires_grad_(number == task)
            laterals.requires_grad_(number == task)
        self.train(self.training)

    def train(self, mode: bool = True) -> "ProgressiveColumns":
        """Like any module's, but batch norm of the frozen columns stays as it is."""
        super().train(mode)
        for number, column in enumerate(self.columns):
            column.train(mode and number == self.task)
        return self

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Features ``(N, D)`` by the column of a task; by the newest, if it has not begun or is None."""
        last = self.task if task is None else min(task, self.task)
        earlier: list[list[Tensor]] = []  # by column, its maps after each stage
        for number in range(last + 1):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number == self.task):
                earlier.append(self._maps(x, number, earlier))
        maps = earlier[last][-1]
        return maps.mean(dim=tuple(range(2, maps.dim())))

    def _maps(self, x: Tensor, number: int, earlier: list[list[Tensor]]) -> list[Tensor]:
        found: list[Tensor] = []
        for level, stage in enumerate(cast(Any, self.columns[number])):
            if level and number:
                lateral = cast(Any, self.laterals[number])[level - 1]
                x = x + lateral([maps[level - 1] for maps in earlier])
            x = stage(x)
            found.append(x)
        return found


class PNN(Method):
    """A column for each task, so that nothing is forgotten, at the price of a network that grows.

    It needs a backbone with ``.stages``, such as `lit_papers.continual.resnet.ResNet`; under DDP use the strategy
    ``ddp_find_unused_parameters_true``, as the columns to come do not train yet.

    Raises:
        TypeError: (before training) the backbone has no ``.stages``.
    """

    def prepare(self, backbone: nn.Module, example: Tensor, num_tasks: int) -> nn.Module:
        """All columns: one optimizer serves the whole stream."""
        if isinstance(backbone, ProgressiveColumns):
            return backbone
        if not isinstance(getattr(backbone, "stages", None), nn.ModuleList):
            raise TypeError(
                f"PNN needs a backbone whose `.stages` is an nn.ModuleList, but {type(backbone).__name__} has none"
            )
        return ProgressiveColumns(backbone, example, num_tasks)

    def begin_task(self, net: nn.Module, task: int) -> None:
        """Freeze the past."""
        cast(ProgressiveColumns, net).begin(task)


def _fresh(stages: nn.Module) -> nn.Module:
    """The same architecture with weights of its own."""
    column = copy.deepcopy(stages)
    for module in column.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    return column
