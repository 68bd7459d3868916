"""Random streams and counters that a measurement moves on, and must give back as they were."""

import copy
import functools
import itertools
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

_MOST_OBJECTS = 5_000  # looked at in search of streams: a dataset may hold a list of a million samples
_MOST_ITEMS = 100  # of one container
_STREAMS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
_NUMBERS = (bool, int, float)
_CONTAINERS = (list, dict, OrderedDict, set, deque)
_MOST_KEPT = 100_000  # items of a container, or elements of a tensor, that a measurement might change
_ITERATORS = (itertools.cycle, itertools.count)  # which can be copied
# their own state is none of ours, and a loader that trains must not be set back
_LIBRARIES = ("torch", "lightning", "numpy", "builtins", "collections", "multiprocessing", "threading", "queue", "abc")


class Counters:
    """The numbers and what containers and tensors hold, among the attributes of a data set, transform or sampler.

    Some choose by them what comes next: the position in a stream, the number of the epoch, the seed of the next image,
    what is cached of augmented images, a buffer for replay, weights that grow with each draw.

    Args:
        values: attributes of an object, or a dict.
    """

    def __init__(self, values: dict[Any, Any]) -> None:
        self._values = values
        self._before = {
            key: copy.copy(value) for key, value in values.items() if type(value) in (*_NUMBERS, *_ITERATORS)
        }
        self._streams = {key for key, value in values.items() if isinstance(value, _STREAMS)}
        self._empty = {key for key, value in values.items() if value is None}
        self._contents = [restore for restore in map(_contents_kept, values.values()) if restore is not None]

    def restore(self) -> None:
        """Put back what is there; a stream that was made meanwhile is made anew when it is needed."""
        for restore in self._contents:
            restore()
        for key, value in self._before.items():
            if key in self._values:
                self._values[key] = value
        for key, value in list(self._values.items()):
            if isinstance(value, _STREAMS) and key in self._empty:
                self._values[key] = None
            elif isinstance(value, _STREAMS) and key not in self._streams:
                del self._values[key]


def _contents_kept(value: Any) -> Callable[[], None] | None:
    """A function that puts back what a container or a tensor holds; None for other things and long ones."""
    if type(value) in _CONTAINERS:
        if len(value) > _MOST_KEPT:
            return None
        items = copy.copy(value)

        def refill() -> None:
            if _holds(value, items):  # whoever iterates over it at this moment, goes on
                return
            value.clear()
            value.extend(items) if isinstance(value, (list, deque)) else value.update(items)

        return refill
    if type(value) is Tensor and value.numel() <= _MOST_KEPT and not (value.requires_grad or value.is_inference()):
        before = value.clone()

        def set_back() -> None:
            if not torch.equal(value, before):
                value.copy_(before)

        return set_back
    if type(value) is np.ndarray and value.size <= _MOST_KEPT and value.flags.writeable:
        return functools.partial(np.copyto, value, value.copy())
    return None


def _holds(value: Any, items: Any) -> bool:
    """Whether a container has these very items."""
    if isinstance(value, set):
        return bool(value == items)
    if len(value) != len(items):
        return False
    if isinstance(value, dict):
        pairs = zip(value.items(), items.items(), strict=True)
        return all(key is old and each is before for (key, each), (old, before) in pairs)
    return all(each is before for each, before in zip(value, items, strict=True))


@contextmanager
def streams_kept(streams: Iterable[Any] = (), seed: int = 0) -> Iterator[None]:
    """Draw at will inside: from ``seed`` on, and afterwards every stream goes on as if nothing had been drawn.

    Args:
        streams: to be kept beside those of Python, NumPy, torch and CUDA, as `streams_in` finds them; and counters.
        seed: of the global streams inside, so that a measurement is the same every time.

    >>> generator = np.random.default_rng(0)
    >>> with streams_kept(streams_in([{"augmentation": generator}])):
    ...     _ = generator.normal()
    >>> bool(generator.normal() == np.random.default_rng(0).normal())
    True
    """
    restores = [_restore(stream) for stream in streams]
    failure: BaseException | None = None
    with isolate_rng():
        try:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  # the stream that strangers' augmentations draw from
            torch.manual_seed(seed)
            yield
        except BaseException as error:
            failure = error  # raised below: isolate_rng restores nothing when an exception passes through it
        finally:
            for restore in restores:
                restore()
    if failure is not None:
        raise failure


def streams_in(roots: Iterable[Any]) -> list[Any]:
    """The random streams and counters that can be reached from datasets, samplers or whatever else draws, each once.

    Followed are attributes, containers, closures and partials, the methods of a stranger's classes and the streams
    among the globals that they name; found are ``numpy.random.Generator`` and ``RandomState``, ``random.Random`` and
    ``torch.Generator``, and `Counters`. What lies behind a C extension, and a generator that runs, cannot be kept.
    """
    found: dict[int, Any] = {}
    seen: set[int] = set()
    queue = deque(roots)
    while queue and len(seen) < _MOST_OBJECTS:
        value = queue.popleft()
        if id(value) in seen or value is None or isinstance(value, (str, bytes, int, float, Tensor, np.ndarray, type)):
            continue
        seen.add(id(value))
        if isinstance(value, _STREAMS):
            found[id(value)] = value
        else:
            queue += _inside(value)
            numbers = value if isinstance(value, dict) else getattr(value, "__dict__", None)
            kept = len(value) <= _MOST_ITEMS if isinstance(value, dict) else _is_strange(type(value))
            if isinstance(numbers, dict) and kept:
                found[id(value)] = Counters(numbers)
    return list(found.values())


def _is_strange(kind: type) -> bool:
    return kind.__module__.partition(".")[0] not in _LIBRARIES


def _inside(value: Any) -> list[Any]:
    if isinstance(value, types.ModuleType):
        return []
    if isinstance(value, Mapping):
        return [item for _, item in zip(range(_MOST_ITEMS), value.values(), strict=False)]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [item for _, item in zip(range(_MOST_ITEMS), value, strict=False)]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
        named = [value.__globals__.get(name) for name in value.__code__.co_names]
        known = [
            each
            for each in named
            if isinstance(each, _STREAMS)
            or (isinstance(each, types.FunctionType) and each.__module__ == value.__module__)
        ]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *known]
    own = [each for kind in type(value).__mro__ if _is_strange(kind) for each in vars(kind).values()]
    methods = [each for each in own if isinstance(each, (types.FunctionType, *_STREAMS))]
    slots = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ()) if isinstance(name, str)]
    return [*getattr(value, "__dict__", {}).values(), *slots, *methods]


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # an empty cell
        return False


def _restore(stream: Any) -> Callable[[], None]:
    """A function that brings a stream back to where it is now."""
    if isinstance(stream, Counters):
        return stream.restore
    if isinstance(stream, np.random.Generator):
        state: Any = stream.bit_generator.state
        return lambda: setattr(stream.bit_generator, "state", state)
    if isinstance(stream, np.random.RandomState):
        state = stream.get_state()
        return functools.partial(stream.set_state, state)
    if isinstance(stream, random.Random):
        state = stream.getstate()
        return functools.partial(stream.setstate, state)
    state = stream.get_state().clone()
    return functools.partial(stream.set_state, state)
