"""Lightning's private names are in one module, exist in the installed Lightning, and their absence is a clear error."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.pytorch.loops import _TrainingEpochLoop

import lit_papers.datamodules.local_sgd
import lit_papers.local_sgd
from lit_papers.local_sgd import LocalSGDStrategy, internals

FOLDER = Path(lit_papers.local_sgd.__file__).parent
FILES = [*FOLDER.glob("*.py"), Path(lit_papers.datamodules.local_sgd.__file__)]
OWN = {"self", "cls", "other", "torch", "trainer_class"}
ALLOWED = {
    "_PATH",
    "_get_default_store",
    "_foreach_copy_",
    "_NormBase",
    "_non_persistent_buffers_set",
}  # types; torch's


def private_names(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning"):
            yield from (alias.name for alias in node.names if alias.name.startswith("_"))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            if not (isinstance(owner, ast.Name) and owner.id in OWN):
                own = (
                    isinstance(owner, ast.Attribute) and isinstance(owner.value, ast.Name) and owner.value.id == "self"
                )
                if not own or owner.attr in ("lightning_module", "model"):
                    yield node.attr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_one_module_knows_private_names(path: Path) -> None:
    found = set(private_names(path)) - ALLOWED
    assert (found != set()) == (path.name == "internals.py"), found


def test_all_of_them_exist_here() -> None:
    internals.check_lightning()


def test_a_lightning_without_them_is_refused_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor")
    with pytest.raises(RuntimeError, match=r"needs `_TrainingEpochLoop._broadcast_sigterm_tensor`, which lightning \d"):
        LocalSGDStrategy()
