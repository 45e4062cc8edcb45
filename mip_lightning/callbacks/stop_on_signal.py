"""StopOnSignal: a fit that is told to stop saves where it is, and its exit status says so."""

import os
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import distributed
from typing_extensions import override


class StoppedBySignal(SystemExit):
    """A fit ends because of a signal, with the exit status that shells give it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopOnSignal(Callback):
    """Saves ``last.ckpt`` at the end of the batch in which the process is told to stop, and stops.

    SIGTERM (a preempted job) ends with exit status 143, SIGINT (Ctrl-C) with 130; a second Ctrl-C
    stops at once. In a SLURM job, the signal that announces the end of its time (SIGUSR1) has the
    job requeued. A signal that reaches one rank stops all of them after the same batch. A
    validation that has begun is finished first, as its metrics are not in a checkpoint.

    Args:
        path: The checkpoint; ``None`` to save none.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._received = 0
        self._agreed = 0
        self._requeue_signal: int | None = None
        self._group: Any = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen, in place of Lightning, which restores what was there before it at the end.

        Lightning's own handlers save and communicate at whatever point the signal comes.
        """
        self._received = self._agreed = 0
        self._requeue_signal = _requeue_signal()
        if trainer.world_size > 1 and distributed.is_initialized():
            # Of its own, so that to agree waits for no device.
            self._group = distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, self._requeue_signal):
                if number is not None:
                    signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    @override
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        is_last = trainer.is_last_batch
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not is_last:
            return
        self._agreed = self._on_all_ranks(self._received)
        if not self._agreed:
            return
        if self.path is not None:
            trainer.save_checkpoint(self.path)
        # After the last batch come validation and the end of the epoch, which belong to it.
        if not is_last:
            self._stop(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._agreed:
            self._stop(trainer)

    def _on_all_ranks(self, received: int) -> int:
        """The signal that any rank has received, or 0."""
        if self._group is None:
            return received
        number = torch.tensor(received)
        distributed.all_reduce(number, distributed.ReduceOp.MAX, group=self._group)
        return int(number)

    def _stop(self, trainer: Trainer) -> None:
        number = self._agreed
        way_on = f"; fit --ckpt_path {self.path} goes on" if self.path is not None else ""
        rank_zero_info(
            f"Stopped by {signal.Signals(number).name} in epoch {trainer.current_epoch}, after step"
            f" {trainer.global_step}{way_on}"
        )
        if number == self._requeue_signal:
            number = signal.SIGTERM
            if trainer.is_global_zero:
                _requeue()
        raise StoppedBySignal(number)


def _requeue_signal() -> int | None:
    """The signal for which Lightning has put a handler, as it does in a SLURM job only."""
    for number in signal.valid_signals() - {signal.SIGTERM}:
        if type(signal.getsignal(number)).__module__.startswith("lightning."):
            return number
    return None


def _requeue() -> None:
    """Put the job back into SLURM's queue; one process does."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        rank_zero_warn(f"the job {job} could not be requeued ({error})")
