"""The training stage: from shards to averaged weights; can be stopped at any time, and resumes bit-identically.

Exactness rests on three things: order = f(seed, epoch), position = f(global step), noise = f(seed, global step). So a checkpoint
holds weights, their average and the optimizer, and nothing about data or random state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
import pickle
import shlex
import shutil
import signal
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from lightning import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from benchmark import progress, registry
from benchmark.data import batches, sources, writer
from benchmark.data.card import autoencoder_of, load_card
from benchmark.data.index import Index, manifest_path
from benchmark.data.latents import latents_fingerprint
from benchmark.files import Stopped, UserError, atomic, listed, locked, read_fields, sweep, write_json
from benchmark.identity import Training
from benchmark.model import checkpoint
from benchmark.model.autoencoder import Autoencoder, autoencoder_identity
from benchmark.model.method import Method
from benchmark.model.precision import averaging, effective, precision
from benchmark.plan import cost, needs, stages
from benchmark.plan.dataset import DataSet, forget
from benchmark.plan.layout import CHECKPOINTS, REPORT, WEIGHTS, is_trained, saved
from benchmark.plan.place import Run, check_ranks, device, fix_workspace, machine
from benchmark.protocol import Protocol, size_hw, size_name
from benchmark.run.callbacks import Atomic, Keeper, Watch
from benchmark.run.ranks import environment

_told: set[Path] = set()  # shards that this process has already announced


def prepared(protocol: Protocol, run: Run, verbose: bool = True) -> Path | str:
    """The protocol's shards: those of `run.data`, or written now from what the card says."""
    data = DataSet(protocol, run)
    if data.given:
        data.check()
        return data.given
    if data.source is None:
        sources.source(data.card, None)  # says what is missing
    workers = run.writers
    if data.images is None:
        data.source.ready(workers)
        there = sum(path.stat().st_size for path in Path(data.folder).glob("*.tar"))  # of an interrupted run
        needs.check_disk(data.count * data.picture_bytes - there, f"shards {data.card.name}, {data.count:,} images", run.out)
    with progress.stage(f"shards {data.card.name}", 1, "image") as stage:
        written = writer.prepare(data.card, data.source, run.out / "data", workers=workers, progress=stage.report)
    if verbose and not (written.skipped and written.folder in _told):  # every stage of a run asks for them
        progress.say(str(written))
        if written.skipped and (doubt := doubtful(data.source, written.folder)):
            progress.say(f"{doubt}; if that is something else, remove {written.folder}")
        _told.add(written.folder)
    return written.folder


def doubtful(source: sources.Source, folder: Path) -> str:
    """Why shards that are there may not be those of the source, whose files have the same names and sizes; "" for no doubt."""
    before = writer.made_from(folder)
    if before and source.where and before != os.path.realpath(source.where):
        return f"these shards were made from {before}, whose files have the names and sizes of those in {source.where}"
    if source.newest > manifest_path(folder).stat().st_mtime:
        return f"{source.where} holds files newer than these shards, made from files of the same names and sizes"
    return ""


