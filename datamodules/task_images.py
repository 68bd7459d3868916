"""Images that stay where they are until a batch wants them: in a data set of any kind, in memory or not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from lit_papers.datamodules.images import LabelledImages

Unpack = Callable[[Any], tuple[Any, Any]]

_IMAGE_KEYS = ("image", "img", "images", "pixel_values", "x")
_LABEL_KEYS = ("label", "labels", "target", "fine_label", "y")
_PROBED = 16  # samples that are read before training, spread over the data set


class ImageSource(Protocol):
    """Images by number, with labels that are known without reading a single one."""

    labels: Tensor
    """int64, ``(N,)``."""
    in_memory: bool
    """Whether `fetch` only indexes; otherwise it may decode, and draw random numbers."""

    def fetch(self, rows: Tensor) -> Tensor:
        """Images ``(len(rows), C, H, W)``: uint8, or float32 in [0, 1]."""


def image_source(data: Any, unpack: Unpack | None = None) -> ImageSource:
    """The source that suits a data set.

    Args:
        data: one of our image sets, a ``TensorDataset``, or any map-style data set of samples.
        unpack: from a sample to image and label; None takes pairs, and mappings with usual keys.

    Raises:
        TypeError: samples are not images with labels.
        ValueError: it is empty, or images are not uint8, uint16 or in [0, 1].
    """
    if isinstance(data, LabelledImages):
        return StoredImages(data)
    if not len(data):
        raise ValueError("a data set of the stream is empty")
    if type(data) is TensorDataset and unpack is None:
        return TensorImages(data)
    return Samples(data, unpack)


class StoredImages:
    """One of our own image sets."""

    def __init__(self, data: LabelledImages) -> None:
        self._data = data
        self.labels = data.targets
        self.in_memory = hasattr(data, "images")

    def fetch(self, rows: Tensor) -> Tensor:
        """uint8 ``(n, C, H, W)``; levels that are not bytes become bytes."""
        stored = self._data.fetch(rows.tolist())
        if self._data.white != 255:
            stored = (stored.float() * (255 / self._data.white)).round().to(torch.uint8)
        return stored


class TensorImages:
    """A ``TensorDataset`` of images and labels, checked as a whole."""

    in_memory = True

    def __init__(self, data: TensorDataset) -> None:
        images, labels = data.tensors[:2]
        if images.dim() != 4:
            raise TypeError(f"images must be tensors (N, C, H, W), got {tuple(images.shape)}")
        if labels.dim() != 1 or (labels.is_floating_point() and not torch.equal(labels, labels.trunc())):
            raise TypeError(f"labels must be whole numbers (N,), got {labels.dtype} {tuple(labels.shape)}")
        self.labels = labels.long()
        self._images = images
        pixels(images[0])  # shape and type
        if images.is_floating_point():
            _check_range(images)

    def fetch(self, rows: Tensor) -> Tensor:
        """uint8 or float32 ``(n, C, H, W)``."""
        return _levels(self._images[rows])


class Samples:
    """Any map-style data set: a sample is read when a batch wants it, by whichever process loads the batch.

    Labels are taken from ``targets``, ``labels`` or a column where there is one that agrees with some of the samples;
    otherwise all samples are read once, and their images forgotten.
    """

    in_memory = False

    def __init__(self, data: Any, unpack: Unpack | None = None) -> None:
        self._data = data
        self._unpack = unpack or unpack_sample
        self.labels = self._find_labels()

    def fetch(self, rows: Tensor) -> Tensor:
        """uint8 or float32 ``(n, C, H, W)``.

        Raises:
            ValueError: images differ in shape, or a sample has another label than it had.
        """
        numbers = rows.tolist()
        several = getattr(self._data, "__getitems__", None)
        found = several(numbers) if several else [self._data[number] for number in numbers]
        images = []
        for number, sample in zip(numbers, found, strict=True):
            image, label = self._unpack(sample)
            now, before = label_number(label), int(self.labels[number])
            if now != before:
                raise ValueError(
                    f"sample {number} has the label {now}, but its data set said {before} before: labels must not "
                    "change"
                )
            images.append(pixels(image))
        shapes = sorted({tuple(image.shape) for image in images})
        if len(shapes) > 1:
            raise ValueError(f"images of a batch must be of one shape, got {' and '.join(map(str, shapes))}")
        return torch.stack(images)

    def _find_labels(self) -> Tensor:
        count = len(self._data)
        probed = torch.unique(torch.linspace(0, count - 1, min(_PROBED, count)).round().long())
        told = known_labels(self._data)
        pairs = [self._unpack(self._data[int(number)]) for number in probed]
        for image, _ in pairs:
            pixels(image)
        found = [label_number(label) for _, label in pairs]
        if told is not None and torch.equal(told[probed], torch.tensor(found)):
            return told
        return torch.tensor([label_number(self._unpack(self._data[number])[1]) for number in range(count)])


class Varied:
    """A source under a transform of one task: rotated, permuted, or otherwise a domain of its own."""

    def __init__(self, source: ImageSource, transform: Callable[[Tensor, int], Tensor], task: int) -> None:
        self.labels = source.labels
        self.in_memory = source.in_memory
        self._source, self._transform, self._task = source, transform, task

    def fetch(self, rows: Tensor) -> Tensor:
        """Transformed images ``(n, C, H, W)``.

        Raises:
            ValueError: floats that the transform made are not in [0, 1].
        """
        images = self._transform(self._source.fetch(rows), self._task)
        if images.is_floating_point():
            _check_range(images)
        return images


class Shifted:
    """A source whose labels come after those of others."""

    def __init__(self, source: ImageSource, by: int) -> None:
        self.labels = source.labels + by
        self.in_memory = source.in_memory
        self.fetch = source.fetch


class Pool:
    """Several sources, one after the other, as one."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self._sources = list(sources)
        self.labels = torch.cat([source.labels for source in sources])
        self.in_memory = all(source.in_memory for source in sources)
        self.ends = torch.tensor([len(source.labels) for source in sources]).cumsum(0)

    def fetch(self, rows: Tensor) -> Tensor:
        """Images ``(n, C, H, W)``, in the order of the rows."""
        which = torch.searchsorted(self.ends, rows, right=True)
        starts = torch.cat([self.ends.new_zeros(1), self.ends[:-1]])
        present = torch.unique(which).tolist()
        if len(present) == 1:
            only: int = present[0]
            return self._sources[only].fetch(rows - starts[only])
        order, parts = [], []
        for number in present:
            mine = (which == number).nonzero().flatten()
            order.append(mine)
            parts.append(self._sources[number].fetch(rows[mine] - starts[number]))
        return torch.cat(parts)[torch.cat(order).argsort()]


