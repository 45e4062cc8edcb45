import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mip_lightning import IdentityEncoding, L2Encoding, LogUniform, Normal, Uniform


@given(
    st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
)
def test_e_l2_has_norm_one_in_each_dimension_whatever_gamma_is(values):
    gamma = torch.tensor([values])
    encoded = L2Encoding(Uniform(0, 1, dim=3))(gamma)
    assert encoded.shape == (1, 6)
    pairs = encoded.view(2, 3)  # all cosines, then all sines
    torch.testing.assert_close(pairs.norm(dim=0), torch.ones(3))


def test_e_l2_is_all_cosines_then_all_sines_of_the_unit_value():
    encoded = L2Encoding(Uniform(-1, 3, dim=2))(torch.tensor([[-1.0, 1.0]]))
    unit = np.array([0.0, 0.5])
    expected = np.concatenate([np.cos(unit * np.pi / 2), np.sin(unit * np.pi / 2)])
    np.testing.assert_allclose(encoded[0].numpy(), expected, atol=1e-7)


def test_the_prior_chooses_the_scaling():
    half = [np.cos(np.pi / 4), np.sin(np.pi / 4)]
    middle_of_logs = L2Encoding(LogUniform(1e-2, 1e2))(torch.tensor([[1.0]]))
    np.testing.assert_allclose(middle_of_logs[0].numpy(), half, atol=1e-6)
    middle_of_normal = L2Encoding(Normal(5, 2))(torch.tensor([[5.0]]))
    np.testing.assert_allclose(middle_of_normal[0].numpy(), half, atol=1e-6)


def test_the_default_encoding_is_gamma_itself():
    gamma = torch.tensor([[3.0, -2.0]])
    encoding = IdentityEncoding(Uniform(-5, 5, dim=2))
    assert torch.equal(encoding(gamma), gamma)
    assert encoding.num_features == 2
