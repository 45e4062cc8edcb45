"""Private names of torch that functional/README.md lists; a new torch may lose one."""

import re
from operator import attrgetter

import pytest
import torch
import torch.autograd.forward_ad
import torch.utils._pytree
from helpers import ROOT

README = (ROOT / "mip_lightning" / "functional" / "README.md").read_text()

NAMES = [
    "utils._pytree.tree_leaves",
    "utils._pytree.tree_map_only",
    "_C._disabled_torch_function_impl",
    "ops.aten._amp_foreach_non_finite_check_and_unscale_",
    "ops.aten._foreach_norm",
    "ops.aten._foreach_zero_",
    "ops.aten._foreach_mul_",
    "ops.aten._foreach_div_",
    "autograd.forward_ad._current_level",
    "_C._are_functorch_transforms_active",
    "_C._dispatch_tls_is_dispatch_key_included",
]


@pytest.mark.parametrize("name", NAMES)
def test_torch_has_what_the_factored_gradient_leans_on(name):
    attrgetter(name)(torch)
    assert name.rpartition(".")[2] in README


def test_the_readme_lists_every_private_name_that_the_folder_uses():
    private = re.compile(r"(?<![\w.])(?:torch|aten)\.(?:\w+\.)*_(?!_)\w+|_pytree import .*")
    for path in (ROOT / "mip_lightning" / "functional").glob("*.py"):
        for found in private.findall(path.read_text()):
            for name in re.findall(r"\w+", found.split("import")[-1].split(".")[-1]):
                assert name in README, f"{path.name} uses {found}"


def test_forward_mode_and_transforms_are_told_apart_from_ordinary_calls():
    assert torch.autograd.forward_ad._current_level < 0
    assert not torch._C._are_functorch_transforms_active()
    seen = []
    torch.func.vmap(lambda x: (seen.append(torch._C._are_functorch_transforms_active()), x)[1])(
        torch.rand(2)
    )
    assert seen == [True]
    with torch.autograd.forward_ad.dual_level():
        assert torch.autograd.forward_ad._current_level >= 0
