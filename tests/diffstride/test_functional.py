"""The resampling operators: the authors' own outputs, closed forms, symmetries, and two ways to compute one thing."""

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lit_papers.diffstride import operators
from lit_papers.diffstride.functional import (
    complexity_penalty,
    diffstride,
    minimum_stride,
    output_size,
    resample,
    resample_fixed,
    span_mask,
    spectral_pool,
)

REFERENCE = Path(__file__).parent / "reference"
RECORDS = json.loads((REFERENCE / "layer_reference.json").read_text())
VARIANTS = ("symmetric", "official")


@pytest.fixture(scope="module")
def arrays() -> Any:
    return np.load(REFERENCE / "layer_reference.npz")


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "record", [r for r in RECORDS["records"] if r["kind"] == "diffstride"], ids=lambda r: r["name"]
)
def test_official_layer(record: dict[str, Any], arrays: Any) -> None:
    images = torch.tensor(arrays[f"{record['name']}/x"], requires_grad=True)
    strides = torch.tensor(record["strides"], requires_grad=True)
    each = strides.expand(2)
    if record["shared_stride"]:
        bound = max(minimum_stride(n, record["smoothness"]) for n in record["shape"][-2:])
        each = each + (each.clamp(min=bound) - each).detach()
    maps = diffstride(images, each, record["smoothness"], crop=record["crop"], variant="official")
    (maps * torch.tensor(arrays[f"{record['name']}/w"])).sum().backward()
    assert list(maps.shape) == record["output_shape"]
    assert near(maps, arrays[f"{record['name']}/y"]) <= 5e-6
    assert near(images.grad, arrays[f"{record['name']}/grad_x"]) <= 5e-6
    assert near(strides.grad, record["grad_strides"]) <= 1e-5


@pytest.mark.parametrize(
    "record", [r for r in RECORDS["records"] if r["kind"] == "spectral_pool"], ids=lambda r: r["name"]
)
def test_official_spectral_pooling(record: dict[str, Any], arrays: Any) -> None:
    images = torch.tensor(arrays[f"{record['name']}/x"], requires_grad=True)
    maps = spectral_pool(images, record["output_shape"][-2:], variant="official")
    (maps * torch.tensor(arrays[f"{record['name']}/w"])).sum().backward()
    assert near(maps, arrays[f"{record['name']}/y"]) <= 5e-6
    assert near(images.grad, arrays[f"{record['name']}/grad_x"]) <= 5e-6


def near(ours: Tensor, theirs: Any) -> float:
    """Largest difference, relative to the largest value or 1."""
    theirs = torch.as_tensor(theirs)
    if theirs.numel() == 0:
        return 0.0 if ours.shape == theirs.shape else math.inf
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()


@pytest.mark.parametrize(
    "record", [r for r in RECORDS["records"] if r["kind"] == "diffstride_ones"], ids=lambda r: r["name"]
)
def test_official_layer_on_ones(record: dict[str, Any]) -> None:
    maps = diffstride(
        torch.ones(record["shape"]), torch.tensor(record["strides"]), record["smoothness"], variant="official"
    )
    assert list(maps.shape) == record["output_shape"]
    assert maps.max().item() == pytest.approx(record["output_max"], rel=1e-5)
    assert maps.min().item() == pytest.approx(record["output_min"], rel=1e-5)


def test_official_sizes() -> None:
    for record in RECORDS["output_sizes"]:
        ours = output_size(record["size"], record["strides"], record["smoothness"], "official")
        assert list(ours) == record["output_size"], record


@pytest.mark.parametrize(("size", "expected"), [((32,), 24), ((56,), 36), ((64,), 40), ((10,), 10), ((9,), 9)])
def test_sizes_at_stride_two(size: tuple[int], expected: int) -> None:
    assert output_size(size, (2.0,)) == (expected,)


def test_mask_on_the_ramp() -> None:
    ours = span_mask(torch.arange(17, 22, dtype=torch.float64), tensor(17.0), 4.0)
    assert torch.equal(ours, tensor(1, 0.75, 0.5, 0.25, 0))


