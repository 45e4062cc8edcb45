"""A written displacement, as SimpleITK and nitransforms read it.

voxelmorph issue 438, ANTsPy issue 841: a field whose header says millimeters and whose numbers are
voxels.
"""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # its own documents call it so
import torch
from nitransforms.nonlinear import DenseFieldTransform
from nitransforms.resampling import apply
from torch import nn
from torch.utils.data import DataLoader

from mip_lightning.callbacks.nifti_writer import nifti
from mip_lightning.core.requested_gamma import RequestedGamma
from mip_lightning.data.image_pairs import ImagePairs, PairDataset
from mip_lightning.data.subjects import Subject
from mip_lightning.functional.spatial_transform import warp
from mip_lightning.networks import ConstantWidthUNet
from mip_lightning.tasks import Registration


def affine_of(directions: np.ndarray, spacing: list[float], origin: list[float]) -> torch.Tensor:
    affine = np.eye(4)
    affine[:3, :3] = directions @ np.diag(spacing)
    affine[:3, 3] = origin
    return torch.tensor(affine)


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return about_z @ about_x


RAS, LPS = np.eye(3), np.diag([-1.0, -1.0, 1.0])
CORONAL = np.array([[1.0, 0, 0], [0, 0, 1], [0, 1, 0]])  # axes: right, superior, anterior
GRIDS = {
    "RAS": affine_of(RAS, [1, 1, 1], [-10, 5, 3]),
    "LPS": affine_of(LPS, [2, 2, 2], [30, 40, -20]),
    "anisotropic": affine_of(RAS, [0.8, 3.0, 1.7], [12, -7, 0]),
    "oblique": affine_of(turned(20), [1.2, 0.9, 2.5], [-31, 17, 8]),
    "oblique LPS": affine_of(turned(-35) @ LPS, [1.5, 1.0, 0.7], [100, 90, -60]),
}


def subject(name: str, size: tuple[int, ...], affine: torch.Tensor) -> Subject:
    image = nn.functional.avg_pool3d(torch.rand(1, *size), 3, 1, 1) if len(size) == 3 else None
    if image is None:
        image = nn.functional.avg_pool2d(torch.rand(1, *size), 3, 1, 1)
    return Subject(name, name, "", image, (image > 0.5).to(torch.uint8), affine)


def written(
    folder: Path, moving: Subject, fixed: Subject
) -> tuple[Path, Path, Path, torch.Tensor, torch.Tensor]:
    """The files of the moving image, its warped one and its displacement, and the latter itself."""
    dims = moving.image.ndim - 1
    pairs = PairDataset([moving, fixed], None)
    (batch, _) = DataLoader(pairs, 1, collate_fn=ImagePairs.collate)
    assert batch["moving_name"] == ["moving"]
    task = Registration(ConstantWidthUNet(2, dims, dims, features=2, levels=2)).eval()
    size = batch["fixed"].shape[2:]
    coarse = 3 * torch.randn(1, dims, *[4] * dims)
    mode = "bilinear" if dims == 2 else "trilinear"
    flow = nn.functional.interpolate(coarse, size=size, mode=mode, align_corners=True)
    task.flow = lambda batch, primary: flow
    task.requested = RequestedGamma(task.model.prior, 0.5)
    with torch.no_grad():
        image, _, displacement = task.predict_step(batch, 0)
    paths = []
    source = moving.image[0].reshape(*moving.image.shape[1:], *[1] * (3 - dims)).numpy()
    for name, volume in (
        ("moving", nibabel.Nifti1Image(source, moving.affine.numpy())),
        ("warped", nifti(image)),
        ("displacement", nifti(displacement)),
    ):
        paths.append(folder / f"{name}.nii.gz")
        nibabel.save(volume, paths[-1])
    return *paths, image.values, flow


SIZES = [((9, 10, 8), (9, 10, 8)), ((7, 11, 9), (10, 8, 9))]


