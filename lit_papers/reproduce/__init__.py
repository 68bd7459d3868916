"""``python -m lit_papers reproduce``: the papers' claims as commands, with seeds, spread and a verdict."""