def test_gradient_includes_both_ends_of_the_ramp() -> None:
    width = torch.tensor(2.0, requires_grad=True)
    for position, expected in ((1, 0), (2, 0.5), (3, 0.5), (4, 0.5), (5, 0)):
        (gradient,) = torch.autograd.grad(span_mask(torch.tensor(position), width, 2.0), width)
        assert gradient == expected


@pytest.mark.parametrize("frequency", range(21))
def test_a_cosine_comes_out_damped_and_in_phase(frequency: int) -> None:
    phase = 0.3
    wave = torch.cos(2 * math.pi * frequency * torch.arange(64).double() / 64 + tensor(phase))
    ours = diffstride(wave, tensor(2.0))
    mask = min(1.0, max(0.0, (21 - frequency) / 4))
    steps = torch.arange(40).double()
    if frequency < 20:
        expected = mask * torch.cos(2 * math.pi * frequency * steps / 40 + tensor(phase))
    else:  # the highest frequency of the output: half is dropped with its sine
        expected = mask / 2 * math.cos(phase) * (-1.0) ** steps
    assert (ours - expected).abs().max() < 1e-12


def test_stride_gradient_in_closed_form() -> None:
    wave = torch.cos(2 * math.pi * 18 * torch.arange(64).double() / 64 + tensor(0.7)).expand(64, 64)
    strides = tensor(2.0, 2.0).requires_grad_()
    diffstride(wave, strides).square().mean().backward()
    assert strides.grad[0].abs() < 1e-12
    # loss = m(18)^2 / 2 with m = (4 + 32/S + 1 - 18)/4, so dm/dS = -2
    assert strides.grad[1].item() == pytest.approx(-1.5, abs=1e-12)


def test_gradient_at_smoothness_one_and_an_integer_stride() -> None:
    strides = tensor(2.0, 2.0).requires_grad_()
    diffstride(torch.randn(2, 32, 32, dtype=torch.float64), strides, 1.0).square().sum().backward()
    assert (strides.grad != 0).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("axes", [1, 2])
def test_first_and_second_derivatives(variant: str, axes: int) -> None:
    torch.manual_seed(1)
    maps = torch.randn(2, *(9, 12)[:axes], dtype=torch.float64, requires_grad=True)
    strides = tensor(1.83, 1.47)[:axes].requires_grad_()

    def function(maps: Tensor, strides: Tensor) -> Tensor:
        return diffstride(maps, strides, 1.3, variant=variant)

    assert torch.autograd.gradcheck(function, (maps, strides))
    assert torch.autograd.gradgradcheck(function, (maps, strides))


def test_transforms_of_functions_and_operations_in_place() -> None:
    torch.manual_seed(0)
    maps, strides = torch.randn(3, 2, 32, 40, dtype=torch.float64), tensor(2.3, 1.7)

    def loss(maps: Tensor, strides: Tensor) -> Tensor:
        return diffstride(maps, strides, 2.0).square().sum()

    def gradient(maps: Tensor) -> Tensor:
        return torch.autograd.grad(loss(maps, given), given)[0]

    given = strides.clone().requires_grad_()
    expected = gradient(maps)
    step = torch.tensor([0.3, -0.2], dtype=torch.float64)
    fixed = functools.partial(resample, sizes=output_size((32, 40), strides.tolist(), 2.0), smoothness=2.0)

    def without_look(strides: Tensor) -> Tensor:
        return fixed(maps, strides, variant="symmetric").square().sum()

    assert torch.allclose(torch.func.grad(without_look)(strides), expected)
    _, along = torch.func.jvp(without_look, (strides,), (step,))
    assert torch.allclose(along, expected @ step)
    each = torch.func.vmap(
        torch.func.grad(lambda strides, maps: fixed(maps, strides, variant="symmetric").square().sum()), (None, 0)
    )(strides, maps)
    assert torch.allclose(each.sum(0), expected)
    rectified = torch.relu_(diffstride(maps, given, 2.0))  # as behind a pooling layer
    assert torch.autograd.grad(rectified.sum(), given)[0].isfinite().all()


