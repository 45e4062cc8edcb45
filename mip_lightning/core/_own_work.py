"""OwnWork: what a HyperLightningModule does at Lightning's hooks."""

from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from mip_lightning.errors import UsageError

if TYPE_CHECKING:  # the module brings this callback along
    from mip_lightning.core.module import HyperLightningModule


class OwnWork(Callback):
    """What a ``HyperLightningModule`` does at Lightning's hooks.

    A callback, so that a user's override of a hook, which need not call ``super()``, leaves nothing
    of it out. Callbacks come before the module at each hook.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        _own(pl_module).start_stage()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _own(pl_module).start_training()

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        _own(pl_module).keep_in_checkpoint(checkpoint)

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        _own(pl_module).take_from_checkpoint(checkpoint)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        _own(pl_module).start_batch()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _own(pl_module).finish_epoch()

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:  # a fit looks at the end of each epoch
            _own(pl_module).check_weights()

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _own(pl_module).start_evaluation("val")

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _own(pl_module).finish_evaluation("val")

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _own(pl_module).check_weights()

    @override
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _own(pl_module).start_evaluation("test")

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _own(pl_module).finish_evaluation("test")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _own(pl_module).check_weights()

    @override
    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _own(pl_module).predict_primaries.start()

    @override
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _own(pl_module).predict_primaries.stop()


def _own(pl_module: LightningModule) -> "HyperLightningModule":
    """The module, which has made the callback itself."""
    return cast("HyperLightningModule", pl_module)


def has_own_work(pl_module: "HyperLightningModule") -> bool:
    """Whether the trainer has the callback; a tuner takes all callbacks away for its trial.

    Raises:
        UsageError: If a user's ``configure_callbacks`` has left it out.
    """
    callbacks = pl_module.trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, OwnWork) for callback in callbacks):
        return True
    if pl_module.brings_own_work:
        return False
    raise UsageError(
        f"{type(pl_module).__name__}.configure_callbacks leaves out what this library does: add"
        " super().configure_callbacks() to what it returns"
    )
