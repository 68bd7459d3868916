"""Local SGD in real processes against a plain PyTorch loop over the same number of models, and against DDP."""

from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy

from lit_papers.local_sgd import LocalSGDStrategy
from tests.local_sgd.small import BATCHES, EPOCHS, Classifier, difference, fit, local_sgd, plain_loop, same

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "momentum": ({"optimizer": "momentum"}, {"sync_every": 3}),
    "adam": ({"optimizer": "adam"}, {"sync_every": 5}),
    "averaged adam state": ({"optimizer": "adam", "average_state": True}, {"sync_every": 3}),
    "averaged momentum": ({"optimizer": "momentum", "average_state": True}, {"sync_every": 4}),
    "batch norm": ({"optimizer": "momentum", "norm": True}, {"sync_every": 5}),
    "accumulation": ({"optimizer": "adam", "norm": True, "accumulate": 3}, {"sync_every": 2}),
    "clipping": ({"optimizer": "momentum", "clip": 0.1}, {"sync_every": 3}),
    "warm-up": ({"optimizer": "adam", "warmup": 5}, {"sync_every": 3}),
    "warm-up, accumulation, clipping": (
        {"optimizer": "momentum", "warmup": 2, "accumulate": 2, "clip": 0.1},
        {"sync_every": 2},
    ),
    "no sync at the epoch's end": ({"optimizer": "momentum", "sync_on_epoch_end": False}, {"sync_every": 5}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_a_plain_loop(case: str) -> None:
    loop, options = CASES[case]
    options = dict(options)
    models, _, rounds = plain_loop(sync_every=options["sync_every"], **loop)
    options |= {
        "warmup_steps": loop.get("warmup", 0),
        "average_optimizer_state": loop.get("average_state", False),
        "sync_on_epoch_end": loop.get("sync_on_epoch_end", True),
    }
    first, second = fit(
        Classifier(loop["optimizer"], loop.get("norm", False)),
        local_sgd(**options),
        accumulate_grad_batches=loop.get("accumulate", 1),
        gradient_clip_val=loop.get("clip"),
    )
    assert difference(first["weights"], models[0].state_dict()) <= 1e-6
    assert same(first["weights"], second["weights"])
    assert first["n_syncs"] == second["n_syncs"] == rounds
    assert first["since_sync"] == 0


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
def test_one_step_a_round_is_ddp(optimizer: str) -> None:
    ours, _ = fit(Classifier(optimizer), local_sgd(sync_every=1))
    theirs, _ = fit(Classifier(optimizer), DDPStrategy(start_method="fork", process_group_backend="gloo"))
    assert difference(ours["weights"], theirs["weights"]) <= 1e-6


def test_warm_up_is_bitwise_ddp() -> None:
    options: dict[str, Any] = {"gradient_clip_val": 0.1, "accumulate_grad_batches": 3}
    ours, other = fit(Classifier("adam"), local_sgd(sync_every=4, warmup_steps=1000), **options)
    theirs, _ = fit(Classifier("adam"), DDPStrategy(start_method="fork", process_group_backend="gloo"), **options)
    assert same(ours["weights"], theirs["weights"])
    assert same(other["weights"], theirs["weights"])
    assert (ours["n_syncs"], ours["local_step"]) == (0, theirs["global_step"])


def test_counts_and_payload() -> None:
    parameters = 6 * 16 + 16 + 16 * 3 + 3
    for rank in fit(Classifier(), local_sgd(sync_every=3)):
        assert rank["local_step"] == BATCHES * EPOCHS
        assert rank["n_syncs"] == 2 * 3  # steps 3, 6, 8 of each epoch
        assert rank["bytes_communicated"] == 4 * parameters * rank["n_syncs"]


def test_four_ranks() -> None:
    models, _, _ = plain_loop("momentum", 3, ranks=4, epochs=1)
    ranks = fit(Classifier(), local_sgd(sync_every=3), processes=4, max_epochs=1)
    assert all(same(rank["weights"], ranks[0]["weights"]) for rank in ranks)
    assert difference(ranks[0]["weights"], models[0].state_dict()) <= 1e-6


def test_one_device_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("one process talks to nobody")

    class Alone(Classifier):
        def on_train_epoch_start(self) -> None:  # Lightning itself counts batches over the ranks before
            for name in ("all_reduce", "all_gather", "broadcast", "all_gather_object", "gather_object"):
                monkeypatch.setattr(torch.distributed, name, refuse)

    models, _, _ = plain_loop("momentum", 3, ranks=1)
    (only,) = fit(Alone(), LocalSGDStrategy(sync_every=3), processes=1)
    assert difference(only["weights"], models[0].state_dict()) <= 1e-6
    assert (only["n_syncs"], only["bytes_communicated"]) == (6, 0)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("sync_every", 0), ("sync_every", True), ("sync_every", 2.0), ("sync_every", "8"), ("warmup_steps", -1),
        ("eval_weights", "mean"), ("uneven_inputs", "wait"), ("across_nodes_every", 0), ("node_size", 0),
    ],
)  # fmt: skip
def test_bad_options_are_named(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{option} must be"):
        LocalSGDStrategy(**{option: value})


def test_misspelt_options_are_refused() -> None:
    with pytest.raises(TypeError, match="sync_evry"):
        LocalSGDStrategy(sync_evry=3)  # type: ignore[call-arg]


def test_half_precision_weights_are_averaged_in_float32() -> None:
    from lit_papers.local_sgd.averaging import Bucket

    bucket = Bucket()
    assert bucket.average([torch.ones(3, dtype=torch.bfloat16)]).dtype == torch.float32
    assert bucket.average([torch.ones(2), torch.ones(3, dtype=torch.complex128)]).shape == (8,)
    assert bucket.average([torch.ones(3)]).dtype == torch.float32
