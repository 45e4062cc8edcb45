from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from mip_lightning import UsageError
from mip_lightning.run_directory import claim, free_config, latest_config, release


def fit(name: str = "a", run_dir: str | None = None) -> Path | None:
    folder = claim("fit", name, run_dir, None)
    release()
    return folder


def test_each_fit_takes_the_next_free_version():
    assert [str(fit()) for _ in range(3)] == [f"runs/a/version_{n}" for n in range(3)]


def test_processes_that_lightning_starts_share_the_folder_of_rank_zero(monkeypatch):
    folder = claim("fit", "a", None, None)
    assert claim("fit", "a", None, None) == folder
    release()
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert fit() is None


def test_a_requeued_job_finds_its_folder_again(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert str(fit()) == "runs/a/job_17"
    assert str(fit()) == "runs/a/job_17_1"  # two fits of one job
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert str(fit()) == "runs/a/job_17"
    free_config(Path("runs/a/job_17")).touch()
    assert str(fit(run_dir="runs/a/job_17")) == "runs/a/job_17"


def test_configurations_are_counted():
    folder = Path()
    assert latest_config(folder) is None
    for expected in ("config.yaml", "config_1.yaml", "config_2.yaml"):
        free_config(folder).touch()
        assert latest_config(folder) == Path(expected)
    with pytest.raises(UsageError, match="holds a run already"):
        fit(run_dir=".")
