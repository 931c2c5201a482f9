//! Replacing what stands at a hook point has the effect that it would have by hand, at every kind of point.
//!
//! Most tests compare two runs: one with a replacement at the point in question, one in which what comes of it by hand is
//! put in a place further on.

use crate::common::{families, max_diff, raw, Fixture};
use tch::{IndexOp, Kind, Tensor};
use tch_lens::{hook, ActivationCache, HookFilter, HookPoint, HookedTransformer, Hooks, RunOptions};

/// Rounding in fp32, over two layers.
const TOLERANCE: f64 = 2e-5;

/// Pre-norm models with learned, rotary and no positions; grouped-query, local and scaled attention; plain, gated and SoLU
/// MLPs; parallel blocks.
const MODELS: [&str; 7] =
    ["gpt2", "gpt2_stanford", "gpt_neo", "llama", "llama_gqa_tied", "toy_parallel", "toy_solu_ln"];

struct Model {
    name: &'static str,
    model: HookedTransformer,
    tokens: Tensor,
}

fn models() -> impl Iterator<Item = Model> {
    MODELS.into_iter().map(|name| Model { name, model: raw(name), tokens: Fixture::open(name).want("tokens") })
}

impl Model {
    fn with(&self, hooks: Hooks) -> Tensor {
        self.model.run_with_hooks(&self.tokens, hooks).unwrap()
    }

    /// Everything, points on request included.
    fn cache(&self, hooks: Hooks) -> ActivationCache {
        let run = RunOptions::new().hooks(hooks).cache(self.model.hook_names());
        self.model.run(&self.tokens, run).unwrap().cache
    }

    /// The weight of this name, or zeros of `size` where the model has none.
    fn bias(&self, name: &str, size: i64) -> Tensor {
        let found = self.model.parameters().into_iter().find(|(n, _)| n == name);
        found.map_or_else(|| Tensor::zeros([size], (Kind::Float, tch::Device::Cpu)), |(_, tensor)| tensor)
    }

    #[track_caller]
    fn same(&self, what: &str, ours: &Tensor, theirs: &Tensor) {
        let diff = max_diff(what, ours, theirs);
        assert!(diff <= TOLERANCE, "{}, {what}: differs by {diff:.3e}", self.name);
    }

    /// That the effect is there at all.
    #[track_caller]
    fn changed(&self, what: &str, ours: &Tensor) {
        let diff = max_diff(what, ours, &self.with(Hooks::new()));
        assert!(diff > 1e-3, "{}, {what}: nothing changed", self.name);
    }

    fn per_query_head(&self, x: &Tensor) -> Tensor {
        let config = self.model.config();
        x.repeat_interleave_self_int((config.n_heads / config.n_key_value_heads) as i64, 2, None)
    }
}

/// Puts this in place of whatever is there.
fn put<'a>(at: impl Into<HookFilter<'a>>, tensor: &'a Tensor) -> Hooks<'a> {
    Hooks::new().replace(at, |_, _| tensor.shallow_clone())
}

fn replace<'a>(at: impl Into<HookFilter<'a>>, f: impl Fn(&Tensor) -> Tensor + 'a) -> Hooks<'a> {
    Hooks::new().replace(at, move |tensor, _| f(tensor))
}

/// `x` with zeros at `index` of dimension `dim`.
fn without(x: &Tensor, dim: i64, index: i64) -> Tensor {
    x.index_fill(dim, &Tensor::from_slice(&[index]), 0.0)
}

// --- TransformerLens' own figures -------------------------------------------------------------------------------------

