"""What a layer gives, as maps (n, channels, h, w): convolutions give these, transformers tokens, some channels last."""

import math
from dataclasses import dataclass

import torch

from fruitlib.core.errors import InputError

# Tokens that stand for no place, where the network does not say how many: class, distillation, registers.
MOST_OTHERS = 8


@dataclass(frozen=True)
class Layout:
    """How a network lays out what its layers give, as far as its public attributes say."""

    others: int | None = None  # tokens in front that stand for no place (timm's num_prefix_tokens); None: not known
    channels_last: bool = False  # timm's output_fmt is NHWC: decides where the shape does not
    shuffled: bool = False  # tokens not in reading order: Hiera's, which `reroll` puts back

    @classmethod
    def of(cls, model: torch.nn.Module) -> "Layout":
        """The layout of the first module in `model` that says something about it."""
        return cls(
            _attribute_of(model, "num_prefix_tokens"),
            _attribute_of(model, "output_fmt") == "NHWC",
            _attribute_of(model, "reroll") is not None,
        )

    def maps(self, output: torch.Tensor, n: int, name: str) -> torch.Tensor:
        """What layer `name` gives for `n` square images, as (n, channels, h, w).

        (n, channels, h, w) as it is; (n, h, w, channels), distinguished by which two sides are equal, as the images are
        square; (n, tokens, channels), whose last tokens are a square grid in reading order.

        Raises:
            InputError: it is none of these.
        """
        if output.ndim == 4 and len(output) == n:
            first, second, last = output.shape[1:]
            if first == second and (second != last or self.channels_last):
                return output.permute(0, 3, 1, 2)
            return output
        if output.ndim == 3 and len(output) == n and (side := self._grid(output.shape[1])):
            return output[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))
        given = f"gives {tuple(output.shape)} for {n} {'image' if n == 1 else 'images'}"
        raise InputError(
            f"target_layers: {name!r} {given}, not (n, channels, h, w), (n, h, w, channels) or a square number of "
            "tokens (n, tokens, channels); name a convolution or a block"
        )

    def _grid(self, tokens: int) -> int:
        """The side of the square grid that the tokens form behind those that stand for no place; 0 if they form none.

        What is in front may be missing: the class token of some networks joins in their last blocks only.
        """
        if self.shuffled:
            return 0
        if self.others is not None and math.isqrt(max(tokens - self.others, 0)) ** 2 == tokens - self.others:
            return math.isqrt(tokens - self.others)
        side = math.isqrt(tokens)
        return side if tokens - side * side <= MOST_OTHERS else 0


def _attribute_of(model: torch.nn.Module, name: str):
    """The attribute `name` of the first module that has it; None where none has."""
    return next((getattr(module, name) for module in model.modules() if hasattr(module, name)), None)
