"""Pairs of graphs that are hard to tell apart: constructed, from networkx' atlas, or from published files."""

import gzip
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lit_papers.datamodules.images import check_integer
from lit_papers.expressiveness.graphs import (
    CSL_SKIPS,
    atlas,
    cfi,
    csl,
    from_graph6,
    import_graph_extra,
    make_graph,
    named_pair,
    strongly_regular,
)
from lit_papers.expressiveness.separation import relabelled
from lit_papers.expressiveness.weisfeiler_leman import graph_hash
from lit_papers.locations import MissingDataError

NAMES = ("atlas", "csl", "constructed", "brec", "sr25", "exp", "file")
_FILES = {
    "brec": (("brec_pairs.tsv.gz", "brec_pairs.tsv", "brec_v3.npy"), "github.com/GraphPKU/BREC"),
    "sr25": (("sr251256.g6",), "github.com/balcilar/gnn-matlang"),
    "exp": (("exp.npz",), "github.com/ralphabb/GNN-RNI, as arrays x, edge_index, node_ptr, edge_ptr, y"),
    "file": (("pairs.tsv.gz", "pairs.tsv"), "a file of yours, with part, graph6 and graph6 in each line"),
}
_BREC_PARTS = (
    ("Basic", 60), ("Regular", 50), ("Strongly_Regular", 50), ("Extension", 100), ("CFI", 100),
    ("4-Vertex_Condition", 20), ("Distance_Regular", 20),
)  # fmt: skip


class GraphPair(NamedTuple):
    """Two graphs of one size that some test cannot tell apart.

    Attributes:
        first, second: PyG ``Data``; ``y`` is the class of each.
        part: of the collection.
        index: place in the collection.
    """

    first: Any
    second: Any
    part: str
    index: int  # type: ignore[assignment]  # nobody looks for a graph with tuple.index


