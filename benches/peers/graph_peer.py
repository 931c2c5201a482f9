"""One attribution graph by circuit-tracer: graph_peer.py MODEL TRANSCODERS POSITIONS NODES.

Prints the milliseconds, the process's peak memory in bytes, and the sum of the absolute values of all edges.
"""

import sys
import time
from pathlib import Path

import huggingface_hub.constants

huggingface_hub.constants.HF_HUB_ENABLE_HF_TRANSFER = False  # circuit-tracer reads it; newer versions of the hub's client do not have it

import torch  # noqa: E402
from circuit_tracer.attribution.attribute import attribute  # noqa: E402
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel  # noqa: E402
from circuit_tracer.transcoder.single_layer_transcoder import load_transcoder_set  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: E402

model_folder, folder, positions, nodes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
hf = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
hf.config.n_ctx = hf.config.n_positions  # a field of the hub's own file
AutoConfig.from_pretrained = lambda *_, **__: hf.config  # it would ask the hub for GPT-2's, which this is
paths = {layer: str(folder / f"layer_{layer}.safetensors") for layer in range(hf.config.n_layer)}
transcoders = load_transcoder_set(paths, "random", "mlp.hook_in", "hook_mlp_out", lazy_encoder=False, lazy_decoder=False)
tokenizer = AutoTokenizer.from_pretrained(model_folder)
model = TransformerLensReplacementModel.from_pretrained_and_transcoders("gpt2", transcoders, hf_model=hf, tokenizer=tokenizer)
del hf
vocabulary = model.cfg.d_vocab
ids = torch.arange(positions) * 7919 % (vocabulary - 7)
start = time.perf_counter()
graph = attribute(ids, model, attribution_targets=torch.tensor([5, 7]), batch_size=64, max_feature_nodes=nodes)
seconds = time.perf_counter() - start
status = Path("/proc/self/status").read_text()
peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
print(1e3 * seconds, peak, graph.adjacency_matrix.abs().sum().item(), flush=True)
