"""Attacks and masking on models whose answer is known, and what both leave behind."""

import math

import pytest
import torch
from torch import Tensor, nn

from lit_papers.interactions.evaluation import (
    masking_curve,
    pgd_accuracy,
    plot_masking_curves,
    structural_sensitivity,
)
from lit_papers.interactions.players import FeaturePlayers, PatchGrid, Players


def linear(*weights: float) -> nn.Linear:
    """Class 1 where the weighted sum is positive."""
    layer = nn.Linear(len(weights), 2, bias=False)
    layer.weight.data = torch.tensor([[0.0] * len(weights), weights])
    return layer


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.3, 0.65])
def test_an_attack_on_a_linear_model_moves_by_eps_times_the_norm_of_the_weights(eps: float) -> None:
    """The best attack is known: it lowers the margin by eps * |w|_1."""
    weights = (1.0, -2.0, 0.5)
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    margin = x @ torch.tensor(weights)
    y = (margin > 0).long()
    expected = (margin.abs() > eps * 3.5).double().mean().item()
    assert pgd_accuracy(linear(*weights), x, y, eps, step_size=0.05, steps=60) == expected


def test_the_attack_is_as_strong_as_its_steps() -> None:
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    model = linear(1.0, 1.0, 1.0)
    y = (x.sum(dim=1) > 0).long()
    none, few, many = (
        pgd_accuracy(model, x, y, 0.5, step_size=0.01, steps=steps, generator=torch.Generator().manual_seed(1))
        for steps in (0, 20, 120)
    )
    assert many < few < none < 1


@pytest.mark.parametrize("classes", [2, 7])
def test_the_scale_of_the_logits_changes_nothing(classes: int) -> None:
    """It changes no decision; but a saturated softmax has no gradient, and a flat one looks at all classes alike."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, classes))
    x = torch.randn(500, 6)
    y = network(x).argmax(1)
    found = {}
    for scale in (1e-6, 1.0, 1e3, 1e6):
        scaled = nn.Sequential(network, Scale(scale))
        found[scale] = pgd_accuracy(scaled, x, y, 0.3, steps=20, generator=torch.Generator().manual_seed(0))
    assert 0.05 < found[1.0] < 0.9
    assert max(found.values()) - min(found.values()) <= 0.03


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits: Tensor) -> Tensor:
        return self.factor * logits


def test_restarts_mislead_more_and_one_logit_will_do() -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    for layer in (network[0], network[2]):
        nn.init.normal_(layer.weight, std=2.0)
    x = torch.randn(400, 4)
    y = (network(x)[:, 0] > 0).long()
    found = [
        pgd_accuracy(network, x, y, 0.3, steps=10, restarts=restarts, generator=torch.Generator().manual_seed(0))
        for restarts in (1, 5)
    ]
    assert found[1] < found[0] < 1


def test_inputs_need_no_bounds() -> None:
    """Standardised tables are not images: an attack near 100 must not be clipped to some box."""
    x = torch.tensor([[100.2], [-100.2]])
    model = nn.Linear(1, 2)
    model.weight.data, model.bias.data = torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, -100.0])
    assert pgd_accuracy(model, x, torch.tensor([1, 0]), eps=0.5) == 0.5


@pytest.mark.parametrize("frozen", [False, True])
def test_the_model_is_as_before(frozen: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model.requires_grad_(not frozen)
    model[1].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = torch.randn(30, 4), torch.arange(30) % 2
    copy = x.clone()
    with torch.no_grad():  # as inside a validation loop
        first = pgd_accuracy(model, x, y, 0.3, steps=5, generator=torch.Generator().manual_seed(0))
    again = pgd_accuracy(model, x, y, 0.3, steps=5, generator=torch.Generator().manual_seed(0), batch_size=30)
    assert first == again
    assert [module.training for module in model.modules()] == modes
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(x, copy)


def test_modes_come_back_after_an_exception() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    model = Failing()
    with pytest.raises(RuntimeError, match="out of memory"):
        pgd_accuracy(model, torch.zeros(1, 1), torch.zeros(1).long(), 0.1)
    assert model.training


def test_a_generator_leaves_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, 1, 4, 4, generator=generator), torch.zeros(9).long()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    torch.set_rng_state(state)
    pgd_accuracy(model, x, y, 0.1, steps=2, generator=generator)
    masking_curve(model, PatchGrid(2), x, y, [0.5], "random", generator=generator)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"eps": -0.1}, "`eps` must be >= 0, got -0.1"),
        ({"eps": float("nan")}, "`eps` must be >= 0, got nan"),
        ({"step_size": 0.0}, "`step_size` must be > 0, got 0.0"),
        ({"steps": -1}, "`steps` must be >= 0, got -1"),
        ({"restarts": 0}, "`restarts` must be at least 1, got 0"),
        ({"y": torch.zeros(2).long()}, "3 samples in `x`, but 2 classes in `y`"),
        ({"x": torch.zeros(0, 2), "y": torch.zeros(0).long()}, "`x` has no samples"),
    ],
)
def test_bad_attacks_are_refused(arguments: dict[str, object], complaint: str) -> None:
    defaults = {"model": linear(1.0, 1.0), "x": torch.zeros(3, 2), "y": torch.zeros(3).long(), "eps": 0.1}
    with pytest.raises(ValueError, match=complaint):
        pgd_accuracy(**{**defaults, **arguments})


class Recorder(nn.Module):
    """Calls an image class 1 as long as its cell ``(row, column)`` is there, and remembers what it saw."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.row, self.column = row, column
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x[:, 0])
        there = (x[:, 0, self.row, self.column] != 0).float()
        return torch.stack((0.5 * torch.ones_like(there), there), dim=1)