@pytest.mark.parametrize("sizes", SIZES, ids=["one size", "two sizes"])
@pytest.mark.parametrize("grid", GRIDS)
def test_itk_and_nitransforms_warp_as_we_do(tmp_path, grid, sizes):
    fixed_size, moving_size = sizes
    other = GRIDS[grid].clone()
    other[:3, 3] += torch.tensor([3.0, -2.0, 1.5])  # the moving image was taken elsewhere
    moving, fixed = subject("moving", moving_size, other), subject("fixed", fixed_size, GRIDS[grid])
    source, target, field, expected, _ = written(tmp_path, moving, fixed)

    image = sitk.ReadImage(str(source))
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field), sitk.sitkVectorFloat64))
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(sitk.ReadImage(str(target)))
    resampler.SetTransform(transform)
    resampler.UseNearestNeighborExtrapolatorOn()  # at the border beyond it, as we have it
    found = sitk.GetArrayFromImage(resampler.Execute(image)).T
    inside = sitk.GetArrayFromImage(_inside(image, resampler)).T > 0
    assert inside.mean() > 0.3
    np.testing.assert_allclose(found[inside], expected.numpy()[inside], atol=2e-4)

    field_transform = DenseFieldTransform.from_filename(field, fmt="itk")
    target_image = nibabel.load(target)
    ones = nibabel.Nifti1Image(np.ones(moving_size, dtype=np.float32), other.numpy())
    theirs, weights = (
        np.asarray(apply(field_transform, values, target_image, order=1, prefilter=False).dataobj)
        for values in (nibabel.load(source), ones)
    )
    inside = weights > 0.999  # where it takes a voxel from beyond the border, it has 0
    assert inside.mean() > 0.3
    np.testing.assert_allclose(theirs[inside], expected.numpy()[inside], atol=2e-4)


def _inside(image: sitk.Image, resampler: sitk.ResampleImageFilter) -> sitk.Image:
    """Where a voxel comes from within the moving image, and not from beyond its border."""
    ones = sitk.Image(image.GetSize(), sitk.sitkFloat32) + 1.0
    ones.CopyInformation(image)
    resampler.UseNearestNeighborExtrapolatorOff()
    resampler.SetDefaultPixelValue(0.0)
    return resampler.Execute(ones)


@pytest.mark.parametrize("grid", GRIDS)
def test_itk_moves_points_as_we_do(tmp_path, grid):
    size = (6, 7, 5)
    moving, fixed = subject("moving", size, GRIDS[grid]), subject("fixed", size, GRIDS[grid])
    *_, field, _, flow = written(tmp_path, moving, fixed)
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field), sitk.sitkVectorFloat64))
    to_lps = np.diag([-1.0, -1.0, 1.0])
    matrix, origin = GRIDS[grid][:3, :3].numpy(), GRIDS[grid][:3, 3].numpy()
    for voxel in ((0, 0, 0), (3, 2, 4), (5, 6, 1), (2, 5, 3)):
        there = voxel + flow[0, :, *voxel].double().numpy()
        start, end = (to_lps @ (matrix @ np.array(x) + origin) for x in (voxel, there))
        assert transform.TransformPoint(start.tolist()) == pytest.approx(end.tolist(), abs=1e-4)


def test_itk_warps_a_slice_as_we_do(tmp_path):
    affine = affine_of(CORONAL, [1.5, 1.0, 2.0], [5, -8, 20])
    moving, fixed = subject("moving", (9, 12), affine), subject("fixed", (9, 12), affine)
    source, target, field, expected, flow = written(tmp_path, moving, fixed)
    transform = sitk.DisplacementFieldTransform(sitk.ReadImage(str(field), sitk.sitkVectorFloat64))
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(sitk.ReadImage(str(target)))
    resampler.SetTransform(transform)
    image = sitk.ReadImage(str(source))
    found = sitk.GetArrayFromImage(resampler.Execute(image)).T[..., 0]
    inside = sitk.GetArrayFromImage(_inside(image, resampler)).T[..., 0] > 0
    assert inside.mean() > 0.3
    np.testing.assert_allclose(found[inside], expected.numpy()[inside], atol=2e-4)
    again = warp(moving.image[None], flow)[0, 0]
    torch.testing.assert_close(expected, again)
