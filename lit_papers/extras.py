"""Optional packages: whether one is there, and the command that installs an extra. Free of torch."""

import re
from importlib.util import find_spec
from pathlib import Path

EXTRA_OF = {  # an import name, and the extra that brings it
    "torchvision": "vision", "torchaudio": "audio", "lightly": "continual", "sklearn": "data", "shapiq": "data",
    "cvxpy": "convex", "clarabel": "convex", "torch_geometric": "graph", "networkx": "graph", "wandb": "wandb",
    "optuna": "sweep", "filelock": "sweep", "psycopg": "sweep",
}  # fmt: skip
_CHECKOUT = Path(__file__).resolve().parents[1]


def install_command(extra: str) -> str:
    """The command that installs an extra, from wherever it is typed.

    A checkout is named by its path, as no index need know it; an installed lit-papers by its name.

    >>> "[convex]" in install_command("convex")
    True
    """
    is_checkout = (_CHECKOUT / "pyproject.toml").is_file()
    return f"pip install -e '{_CHECKOUT}[{extra}]'" if is_checkout else f"pip install 'lit-papers[{extra}]'"


def with_install_command(text: str) -> str:
    """A message about a missing package, with the command that installs it here.

    >>> with_install_command("No module named 'lightly': install `lit-papers[continual]`").count("pip install")
    1
    """
    module = re.search(r"[Nn]o module (?:named )?'(\w+)", text)
    extra = re.search(r"lit-papers\[([\w,]+)\]", text)
    if extra is None and module and module[1] in EXTRA_OF:
        text = f"{text}: install `lit-papers[{EXTRA_OF[module[1]]}]`"
        extra = re.search(r"lit-papers\[([\w,]+)\]", text)
    if extra is None or install_command(extra[1]) in text:
        return text
    return f"{text.rstrip('.')}; here: {install_command(extra[1])}"


def is_installed(module: str) -> bool:
    """Whether a top-level package can be found; nothing is imported."""
    return find_spec(module) is not None
