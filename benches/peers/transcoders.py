"""Writes random transcoders in circuit-tracer's format, of which about one feature in a hundred is active at a position:
transcoders.py FOLDER D_MODEL N_LAYERS N_FEATURES."""

import os
import sys

import torch
from safetensors.torch import save_file

folder, d_model, n_layers, n_features = sys.argv[1], *map(int, sys.argv[2:])
os.makedirs(folder, exist_ok=True)
torch.manual_seed(0)
for layer in range(n_layers):
    # What the norm gives has entries of size 1, so pre-activations have a standard deviation of 1 around the bias.
    tensors = {
        "W_enc": torch.randn(n_features, d_model) / d_model**0.5,
        "b_enc": torch.full((n_features,), -2.3),
        "W_dec": torch.randn(n_features, d_model) / d_model**0.5,
        "b_dec": torch.randn(d_model) * 0.02,
    }
    save_file(tensors, os.path.join(folder, f"layer_{layer}.safetensors"))
with open(os.path.join(folder, "config.yaml"), "w") as f:
    f.write("model_kind: transcoder_set\nmodel_name: gpt2\nscan: random\n")
    f.write("feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n")
