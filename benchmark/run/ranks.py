"""How the processes of a run know each other: as torchrun's, as tasks of srun, or as those that Lightning starts itself."""

from __future__ import annotations

import os

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from benchmark.plan.place import Run, tasks


class Srun(SLURMEnvironment):
    """The tasks of an srun step, which may have some of the job's nodes alone.

    `place.check_ranks` has compared their number with the run's devices.
    """

    def __init__(self) -> None:
        super().__init__(auto_requeue=False)  # jobs of ours save and are requeued by `run.slurm`

    def world_size(self) -> int:
        return tasks()

    @property
    def main_address(self) -> str:
        if "MASTER_ADDR" not in os.environ and (nodes := os.environ.get("SLURM_STEP_NODELIST")):
            os.environ["MASTER_ADDR"] = self.resolve_root_node_address(nodes)
        return super().main_address

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        pass


def environment(run: Run) -> list[ClusterEnvironment]:
    """What Trainer and Fabric are told of a run's ranks, as plugins; nothing where Lightning's own choice is right.

    Lightning takes any process with SLURM_NTASKS for a task of srun, which a batch script without srun has as well. And on
    SIGUSR1 it would save a checkpoint of its own and requeue the job.
    """
    if TorchElasticEnvironment.detect() or "SLURM_NTASKS" not in os.environ:
        return []
    return [Srun() if run.several and tasks() > 1 else LightningEnvironment()]
