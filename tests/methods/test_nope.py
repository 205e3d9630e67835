"""NoPE is blind to the order of its tokens."""

from __future__ import annotations

import numpy as np
import small
import torch
from strategies import build


def test_nope_cannot_tell_the_order_of_its_tokens():
    method = small.fill(build("nope", "16x16", ("16x16",)))
    image = small.normal(1, 1, 3, 16, 16)
    tokens = image.unfold(2, 4, 4).unfold(3, 4, 4).reshape(1, 3, 16, 4, 4)
    order = torch.tensor(np.random.Generator(np.random.Philox(2)).permutation(16))

    def image_of(tokens):
        return tokens.view(1, 3, 4, 4, 4, 4).permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 16, 16)

    def run(image):
        with torch.no_grad():
            output = method.predict(image, torch.tensor([500.0]), torch.tensor([1]), method.encoding((4, 4)), None)
        return output.unfold(2, 4, 4).unfold(3, 4, 4).reshape(1, 3, 16, 4, 4)

    assert torch.equal(image_of(tokens), image)
    torch.testing.assert_close(run(image_of(tokens[:, :, order])), run(image)[:, :, order], rtol=1e-4, atol=1e-5)
