"""Encoders compiled by torch where that works, and left as they are where it does not."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager

from jaxtyping import Float
from torch import Tensor, nn

from .networks import Encoder


def compile_encoders(
    module: nn.Module, images: Float[Tensor, "b 3 s s"], autocast: AbstractContextManager[object]
) -> str | None:
    """Compile every encoder in `module`, in place; returns why not, where that cannot be done.

    Tried forward and backward on copies and on `images`, shaped as training will give them: buffers, gradients and the
    names of weights stay what they were. The second time torch takes the code from its cache on disk.
    """
    encoders = [part for part in module.modules() if isinstance(part, Encoder)]
    try:
        with autocast:
            for encoder in map(copy.deepcopy, encoders):
                encoder.compile(dynamic=False)
                features = encoder(images)
                if features.whole.requires_grad:
                    (features.whole.mean() + features.field.mean()).backward()
    except Exception as error:  # whatever a compiler, or its absence, raises
        return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
    for encoder in encoders:
        encoder.compile(dynamic=False)  # other view sizes are compiled when they come
    return None
