"""Each sample is evaluated once, on any number of ranks."""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from mip_lightning.core import take_samples
from mip_lightning.core._evaluated_samples import EvaluatedSamples


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_the_samples_of_all_ranks_are_each_sample_once(ranks, batch_size, shuffle):
    for size in range(1, 13):
        seen: list[int] = []
        for rank in range(ranks):
            sampler = DistributedSampler(range(size), ranks, rank, shuffle=shuffle)
            loader = DataLoader(torch.arange(size), batch_size, sampler=sampler)
            evaluated = EvaluatedSamples()
            for _ in range(2):  # epochs, the first of which breaks off
                evaluated.start()
                found = [evaluated.of(batch, loader) for batch in loader]
            seen += [i for batch in found if batch is not None for i in batch.tolist()]
        assert sorted(seen) == list(range(size))


def test_a_batch_sampler_of_a_users_own_is_looked_into():
    sampler = DistributedSampler(range(5), 2, 1, shuffle=False)
    loader = DataLoader(torch.arange(5), batch_sampler=BatchSampler(sampler, 2, False))
    evaluated = EvaluatedSamples()
    evaluated.start()
    assert [evaluated.of(batch, loader) for batch in loader][1] is None  # 1, 3 and again 0
    loader = DataLoader(torch.arange(5), 2, sampler=SequentialSampler(range(5)))
    assert [evaluated.of(batch, loader).tolist() for batch in loader] == [[0, 1], [2, 3], [4]]


def test_what_a_sampler_leaves_out_is_not_its_repeated_samples():
    sampler = DistributedSampler(range(5), 2, 1, shuffle=False, drop_last=True)
    loader = DataLoader(torch.arange(5), 2, sampler=sampler)
    assert [EvaluatedSamples().of(batch, loader).tolist() for batch in loader] == [[1, 3]]


@dataclass
class Batch:
    x: Tensor
    names: list[str]


FIRST, SECOND = slice(1), slice(1, 2)


def test_samples_are_taken_from_all_parts_of_a_batch():
    x, y = torch.arange(6.0).reshape(2, 3), torch.arange(2)
    assert torch.equal(take_samples(x, FIRST, 2), x[:1])
    one, other = take_samples([x, y], FIRST, 2)  # two fields of two samples
    assert torch.equal(one, x[:1])
    assert torch.equal(other, y[:1])
    batch = OrderedDict(
        x=x, name=["a", "b"], boxes=[{"b": y}, {"b": y}], scale=2.0, w=x[0], none=None,
        affine=np.stack([np.eye(4), 2 * np.eye(4)]),
    )  # fmt: skip
    found = take_samples(batch, SECOND, 2)
    assert type(found) is OrderedDict
    assert len(batch["x"]) == 2
    assert (len(found["x"]), found["name"], len(found["boxes"])) == (1, ["b"], 1)
    assert (found["scale"], found["none"]) == (2.0, None)
    assert np.array_equal(found["affine"], 2 * np.eye(4)[None])
    assert torch.equal(found["w"], x[0])
    same = take_samples(Batch(x, ["a", "b"]), FIRST, 2)
    assert (len(same.x), same.names) == (1, ["a"])


def test_a_batch_that_cannot_be_split_is_said():
    class Graph:
        pass

    with pytest.warns(UserWarning, match="cannot be taken from a Graph"):
        take_samples(Graph(), FIRST, 2)
