"""What a forward pass costs, counted while it runs."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula
from torch.utils.hooks import RemovableHandle

from lit_papers.diffstride.resampling import Resampling

# what reads (time, samples, channels) unless it says batch_first
_SEQUENCES = (
    nn.RNNBase, nn.MultiheadAttention, nn.Transformer, nn.TransformerEncoder, nn.TransformerEncoderLayer,
    nn.TransformerDecoder, nn.TransformerDecoderLayer,
)  # fmt: skip
_TWICE = 2  # `torch.utils.flop_counter` counts a multiplication and an addition as two


class _NoTracker:
    """In the place of the counter's own tracker of modules, whose hooks on tensors `torch.autograd.grad` refuses."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


@dataclass
class _Call:
    """A module that is running: the count when it began, and what the modules inside it took of it."""

    name: str
    begin: int
    inside: int
    samples: int


class CostCounter:
    """Counts multiply-adds and map sizes of the forward passes inside a ``with`` block.

    `torch.utils.flop_counter` counts what reaches the tensor library: convolutions, transposed ones, matrix products,
    attention, recurrence, whoever calls them; elementwise work, norms and FFTs are free. Here it is divided by the
    samples, scoped by module, and the resampling layers' own products stand apart. A sample is a row of the input of
    the outermost module that is called, so clips that a network folds into the batch are paid for. While it is
    counted a compiled module runs its own Python code, and attention not the fused kernel of inference.

    Args:
        module: to watch, with everything inside it.

    Attributes:
        macs: multiply-adds for each sample, summed over all calls, without the resampling.
        resampling_macs: likewise of the products inside DiffStride and spectral pooling layers, with each sample's
            part in making the operator of learned strides, which is made once a batch.
        layers: multiply-adds for each sample by qualified name of the innermost module that ran them.
        map_sizes: output size ``(h, w)`` or ``(length,)`` of each DiffStride and spectral pooling layer, by qualified
            name, of its last call.
        input_sizes: likewise of their inputs.

    >>> with CostCounter(nn.Linear(3, 5)) as cost:
    ...     _ = cost.module(torch.zeros(7, 3))
    >>> cost.macs
    15
    """

    def __init__(self, module: nn.Module) -> None:
        self.module: nn.Module = getattr(module, "_orig_mod", module)
        self.layers: dict[str, int] = {}
        self.map_sizes: dict[str, tuple[int, ...]] = {}
        self.input_sizes: dict[str, tuple[int, ...]] = {}
        self._resampling: set[str] = set()
        self._handles: list[RemovableHandle] = []
        self._calls: list[_Call] = []
        self._flops = FlopCounterMode(display=False)
        self._flops.mod_tracker = _NoTracker()  # type: ignore[assignment]
        self._fused = True

    @property
    def macs(self) -> int:
        """Multiply-adds for each sample of the network itself."""
        return sum(count for name, count in self.layers.items() if name not in self._resampling)

    @property
    def resampling_macs(self) -> int:
        """Multiply-adds for each sample of the resampling layers."""
        return sum(count for name, count in self.layers.items() if name in self._resampling)

    @property
    def total(self) -> float:
        """Multiply-adds for each sample up to now, the call that is running included; unrounded."""
        finished = sum(self.layers.values())
        if not self._calls:
            return finished
        pending = self._flops.get_total_flops() - self._calls[0].begin
        return finished + pending / _TWICE / self._calls[0].samples

    def table(self) -> str:
        """A Markdown table of the layers that cost something, with their share of the whole, in the order of running.

        >>> with CostCounter(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))) as cost:
        ...     _ = cost.module(torch.zeros(7, 3))
        >>> print(cost.table())
        | layer | multiply-adds of a sample | share |
        |---|---|---|
        | 0 | 15 | 60.0 % |
        | 2 | 10 | 40.0 % |
        """
        whole = max(self.macs + self.resampling_macs, 1)
        rows = [
            f"| {name or '(the network itself)'} | {count} | {100 * count / whole:.1f} % |"
            for name, count in self.layers.items()
            if count
        ]
        return "\n".join(["| layer | multiply-adds of a sample | share |", "|---|---|---|", *rows])

    def __enter__(self) -> "CostCounter":
        for path, child in self.module.named_modules():
            name = path.replace("_orig_mod.", "")
            if isinstance(child, Resampling):
                self._resampling.add(name)
                self._handles.append(child.register_forward_hook(self._measure(name, child.axes)))
            # the caller's own hooks belong to the layer: ours are the first and the last
            self._handles.append(child.register_forward_pre_hook(self._begin(name), prepend=True, with_kwargs=True))
            self._handles.append(child.register_forward_hook(self._end, always_call=True))
        # the fused kernel of inference takes nested tensors where there is a padding mask, which have no shape to count
        self._fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        self._flops.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handles:
            self._flops.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
            torch.backends.mha.set_fastpath_enabled(self._fused)
        while self._handles:
            self._handles.pop().remove()
        self._calls.clear()

    def _begin(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            samples = self._calls[0].samples if self._calls else _samples(module, (*inputs, *options.values()))
            self._calls.append(_Call(name, self._flops.get_total_flops(), 0, samples))

        return hook

    def _end(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not self._calls:
            return  # it began before we watched
        call = self._calls.pop()
        flops = self._flops.get_total_flops() - call.begin
        if self._calls:
            self._calls[-1].inside += flops
        own = round((flops - call.inside) / _TWICE / call.samples)
        self.layers[call.name] = self.layers.get(call.name, 0) + own

    def _measure(self, name: str, axes: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.map_sizes[name] = tuple(output.shape[-axes:])
            self.input_sizes[name] = tuple(inputs[0].shape[-axes:])

        return hook


def _samples(module: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Samples in the first tensor that a module gets; one for a layer that is called without a batch."""
    while isinstance(module, nn.Sequential) and len(module):
        module = module[0]
    for tensor in _tensors(inputs):
        if tensor.ndim == 0:
            continue  # a temperature, or a step
        if isinstance(module, _SEQUENCES):
            first = next(part.batch_first for part in module.modules() if hasattr(part, "batch_first"))
            return 1 if tensor.ndim == 2 else max(tensor.shape[0 if first else 1], 1)
        axes = len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else None
        axes = 0 if isinstance(module, nn.Linear) else axes
        return 1 if axes is not None and tensor.ndim == axes + 1 else max(len(tensor), 1)
    return 1


def _tensors(inputs: Any) -> Iterator[Tensor]:
    if isinstance(inputs, Tensor):
        yield inputs
    elif isinstance(inputs, (tuple, list)):
        for each in inputs:
            yield from _tensors(each)
    elif isinstance(inputs, dict):
        yield from _tensors(list(inputs.values()))


def _scaled_dot_product(query: Any, key: Any, value: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    *batch, rows, width = query
    flops: int = _TWICE * math.prod(batch) * rows * key[-2] * (width + value[-1])
    return flops


def _lstm_layer(sequence: Any, of_input: Any, of_state: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    return _recurrence(sequence, [of_input, of_state])


def _recurrence(sequence: Any, weights: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    matrices = sum(math.prod(shape) for shape in weights if len(shape) > 1)
    flops: int = _TWICE * math.prod(sequence[:-1]) * matrices  # at each step of each sample
    return flops


def _bilinear(first: Any, weight: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    flops: int = _TWICE * math.prod(first[:-1]) * math.prod(weight)
    return flops


# Kernels that are not in torch's table, so that what they compute would cost nothing: attention and LSTMs of CPUs,
# recurrent layers of GPUs, and nn.Bilinear.
for _name, _formula in (
    ("_scaled_dot_product_flash_attention_for_cpu", _scaled_dot_product),
    ("mkldnn_rnn_layer", _lstm_layer),
    ("_cudnn_rnn", _recurrence),
    ("_trilinear", _bilinear),
):
    _kernel = getattr(torch.ops.aten, _name, None)  # a torch without it does not run it
    if _kernel is not None and _kernel not in flop_registry:
        register_flop_formula(_kernel)(_formula)