class GraphPairs(LightningDataModule):
    """Pairs of graphs, freshly relabelled in every batch: first, second, first, second, ...

    Embedded are ``atlas`` (26 pairs of up to 7 nodes that colour refinement cannot tell apart), ``csl`` (the 45 pairs
    of the ten circulant skip link graphs on 41 nodes, class 0 to 9) and ``constructed`` (cycles, strongly regular
    graphs and CFI graphs, 19 pairs). ``brec``, ``sr25`` and ``exp`` read published files, ``file`` one of yours.

    Args:
        name: of the collection.
        root: file, or folder that has it; for collections that are not embedded.
        parts: only pairs of these parts.
        indices: only pairs at these places.
        relabelings: of each pair in an epoch, at least 1.
        batch_size: graphs in a batch, even: a pair is never cut.
        seed: of the order in which pairs are shuffled.

    Attributes:
        pairs: list of `GraphPair`, there without a trainer.

    Raises:
        ValueError: the name, a part or an index is unknown, or an argument is out of range.
        MissingDataError: the file is not there; nothing is downloaded.
        ImportError: PyG or networkx is missing.
    """

    def __init__(
        self,
        name: str = "csl",
        root: str | Path | None = None,
        *,
        parts: Sequence[str] | None = None,
        indices: Sequence[int] | None = None,
        relabelings: int = 1,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if name not in NAMES:
            raise ValueError(f"unknown collection {name!r}; choose from {', '.join(NAMES)}.")
        check_integer("relabelings", relabelings, least=1)
        check_integer("batch_size", batch_size, least=2)
        check_integer("seed", seed, least=0)
        if batch_size % 2:
            raise ValueError(f"batch_size counts graphs and must be even, so that no pair is cut; got {batch_size}.")
        self.name = name
        self.relabelings = relabelings
        self.batch_size = batch_size
        self.seed = seed
        found = [GraphPair(first, second, part, index) for index, (first, second, part) in enumerate(_read(name, root))]
        if parts is not None:
            known = list(dict.fromkeys(pair.part for pair in found))
            unknown = set(parts) - set(known)
            if unknown:
                raise ValueError(f"unknown parts {sorted(unknown)} of {name}; it has {', '.join(known)}.")
            found = [pair for pair in found if pair.part in parts]
        if indices is not None:
            places = {pair.index: pair for pair in found}
            unknown_places = [index for index in indices if index not in places]
            if unknown_places:
                raise ValueError(f"indices {unknown_places} are not in {name}, which has {len(found)} such pairs.")
            found = [places[index] for index in indices]
        self.pairs = found

    def train_dataloader(self) -> DataLoader[Any]:
        """All pairs, shuffled."""
        return self._loader(shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """All pairs in order: the same graphs, relabelled anew. An invariant model has nothing else to be tested on."""
        return self._loader(shuffle=False)

    def test_dataloader(self) -> DataLoader[Any]:
        """As `val_dataloader`."""
        return self._loader(shuffle=False)

    def _loader(self, *, shuffle: bool) -> DataLoader[Any]:
        return DataLoader(
            self.pairs * self.relabelings,  # type: ignore[arg-type]
            batch_size=self.batch_size // 2,
            shuffle=shuffle,
            collate_fn=_collate,
            generator=torch.Generator().manual_seed(self.seed) if shuffle else None,
        )


def _collate(pairs: list[GraphPair]) -> Any:
    graphs = [relabelled(graph, None) for pair in pairs for graph in (pair.first, pair.second)]
    return import_graph_extra("torch_geometric.data").Batch.from_data_list(graphs)


def _read(name: str, root: str | Path | None) -> Iterator[tuple[Any, Any, str]]:
    if name == "atlas":
        graphs = atlas()
        hashes = graph_hash(import_graph_extra("torch_geometric.data").Batch.from_data_list(graphs), "cr").tolist()
        alike: dict[int, list[Any]] = {}
        for graph, value in zip(graphs, hashes, strict=True):
            alike.setdefault(value, []).append(graph)
        pairs = (pair for group in alike.values() for pair in itertools.combinations(group, 2))
        yield from ((*_labelled(*pair, 0, 1), "atlas") for pair in pairs)
    elif name == "csl":
        classes = [csl(41, skip) for skip in CSL_SKIPS]
        for i, j in itertools.combinations(range(len(classes)), 2):
            yield *_labelled(classes[i], classes[j], i, j), "csl"
    elif name == "constructed":
        yield from _constructed()
    else:
        yield from _from_file(name, _locate(name, root))


def _labelled(first: Any, second: Any, y_first: int, y_second: int) -> tuple[Any, Any]:
    first, second = first.clone(), second.clone()
    first.y, second.y = torch.tensor([y_first]), torch.tensor([y_second])
    return first, second


def _constructed() -> Iterator[tuple[Any, Any, str]]:
    networkx = import_graph_extra("networkx")
    for name in ("hexagon-triangles", "decalin-bicyclopentyl"):
        yield *_labelled(*named_pair(name), 0, 1), "cycles"
    yield *_labelled(*named_pair("shrikhande-rook"), 0, 1), "srg"
    for first, second in itertools.combinations(strongly_regular(28, 12, 6, 4), 2):
        yield *_labelled(first, second, 0, 1), "srg"
    bases = (
        networkx.cycle_graph(5), networkx.grid_2d_graph(2, 3), networkx.complete_graph(4),
        networkx.complete_bipartite_graph(3, 3), networkx.wheel_graph(5), networkx.circular_ladder_graph(3),
        networkx.cubical_graph(), networkx.grid_2d_graph(3, 3), networkx.complete_graph(5), networkx.petersen_graph(),
    )  # fmt: skip
    for base in bases:
        yield *_labelled(cfi(base), cfi(base, twisted=True), 0, 1), "cfi"


def _locate(name: str, root: str | Path | None) -> Path:
    files, source = _FILES[name]
    if root is None:
        raise ValueError(f"{name} is not embedded: give `root` (--data.root=...), a folder with {' or '.join(files)}.")
    place = Path(root).expanduser()
    if place.is_file():
        return place
    for file in files:
        if (place / file).is_file():
            return place / file
    raise MissingDataError(f"there is no {' or '.join(files)} in {place}; it is published at {source}.")


def _from_file(name: str, path: Path) -> Iterator[tuple[Any, Any, str]]:
    if path.suffix == ".npy":
        yield from _released_brec(path)
    elif name == "sr25":
        graphs = [from_graph6(line) for line in path.read_text().split()]
        yield from ((*_labelled(*pair, 0, 1), "sr25") for pair in itertools.combinations(graphs, 2))
    elif name == "exp":
        with np.load(path) as file:
            graphs = list(_unpack({key: file[key] for key in ("x", "edge_index", "node_ptr", "edge_ptr", "y")}))
        yield from ((first, second, "exp") for first, second in zip(graphs[::2], graphs[1::2], strict=True))
    else:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
        for number, line in enumerate(text.splitlines(), start=1):
            cells = line.split()
            if not cells:
                continue
            if len(cells) != 3:
                raise ValueError(f"line {number} of {path} has {len(cells)} cells, not part, graph6 and graph6.")
            yield *_labelled(from_graph6(cells[1]), from_graph6(cells[2]), 0, 1), cells[0]


def _released_brec(path: Path) -> Iterator[tuple[Any, Any, str]]:
    """400 blocks of 64 graph6 strings, relabelings of two graphs in turn; then blocks for a reliability check."""
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in np.load(path).reshape(-1)]
    names = [part for part, count in _BREC_PARTS for _ in range(count)]
    if len(texts) < 64 * len(names):
        raise ValueError(f"{path} has {len(texts)} graphs; BREC's first 400 pairs alone have {64 * len(names)}.")
    for index, part in enumerate(names):
        first, second = texts[64 * index : 64 * index + 2]
        yield *_labelled(from_graph6(first), from_graph6(second), 0, 1), part


def _unpack(arrays: dict[str, Any]) -> Iterator[Any]:
    nodes, edges = arrays["node_ptr"], arrays["edge_ptr"]
    for index in range(len(nodes) - 1):
        inside = slice(int(edges[index]), int(edges[index + 1]))
        graph = make_graph(int(nodes[index + 1] - nodes[index]), map(tuple, arrays["edge_index"][:, inside].T.tolist()))
        graph.x = torch.as_tensor(arrays["x"][nodes[index] : nodes[index + 1]], dtype=torch.float32)
        graph.x = graph.x.reshape(graph.num_nodes, -1)
        graph.y = torch.tensor([int(arrays["y"][index])])
        yield graph
