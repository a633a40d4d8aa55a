"""Networks in pixels: what is built, what it costs, and that it learns."""

import sys

import peers
import pytest
import small
import torch

from lmm.baseline.learner import PixelLearner
from lmm.baseline.network import build_network, grey_maps
from lmm.baseline.pixels import ManifestImages, PixelBatch, Pixels, read_pixels
from lmm.baseline.settings import NETWORKS, BaselineSettings
from lmm.metrics import score
from pipeline.errors import UsageError
from pipeline.pixels import to_pm1


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("unet", 7_783_425),
        ("attention-unet", 7_940_321),
        ("segresnet", 6_299_073),
        ("unetr", 87_681_265),
    ],
)
def test_a_network_has_as_many_parameters_as_the_readme_says(
    name: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, name, peers.PUBLISHED[name])
    with torch.device("meta"):
        network = build_network(name, 224)
    assert sum(weight.numel() for weight in network.parameters()) == count


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learns_boxes_in_noise(name: str) -> None:
    torch.manual_seed(0)
    settings = BaselineSettings(model=name, size=small.SIZE_PX, lr=1e-2)
    learner = PixelLearner(build_network(name, small.SIZE_PX), settings)
    masks = torch.zeros(3, small.SIZE_PX, small.SIZE_PX, dtype=torch.bool)
    for i in range(3):
        masks[i, 8 * i : 8 * i + 30, 20:50] = True
    images_u8 = (masks[:, None] * 60 + torch.randint(0, 100, (3, 3, *masks.shape[1:]))).byte()
    batch = PixelBatch(to_pm1(images_u8), masks)
    for _ in range(40):
        learner.step(batch)
    found, _ = learner.masks(Pixels(["a", "b", "c"], images_u8, masks))
    assert score(found, masks)["dsc"].min() > 0.9


def test_a_grey_map_does_not_depend_on_what_comes_with_it(small_manifest: ManifestImages) -> None:
    network = build_network("attention-unet", small.SIZE_PX)
    images_u8 = read_pixels(small_manifest, "train").images_u8
    together = torch.cat(list(grey_maps(network, images_u8)))
    alone = torch.cat([torch.cat(list(grey_maps(network, one[None]))) for one in images_u8])
    assert torch.equal(together, alone)
    assert network.training


def test_a_network_without_monai_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks", None)
    with pytest.raises(UsageError, match="MONAI's BasicUNet, which cannot be built") as error:
        build_network("unet", 64)
    assert error.value.fix == "pip install 'gms-lmm[peers]'"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "resnet"}, "--model resnet is not known"),
        ({"size": 100}, "takes sides of a multiple of 16 px, not 100"),
        ({"views": 0}, "--views 0 is no number of views"),
        ({"lr": 0.0}, "--lr 0.0 is too small"),
        ({"batch_size": 0}, "--batch-size 0 is too small"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        BaselineSettings(**change)


def test_a_network_has_a_rate_of_its_own_and_takes_another() -> None:
    assert BaselineSettings(model="unetr").lr == NETWORKS["unetr"].lr
    assert BaselineSettings(model="unetr").lr != BaselineSettings(model="unet").lr
    assert BaselineSettings(lr=0.5).lr == 0.5
