"""What all numbers of a leaderboard have in common."""

from __future__ import annotations

from benchmark.board.table import Table
from benchmark.protocol import Protocol

LABELS = {"balanced": "every class equally often, in turn", "random": "sampled uniformly for every image"}


def _optimizer(rules: Protocol) -> str:
    """The optimizer of a protocol's trainings, and its learning rates."""
    train = rules.train
    if train.optimizer == "adamw":
        return f"AdamW, learning rate {train.lr:g}" + "".join(f"; {name} at {rate:g}" for name, rate in train.lr_of.items())
    both = f"Muon at {train.muon_lr:g} for attention and MLP matrices, AdamW at {train.lr:g} for the rest"
    return both + "".join(f"; {name} at {rate / train.lr:g} times these" for name, rate in train.lr_of.items())


def _core(board: Table) -> str:
    """The size of the core that all methods share, and of what they add to it."""
    rules, core = board.protocol, board.protocol.core
    text = f"DiT: {core.depth} blocks, width {core.width}, {core.heads} heads, patch {core.patch}, RoPE base {core.rope_base:g}"
    grids = {train: "x".join(map(str, rules.grid(train))) for train in rules.cells}
    text += "".join(f", {tokens} tokens at {train}" for train, tokens in grids.items())
    counts = {f"{record.value['training']['parameters'] / 1e6:.2f}" for record in board.records}
    ends = dict.fromkeys((min(counts, key=float), max(counts, key=float))) if counts else ()
    return text + (f"; {' to '.join(ends)} million parameters" if ends else "")


def facts(board: Table) -> list[tuple[str, str]]:
    """What all numbers of a table have in common, as (what, text)."""
    rules, records = board.protocol, board.records

    def hashes(part: str) -> str:
        found = sorted({record.value[part]["hash"] for record in records})
        return f", hash {', '.join(found)}" if found else ""

    references = {record.test: record.value["reference"]["hash"] for record in records}
    sizes = dict.fromkeys(pair.test for pair in board.pairs if pair.test in references)
    each = ", ".join(f"{size} {references[size]}" for size in sizes)
    switches, steps = rules.switches, f"{rules.train.steps:,} steps"
    found = [
        ("Protocol", f"{rules.name}, hash {rules.hash}"),
        ("Samples", f"N = {rules.sample.count:,} per cell"),
        ("Labels", LABELS[rules.sample.labels]),
        ("Detector", f"{rules.score.detector}{hashes('detector')}"),
        ("Data", f"{rules.data.card}{hashes('data')}"),
        ("Reference", f"{rules.score.reference:,} images at every test size{': ' + each if each else ''}"),
        ("Precision, recall", f"{rules.score.kept:,} real images, exact distances"),
        ("Inception score", f"{rules.splits} split{'s' if rules.splits > 1 else ''}"),
        ("Core", _core(board)),
        ("Training", f"{steps} of {rules.train.batch}, {rules.objective.name} objective, {_optimizer(rules)}"),
        ("Sampling", f"{rules.sample.solver}, {rules.sample.steps} steps, guidance {rules.sample.guidance:g}"),
        ("Switches", f"attention scale {switches.attention_scale}, timestep shift {switches.timestep_shift}"),
    ]
    if records:
        known = records[0].value["uncertainty"]
        found.append(("Intervals", f"{known['method']}, {known['resamples']} resamples, {100 * known['level']:g} %"))
    return found
