"""ER, DER++, EWC, LwF, iCaRL and CaSSLe against closed forms."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lit_papers.continual.losses import BarlowTwins, SimSiam
from lit_papers.continual.methods import (
    ER,
    EWC,
    CaSSLe,
    DERpp,
    Finetune,
    ICaRL,
    LwF,
    Step,
    TaskData,
    distillation_loss,
    fisher_diagonal,
    herd,
)
from lit_papers.continual.methods.frozen import FrozenCopy


class Linear(nn.Module):
    """A learner without augmentation: features are the pixels of images ``(N, 3, 1, 1)``."""

    def __init__(self, classes: int = 4, width: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Flatten()
        self.head = nn.Linear(width, classes)

    def views(self, images: torch.Tensor, step: Step, purpose: str = "") -> tuple[torch.Tensor, ...]:
        return (images,)

    def plain(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def features(self, images: torch.Tensor, task: int | None = None) -> torch.Tensor:
        return self.backbone(images)

    def outputs(self, view: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(view))

    def forward(self, view: torch.Tensor) -> torch.Tensor:
        return self.outputs(view)

    def task_loss(self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs[0], labels)


def step(seed: int = 0, classes: tuple[int, int] = (0, 4)) -> Step:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 3, 1, 1, generator=generator)
    labels = torch.randint(*classes, (8,), generator=generator)
    return Step(images, labels, lambda purpose: torch.Generator().manual_seed(len(purpose)))


def finished(images: torch.Tensor, labels: torch.Tensor, classes: list[int]) -> TaskData:
    half = len(labels) // 2
    batches = [(images[:half], labels[:half]), (images[half:], labels[half:])]
    return TaskData(0, 2, classes, lambda: batches, lambda count: (images[:count], labels[:count]))


def test_er_is_the_loss_of_both_batches_as_one() -> None:
    net, method, first, second = Linear(), ER(buffer_size=8), step(1), step(2)
    assert torch.equal(method.loss(net, first), nn.functional.cross_entropy(net(first.images), first.labels))
    method.remember(net, first)
    images, labels = torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels])
    torch.testing.assert_close(method.loss(net, second), nn.functional.cross_entropy(net(images), labels))
    torch.testing.assert_close(second.outputs, net(second.images).detach())


def test_derpp_adds_both_terms() -> None:
    net, method, first, second = Linear(), DERpp(alpha=0.3, beta=0.7, buffer_size=8), step(1), step(2)
    method.loss(net, first)
    method.remember(net, first)
    stored = net(first.images).detach()
    with torch.no_grad():
        net.head.weight += 1
    expected = nn.functional.cross_entropy(net(second.images), second.labels)
    expected = expected + 0.3 * (net(first.images) - stored).square().mean()  # all eight are drawn, in some order
    expected = expected + 0.7 * nn.functional.cross_entropy(net(first.images), first.labels)
    torch.testing.assert_close(method.loss(net, second), expected)
    method.remember(net, second)


def test_the_fisher_information_of_a_softmax_is_known() -> None:
    """Of the weights mean p (1 - p) x^2, of the bias mean p (1 - p)."""
    net, images = Linear(), torch.randn(50, 3, 1, 1)
    found = fisher_diagonal(net, images)
    chances, x = net(images).softmax(dim=1).detach(), images.flatten(1)
    variance = chances * (1 - chances)
    torch.testing.assert_close(found["head.weight"], torch.einsum("nc,nd->cd", variance, x.square()) / 50)
    torch.testing.assert_close(found["head.bias"], variance.mean(dim=0))
    assert net.training


def test_ewc_holds_weights_back_by_it() -> None:
    net, method = Linear(), EWC(strength=3.0, decay=0.5, images=10)
    images, labels = torch.randn(10, 3, 1, 1), torch.zeros(10, dtype=torch.int64)
    data = finished(images, labels, [0])
    assert method.penalty(net).item() == 0
    method.look_back(net, data)
    first = fisher_diagonal(net, images)
    assert method.penalty(net).item() == 0
    with torch.no_grad():
        net.head.weight += 0.2
    penalty = method.penalty(net)
    torch.testing.assert_close(penalty, 1.5 * first["head.weight"].sum() * 0.04)
    (gradient,) = torch.autograd.grad(penalty, net.head.weight)
    torch.testing.assert_close(gradient, 3 * first["head.weight"] * 0.2)
    method.look_back(net, data)
    second = fisher_diagonal(net, images)
    for name, value in method.fisher.items():
        torch.testing.assert_close(value, 0.5 * first[name] + second[name])
    again = EWC()
    again.load_state_dict(copy.deepcopy(method.state_dict()))
    assert torch.equal(again.fisher["head.bias"], method.fisher["head.bias"])


def test_distillation_is_least_where_nothing_has_changed() -> None:
    logits = torch.randn(6, 4, requires_grad=True)
    chances = (logits.detach() / 2).softmax(dim=1)
    loss = distillation_loss(logits, logits, 2.0)
    torch.testing.assert_close(loss, -(chances * chances.log()).sum(dim=1).mean())  # its entropy
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.zeros(6, 4), atol=1e-7, rtol=0)


def test_lwf_answers_as_before_about_old_classes() -> None:
    net, method, now = Linear(), LwF(strength=0.5, temperature=2.0), step(2, (2, 4))
    plain = nn.functional.cross_entropy(net(now.images), now.labels)
    assert torch.equal(method.loss(net, now), plain)
    method.look_back(net, finished(now.images, now.labels, [1, 0]))
    before = net(now.images).detach()
    with torch.no_grad():
        net.head.weight *= 2
    expected = nn.functional.cross_entropy(net(now.images), now.labels)
    expected = expected + 0.5 * distillation_loss(net(now.images)[:, :2], before[:, :2], 2.0)
    torch.testing.assert_close(method.loss(net, now), expected)
    again = LwF(strength=0.5)
    again.load_state_dict(copy.deepcopy(method.state_dict()))
    torch.testing.assert_close(again.loss(net, now), expected)


def test_herding_follows_the_mean() -> None:
    points = torch.tensor([[-4.0], [-1.0], [0.5], [6.0], [7.0]])  # their mean is 1.7
    # 0.5; then with 6 the mean is 3.25, with -1 -0.25, with 7 3.75: 6; then with -1 it is 1.83
    assert herd(points, 3).tolist() == [2, 3, 1]
    assert sorted(herd(points, 9).tolist()) == list(range(5))
    cloud = torch.randn(200, 5)
    few = herd(cloud, 20)
    assert (cloud[few].mean(0) - cloud.mean(0)).norm() < 0.2 * (cloud[:20].mean(0) - cloud.mean(0)).norm()


def test_icarl_keeps_exemplars_and_tells_classes_by_their_means() -> None:
    net, method = Linear(), ICaRL(buffer_size=6)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    images = torch.randn(40, 3, 1, 1, generator=generator)
    images[:, 0] += 6 * labels.view(-1, 1, 1) - 3
    data = finished(images, labels, [0, 1])
    method.before_evaluation(net, data)  # while the task runs: the exemplars that it would leave
    running = method.scores(net.features(images), net(images))
    method.look_back(net, data)
    assert {label: len(kept) for label, kept in method.exemplars.items()} == {0: 3, 1: 3}
    mine = nn.functional.normalize(images[labels == 1].flatten(1))
    assert torch.equal(method.exemplars[1], images[labels == 1][herd(mine, 3)])
    method.before_evaluation(net, data)
    scores = method.scores(net.features(images), net(images))
    torch.testing.assert_close(scores, running)
    assert (scores[:, 2:] == -torch.inf).all()
    assert (scores.argmax(dim=1) == labels).all()
    first = method.exemplars[0].clone()
    method.look_back(net, finished(images, labels + 2, [2, 3]))
    assert {label: len(kept) for label, kept in method.exemplars.items()} == {0: 1, 1: 1, 2: 1, 3: 1}
    assert torch.equal(method.exemplars[0], first[:1])  # the first chosen stay
    with pytest.raises(ValueError, match="`buffer_size`=1"):
        ICaRL(buffer_size=1).look_back(net, data)


def test_icarls_loss_is_a_sigmoid_for_each_class() -> None:
    net, method, now = Linear(), ICaRL(buffer_size=4), step(2, (2, 4))
    one_hot = nn.functional.one_hot(now.labels, 4).float()
    logits = net(now.images)
    expected = -(one_hot * logits.sigmoid().log() + (1 - one_hot) * (1 - logits.sigmoid()).log()).sum() / 8
    torch.testing.assert_close(method.loss(net, now), expected)
    method.look_back(net, finished(torch.randn(8, 3, 1, 1), torch.arange(8) % 2, [0, 1]))
    before = copy.deepcopy(net)
    with torch.no_grad():
        net.head.bias += 0.3
    exemplars = torch.cat([method.exemplars[0], method.exemplars[1]])
    images, labels = torch.cat([now.images, exemplars]), torch.cat([now.labels, torch.tensor([0, 0, 1, 1])])
    targets = nn.functional.one_hot(labels, 4).float()
    targets[:, :2] = before(images)[:, :2].sigmoid().detach()
    expected = nn.functional.binary_cross_entropy_with_logits(net(images), targets, reduction="sum") / 12
    torch.testing.assert_close(method.loss(net, now), expected)


class Projected(Linear):
    """A learner without labels, whose two views are the images and their double."""

    def __init__(self, head: Callable[..., Any]) -> None:
        super().__init__()
        pytest.importorskip("lightly")
        self.head = head(3, 5)

    def views(self, images: torch.Tensor, step: Step, purpose: str = "") -> tuple[torch.Tensor, ...]:
        return images, 2 * images

    def outputs(self, view: torch.Tensor) -> torch.Tensor:
        return self.backbone(view)

    def task_loss(self, outputs: tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
        return self.head(*outputs)


@pytest.mark.parametrize("head", [SimSiam, BarlowTwins])
def test_cassle_predicts_the_old_projections(head: Callable[..., Any]) -> None:
    net, method, now = Projected(head), CaSSLe(strength=2.0, hidden_dim=7), step(3)
    method.connect(net)
    plain = method.loss(net, now)
    torch.testing.assert_close(plain, net.task_loss(net.views(now.images.flatten(1), now), now.labels))
    method.look_back(net, finished(now.images, now.labels, [0]))
    old = copy.deepcopy(net.head.projector)
    with torch.no_grad():
        for weight in net.head.projector.parameters():
            weight += 0.1 * torch.randn_like(weight)
    distances = []
    for view in net.views(now.images.flatten(1), now):
        prediction, target = method.predictor(net.head.projector(view)), old(view).detach()
        if head is SimSiam:
            distances.append((2 - 2 * nn.functional.cosine_similarity(prediction, target)).mean())
        else:
            distances.append(net.head.compare(prediction, target))
    found = method.loss(net, now)
    expected = net.task_loss(net.views(now.images.flatten(1), now), now.labels) + 2.0 * sum(distances) / 2
    torch.testing.assert_close(found, expected)
    found.backward()
    assert all(weight.grad is not None for weight in method.predictor.parameters())


def test_a_frozen_copy_is_out_of_reach_and_travels() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    frozen = FrozenCopy()
    with pytest.raises(RuntimeError, match="no network"):
        frozen.of(net)
    frozen.take(net)
    kept = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        net[0].weight.zero_()
    assert torch.equal(frozen.of(net)[0].weight, kept["0.weight"])
    again = FrozenCopy()
    again.load_state_dict(copy.deepcopy(frozen.state_dict()))
    assert not again.empty
    assert torch.equal(again.of(net)[0].weight, kept["0.weight"])
    assert not list(again.parameters())


def test_bad_arguments() -> None:
    wrong: list[tuple[type, dict[str, Any]]] = [
        (ER, {"buffer_size": 0}), (DERpp, {"beta": 0.0}), (DERpp, {"alpha": -1.0}), (EWC, {"strength": -1.0}),
        (EWC, {"decay": 1.1}), (EWC, {"images": 0}), (LwF, {"strength": 0.0}), (LwF, {"temperature": 0.0}),
        (ICaRL, {"buffer_size": 0}), (CaSSLe, {"strength": 0.0}), (CaSSLe, {"hidden_dim": 0}),
    ]  # fmt: skip
    for kind, arguments in wrong:
        with pytest.raises(ValueError, match=next(iter(arguments)).replace("buffer_size", "buffer")):
            kind(**arguments)


@pytest.mark.parametrize("old", ["keep", "samples_per_task"])
def test_a_hook_under_an_old_name_is_told_the_new_one(old: str) -> None:
    with pytest.raises(TypeError, match=rf"Mine.{old} is not called any more: it is .*look_back\(learner, task\)"):
        type("Mine", (Finetune,), {old: lambda self, *_: None})
