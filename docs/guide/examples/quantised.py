"""A defense that hides its gradients, and a differentiable stand-in for it."""

from torch import Tensor, nn

import advens


class Quantised(nn.Module):
    """Rounds every pixel to one of nine values before a network sees the image."""

    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.network = advens.load_model("digits:resnet")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((8 * x).round() / 8)
        return logits


def defended() -> nn.Module:
    """The defense: a model like any other."""
    return Quantised()


def without_rounding(model: nn.Module) -> nn.Module:
    """The stand-in: the network alone. ``model`` is the model that is attacked; ``model.net`` is yours."""
    network: nn.Module = model.net.network
    return network
