"""The plan: operations against torch's counter and figures known elsewhere, what is missing, and the large protocols."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest
import rich.console
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmark import protocol, registry
from benchmark.files import UserError, write_json
from benchmark.model import diffusion, flops
from benchmark.model.dit import Core
from benchmark.model.encoding import Encoding
from benchmark.run import local, plan
from benchmark.run.train import Run

IMAGENET = [name for name in protocol.names() if name.startswith("imagenet-")]
SIZES = ["256x256", "384x384", "512x512", "768x768", "1024x1024"]


# --- Operations ------------------------------------------------------------------------------------------------------


def counted(work, *arguments) -> int:
    """Operations as torch counts them; on the meta device nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        work(*arguments)
    return counter.get_total_flops()


def core_of(rules: protocol.Protocol, outputs: int) -> Core:
    config = dataclasses.asdict(rules.core)
    config.pop("rope_base")
    with torch.device("meta"):
        return Core(**config, out_channels=rules.core.channels * outputs)


@pytest.mark.parametrize("grid_hw", [(4, 4), (8, 6), (3, 20), (24, 32)])
@pytest.mark.parametrize(
    ("outputs", "core"),
    [
        (1, protocol.Core()),
        (2, protocol.Core(width=64, depth=3, heads=4, patch=2, channels=4, classes=10, mlp_ratio=2.0)),
        (2, protocol.Core(width=384, depth=12, heads=6, patch=2, channels=4, classes=1000)),
    ],
)
def test_forward_and_training_are_what_torch_counts(core, outputs, grid_hw):
    rules = protocol.Protocol("small", "Small", {}, core=core)
    network = core_of(rules, outputs)
    images = 2
    with torch.device("meta"):
        x = torch.empty(images, core.channels, *(core.patch * n for n in grid_hw))
        time, label = torch.empty(images), torch.empty(images, dtype=torch.int64)
    formula = flops.forward_flops(core, outputs, grid_hw)
    forward = counted(network, x, time, label, Encoding())
    assert forward / images == pytest.approx(formula, rel=0.01)
    both = counted(lambda: network(x, time, label, Encoding()).sum().backward())
    assert both / forward == pytest.approx(1 + flops.BACKWARD, rel=0.05)
    assert flops.parameters(core, outputs) == sum(value.numel() for value in network.parameters())


@pytest.mark.parametrize("name", ["ledit", "rpe2d", "extrapolation"])
def test_what_a_method_adds_is_small_change(name):
    rules = protocol.load("shapes")
    method = registry.build(name, rules, "32x32", 0)
    x, label = torch.zeros(1, 3, 48, 64), torch.zeros(1, dtype=torch.int64)

    def forward() -> None:
        with torch.no_grad():
            method.predict(x, torch.zeros(1), label, method.encoding((12, 16)), torch.zeros(1, 6))

    assert counted(forward) == pytest.approx(flops.forward_flops(rules.core, 1, (12, 16)), rel=0.03)


def test_published_sizes_of_dit():
    """Peebles and Xie 2023, table 4 and appendix A (their "Gflops" are multiply-adds) at 256 x 256; parameters in millions."""
    for name, giga, millions in (("s2", 6.06, 33), ("b2", 23.01, 130), ("xl2", 118.64, 675)):
        rules = protocol.load(f"imagenet-256-{name}")
        assert flops.forward_flops(rules.core, 2, (16, 16)) / 2e9 == pytest.approx(giga, rel=0.01)
        assert flops.parameters(rules.core, 2) / 1e6 == pytest.approx(millions, abs=0.6)


@pytest.mark.parametrize(
    ("name", "hours"),
    [("imagenet-256-xl2", [4.1, 9.7, 18, 48, 101]), ("imagenet-256-b2", [0.8, 1.9, 3.7, 10, 23])],
)
def test_a_cell_costs_what_was_estimated_independently(name, hours):
    """50,000 images, 250 steps, guidance, at 400 TFLOP/s; decoding left out. The estimate was rounded to two digits."""
    rules = protocol.load(name)
    core = plan.Device("", 400, math.inf, math.inf)
    for size, expected in zip(SIZES, hours, strict=True):
        found = plan.sampling_work(rules, size).hours(core, 1.0)
        assert found == pytest.approx(expected, rel=0.02), size