#[test]
fn ablating_a_head_and_halving_a_position_give_transformer_lens_logits() {
    let mut tally = crate::common::Tally::default();
    for family in families() {
        let fixture = Fixture::open(&family);
        let (model, tokens) = (raw(&family), fixture.want("tokens"));
        if let Some(theirs) = fixture.get("raw.ablate.blocks.0.attn.hook_z.head_1.logits_last") {
            let hooks = replace(hook::z(0), |z| without(z, 2, 1));
            let run = RunOptions::new().hooks(hooks).logits_at(-1);
            let ours = model.run(&tokens, run).unwrap().logits.unwrap();
            tally.compare(&format!("{family}, ablated"), &ours.i((.., 0)), &theirs, 1e-4);
        }
        let last = model.config().n_layers - 1;
        if let Some(theirs) = fixture.get(&format!("raw.halve.blocks.{last}.hook_resid_pre.pos_3.logits")) {
            let halve = |resid: &Tensor| {
                let factors = Tensor::from_slice(&[1.0f32, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0]).view([1, 7, 1]);
                resid * factors
            };
            let run = RunOptions::new().hooks(replace(("resid_pre", -1), halve)).logits_at(3..);
            let ours = model.run(&tokens, run).unwrap().logits.unwrap();
            tally.compare(&format!("{family}, halved"), &ours, &theirs, 1e-4);
        }
    }
    assert!(tally.count >= 20);
    tally.finish("TransformerLens' interventions");
}

// --- within attention -------------------------------------------------------------------------------------------------

#[test]
fn a_head_of_result_is_that_head_of_z() {
    for m in models() {
        for layer in 0..2 {
            let ours = m.with(replace(hook::result(layer), |r| without(r, 2, 1)));
            let theirs = m.with(replace(hook::z(layer), |z| without(z, 2, 1)));
            m.same("head 1", &ours, &theirs);
            m.changed("head 1", &ours);
        }
    }
}

#[test]
fn a_pattern_mixes_the_values() {
    for m in models() {
        let cache = m.cache(Hooks::new());
        let (pattern, v) = (&cache[hook::pattern(1)], m.per_query_head(&cache[hook::v(1)]));
        let turned = pattern.flip([1]); // every head looks where another one did
        let z = turned.matmul(&v.transpose(1, 2)).transpose(1, 2);
        let ours = m.with(put(hook::pattern(1), &turned));
        m.same("z by hand", &ours, &m.with(put(hook::z(1), &z)));
        m.changed("pattern", &ours);
    }
}

#[test]
fn scores_become_a_pattern() {
    for m in models() {
        let shut = Tensor::from_slice(&[false, true, false, false, false, false, false]); // key 1, and only it
        let closed = |scores: &Tensor| scores.masked_fill(&shut, f64::NEG_INFINITY);
        // In a window of 3 every query still sees something.
        let ours = m.cache(replace(hook::attn_scores(0), closed));
        let pattern = closed(&m.cache(Hooks::new())[hook::attn_scores(0)]).softmax(-1, Kind::Float);
        m.same("pattern", &ours[hook::pattern(0)], &pattern);
        m.same("logits", &ours["unembed.hook_out"], &m.with(put(hook::pattern(0), &pattern)));
        assert_eq!(ours[hook::pattern(0)].i((.., .., .., 1)).abs().max().double_value(&[]), 0.0);
    }
}

#[test]
fn queries_keys_and_values_do_what_they_are_for() {
    for m in models() {
        let blind = m.cache(replace("k", Tensor::zeros_like));
        let seen = blind[hook::attn_scores(0)].isfinite();
        let even = seen.to_kind(Kind::Float) / seen.sum_dim_intlist([-1i64].as_slice(), true, Kind::Float);
        m.same("with keys of zero all visible positions are alike", &blind[hook::pattern(0)], &even);
        m.same("queries of zero do the same", &m.with(replace("q", Tensor::zeros_like)), &blind["unembed.hook_out"]);
        let empty = m.with(replace("v", Tensor::zeros_like));
        m.same("values of zero", &empty, &m.with(replace("z", Tensor::zeros_like)));
        let out = m.model.config().d_model as i64;
        let only_bias = m.cache(replace("z", Tensor::zeros_like));
        let bias = m.bias("blocks.1.attn.o.bias", out).expand([2, 7, out], false);
        m.same("then attention writes its bias", &only_bias[hook::attn_out(1)], &bias);
    }
}

