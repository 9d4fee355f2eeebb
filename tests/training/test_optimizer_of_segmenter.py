"""Groups of the segmenter's optimiser: norms, biases and position tables are not decayed."""

from __future__ import annotations

from cosa_dist.config.loading import load_config
from cosa_dist.training.optimizer import build_optimizer
from cosa_dist.training.state import build_trained_network


def test_norms_biases_and_position_tables_are_spared():
    config = load_config(
        "tiny_ms",
        None,
        {
            "model.backbone": "swin_tiny_patch4_window7_224",
            "model.backbone_options": {
                "embed_dim": 12,
                "depths": [1, 1, 1, 1],
                "num_heads": [1, 1, 2, 2],
                "window_size": 4,
            },
            "optimizer.head_factor": 5,
        },
    )
    network = build_trained_network(config, 5)
    optimizer = build_optimizer(network, config.optimizer, spare_norms=True)
    parameters = dict(network.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[id(parameter)]] = (group["weight_decay"], group["peak"])
    assert seen.keys() == set(names.values())
    rate = config.optimizer.learning_rate
    for name, (decay, peak) in seen.items():
        spared = parameters[name].ndim == 1 or "relative_position_bias_table" in name
        assert decay == (0.0 if spared else config.optimizer.weight_decay), name
        assert peak == (rate if name.startswith("backbone.") else 5 * rate), name
    assert any("relative_position_bias_table" in name for name in seen)
