"""What a fit does when it is told to stop: the installed command, in a process of its own."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from helpers import ROOT
from lightning.pytorch import LightningModule, Trainer

from mip_lightning.callbacks import StopOnSignal, StoppedBySignal

COMMAND = str(Path(sys.executable).with_name("mip-lightning"))  # as it is installed
TWO_RANKS = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
RUN = Path("runs/digits/version_0")


@pytest.fixture(autouse=True)
def long_run() -> None:
    """The README's configuration, with more epochs than a test waits for."""
    config = yaml.safe_load((ROOT / "cli.yaml").read_text())
    config["trainer"] |= {"max_epochs": 10_000, "accelerator": "cpu"}
    config["trainer"]["callbacks"][0]["init_args"]["every_n_epochs"] = 100
    Path("cli.yaml").write_text(yaml.safe_dump(config))


def start(*options: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [COMMAND, "fit", "--config", "cli.yaml", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@contextmanager
def running(processes: Sequence[subprocess.Popen[str]], run: Path = RUN) -> Iterator[None]:
    """While it lasts, processes train; none of them or of their children is left afterwards."""
    try:
        deadline = time.monotonic() + 240
        while not (run / "checkpoints" / "last.ckpt").exists():
            for process in processes:
                assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield
    finally:
        for process in processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def last(run: Path = RUN) -> dict[str, object]:
    content: dict[str, object] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return content


@pytest.mark.parametrize(
    ("number", "status", "ranks"),
    [
        pytest.param(signal.SIGTERM, 143, [], id="one-TERM"),
        pytest.param(signal.SIGTERM, 143, TWO_RANKS, id="two-TERM"),
        pytest.param(signal.SIGINT, 130, [], id="one-INT"),
        pytest.param(signal.SIGINT, 130, TWO_RANKS, id="two-INT", marks=pytest.mark.slow),
    ],
)
def test_a_fit_that_is_told_to_stop_saves_and_says_so(number, status, ranks):
    process = start(*ranks)
    with running([process]):
        time.sleep(random.Random(number).uniform(0, 1))
        if number == signal.SIGINT:
            os.killpg(process.pid, number)  # as a terminal does
        else:
            process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output[-3000:]
    assert f"Stopped by {signal.Signals(number).name}" in output
    assert "Traceback" not in output
    where = last()
    assert f"after step {where['global_step']};" in output
    if not ranks and number == signal.SIGTERM:
        done = start("--ckpt_path", str(RUN / "checkpoints" / "last.ckpt"), "--trainer.max_epochs",
                     str(int(where["epoch"]) + 2))  # fmt: skip
        output, _ = done.communicate(timeout=120)
        assert done.returncode == 0, output[-3000:]
        assert int(last()["global_step"]) > int(where["global_step"])
        assert [path.name for path in RUN.parent.iterdir()] == [RUN.name]


def test_a_rank_that_learns_of_a_signal_after_the_last_batch_does_not_stop_alone():
    stop = StopOnSignal(None)
    t = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu", max_steps=1)
    stop._receive(signal.SIGTERM, None)
    stop.on_train_epoch_start(t, LightningModule())  # the others have not agreed to it
    t.fit_loop.epoch_loop.batch_progress.is_last_batch = False
    with pytest.raises(StoppedBySignal) as exit_info:
        stop.on_train_batch_end(t, LightningModule(), None, None, 0)
    assert exit_info.value.code == 143


def slurm(job: int, rank: int, restarts: int) -> dict[str, str]:
    """What srun says to each of two tasks; ``scontrol`` writes down how it was called."""
    folder = Path("bin")
    if not folder.exists():
        folder.mkdir()
        (folder / "scontrol").write_text('#!/bin/sh\necho "$@" >> scontrol.log\n')
        (folder / "scontrol").chmod(0o755)
    return {
        "PATH": f"{folder.resolve()}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_RESTART_COUNT": str(restarts),
    }


def test_a_job_of_two_tasks_that_is_requeued_goes_on_in_its_folder():
    job = random.SystemRandom().randrange(10**6)
    run = Path(f"runs/digits/job_{job}")
    tasks = [start(*TWO_RANKS, **slurm(job, rank, 0)) for rank in range(2)]
    with running(tasks, run):
        for task in tasks:
            task.send_signal(signal.SIGUSR1)  # the job's time is nearly over
        outputs = [task.communicate(timeout=120)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [143, 143], outputs
    assert Path("scontrol.log").read_text() == f"requeue {job}\n"
    where = last(run)
    shutil.copy(run / "checkpoints" / "last.ckpt", "before.ckpt")
    again = [start(*TWO_RANKS, **slurm(job, rank, 1)) for rank in range(2)]
    with running(again, run):
        while (run / "checkpoints" / "last.ckpt").read_bytes() == Path("before.ckpt").read_bytes():
            assert all(task.poll() is None for task in again)
            time.sleep(0.1)
        again[1].send_signal(signal.SIGTERM)  # one of the tasks, and not the first
        outputs = [task.communicate(timeout=120)[0] for task in again]
    assert [task.returncode for task in again] == [143, 143], outputs
    assert int(last(run)["global_step"]) > int(where["global_step"])
    assert [path.name for path in run.parent.iterdir()] == [run.name]