def test_a_trial_without_values_leaves_nothing_behind() -> None:
    """As estimates of memory make; the operators that are kept were once those of the trial."""
    with FakeTensorMode():
        assert spectral_pool(torch.empty(2, 22, 26), (10, 12)).shape == (2, 10, 12)
        assert resample_fixed(torch.empty(2, 22, 26), [2.0, 2.0], (18, 20), 3.0, "symmetric").shape == (2, 18, 20)
    assert type(spectral_pool(torch.randn(2, 22, 26), (10, 12))) is Tensor
    assert type(resample_fixed(torch.randn(2, 22, 26), [2.0, 2.0], (18, 20), 3.0, "symmetric")) is Tensor


@pytest.mark.parametrize("n", [7, 16, 21])
def test_stride_one_is_the_identity(n: int) -> None:
    maps = torch.randn(2, n, n + 3, dtype=torch.float64)
    assert (diffstride(maps, tensor(1, 1), 2.0) - maps).abs().max() < 1e-12


def test_the_mean_is_kept() -> None:
    maps = torch.rand(3, 33, 20, dtype=torch.float64)
    ours = diffstride(maps, tensor(2.3, 1.6))
    assert (ours.mean((-1, -2)) - maps.mean((-1, -2))).abs().max() < 1e-12