def test_the_border_goes_first_and_the_centre_last() -> None:
    """A 4 x 6 grid on an image of one pixel a cell: distances from the centre are 0.5 to 2.5."""
    model = Recorder(0, 0)
    fractions = [0, 8 / 24, 20 / 24, 1]
    masking_curve(model, PatchGrid((4, 6)), torch.ones(50, 1, 4, 6), torch.ones(50).long(), fractions, "border")
    whole, sides, core, nothing = model.seen
    assert (whole == 1).all()
    assert (nothing == 0).all()
    assert (sides[:, :, [0, 5]] == 0).all(), "the columns at distance 2.5"
    assert (sides[:, :, 1:5] == 1).all()
    assert (core[:, 1:3, 2:4] == 1).all(), "the four cells in the middle"
    assert (core.sum(dim=(1, 2)) == 4).all()


def test_ties_are_broken_by_chance_and_removal_is_nested() -> None:
    model = Recorder(0, 0)
    x, y = torch.ones(300, 1, 4, 4), torch.ones(300).long()
    for layout in ("border", "random"):
        model.seen.clear()
        generator = torch.Generator().manual_seed(0)
        curve = masking_curve(model, PatchGrid(4), x, y, [k / 16 for k in range(17)], layout, generator=generator)
        kept = torch.stack(model.seen)  # (17, 300, 4, 4)
        assert (kept.sum(dim=(2, 3)) == torch.arange(16, -1, -1)[:, None]).all()
        assert (kept[1:] <= kept[:-1]).all()
        # the corner is one of 12 border cells, or one of 16
        cells = 12 if layout == "border" else 16
        expected = [max(0.0, 1 - k / cells) for k in range(17)]
        assert curve.tolist() == pytest.approx(expected, abs=4 * math.sqrt(0.25 / 300))
        assert curve.dtype == torch.float64


def test_fractions_are_rounded_down_but_not_by_a_rounding_error() -> None:
    model = Recorder(0, 0)
    masking_curve(model, PatchGrid(10), torch.ones(1, 1, 10, 10), torch.ones(1).long(), [0.29, 0.999], "random")
    assert [int(seen.sum()) for seen in model.seen] == [71, 1]


def test_masking_in_batches_with_a_baseline() -> None:
    x, y = torch.rand(10, 3, 5, 7, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 2
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.9), nn.Flatten(), nn.Linear(105, 2))
    curves = [
        masking_curve(
            model, PatchGrid((2, 3)), x, y, [0.0, 0.4, 1.0], "random", baseline=torch.full((3, 1, 1), 0.5),
            generator=torch.Generator().manual_seed(1), batch_size=size,
        )
        for size in (3, 1024)
    ]  # fmt: skip
    assert torch.equal(*curves)
    assert model.training
    assert curves[0][2] == 0.5, "nothing is left to tell the images apart"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"layout": "middle"}, "layout='middle' is unknown"),
        ({"fractions": [0.5, 1.2]}, r"`fractions` must be in \[0, 1\], got \[0.5, 1.2\]"),
        ({"y": torch.zeros(2).long()}, "3 samples in `x`, but 2 classes in `y`"),
    ],
)
def test_bad_masking_is_refused(arguments: dict[str, object], complaint: str) -> None:
    defaults = {
        "model": Recorder(0, 0), "players": PatchGrid(2), "x": torch.zeros(3, 1, 4, 4), "y": torch.zeros(3).long(),
        "fractions": [0.5], "layout": "random",
    }  # fmt: skip
    with pytest.raises(ValueError, match=complaint):
        masking_curve(**{**defaults, **arguments})


