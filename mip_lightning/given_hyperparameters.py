"""Whether a module is made by the command line, whose parsed values are plain."""

from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin


class _GivenHyperparameters(HyperparametersMixin):
    """Sees what Lightning's command line hands to every ``save_hyperparameters``."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)


def made_by_command_line() -> bool:
    """Whether Lightning's command line makes the module whose constructor asks."""
    return "_instantiator" in _GivenHyperparameters().hparams
