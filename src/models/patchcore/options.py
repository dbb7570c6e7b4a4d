"""What a PatchCore can be told; the values and their sources are in conf/model/patchcore.yaml."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from src.errors import ConfigError

#: How feature maps become patch vectors; official: every layer pooled to pretrain_dim values, all
#: of them to target_dim; concat: all channels of the locally averaged maps (anomalib, ind_knn_ad).
Embedding = StrEnum("Embedding", ["official", "concat"])

#: Which patches the bank keeps; greedy: always the one that is farthest from those kept.
CoresetMethod = StrEnum("CoresetMethod", ["greedy", "random", "none"])

#: Where a greedy selection begins; official: the mean distance to ten random rows, themselves not
#: kept; row: a random row, kept; farthest: the row farthest from all others, kept.
CoresetStart = StrEnum("CoresetStart", ["official", "row", "farthest"])

#: Between patch vectors; cosine: they get unit length before coreset and search.
Distance = StrEnum("Distance", ["euclidean", "cosine"])

#: Who searches the bank; flat: torch, exact on any device; faiss: exact on the CPU; ivf:
#: approximate inverted lists of faiss, whose distances can only come out larger.
Backend = StrEnum("Backend", ["flat", "faiss", "ivf"])

#: What brings the channels of patch vectors to one scale; layer: every layer gets the same total
#: variance; channel: every channel variance 1; whiten: the principal components of 99 % of it.
Normalise = StrEnum("Normalise", ["none", "layer", "channel", "whiten"])

#: What the patch scores of an image come to; max: Sec. 3.3; top: the mean of the largest share.
ImageScore = StrEnum("ImageScore", ["max", "top"])

#: How training images get scores as if unseen; cross: by K folds, the coreset selected again;
#: leave_one_out: own rows skipped in the one coreset, which is fast and gives scores too high.
HeldOut = StrEnum("HeldOut", ["cross", "leave_one_out"])

#: How the bank keeps its rows; distances are computed in float32 from what is kept.
Storage = StrEnum("Storage", ["float32", "float16"])

#: Image scores after Eq. 7; paper: distances as they are, the match is one of its neighbours;
#: scaled: the common ports' variant, distances / sqrt(D), the match left out.
Reweight = StrEnum("Reweight", ["none", "paper", "scaled"])

#: How memories are brought to one scale; held_out: by held-out scores of normal images; test_set:
#: official, by the range of all images predicted in one go; none: SuperAD, the patch scores are
#: averaged as they are, and the image score is that of their mean.
Normalisation = StrEnum("Normalisation", ["held_out", "test_set", "none"])

#: joint: one memory of the vectors of all layers together; per_layer: one memory for each.
Memories = StrEnum("Memories", ["joint", "per_layer"])

#: ours: a share of the patches of each place below which a window of places misses what is normal;
#: juice_bottle, image AUROC: all .959, 0.3 .960, 0.1 .942, 0.03 .911.
LEAST_OF_A_PLACE = 0.1


#: ours: the most shots of AnomalyDINO, which thins no bank; 1 % of one image would be 7 rows.
FEW = 16


@dataclass
class CoresetOptions:
    """The `model.coreset` group."""

    method: CoresetMethod
    ratio: float | None  # share of rows to keep; None: until stop_radius
    start: CoresetStart
    projection_dim: int | None  # select in a random projection of this size; None: in full
    stop_radius: float | None  # stop once every row is this close to a kept one, feature units
    block: int  # candidate rows per pass; changes the time, never the picks
    shots: int | None  # good images of each category; of `FEW` or fewer every row is kept

    def __post_init__(self) -> None:
        if self.shots is not None and self.shots <= FEW:
            self.method = CoresetMethod.none
        if self.ratio is None and (self.stop_radius is None or self.method != CoresetMethod.greedy):
            raise ConfigError(
                "The coreset has no size.",
                found=f"ratio=null, stop_radius={self.stop_radius}, method={self.method}",
                do="set model.coreset.ratio, or method=greedy with model.coreset.stop_radius",
            )
        if self.block < 1:
            raise ConfigError(
                "model.coreset.block is a count.", found=f"{self.block}", do="use block=768"
            )

    def size(self, rows: int) -> int:
        """Rows kept of `rows`; official: rounded down; ours: at least one."""
        if self.method == CoresetMethod.none or self.ratio is None:
            return rows
        return max(1, int(rows * self.ratio))

    def projected_dim(self, dim: int) -> int:
        """Values per row during selection.

        Official: no projection to the same size. Ours: nor to more than half of it, where drawing
        and multiplying costs more than it saves and the neighbours found are worth keeping.
        """
        if self.projection_dim is None or 2 * self.projection_dim > dim:
            return dim
        return self.projection_dim


@dataclass
class SearchOptions:
    """The `model.search` group."""

    window: int | None  # cells around its place in which a patch looks for its like; None: anywhere
    backend: Backend
    cells: int | None  # inverted lists of ivf; None: 4 sqrt(rows)
    nprobe: int  # inverted lists visited per query; 8 to 16 keep image scores within 0.2 %
    dtype: Storage


@dataclass
class WindowOptions:
    """The `model.windows` group."""

    size: int | None  # side in pixels of the view, a multiple of the coarsest cell; None: whole
    overlap: int  # pixels that a window gives up at least to each neighbour, the same multiple


@dataclass
class PatchCoreOptions:
    """The `model` group."""

    windows: WindowOptions | None  # through which large images are seen
    memories: Memories
    embedding: Embedding
    patch_size: int  # side of the neighbourhood in feature cells, odd; 1 means none
    patch_stride: int  # step between patches in feature cells
    pretrain_dim: int  # official: values per layer and patch after the first pooling
    target_dim: int  # official: values per patch vector
    normalise: Normalise
    coreset: CoresetOptions
    neighbors: int  # k, bank rows whose mean distance scores a patch
    distance: Distance
    search: SearchOptions
    reweight: Reweight
    reweight_neighbors: int  # b of Eq. 7
    squared: bool  # report squared Euclidean distances
    foreground: float | None  # of the first component; below it patches score 0; None: all score
    references: float | None  # share of the training images that are remembered; None: all
    score: ImageScore
    top_share: float  # of an image's patches, for `top`; at least one patch
    sigma: float  # Gaussian blur of the map in pixels
    normalisation: Normalisation
    held_out: HeldOut
    folds: int | None  # of cross; None: 20 below 100 images, else 10
    rotations: Any  # degrees of turned copies in the bank, or how many turns to go round
    memory_budget_gb: float | None  # most memory for patches and coreset; None: no limit
    weights: str | None  # banks to start from instead of a fit, see official_banks; None: fit
    seed: int  # of coreset starts and projections

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.patch_size % 2 == 0 or self.patch_stride < 1:
            raise ConfigError(
                "A patch needs an odd side and a positive stride, in feature cells.",
                found=f"model.patch_size={self.patch_size}, model.patch_stride={self.patch_stride}",
                do="use 1, 3 or 5 with stride 1; the paper uses 3",
            )
        several = self.score == ImageScore.top or self.foreground is not None
        if several and self.reweight != Reweight.none:
            raise ConfigError(
                "Eq. 7 weights the one worst patch of an image.",
                found=f"model.score={self.score}, model.foreground={self.foreground} with "
                f"model.reweight={self.reweight}",
                do="use model.score=max model.foreground=null, or model.reweight=none",
            )
        if self.normalise != Normalise.none and self.embedding == Embedding.official:
            raise ConfigError(
                "model.normalise works on channels, which the official embedding mixes.",
                found=f"model.normalise={self.normalise} with model.embedding=official",
                do="use model.embedding=concat, or model.normalise=none",
            )
        kept, plain = self.coreset, (self.search.backend, self.reweight, self.weights)
        many = kept.stop_radius is None and (kept.ratio or 0.0) >= LEAST_OF_A_PLACE
        many = kept.method == CoresetMethod.none or (kept.method == CoresetMethod.greedy and many)
        if self.search.window is not None and not (
            many and plain == (Backend.flat, Reweight.none, None)
        ):
            raise ConfigError(
                "A window of places needs many good patches of every place, searched exactly.",
                found=f"model.search.window={self.search.window}, model.coreset is {kept.method} "
                f"{kept.ratio}; search, reweight, weights: {', '.join(map(str, plain))}",
                do="use model.coreset.method=none, or ratio=0.3 without stop_radius; with "
                "model.search.backend=flat model.reweight=none model.weights=null",
            )
