"""All float64 accumulators keep the rules of `tests.metric`."""

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from lit_papers.accumulator import Float64Metric, float64_device
from lit_papers.interactions.metrics import RelativeInteractionStrength
from lit_papers.neural_collapse.metrics import ClassStatisticsMetric
from tests.metric import MakeMetric, check_metric


class SecondMoment(Float64Metric):
    """The smallest there is."""

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(2, 2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, rows: Tensor) -> None:
        self.writable()
        self.total += rows.double().T @ rows.double()
        self.count += len(rows)

    def compute(self) -> Tensor:
        return self.total / self.count


def rows(n: int, d: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


METRICS: dict[str, tuple[MakeMetric, list[tuple[Tensor, ...]]]] = {
    "smallest": (SecondMoment, [(rows(4),), (rows(3, seed=1),), (rows(5, seed=2),)]),
    "class statistics": (
        lambda: ClassStatisticsMetric(2, 2),
        [(rows(4, seed=s) + 100, torch.tensor([0, 1, 1, 0])) for s in range(3)],
    ),
    "interaction strength": (lambda: RelativeInteractionStrength([0, 3]), [(rows(4, seed=s),) for s in range(3)]),
}


@pytest.mark.parametrize("name", METRICS)
def test_accumulators_keep_the_rules(name: str) -> None:
    check_metric(*METRICS[name])


def test_a_metric_that_breaks_a_rule_is_caught() -> None:
    class Plain(Metric):
        full_state_update = False

        def __init__(self) -> None:
            super().__init__()
            self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

        def update(self, rows: Tensor) -> None:
            self.total = self.total + rows.double().square().sum()

        def compute(self) -> Tensor:
            return self.total

    with pytest.raises(AssertionError, match="merged"):
        check_metric(Plain, [(rows(4),), (rows(3, seed=1),)], processes=False)


def test_the_device_beside_one_without_float64() -> None:
    assert float64_device(torch.device("cpu")) == torch.device("cpu")
    assert float64_device(torch.device("mps")) == torch.device("cpu")
