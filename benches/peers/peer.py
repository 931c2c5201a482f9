"""One peer, alive: loads the checkpoint, runs 16 positions, prints "first", and answers a line with milliseconds.

Lines: "forward B P", "cache B P" (every activation that fires by default), "resid B P" (resid_post of all layers), "full B P"
(every neuron's, head's and embedding's part in one logit, out of a cache that is there already), "heads B P" (the heads'), "saes_relu B P" and "saes_topk B P" (a run with 12 dictionaries of 24,576 features; of "saelens" only),
"sweep SITE" (the patching function of that site, out of a cache that is there already), "eap" (scores of all edges by autograd, of
TransformerLens 3.9 only), "peak", the rate in GFLOP/s of one large matrix product, by the faster of the two libraries that libtorch has;
"generate B P N" (N tokens after P, greedily, with kept keys).
"""

import statistics
import sys
import time

which, folder = sys.argv[1:]

import torch  # noqa: E402

torch.set_grad_enabled(False)


def tokens(batch, pos):
    return (torch.arange(batch * pos) * 7919 % 50000).view(batch, pos)


if which == "transformers":
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()

    def forward(ids):
        return model(ids, use_cache=False).logits

    def generate(ids, new):
        mask = torch.ones_like(ids)
        return model.generate(ids, attention_mask=mask, do_sample=False, min_new_tokens=new, max_new_tokens=new, pad_token_id=0)

    cache = resid = None
elif which in ("tl39", "saelens"):
    if which == "saelens":
        from sae_lens import HookedSAETransformer as HookedTransformer
    else:
        from transformer_lens import HookedTransformer
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    hf = AutoModelForCausalLM.from_pretrained(folder)
    AutoConfig.from_pretrained = lambda *_, **__: hf.config  # it would ask the hub for GPT-2's, which this is
    model = HookedTransformer.from_pretrained("gpt2", hf_model=hf, tokenizer=AutoTokenizer.from_pretrained(folder))
    del hf
    forward = model
elif which == "tl43":
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(folder, device="cpu")
    model.enable_compatibility_mode(disable_warnings=True)
    forward = model
else:
    sys.exit(f"no such peer: {which}")

if which != "transformers":

    def generate(ids, new):
        return model.generate(ids, max_new_tokens=new, do_sample=False, stop_at_eos=False, verbose=False)

    def cache(ids):
        return model.run_with_cache(ids)

    def full(cache):  # projected onto the token's direction first, as it is meant to be used
        return cache.get_full_resid_decomposition(apply_ln=True, project_output_onto=model.W_U[:, 5])

    def heads(cache):
        return cache.logit_attrs(cache.stack_head_results(), tokens=5)

    def resid(ids):
        return model.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_resid_post"))


    def sweep(site):
        """Milliseconds of a sweep: two rows of 15 tokens, which differ from those of the clean run from the second on."""
        from transformer_lens import patching

        clean = tokens(2, 15)
        corrupted = torch.cat([clean[:, :1], clean[:, 1:] + 1], 1)
        _, activations = model.run_with_cache(clean)
        names = {"resid_pre": "resid_pre", "z": "attn_head_out_all_pos"}
        patch = getattr(patching, "get_act_patch_" + names.get(site, f"attn_head_{site}_all_pos"))
        return 1e3 * seconds(lambda: patch(model, corrupted, activations, lambda logits: (logits[:, -1, 5] - logits[:, -1, 7]).mean()))

    def eap():
        """Milliseconds of edge attribution patching, written straightforwardly: hooks collect what all nodes write in both runs, [batch, pos,
        sender, d_model], and each gradient at what a node reads gives its columns of the matrix of edges."""
        clean = tokens(2, 15)
        corrupted = torch.cat([clean[:, :1], clean[:, 1:] + 1], 1)
        n_layers, n_heads, width = model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_model
        senders, receivers = 1 + n_layers * (n_heads + 1), 1 + n_layers * (3 * n_heads + 1)
        start = time.perf_counter()
        difference = torch.zeros(2, 15, senders, width)
        scores = torch.zeros(senders, receivers)

        def write(sender, sign):
            def hook(x, hook):
                x = x.detach() if x.ndim == 4 else x.detach().unsqueeze(2)
                difference[:, :, sender : sender + x.shape[2]].add_(x, alpha=sign)

            return hook

        def writers(sign):
            hooks = [("hook_embed", write(0, sign))]
            for layer in range(n_layers):
                first = 1 + layer * (n_heads + 1)
                hooks.append((f"blocks.{layer}.attn.hook_result", write(first, sign)))
                hooks.append((f"blocks.{layer}.hook_mlp_out", write(first + n_heads, sign)))
            return hooks

        def read(before, receiver):
            def hook(gradient, hook):
                gradient = gradient if gradient.ndim == 4 else gradient.unsqueeze(2)
                columns = torch.einsum("bpsd,bprd->sr", difference[:, :, :before], gradient)
                scores[:before, receiver : receiver + columns.shape[1]] += columns

            return hook

        readers = [(f"blocks.{n_layers - 1}.hook_resid_post", read(senders, receivers - 1))]
        for layer in range(n_layers):
            first, receiver = 1 + layer * (n_heads + 1), layer * (3 * n_heads + 1)
            for nth, letter in enumerate("qkv"):
                readers.append((f"blocks.{layer}.hook_{letter}_input", read(first, receiver + nth * n_heads)))
            readers.append((f"blocks.{layer}.hook_mlp_in", read(first + n_heads, receiver + 3 * n_heads)))
        # Only activations need gradients.
        record = [("hook_embed", lambda x, hook: x.detach().requires_grad_(True))]
        model.run_with_hooks(corrupted, fwd_hooks=writers(1))
        with torch.enable_grad(), model.hooks(fwd_hooks=record + writers(-1), bwd_hooks=readers):
            logits = model(clean)
            (logits[:, -1, 5] - logits[:, -1, 7]).mean().backward()
        took = 1e3 * (time.perf_counter() - start)
        print(f"eap: the sizes of {scores.numel()} scores sum to {scores.abs().sum():.6f}", file=sys.stderr)
        return took

    def with_parts(f):
        """What f gives where heads' outputs and what heads and MLPs read are computed apart."""
        flags = [model.set_use_attn_result, model.set_use_split_qkv_input, model.set_use_hook_mlp_in]
        model.requires_grad_(False)
        for flag in flags:
            flag(True)
        took = f()
        for flag in flags:
            flag(False)
        return took


