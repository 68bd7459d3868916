"""What of a module and its callbacks counts as state, without a Trainer."""

import copy
from types import SimpleNamespace

import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics import Accuracy

from lit_papers.local_sgd.inventory import Inventory


class Project(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.teacher = copy.deepcopy(self.student)
        self.frozen = nn.Linear(3, 3)
        self.register_buffer("queue", torch.randn(4, 3))
        self.register_buffer("mask", torch.ones(3), persistent=False)
        self.register_buffer("position", torch.zeros((), dtype=torch.long))


def project() -> tuple[Project, Inventory, list[torch.optim.Optimizer]]:
    module = Project()
    callback = EMAWeightAveraging()
    callback._average_model = AveragedModel(module)  # as its `setup` does
    optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(module.student.parameters(), 0.1)]
    inventory = Inventory(module, [callback])
    inventory.watch(optimizers)
    return module, inventory, optimizers


def test_teachers_are_what_moves_without_an_optimizer() -> None:
    module, inventory, optimizers = project()
    assert inventory.look(optimizers) == 0
    assert inventory.followers(optimizers) == []
    module.teacher[0].weight.data.mul_(0.9)  # no version counter sees this
    digest = inventory.look(optimizers)
    assert digest != 0
    assert [id(value) for value in inventory.followers(optimizers)] == [id(module.teacher[0].weight)]
    assert inventory.look(optimizers) == digest


class Averaged:
    def __init__(self, weights) -> None:
        self.shadow = [weight.detach().clone() for weight in weights]


def test_copies_of_the_weights_are_found_where_people_keep_them() -> None:
    module, _, optimizers = project()
    trained = dict(module.student.named_parameters())
    callback = EMAWeightAveraging()
    callback.shadow = {name: value.detach().clone() for name, value in trained.items()}
    callback.states = {name: value.clone() for name, value in module.student.state_dict().items()}
    callback.notes = {"before": dict(callback.states)}
    callback.losses = [torch.zeros(()), torch.ones(())]
    module.ema = Averaged(trained.values())
    module.watched = list(trained.values())
    module.gradients = [torch.zeros_like(value) for value in trained.values()]
    for value, gradient in zip(trained.values(), module.gradients, strict=True):
        value.grad = gradient
    inventory = Inventory(module, [callback])
    found = {name.partition(":")[0] for name in inventory.kept_tensors(optimizers)}
    first = "0.EMAWeightAveraging"
    assert found == {f"{first}.shadow", f"{first}.states", "module.Project.ema.shadow"}
    inventory.watch(optimizers)
    assert inventory.moving_models(optimizers) == []
    callback.shadow["0.weight"].add_(1)
    inventory.look(optimizers)
    assert [id(value) for value in inventory.moving_models(optimizers)] == [id(callback.shadow["0.weight"])]
    assert inventory.moving_copies(optimizers) == [f"{first}.shadow"]


class Part(nn.Module):
    """A part of a project that hides a network from its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.held = (nn.Linear(2, 2),)


def test_models_are_found_where_people_keep_them_out_of_the_parameters() -> None:
    module, _, optimizers = project()
    teacher = nn.Linear(2, 2)
    module.part = Part()
    module.teachers = [teacher, teacher]
    module.__dict__["momentum"] = nn.Linear(2, 2)
    module.averages = {0.9: SimpleNamespace(module=nn.Linear(2, 2))}
    module.parts = [module.student, Accuracy("binary")]
    callback = EMAWeightAveraging()
    callback.by_decay = {0.9: nn.Linear(2, 2)}
    callback.whole = nn.Sequential(module.student, nn.Linear(3, 3))  # as an online probe has it
    callback.notes = {"after": {"each": [nn.Linear(2, 2)]}}
    inventory = Inventory(module, [callback])
    first, here = "0.EMAWeightAveraging", "module.Project"
    expected = {
        f"{first}.by_decay.0.9", f"{here}.teachers.0", f"{here}.momentum", f"{here}.averages.0.9.module",
        f"{first}.whole", "module.part.Part.held.0",
    }  # fmt: skip
    assert set(inventory.held_models()) == expected
    owned = {id(value) for value in (*module.parameters(), *module.buffers())}
    assert owned.isdisjoint(map(id, inventory.held_tensors().values()))
    inventory.watch(optimizers)
    teacher.weight.data.add_(1)
    inventory.look(optimizers)
    assert [id(value) for value in inventory.moving_models(optimizers)] == [id(teacher.weight)]
    optimizers[0].add_param_group({"params": [teacher.weight]})  # an adversary that is trained
    assert inventory.moving_models(optimizers) == []


def test_what_only_some_processes_have_is_no_part_of_an_average() -> None:
    _, inventory, optimizers = project()
    with torch.no_grad():
        next(inventory.held_models()["0.EMAWeightAveraging._average_model"].parameters()).add_(1)
    inventory.look(optimizers)
    moved, there = inventory.whereabouts(optimizers)
    inventory.agree([(moved, there), (set(), there)])
    assert len(inventory.moving_models(optimizers)) == 1
    inventory.agree([(moved, there), (set(), there - moved)])
    assert inventory.moving_models(optimizers) == []
    assert inventory.lonely == sorted(moved)


def test_equal_entries_that_move_alike_are_seen() -> None:
    module, inventory, optimizers = project()
    with torch.no_grad():
        module.teacher[1].weight.mul_(0.999)  # all were 1
    inventory.look(optimizers)
    assert inventory.moved == {"teacher.1.weight"}


def test_statistics_are_averaged_and_other_buffers_are_each_ranks_own() -> None:
    module, inventory, optimizers = project()
    norms = (module.student[1], module.teacher[1])
    expected = {id(buffer) for norm in norms for buffer in (norm.running_mean, norm.running_var)}
    assert {id(buffer) for buffer in inventory.statistics()} == expected
    assert set(inventory.own_buffers()) == {"queue", "mask"}
    assert "mask" not in inventory.saved_buffers()
    assert "position" in inventory.saved_buffers()
    module.queue[0] = 1
    inventory.look(optimizers)
    assert inventory.moving_buffers() == ["queue"]
    assert Inventory(module, average_buffers=False).statistics() == []
    more = Inventory(module, average_buffers=lambda name, value: name == "queue")
    assert set(more.own_buffers()) == {"mask"}


def test_models_of_callbacks_are_found_once_they_move() -> None:
    _, inventory, optimizers = project()
    (name,) = inventory.held_models()
    assert name == "0.EMAWeightAveraging._average_model"
    assert inventory.moving_models(optimizers) == []
    with torch.no_grad():
        next(inventory.held_models()[name].parameters()).add_(1)
    inventory.look(optimizers)
    assert len(inventory.moving_models(optimizers)) == 1
