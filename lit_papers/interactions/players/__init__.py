"""Who plays: the parts of an input that are present, or replaced by a baseline."""

from lit_papers.interactions.players.base import Players
from lit_papers.interactions.players.graphs import NodePlayers
from lit_papers.interactions.players.images import PatchGrid, SegmentPlayers
from lit_papers.interactions.players.several import InputPlayers
from lit_papers.interactions.players.tables import FeaturePlayers
from lit_papers.interactions.players.tokens import TokenPlayers

__all__ = ["FeaturePlayers", "InputPlayers", "NodePlayers", "PatchGrid", "Players", "SegmentPlayers", "TokenPlayers"]