def pictures(protocol: Protocol, run: Run, verbose: bool = False) -> Path | str:
    """The shards of the pictures themselves, where `run.data` may be latents of them."""
    data = DataSet(protocol, run)
    return data.pictures if data.gives_latents and data.pictures else prepared(protocol, run, verbose)


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a training reads.

    Attributes:
        index: its shards.
        hash: the identity of what the model sees. Pictures that are encoded on the way have that of their stored latents.
        on_the_way: the name of the autoencoder of pictures that become latents in training; "" for none.
        autoencoder: the hash of the autoencoder; "" for pixels.
    """

    index: Index
    hash: str
    on_the_way: str = ""
    autoencoder: str = ""


def open_data(training: Training, run: Run, verbose: bool = False) -> TrainingData:
    """The data of a training: pictures; or, where the protocol trains on latents, those that were made of them.

    Latents are searched in the folder of runs. Methods that augment encode their pictures on the way.

    Raises:
        UserError: the data are not there, or are of another kind, size or number of classes.
    """
    protocol, name, train = training.protocol, training.method, training.size
    index = Index(prepared(protocol, run, verbose))
    if index.classes != protocol.core.classes:  # classes that the data lack would be sampled all the same, untrained
        has = f"{index.folder} has {index.classes} classes, but the protocol's core has {protocol.core.classes}"
        raise UserError(f"{has}: set core.classes={index.classes}")
    if protocol.data.representation == "pixels":
        return TrainingData(index, index.fingerprint)
    if registry.augments(name, protocol.options.get(name, {})):
        if index.kind != "images":
            raise UserError(
                f"{name} augments images before they are encoded, but {index.folder} holds latents: "
                "give the images as DATA; their latents in OUT are found automatically"
            )
        autoencoder = autoencoder_of(load_card(protocol.data.card))
        weights = autoencoder_identity(autoencoder)[1]
        return TrainingData(index, latents_fingerprint(index, weights, size_hw(train)), autoencoder, weights)
    if index.kind == "images":
        found = [Index(folder) for folder in DataSet(protocol, run).latents.get(train, [])]
        by = ""
        if len(found) > 1 or (found and os.environ.get("AUTOENCODER")):  # of several autoencoders, or one is asked for
            name = autoencoder_of(load_card(protocol.data.card))
            by, wanted = f" by the autoencoder {name}", autoencoder_identity(name)[1]
            found = [other for other in found if other.manifest["autoencoder"]["hash"] == wanted]
        if not found:
            raise UserError(f"{run.out / 'data'} has no latents of {index.folder} at {train}{by}: run `make latents`")
        index = found[0]
    if tuple(index.manifest["size"]) != size_hw(train):
        held = size_name(*index.manifest["size"])
        raise UserError(f"{index.folder} holds latents of {held} images, but {protocol.name} trains at {train}")
    return TrainingData(index, index.fingerprint, "", index.manifest["autoencoder"]["hash"])


def trained(training: Training, run: Run) -> tuple[Path, str]:
    """(folder of a finished training, hash of what it saw).

    Raises:
        UserError: it is not finished.
    """
    data = DataSet(training.protocol, run).seen_by(training) or open_data(training, run).hash
    folder = training.folder(run.out, data)
    if not is_trained(folder):
        command = shlex.join(stages.Train(context=stages.Context(training.protocol, run), training=training).command())
        raise UserError(f"{training} is not trained; run `.venv/bin/python -m benchmark {command}` first")
    return folder, data


def train(training: Training, run: Run) -> Path:
    """Trains, or finds it trained.

    Returns:
        the folder with the averaged weights (weights.safetensors) and the report (training.json). Checkpoints are only there to
        continue from, and are removed with the end of a training, unless the run keeps them.

    Raises:
        UserError: data or checkpoint are not what they should be, or the loss is not a number.
        Stopped: asked to end; saved.
    """
    source = open_data(training, run, verbose=True)
    folder = training.folder(run.out, source.hash)
    if is_trained(folder):
        progress.say(f"train {training}: already complete, skipped ({folder})")
        if progress.first_rank() and not read_fields(folder / REPORT, "fingerprint").get("kept"):
            discard(folder, run)  # of a run that was killed before it did so
        return folder
    check_ranks(run)
    needs.check_memory(needs.training(training.protocol, training.size, run), f"train {training}")
    needed = cost.training(training.protocol, training.size).bytes + cost.checkpoints(training.protocol)
    there = sum(path.stat().st_size for path in folder.glob(f"{CHECKPOINTS}/*.ckpt"))  # of an interrupted run
    needs.check_disk(needed - there, f"train {training}", run.out)
    with exclusive(folder):
        method = registry.build(training.method, training.protocol, training.size, training.seed)
        if start := training.protocol.checkpoint():
            checkpoint.initialise(method, start)
        if source.on_the_way:
            method.to_latents = Autoencoder(source.on_the_way)
        _fit(method, training, source, folder, run)
    return folder


@contextlib.contextmanager
def exclusive(folder: Path, doing: str = "training", wait: bool = False) -> Iterator[None]:
    """Makes the folder and keeps others from writing in it, or waits for them; the first of several ranks does so for all."""
    if not progress.first_rank():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)

    def busy() -> None:
        if not wait:
            raise UserError(f"another process is {doing} in {folder}; wait for it, or choose another OUT") from None
        progress.say(f"waiting for another process, which is {doing} in {folder}")

    with locked(folder / ".lock", busy):
        sweep(folder, everywhere=True)  # of a killed run
        yield


def discard(folder: Path, run: Run) -> None:
    """Removes the checkpoints of a complete training, unless the run keeps them."""
    if not run.keep:
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _fit(method: Method, training: Training, source: TrainingData, folder: Path, run: Run) -> None:
    forget()
    protocol, config, key = training.protocol, training.protocol.train, training.key(source.hash)
    quieten()
    keeper = Keeper(folder / CHECKPOINTS, run.every_steps, run.every_minutes)
    resumed = newest(folder / CHECKPOINTS, key)
    if resumed[1] >= config.steps:  # killed between the last step and the writing of the weights
        content = torch.load(resumed[0], map_location="cpu", weights_only=True, mmap=True)
        method.load_state_dict(content["state_dict"])
        save(method, folder, key, training.method, source, content["callbacks"][Watch.__qualname__], run.keep)
        if not run.several:  # other ranks may still be reading them
            discard(folder, run)
        return
    with progress.stage(f"train {training}", config.steps, "step", resumed[1]) as stage:
        watch = Watch(stage, key, run.compile)
        trainer = Trainer(
            max_steps=config.steps,
            max_epochs=-1,
            accelerator=device(),  # "auto" would also take what the rest does not know, such as MPS
            devices=run.count,
            num_nodes=run.nodes,
            strategy=strategy(run),
            precision=precision(config.precision),
            callbacks=[averaging(protocol), watch, keeper],
            plugins=[Atomic(), *environment(run)],
            default_root_dir=folder,  # in a job Lightning starts from an hpc_ckpt_* of its own that lies there
            logger=loggers(folder, key),
            log_every_n_steps=50,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        loader = batches.Reader(method, source.index, resumed[1], run.decoders)
        if run.compile:
            torch.compiler.reset()  # torch gives up after eight cores in one process, and a sweep trains more
            method.core.compile()
        try:
            with deterministic(run.deterministic):
                trainer.fit(method, loader, ckpt_path=resumed[0], weights_only=True)
        finally:
            finish(trainer.loggers)
    if keeper.stopped:
        reason = f"stopped at step {trainer.global_step} of {config.steps}; run the same command to continue"
        raise Stopped(reason, 128 + (keeper.asked or signal.SIGTERM))
    if trainer.is_global_zero:
        save(method, folder, key, training.method, source, watch.state_dict(), run.keep)
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        discard(folder, run)
    if keeper.asked:  # in the last steps
        raise Stopped("stopped after the last step; run the same command to continue", 128 + keeper.asked)


def strategy(run: Run) -> str:
    """Lightning's name for how ranks share a step.

    DDP puts its buckets in another order after the first step, so a resumed run would have one step in which gradients are
    added up in the first order. It leaves them as they are where it looks for unused parameters.
    """
    if not run.several:
        return "auto"
    return "ddp_find_unused_parameters_true" if run.deterministic else "ddp"


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """While the block runs, torch takes deterministic kernels alone, if that is wanted: Lightning's switch would stay on.

    Raises:
        UserError: an operation has none.
    """
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        fix_workspace()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    except RuntimeError as error:
        if not wanted or "determinis" not in str(error):
            raise
        raise UserError(f"--deterministic: {str(error).splitlines()[0]}") from None
    finally:
        torch.use_deterministic_algorithms(before)


def quieten() -> None:
    """Silences Lightning's hints about workers, ranks and loggers, which are for people who write the loop themselves."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        for logger in (name, f"{name}.utilities.rank_zero", f"{name}.utilities.distributed"):
            logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")


