"""SaveRunConfig: the parsed configuration, in the run's folder."""

import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse.typing import register_type
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from typing_extensions import override

from mip_lightning.cli._run_directory import free_config
from mip_lightning.errors import UsageError
from mip_lightning.utilities.files import replacing

UNWRITTEN = "Unable to serialize instance"
"""What the parser writes in place of a value that it cannot write, as some object."""

# Lightning's StochasticWeightAveraging has one by default.
register_type(torch.device, str, torch.device)


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
        """Save the configuration, and in ``fit`` read it back, before anything is trained.

        Raises:
            UsageError: If it cannot be read back.
        """
        config = self.config.clone()
        config.run_dir = None  # names this run, not one that starts from its configuration
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", rf"\s*{UNWRITTEN}")  # such values are left out
            content = _serializable(yaml.safe_load(self.parser.dump(config, skip_none=False)))
        text = yaml.safe_dump(content, sort_keys=False)
        path = free_config(Path(trainer.default_root_dir))
        if stage == "fit":
            try:
                self.parser.parse_string(text)
            except (SystemExit, TypeError, ValueError) as error:
                raise UsageError(
                    f"{path} could not be read back, so that the run could not be tested or"
                    f" repeated: {error}"
                ) from error
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def _serializable(node: Any) -> Any:
    """A configuration without the values that the parser could not write.

    They are defaults, which reading brings back: what a user gives was text.
    """
    if isinstance(node, dict):
        return {k: _serializable(v) for k, v in node.items() if not _is_unwritten(v)}
    return [_serializable(value) for value in node] if isinstance(node, list) else node


def _is_unwritten(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(UNWRITTEN)