def test_transposition_and_reflection() -> None:
    maps, strides = torch.randn(30, 21, dtype=torch.float64), tensor(2.3, 1.4)
    ours = diffstride(maps, strides, 3.0)
    assert (diffstride(maps.T, strides.flip(0), 3.0) - ours.T).abs().max() < 1e-12

    def reflect(values: Tensor) -> Tensor:  # about the first point, as the maps are periodic
        return values.flip(-1).roll(1, -1)

    assert (diffstride(reflect(maps), strides, 3.0) - reflect(ours)).abs().max() < 1e-12


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 9), (17, 32), (64, 33)])
def test_products_equal_ffts(size: tuple[int, int]) -> None:
    maps = torch.randn(2, *size, dtype=torch.float64)
    for sizes in (output_size(size, (1.7, 2.6), 2.0), size):
        masks = [torch.rand(n // 2 + 1, dtype=torch.float64) for n in sizes]
        products, ffts = (
            operators.symmetric(
                maps, [operators.fold(mask, n, n_out) for mask, n, n_out in zip(masks, size, sizes, strict=True)], sizes
            ),
            operators.symmetric(maps, masks, sizes),
        )
        assert (products - ffts).abs().max() < 1e-12


def test_a_sharp_mask_is_spectral_pooling() -> None:
    maps = torch.randn(2, 32, 40, dtype=torch.float64)
    ours = diffstride(maps, tensor(2.0, 3.1), 1e-3)
    assert ours.shape[-2:] == (18, 14)  # not 16: the bin at the edge is kept
    assert (ours - spectral_pool(maps, ours.shape[-2:])).abs().max() < 1e-12


def test_spectral_pooling_of_the_same_size_is_the_identity() -> None:
    maps = torch.randn(2, 7, 8)
    assert torch.equal(spectral_pool(maps, (7, 8)), maps)
    assert torch.allclose(spectral_pool(maps, (7, 8), variant="official"), maps, atol=1e-6)


def test_long_signals_take_the_fft() -> None:
    wave = torch.cos(2 * math.pi * 5 * torch.arange(4000) / 4000)
    ours = diffstride(wave, torch.tensor([8.0]))
    assert torch.allclose(ours, torch.cos(2 * math.pi * 5 * torch.arange(508) / 508), atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [*((n, n) for n in range(1, 11)), (3, 9), (13, 29), (1, 6)])
def test_small_and_odd_maps(variant: str, size: tuple[int, int]) -> None:
    maps = torch.randn(2, *size, requires_grad=True)
    strides = torch.tensor([2.5, 1.5], requires_grad=True)
    if variant == "official" and size[-1] == 1:
        with pytest.raises(ValueError, match="size 1"):
            diffstride(maps, strides, variant=variant)
        return
    ours = diffstride(maps, strides, variant=variant)
    ours.square().sum().backward()
    assert tuple(ours.shape[1:]) == output_size(size, (2.5, 1.5), variant=variant)
    assert all(tensor.isfinite().all() for tensor in (ours, maps.grad, strides.grad))
    if size == (1, 1):
        assert torch.equal(ours, maps)


@pytest.mark.parametrize("size", [32, 600])
@pytest.mark.parametrize("variant", VARIANTS)
def test_empty_batch(variant: str, size: int) -> None:
    maps = torch.randn(0, 3, size, size, requires_grad=True)
    strides = torch.tensor([2.0, 2.0], requires_grad=True)
    ours = diffstride(maps, strides, variant=variant)
    ours.sum().backward()
    assert ours.shape == (0, 3, *output_size((size, size), (2.0, 2.0)))
    assert torch.equal(strides.grad, torch.zeros(2))
    assert maps.grad.shape == maps.shape
    assert spectral_pool(maps, (8, 8), variant=variant).shape == (0, 3, 8, 8)


def test_far_too_large_a_stride() -> None:
    strides = torch.tensor([100.0, 100.0], requires_grad=True)
    ours = diffstride(torch.randn(1, 32, 32), strides)
    ours.square().sum().backward()
    assert ours.shape[-2:] == (10, 10)
    assert torch.equal(strides.grad, torch.zeros(2))


def test_below_the_bound_the_gradient_passes() -> None:
    maps = torch.randn(1, 32, 32)
    values, gradients = [], []
    for stride in (0.2, 1.0, minimum_stride(32, 4.0)):
        strides = torch.tensor([stride, stride], requires_grad=True)
        values.append(diffstride(maps, strides))
        values[-1].square().sum().backward()
        gradients.append(strides.grad)
    assert torch.allclose(values[0], values[2], atol=1e-6)
    assert torch.allclose(gradients[0], gradients[1])
    assert (gradients[0] != 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_computes_in_single(dtype: torch.dtype, variant: str) -> None:
    maps = torch.randn(2, 3, 31, 30).to(dtype)
    strides = torch.tensor([2.29, 1.83])
    with torch.autocast("cpu", torch.bfloat16):
        ours = diffstride(maps, strides, variant=variant)
    assert ours.dtype == dtype
    assert torch.equal(ours, diffstride(maps.float(), strides, variant=variant).to(dtype))


def test_penalty() -> None:
    strides = [tensor(2.0, 2.0).requires_grad_() for _ in range(3)]
    penalty = complexity_penalty(strides)
    penalty.backward()
    assert penalty.item() == 0.328125
    assert [each.grad[0].item() for each in strides] == [-0.1640625, -0.0390625, -0.0078125]
    assert complexity_penalty([tensor(2.0)] * 3).item() == 0.328125


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: diffstride(torch.ones(4, 4, dtype=torch.long), torch.ones(2)), TypeError, "int64"),
        (lambda: diffstride(torch.ones(4, 4, dtype=torch.bool), torch.ones(2)), TypeError, "bool"),
        (lambda: spectral_pool(torch.ones(4, 4, dtype=torch.cfloat), (2, 2)), TypeError, "complex64"),
        (lambda: diffstride(torch.ones(4), torch.ones(2)), ValueError, "rank 2 at least, got rank 1"),
        (lambda: diffstride(torch.ones(4, 4, 4, 4), torch.ones(4)), ValueError, "one to three axes"),
        (lambda: diffstride(torch.ones(4, 0), torch.ones(2)), ValueError, "empty axis"),
        (lambda: diffstride(torch.ones(4, 4), torch.ones(2), 0.0), ValueError, "`smoothness`.*SpectralPool2d"),
        (lambda: diffstride(torch.ones(4, 4), torch.ones(2), -1.0), ValueError, "`smoothness`"),
        (lambda: diffstride(torch.ones(4, 4), torch.ones(2), variant="new"), ValueError, "`variant`.*'new'"),
        (lambda: diffstride(torch.ones(4, 4), torch.tensor([2, math.nan])), RuntimeError, "`strides` became nan"),
        (lambda: diffstride(torch.ones(4, 4), torch.tensor([math.inf, 2])), RuntimeError, "`strides` became inf"),
        (lambda: spectral_pool(torch.ones(4, 4), (0, 2)), ValueError, "`output_size`"),
        (lambda: spectral_pool(torch.ones(4, 4), (2, 5)), ValueError, "`output_size`"),
        (lambda: output_size((4, 4), (2.0,)), ValueError, "same length"),
        (lambda: complexity_penalty([]), ValueError, "`strides` is empty"),
    ],
)
def test_mistakes(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
