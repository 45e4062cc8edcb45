"""SaveRunConfig: the parsed configuration, in the run's folder."""

from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

from mip_lightning.cli._run_directory import free_config


class SaveRunConfig(SaveConfigCallback):
    """Saves the parsed configuration to the run's folder, under a new name in a resumed run.

    When the work starts, not before: by then the checkpoint, if there is one, was taken up. A
    command that is refused must not leave its configuration to the run that it names.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass  # not yet: a command that is refused must leave nothing

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "validate")

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "test")

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "predict")

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        config = self.config.clone()
        config.run_dir = None  # names this run, not one that starts from its configuration
        path = free_config(Path(trainer.default_root_dir))
        self.parser.save(config, path, skip_none=False)
