"""The sin-cos table at squeezed positions."""

from __future__ import annotations

import torch
from strategies import build

from benchmark.model.encoding import sincos_table


def test_sincos_interpolated():
    method = build("sincos_interp", "16x24", ("16x24", "32x24"))
    table = method.encode((8, 6)).add
    rows, columns = torch.meshgrid(torch.arange(8) / 2, torch.arange(6.0), indexing="ij")
    torch.testing.assert_close(table, sincos_table(rows.flatten(), columns.flatten(), 32))
    assert torch.equal(table.view(8, 6, 32)[::2], build("sincos").encode((4, 6)).add.view(4, 6, 32))
    assert torch.equal(method.encode((3, 6)).add, build("sincos").encode((3, 6)).add), "a smaller grid is not stretched"
