"""Every lens that fits a trained network, on one page: ``diagnose`` for Python, ``python -m lit_papers diagnose``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_papers.diagnose.diagnosis import diagnose
    from lit_papers.diagnose.report import Report

__all__ = ["Report", "diagnose"]


def __getattr__(name: str) -> Any:
    # the command line comes through here too, and answers for `--help` and mistyped options without torch
    if name == "diagnose":
        from lit_papers.diagnose.diagnosis import diagnose

        return diagnose
    if name == "Report":
        from lit_papers.diagnose.report import Report

        return Report
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
