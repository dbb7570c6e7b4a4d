"""Every data set as its archive unpacks, a few tiny images each: name of conf/data -> builder."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32
GOOD, BAD = 8, 3  # training images, test images of each kind


def picture(path: Path, *, bad: bool = False) -> Path:
    """A grey gradient with a little noise; a bright square where it is defective."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(str(path.relative_to(path.parents[3])).encode())
    noise = np.random.default_rng(seed).integers(0, 12, (SIZE, SIZE, 3))
    values = noise + np.linspace(60, 120, SIZE).astype(int)[:, None, None]
    if bad:
        values[8:16, 10:20] = 250
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


def mask(path: Path, value: int = 255, rows: slice = slice(8, 16)) -> Path:
    """Where `picture` is bright; `value` 0: nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((SIZE, SIZE), np.uint8)
    values[rows, 10:20] = value
    Image.fromarray(values).save(path)
    return path


def _mvtec_like(
    folder: Path, *kinds: str, good: str = "good", test: str = "test", suffix: str = "_mask.png",
    image: str = ".png", truth: str = "ground_truth",
) -> None:  # fmt: skip
    for i in range(GOOD):
        picture(folder / "train" / good / f"{i:03d}{image}")
    for i in range(BAD):
        picture(folder / test / good / f"{i:03d}{image}")
        for kind in kinds:
            picture(folder / test / kind / f"{i:03d}{image}", bad=True)
            mask(folder / truth / kind / f"{i:03d}{suffix}")


def mvtec(root: Path) -> None:
    _mvtec_like(root / "bottle", "broken_large", "contamination")


def mpdd(root: Path) -> None:
    _mvtec_like(root / "metal_plate", "scratches", "major_rust")


def btad(root: Path) -> None:
    home = root / "BTech_Dataset_transformed/01"
    _mvtec_like(home, "ko", good="ok", suffix=".png", image=".bmp")


def autovi(root: Path) -> None:
    _mvtec_like(root / "engine_wiring", "unplugged", suffix="/0000.png")


def mvtec_loco(root: Path) -> None:
    home = root / "breakfast_box"
    _mvtec_like(home, "structural_anomalies", suffix="/000.png")
    for i in range(BAD):
        picture(home / "validation/good" / f"{i:03d}.png")
        picture(home / "test/logical_anomalies" / f"{i:03d}.png", bad=True)
        mask(home / f"ground_truth/logical_anomalies/{i:03d}/000.png", 254, slice(8, 12))
        mask(home / f"ground_truth/logical_anomalies/{i:03d}/001.png", 253, slice(12, 16))
    kinds = [(255, 1.0, True), (254, 10, False), (253, 999, False)]
    names = ("pixel_value", "saturation_threshold", "relative_saturation")
    facts = [{"defect_name": "x", **dict(zip(names, kind, strict=True))} for kind in kinds]
    (home / "defects_config.json").write_text(json.dumps(facts))


def mvtec_ad_2(root: Path) -> None:
    home = root / "mvtec_ad_2/can"
    _mvtec_like(home, "bad", test="test_public", truth="test_public/ground_truth")
    for i in range(BAD):
        picture(home / "validation/good" / f"{i:03d}_regular.png")
        picture(home / "test_private" / f"{i:03d}_regular.png", bad=i == 0)
        picture(home / "test_private_mixed" / f"{i:03d}_mixed.png", bad=i == 1)


def kolektor_sdd(root: Path) -> None:
    for item in ("kos01", "kos02", "kos50"):
        for i in range(4):
            bad = i == 2
            picture(root / item / f"Part{i}.jpg", bad=bad)
            mask(root / item / f"Part{i}_label.bmp", 255 * bad)


def kolektor_sdd2(root: Path) -> None:
    for split, first in (("train", 10000), ("test", 20000)):
        for i in range(GOOD):
            picture(root / split / f"{first + i}.png", bad=i > 5)
            mask(root / split / f"{first + i}_GT.png", 255 * (i > 5))
    mask(root / "train/10007_GT (copy).png")  # the archive has such a stray file


def magnetic_tile(root: Path) -> None:
    for kind, count in (("MT_Free", GOOD), ("MT_Crack", BAD), ("MT_Uneven", BAD)):
        for i in range(count):
            bad = kind != "MT_Free"
            picture(root / kind / "Imgs" / f"exp1_num_{i}.jpg", bad=bad)
            mask(root / kind / "Imgs" / f"exp1_num_{i}.png", 255 * bad)


def dagm(root: Path) -> None:
    for split in ("Train", "Test"):
        for i in range(GOOD):
            picture(root / "Class1" / split / f"{i + 1:04d}.PNG", bad=i > 5)
            if i > 5:
                mask(root / "Class1" / split / "Label" / f"{i + 1:04d}_label.PNG")


def visa(root: Path) -> None:
    rows = [("object", "split", "label", "image", "mask")]
    for i in range(GOOD + BAD):
        name = f"candle/Data/Images/Normal/{i:04d}.JPG"
        picture(root / name)
        rows.append(("candle", "train" if i < GOOD else "test", "normal", name, ""))
    for i in range(BAD):
        name = f"candle/Data/Images/Anomaly/{i:03d}.JPG"
        spot = f"candle/Data/Masks/Anomaly/{i:03d}.png"
        picture(root / name, bad=True)
        mask(root / spot, 3)
        rows.append(("candle", "test", "anomaly", name, spot))
    (root / "split_csv").mkdir()
    with (root / "split_csv/1cls.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)


def real_iad(root: Path) -> None:
    home, facts = root / "realiad_256/audiojack", {"train": [], "test": []}
    for part in range(4):
        for view in ("C1", "C2"):
            name = f"OK/S{part:04d}/audiojack_{part:04d}_OK_{view}_20231021.jpg"
            picture(home / name)
            split = "train" if part < 3 else "test"
            facts[split].append({"anomaly_class": "OK", "image_path": name, "mask_path": None})
            if part < 2:
                name = f"NG/AK/S{part:04d}/audiojack_{part:04d}_NG_{view}_20231021"
                picture(home / f"{name}.jpg", bad=True)
                mask(home / f"{name}_mask.png")
                row = {"anomaly_class": "AK", "image_path": f"{name}.jpg"}
                facts["test"].append(row | {"mask_path": f"{name}_mask.png"})
    (root / "realiad_jsons").mkdir()
    meta = {"meta": {"normal_class": "OK", "prefix": "audiojack/"}}
    (root / "realiad_jsons/audiojack.json").write_text(json.dumps(meta | facts))


def panorama(root: Path) -> None:
    for i in range(GOOD):
        picture(root / "panorama_images/good_ones" / f"{i}.png")
        picture(root / "panorama_images/bad_ones" / f"{i}.png", bad=True)


def road_images(root: Path) -> None:
    for kind in ("good_ones", "bad_ones"):
        for i in range(GOOD):
            for part in ("height", "intensity"):
                picture(
                    root / "roadimages" / kind / f"{part}_files/{part}_{i}.png",
                    bad=kind == "bad_ones",
                )


TREES: dict[str, Callable[[Path], None]] = {
    build.__name__: build
    for build in (
        autovi, btad, dagm, kolektor_sdd, kolektor_sdd2, magnetic_tile, mpdd, mvtec, mvtec_ad_2,
        mvtec_loco, panorama, real_iad, road_images, visa,
    )
}  # fmt: skip
