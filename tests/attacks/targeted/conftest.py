"""The scene of the gradient methods: formulas of one image at a time, beside the attacks."""

from tests.attacks.gradient.conftest import at as at
