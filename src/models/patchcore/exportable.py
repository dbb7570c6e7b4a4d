"""A fitted PatchCore as one plain graph: convolutions, two products, a minimum.

The tiled search of `MemoryBank` decides shapes in Python, which a graph cannot hold. Here every
patch meets the whole bank in one product; the candidates are measured again from differences, as
in the search itself, so scores agree to rounding. Memory: B * h * w * M distances (50 MB for one
image of 784 patches and 16,384 rows).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.models.patchcore.anomaly_map import map_matrix
from src.models.patchcore.memory import PatchMemory
from src.models.patchcore.scoring import neighbourhood_weight
from src.result import Prediction


class ExportableMemory(nn.Module):
    """Patch scores of one memory bank without Python loops over sizes."""

    rows: Tensor  # (M, D) relative to centre
    centre: Tensor  # (D,)
    norms: Tensor  # (M,)

    def __init__(self, memory: PatchMemory) -> None:
        super().__init__()
        self.embedder, self.scorer, self.options = memory.embedder, memory.scorer, memory.options
        rows = memory.bank.rows.float()
        self.register_buffer("rows", rows)
        self.register_buffer("centre", memory.bank.centre.clone())
        self.register_buffer("norms", rows.square().sum(1))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Feature maps -> image scores (B,) and patch scores (B, h, w)."""
        patches = self.embedder.stacked(maps).permute(0, 2, 3, 1)  # (B, h, w, D)
        if self.options.distance == "cosine":
            patches = F.normalize(patches, dim=3)
        h, w, D = patches.shape[1:]
        queries = patches.reshape(-1, D) - self.centre  # (B*h*w, D)
        squared, row = self._nearest(queries, self.options.neighbors)
        grid = self.scorer.patch(squared).view(-1, h * w)  # (B, h*w)
        score = grid.amax(1)
        if self.scorer.reweight != "none":
            worst = grid.argmax(1)[:, None]
            query = queries.view(-1, h * w, D).gather(1, worst[..., None].expand(-1, 1, D))[:, 0]
            best = row[:, 0].view(-1, h * w).gather(1, worst)[:, 0]
            nearest = squared[:, 0].view(-1, h * w).gather(1, worst)[:, 0]
            score = score * self._weight(query, best, nearest)
        return score, grid.view(-1, h, w)

    def _nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Squared distances (Q, k), nearest first, and rows (Q, k)."""
        rough = torch.addmm(self.norms, queries, self.rows.T, alpha=-2.0)  # (Q, M)
        k = min(k, len(self.rows))
        row = rough.argmin(1, keepdim=True) if k == 1 else rough.topk(k, 1, largest=False).indices
        exact = (self.rows[row] - queries[:, None]).square().sum(2)  # (Q, k)
        if k == 1:
            return exact, row
        exact, order = exact.sort(dim=1)
        return exact, row.gather(1, order)

    def _weight(self, query: Tensor, best: Tensor, nearest: Tensor) -> Tensor:
        """Eq. 7 for the worst patch (B, D) of each image and its match (B,)."""
        _, near = self._nearest(self.rows[best], self.options.reweight_neighbors)  # (B, b)
        gap = (query[:, None] - self.rows[near]).square().sum(2)
        length = self.scorer.length
        return neighbourhood_weight(
            self.scorer.reweight, length(nearest), length(gap), query.shape[1]
        )


class ExportablePatchCore(nn.Module):
    """Backbone, memory and map in one graph; same numbers as `PatchCore.forward`."""

    rows: Tensor  # (H, h)
    columns: Tensor  # (W, w)

    def __init__(
        self, backbone: nn.Module, memory: PatchMemory, size: tuple[int, int], sigma: float
    ) -> None:
        super().__init__()
        self.backbone, self.memory = backbone, ExportableMemory(memory)
        device = memory.bank.rows.device
        with torch.no_grad():
            h, w = memory.patches(backbone(torch.zeros(1, 3, *size, device=device))).shape[1:3]
        self.register_buffer("rows", map_matrix(h, size[0], sigma).to(device))
        self.register_buffer("columns", map_matrix(w, size[1], sigma).to(device))

    def forward(self, image: Tensor) -> Prediction:
        """Images (B, 3, H, W) of the fitted size -> scores (B,) and maps (B, H, W)."""
        score, grid = self.memory(self.backbone(image))
        return Prediction(score, self.smooth(grid))

    def smooth(self, grid: Tensor) -> Tensor:
        """Patch scores (B, h, w) -> anomaly map (B, H, W): resized, then blurred, as products."""
        return self.rows @ grid @ self.columns.T


class ExportableEnsemble(nn.Module):
    """The members in one graph; same numbers as `PatchCoreEnsemble.forward`."""

    def __init__(self, members: Sequence[ExportablePatchCore], scale: Tensor) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        # (members, image | patch, location | unit); in Python, so that the graph holds constants
        self.scale: list[list[list[float]]] = scale.tolist()

    def forward(self, image: Tensor) -> Prediction:
        """Images (B, 3, H, W) of the fitted size -> scores (B,) and maps (B, H, W)."""
        found = []
        for member, scale in zip(self.members, self.scale, strict=True):
            (image_at, image_unit), (patch_at, patch_unit) = scale
            score, grid = member.memory(member.backbone(image))  # type: ignore[operator]
            scaled = member.smooth((grid - patch_at) / patch_unit)  # type: ignore[operator]
            found.append(((score - image_at) / image_unit, scaled))
        scores, maps = zip(*found, strict=True)
        return Prediction(torch.stack(scores).mean(0), torch.stack(maps).mean(0))
