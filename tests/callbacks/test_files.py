import torch
from helpers import rows

from mip_lightning.callbacks._files import StepTable


def test_numbers_of_single_precision_are_written_in_their_own_digits(tmp_path):
    table = StepTable(tmp_path / "t.csv", ["step", "value", "name"], None)
    for value in (torch.tensor(0.05).item(), 1 / 3, 1.0, float("nan")):
        table.append([{"step": 1, "value": value, "name": "a"}])
    values = [row["value"] for row in rows(tmp_path / "t.csv")]
    assert values == ["0.05", "0.3333333333333333", "1.0", "nan"]
