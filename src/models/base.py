"""The contract every method keeps: normal images in, scores and anomaly maps out."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import pytorch_lightning as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from src.errors import ConfigError, SavedModelError
from src.files import atomic, write_text
from src.result import LineChart, NormalScores, Prediction

#: Of `model.json`; raised when saved models of before cannot be read any more.
FORMAT_VERSION = 4


class AnomalyModule(pl.LightningModule):
    """A method that learns from normal images and scores new ones.

    `forward` keeps no state: the same image gives the same prediction in any batch. Batches are
    dicts; a method may read only `image` (B, 3, H, W) and `index` (B,).
    """

    #: Dataclass of the options, one field for each key of the method's file in conf/model. The
    #: method is made as `Method(backbone, image_size, options)`, sizes (H, W) in pixels.
    Options: ClassVar[type]
    #: Names of the attributes that are saved beside the tensors; all JSON.
    facts: ClassVar[tuple[str, ...]] = ()
    #: True for methods fitted in one pass without an optimizer (a memory bank).
    single_pass: bool = False
    #: Set by a threshold that leaves the decision to the method: fill `Prediction.mask`.
    own_mask: bool = False

    @classmethod
    def check_processes(cls, count: int) -> None:
        """Refuse (ConfigError) to be fitted by `count` > 1 processes; default: agree.

        Then it learns from its share of each batch what it would from all of it, see processes.py.
        """

    def forward(self, image: Tensor) -> Prediction:
        """Score a batch of images (B, 3, H, W), normalised as the transform says."""
        raise NotImplementedError

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Images go to the device; numbers, labels and masks stay where they are read."""
        return batch | {"image": batch["image"].to(device, non_blocking=True)}

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Prediction:
        """One batch of `trainer.predict`, in float32 as in a detector, however it was trained."""
        with torch.autocast(self.device.type, enabled=False):
            return self(batch["image"])

    def look_at(self, roi: Tensor) -> None:
        """Look at the pixels `roi` (H, W) bool of the images only; called before the fit."""
        raise ConfigError(
            f"{type(self).__name__} cannot leave out a part of the images.",
            found="data.roi",
            do="use model=patchcore, or paint over that part in the images",
        )

    @property
    def roi(self) -> Tensor | None:
        """What `look_at` was given, (H, W) bool, also after `load`; None: whole images."""
        return None

    def held_out_scores(self) -> NormalScores | None:
        """Scores for calibration where a method can hold out its own training images, else None."""
        return None

    def unseen(self, image: Tensor, index: int) -> Prediction:
        """Prediction of image (1, 3, H, W), `index` of its batch, without what is known from it.

        Default: as of any image; right for one kept out of training.
        """
        return self(image)

    def after_fit(self, loader: Iterable[dict[str, Tensor]]) -> None:
        """Last step of learning: statistics over un-augmented training images, in order.

        Called once, after the optimizer, in evaluation mode, before the model is saved.
        """

    def learning_metrics(self) -> dict[str, float]:
        """Numbers noted while learning, by metric key, for metrics.json; also after `load`."""
        return {}

    def diagnostics(self) -> dict[str, LineChart]:
        """Charts of the fitted method itself, by name; drawn once at the end of a run."""
        return {}

    def extras(self, image: Tensor) -> dict[str, Tensor]:
        """What this method can show of normalised images (B, 3, H, W) beyond its prediction.

        The form says what each is: numbers (B,), maps (B, h, w), pictures (B, 3, H, W) in the units
        of the input, other arrays (B, C, h, w). Called in evaluation mode; see `src.extras`.
        """
        return {}

    def export_form(self) -> Self:
        """A method whose `traced` an exporter can trace; default: the method itself."""
        return self

    def traced(self, image: Tensor) -> Prediction:
        """`forward` up to what no graph can hold, which `completed` does; default: all of it."""
        return self(image)

    def completed(self, found: Prediction) -> Prediction:
        """What `traced` gives -> what `forward` does."""
        return found

    def completion_facts(self) -> dict[str, Any]:
        """What `completed` knows beside its input, by name, all JSON."""
        return {}

    # --- checkpoints of training, without what never changes ------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen features out."""
        checkpoint["state_dict"] = _learnt(checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put frozen features back, so that loading stays strict."""
        own = self.state_dict()
        frozen = own.keys() - _learnt(own).keys()
        checkpoint["state_dict"] |= {key: own[key] for key in frozen}

    # --- saving: safetensors and JSON, never pickle -------------------------------------------

    def trained_tensors(self) -> dict[str, Tensor]:
        """Everything learnt; default: parameters and buffers, but for the frozen `backbone.`."""
        return _learnt(self.state_dict())

    def restore_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Inverse of `trained_tensors` and `trained_facts`."""
        own = set(self.trained_tensors())
        if own != set(tensors):
            wrong = sorted(own ^ set(tensors))
            raise SavedModelError(
                f"The saved tensors do not fit {type(self).__name__}.",
                found=f"{len(wrong)} names differ, first: {', '.join(wrong[:3])}",
                do="load the model with the config.yaml of the run that saved it",
            )
        self.load_state_dict(tensors, strict=False)
        for name in facts.keys() & set(self.facts):
            setattr(self, name, facts[name])

    def trained_facts(self) -> dict[str, Any]:
        """JSON-able facts that are not tensors; default: those of `facts`."""
        return {name: getattr(self, name) for name in self.facts}

    @property
    def _backbone_identity(self) -> str | None:
        return getattr(getattr(self, "backbone", None), "identity", None)

    def save(self, directory: Path) -> None:
        """Write `model.safetensors` and `model.json` into `directory`, each atomically."""
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.trained_tensors().items()}
        with atomic(directory / "model.safetensors") as partial:
            save_file(tensors, partial)
            digest = _sha256(partial)
        card = {
            "format": FORMAT_VERSION,
            "method": type(self).__name__,
            "sha256": digest,
            "backbone": self._backbone_identity,
            "facts": self.trained_facts(),
        }
        write_text(directory / "model.json", json.dumps(card, indent=2) + "\n")

    def load(self, directory: Path) -> None:
        """Read what `save` wrote into this module, verifying method, version and checksum."""
        card = read_model_card(directory)
        if card.get("method") != type(self).__name__:
            raise SavedModelError(
                f"{directory} holds another method.",
                found=f"a {card.get('method')}, expected a {type(self).__name__}",
                do="point to the run folder that was made with this config",
            )
        weights = directory / "model.safetensors"
        try:
            if _sha256(weights) != card.get("sha256"):
                raise OSError("its sha256 is not the one in model.json")
            tensors = load_file(weights)
        except (OSError, SafetensorError) as error:
            kind = "" if isinstance(error, OSError) else "not a readable safetensors file: "
            raise SavedModelError(
                f"{weights} is damaged or was changed.",
                found=f"{kind}{error}",
                do="copy the run again from its source, or run it again with force=true",
            ) from error
        ours, saved = self._backbone_identity, card.get("backbone")
        if ours is not None and saved not in (None, ours):
            raise SavedModelError(
                "The backbone is not the one this model was fitted with.",
                found=f"{ours}; the model needs {saved}",
                do="restore the same backbone weights (WEIGHTS_DIR), or fit again with force=true",
            )
        self.restore_tensors(tensors, card.get("facts") or {})


def read_given(path: str, method: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and remarks of the file `model.weights`; SavedModelError when it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SavedModelError(
            f"model.weights={path} cannot be read.",
            found=str(error),
            do=f"make such a file with python -m src.fetch_models method={method}",
        ) from error


def read_model_card(directory: Path) -> dict[str, Any]:
    """The JSON card of a saved model, checked for readability and version."""
    path = directory / "model.json"
    try:
        card = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise SavedModelError(
            f"No usable model in {directory}.",
            found=f"{path.name}: {error}",
            do="give the folder of a finished run (it has metrics.json and model/)",
        ) from error
    found = card.get("format")
    if found != FORMAT_VERSION:
        age = "an earlier" if isinstance(found, int) and found < FORMAT_VERSION else "another"
        raise SavedModelError(
            f"{path} has another format.",
            found=f"format {found}; {age} version of this program wrote the folder",
            do=f"this version reads format {FORMAT_VERSION}: run the experiment again; its results "
            "then lie in a folder of their own",
        )
    return card


def _learnt(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict without frozen features."""
    return {key: value for key, value in state.items() if not key.startswith("backbone.")}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
