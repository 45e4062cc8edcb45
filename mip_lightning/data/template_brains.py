"""TemplateBrains: labeled brains without a download, made from nilearn's template."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from mip_lightning.data.subjects import Subject, Subjects, SubjectSource
from mip_lightning.errors import UsageError
from mip_lightning.functional.spatial_transform import integrate, warp

LABEL_NAMES = {
    1: "Left-Grey-Matter",
    2: "Right-Grey-Matter",
    3: "Left-White-Matter",
    4: "Right-White-Matter",
}
CORONAL_MM = -18.0
"""Position of the slice in MNI space: through thalamus and hippocampi."""

SMOOTHNESS_MM = 10.0
"""Standard deviation of the Gaussian that smooths the random velocity."""

AMPLITUDE_MM = 4.0
"""Standard deviation of the random velocity."""


class _Template(NamedTuple):
    image: Float[Tensor, "1 *S"]
    labels: Float[Tensor, "1 *S"]
    brain: Float[Tensor, "1 *S"]
    affine: Float[Tensor, "4 4"]


class TemplateBrains(SubjectSource):
    """The MNI152 template, deformed by random diffeomorphisms, with random changes of intensity.

    Each subject is the template's brain or its coronal slice at y = -18 mm, with gray and white
    matter of either hemisphere as four labels. A subject depends only on ``seed`` and its number.

    Source: MNI ICBM 152 nonlinear symmetric template 2009 (Fonov et al., 2011), from nilearn.

    Args:
        num_subjects: Number of subjects.
        spatial_dims: 2 for coronal slices, 3 for volumes.
        resolution: Edge of a voxel in whole millimeters.
        seed: Seed of the deformations and intensities.

    Raises:
        UsageError: If a value is below 1.
    """

    def __init__(
        self,
        num_subjects: int = 50,
        spatial_dims: Literal[2, 3] = 2,
        resolution: int = 1,
        seed: int = 0,
    ) -> None:
        for name, value in (("num_subjects", num_subjects), ("resolution", resolution)):
            if value < 1:
                raise UsageError(f"{name}={value}: give 1 or more")
        self.num_subjects = num_subjects
        self.spatial_dims = spatial_dims
        self.resolution = resolution
        self.seed = seed

    @override
    def load(self) -> Subjects:
        template = self._template()
        subjects = [self._subject(template, number) for number in range(self.num_subjects)]
        return Subjects(subjects, LABEL_NAMES)

    def _template(self) -> _Template:
        from nilearn import datasets

        image, gray, white, brain = (
            load(resolution=self.resolution)
            for load in (
                datasets.load_mni152_template,
                datasets.load_mni152_gm_template,
                datasets.load_mni152_wm_template,
                datasets.load_mni152_brain_mask,
            )
        )
        affine = np.array(image.affine)
        values, gray, white, brain = (
            np.asarray(volume.get_fdata()) for volume in (image, gray, white, brain)
        )
        left = (affine[0, 3] + affine[0, 0] * np.arange(values.shape[0]) < 0.0)[:, None, None]
        inside = brain > 0.5
        labels = np.zeros(values.shape)
        labels = np.where(inside & (gray > 0.5), np.where(left, 1, 2), labels)
        labels = np.where(inside & (white > 0.5), np.where(left, 3, 4), labels)
        values = np.where(inside, values, 0.0)
        if self.spatial_dims == 2:
            index = round((CORONAL_MM - affine[1, 3]) / affine[1, 1])
            values, labels, inside = values[:, index], labels[:, index], inside[:, index]
            # The axes of the slice are x and z; the third is y, at the slice.
            affine = affine[:, [0, 2, 1, 3]]
            affine[:3, 3] += index * affine[:3, 2]
        # Cropping to the brain moves the origin: the affine must move with it.
        margin = round(8 / self.resolution)
        where = np.argwhere(inside)
        start = np.maximum(where.min(axis=0) - margin, 0)
        stop = where.max(axis=0) + 1 + margin
        box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        affine[:3, 3] += affine[:3, : len(start)] @ start
        return _Template(
            torch.from_numpy(values[box]).float().unsqueeze(0),
            torch.from_numpy(labels[box]).float().unsqueeze(0),
            torch.from_numpy(inside[box]).float().unsqueeze(0),
            torch.from_numpy(affine).float(),
        )

    def _subject(self, template: _Template, number: int) -> Subject:
        from monai.transforms import (  # heavy: each command would wait for it
            Compose,
            RandAdjustContrast,
            RandBiasField,
            RandGaussianNoise,
        )

        seeds = np.random.SeedSequence([self.seed, number]).generate_state(2)
        displacement = self._displacement(
            template.image.shape[1:], torch.Generator().manual_seed(int(seeds[0]))
        )
        image = warp(template.image.unsqueeze(0), displacement)[0]
        labels = warp(template.labels.unsqueeze(0), displacement, "nearest")[0]
        intensity = Compose(
            [
                RandAdjustContrast(prob=1.0, gamma=(0.8, 1.25)),
                RandBiasField(prob=1.0, coeff_range=(0.0, 0.1)),
                RandGaussianNoise(prob=1.0, std=0.02),
            ]
        )
        intensity.set_random_state(seed=int(seeds[1]))
        changed = intensity(image).as_tensor()
        brain = warp(template.brain.unsqueeze(0), displacement, "nearest")[0]
        name = f"brain_{number:03d}"
        return Subject(
            name,
            person=name,
            position="",
            image=(brain * changed).clamp(0.0, 1.0),
            labels=labels.to(torch.uint8),
            affine=template.affine,
        )

    def _displacement(
        self, size: torch.Size, generator: torch.Generator
    ) -> Float[Tensor, "1 D *S"]:
        """A random smooth diffeomorphism: the integral of a velocity that is constant in time."""
        from monai.networks.layers import GaussianFilter

        noise = torch.randn(1, len(size), *size, generator=generator)
        velocity = GaussianFilter(len(size), SMOOTHNESS_MM / self.resolution)(noise)
        velocity *= AMPLITUDE_MM / self.resolution / velocity.std()
        return integrate(velocity)
