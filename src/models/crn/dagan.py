"""DAGAN, the baseline of the CRN paper: a U-Net generator judged by an autoencoder.

Method: Tang et al., "Anomaly detection neural network with dual auto-encoders GAN and its
industrial inspection applications", Sensors 20(12):3336, 2020, in the variant of the official CRN
code, whose released version does not run, so there are no numbers to check it against. Ours: one
optimizer and one backward, which is the same because neither loss reaches the other network.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.base import AnomalyModule
from src.models.build import make
from src.models.crn.options import DAGANOptions
from src.models.crn.unit import CompetitiveUnit, count_levels
from src.models.residuals import refuse_backbone
from src.result import Prediction


class DAGAN(AnomalyModule):
    """Generator G and discriminator D, both autoencoders of images (B, 3, H, W) in [-1, 1].

    L_G = w_adv MSE(G(x), sg D(G(x))) + w_con MSE(x, G(x));
    L_D = w_dis (MSE(D(x), x) - MSE(D(sg G(x)), sg G(x))).
    The generator halves images down to one pixel.
    """

    Options: ClassVar[type] = DAGANOptions

    def __init__(
        self, backbone: nn.Module | None, image_size: tuple[int, int], options: DAGANOptions
    ) -> None:
        super().__init__()
        refuse_backbone("DAGAN", backbone)
        self.backbone = None
        self.options = options
        levels = count_levels(image_size, int(math.log2(min(image_size))))
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, as the official code
            torch.manual_seed(options.seed)
            self.generator = CompetitiveUnit(
                levels, options.base_channels, "batch", "transposed", False
            )
            self.discriminator = judge(options.base_channels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimizer over both networks."""
        return make("optimizer", self.options.optimizer, self.parameters())

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Both losses of one minibatch."""
        generator, discriminator = self.losses(batch["image"])
        self.log("train/generator", generator)
        self.log("train/discriminator", discriminator)
        return generator + discriminator

    def losses(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(L_G, L_D) of images (B, 3, H, W); each has gradients for its own network only."""
        made = self.generator(image)
        fixed = made.detach()
        judged = self.discriminator(fixed)
        weights = self.options.weights
        generator = weights.adversarial * F.mse_loss(made, judged.detach())
        generator = generator + weights.contextual * F.mse_loss(made, image)
        real = F.mse_loss(self.discriminator(image), image)
        return generator, weights.discriminator * (real - F.mse_loss(judged, fixed))

    def forward(self, image: Tensor) -> Prediction:
        """Scores (B,) and maps (B, H, W): mean of |x - G(x)| and |x - D(x)|."""
        made = (image - self.generator(image)).abs()
        judged = (image - self.discriminator(image)).abs()
        anomaly_map = ((made + judged) / 2).mean(dim=1).float()
        return Prediction(score=anomaly_map.mean(dim=(1, 2)), anomaly_map=anomaly_map)


def judge(base_channels: int) -> nn.Sequential:
    """The discriminator: two halvings and back; 1 315 587 parameters with 64 channels."""
    c = base_channels
    return nn.Sequential(
        nn.Conv2d(3, c, 3, padding=1),
        nn.Conv2d(c, 2 * c, 4, stride=2, padding=1),
        nn.LeakyReLU(0.01),
        nn.BatchNorm2d(2 * c),
        nn.Conv2d(2 * c, 4 * c, 4, stride=2, padding=1),
        nn.LeakyReLU(0.01),
        nn.BatchNorm2d(4 * c),
        nn.ConvTranspose2d(4 * c, 2 * c, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * c, c, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(c, 3, 3, padding=1),
        nn.Tanh(),
    )
