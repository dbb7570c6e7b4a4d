"""AnomalyDINO's foreground, step by step against its description, written out with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from src.errors import ConfigError
from src.models.patchcore.foreground import first_component, foreground
from src.models.patchcore.scores import image_score
from tests.models.patchcore.stand_ins import SIZE, Noise, fitted, options


def tokens_of(part: np.ndarray, far: float = 40.0, dim: int = 12) -> torch.Tensor:
    """Tokens (1, h, w, dim): the part lies `far` from its background along one direction."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(dim, generator=generator), dim=0)
    noise = torch.randn(*part.shape, dim, generator=generator)
    return (noise + far * torch.from_numpy(part)[..., None] * direction)[None].float()


def written_out(tokens: torch.Tensor, threshold: float) -> np.ndarray:
    """The description: PCA, threshold, centre rule, dilation and closing along the list."""
    h, w, dim = tokens.shape
    flat = tokens.numpy().reshape(-1, dim).astype(np.float64)
    centred = flat - flat.mean(0)
    _, _, vt = np.linalg.svd(centred, full_matrices=False)
    axis = vt[0] * np.sign(vt[0][np.abs(vt[0]).argmax()])
    first = centred @ axis
    mask = first > threshold
    centre = mask.reshape(h, w)[int(h * 0.2) : int(h * 0.8), int(w * 0.2) : int(w * 0.8)]
    if centre.sum() <= centre.size * 0.35:
        mask = -first > threshold

    def neighbours(values, rule):
        return np.array([rule(values[max(0, i - 1) : i + 2]) for i in range(len(values))])

    for rule in (np.any, np.any, np.all):
        mask = neighbours(mask, rule)
    return mask.reshape(h, w)


def disc(h: int, w: int, radius: float) -> np.ndarray:
    rows, columns = np.mgrid[:h, :w]
    return (rows - h / 2 + 0.5) ** 2 + (columns - w / 2 + 0.5) ** 2 < radius**2


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(("h", "w", "radius"), [(16, 16, 6), (12, 20, 5), (32, 32, 9)])
def test_the_part_in_the_middle_is_kept_whichever_sign_the_component_has(h, w, radius, inverted):
    part = disc(h, w, radius)
    tokens = tokens_of(~part if inverted else part)
    found = foreground(tokens, 10.0)[0].numpy()
    assert np.array_equal(found, written_out(tokens[0], 10.0))
    assert found[part].all()
    assert found.mean() < part.mean() + 0.2  # grown by at most two patches in a row


def test_a_middle_of_at_most_35_percent_takes_the_other_side():
    tokens = tokens_of(np.kron(np.eye(4), np.ones((4, 4))) > 0)  # a fourth of the centre
    for threshold in (0.0, 5.0, 10.0):
        found = foreground(tokens, threshold)[0].numpy()
        assert np.array_equal(found, written_out(tokens[0], threshold))


def test_images_of_a_batch_do_not_know_of_each_other():
    one, two = tokens_of(disc(16, 16, 6)), tokens_of(~disc(16, 16, 3))
    both = foreground(torch.cat([one, two]), 10.0)
    assert torch.equal(both, torch.cat([foreground(one, 10.0), foreground(two, 10.0)]))


def test_the_component_is_that_of_an_exact_decomposition():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.diag(torch.tensor([1.05, 1.0, *[0.5] * 30]))
    vectors = torch.randn(3, 900, 32, generator=generator) @ mixing + 5.0
    centred = vectors.double() - vectors.double().mean(1, keepdim=True)
    _, _, vt = torch.linalg.svd(centred, full_matrices=False)
    found = first_component(vectors).double()
    expected = (centred @ vt[:, 0, :, None])[..., 0]
    cosine = torch.cosine_similarity(found, expected, dim=1).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=0, atol=1e-4)


def test_background_scores_nothing_but_is_remembered():
    changes = {"held_out": "cross", "folds": 3, "score": "top"}
    plain, masked = fitted(**changes), fitted(**changes, foreground=1.0)
    assert torch.equal(plain.memory.bank.rows, masked.memory.bank.rows)
    images = torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(5))
    shown = foreground(masked.memory.embedder(masked.backbone(images)[0]), 1.0)
    assert 0.05 < shown.float().mean() < 0.95
    (before,), (after,) = plain._scores(images), masked._scores(images)
    torch.testing.assert_close(after.grid, before.grid * shown)
    torch.testing.assert_close(after.image, image_score(after.grid.flatten(1), masked.options))


def test_held_out_scores_are_masked_each_by_its_own_image():
    model = fitted(count=9, foreground=1.0, coreset={"method": "none"})
    grids = model.patches(Noise(9).images)[0]
    shown = foreground(model.memory.embedder(model.backbone(Noise(9).images)[0]), 1.0)
    for i in range(9):
        others = grids[[j for j in range(9) if j != i]].flatten(0, 2)
        gap = torch.cdist(grids[i].flatten(0, 1), others).amin(1).view(shown[i].shape)
        expected = (gap * shown[i]).max()
        torch.testing.assert_close(model.held_out_scores().image[i], expected, rtol=1e-3, atol=1e-3)


def test_the_highest_hundredth_is_rounded_down_and_at_least_the_highest():
    top = options(score="top", top_share=0.01)
    grid = torch.arange(1024.0)[None]  # 32 x 32 patches at 448 pixels
    assert image_score(grid, top) == torch.arange(1014.0, 1024.0).mean()
    assert image_score(grid[:, :199], top) == 198  # one of 199
    assert image_score(grid[:, :99], top) == 98  # the maximum below 100


def test_a_mask_and_a_weight_for_the_worst_patch_exclude_each_other():
    with pytest.raises(ConfigError, match="worst patch"):
        options(foreground=10.0, reweight="paper")


def test_an_exported_graph_masks_too():
    model = fitted(foreground=1.0)
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(5))
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        form = model.export_form()
        program = torch.export.export(form, (images,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(program(images)[1], model(images).anomaly_map, rtol=1e-4, atol=1e-4)
