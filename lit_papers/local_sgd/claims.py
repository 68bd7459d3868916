"""What `reproduce` calls for this paper: numbers of one seed."""

from lit_papers.local_sgd.changed_rounds import averaged, averaged_as_bfloat16, averaged_late, local_errors
from lit_papers.local_sgd.exponents import measure, panel_of
from lit_papers.local_sgd.theory import fit_loglog_slope


def exponents(seed: int, panel: str, samples: int = 1024) -> dict[str, float | list[float]]:
    """The exponent of each algorithm's error in one variable.

    Args:
        seed: of all draws.
        panel: name of one of `exponents.PANELS`.
        samples: see `exponents.measure`.

    Returns:
        By the key of a curve its exponent, and its errors by ``<key>_errors``.
    """
    measured = panel_of(panel)
    errors = measure(measured, samples=samples, seed=seed)
    found: dict[str, float | list[float]] = {f"{key}_errors": values for key, values in errors.items()}
    for curve in measured.curves:
        found[curve.key] = fit_loglog_slope([value - curve.offset for value in measured.values], errors[curve.key])
    return found


def compressed_rounds(seed: int, runs: int = 512) -> dict[str, float]:
    """The exponent in epochs with rounds in bfloat16 and without, of the same draws, and their difference."""
    epochs = [40, 80, 160]
    found = {}
    for name, rounds in (("plain", averaged(4)), ("bfloat16", averaged_as_bfloat16(4))):
        errors = [local_errors(k, rounds, 4, runs=runs, seed=seed).mean().item() for k in epochs]
        found[name] = fit_loglog_slope(epochs, errors)
    return {**found, "difference": found["bfloat16"] - found["plain"]}


def late_rounds(seed: int, sync_every: int, runs: int = 512) -> dict[str, float]:
    """What an average that is nearly a round late does to the error, beside a round of twice the length.

    Args:
        seed: of all draws.
        sync_every: ``B``.
        runs: independent ones.

    Returns:
        ``late`` and ``twice``, errors in units of that of rounds in time, and ``late_beside_twice``, their ratio.
    """
    in_time = local_errors(60, averaged(sync_every), sync_every, runs=runs, seed=seed).mean().item()
    late = local_errors(60, averaged_late(sync_every), sync_every, runs=runs, seed=seed).mean().item()
    twice = local_errors(60, averaged(2 * sync_every), 2 * sync_every, runs=runs, seed=seed).mean().item()
    return {"late": late / in_time, "twice": twice / in_time, "late_beside_twice": late / twice}
