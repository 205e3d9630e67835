"""The shared DiT: patchify, adaLN-Zero blocks, attention that applies an Encoding. It is independent of the method.

Peebles and Xie 2023, "Scalable Diffusion Models with Transformers"; parameters are named as in the published checkpoints.

Shapes: B batch, C channels, (H, W) pixels or latents, p patch, (h, w) = (H/p, W/p) grid, T = h w tokens, D width, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.model.encoding import Encoding, Mask, rotate
from benchmark.model.precision import full_precision


class Core(nn.Module):
    """A Diffusion Transformer on any grid. No parameter or buffer is sized by the grid.

    Args:
        width, depth, heads, patch, mlp_ratio: as in DiT, whose sizes are `checkpoint.SIZES`.
        channels: of the input.
        out_channels: of the output; twice `channels` where the variance is learned.
        classes: labels 0 .. classes - 1; label `classes` is the null class.
    """

    def __init__(self, *, width: int, depth: int, heads: int, patch: int, channels: int, out_channels: int, classes: int,
                 mlp_ratio: float = 4.0) -> None:  # fmt: skip
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.patch, self.out_channels = patch, out_channels
        self.x_embedder = PatchEmbedder(channels, width, patch)
        self.t_embedder = TimestepEmbedder(width)
        self.y_embedder = LabelEmbedder(classes, width)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch, out_channels)
        self.initialize()

    def initialize(self) -> None:
        """DiT's initialisation: every block starts as the identity, the output as zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.view(projection.weight.shape[0], -1))
        nn.init.zeros_(projection.bias)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[0].weight, std=0.02)
        nn.init.normal_(self.t_embedder.mlp[2].weight, std=0.02)
        for modulated in [*self.blocks, self.final_layer]:
            nn.init.zeros_(modulated.adaLN_modulation[1].weight)
            nn.init.zeros_(modulated.adaLN_modulation[1].bias)
        nn.init.zeros_(self.final_layer.linear.weight)
        nn.init.zeros_(self.final_layer.linear.bias)

    def forward(self, x: Tensor, time: Tensor, label: Tensor, encoding: Encoding, stem: Callable[..., Tensor] | None = None,
                condition: Tensor | None = None) -> Tensor:  # fmt: skip
        """The network's prediction.

        Args:
            x: [B, C, H, W], H and W divisible by the patch.
            time: [B] noise level on DiT's scale of 0 .. 1000.
            label: [B] int64.
            encoding: where the tokens are.
            stem: a map [B, D, h, w] -> same, after patchify; called with `encoding.stem` as keyword arguments too.
            condition: [B, D], added to the timestep and class embedding.

        Returns:
            [B, out_channels, H, W].
        """
        if x.shape[-2] % self.patch or x.shape[-1] % self.patch:
            raise ValueError(f"an input of {x.shape[-2]} x {x.shape[-1]} does not divide into patches of {self.patch}")
        x = self.x_embedder(x)  # [B, D, h, w]
        grid_hw = x.shape[-2:]
        if stem is not None:
            x = stem(x, **encoding.stem)
        # The residual stream has the parameters' precision: float32 under autocast.
        x = x.flatten(2).transpose(1, 2).to(self.x_embedder.proj.weight.dtype, memory_format=torch.contiguous_format)  # [B, T, D]
        if encoding.add is not None:
            x = x + encoding.add.to(x.dtype)
        turns = encoding.turns(len(self.blocks))
        c = self.t_embedder(time) + self.y_embedder(label)  # [B, D]
        if condition is not None:
            c = c + condition
        # Every block passes the same vector through SiLU first: once is enough.
        c = F.silu(c)
        scale = None if encoding.logit_scale == 1.0 else encoding.logit_scale / math.sqrt(self.blocks[0].attn.head_width)
        for index, block in enumerate(self.blocks):
            mask = encoding.mask[index] if encoding.mask is not None else None
            bias = encoding.bias[index] if encoding.bias is not None else None
            x = block(x, c, turns[index], mask, bias, scale)
        return self.unpatchify(self.final_layer(x, c), grid_hw)

    def unpatchify(self, x: Tensor, grid_hw: tuple[int, int]) -> Tensor:
        """[B, T, p p C'] -> [B, C', h p, w p]; a token's values are ordered (row, column, channel)."""
        h, w = grid_hw
        x = x.view(x.shape[0], h, w, self.patch, self.patch, self.out_channels)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], self.out_channels, h * self.patch, w * self.patch)