def loggers(folder: Path, key: str) -> list[Logger]:
    """TensorBoard's files in the folder; and Weights & Biases, where it is installed and WANDB_PROJECT names a project."""
    found: list[Logger] = [TensorBoardLogger(folder, name="", version="log")]
    if os.environ.get("WANDB_PROJECT") and importlib.util.find_spec("wandb"):
        found.append(WandbLogger(name=folder.name, id=key, resume="allow", save_dir=folder))
    return found


def finish(used: Sequence[Logger]) -> None:
    """Ends the runs of Weights & Biases: left open, one would receive the logs of the next training of this process."""
    for logger in used:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def newest(folder: Path, key: str) -> tuple[str | None, int]:
    """The newest checkpoint that can be read, and its step; (None, 0) where there is none.

    Raises:
        UserError: a checkpoint of another training.
    """
    found = saved(folder)
    for path in found:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError, zipfile.BadZipFile):
            progress.say(f"{path} is damaged; looking for an earlier one")
            if progress.first_rank():
                path.rename(path.with_name(f"damaged-{path.name}"))  # or it would stand for the newest until its step is passed
            continue
        if content.get("fingerprint") != key:
            raise UserError(f"{path} belongs to another training; remove it or choose another OUT")
        progress.say(f"continuing from step {content['global_step']} ({path})")
        return str(path), content["global_step"]
    if found:
        progress.say("no complete checkpoint found: starting over")
    return None, 0


