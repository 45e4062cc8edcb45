"""NiftiWriter: the volumes that ``predict`` makes, a NIfTI file each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from mip_lightning.callbacks._files import legible, run_folder
from mip_lightning.core.outputs import Volume
from mip_lightning.errors import UsageError
from mip_lightning.utilities.files import replacing


class NiftiWriter(BasePredictionWriter):
    """Writes each ``Volume`` of a batch as ``<name>.nii.gz``, as soon as it is there.

    The files lie in the run's folder. Images of two dimensions get a third of one voxel. Vectors
    stand along the fifth dimension, with NIfTI's intent for vectors; a slice of them has a second
    plane that is equal, for ITK takes a single one for a flat image. Every rank writes its own.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self._folder = Path()
        self._count = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._folder = run_folder(trainer)
        self._count = 0

    @override
    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Sequence[Volume],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # Lightning sets it from elsewhere
            return
        for volume in prediction:
            path = self._folder / f"{volume.name}.nii.gz"
            with replacing(path) as unfinished:
                nibabel.save(nifti(volume), unfinished)
            self._count += 1

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rank_zero_info(f"{self._count} volumes: {self._folder}")


def nifti(volume: Volume) -> nibabel.Nifti1Image:
    """A volume as NIfTI has it.

    Raises:
        UsageError: If its affine is in half precision.
    """
    if volume.affine.dtype in (torch.float16, torch.bfloat16):
        raise UsageError(
            f"affine of {volume.name}: it is in {volume.affine.dtype}, which rounds 130.3 mm:"
            " the trainer's precision rounds the tensors of a batch, so give affines as arrays of"
            " NumPy, or predict with precision='32-true'"
        )
    values = legible(volume.values).numpy()
    axes = values.ndim - volume.is_vector
    shape = [*values.shape[:axes], *[1] * (3 - axes)]
    if volume.is_vector:
        shape += [1, values.shape[-1]]
    values = values.reshape(shape)
    if volume.is_vector and axes == 2:
        values = values.repeat(2, axis=2)
    image = nibabel.Nifti1Image(values, volume.affine.double().numpy())
    image.header.set_xyzt_units("mm")
    if volume.is_vector:
        image.header.set_intent("vector")
    return image
