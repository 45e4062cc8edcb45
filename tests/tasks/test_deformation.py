import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.blocks import DVF2DDF, Warp

from mip_lightning import UsageError
from mip_lightning.functional.spatial_transform import integrate, warp
from mip_lightning.tasks import (
    Displacement,
    SquaredError,
    SquaredGradientPenalty,
    StationaryVelocity,
    TotalVariationPenalty,
)
from mip_lightning.tasks._dice import dice_by_label
from mip_lightning.tasks.registration.deformation import (
    jacobian_determinant,
    resized,
    spatial_gradient,
)
from mip_lightning.tasks.registration.metrics import (
    FoldedShare,
    GradientMagnitude,
    MeanDice,
)
from mip_lightning.tasks.registration.pairs import OwnPairs, own_pairs


def linear(matrix: list[list[float]], size: tuple[int, ...]) -> torch.Tensor:
    """The displacement ``u(x) = matrix x``, of x counted from the corner, shape (1, D, *S)."""
    where = torch.stack(torch.meshgrid(*[torch.arange(n) * 1.0 for n in size], indexing="ij"))
    return torch.einsum("ij,j...->i...", torch.tensor(matrix), where).unsqueeze(0)


@pytest.mark.parametrize("size", [(6, 5), (6, 5, 4)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_a_shift_by_whole_voxels_moves_the_image_exactly(size, mode):
    image = torch.rand(1, 1, *size)
    shift = torch.zeros(1, len(size), *size)
    shift[:, 0], shift[:, 1] = 2, -1
    moved = warp(image, shift, mode)
    torch.testing.assert_close(moved[:, :, :4, 1:], image[:, :, 2:, :-1])
    torch.testing.assert_close(
        moved[:, :, 4:, 1:], image[:, :, 5:, :-1].expand(1, 1, 2, *[-1] * (len(size) - 1))
    )


@pytest.mark.filterwarnings("ignore:.*Using PyTorch native grid_sample")  # MONAI, of itself
@pytest.mark.parametrize("size", [(6, 5), (6, 5, 4)])
def test_warping_and_integration_are_monais_to_the_last_bit(size):
    field = torch.randn(2, len(size), *size, generator=torch.Generator().manual_seed(0))
    image = torch.rand(2, 3, *size)
    for mode in ("bilinear", "nearest"):
        theirs = Warp(mode=mode, padding_mode="border")(image, field)
        assert torch.equal(warp(image, field, mode), theirs)
    gradients = []
    for integral in (integrate, DVF2DDF(7, padding_mode="border")):
        velocity = field.clone().requires_grad_()
        displacement = integral(velocity)
        (gradient,) = torch.autograd.grad(displacement.square().sum(), velocity)
        gradients.append((displacement, gradient))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_an_axis_of_one_voxel_is_one_along_which_all_voxels_are_the_same():
    # MONAI 1.5 divides by zero there.
    field, image = torch.randn(2, 2, 6, 1).requires_grad_(), torch.rand(2, 3, 6, 1)
    thin = warp(image, integrate(field))
    thick = warp(image.expand(-1, -1, -1, 3), integrate(field.expand(-1, -1, -1, 3)))
    torch.testing.assert_close(thick, thin.expand(-1, -1, -1, 3))
    (gradient,) = torch.autograd.grad(thin.square().sum(), field)
    assert gradient.isfinite().all()
    assert gradient[:, 0].abs().sum() > 0


@pytest.mark.parametrize("size", [(6, 5), (6, 5, 4)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    "deformation", [Displacement(), StationaryVelocity(), StationaryVelocity(half_resolution=True)]
)
def test_no_flow_changes_nothing(size, mode, deformation):
    image = torch.rand(2, 1, *size)
    displacement = deformation(torch.zeros(2, len(size), *size)).displacement
    assert torch.equal(displacement, torch.zeros(2, len(size), *size))
    torch.testing.assert_close(warp(image, displacement, mode), image)


def test_penalties_of_a_linear_flow():
    # u0 = 0.5 x0 - 2 x1, u1 = 0: differences 0.5 and 0 along axis 0, -2 and 0 along axis 1.
    flow = linear([[0.5, -2.0], [0.0, 0.0]], (7, 5))
    total_variation = ((0.5 + 0.0) / 2 + (2.0 + 0.0) / 2) / 2
    squared = ((0.25 + 0.0) / 2 + (4.0 + 0.0) / 2) / 2
    assert TotalVariationPenalty()(flow).item() == pytest.approx(total_variation)
    assert SquaredGradientPenalty()(flow).item() == pytest.approx(squared)
    assert SquaredGradientPenalty(factor=2.0)(flow).item() == pytest.approx(2 * squared)
    volume = linear([[0.0, 0.0, 3.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], (4, 5, 3))
    assert TotalVariationPenalty()(volume).item() == pytest.approx(3.0 / 9)
    assert SquaredGradientPenalty()(volume).item() == pytest.approx(9.0 / 9)


def test_the_squared_error_is_in_units_of_the_noise():
    warped, fixed = torch.tensor([[[[0.1, 0.3]]]]), torch.tensor([[[[0.0, 0.1]]]])
    assert SquaredError(0.05)(warped, fixed).item() == pytest.approx((0.01 + 0.04) / 2 / 0.0025)
    assert SquaredError(1.0)(warped, fixed).item() == pytest.approx(0.025)
    with pytest.raises(UsageError, match=r"image_sigma=0.0"):
        SquaredError(0.0)


@pytest.mark.parametrize(
    "matrix",
    [
        [[1.5, 0.2], [0.1, 0.8]],
        [[0.7, 0.3, 0.0], [-0.2, 1.1, 0.4], [0.5, 0.0, 0.9]],
    ],
)
def test_the_jacobian_of_an_affine_map_is_its_determinant_everywhere(matrix):
    affine = torch.tensor(matrix)
    size = (5, 6, 4)[: len(matrix)]
    displacement = linear((affine - torch.eye(len(matrix))).tolist(), size)
    determinant = jacobian_determinant(displacement)
    assert determinant.shape == (1, *size)
    expected = torch.full_like(determinant, float(torch.linalg.det(affine.double())))
    torch.testing.assert_close(determinant, expected, atol=1e-5, rtol=1e-5)


def test_a_shear_folds_only_where_it_turns_the_image_over():
    size = (8, 9)
    plain = linear([[0.0, 3.0], [0.0, 0.0]], size)  # x0 + 3 x1: area is kept
    both = linear([[0.0, 2.0], [2.0, 0.0]], size)  # determinant 1 - 4
    half = plain.clone()
    half[:, 0, 4:] = linear([[-2.0, 0.0], [0.0, 0.0]], size)[:, 0, 4:]
    for displacement, share in ((plain, 0.0), (both, 1.0)):
        metric = FoldedShare()
        metric.update([displacement], [])
        assert metric.compute() == share
    metric.update([plain], [])
    assert metric.compute() == 0.5  # over two samples
    assert 0.0 < FoldedShare()([half], []) < 1.0


def test_the_gradient_magnitude_of_a_linear_flow_is_the_norm_of_its_matrix():
    metric = GradientMagnitude()
    metric.update([linear([[3.0, 0.0], [0.0, 4.0]], (6, 5))], [])
    assert metric.compute() == pytest.approx(5.0)
    shift = torch.full((1, 2, 6, 5), 7.0)
    assert GradientMagnitude()([shift], []) == 0.0


def test_along_an_axis_of_one_voxel_nothing_changes():
    thin = torch.randn(2, 2, 6, 1)
    thick = thin.expand(-1, -1, -1, 3)
    for measure in (spatial_gradient, jacobian_determinant):
        torch.testing.assert_close(measure(thin), measure(thick)[..., :1])
    for metric in (FoldedShare(), GradientMagnitude()):
        torch.testing.assert_close(metric([thin], []), metric([thick], []))


def labelled(moving: torch.Tensor, fixed: torch.Tensor) -> list[OwnPairs]:
    """Pairs with these labels, without padding."""
    batch = {"moving": moving, "fixed": fixed, "moving_labels": moving, "fixed_labels": fixed}
    dims = moving.ndim - 2
    return own_pairs(batch, torch.zeros(len(moving), dims, *moving.shape[2:]))


def test_dice_of_known_masks():
    moving = torch.zeros(1, 1, 4, 4)
    fixed = torch.zeros(1, 1, 4, 4)
    moving[..., 0, :] = 1  # 4 voxels
    fixed[..., 0:2, 0:3] = 1  # 6 voxels, of which 3 in the first row
    moving[..., 3, 0:2] = 3  # in one image only
    dice = dice_by_label(moving, fixed, 6)
    assert dice[0, 0].item() == pytest.approx(2 * 3 / (4 + 6))
    assert dice[0, 2].item() == 0.0
    assert dice[0, [1, 3, 4]].isnan().all()  # in neither


def test_mean_dice_is_over_the_labels_of_a_pair_and_then_over_pairs():
    labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    labels[0, :, :2], labels[0, :, 2:], labels[1, :, :2] = 1, 2, 1
    other = labels.clone()
    other[0, :, 2:] = 0  # label 2 is lost in the first pair
    metric = MeanDice()
    still = torch.zeros(2, 2, 4, 4)
    metric.update([still], labelled(other, labels))
    assert metric.compute() == pytest.approx(((1.0 + 0.0) / 2 + 1.0) / 2)
    assert {k: v.item() for k, v in metric.compute_by_label().items()} == {1: 1.0, 2: 0.0}
    background = torch.zeros_like(labels)
    metric.update([still], labelled(background, background))
    assert metric.compute() == pytest.approx(0.75)  # pairs without labels do not count
    with pytest.raises(UsageError, match="moving_labels"):
        metric.update([still], own_pairs({"moving": still[:, :1], "fixed": still[:, :1]}, still))


def test_labels_are_warped_before_dice():
    moving = torch.zeros(1, 1, 6, 6, dtype=torch.uint8)
    moving[..., 1:3, 1:3] = 7
    fixed = moving.roll((2, 1), dims=(2, 3))
    shift = torch.zeros(1, 2, 6, 6)
    shift[:, 0], shift[:, 1] = -2, -1
    assert MeanDice()([shift], labelled(moving, fixed)) == 1.0


def test_a_constant_velocity_is_a_shift_and_a_linear_one_grows_exponentially():
    deformation = StationaryVelocity(num_steps=8)
    constant = torch.full((1, 2, 16, 16), 1.5)
    torch.testing.assert_close(deformation(constant).displacement, constant)
    rate = 0.2
    velocity = linear([[rate, 0.0], [0.0, 0.0]], (32, 8)) - rate * 16 * torch.tensor(
        [1.0, 0.0]
    ).view(1, 2, 1, 1)
    where = torch.arange(32.0) - 16
    found = deformation(velocity).displacement[0, 0, 6:26, 4]
    torch.testing.assert_close(found, (math.exp(rate) - 1) * where[6:26], atol=5e-3, rtol=5e-3)


def test_a_velocity_backwards_is_the_inverse():
    torch.manual_seed(0)
    coarse = torch.randn(1, 2, 5, 5) * 3
    velocity = torch.nn.functional.interpolate(coarse, (40, 40), mode="bicubic")
    deformation = StationaryVelocity()
    forward, backward = (deformation(sign * velocity).displacement for sign in (1, -1))
    assert forward.abs().max() > 2
    there_and_back = backward + warp(forward, backward)
    assert there_and_back[..., 8:-8, 8:-8].abs().mean() < 0.05


@settings(max_examples=20)
@given(st.integers(4, 12), st.integers(4, 12), st.floats(-0.5, 0.5))
def test_a_linear_flow_is_itself_at_another_resolution(height, width, slope):
    flow = linear([[slope, 0.0], [0.0, slope]], (height, width))
    half = resized(flow, (height // 2, width // 2))
    torch.testing.assert_close(
        half, linear([[slope, 0.0], [0.0, slope]], (height // 2, width // 2)), atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(resized(half, (height, width)), flow, atol=1e-5, rtol=1e-4)


def test_half_resolution_regularizes_the_coarse_field():
    flow = linear([[0.1, 0.0], [0.0, 0.2]], (8, 12))
    deformed = Displacement(half_resolution=True)(flow)
    assert deformed.regularized.shape == (1, 2, 4, 6)
    torch.testing.assert_close(deformed.displacement, flow, atol=1e-5, rtol=1e-4)
    with pytest.raises(UsageError, match="num_steps=0"):
        StationaryVelocity(num_steps=0)
