"""Peers as published, and so small that they train in a blink."""

from dataclasses import replace

from lmm.baseline.settings import NETWORKS

PUBLISHED = dict(NETWORKS)
LITTLE = {
    "unet": {"features": [4, 4, 8, 8, 16, 4]},
    "attention-unet": {"channels": [4, 8, 16], "strides": [2, 2]},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1], "blocks_up": [1]},
    "unetr": {"feature_size": 4, "hidden_size": 24, "mlp_dim": 48, "num_heads": 4},
}
SMALL = {name: replace(PUBLISHED[name], sizes=sizes) for name, sizes in LITTLE.items()}
