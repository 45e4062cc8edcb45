"""The command line: LightningCLI with a run directory."""

from mip_lightning.cli.main import MipLightningCLI

__all__ = [
    "MipLightningCLI",
]
