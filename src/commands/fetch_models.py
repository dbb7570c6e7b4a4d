"""Download the authors' published models and convert them, one file at a time.

Of 1.8 GB each, mostly frozen CaiTs and Adam's state, 49 MB remain. A failure, as by Google Drive's
daily quota, says how to place the file by hand.
"""

from pathlib import Path
from typing import Any

import requests
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from src.data.download import fetch
from src.errors import ConfigError, DownloadError, SavedModelError, only
from src.files import atomic
from src.models.patchcore.official_banks import convert_official
from src.models.uflow.published import read_published

TIMEOUT_S = 30.0


def fetch_published(cfg: DictConfig) -> list[Path]:
    """Converted files of every category and metric of `cfg` (conf/fetch_models.yaml).

    For patchcore, whose banks lie in a Git repository: of the folder `cfg.files`. Files that are
    there already are left alone unless `overwrite`.
    """
    options: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    published = options["published"]["files"]
    categories, metrics = options["categories"] or sorted(published), options["metrics"]
    only("method", [options["method"]], ("uflow", "patchcore"))
    only("categories", categories if options["method"] == "uflow" else (), published)
    only("metrics", metrics, ("auc", "pro", "miou"))
    only("source", [options["source"]], ("drive", "release"))
    if options["method"] == "uflow":
        made = [_one(options, metric, category) for category in categories for metric in metrics]
        words = f"uflow data.category={categories[0]}"
    elif options["files"] is None:
        raise ConfigError(
            "method=patchcore converts a folder of the official repository.",
            found="files=null",
            do="clone amazon-science/patchcore-inspection with git lfs and name the folder of one "
            "category: files=models/<setting>/models/mvtec_bottle",
        )
    else:
        source = Path(options["files"])
        made = [convert_official(source, Path(options["folder"]) / f"{source.name}.safetensors")]
        words = "patchcore threshold=f1_oracle model.squared=true"
    print(f"Evaluate one with: python -m src.run model={words} trainer.max_epochs=0 "
          f"model.weights={made[0]}")  # fmt: skip
    return made


def _one(options: dict[str, Any], metric: str, category: str) -> Path:
    """The converted file of one category and metric."""
    folder = Path(options["folder"]) / metric
    target, original = folder / f"{category}.safetensors", folder / f"{category}.ckpt"
    if target.is_file() and not options["overwrite"]:
        print(f"{target} is there (overwrite=true fetches it again)")
        return target
    by_hand = original.is_file() and not options["overwrite"]
    if not by_hand:
        original.unlink(missing_ok=True)
        _download(options, metric, category, original)
    try:
        tensors = read_published(original)
    except SavedModelError:
        if not by_hand:
            original.unlink()
        raise
    with atomic(target) as partial:
        save_file({key: value.contiguous() for key, value in tensors.items()}, partial)
    if not options["keep_original"] and not by_hand:
        original.unlink()
    print(f"{target} ({target.stat().st_size / 1e6:.0f} MB)")
    return target


def _download(options: dict[str, Any], metric: str, category: str, target: Path) -> None:
    published = options["published"]
    if options["source"] == "release":
        url, other = _release_asset(published, metric, category), "drive"
        page = published["release_page"]
    else:
        url, other = published["drive"].format(id=published["files"][category][metric]), "release"
        page = published["drive_folder"]
    advice = (
        "a web page instead of the file means that Google Drive's daily quota for it is used up: "
        f"wait up to 24 hours, or try source={other}, or {page} in a browser; save the file as "
        f"{target} and run this again"
    )
    checksum = published["checksums"].get(f"{metric}/{category}")
    fetch([(url, checksum)], target, advice=advice)


def _release_asset(published: dict[str, Any], metric: str, category: str) -> str:
    """Address of the release's file whose name has both words."""
    by_hand = f"get it from {published['release_page']} in a browser, or use source=drive"
    wanted = {"Accept": "application/vnd.github+json"}
    try:
        answer = requests.get(published["release"], headers=wanted, timeout=TIMEOUT_S)
        answer.raise_for_status()
        named = {str(a["name"]): str(a["browser_download_url"]) for a in answer.json()["assets"]}
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        what, found = "The list of released models could not be read.", type(error).__name__
        raise DownloadError(what, found=f"{found}: {error}", do=by_hand) from error
    fitting = [name for name in named if metric in name.lower() and category in name.lower()]
    if len(fitting) != 1:
        what = f"The release has no single file for {metric} of {category}."
        found = ", ".join(fitting or sorted(named)) or "no files"
        raise DownloadError(what, found=found, do=by_hand)
    return named[fitting[0]]
