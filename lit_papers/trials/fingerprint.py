"""What a run is known by: the values that it is made of, whatever names they came under."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(values: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that change with any of the values, and not with their order in mappings.

    Args:
        values: plain types, as JSON has them.

    >>> fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1.0, "b": [2]})
    True
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
