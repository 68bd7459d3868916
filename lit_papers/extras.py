"""Optional packages: whether one is there, and the command that installs an extra. Free of torch."""

from importlib.util import find_spec
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]


def install_command(extra: str) -> str:
    """The command that installs an extra, from wherever it is typed.

    A checkout is named by its path, as no index need know it; an installed lit-papers by its name.

    >>> "[convex]" in install_command("convex")
    True
    """
    is_checkout = (_CHECKOUT / "pyproject.toml").is_file()
    return f"pip install -e '{_CHECKOUT}[{extra}]'" if is_checkout else f"pip install 'lit-papers[{extra}]'"


def is_installed(module: str) -> bool:
    """Whether a top-level package can be found; nothing is imported."""
    return find_spec(module) is not None
