"""The 1,797 handwritten digits that scikit-learn ships: real data without a download."""

import torch
from torch.utils.data import TensorDataset
from typing_extensions import override

from mip_lightning.data.classification import InMemoryClassification

TEST_FRACTION = 0.2
TEST_SEED = 0


class Digits(InMemoryClassification):
    """Images of 1 x 8 x 8 pixels in [0, 1], ten classes.

    scikit-learn ships only the test images of the UCI set, so there is no official split: a
    stratified 20 % (360 images), chosen with a fixed seed, is for test.
    """

    @override
    def load(self) -> tuple[TensorDataset, TensorDataset]:
        from sklearn.datasets import load_digits  # heavy: each command would wait for it
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = torch.from_numpy(digits.images).float().div(16.0).unsqueeze(1)
        labels = torch.from_numpy(digits.target).long()
        train, test = train_test_split(
            torch.arange(len(labels)),
            test_size=TEST_FRACTION,
            stratify=labels,
            random_state=TEST_SEED,
        )
        return TensorDataset(images[train], labels[train]), TensorDataset(
            images[test], labels[test]
        )