#[test]
fn rotation_is_linear() {
    for m in models().filter(|m| m.model.config().rotary().is_some()) {
        for (before, after) in [("q", "rot_q"), ("k", "rot_k")] {
            let ours = m.with(replace((after, 1), |x| x * 0.5));
            m.same(after, &ours, &m.with(replace((before, 1), |x| x * 0.5)));
            m.changed(after, &ours);
        }
    }
}

/// What a head reads, by itself: the others' queries, keys and values stay what they were.
#[test]
fn one_head_may_read_another_stream() {
    for m in models() {
        // What all heads make of a stream of zeros.
        let of_zeros = m.cache(replace(("normalized", 1, "ln1"), Tensor::zeros_like));
        for (input, output) in [("q_input", "q"), ("k_input", "k"), ("v_input", "v")] {
            let zeros = &of_zeros[(output, 1)];
            let one = |x: &Tensor| Tensor::cat(&[&zeros.i((.., .., ..1)), &x.i((.., .., 1..))], 2);
            let ours = m.cache(replace((input, 1), |x| without(x, 2, 0)));
            let theirs = m.cache(replace((output, 1), one));
            m.same(output, &ours[(output, 1)], &theirs[(output, 1)]);
            m.same(input, &ours["unembed.hook_out"], &theirs["unembed.hook_out"]);
            m.changed(input, &ours["unembed.hook_out"]);
        }
    }
}

#[test]
fn what_a_head_reads_is_what_its_queries_keys_and_values_read() {
    for m in models().filter(|m| m.name != "llama_gqa_tied") {
        let zero = |x: &Tensor| without(x, 2, 1);
        let ours = m.with(replace(("attn_in", 1), zero));
        m.same("head 1", &ours, &m.with(replace([("q_input", 1), ("k_input", 1), ("v_input", 1)], zero)));
        m.changed("head 1", &ours);
        let all = m.with(replace(("attn_in", 1), Tensor::zeros_like));
        // The norm of nothing is nothing, before gain and bias.
        m.same("all heads", &all, &m.with(replace(("normalized", 1, "ln1"), Tensor::zeros_like)));
    }
}

// --- norms, MLPs and the stream ---------------------------------------------------------------------------------------

#[test]
fn what_the_mlp_reads_is_not_what_the_stream_keeps() {
    for m in models() {
        let ours = m.cache(replace(("mlp_in", 0), Tensor::zeros_like));
        let theirs = m.cache(replace(("normalized", 0, "ln2"), Tensor::zeros_like));
        m.same("the norm of nothing", &ours[hook::mlp_out(0)], &theirs[hook::mlp_out(0)]);
        m.same("logits", &ours["unembed.hook_out"], &theirs["unembed.hook_out"]);
        m.changed("logits", &ours["unembed.hook_out"]);
    }
}

#[test]
fn the_stream_between_attention_and_mlp_is_read_and_kept() {
    for m in models().filter(|m| !m.model.config().parallel_attn_mlp) {
        let half = m.cache(Hooks::new())[hook::resid_mid(0)].shallow_clone() * 0.5;
        let of_half = m.cache(put(("mlp_in", 0), &half));
        let after = &half + &of_half[hook::mlp_out(0)];
        let ours = m.with(put(hook::resid_mid(0), &half));
        m.same("resid_mid", &ours, &m.with(put(hook::resid_post(0), &after)));
        m.changed("resid_mid", &ours);
    }
}

#[test]
fn a_norm_divides_by_its_scale() {
    for m in models() {
        let scales = [("scale", 1, "ln1"), ("scale", 0, "ln2")];
        let quotients = [("normalized", 1, "ln1"), ("normalized", 0, "ln2")];
        let mut pairs: Vec<(HookFilter, HookFilter)> = Vec::new();
        pairs.extend(scales.into_iter().zip(quotients).map(|(scale, quotient)| (scale.into(), quotient.into())));
        pairs.push(("ln_final.hook_scale".into(), "ln_final.hook_normalized".into()));
        if m.name == "toy_solu_ln" {
            pairs.push((("scale", 0, "mlp.ln").into(), ("normalized", 0, "mlp.ln").into()));
        }
        for (scale, quotient) in pairs {
            let ours = m.with(replace(scale, |x| x * 2.0));
            m.same("twice the scale", &ours, &m.with(replace(quotient, |x| x * 0.5)));
            m.changed("scale", &ours);
        }
    }
}

