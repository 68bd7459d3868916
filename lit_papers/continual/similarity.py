"""How alike two representations are: linear CKA (Kornblith et al. 2019), of tensors or of a stream of batches."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_papers.accumulator import Float64Metric


def linear_cka(x: Tensor, y: Tensor, debiased: bool = False) -> Tensor:
    r"""Linear centred kernel alignment.

    .. math:: \|Y_c^\top X_c\|_F^2 \,/\, (\|X_c^\top X_c\|_F \|Y_c^\top Y_c\|_F)

    1 for representations that are equal up to rotation and scale. With fewer samples than dimensions it is biased
    upwards: two independent Gaussian samples of 50 x 2000 give 0.975. ``debiased`` takes the unbiased estimator of
    HSIC (Song et al. 2012), which gives 0 there, up to noise of either sign.

    Args:
        x: features ``(N, Dx)``; further dimensions are flattened.
        y: features of the same samples, ``(N, Dy)``.
        debiased: take the unbiased estimator; needs at least 4 samples.

    Returns:
        Scalar float64 tensor, in [0, 1]; debiased, at most 1. NaN where a representation is constant.

    Raises:
        ValueError: the numbers of samples differ, or there are too few.

    >>> linear_cka(torch.eye(4), 3 * torch.eye(4).flip(0))
    tensor(1., dtype=torch.float64)
    """
    if len(x) != len(y):
        raise ValueError(f"`x` has {len(x)} samples, but `y` has {len(y)}")
    least = 4 if debiased else 2
    if len(x) < least:
        raise ValueError(f"CKA needs at least {least} samples, got {len(x)}")
    x, y = _centered(x), _centered(y)
    if debiased:
        gram_x, gram_y = x @ x.T, y @ y.T
        return _unbiased(gram_x, gram_y) / (_unbiased(gram_x, gram_x) * _unbiased(gram_y, gram_y)).sqrt()
    if x.shape[1] + y.shape[1] > len(x):  # the cheaper of two equal forms
        gram_x, gram_y = x @ x.T, y @ y.T
        return _aligned(gram_x, gram_y, (gram_x * gram_y).sum())
    return _aligned(x.T @ x, y.T @ y, (y.T @ x).square().sum())


def debiased_cka(grams: Tensor) -> Tensor:
    """Debiased linear CKA of every pair of representations, from their Gram matrices.

    Args:
        grams: :math:`X X^T` of the same N >= 4 samples for each of L representations, ``(L, N, N)``; centred or not.

    Returns:
        float64 ``(L, L)``, equal to `linear_cka` with ``debiased=True``.

    Raises:
        ValueError: there are fewer than 4 samples.

    >>> x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    >>> bool((debiased_cka((x @ x.T).expand(2, 9, 9))[0, 1] - 1).abs() < 1e-12)
    True
    """
    grams = grams.double()
    n = grams.shape[-1]
    if n < 4:
        raise ValueError(f"CKA needs at least 4 samples, got {n}")
    # zero means beside the diagonal, which make the unbiased HSIC a plain product (Szekely & Rizzo 2014, eq. 3.1)
    grams = grams - torch.diag_embed(grams.diagonal(dim1=1, dim2=2))
    rows = grams.sum(dim=2, keepdim=True) / (n - 2)
    whole = grams.sum(dim=(1, 2), keepdim=True) / ((n - 1) * (n - 2))
    centred = grams - rows - rows.transpose(1, 2) + whole
    centred = (centred - torch.diag_embed(centred.diagonal(dim1=1, dim2=2))).flatten(1)
    products = centred @ centred.T
    lengths = products.diagonal().sqrt()
    return products / torch.outer(lengths, lengths)


def _aligned(x: Tensor, y: Tensor, shared: Tensor) -> Tensor:
    similarity: Tensor = shared / (torch.linalg.matrix_norm(x) * torch.linalg.matrix_norm(y))
    return similarity


def _centered(x: Tensor) -> Tensor:
    x = x.flatten(1).double()
    return x - x.mean(dim=0)


def _unbiased(k: Tensor, m: Tensor) -> Tensor:
    """Unbiased HSIC of two Gram matrices (Song et al. 2012, eq. 5)."""
    n = len(k)
    k, m = k - k.diagonal().diag(), m - m.diagonal().diag()
    trace = (k * m).sum()  # both are symmetric
    sums = k.sum() * m.sum() / ((n - 1) * (n - 2))
    cross = 2 * (k.sum(0) * m.sum(0)).sum() / (n - 2)
    return (trace + sums - cross) / (n * (n - 3))


class CKA(Float64Metric):
    """Linear CKA over batches and processes, equal to `linear_cka` of all samples together.

    It keeps sums of products in float64, ``(Dx + Dy)^2`` numbers, and no samples.

    >>> cka = CKA()
    >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    >>> cka.update(x[:50], -x[:50]); cka.update(x[50:], -x[50:])
    >>> round(cka.compute().item(), 6)
    1.0
    """

    n: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    yy: Tensor
    xy: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("n", "x", "y", "xx", "yy", "xy"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: Tensor, y: Tensor) -> None:
        """Take in features of the same samples, ``(N, Dx)`` and ``(N, Dy)``.

        Raises:
            ValueError: the numbers of samples differ.
        """
        if len(x) != len(y):
            raise ValueError(f"`x` has {len(x)} samples, but `y` has {len(y)}")
        self.writable()
        x, y = x.flatten(1).double(), y.flatten(1).double()
        for name, term in (
            ("n", torch.tensor(len(x), dtype=torch.float64, device=x.device)),
            ("x", x.sum(0)), ("y", y.sum(0)), ("xx", x.T @ x), ("yy", y.T @ y), ("xy", x.T @ y),
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + term)

    def compute(self) -> Tensor:
        """Scalar float64 tensor, in [0, 1]."""
        x, y, n = self.x, self.y, self.n
        xx, yy, xy = (
            products - torch.outer(a, b) / n for products, a, b in ((self.xx, x, x), (self.yy, y, y), (self.xy, x, y))
        )
        return _aligned(xx, yy, xy.square().sum())


def layer_features(model: nn.Module, inputs: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of named submodules in one forward pass, in evaluation mode and without gradients.

    Args:
        model: is called with ``inputs``; every submodule's mode is what it was afterwards.
        inputs: of the model.
        layers: names as in ``model.named_modules()``.

    Returns:
        What each layer returned (the last time, if it ran several times), by name, as it was then: later layers may
        change it in place. Of a tuple, a mapping or a model output, the first tensor of floats.

    Raises:
        ValueError: there is no such submodule, or it did not run.
        TypeError: a layer returned no tensor of floats.

    >>> features = layer_features(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(4, 2), ["0"])
    >>> features["0"].shape
    torch.Size([4, 3])
    """
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules:
            raise ValueError(f"the model has no submodule {name!r}; it has {', '.join(filter(None, modules))}")
    found: dict[str, Tensor] = {}
    modes = [(module, module.training) for module in model.modules()]

    def keep(name: str) -> Any:
        return lambda module, arguments, output: found.__setitem__(name, _tensor_of(output, name).detach().clone())

    hooks = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        with torch.no_grad():
            model.eval()(inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    silent = [name for name in layers if name not in found]
    if silent:
        raise ValueError(f"{', '.join(silent)} did not run in the forward pass")
    return {name: found[name] for name in layers}


def _tensor_of(output: Any, name: str) -> Tensor:
    """The first tensor of floats in what a layer returned, whatever it is wrapped in."""
    waiting = [output]
    while waiting:
        thing = waiting.pop(0)
        if isinstance(thing, Tensor):
            if thing.is_floating_point():
                return thing
        elif isinstance(thing, Mapping):  # also the outputs of transformers
            waiting = [*thing.values(), *waiting]
        elif isinstance(thing, tuple | list):
            waiting = [*thing, *waiting]
        elif is_dataclass(thing):
            waiting = [*(getattr(thing, field.name) for field in fields(thing)), *waiting]
    raise TypeError(f"the layer {name} returned {type(output).__name__} without a tensor of floats")


def layer_similarity(
    first: nn.Module, second: nn.Module, inputs: Tensor, layers: Sequence[str], debiased: bool = False
) -> Tensor:
    """Linear CKA of each layer of a network with each of another, on the same inputs.

    The diagonal says how alike two networks are that were trained independently (Madaan et al., section 5.3).

    Args:
        first: a network.
        second: another, with the same names of submodules.
        inputs: of both.
        layers: names as in ``first.named_modules()``.
        debiased: as in `linear_cka`.

    Returns:
        float64 ``(L, L)``: layers of the first network in rows, of the second in columns.

    Raises:
        ValueError: there is no such submodule, or there are too few inputs.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> similarity = layer_similarity(net, net, torch.randn(9, 2), ["0", "1"])
    >>> similarity.shape, round(similarity[0, 0].item(), 6)
    (torch.Size([2, 2]), 1.0)
    """
    rows, columns = (list(layer_features(net, inputs, layers).values()) for net in (first, second))
    return torch.stack([torch.stack([linear_cka(x, y, debiased) for y in columns]) for x in rows])
