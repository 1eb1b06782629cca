"""Names of LoRA's factors lead back to the weights they change."""

import pytest

from efface.saliency.names import weight_of


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        (
            "model.language_model.layers.0.mlp.up_proj.weight",
            "model.language_model.layers.0.mlp.up_proj.weight",
        ),
        ("base_model.model.model.x.q_proj.lora_A.default.weight", "model.x.q_proj.weight"),
        ("model.x.q_proj.lora_B.default.weight", "model.x.q_proj.weight"),
        ("model.x.q_proj.base_layer.weight", "model.x.q_proj.weight"),
        ("model.x.q_proj.base_layer.bias", "model.x.q_proj.bias"),
        ("model.embed_tokens.lora_embedding_A.default", "model.embed_tokens.weight"),
        ("model.x.q_proj.lora_magnitude_vector.default.weight", "model.x.q_proj.weight"),
    ],
)
def test_weight_of(name, weight):
    assert weight_of(name) == weight