def unpack_sample(sample: Any) -> tuple[Any, Any]:
    """Image and label of a sample: a pair, or a mapping with a usual key for each.

    Raises:
        TypeError: it is neither.

    >>> unpack_sample({"img": "pixels", "fine_label": 3, "coarse_label": 1})
    ('pixels', 3)
    """
    if isinstance(sample, Mapping):
        images = [key for key in _IMAGE_KEYS if key in sample]
        labels = [key for key in _LABEL_KEYS if key in sample]
        if len(images) == len(labels) == 1:
            return sample[images[0]], sample[labels[0]]
        found = f"a mapping with the keys {list(sample)}"
    elif isinstance(sample, Sequence) and len(sample) >= 2 and not isinstance(sample, str):
        return sample[0], sample[1]
    else:
        found = type(sample).__name__
    raise TypeError(f"cannot tell image and label in a sample that is {found}: pass `unpack`, a function to both")


def label_number(label: Any) -> int:
    """The label of a sample.

    Raises:
        TypeError: it is no whole number.

    >>> label_number(torch.tensor([3])), label_number(2.0)
    (3, 2)
    """
    try:
        number = int(label)
        is_whole = isinstance(label, str) or bool(number == label)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        is_whole = False
    if not is_whole:
        raise TypeError(f"the label of a sample must be a whole number, got {label!r}: pass `unpack` to make it one")
    return number


