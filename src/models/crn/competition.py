"""How units compete: who meets whom, what a meeting costs, and who is best so far.

Source: official code of CRN, see module.py. There is no winner-take-all update. Each step draws a
random pair; both units play generator and discriminator on the same minibatch and both are
updated. "Best" units are chosen only to score images. Ours: four forwards instead of eight and one
backward instead of four, with equal losses, gradients and running statistics.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from src.errors import ConfigError
from src.models.crn.options import LossWeights
from src.models.crn.unit import CompetitiveUnit

# Eight official forwards update the running statistics of a unit four times with momentum 0.1, in
# the order s1 s2 s1 s2: run <- 0.6561 run + 0.1629 s1 + 0.181 s2. Two updates with these momenta
# give the same: (1 - m1)(1 - m2) = 0.6561, m1 (1 - m2) = 0.1629, m2 = 0.181.
SECOND_MOMENTUM = 0.1 + 0.1 * 0.9**2
FIRST_MOMENTUM = (0.09 + 0.09 * 0.9**2) / (1 - SECOND_MOMENTUM)


class PairLoss(NamedTuple):
    """What a meeting of units a and b gives; all but `total` are detached, order (a, b)."""

    total: Tensor  # scalar with graph, L_a + L_b
    loss: Tensor  # (2,) L, may be negative
    reconstruction: Tensor  # (2,) R = |x - u(x)|, lower is the better generator
    discrimination: Tensor  # (2,) D = |r' - u(r')| - |x - u(x)|, higher is the better discriminator


def pair_loss(
    pair: Sequence[CompetitiveUnit],
    image: Tensor,
    weights: LossWeights,
    shown: Tensor | None = None,
    margin: float | None = None,
) -> PairLoss:
    """Loss of two units (a, b) that meet on images (B, 3, H, W) in [-1, 1].

    With r_a = a(x), r_b = b(x) and sg the stop-gradient,
    L_a = w_r |x - r_a| + w_f |r_a - sg b(sg r_a)| - w_d |sg r_b - a(sg r_b)|, L_b with a and b
    exchanged; |.| is the mean over all elements. No gradient passes through the partner. The
    constant 4 that the official code adds to keep losses positive is left out.

    ours: with `shown` (B, 3, H, W) the units see those, partly painted over, and are to rebuild
    `image`. With a `margin` the third term, which soon outweighs the others, earns nothing beyond
    it (as in Zhao et al., "Energy-based GAN", 2017).
    """
    shown = image if shown is None else shown
    a, b = pair
    # This order gives batch norm the official order of batches: a sees x, r_b; b sees r_a, x.
    a.set_norm_momentum(FIRST_MOMENTUM)
    b.set_norm_momentum(FIRST_MOMENTUM)
    made_a = a(shown)
    judged_a = b(made_a.detach())
    a.set_norm_momentum(SECOND_MOMENTUM)
    b.set_norm_momentum(SECOND_MOMENTUM)
    made_b = b(shown)
    judged_b = a(made_b.detach())

    reconstruction = _distances((image, made_a), (image, made_b))
    feedback = _distances((made_a, judged_a.detach()), (made_b, judged_b.detach()))
    foreign = _distances((made_b.detach(), judged_b), (made_a.detach(), judged_a))
    earned = foreign if margin is None else foreign.clamp(max=margin)
    loss = (
        weights.reconstruction * reconstruction
        + weights.feedback * feedback
        - weights.discrimination * earned
    )
    discrimination = (foreign - reconstruction).detach()
    return PairLoss(loss.sum(), loss.detach(), reconstruction.detach(), discrimination)


def _distances(*pairs: tuple[Tensor, Tensor]) -> Tensor:
    return torch.stack([(one - other).abs().mean() for one, other in pairs])


class UnitBoard(nn.Module):
    """Who meets next, and how good every unit was lately.

    Buffers (K,): `loss`, `reconstruction` (inf until seen) and `discrimination` (-inf until seen),
    so unseen units are never best (the official code starts at 0, which makes them best). `best` is
    (generator, discriminator) as `choose_best` last found them. A resumed run continues alike.
    """

    reconstruction: Tensor
    discrimination: Tensor
    loss: Tensor

    def __init__(self, num_units: int, pairing: str, decay: float, seed: int) -> None:
        super().__init__()
        self.num_units, self.pairing, self.decay = num_units, pairing, decay
        self.generator = torch.Generator().manual_seed(seed)
        self.best = (0, 1)
        for name, unseen in (("loss", 1), ("reconstruction", 1), ("discrimination", -1)):
            self.register_buffer(name, torch.full((num_units,), unseen * torch.inf))

    def draw_pairs(self) -> list[tuple[int, int]]:
        """Disjoint pairs of different units for one step: one, or K // 2 when matching."""
        order = torch.randperm(self.num_units, generator=self.generator).tolist()
        count = 1 if self.pairing == "random" else self.num_units // 2
        return [(order[2 * i], order[2 * i + 1]) for i in range(count)]

    @torch.no_grad()
    def record(self, pair: tuple[int, int], result: PairLoss) -> None:
        """Note what a meeting gave; no transfer from the device."""
        for name, board in self.named_buffers():
            for unit, value in zip(pair, getattr(result, name), strict=True):
                old, new = board[unit], value.to(board)
                board[unit] = torch.where(old.isinf(), new, torch.lerp(new, old, self.decay))

    def values(self) -> dict[str, float]:
        """Latest values of every unit that has met another, `units/<k>/<name>`."""
        return {
            f"units/{unit}/{name}": value
            for name, board in self.named_buffers()
            for unit, value in enumerate(board.tolist())
            if math.isfinite(value)
        }

    def choose_best(self, *, distinct: bool = False) -> tuple[int, int]:
        """(generator, discriminator): lowest R and highest D, the first unit on ties.

        They may be one unit, as in the official code, unless they shall be `distinct` and another
        is fit. Units with NaN are passed over; ConfigError when none is left.
        """
        fit = self.reconstruction.isfinite() & self.discrimination.isfinite() & ~self.loss.isnan()
        if not fit.any():
            raise ConfigError(
                "No unit has a finite loss.",
                found=f"NaN or infinity in units {self.broken_units()}, the others did not train",
                do="lower model.optimizer.lr, or use hardware.precision=32-true",
            )
        generator = torch.where(fit, self.reconstruction, torch.inf).argmin()
        if distinct and fit.sum() > 1:
            fit[generator] = False
        discriminator = torch.where(fit, self.discrimination, -torch.inf).argmax()
        self.best = int(generator), int(discriminator)
        return self.best

    def broken_units(self) -> list[int]:
        """Units whose loss became NaN; they cannot recover."""
        # The loss of a unit holds its partner's picture: it is NaN a step before R and D are.
        boards = torch.stack([self.loss, self.reconstruction, self.discrimination])
        return boards.isnan().any(0).nonzero().flatten().tolist()

    def get_extra_state(self) -> dict[str, Any]:
        """The pair generator and the best pair, for checkpoints."""
        return {"generator": self.generator.get_state(), "best": list(self.best)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Inverse of `get_extra_state`."""
        self.generator.set_state(state["generator"].cpu())
        self.best = (state["best"][0], state["best"][1])
