"""Training callbacks: logging, saving complete checkpoints, and ending cleanly."""

from __future__ import annotations

import functools
import io
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO

from benchmark import progress
from benchmark.files import UserError, atomic, stop_signals
from benchmark.model.flops import recognised, training_flops
from benchmark.model.method import Method
from benchmark.plan.cost import KEPT
from benchmark.plan.layout import saved, step_of
from benchmark.results.schema import BROKEN


class Watch(Callback):
    """Shows and logs progress and throughput, counts device-hours over all runs, and stops at a loss that is not a number."""

    every = 16  # steps between two readings of the losses: reading waits for the device

    def __init__(self, stage: progress.Stage, key: str, compiled: bool = False) -> None:
        self.stage, self.key = stage, key
        self.compiled = compiled  # in this run or an earlier one
        self.pending: list[tuple[int, torch.Tensor, list[str]]] = []
        self.before, self.devices = 0.0, 1  # device-seconds of earlier runs; devices of this one
        self.over_ranks: Callable[[torch.Tensor], torch.Tensor] = lambda losses: losses  # their mean
        self.began = time.monotonic()
        self.skipped = 0  # samples that this process could not decode
        self.loss = math.nan  # running mean over about the last hundred steps
        self.lowest, self.calm = math.inf, True

    @property
    def seconds(self) -> float:
        return self.before + self.devices * (time.monotonic() - self.began)

    def on_train_start(self, trainer: Trainer, module: Method) -> None:
        self.devices = trainer.world_size
        self.over_ranks = functools.partial(trainer.strategy.reduce, reduce_op="mean")
        peak = peak_flops(module.device, "bf16" if trainer.precision == "bf16-mixed" else "float32")
        self.peak = peak and peak * trainer.world_size
        self.flops = training_flops(module.protocol, module.train_size)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.skipped += len(batch.get("skipped", []))
        self.pending.append((batch["step"], outputs["loss"].detach(), batch["key"]))
        if len(self.pending) >= self.every or trainer.global_step >= module.protocol.train.steps:
            self.read()
            steps = trainer.global_step - self.stage.start
            speed = steps / max(self.stage.elapsed, 1e-9) * module.protocol.train.batch
            module.log("images_per_second", speed)
            module.log("loss", self.loss)
            shown = [f"loss {self.loss:.4f}"]
            if self.peak:
                used = speed * self.flops / self.peak
                module.log("mfu", used)
                shown.append(f"mfu {used:.0%}")
            if self.skipped:
                shown.append(f"{self.skipped} samples skipped{' by the first process' if self.devices > 1 else ''}")
            self.stage.set(trainer.global_step, ", ".join(shown))

    def read(self) -> None:
        """Reads the losses since the last time: those of the global batches, of which every rank has a part."""
        if not self.pending:
            return
        losses = torch.stack([loss for _, loss, _ in self.pending])
        for value, (step, _, keys) in zip(losses.tolist(), self.pending, strict=True):  # what is not a number is never saved
            if not math.isfinite(value):
                shown = ", ".join(keys[:8]) + (", ..." if len(keys) > 8 else "")
                raise UserError(f"the loss is {value} at step {step}; samples of the batch: {shown}. A smaller train.lr may help")
        for value, (step, _, _) in zip(self.over_ranks(losses).tolist(), self.pending, strict=True):
            self.loss = value if math.isnan(self.loss) else 0.99 * self.loss + 0.01 * value
            self.lowest = min(self.lowest, self.loss)
            risen = self.loss > BROKEN * self.lowest
            if risen and self.calm:
                progress.say(
                    f"the loss has risen from {self.lowest:.4f} to {self.loss:.4f} at step {step}: this training is unstable "
                    "and its results unreliable; a smaller train.lr may help"
                )
            self.calm = not risen
        self.pending.clear()

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["fingerprint"] = self.key

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if checkpoint.get("fingerprint") != self.key:  # `newest` gives none of these
            raise UserError(f"{trainer.ckpt_path} is of another training; remove it")

    def state_dict(self) -> dict[str, Any]:
        self.read()  # Lightning asks for this before it says that it saves
        return {"seconds": self.seconds, "loss": self.loss, "lowest": self.lowest, "skipped": self.skipped,
                "compiled": self.compiled}  # fmt: skip

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.before, self.loss, self.skipped = state_dict["seconds"], state_dict["loss"], state_dict["skipped"]
        self.lowest = state_dict.get("lowest", self.loss)
        self.compiled |= state_dict.get("compiled", False)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Operations a second that the maker states for dense products; None for processors and GPUs that are not listed.

    Lightning's own table holds the figures with sparsity for some GPUs, which would halve the utilisation.
    """
    found = recognised(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return getattr(found, precision) * 1e12 if found else None


class Atomic(TorchCheckpointIO):
    """Checkpoints complete or absent. Lightning's own writing copies them from /tmp, which a kill or a full disk cuts short."""

    def load_checkpoint(self, path: str, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        # Where all of it goes to GPUs it is mapped: the ranks of a machine share its pages, and none holds a copy in memory.
        return torch.load(path, map_location="cpu", mmap=torch.cuda.is_available(), weights_only=True)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str, storage_options: Any = None) -> None:
        content = io.BytesIO()  # written to a file directly, torch turns a full disk into a RuntimeError
        torch.save(checkpoint, content)
        with atomic(path) as draft:
            draft.write_bytes(content.getbuffer())


