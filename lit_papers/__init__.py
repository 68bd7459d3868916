"""Papers that explain deep networks, as PyTorch Lightning plugins."""

from pathlib import Path

__version__ = "0.1.0"

# A wheel carries callbacks/, datamodules/ and sweeps/ in here; in a checkout they lie beside this folder.
_here = Path(__file__).resolve().parent
if not (_here / "callbacks").is_dir():
    from lit_papers._checkout import entry_for

    __path__.append(entry_for(_here.parent))
