"""The benchmarks run; what they find is no test."""

import csv
import os
import subprocess
import sys
from pathlib import Path

from helpers import ROOT

from benchmarks import (
    callbacks,
    channels_last,
    data,
    evaluate,
    gammas,
    held_memory,
    parts,
    scale,
    step,
)
from benchmarks.timing import Row, report


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


def test_the_benchmark_of_a_step_compares_all_contestants_and_their_memory(monkeypatch):
    cases = step.cases
    monkeypatch.setattr(step, "cases", lambda small: cases(small)[:1])
    step.run(rounds=2, small=True, out=Path("step.csv"))
    with Path("step.csv").open(newline="") as file:
        rows = {row["contestant"]: row for row in csv.DictReader(file)}
    assert list(rows) == [
        "plain", "default", "mip", "mip-written-out", "hyperlight-adam", "hyperlight-fused", "bound"
    ]  # fmt: skip
    assert all(float(row["median_ms"]) > 0 for row in rows.values())
    assert float(rows["bound"]["median_ms"]) > float(rows["plain"]["median_ms"])
    assert rows["bound"]["peak_mb"] == ""
    assert float(rows["mip"]["peak_mb"]) > 3 * 48_000 * 128 * 4 / 1e6  # weight and moments


def test_the_benchmark_of_scale_has_a_row_for_each_head_and_size():
    scale.run(steps=2, small=True, out=Path("scale.csv"))
    with Path("scale.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["contestant"] for row in rows] == list(scale.HEADS) * 2
    assert all(float(row["median_ms"]) > 0 and float(row["peak_mb"]) > 0 for row in rows)


def test_the_benchmark_of_scale_leaves_out_what_does_not_fit(monkeypatch, capsys):
    monkeypatch.setattr(scale, "available", lambda: 1e5)
    scale.run(steps=2, small=True)
    assert capsys.readouterr().out.count("left out") == 8


def test_the_benchmark_of_data_compares_loading_in_the_process_and_in_workers():
    data.run(rounds=1, batches=2, small=True, out=Path("data.csv"))
    with Path("data.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    networks = [row["network"] for row in rows]
    assert networks == ["Digits"] * 2 + ["ImageFolders"] * 2 + ["TemplateBrains"] * 2


def test_a_memory_that_was_not_measured_is_left_empty():
    report(
        "nothing",
        [Row("LeNet", 1, "plain", 1.0, 0.0, device="a computer")],
        "plain",
        Path("row.csv"),
    )
    lines = Path("row.csv").read_text().splitlines()
    assert lines == [
        "network,batch,contestant,median_ms,spread_ms,peak_mb,device",
        "LeNet,1,plain,1.0,0.0,,a computer",
    ]


def test_the_benchmark_of_compilation_compares_what_can_be_compiled():
    """By itself, for the checks of shapes in tests cannot be compiled."""
    options = ["--rounds", "1", "--backend", "eager", "--small", "true", "--out", "compiled.csv"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "compiled", *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    with Path("compiled.csv").open(newline="") as file:
        contestants = [row["contestant"] for row in csv.DictReader(file)]
    assert contestants[:4] == ["plain", "plain, compiled", "mip", "mip, compiled"]


def test_the_benchmark_of_parts_compares_a_head_with_torchs_ways():
    parts.run(rounds=1, small=True, out=Path("parts.csv"))
    with Path("parts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 7 + 4
    assert [row["contestant"] for row in rows[:3]] == ["copy", "forward, torch", "forward"]


def test_the_benchmark_of_held_memory_has_a_process_for_each_contestant(monkeypatch):
    cases = held_memory.cases
    monkeypatch.setattr(held_memory, "cases", lambda small: cases(small)[:1])
    held_memory.run(rounds=1, steps=2, small=True, out=Path("held.csv"))
    with Path("held.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["contestant"] for row in rows] == ["plain", "plain, held", "mip", "mip, held"]
    assert all(float(row["median_ms"]) > 0 and float(row["peak_mb"]) > 0 for row in rows)


def test_the_benchmark_of_channels_last_compares_both_orders_of_plain_and_mip():
    channels_last.run(rounds=1, small=True, out=Path("channels_last.csv"))
    with Path("channels_last.csv").open(newline="") as file:
        contestants = [row["contestant"] for row in csv.DictReader(file)]
    assert contestants[:4] == [
        "plain", "plain, channels last", "mip", "mip, channels last"
    ]  # fmt: skip
