"""How a stranger's graph network is called: one place for modules, callbacks and functions."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lit_papers.expressiveness.graph_batch import refuse_other_forms

Readout = Literal["sum", "mean"]
Level = Literal["graph", "vertex", "edge"]
_ALL = ("edge_index", "pos")  # a forward that has one of these takes the parts of a graph, others take the batch


@dataclass(frozen=True)
class GraphCall:
    """Calls a model on a PyG ``Batch`` and returns a row for each graph, node or edge.

    A forward with ``edge_index`` or ``pos`` gets, by name, what it asks for and the batch has: ``x``, ``edge_attr``,
    ``z``, and as ``batch`` the graph of each node. Any other gets the batch.

    Args:
        call: a function (model, batch) to the output, or to (output, targets), instead.
        readout: over the nodes of each graph, ``sum`` or ``mean``, for models with an output for each node.
        level: what the output has a row for; ``graph`` unless told otherwise.

    Raises:
        ValueError: an argument is none of these, or contradicts another.
    """

    call: Callable[[nn.Module, Any], Any] | None = None
    readout: Readout | None = None
    level: Level = "graph"

    def __post_init__(self) -> None:
        if self.readout not in (None, "sum", "mean"):
            raise ValueError(f"readout must be 'sum', 'mean' or None; got {self.readout!r}.")
        if self.level not in ("graph", "vertex", "edge"):
            raise ValueError(f"level must be 'graph', 'vertex' or 'edge'; got {self.level!r}.")
        if self.readout is not None and self.level != "graph":
            raise ValueError(f"readout is for level='graph'; got readout={self.readout!r} at level={self.level!r}.")

    def reads(self, model: nn.Module, batch: Any) -> frozenset[str] | None:
        """Try the call once, and return the names of what the model reads of a batch; None for the whole of it.

        Raises:
            ValueError: it fails; says how, and what to do.
        """
        noted: set[str | None] = set()
        refuse_other_forms(batch)
        try:
            with torch.no_grad():
                self._rows(model, _noting(batch, noted))
        except ValueError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else ""
            raise ValueError(
                f"the model cannot be called on these graphs ({type(error).__name__}: {reason}). Give graphs that have "
                "what it reads (x of its width, edge_attr, pos), or call=, a function (model, batch) to its output."
            ) from error
        return None if None in noted else frozenset(batch.keys()) & noted - {"batch", "ptr", "num_nodes"}

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """Rows of the output, (B, d), (N, d) or (E, d).

        Raises:
            ValueError: the output has another shape, or the model needs what the batch does not have.
        """
        refuse_other_forms(batch)
        return self._rows(model, batch)

    def _rows(self, model: nn.Module, batch: Any) -> Tensor:
        if self.call is not None:
            output = self.call(model, batch)
            output = output[0] if isinstance(output, tuple) else output
        elif _by_name(model):
            output = model(**_arguments(model, batch))
        else:
            output = model(batch)
        nodes = self.readout is not None or self.level == "vertex"
        wanted = batch.num_nodes if nodes else batch.num_edges if self.level == "edge" else batch.num_graphs
        if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != wanted:
            shape = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise ValueError(
                f"the model's output is {shape}; with readout={self.readout!r} and level={self.level!r} it must be "
                f"({wanted}, d). A model with an output for each node needs readout='sum' or 'mean'; for any other, "
                "pass call=, a function (model, batch) to that."
            )
        output = output.reshape(wanted, -1)
        if self.readout is None:
            return output
        total = output.new_zeros(batch.num_graphs, output.shape[1]).index_add(0, batch.batch, output)
        if self.readout == "mean":
            total = total / torch.bincount(batch.batch, minlength=batch.num_graphs).clamp_min(1)[:, None]
        return total


def _noting(batch: Any, noted: set[str | None]) -> Any:
    """A copy of a batch that notes the names of what is read of it, and None where all is taken at once."""
    kind = type(batch)

    class Noting(kind):  # type: ignore[misc, valid-type]
        def __getattribute__(self, key: str) -> Any:
            noted.add(None if key in ("to_dict", "to_namedtuple", "to_data_list", "get_example", "stores") else key)
            return super().__getattribute__(key)

        def __getitem__(self, key: Any) -> Any:
            noted.add(key if isinstance(key, str) else None)  # a graph of the batch
            return super().__getitem__(key)

        def __iter__(self) -> Any:
            noted.add(None)
            return super().__iter__()

    watched = copy.copy(batch)
    object.__setattr__(watched, "__class__", Noting)  # a plain assignment would become an attribute of the graph
    return watched


def _by_name(model: nn.Module) -> bool:
    return any(name in inspect.signature(model.forward).parameters for name in _ALL)


def _arguments(model: nn.Module, batch: Any) -> dict[str, Any]:
    """What a forward asks for by name, of what a batch has."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name == "batch_size":
            continue
        value = getattr(batch, name, None)
        if value is not None:
            found[name] = value
        elif parameter.default is parameter.empty:
            raise ValueError(
                f"the model's forward needs {name!r}, which the graphs do not have; add it to them, or pass call=."
            )
    return found
