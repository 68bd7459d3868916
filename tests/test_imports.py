"""Which way imports run, read from the source: down only, never from paper to paper, and never in a circle."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAPERS = {
    "continual", "convex_relu", "diffstride", "expressiveness", "interactions", "local_sgd", "neural_collapse",
}  # fmt: skip
COMMAND_LINE = {
    "cli", "lightning_cli", "tuning", "trials", "reproduce", "diagnose", "catalog", "parser_errors", "locations",
    "__main__",
}  # fmt: skip


def modules() -> dict[str, Path]:
    found = {}
    for folder, package in (("lit_papers", "lit_papers"), ("callbacks", "lit_papers.callbacks"),
                            ("datamodules", "lit_papers.datamodules"), ("sweeps", "lit_papers.sweeps")):  # fmt: skip
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in inside if part != "__init__")))] = path
    return found


def imports_of(path: Path, known: set[str]) -> set[str]:
    """Modules of ours that a file imports, anywhere in it but under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in known else node.module
                for alias in node.names
            }
    return {name for name in names if name in known}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    found = modules()
    return {name: imports_of(path, set(found)) - {name} for name, path in found.items()}


def room(module: str) -> str:
    return [*module.split("."), "", ""][1]


def test_papers_import_downwards_only(graph: dict[str, set[str]]) -> None:
    forbidden = {
        (module, imported)
        for module, imports in graph.items()
        for imported in imports
        if room(module) in PAPERS
        and (
            room(imported) in (PAPERS - {room(module)}) | {"callbacks", "datamodules", "sweeps"}
            or room(imported) in COMMAND_LINE
        )
    }
    assert forbidden == set()


def test_the_lens_knows_no_paper(graph: dict[str, set[str]]) -> None:
    for module, imports in graph.items():
        if room(module) in ("lens", "accumulator", "plotting", "run_folder"):
            assert {room(imported) for imported in imports} <= {"lens", "accumulator", "plotting", "run_folder"}, module


def test_the_command_line_knows_callbacks_by_short_names(graph: dict[str, set[str]]) -> None:
    """``--trainer.callbacks+=NeuralCollapse`` on a module of one's own: short names are those of imported classes."""
    assert "lit_papers.callbacks" in graph["lit_papers.lightning_cli"]


def test_nothing_runs_in_a_circle(graph: dict[str, set[str]]) -> None:
    """Of files, with imports inside of functions; a package's own ``__init__`` stands for what it gathers."""
    state: dict[str, int] = {}
    circles = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        if state.get(module) == 2:
            return
        if module in path:
            circles.append(path[path.index(module) :])
            return
        for imported in sorted(graph[module]):
            visit(imported, (*path, module))
        state[module] = 2

    for module in sorted(graph):
        visit(module, ())
    assert circles == []
