"""CheckpointedModule: what the checkpoints of a hypermodel hold, and what is refused of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from mip_lightning.core._checkpointing import (
    check_same_architecture,
    check_same_tensors,
    way_out,
)
from mip_lightning.errors import NonFiniteError, UsageError
from mip_lightning.hypernetworks.hypermodel import HyperModel
from mip_lightning.utilities.files import check_unchanged
from mip_lightning.utilities.finite import first_not_finite, trained_weights

Module = TypeVar("Module", bound="CheckpointedModule")


class CheckpointedModule(LightningModule):
    """A module around a hypermodel whose checkpoints are whole, finite, and of this model.

    Attributes:
        model: The hypermodel.
        gamma_seed: The seed of the stream of gamma.
    """

    model: HyperModel

    def __init__(self) -> None:
        super().__init__()
        self.gamma_seed = torch.initial_seed()
        self._saved_architecture: Mapping[str, str] = {}  # of the checkpoint that is being loaded

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what this module needs; of weights alone Lightning asks no callback."""
        if "architecture" not in checkpoint:  # else the callback has kept it
            self.keep_in_checkpoint(checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what was kept; in evaluation Lightning asks no callback."""
        self.take_from_checkpoint(checkpoint)

    def keep_in_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed of the gamma stream, the state of torch's, and what tensors do not tell.

        Raises:
            NonFiniteError: If a weight is not finite.
        """
        self.check_weights()
        checkpoint["gamma_seed"] = self.gamma_seed
        checkpoint["random_state"] = torch.get_rng_state()
        checkpoint["architecture"] = self.model.describe()

    def take_from_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the streams of random numbers; refuse weights that are not finite.

        On one rank a run that is resumed at the end of an epoch so goes on with the batches,
        augmentations and dropout (on a CPU) of the undisturbed one, unless other processes load
        them. On several, each has a stream of its own, and the checkpoint that of one.

        Raises:
            UsageError: If a weight is not finite.
        """
        self.gamma_seed = checkpoint.get("gamma_seed", self.gamma_seed)
        if self._resumes_alone() and "random_state" in checkpoint:
            torch.set_rng_state(checkpoint["random_state"])
        self._saved_architecture = checkpoint.get("architecture", {})
        found = checkpoint["state_dict"]
        weights = {name: found[name] for name in trained_weights(self) if name in found}
        if name := first_not_finite(weights):
            raise UsageError(
                f"ckpt_path: the checkpoint's {name} holds NaN or infinity: take another checkpoint"
            )

    @override
    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Torch's; where it is strict, the checkpoint of another model is refused.

        Raises:
            UsageError: If names or shapes of the tensors differ from this model's, or the prior,
                encoding or trunk of the checkpoint does that is being loaded.
        """
        saved, self._saved_architecture = self._saved_architecture, {}
        if strict:
            check_same_tensors(state_dict, self.state_dict())
            check_same_architecture(saved, self.model.describe())
        return super().load_state_dict(state_dict, strict, assign)

    @classmethod
    @override
    def load_from_checkpoint(  # a type variable and not Self, which shape checks do not know
        cls: type[Module], checkpoint_path: Any, *args: Any, **kwargs: Any
    ) -> Module:
        """Lightning's, once the checkpoint's bytes are seen to be those that were written.

        Raises:
            UsageError: If bytes of the file have changed.
        """
        if isinstance(checkpoint_path, (str, Path)) and Path(checkpoint_path).is_file():
            check_unchanged(checkpoint_path, "checkpoint_path")
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def check_weights(self) -> None:
        """Look whether all weights are finite, which waits once for the device.

        Raises:
            NonFiniteError: If one is not.
        """
        name = first_not_finite(trained_weights(self))
        if name is None:
            return
        trainer = self._attached_trainer()
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            raise NonFiniteError(f"{name} holds NaN or infinity: give weights that are finite")
        raise NonFiniteError(
            f"{name} holds NaN or infinity at step {trainer.global_step} (epoch"
            f" {trainer.current_epoch}): look for such numbers in the data, or {way_out(trainer)}"
            " with a lower learning rate; the callback TrainingStability names the step"
        )

    def _resumes_alone(self) -> bool:
        """Whether a fit goes on, on one rank."""
        trainer = self._attached_trainer()
        return trainer is not None and (
            trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1
        )

    def _attached_trainer(self) -> Trainer | None:
        try:
            return self.trainer
        except RuntimeError:  # there is none
            return None