class Keeper(Callback):
    """Saves a training now and then, and before Ctrl-C and the like end it: between two steps, on every rank at the same one.

    The last KEPT checkpoints stay, for a kill may tear the newest. Ranks agree on saving and ending only every few steps, as
    each of them waits for its device to do so: Lightning's timed checkpoints and its own look at SIGTERM would wait at every step
    (its issue 21487), and are not used.

    Args:
        folder: of the checkpoints.
        every_steps, every_minutes: saves whenever one of them has passed, the minutes only while saving takes at most one
            part in `share` of the time.
    """

    together, patience = 16, 3.0  # steps between two agreements of ranks, and seconds, whichever is less
    share = 50
    nothing, save, end = range(3)  # what a rank wants, the more urgent the larger

    def __init__(self, folder: Path, every_steps: int, every_minutes: float) -> None:
        self.folder, self.every_steps, self.interval = folder, every_steps, 60 * every_minutes
        self.asked = 0  # the signal's number
        self.stopped = False
        self.handlers: dict[int, Any] = {}  # those that were there before

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.agree(trainer)
        # Lightning's own handlers raise inside a step, after which weights and their average may disagree.
        self.handlers = {number: signal.signal(number, self.ask) for number in stop_signals()}
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        self.due = time.monotonic() + self.interval
        self.agreed, self.agreement = (trainer.global_step, time.monotonic()), trainer.global_step + 1  # the last, and the next

    def agree(self, trainer: Trainer) -> None:
        """Raises UserError where ranks start from different steps: they would wait for each other for ever."""
        if trainer.world_size > 1:
            mine = torch.tensor(trainer.global_step, device=trainer.strategy.root_device)
            steps = sorted(set(trainer.strategy.all_gather(mine).flatten().tolist()))
            if len(steps) > 1:
                raise UserError(
                    f"the processes of this training would continue from different steps ({', '.join(map(str, steps))}): is OUT "
                    "on a disk that all nodes share?"
                )

    def ask(self, number: int, frame: Any) -> None:
        self.asked = number

    def on_train_batch_end(self, trainer: Trainer, module: Method, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, last = trainer.global_step, module.protocol.train.steps
        wanted = self.wanted(trainer, module) if step < last else self.nothing
        if wanted == self.nothing and step % self.every_steps:
            return
        began = time.monotonic()
        self.refuse(trainer, outputs["loss"])
        trainer.save_checkpoint(self.folder / f"step={step}.ckpt")
        if trainer.is_global_zero:
            for path in [path for path in saved(self.folder) if step_of(path) <= step][KEPT:]:
                path.unlink()
        now = time.monotonic()
        self.due = now + max(self.interval, self.share * (now - began))
        if wanted == self.end:
            self.stopped = trainer.should_stop = True

    def wanted(self, trainer: Trainer, module: Method) -> int:
        """What the most urgent of the ranks wants at this step."""
        own = self.end if self.asked else self.save if time.monotonic() >= self.due else self.nothing
        if trainer.world_size == 1:
            return own
        step, now = trainer.global_step, time.monotonic()
        if step < self.agreement:
            return self.nothing
        pace = (now - self.agreed[1]) / max(1, step - self.agreed[0])  # of the slowest rank
        both = torch.tensor([own, pace], dtype=torch.float32, device=module.device)
        wanted, pace = trainer.strategy.reduce(both, reduce_op="max").tolist()
        self.agreed, self.agreement = (step, now), step + max(1, min(self.together, int(self.patience / max(pace, 1e-6))))
        return int(wanted)

    def refuse(self, trainer: Trainer, loss: torch.Tensor) -> None:
        """Ends a rank before it saves where another's loss is no number; that one says which samples it had (see Watch)."""
        if trainer.world_size > 1:
            broken = trainer.strategy.reduce((~torch.isfinite(loss.detach())).float(), reduce_op="max")
            if broken and torch.isfinite(loss):
                raise UserError("the loss of another process is not a number; see its message for the samples")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.restore()
        trainer.optimizers = []  # Lightning would copy what they hold to the processor, on every rank
        module.zero_grad(set_to_none=True)  # and the gradients with the weights

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self.restore()  # or the stages after a failed training would not hear Ctrl-C

    def restore(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers.clear()
