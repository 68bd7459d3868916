"""Three zoos of strangers' networks: which convert, which are refused and why, and what they cost before and after.

``pytest tests/diffstride/test_zoos.py -m slow -s`` prints the table of the README.
"""

import importlib
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from lit_papers.diffstride.convert import convert_strides
from lit_papers.diffstride.layers import CostCounter, DiffStride
from lit_papers.reproduce.measured import Cell
from tests.measuring import Keep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

TORCHVISION = (
    "resnet18 resnext50_32x4d wide_resnet50_2 densenet121 vgg11_bn squeezenet1_1 mobilenet_v2 mobilenet_v3_small "
    "efficientnet_b0 mnasnet0_5 regnet_y_400mf googlenet shufflenet_v2_x0_5 inception_v3 convnext_tiny"
)
TIMM = (
    "resnet18 resnet18d resnet26t resnetblur18 seresnet18 skresnet18 resnest14d res2net50_26w_4s cspresnet50 dla34 "
    "hrnet_w18_small densenet121 dpn68 ese_vovnet19b_dw regnety_002 repvgg_a0 mobilenetv2_050 mobilenetv3_small_050 "
    "tf_efficientnet_b0 mixnet_s ghostnet_050 fbnetc_100 rexnet_100 convnext_atto inception_v3 xception41 "
    "edgenext_xx_small mobilevit_xxs"
)
SEGMENTATION = "Unet UnetPlusPlus Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus MAnet"


def attempt(network: nn.Module, images: Tensor) -> tuple[str, float, float]:
    """What became of it, and 1e9 multiply-adds before and after."""
    with torch.no_grad(), CostCounter(network) as before:
        network(images)
    try:
        converted = convert_strides(network, images, smoothness=1.0)
    except ValueError as error:
        return f"refused: {error}", before.macs / 1e9, float("nan")
    pools = {layer for layer in converted.modules() if isinstance(layer, DiffStride)}
    with torch.no_grad(), CostCounter(converted) as after:
        converted(images)
    with torch.no_grad():
        start = {layer: layer.strides.clone() for layer in pools}
        for factor in (0.8, 1.3):
            for layer in pools:
                layer.strides.copy_((start[layer] * factor).clamp(min=1))
            converted(images)
    return f"{len(pools)} strides", before.macs / 1e9, after.macs / 1e9


def build(zoo: str, name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    size = 96 if "inception" in name else 64
    if zoo == "torchvision":
        aux = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        network = getattr(importlib.import_module("torchvision.models"), name)(weights=None, **aux)
    elif zoo == "timm":
        network = importlib.import_module("timm").create_model(name)
    else:
        models = importlib.import_module("segmentation_models_pytorch")
        network = getattr(models, name)("resnet18", encoder_weights=None)
    return network.eval(), torch.randn(1, 3, size, size)


@pytest.mark.parametrize(
    ("zoo", "names", "least"),
    [("torchvision", TORCHVISION, 14), ("timm", TIMM, 25), ("segmentation_models_pytorch", SEGMENTATION, 6)],
)
def test_zoo(zoo: str, names: str, least: int, keep: Keep) -> None:
    pytest.importorskip(zoo)
    warnings.filterwarnings("ignore", module=zoo)
    outcomes = {}
    print(f"\n| {zoo} | outcome | GMAC before | after |\n|---|---|---|---|")
    for name in names.split():
        outcomes[name], before, after = attempt(*build(zoo, name))
        print(f"| {name} | {outcomes[name][:200]} | {before:.3f} | {after:.3f} |", flush=True)
        cells: dict[str, Cell] = {"outcome": outcomes[name], "GMAC before": before}
        if math.isfinite(after):
            cells["after"] = after
        keep("diffstride/zoos", f"{name} ({zoo})", cells)
    converted = [name for name, outcome in outcomes.items() if not outcome.startswith("refused")]
    assert len(converted) >= least, {name: why for name, why in outcomes.items() if name not in converted}
