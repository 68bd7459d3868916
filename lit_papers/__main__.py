"""Entry point of ``python -m lit_papers``, and of the command ``lit-papers``."""

import sys
from typing import NoReturn

from lit_papers.cli import main


def program() -> NoReturn:
    """Run the command line, and end the process with its status."""
    status = main()
    sys.exit(status)  # looked up now: W&B has put its own in place, which tells the server that a run has failed


if __name__ == "__main__":
    program()