def save(
    method: Method, folder: Path, key: str, name: str, source: TrainingData, watched: dict[str, Any], kept: bool = False
) -> None:
    """Writes the averaged weights (Lightning put them into the module at the end) and the report.

    `kept`: whether the checkpoints stay, which a later command without --keep must leave, too.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in method.state_dict().items()}
    about = {"fingerprint": key, "method": name, "train": method.train_size, "seed": str(method.seed)}
    with atomic(folder / WEIGHTS) as draft:
        safetensors.torch.save_file(state, draft, metadata={"posbench": json.dumps(about)})
    report = {
        **about,
        "seed": method.seed,
        "steps": method.protocol.train.steps,
        "parameters": sum(value.numel() for value in state.values()),
        "hours": watched["seconds"] / 3600,
        "loss": watched["loss"],
        "lowest": watched["lowest"],
        "skipped": watched["skipped"],
        "autoencoder": source.autoencoder,
        "machine": machine(),
        "precision": effective(method.protocol.train.precision),
        "compiled": watched.get("compiled", False),
        "kept": kept,
    }
    write_json(folder / REPORT, report)


def load_weights(method: Method, folder: Path, key: str | None = None) -> dict[str, Any]:
    """Puts a training's averaged weights into `method` and returns the report.

    Raises:
        UserError: the file is truncated, or of another method or core.
    """
    report = read_fields(folder / REPORT, "fingerprint")
    path = folder / WEIGHTS
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("posbench", "{}"))
        state = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove {folder} to train again") from None
    if about.get("fingerprint") != report["fingerprint"]:
        whose = f"{about['method']} {about['train']} seed {about['seed']}" if about else "another program"
        raise UserError(f"{path} holds the weights of {whose}, not those of {REPORT} beside it; remove {folder} to train again")
    if key is not None and report["fingerprint"] != key:
        raise UserError(
            f"{path} belongs to another training ({report['fingerprint']}, not {key}); remove {folder} to train again"
        )
    own = method.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing and method.trains_as and not (extra or wrong):
        raise UserError(
            f"{method.file} adds parameters that the checkpoint of {method.trains_as} lacks ({listed(missing)}); a method with "
            "weights of its own has no `trains_as`"
        )
    if missing or extra or wrong:
        raise UserError(
            f"{path} is of another method or core: missing: {listed(missing) or 'none'}; unexpected: {listed(extra) or 'none'}"
            f"; of another shape: {listed(wrong) or 'none'}; remove {folder} to train again"
        )
    method.load_state_dict(state)
    return report
