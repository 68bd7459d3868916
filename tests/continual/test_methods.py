"""Each method alone: its formula, and what it keeps."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lit_papers.continual.methods import (
    AGEM,
    DER,
    GSS,
    LUMP,
    PNN,
    SI,
    ProgressiveColumns,
    TaskData,
    mix,
    project_gradient,
)
from lit_papers.continual.methods.gradient_selection import GradientBuffer
from lit_papers.continual.resnet import ResNet


def test_mix() -> None:
    x, memory = torch.randn(2, 5, 3)
    assert torch.equal(mix(x, memory, 1.0), x)
    assert torch.equal(mix(x, memory, 0.0), memory)
    torch.testing.assert_close(mix(x, memory, 0.3), 0.3 * x + 0.7 * memory)


def test_projection() -> None:
    found = project_gradient(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]))
    assert found.tolist() == [0.5, 0.5]
    grad, reference = torch.randn(2, 30)
    if grad @ reference > 0:
        reference = -reference
    assert abs(project_gradient(grad, reference) @ reference) < 1e-5
    assert torch.equal(project_gradient(grad, -reference), grad)
    assert torch.equal(project_gradient(grad, torch.zeros(30)), grad)


class Quadratic(nn.Module):
    """Loss 0.5 * sum(curvature * (theta - goal)^2)."""

    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

    def loss(self, curvature: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return 0.5 * (curvature * (self.theta - goal).square()).sum()


CURVATURE = torch.tensor([1.0, 3.0], dtype=torch.float64)
GOALS = torch.tensor([[0.0, 0.5], [2.0, 1.0]], dtype=torch.float64)


def train(net: Quadratic, si: SI, task: int, steps: int = 40, lr: float = 0.05, penalised: bool = True) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    si.begin_task(net, task)
    for _ in range(steps):
        optimizer.zero_grad()
        (net.loss(CURVATURE, GOALS[task]) + si.penalty(net)).backward()
        si.before_step(net, lr=lr, penalised=penalised)
        optimizer.step()
        si.after_step(net)
    si.end_task(net, task)


def test_si_on_a_quadratic() -> None:
    """Small steps: the contribution is the decrease of the loss, by weight."""
    net, si = Quadratic(), SI(strength=0.3, damping=0.1)
    start = net.theta.detach().clone()
    si.begin_task(net, 0)
    assert si.penalty(net).item() == 0
    train(net, si, 0, steps=20_000, lr=1e-3)
    end = net.theta.detach().clone()
    decrease = 0.5 * CURVATURE * ((start - GOALS[0]).square() - (end - GOALS[0]).square())
    importance = decrease / ((end - start).square() + 0.1)
    torch.testing.assert_close(si.importance["theta"], importance, rtol=2e-3, atol=1e-6)
    assert si.penalty(net).item() == 0
    with torch.no_grad():
        net.theta += 0.7
    penalty = si.penalty(net)
    assert penalty.item() == pytest.approx(0.3 * (si.importance["theta"] * 0.49).sum().item())
    (gradient,) = torch.autograd.grad(penalty, net.theta)
    torch.testing.assert_close(gradient, 2 * 0.3 * si.importance["theta"] * 0.7)


def test_si_counts_the_gradient_of_the_task_alone() -> None:
    """With the penalty in ``.grad`` and taken out again, or never put there: the same contributions."""
    found = []
    for penalised in (True, False):
        net, si = Quadratic(), SI(strength=0.2)
        train(net, si, 0)
        si.begin_task(net, 1)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        for _ in range(10):
            optimizer.zero_grad()
            task = net.loss(CURVATURE, GOALS[1])
            if penalised:
                (task + si.penalty(net)).backward()
                si.before_step(net, penalised=True)
            else:
                task.backward()
                si.before_step(net)
                si.penalty(net).backward()
            optimizer.step()
            si.after_step(net)
        si.end_task(net, 1)
        found.append(si.importance["theta"])
    torch.testing.assert_close(found[0], found[1])


def test_official_omega_is_the_path_of_plain_sgd() -> None:
    nets = []
    for omega in ("path", "official"):
        net, si = Quadratic(), SI(omega=omega)  # type: ignore[arg-type]
        train(net, si, 0)
        nets.append(si.importance["theta"])
    torch.testing.assert_close(nets[0], nets[1])
    net.loss(CURVATURE, GOALS[0]).backward()
    with pytest.raises(ValueError, match="learning rate"):
        SI(omega="official").before_step(net)


def test_si_travels_in_its_state_dict() -> None:
    net, si = Quadratic(), SI()
    train(net, si, 0)
    train(net, si, 1, steps=5)
    again = SI()
    again.load_state_dict(copy.deepcopy(si.state_dict()))
    twin = copy.deepcopy(net)
    train(net, si, 1, steps=5)
    train(twin, again, 1, steps=5)
    assert torch.equal(net.theta, twin.theta)
    assert torch.equal(si.importance["theta"], again.importance["theta"])


def columns() -> ProgressiveColumns:
    torch.manual_seed(0)
    net = PNN().prepare(ResNet(1, 4, (1, 1)), torch.zeros(2, 1, 8, 8), num_tasks=3)
    assert isinstance(net, ProgressiveColumns)
    return net


def test_old_columns_never_change() -> None:
    net, method, images = columns(), PNN(), torch.randn(6, 1, 8, 8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    kept: dict[int, Any] = {}
    for task in range(3):
        method.begin_task(net, task)
        net.train()
        for _ in range(3):
            optimizer.zero_grad()
            net(images).square().mean().backward()
            optimizer.step()
        net.eval()
        kept[task] = {name: value.clone() for name, value in net.columns[task].state_dict().items()}
        for old in range(task):
            for name, value in net.columns[old].state_dict().items():
                assert torch.equal(value, kept[old][name]), (task, old, name)
        assert torch.equal(net(images), net(images, task))
        assert torch.equal(net(images, 2), net(images, task))  # a task to come: by the newest
    assert {lateral.scales.numel() for lateral in net.laterals[2]} == {2}
    assert not torch.equal(net(images, 0), net(images, 1))


def test_laterals_read_the_columns_before() -> None:
    net, images = columns().eval(), torch.randn(2, 1, 8, 8)
    net.begin(1)
    first, column = net.columns[0], net.columns[1]
    maps, below = images, images
    for level in range(3):
        if level:
            lateral = net.laterals[1][level - 1]
            own = maps + lateral.adapter(lateral.scales[0] * below).relu()
        else:
            own = maps
        maps, below = column[level](own), first[level](below)
    torch.testing.assert_close(net(images), maps.mean(dim=(2, 3)))
    assert 0 <= net.laterals[1][0].scales[0].item() <= 0.1


def test_pnn_needs_stages() -> None:
    with pytest.raises(TypeError, match=r"`\.stages`.*Linear"):
        PNN().prepare(nn.Linear(2, 2), torch.zeros(1, 2), 2)


def test_gradient_buffer_prefers_low_scores() -> None:
    buffer, generator = GradientBuffer(4), torch.Generator().manual_seed(0)
    high, low = torch.full((4,), 1.9), torch.full((40,), 0.01)
    buffer.add(torch.zeros(4, 1), torch.arange(4), high, generator)
    buffer.add(torch.zeros(40, 1), torch.arange(10, 50), low, generator)
    assert len(buffer) == 4
    assert (buffer.data["labels"] >= 10).all()
    again = GradientBuffer(4)
    again.load_state_dict(buffer.state_dict())
    assert torch.equal(again.sample(4, generator.manual_seed(1))["labels"].sort().values,
                       buffer.data["labels"].sort().values)  # fmt: skip
    with pytest.raises(RuntimeError, match="empty"):
        GradientBuffer(2).sample(1)


def test_bad_arguments() -> None:
    for kind in (LUMP, DER):
        with pytest.raises(ValueError, match="`alpha`"):
            kind(alpha=0.0)
    for weight in (-0.1, 1.1):
        with pytest.raises(ValueError, match="`weight`"):
            LUMP(weight=weight)
    for kind in (LUMP, DER, AGEM, GSS):
        with pytest.raises(ValueError, match="`size`"):
            kind(buffer_size=0)
    for wrong in ({"strength": -1.0}, {"damping": 0.0}, {"omega": "other"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SI(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`buffer_size`=3"):
        AGEM(buffer_size=3).look_back(None, TaskData(0, 5, [0], list, lambda count: None))  # type: ignore[arg-type]
