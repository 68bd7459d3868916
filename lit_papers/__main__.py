"""Entry point of ``python -m lit_papers``."""

import sys

from lit_papers.cli import main

if __name__ == "__main__":
    sys.exit(main())