def known_labels(data: Any) -> Tensor | None:
    """All labels of a data set without reading its images, int64 ``(N,)``; None if it does not offer them."""
    if isinstance(data, Subset):
        of_all = known_labels(data.dataset)
        return None if of_all is None else of_all[torch.as_tensor(data.indices)]
    if isinstance(data, ConcatDataset):
        parts = [known_labels(part) for part in data.datasets]
        return None if any(part is None for part in parts) else torch.cat(cast(list[Tensor], parts))
    found: Any = None
    if isinstance(data, TensorDataset):
        found = data.tensors[1] if len(data.tensors) > 1 else None
    elif hasattr(data, "column_names"):  # Hugging Face: a column is read without the others
        names = [key for key in _LABEL_KEYS if key in data.column_names]
        found = data[names[0]] if len(names) == 1 else None
    else:
        found = next((getattr(data, name) for name in ("targets", "labels") if hasattr(data, name)), None)
    try:
        is_array = isinstance(found, Tensor | np.ndarray)
        labels = torch.as_tensor(found if is_array else [label_number(label) for label in found])
    except (TypeError, ValueError):  # names, or nothing at all
        return None
    fits = labels.dim() == 1 and len(labels) == len(cast(Any, data)) and not labels.is_floating_point()
    return labels.long() if fits else None


def pixels(image: Any) -> Tensor:
    """An image as uint8, or as float32 in [0, 1]; ``(C, H, W)``.

    Tensors have their channels first; arrays and pictures (PIL) as they come. Sixteen bits become floats.

    Raises:
        TypeError: it is no image, or of numbers whose white is not known.
        ValueError: channels come last in a tensor, or floats are not in [0, 1].

    >>> pixels(np.zeros((5, 4, 3), dtype=np.uint8)).shape
    torch.Size([3, 5, 4])
    """
    if hasattr(image, "getbands"):  # PIL, which need not be installed
        mode = {"1": "L", "P": "RGB", "CMYK": "RGB", "YCbCr": "RGB"}.get(image.mode, image.mode)
        image = np.array(image if mode == image.mode else image.convert(mode))
    if isinstance(image, np.ndarray):
        image = image[:, :, None] if image.ndim == 2 else image
        last = image.ndim == 3 and (image.shape[2] <= 4 or image.shape[0] == image.shape[1])
        image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1) if last else image))
    if not isinstance(image, Tensor) or image.dim() != 3:
        raise TypeError(f"images must be tensors (C, H, W), got {getattr(image, 'shape', type(image).__name__)}")
    if channels_last(image.shape):
        raise ValueError(f"images must have their channels first, (C, H, W), got {tuple(image.shape)}: permute them")
    found: Tensor = _levels(image)
    if found.is_floating_point():
        _check_range(found)
    return found


def channels_last(shape: Sequence[int]) -> bool:
    """Whether the last three dimensions look like ``(H, W, C)``.

    >>> channels_last((32, 32, 3)), channels_last((13, 64, 64)), channels_last((3, 8, 4))
    (True, False, False)
    """
    first, middle, last = shape[-3:]
    return (last <= 4 < min(first, middle)) or (first == middle != last and last <= 32 < first + middle)


def _levels(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    if images.dtype == torch.uint16:
        return images.float() / 65535
    if images.is_floating_point():
        return images.float()
    raise TypeError(
        f"images must be uint8, uint16 or floats in [0, 1], got {images.dtype}, whose white could be anything: convert "
        "them"
    )


def _check_range(images: Tensor) -> None:
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):  # NaN neither
        raise ValueError(
            f"images of floats must be in [0, 1], got {low.item():.3g} to {high.item():.3g}: normalising is the part "
            "of the model's transform"
        )
