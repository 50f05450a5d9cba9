"""Jobs by submitit: on a Slurm cluster, or on this machine as a rehearsal of it.

    multirun/<date>/<time>/.submitit    scripts, pickled calls and logs of submitit
                           0.log, ...   output of the jobs

A job that Slurm is about to end (time limit, preemption) gets SIGUSR1, saves and ends with 75.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from adamwprune.config import Device
from adamwprune.errors import ConfigError
from adamwprune.launchers.base import TRAIN, Command, Ending, Launcher
from adamwprune.launchers.process import execute
from adamwprune.launchers.slots import Slots, visible_devices
from adamwprune.ranges import NonNegativeInt, Positive, PositiveInt
from adamwprune.signal_handlers import handling
from adamwprune.trackers.backend import environment

# Seconds between two looks at the jobs.
POLL = 0.2
# Exit code of a job that ended without a word, as after a SIGKILL.
KILLED = 137


class SubmititLocal(Launcher):
    """Up to `n_jobs` at a time, each on CUDA devices of its own, by the calls that Slurm would get.

    Args:
        n_jobs: as joblib counts: -1 is one a core, -2 one less.
        timeout_min: minutes that a job may take; it is asked to save and stop before.
        signal_delay_s: how many seconds before.
    """

    package = "submitit"

    def __init__(self, *, n_jobs: int, timeout_min: PositiveInt, signal_delay_s: PositiveInt) -> None:
        if n_jobs == 0:
            raise ConfigError("hydra.launcher.n_jobs=0: must be > 0, or -1 for one job a core")
        self._n_jobs = n_jobs
        self._parameters = {"timeout_min": timeout_min, "signal_delay_s": signal_delay_s}
        self._running: dict[Any, Command] = {}
        self._is_stopped = False

    def run(
        self, commands: Sequence[Command], on_start: Callable[[Command], None]
    ) -> Iterator[tuple[Command, Ending]]:
        """Submit as places and devices become free."""
        slots = Slots(visible_devices(commands), commands, self._n_jobs)
        waiting, taken = list(commands), {}
        while self._running or (waiting and not self._is_stopped):
            while waiting and not self._is_stopped and len(self._running) < slots.count:
                if (own := slots.take(waiting[0])) is None:
                    break
                command = waiting.pop(0)
                taken[command.number] = own
                on_start(command)
                self._submit(command, slots.arguments(command), own)
            for job in [job for job in self._running if job.done()]:
                command = self._running.pop(job)
                slots.give_back(taken.pop(command.number))
                yield command, _outcome(job)
            time.sleep(POLL)

    def _submit(self, command: Command, arguments: Sequence[str], own: Mapping[str, str]) -> None:
        # Ctrl-C reaches every process of a terminal: submitit's must leave it to this one.
        with _submitting(), handling(signal.SIG_IGN, signal.SIGINT):
            import submitit

            executor = submitit.LocalExecutor(folder=_folder(command))
            executor.update_parameters(**self._parameters)
            job = executor.submit(
                execute, arguments, command.console, command.limits, dict(own), leader=os.getpid()
            )
        self._running[job] = command

    def stop(self, number: int) -> None:
        """To all that run."""
        self._is_stopped = True
        for job in self._running:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(int(job.job_id), signal.SIGTERM)  # which submitit passes on


class SubmititSlurm(Launcher):
    """All jobs at once, as arrays: Slurm decides when they run.

    A job asks for one node with its `hardware.num_devices` GPUs, if it wants CUDA, and for each of these
    one core and its `hardware.num_workers`.

    Args:
        timeout_min, signal_delay_s: --time in minutes, and how many seconds before SIGUSR1 asks to save.
        partition, account, qos, constraint, comment: those of sbatch; null = none.
        mem_gb: --mem; null = the cluster's default.
        cpus_per_task, gpus_per_node: instead of what is said above; null = that.
        array_parallelism: jobs of the sweep at a time.
        setup: shell commands before the job, such as `module load cuda`.
        additional_parameters: any other option of sbatch, by its long name.
    """

    is_here = False
    package = "submitit"

    def __init__(
        self,
        *,
        timeout_min: PositiveInt,
        signal_delay_s: PositiveInt,
        partition: str | None,
        account: str | None,
        qos: str | None,
        constraint: str | None,
        comment: str | None,
        mem_gb: Positive | None,
        cpus_per_task: PositiveInt | None,
        gpus_per_node: NonNegativeInt | None,
        array_parallelism: PositiveInt,
        setup: list[str],
        additional_parameters: dict[str, Any],
    ) -> None:
        texts = {"partition": partition, "account": account, "qos": qos, "constraint": constraint}
        for key, text in {**texts, "comment": comment}.items():
            if text is not None and not text.isprintable():  # the rest of its lines would be commands
                raise ConfigError(f"hydra.launcher.{key}={text!a}: must be one line")
        self._cpus, self._gpus = cpus_per_task, gpus_per_node
        self._parameters = {
            "timeout_min": timeout_min,
            "mem_gb": mem_gb,
            "slurm_signal_delay_s": signal_delay_s,
            "slurm_partition": partition,
            "slurm_account": account,
            "slurm_qos": qos,
            "slurm_constraint": constraint,
            "slurm_comment": comment,
            "slurm_array_parallelism": array_parallelism,
            "slurm_setup": setup or None,
            "slurm_additional_parameters": additional_parameters or None,
        }
        self._running: dict[Any, Command] = {}

    def check(self) -> None:
        """Raise ConfigError where there is no Slurm."""
        super().check()
        if shutil.which("sbatch") is None or shutil.which("srun") is None:
            raise ConfigError(
                "hydra/launcher=submitit_slurm: found no sbatch and srun; type it on a cluster's login node, "
                "or use hydra/launcher=joblib here"
            )

    def run(
        self, commands: Sequence[Command], on_start: Callable[[Command], None]
    ) -> Iterator[tuple[Command, Ending]]:
        """Submit all, then wait; `on_start` is called when a job is queued."""
        kinds: dict[tuple[tuple[str, int], ...], list[Command]] = {}
        for command in commands:
            kinds.setdefault(tuple(self._resources(command).items()), []).append(command)
        for resources, alike in kinds.items():
            self._submit(alike, dict(resources))
            for command in alike:
                on_start(command)
        while self._running:
            for job in [job for job in self._running if job.done()]:
                yield self._running.pop(job), _outcome(job)
            time.sleep(POLL)

    def _resources(self, command: Command) -> dict[str, int]:
        """GPUs and cores of one job."""
        hardware = command.hardware
        gpus = hardware.num_devices if hardware.device is Device.cuda else 0
        cores = ((hardware.threads or 1) + hardware.num_workers) * hardware.num_devices
        gpus, cores = (self._gpus if self._gpus is not None else gpus), self._cpus or cores
        return {"cpus_per_task": cores} | ({"gpus_per_node": gpus} if gpus else {})

    def _submit(self, commands: Sequence[Command], resources: Mapping[str, int]) -> None:
        with _submitting():
            import submitit
            from submitit.core.utils import FailedJobError, FailedSubmissionError

            executor = submitit.AutoExecutor(folder=_folder(commands[0]), cluster="slurm")
            given = {key: value for key, value in self._parameters.items() if value is not None}
            executor.update_parameters(name="adamwprune", nodes=1, tasks_per_node=1, **given, **resources)
            try:
                with executor.batch():
                    jobs = [executor.submit(execute, c.arguments, c.console, c.limits, {}) for c in commands]
            except (FailedJobError, FailedSubmissionError) as error:
                reason = str(error).strip().splitlines()[-1]
                raise ConfigError(
                    f"hydra/launcher=submitit_slurm: sbatch refused the jobs: {reason}"
                ) from None
        self._running.update(zip(jobs, commands, strict=True))

    def stop(self, number: int) -> None:
        """Cancel all: those that wait are gone, those that run get SIGTERM, save and end."""
        for job in self._running:
            subprocess.run(["scancel", str(job.job_id)], check=False)


def _submitting() -> Any:
    """The environment in which submitit is called, and which its jobs inherit.

    They load our code by name, wherever the sweep was started. The signal that announces a job's end may
    reach every process of it: let it be one that train.py knows.
    """
    path = os.pathsep.join(filter(None, (str(TRAIN.parent), os.environ.get("PYTHONPATH"))))
    return environment(SUBMITIT_PREEMPT_SIGNAL="USR1", PYTHONPATH=path)


def _folder(command: Command) -> Path:
    return command.console.parent / ".submitit"


def _outcome(job: Any) -> Ending:
    """What `execute` returned; KILLED where it did not come to that."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        ending = job.result()
    except (FailedJobError, UncompletedJobError):
        return Ending(KILLED)
    assert isinstance(ending, Ending)
    return ending