class PatchEmbedder(nn.Module):
    """Non-overlapping patches, projected: [B, C, H, W] -> [B, D, h, w]."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class TimestepEmbedder(nn.Module):
    """Noise level -> vector, through 256 sinusoids and an MLP, in the parameters' precision: [B] -> [B, D].

    In bfloat16 half of the sinusoids of two neighbouring steps would be equal where levels run from 0 to 1, as in SiT.
    """

    def __init__(self, width: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        with full_precision(time.device):
            return self.mlp(sinusoids(time, self.frequencies).to(self.mlp[0].weight.dtype))


class LabelEmbedder(nn.Module):
    """Class -> vector; the last row is the null class of classifier-free guidance: [B] -> [B, D]."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, label: Tensor) -> Tensor:
        return self.embedding_table(label)


class Block(nn.Module):
    """A transformer block whose norms are shifted, scaled and gated by the condition c [B, D] (adaLN-Zero): [B, T, D] -> same."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 6 * width))  # SiLU: see Core.forward

    def forward(self, x: Tensor, c: Tensor, turns: Tensor | None, mask: Mask, bias: Tensor | None, scale: float | None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate_a * self.attn(modulate(self.norm1(x), shift_a, scale_a), turns, mask, bias, scale)
        return x + gate_m * self.mlp(modulate(self.norm2(x), shift_m, scale_m))


class Attention(nn.Module):
    """Multi-head self-attention in PyTorch's fused kernels; [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, turns: Tensor | None, mask: Mask, bias: Tensor | None, scale: float | None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, self.head_width)).permute(2, 0, 3, 1, 4)  # [3, B, H, T, K]
        q, k, v = qkv if turns is None else (*rotate(qkv[:2], turns), qkv[2])
        return self.proj(attend(q, k, v, mask, bias, scale).transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, bias: Tensor | None, scale: float | None) -> Tensor:
    """softmax(q k' scale + bias) v over [B, H, T, K], where the mask is true; `scale` None is 1 / sqrt(K).

    In PyTorch's fused kernels, with one exception: the CPU's bfloat16 kernel takes two to ten times as long as plain
    matrix products on short sequences (torch 2.15; T = 64: 22 ms and 2 ms with gradients), and leads from about T = 1000.
    Plain products round logits and probabilities to bfloat16: their error is two times the kernel's where the largest logit is
    about 5, and eight times at 40.
    """
    causal = isinstance(mask, str)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[-2] <= 512:
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        heads = q.shape[:2]
        with torch.autocast("cpu", enabled=False):
            q, k, v = (part.flatten(0, 1) for part in (q * scale, k, v))
            logits = torch.bmm(q, k.transpose(1, 2))
            if bias is not None:
                logits = (logits.unflatten(0, heads) + bias.to(logits.dtype)).flatten(0, 1)
            if mask is not None:
                seen = lower_triangle(logits) if causal else mask
                logits.unflatten(0, heads).masked_fill_(~seen, -math.inf)  # a view: of one mask, or a mask a head
            return torch.bmm(logits.softmax(-1), v).unflatten(0, heads)
    if bias is not None:  # the kernels take one of a mask, a bias and "causal": the mask becomes part of the bias
        if mask is not None:
            bias = bias.masked_fill(~(lower_triangle(bias) if causal else mask), -math.inf)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None].to(q.dtype), scale=scale)
    seen = None if causal else mask
    if seen is not None and seen.dim() == 3:
        seen = seen[None]  # the kernels want two dimensions or four
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal, scale=scale)


def lower_triangle(logits: Tensor) -> Tensor:
    """The causal mask of logits [..., T, T]: boolean [T, T], true on and below the diagonal."""
    return torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU (Hendrycks and Gimpel 2016).

    Without gradients in bfloat16 on the CPU as x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)), which is the same function
    in half the time, with about 1.3 times the rounding error (up to 3 % of the value between -3 and -1).
    """
    if x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.is_grad_enabled():
        factor = 2 * math.sqrt(2 / math.pi)
        gate = torch.addcmul(x.new_tensor(factor), x, x, value=0.044715 * factor).mul_(x).sigmoid_()
        return gate.mul_(x)
    return F.gelu(x, approximate="tanh")


class Mlp(nn.Module):
    """Two layers with a GELU between them: [B, T, D] -> same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class FinalLayer(nn.Module):
    """Norm, modulation and the projection back to patches: [B, T, D] -> [B, T, p p C']."""

    def __init__(self, width: int, patch: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, patch * patch * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.Identity(), nn.Linear(width, 2 * width))  # SiLU: see Core.forward

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [B, T, D] scaled and shifted per sample and channel; shift, scale [B, 1, D]."""
    return x * (1 + scale) + shift


def sinusoids(value: Tensor, width: int) -> Tensor:
    """[cos | sin] of value * exp(-ln 10000 * k / (width / 2)), k = 0 .. width/2 - 1 (DiT): [...] -> float32 [..., width]."""
    half = width // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=value.device) / half)
    angle = value[..., None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
