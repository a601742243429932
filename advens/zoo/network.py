"""An embedded network as the harness knows it."""

from __future__ import annotations

from advens.classifier import Classifier


class ZooNetwork(Classifier):
    """A network of the zoo. Its images are prepared in one way only, so that its weights say all."""

    def prepared_digest(self) -> str:
        """Hex sha256 of the weights."""
        return self.weights
