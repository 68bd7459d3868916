"""What the commands that start runs are asked for in the same words."""

import argparse


def at_least_one(text: str) -> int:
    """An integer of at least 1, for ``argparse``.

    Raises:
        ArgumentTypeError: it is none.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text}")
    return number
