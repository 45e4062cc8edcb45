"""The benchmarks run; what they find is no test."""

import csv
from pathlib import Path

from benchmarks import callbacks, evaluate, gammas


def test_the_benchmark_of_gammas_writes_a_row_for_each_contestant():
    gammas.run(rounds=2, size=8, out=Path("gammas.csv"))
    with Path("gammas.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [row["contestant"] for row in rows]
    assert names == ["K = 1", "K = 8", "K = 8, loop", "K = 64", "K = 64, loop"]
    assert all(float(row["median_ms"]) > 0 for row in rows)


def test_the_benchmark_of_callbacks_compares_all_with_none():
    callbacks.run(rounds=1, steps=8, size=8, out=Path("callbacks.csv"))
    with Path("callbacks.csv").open(newline="") as file:
        assert [row["contestant"] for row in csv.DictReader(file)] == ["none", "all"]


def test_the_benchmark_of_evaluation_compares_a_sweep_with_ordinary_networks():
    evaluate.run(rounds=1, gammas=2, small=True, out=Path("evaluate.csv"))
    with Path("evaluate.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["network"] for row in rows] == ["LeNet"] * 4 + ["U-Net"] * 4
    assert [row["contestant"] for row in rows[:3]] == ["plain", "materialized", "hypernetwork"]