def test_the_area_between_curves() -> None:
    fractions = [0.0, 0.25, 1.0]
    random, border = torch.tensor([1.0, 0.5, 0.1]), torch.tensor([1.0, 0.9, 0.1])
    assert structural_sensitivity(fractions, random, border) == pytest.approx(0.2)
    assert structural_sensitivity(fractions, border, random) == pytest.approx(0.2)
    figure, axis = plot_masking_curves(fractions, random, border)
    assert axis.get_xlabel() == "share of patches masked"
    assert axis.get_ylabel() == "accuracy"
    assert "area between: 0.200" in [text.get_text() for text in axis.get_legend().get_texts()]
    again, same = plot_masking_curves(fractions, random, border, ax=axis)
    assert again is figure
    assert same is axis


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Tanh()], ids=["softmax", "tanh"])
def test_an_attack_without_gradients_is_told(last: nn.Module) -> None:
    """Outputs that saturate let no sample be misled, whatever the network decides."""
    line = nn.Linear(4, 2, bias=False)
    line.weight.data = 1e4 * torch.tensor([[1.0, 1, 1, 1], [-1.0, -1, -1, -1]])
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    y = line(x).argmax(1)
    with pytest.warns(UserWarning, match="no gradient at all"):
        pgd_accuracy(nn.Sequential(line, last), x, y, eps=0.1, steps=3)


@pytest.mark.parametrize(
    "labels", [torch.zeros(6, 1).long(), torch.zeros(6), nn.functional.one_hot(torch.arange(6) % 2)]
)
def test_labels_of_another_form_are_refused(labels: torch.Tensor) -> None:
    """Broadcast against decisions they would count each sample many times."""
    network, images = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), torch.randn(6, 1, 4, 4)
    with pytest.raises((ValueError, TypeError), match="`y` must be"):
        masking_curve(network, PatchGrid(2), images, labels, [0.5], "random")
    with pytest.raises((ValueError, TypeError), match="`y` must be"):
        pgd_accuracy(network, images, labels, 0.1)


def test_what_has_no_accuracy_is_refused() -> None:
    """NaN count as class 0, and a label that is no class as an error: numbers like any other."""
    network, images, labels = (
        nn.Sequential(nn.Flatten(), nn.Linear(16, 2)),
        torch.randn(6, 1, 4, 4),
        torch.arange(6) % 2,
    )
    broken = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    nn.init.constant_(broken[1].weight, math.nan)
    for model, x, y, complaint in (
        (broken, images, labels, "NaN or infinite"),
        (network, torch.full_like(images, math.nan), labels, "NaN or infinite"),
        (network, images, labels + 1, "label 2 is outside 0 to 1"),
        (network, images, labels - 1, "label -1 is outside 0 to 1"),
    ):
        with pytest.raises(ValueError, match=complaint):
            pgd_accuracy(model, x, y, 0.1, steps=1)
        with pytest.raises(ValueError, match=complaint):
            masking_curve(model, PatchGrid(2), x, y, [0.0], "random")


def test_images_of_integers_steps_of_channels_and_players_without_a_border_are_refused() -> None:
    network, images, labels = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), torch.rand(6, 3, 4, 4), torch.arange(6) % 2
    with pytest.raises(TypeError, match="`x` must be floats"):
        pgd_accuracy(network, (255 * images).byte(), labels, 8)
    for arguments in ({"eps": torch.rand(3, 1, 1)}, {"eps": 0.1, "step_size": torch.rand(3, 1, 1)}):
        with pytest.raises(ValueError, match=r"must be one number, got \(3, 1, 1\)"):
            pgd_accuracy(network, images, labels, **arguments)  # type: ignore[arg-type]
    players: Players = FeaturePlayers(48)
    with pytest.raises(TypeError, match="of the cells of a PatchGrid, got FeaturePlayers"):
        masking_curve(network, players, images, labels, [0.0], "border")  # type: ignore[arg-type]
