"""What a copied module sees of the training: everything can be read, nothing can be changed."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger


class Idle:
    """Stands for an optimizer, a scheduler or what they return: any call does nothing."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __getattr__(self, name: str) -> "Idle":
        if name.startswith("__"):
            raise AttributeError(name)
        return Idle()

    def __call__(self, *arguments: Any, **options: Any) -> "Idle":
        """Do nothing."""
        return self

    def __enter__(self) -> "Idle":
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class TrainerFacade:
    """A trainer that can be read and is always validating; what is set stays here, and what acts does nothing.

    Args:
        trainer: of the training; None where there is none, and then nothing can be read that is not listed here.
    """

    _NOTHING = ("save_checkpoint", "fit", "validate", "test", "predict")

    def __init__(self, trainer: Trainer | None) -> None:
        optimizers = [] if trainer is None else [_idle_optimizer(optimizer) for optimizer in trainer.optimizers]
        self.__dict__.update(
            _trainer=trainer,
            training=False,
            validating=True,
            sanity_checking=False,
            testing=False,
            predicting=False,
            evaluating=True,
            optimizers=optimizers,
            lr_scheduler_configs=[],
            callback_metrics={},  # reading the real ones is a collective
            logged_metrics={},
            progress_bar_metrics={},
            logger=DummyLogger(),
            loggers=[],
            progress_bar_callback=None,
            **dict.fromkeys(self._NOTHING, Idle()),
        )
        if trainer is None:
            self.__dict__.update(
                current_epoch=0, global_step=0, global_rank=0, local_rank=0, world_size=1, is_global_zero=True,
                max_epochs=1, max_steps=-1, datamodule=None,
            )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        trainer = self.__dict__["_trainer"]
        if trainer is None:
            raise AttributeError(f"there is no trainer, and so no trainer.{name}")
        return getattr(trainer, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TrainerFacade":
        return self


def _idle_optimizer(optimizer: Any) -> Idle:
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return Idle(param_groups=groups, state={})


_ACTS = ("log", "log_dict", "print", "manual_backward", "clip_gradients", "toggle_optimizer", "untoggle_optimizer")


def silence(module: LightningModule, facade: TrainerFacade) -> None:
    """Bind a copied LightningModule to the facade, and let its own ways to act on a training do nothing.

    ``log``, ``log_dict``, ``print``, ``manual_backward``, ``clip_gradients``, ``toggle_optimizer``,
    ``untoggle_optimizer``, ``optimizers`` and ``lr_schedulers`` are idle; ``all_gather`` returns what it is given, as
    processes may have unequal numbers of batches.
    """
    for name in _compiled(module):
        del module.__dict__[name]  # the class has the function as it was written
    module.__dict__.update(
        _compiler_ctx=None,
        _trainer=facade,
        _fabric=None,
        **dict.fromkeys(_ACTS, _nothing),
        optimizers=lambda *_, **__: facade.optimizers[0] if len(facade.optimizers) == 1 else facade.optimizers,
        lr_schedulers=lambda *_, **__: Idle(),
        all_gather=lambda data, *_, **__: data,
    )


def _compiled(module: LightningModule) -> Iterator[str]:
    """Names of the methods that ``torch.compile`` has put in the way of those of the class."""
    if module.__dict__.get("_compiler_ctx") is not None:
        steps = ("forward", "training_step", "validation_step", "test_step", "predict_step")
        yield from [name for name in steps if name in module.__dict__]


def _nothing(*arguments: Any, **options: Any) -> None:
    pass