#[test]
fn neurons_are_what_the_mlp_writes() {
    for m in models() {
        let d_model = m.model.config().d_model as i64;
        let silent = m.cache(replace(("post", 0), Tensor::zeros_like));
        let bias = m.bias("blocks.0.mlp.out.bias", d_model).expand([2, 7, d_model], false);
        m.same("without neurons the bias is left", &silent[hook::mlp_out(0)], &bias);
        if m.name == "toy_solu_ln" {
            let mid = m.cache(replace(("pre", 0), Tensor::zeros_like));
            assert_eq!(mid[hook::mid(0)].abs().max().double_value(&[]), 0.0);
            continue; // its norm makes something of nothing
        }
        let logits = &silent["unembed.hook_out"];
        m.same("act(0) = 0", &m.with(replace(("pre", 0), Tensor::zeros_like)), logits);
        if m.model.config().gated_mlp() {
            m.same("0 · gate = 0", &m.with(replace(("pre_linear", 0), Tensor::zeros_like)), logits);
        }
    }
}

#[test]
fn a_block_s_parts_add_up_to_its_end() {
    for m in models() {
        let cache = m.cache(Hooks::new());
        let (attn, mlp) = (&cache[hook::attn_out(1)], &cache[hook::mlp_out(1)]);
        let without_mlp = &cache[hook::resid_post(1)] - mlp;
        m.same(
            "mlp_out",
            &m.with(replace(hook::mlp_out(1), Tensor::zeros_like)),
            &m.with(put(hook::resid_post(1), &without_mlp)),
        );
        if m.model.config().parallel_attn_mlp {
            let without_attn = &cache[hook::resid_post(1)] - attn;
            let ours = m.with(replace(hook::attn_out(1), Tensor::zeros_like));
            m.same("attn_out", &ours, &m.with(put(hook::resid_post(1), &without_attn)));
        } else {
            let without_attn = &cache[hook::resid_mid(1)] - attn;
            let ours = m.with(replace(hook::attn_out(1), Tensor::zeros_like));
            m.same("attn_out", &ours, &m.with(put(hook::resid_mid(1), &without_attn)));
        }
    }
}

// --- both ends --------------------------------------------------------------------------------------------------------

/// Activation patching: with the stream of another prompt, the model says what it says of that prompt.
#[test]
fn the_stream_is_all_that_a_block_hands_on() {
    for m in models() {
        let other = m.tokens.flip([1]);
        let (logits, cache) = m.model.run_with_cache(&other).unwrap();
        m.changed("the other prompt", &logits);
        let points = [hook::resid_pre(0), hook::resid_post(0), hook::resid_pre(1), hook::resid_post(1)];
        for point in points {
            m.same(&point.to_string(), &m.with(put(point, &cache[point])), &logits);
        }
        m.same("unembed.hook_in", &m.with(put("unembed.hook_in", &cache["unembed.hook_in"])), &logits);
        m.same("hook_embed", &m.with(put("hook_embed", &cache["hook_embed"])), &logits); // positions are the same
        m.same("hook_tokens", &m.with(put("hook_tokens", &other)), &logits);
    }
}

#[test]
fn learned_positions_are_part_of_the_stream() {
    for m in models().filter(|m| m.model.hook_names().contains(&"hook_pos_embed".into())) {
        let pos = m.cache(Hooks::new())["hook_pos_embed"].shallow_clone();
        let ours = m.with(replace("hook_pos_embed", Tensor::zeros_like));
        m.same("hook_pos_embed", &ours, &m.with(replace("hook_embed", |embed| embed - &pos)));
        m.changed("hook_pos_embed", &ours);
    }
}

