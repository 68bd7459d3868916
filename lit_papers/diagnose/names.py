"""Names of the lenses of a diagnosis, in the order of the page; free of torch."""

import difflib
from collections.abc import Sequence

FORGETTING = "forgetting"
NAMES = (
    "collapse", "central_path", "head", "interactions", "cost", "strides", "convex_gap", "separation", "similarity",
    "loss_slice", "consensus", FORGETTING,
)  # fmt: skip


def check_names(lenses: Sequence[str] | None) -> list[str]:
    """Names of lenses, all for None.

    Raises:
        ValueError: there is no such lens; the message has the nearest.

    >>> check_names(["head"])
    ['head']
    """
    if lenses is None:
        return list(NAMES)
    if isinstance(lenses, str) or not lenses:
        raise ValueError(f"lenses must be a list of names, got {lenses!r} (there are {', '.join(NAMES)})")
    for name in lenses:
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no lens {name!r}{hint} (there are {', '.join(NAMES)})")
    return list(lenses)