def test_h100_at_its_stated_efficiency_is_the_400_teraflops_of_that_estimate():
    chosen = plan.device("h100")
    assert chosen.bf16 * chosen.efficiency == pytest.approx(400, rel=0.02)


def test_autoencoder_is_what_torch_counts():
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        model = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        ).requires_grad_(False)  # fmt: skip
        for height, width in ((256, 256), (384, 512)):
            decoding = counted(model.decode, torch.empty(1, 4, height // 8, width // 8))
            encoding = counted(model.encode, torch.empty(1, 3, height, width))
            assert decoding == pytest.approx(plan.autoencoder_flops(plan.DECODE_PIXEL, height, width), rel=0.001)
            assert encoding == pytest.approx(plan.autoencoder_flops(plan.ENCODE_PIXEL, height, width), rel=0.001)


def test_detectors_are_what_torch_counts():
    import timm
    from torchvision.models import inception_v3

    from benchmark.evaluate.classifier import Classifier

    with torch.device("meta"):
        networks = {
            "inception": (inception_v3(weights=None, init_weights=False, aux_logits=False), torch.empty(1, 3, 299, 299)),
            "dinov2": (
                timm.create_model("vit_large_patch14_dinov2.lvd142m", img_size=224, num_classes=0),
                torch.empty(1, 3, 224, 224),
            ),
        }
    networks["shapes"] = (Classifier(), torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert sorted(networks) == registry.detectors()
    for name, (network, images) in networks.items():
        with torch.no_grad():
            assert counted(network.eval(), images) == pytest.approx(registry.detector_facts(name).flops, rel=0.01), name


def test_outputs_and_evaluations_are_those_of_the_objectives():
    for name in ("flow", "ddpm"):
        objective = diffusion.objective(protocol.Objective(name=name))
        assert flops.OUTPUTS[name] == objective.outputs
        for solver in protocol.SOLVERS[name]:
            for guidance in (1.0, 1.5):
                config = protocol.Sample(solver=solver, steps=6, guidance=guidance)
                forwards = []

                def predict(x, time, label, outputs=objective.outputs, forwards=forwards):
                    forwards.append(len(x))
                    return torch.cat([x] * outputs, dim=1) * 0.1

                steered = diffusion.guided(predict, torch.zeros(1, dtype=torch.int64), 8, guidance, "all")
                objective.sample(steered, torch.zeros(1, 4, 2, 2), config, generators=[torch.Generator()])
                assert sum(forwards) == plan.evaluations(config), (name, solver, guidance)


# --- Protocols -------------------------------------------------------------------------------------------------------


def test_the_large_contests_are_there():
    wanted = ["256-xl2", "512-xl2", "256-xl2-ft", "512-xl2-ft", "256-b2", "256-s2", "256-s2-10k"]
    assert {f"imagenet-{name}" for name in wanted} <= set(IMAGENET)


@pytest.mark.parametrize("name", IMAGENET)
def test_large_contests_are_the_papers(name):
    rules = protocol.load(name)
    ((train, tests),) = rules.cells.items()
    wanted = {
        "256x256": ["128x128", "256x256", "320x320", "384x384", "448x448", "512x512", "512x384", "384x512"],
        "512x512": ["256x256", "512x512", "768x768", "896x896", "1024x1024"],
    }
    assert tests == wanted[train]
    assert train.split("x")[0] in name
    core, sample = rules.core, rules.sample
    sizes = {"s2": (384, 12, 6), "b2": (768, 12, 12), "xl2": (1152, 28, 16)}
    assert (core.width, core.depth, core.heads) == sizes[name.split("-")[2]]
    assert (core.patch, core.channels, core.classes, core.mlp_ratio) == (2, 4, 1000, 4.0)
    assert (rules.data.card, rules.data.representation, rules.data.factor) == ("imagenet", "latents", 8)
    assert rules.objective == protocol.Objective(name="ddpm")
    assert (sample.solver, sample.steps, sample.guidance, sample.guidance_channels) == ("ddpm", 250, 1.5, "three")
    assert (rules.train.batch, rules.train.lr, rules.train.ema, rules.train.weight_decay) == (256, 1e-4, 0.9999, 0.0)
    assert rules.score.detector == "inception"
    tuned = name.endswith("-ft")
    assert rules.train.steps == (100_000 if tuned else 400_000)
    assert bool(rules.train.init) == tuned
    assert rules.options == {"ledit": {"recipe": "finetune" if tuned else "scratch"}}
    assert sample.count == (10_000 if name.endswith("10k") or train == "512x512" else 50_000)
    for method, options in rules.options.items():
        registry.load(method).make_options(options)


def test_reduced_contests_say_so_and_share_no_rules():
    assert "10,000" in protocol.load("imagenet-256-s2-10k").title
    hashes = [protocol.load(name).hash for name in IMAGENET]
    assert len(set(hashes)) == len(hashes)


def test_a_checkpoint_is_known_by_its_content(tmp_path):
    here, there = tmp_path / "here.pt", tmp_path / "there.pt"
    here.write_bytes(b"weights")
    there.write_bytes(b"weights")
    first = protocol.load("imagenet-256-xl2-ft", [f"train.init={here}"])
    second = protocol.load("imagenet-256-xl2-ft", [f"train.init={there}"])
    assert first.train.init == str(here)  # what the training opens
    assert first.hash == second.hash
    assert first.training("256x256") == second.training("256x256")
    assert str(tmp_path) not in str(first.rules())
    there.write_bytes(b"other weights")
    other = protocol.load("imagenet-256-xl2-ft", [f"train.init={there}"])
    assert other.hash != first.hash
    assert other.training("256x256") != first.training("256x256")


def test_a_pinned_checkpoint_belongs_to_the_contest(tmp_path, monkeypatch):
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")
    mark = protocol.identity(str(weights))
    text = (protocol.FOLDER / "imagenet-256-xl2-ft.yaml").read_text()
    (tmp_path / "pinned.yaml").write_text(text.replace("init: DiT-XL-2-256x256.pt", f'init: "{mark}"'))
    monkeypatch.setattr(protocol, "FOLDER", tmp_path)
    rules = protocol.load("pinned", [f"train.init={weights}"])
    assert not rules.custom
    assert rules.hash == protocol.load("pinned").hash
    assert protocol.load("pinned", [f"train.init={weights}", "train.steps=5"]).custom
    weights.write_bytes(b"another one")
    assert protocol.load("pinned", [f"train.init={weights}"]).custom


def test_an_absent_checkpoint_is_named():
    with pytest.raises(UserError, match=r"train.init: no/such.pt is not there"):
        protocol.load("imagenet-256-xl2-ft", ["train.init=no/such.pt"])


# --- What is missing -------------------------------------------------------------------------------------------------


def listed(rules, methods, out, seed: int = 0, data: str = ""):
    return plan.stages(rules, methods, seed, Run(out, data, "1", 1))


def kinds(stages) -> list[str]:
    return [stage.kind for stage in stages]


def test_shared_trainings_are_planned_once_and_nothing_is_written(tmp_path):
    rules = protocol.load("smoke")
    found = listed(rules, ["extrapolation", "yarn", "nope"], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not any(stage.whole for stage in found)
    assert [stage.method for stage in found if stage.kind == "train"] == ["extrapolation", "nope"]
    cells = [(stage.method, stage.test) for stage in found if stage.kind == "score"]
    assert cells == [(cell.method, cell.test) for cell in local.cells_of(rules, ["extrapolation", "yarn", "nope"], 0)]
    assert kinds(found).count("reference") == len(rules.pairs())
    assert kinds(found)[:2] == ["shards", "train"]
    for number, stage in enumerate(found):  # everything that a cell needs comes before it
        before = found[:number]
        if stage.kind == "sample":
            assert any(s.kind == "train" and s.train == stage.train for s in before)
        if stage.kind == "score":
            assert any(s.kind == "sample" and (s.method, s.test) == (stage.method, stage.test) for s in before)
            assert any(s.kind == "reference" and s.test == stage.test for s in before)


def test_what_is_there_is_found(tmp_path):
    """Every state from files laid out as the stages lay them out."""
    from benchmark.data import writer
    from benchmark.data.card import load_card
    from benchmark.run import sample, train

    rules = protocol.load("smoke")
    run = Run(tmp_path, "", "1", 1)
    card = dataclasses.replace(load_card(rules.data.card), count=rules.data.count)
    written = writer.prepare(card, None, tmp_path / "data", workers=1)
    mark = train.fingerprint(rules, "extrapolation", "16x16", 0, written.fingerprint)
    folder = tmp_path / "trainings" / f"extrapolation-16x16-s0-{mark}"

    def states() -> dict[str, str]:
        return {f"{s.kind} {s.test or s.train}".strip(): s.state for s in listed(rules, ["extrapolation"], tmp_path)}

    def left(kind: str) -> float:
        return next(s.work.total for s in listed(rules, ["extrapolation"], tmp_path) if s.kind == kind)

    assert states()["shards"] == "whole"
    assert states()["train 16x16"] == "missing"
    whole = left("train")
    (folder / train.CHECKPOINTS).mkdir(parents=True)
    for step in (5, 15):
        (folder / train.CHECKPOINTS / f"step={step}.ckpt").touch()
    assert states()["train 16x16"] == "step 15 of 20"
    assert left("train") == pytest.approx(whole / 4)
    (folder / train.WEIGHTS).touch()
    write_json(folder / train.REPORT, {"fingerprint": mark})
    assert states()["train 16x16"] == "whole"
    cell = sample.cell_folder(rules, "extrapolation", "16x16", "16x16", 0, mark, run)
    assert states()["sample 16x16"] == "missing"
    whole = left("sample")
    sample.chunk_path(cell, 0).parent.mkdir(parents=True)
    sample.chunk_path(cell, 0).touch()
    assert states()["sample 16x16"] == "16 of 32 images"
    assert left("sample") == pytest.approx(whole / 2)
    write_json(cell / sample.DONE, {})
    assert states()["sample 16x16"] == "whole"
    assert states()["sample 32x24"] == "missing"
    assert states()["score 16x16"] == "missing"
    value = {
        "protocol": {"name": "smoke", "hash": rules.hash}, "method": {"name": "extrapolation"},
        "cell": {"train": "16x16", "test": "16x16"}, "seed": 0,
        "revisions": plan.revision.current("extrapolation"),
    }  # fmt: skip
    write_json(cell / "record-0.json", value)
    assert states()["score 16x16"] == "no record"
    write_json(tmp_path / "records" / rules.hash / plan.record.location(value), value)
    assert states()["score 16x16"] == "whole"
    value["revisions"]["score"] += 1
    write_json(cell / "record-0.json", value)
    assert states()["score 16x16"] == "missing", "a record of another revision"
    assert listed(rules, ["extrapolation"], tmp_path, seed=1)[1].state == "missing"


def test_encoding_on_the_fly_is_counted_for_those_who_augment(tmp_path):
    rules = protocol.load("imagenet-256-xl2")
    found = {stage.method: stage for stage in listed(rules, ["rpe2d", "nope"], tmp_path) if stage.kind == "train"}
    assert found["nope"].work.tf32 == 0
    images = rules.train.steps * rules.train.batch
    assert found["rpe2d"].work.tf32 == images * plan.autoencoder_flops(plan.ENCODE_PIXEL, 256, 256)
    assert found["rpe2d"].work.bf16 == found["nope"].work.bf16
    assert kinds(listed(rules, ["nope"], tmp_path))[:3] == ["shards", "latents", "train"]
    assert "latents" not in kinds(listed(rules, ["rpe2d"], tmp_path))
    plain = protocol.load("imagenet-256-xl2", ["options.rpe2d.resize=0"])
    assert "latents" in kinds(listed(plain, ["rpe2d"], tmp_path)), "without augmentation latents do"


def test_latents_are_found_beside_their_pictures(tmp_path):
    """Whichever of the two is given as DATA; latents of another size or of other pictures do not count."""
    rules = protocol.load("imagenet-256-s2")
    base = {"count": 10, "shards": [{"bytes": 5000}]}
    for name, more in {
        "pictures": {"kind": "images", "fingerprint": "p"},
        "right": {"kind": "latents", "fingerprint": "a", "images": "p", "size": [256, 256]},
        "other-size": {"kind": "latents", "fingerprint": "b", "images": "p", "size": [512, 512]},
        "strange": {"kind": "latents", "fingerprint": "c", "images": "q", "size": [256, 256]},
    }.items():
        write_json(tmp_path / "data" / name / "manifest.json", base | more)
    for given in ("pictures", "right"):
        found = listed(rules, ["nope", "rpe2d"], tmp_path, data=str(tmp_path / "data" / given))
        data = {stage.kind: stage for stage in found if stage.kind in ("shards", "latents")}
        assert data["shards"].title.endswith("pictures")
        assert data["latents"].title.endswith("right")
        assert data["shards"].whole
        assert data["latents"].whole
    larger = listed(protocol.load("imagenet-512-xl2"), ["nope"], tmp_path, data=str(tmp_path / "data" / "pictures"))
    assert next(stage for stage in larger if stage.kind == "latents").title.endswith("other-size")


def printed(rules, stages, name="h100", **options) -> str:
    console = rich.console.Console(file=io.StringIO(), width=200)
    plan.print_plan(rules, stages, name, console=console, **options)
    return console.file.getvalue()


def test_the_plan_says_what_it_rests_on(tmp_path):
    rules = protocol.load("imagenet-256-xl2")
    found = listed(rules, ["extrapolation", "yarn", "rpe2d"], tmp_path)
    text = printed(rules, found, count=8)
    for words in ("imagenet-256-xl2", rules.hash, "40% of 989", "rpe2d at 256x256 augments in pixel space", "On 8 devices"):
        assert words in text, text
    lines = [line for line in text.splitlines() if "extrapolation at 256x256" in line]
    assert len(lines) == 1
    assert "51.2 h" in lines[0], lines  # 400,000 steps of 256 images at 3 x 237 GFLOP and 396 TFLOP/s
    assert "146 GB" in next(line for line in text.splitlines() if "1,281,167 pictures" in line)
    dearer = printed(rules, found, efficiency=0.2)
    assert "102.3 h" in next(line for line in dearer.splitlines() if "extrapolation at 256x256" in line)


def test_a_protocol_that_wants_a_checkpoint_says_how_to_give_it(tmp_path):
    rules = protocol.load("imagenet-256-xl2-ft")
    assert "train.init=PATH" in printed(rules, listed(rules, ["ledit"], tmp_path))


def test_bad_input_lists_the_choices(tmp_path):
    rules = protocol.load("smoke")
    with pytest.raises(UserError, match=r"unknown device 'h1000'; did you mean 'h100'"):
        printed(rules, [], "h1000")
    with pytest.raises(UserError, match="between 0 and 1"):
        printed(rules, [], "h100", efficiency=3)


@pytest.mark.parametrize(
    ("count", "text"), [(999, "999 B"), (1e3, "1 kB"), (157e9, "157 GB"), (1.5e12, "1.5 TB"), (2e15, "2 PB")]
)
def test_bytes_for_people(count, text):
    assert plan.show_bytes(count) == text
