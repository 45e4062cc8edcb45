import json
from pathlib import Path

import pytest

from mip_lightning import UsageError
from mip_lightning.cli._run_directory import claim, free_config, latest_config, release


def fit(name: str = "a", run_dir: str | None = None, origin: Path | None = None) -> Path:
    claimed = claim("fit", Path("runs", name), run_dir, origin)
    release()
    return claimed.folder


def test_each_fit_takes_the_next_free_version():
    assert [str(fit()) for _ in range(3)] == [f"runs/a/version_{n}" for n in range(3)]


def test_processes_that_lightning_starts_share_the_folder_of_rank_zero():
    folder = claim("fit", Path("runs/a"), None, None).folder
    assert claim("fit", Path("runs/a"), None, None).folder == folder
    release()
    assert fit() != folder


def started(monkeypatch, command: str, restarts: int, job: int = 17) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", str(job))
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    monkeypatch.setattr("sys.argv", ["mip-lightning", "fit", *command.split()])


def test_a_requeued_job_finds_the_folder_of_each_of_its_fits(monkeypatch):
    for restarts in range(3):
        for command, folder in (("--a 1", "job_17"), ("--a 2", "job_17_1"), ("--a 2", "job_17_2")):
            started(monkeypatch, command, restarts)
            assert str(fit()) == f"runs/a/{folder}"
    # The first fit is done and the script leaves it out: the second is not taken for the first.
    started(monkeypatch, "--a 2", 3)
    assert str(fit()) == "runs/a/job_17_1"
    started(monkeypatch, "--a 3", 3)
    assert str(fit()) == "runs/a/job_17_3"
    started(monkeypatch, "--a 1", 1, job=18)
    assert str(fit()) == "runs/a/job_18"


def test_a_fit_of_a_requeued_job_goes_on_from_its_own_last_checkpoint(monkeypatch):
    started(monkeypatch, "--a 1", 0)
    last = fit() / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.touch()
    for command, checkpoint in (("--a 1", last), ("--a 2", None)):
        started(monkeypatch, command, 1)
        assert claim("fit", Path("runs/a"), None, None).checkpoint == checkpoint
        release()


def test_a_requeued_job_finds_a_folder_that_the_user_names_if_the_run_in_it_is_its_own(monkeypatch):
    started(monkeypatch, "--run_dir mine", 0)
    free_config(fit(run_dir="mine")).touch()
    with pytest.raises(UsageError, match="holds a run already"):
        fit(run_dir="mine")
    started(monkeypatch, "--run_dir mine --b 2", 1)
    with pytest.raises(UsageError, match="holds a run already"):
        fit(run_dir="mine")
    started(monkeypatch, "--run_dir mine", 1)
    assert str(fit(run_dir="mine")) == "mine"


def test_a_broken_signature_is_none(monkeypatch):
    started(monkeypatch, "", 0)
    (fit() / "slurm.json").write_text(json.dumps({"id": 17}))
    started(monkeypatch, "", 1)
    assert str(fit()) == "runs/a/job_17_1"


def test_an_interactive_job_counts_versions(monkeypatch):
    started(monkeypatch, "", 0)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert str(fit()) == "runs/a/version_0"


def test_a_fit_that_resumes_a_run_takes_its_folder_unless_another_one_is_named():
    run = fit()
    free_config(run).touch()
    assert fit(origin=run) == run
    assert str(fit(origin=run, run_dir="other")) == "other"
    with pytest.raises(UsageError, match="holds a run already"):
        fit(run_dir=str(run))


def test_configurations_are_counted():
    folder = Path()
    assert latest_config(folder) is None
    for expected in ("config.yaml", "config_1.yaml", "config_2.yaml"):
        free_config(folder).touch()
        assert latest_config(folder) == Path(expected)
    with pytest.raises(UsageError, match="holds a run already"):
        fit(run_dir=".")
