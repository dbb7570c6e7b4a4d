"""The options of U-Flow; values and meaning: conf/model/uflow.yaml."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from src.models.map_options import CheckOptions, MapOptions

#: What backbone maps go through, unless the backbone normalises them: LayerNorm over (C, H, W)
#: without parameters, with scale and offset (legacy; the likelihood has no bound), or nothing.
FeatureNormKind = StrEnum("FeatureNormKind", ["layer", "layer_affine", "none"])
Likelihood = StrEnum("Likelihood", ["paper", "position"])
Method = StrEnum("Method", ["tree", "block"])
Tail = StrEnum("Tail", ["bound", "exact"])
LowerTail = StrEnum("LowerTail", ["clamp", "legacy"])
Counts = StrEnum("Counts", ["asymptotic", "exact"])
Tests = StrEnum("Tests", ["total", "per_size"])


@dataclass
class NfaOptions:
    """How log10 NFA is computed."""

    method: Method
    tail: Tail
    lower_tail: LowerTail
    counts: Counts
    tests: Tests
    calibrate: bool  # ours: no detection on any held-out normal image, see `offset_from_normals`


@dataclass
class CacheOptions:
    """The arguments of `FeatureCache`."""

    place: str
    folder: str
    limit_gb: float
    dtype: str


@dataclass
class UFlowOptions(MapOptions, CheckOptions):
    """`model` of U-Flow."""

    flow_steps: int  # coupling steps per scale
    kernel_sizes: list[int]  # of the coupling networks, in turn; odd
    apart: int  # ours: so many coarsest scales are outside of the U, and only score
    feature_norm: FeatureNormKind
    standardise: bool  # first bring channels to mean 0, variance 1 over the training images
    likelihood: Likelihood
    map_size: int  # shorter side of the anomaly map in pixels
    blur: float  # deviation of a Gaussian over the map, pixels of it; 0: none
    optimizer: dict[str, Any]  # class of torch.optim
    scheduler: dict[str, Any]  # class of torch.optim.lr_scheduler, once a minibatch; {}: constant
    nfa: NfaOptions
    cache: CacheOptions
    weights: str | None  # safetensors of a flow to start from (src.fetch_models writes them)
    protocol: str  # honest or paper: what chooses the epoch
    judge: dict[str, Any]  # protocol=paper: takes test batches, gives metrics (an Evaluator)
    seed: int  # of the flow's weights and permutations