#[test]
fn the_unembedding_is_an_affine_map() {
    for m in models() {
        let d_vocab = m.model.config().d_vocab as i64;
        let ours = m.with(replace("unembed.hook_in", Tensor::zeros_like));
        let bias = m.bias("unembed.b_U", d_vocab).expand([2, 7, d_vocab], false);
        m.same("of nothing it is its bias", &ours, &bias);
        let out = m.with(replace("unembed.hook_out", |logits| logits * 3.0));
        m.same("what comes out is the logits", &out, &(m.with(Hooks::new()) * 3.0));
    }
}

// --- hooks and cache together -----------------------------------------------------------------------------------------

/// Each default point in turn: the cache has the replacement, and the hooks saw what was there before.
#[test]
fn the_cache_keeps_what_a_hook_put_there() {
    for family in ["gpt2", "llama_gqa_tied", "toy_parallel", "toy_solu_ln", "gemma2", "olmo2", "qwen3", "mixtral"] {
        let (model, tokens) = (raw(family), Fixture::open(family).want("tokens"));
        let (_, before) = model.run_with_cache(&tokens).unwrap();
        for point in before.keys() {
            if before[point].kind() != Kind::Float {
                continue; // token ids, chosen experts
            }
            let mut seen = Vec::new();
            let hooks = Hooks::new().replace(point, |x, at| {
                seen.push((at, x.shallow_clone()));
                x * 0.5
            });
            let after = model.run(&tokens, RunOptions::new().hooks(hooks).cache(HookFilter::All)).unwrap().cache;
            let what = format!("{family}, {point}");
            assert_eq!(seen.len(), 1, "{what}");
            assert_eq!(seen[0].0, point, "{what}");
            assert!(max_diff(&what, &seen[0].1, &before[point]) <= TOLERANCE, "{what}");
            assert_eq!(max_diff(&what, &after[point], &(&seen[0].1 * 0.5)), 0.0, "{what}");
            // Nothing that came before it is another.
            for earlier in before.keys().take_while(|earlier| *earlier != point) {
                assert_eq!(max_diff(&what, &after[earlier], &before[earlier]), 0.0, "{what} changed {earlier}");
            }
        }
    }
}

#[test]
fn hooks_at_one_point_see_each_other_s_work_in_order() {
    let m = models().next().unwrap();
    let mut seen = Vec::new();
    let hooks = Hooks::new()
        .replace("z0", |z, _| z.ones_like())
        .replace("z", |z, _| z * 2.0)
        .observe(hook::z(0), |z, _| seen.push(z.mean(Kind::Float).double_value(&[])))
        .replace("z0", |_, _| None)
        .replace(HookFilter::matching(|point| point == hook::z(0)), |z, _| z + 1.0);
    let cache = m.cache(hooks);
    assert_eq!(seen, [2.0]);
    assert_eq!(cache[hook::z(0)].mean(Kind::Float).double_value(&[]), 3.0);
}

#[test]
fn observing_everything_changes_nothing_and_is_in_the_cache_s_order() {
    for family in families() {
        let (model, tokens) = (raw(&family), Fixture::open(&family).want("tokens"));
        let mut fired: Vec<(HookPoint, Tensor)> = Vec::new();
        let hooks = Hooks::new().observe(model.hook_names(), |x, point| fired.push((point, x.shallow_clone())));
        let run = RunOptions::new().hooks(hooks).cache(model.hook_names());
        let outcome = model.run(&tokens, run).unwrap();
        let kept: Vec<HookPoint> = outcome.cache.keys().collect();
        assert_eq!(fired.iter().map(|(point, _)| *point).collect::<Vec<_>>(), kept, "{family}");
        for (point, tensor) in fired {
            assert_eq!(max_diff(&point.to_string(), &tensor, &outcome.cache[point]), 0.0, "{family}, {point}");
        }
        let diff = max_diff(&family, &outcome.logits.unwrap(), &model.forward(&tokens).unwrap());
        assert!(diff <= 1e-4, "{family}: {diff:.3e}"); // fused attention is another kernel
    }
}