def saes(kind):
    """12 SAEs at resid_pre: random directions, with biases at which 60 features of a token are active on average (or TopK 32)."""
    from sae_lens import SAE, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

    ids = tokens(1, 128)
    _, activations = model.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_resid_pre"))
    made = []
    for layer in range(12):
        name = f"blocks.{layer}.hook_resid_pre"
        sizes = dict(d_in=768, d_sae=24576, dtype="float32", device="cpu")
        sae = StandardSAE(StandardSAEConfig(**sizes)) if kind == "relu" else TopKSAE(TopKSAEConfig(k=32, **sizes))
        sae.cfg.metadata.hook_name = name
        directions = torch.nn.functional.normalize(torch.randn(24576, 768), dim=-1)
        sae.W_enc.data, sae.W_dec.data = directions.T.contiguous(), directions.clone()
        pre = activations[name][0] @ sae.W_enc.data
        if kind == "relu":
            sae.b_enc.data.fill_(-pre.flatten().topk(60 * 128).values[-1])
        made.append(sae)
    return made


made = {}


def product(x, w):
    """GFLOP/s: the median of five, by the faster library."""

    def rate(f):
        return x.shape[0] * x.shape[1] * w.shape[0] * 2 / statistics.median(seconds(lambda: f(x, w)) for _ in range(5)) / 1e9

    return max(map(rate, (torch.nn.functional.linear, lambda x, w: torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], ""))))


def seconds(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


forward(tokens(1, 16))
print("first", flush=True)
for line in sys.stdin:
    what, *size = line.split()
    if what == "peak":
        x, w = torch.randn(2048, 3072), torch.randn(3072, 3072)
        print(product(x, w), flush=True)
        continue
    if what == "sweep":
        print(sweep(*size), flush=True)
        continue
    if what == "eap":
        print(with_parts(eap), flush=True)
        continue
    size = [int(n) for n in size]
    if what.startswith("saes_"):
        kind = what.removeprefix("saes_")
        if kind not in made:
            made.clear()
            made[kind] = saes(kind)
        print(1e3 * seconds(lambda: model.run_with_saes(tokens(*size), saes=made[kind])), flush=True)
        continue
    if what == "generate":
        print(1e3 * seconds(lambda: generate(tokens(*size[:2]), size[2])), flush=True)
        continue
    ids = tokens(*size)
    if what in ("full", "heads"):
        _, activations = model.run_with_cache(ids)
        print(1e3 * seconds(lambda: {"full": full, "heads": heads}[what](activations)), flush=True)
        continue
    print(1e3 * seconds(lambda: {"forward": forward, "cache": cache, "resid": resid}[what](ids)), flush=True)
