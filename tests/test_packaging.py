"""What is installed is what is in the tree, under one name, and it runs from anywhere."""

import ast
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"lit_papers": "lit_papers", "callbacks": "lit_papers/callbacks", "datamodules": "lit_papers/datamodules",
           "sweeps": "lit_papers/sweeps"}  # fmt: skip


def tree() -> set[str]:
    """Files of the checkout that belong into the wheel, by their installed path."""
    files = set()
    for folder, installed in FOLDERS.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".yaml", ".md", ".json", ".ipynb") or path.name == "py.typed":
                files.add(f"{installed}/{path.relative_to(ROOT / folder).as_posix()}")
    return files


def test_packages_are_those_of_the_tree() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {path.rpartition("/")[0].replace("/", ".") for path in tree() if path.endswith("__init__.py")}
    assert set(settings["packages"]) == packages


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the sdist as a release would be."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = listed.stdout.split() if listed.returncode == 0 else [p.relative_to(ROOT) for p in ROOT.rglob("*.*")]
    for name in map(str, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    # no isolation: the build needs nothing but setuptools, and a test should not install
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source], check=True, capture_output=True
    )
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_tree_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if ".dist-info/" not in name} == tree()


def test_the_wheel_is_sound(wheel: Path) -> None:
    subprocess.run(["check-wheel-contents", str(wheel)], check=True, env={**os.environ, "PATH": _scripts()})


def _scripts() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def test_the_wheel_runs_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Installed into an environment that borrows the heavy packages of this one, away from the checkout."""
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    (site / "borrowed.pth").write_text("\n".join(borrowed))
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        python = str(tmp_path / "venv/bin/python")
        done = subprocess.run([python, *arguments], cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    # without Lightning, which takes seconds and is imported by the last command
    find = "import sys; from importlib.util import find_spec; print(*(find_spec(n).origin for n in sys.argv[1:]))"
    assert run("-c", find, "lit_papers.callbacks", "lit_papers.sweeps").count(str(site)) == 2
    assert "neural_collapse/digits" in run("-m", "lit_papers", "list")
    short = ("--trainer.max_epochs=1", "--trainer.enable_progress_bar=false")
    assert "neural_collapse/nc1" in run("-m", "lit_papers", "fit", "--config", "neural_collapse/digits", *short)


def test_importing_needs_no_extra() -> None:
    """What an extra brings is imported where it is used; hiding it would not do, as torchmetrics looks for some."""
    extras = {"torchvision", "torchaudio", "scipy", "sklearn", "PIL", "shapiq", "wandb", "lightly", "cvxpy"}
    extras |= {"torch_geometric", "networkx", "optuna", "sqlalchemy"}
    # the command line imports these when it knows that Optuna is there
    searching = {ROOT / "lit_papers/tuning" / name for name in ("search.py", "results.py", "figures.py")}
    for folder in FOLDERS:
        for path in sorted({*(ROOT / folder).rglob("*.py")} - searching):
            for node in ast.parse(path.read_text()).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {name.split(".")[0] for name in names} & extras, f"{path} imports an extra when imported"


def test_the_package_finds_its_three_folders_and_nothing_else_beside_them() -> None:
    """In a checkout they lie beside the package, among much that is not its."""
    code = """
import importlib.util, pkgutil, lit_papers
names = [module.name for module in pkgutil.walk_packages(lit_papers.__path__, "lit_papers.", onerror=lambda name: None)]
assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
assert {"lit_papers.callbacks.record", "lit_papers.datamodules.digits", "lit_papers.sweeps"} <= set(names)
assert importlib.util.find_spec("lit_papers.tests") is None
assert importlib.util.find_spec("lit_papers.lit_papers") is None
import lit_papers.callbacks, callbacks
assert lit_papers.callbacks.NeuralCollapse is callbacks.NeuralCollapse
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
