"""MFI: mixed-frequency inputs, high frequencies of other images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.attacks.transforms.admix import Mixed, others_of
from advens.attacks.transforms.si import faded
from advens.fields import Count


@part("transform", "mfi", paper="Qian et al., TIFS 2024 (MFI)", year=2024, couples="shard")
class MFI:
    """Copies ``(x_mixed + noise) / 2^i``, with high frequencies mixed with those of another image.

    ``x_mixed = F'(L F x + (1 - L)(a F x + (1 - a) F o))`` with the Fourier transform F, another image o, a
    share a ~ U(0, 1), and a low-pass ``L = sigmoid((radius - f) / softness)`` of the frequency f. The
    ``hard`` mask has L = 1 up to the radius and 0 beyond, and a = 0. Noise is normal, of ``sigma`` eps. For
    each of ``others`` other images there are ``scales`` copies.

    The published radius is 100 of the 112 frequencies that an image of 224 pixels has along an axis: little
    but the outermost corners is mixed, and noise of 2 eps at five scales is most of what happens. Radius
    and softness are in cycles a pixel here, and so go with the size of the image.

    Other images are clean ones of the shard, a sample's own every step; published code shuffles the
    adversarial images of the batch (``mixed="adversarial"``), see ``admix``. Noise is a sample's own, a is
    drawn once a step and other image. The class that is published in TransferAttack cannot run: its loss
    asks for a field that nothing sets.

    Args:
        others: how many other images.
        scales: how many scales.
        mask: ``soft`` or ``hard``.
        radius: the frequency beyond which images are mixed.
        softness: how soft the mask is.
        sigma: standard deviation of the noise, relative to eps.
        mixed: other images as they are ``clean``, or ``adversarial`` as they have become.
    """

    others: Count = 3
    scales: Count = 5
    mask: Literal["soft", "hard"] = "soft"
    radius: float = 100 / 224
    softness: float = 10 / 224
    sigma: float = 2.0
    mixed: Mixed = "clean"

    @property
    def copies(self) -> int:
        return self.others * self.scales

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        other, scale = divmod(copy, self.scales)
        draws = context.draws.fork("mfi", other)
        o = others_of(x, context, self.mixed, "mfi", other)
        kept = self.kept(x, draws.number(0, 1, "share"))
        # the transform is linear, and the mask of a frequency and of its negative are the same
        mixed = o + torch.fft.ifft2(kept * torch.fft.fft2(x - o)).real
        return faded(mixed + context.threat.gaussian(x, self.sigma, draws, "noise"), scale, 0.0)

    def kept(self, x: Tensor, share: float) -> Tensor:
        """What of every frequency of x stays its own, (H, W): ``L + (1 - L) a``."""
        down, across = (torch.fft.fftfreq(n, dtype=torch.float64) for n in x.shape[-2:])
        f = torch.hypot(down[:, None], across[None])
        if self.mask == "hard":
            return (f <= self.radius).to(x)
        low = torch.sigmoid((self.radius - f) / self.softness)
        return (low + (1 - low) * share).to(x)
