"""What a graph that is compiled as a whole has to know about strides: it cannot look at them, but it can check."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_papers.diffstride.functional import output_size


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def in_one_graph() -> bool:
    """Whether the graph that is being traced must not break."""
    from torch._dynamo.symbolic_convert import InstructionTranslator  # heavy, and loaded by then

    try:
        return bool(InstructionTranslator.current_tx().one_graph)
    except AttributeError:  # another torch, or no graph: to look at the strides is always right
        return False


@torch.library.custom_op("lit_papers::at_sizes", mutates_args=())
def at_sizes(strides: Tensor, size: Sequence[int], sizes: Sequence[int], smoothness: float, variant: str) -> Tensor:
    """A copy of the strides, if they still give the size that is built into the graph around this."""
    found = output_size(size, strides.tolist(), smoothness, variant)
    if found != tuple(sizes):
        raise RuntimeError(
            f"a graph was compiled as a whole for maps of {tuple(sizes)} behind a DiffStride layer, but its strides "
            f"now give {found}: call `project_` (or forward eagerly once) after changing them, compile without "
            "`fullgraph=True`, or `freeze` them"
        )
    return strides.clone()


@at_sizes.register_fake
def _(strides: Tensor, size: Sequence[int], sizes: Sequence[int], smoothness: float, variant: str) -> Tensor:
    return torch.empty_like(strides)


at_sizes.register_autograd(lambda context, gradient: (gradient, None, None, None, None))
