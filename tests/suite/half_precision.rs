//! In fp16 and bf16, norms, routers and losses are computed in fp32: nothing overflows, and results are those of the exact quotient,
//! rounded once.

use crate::common::{max_diff, Fixture};
use rstest::rstest;
use tch::{Kind, Tensor};
use tch_lens::config::QkNorm;
use tch_lens::{
    hook, ActivationCache, HookFilter, HookPoint, HookedTransformer, Hooks, LoadOptions, ReturnType, RunOptions, Tokens,
};

fn open(family: &str, kind: Kind) -> (HookedTransformer, Tokens) {
    let model = LoadOptions::new().no_processing().kind(kind).open(Fixture::folder(family)).unwrap();
    (model, Tokens::new(&Fixture::open(family).want("tokens")).unwrap())
}

/// Streams so large that their squares are beyond fp16's 65,504.
fn enlarge<'a>() -> Hooks<'a> {
    Hooks::new().replace("hook_embed", |x, _| x * 300.0)
}

/// The largest difference, by the size of the numbers.
fn relative(ours: &Tensor, theirs: &Tensor) -> f64 {
    max_diff("numbers", ours, theirs) / theirs.to_kind(Kind::Double).abs().max().double_value(&[])
}

/// Norms of one input each: the input, the scale and the quotient.
fn norms(model: &HookedTransformer, cache: &ActivationCache) -> Vec<(Tensor, HookPoint, HookPoint)> {
    let config = model.config();
    let mut found = Vec::new();
    for layer in 0..config.n_layers {
        let mut add =
            |input: HookPoint, scale, normalized| found.push((cache[input].shallow_clone(), scale, normalized));
        add(hook::resid_pre(layer), hook::ln1_scale(layer), hook::ln1_normalized(layer));
        let mlp_reads = if config.parallel_attn_mlp { hook::resid_pre(layer) } else { hook::resid_mid(layer) };
        add(mlp_reads, hook::ln2_scale(layer), hook::ln2_normalized(layer));
        if matches!(config.qk_norm(), Some(QkNorm::PerHead(_))) {
            add(hook::q(layer), hook::q_norm_scale(layer), hook::q_norm_normalized(layer));
            add(hook::k(layer), hook::k_norm_scale(layer), hook::k_norm_normalized(layer));
        }
    }
    let last = cache[hook::resid_post(config.n_layers - 1)].shallow_clone();
    found.push((last, hook::ln_final_scale(), hook::ln_final_normalized()));
    found
}

#[rstest]
fn norms_are_exact_and_do_not_overflow(
    #[values(Kind::Half, Kind::BFloat16)] kind: Kind,
    #[values("gpt2", "llama", "gemma2", "gemma3", "qwen3", "toy_parallel")] family: &str,
    #[values(false, true)] carried: bool,
) {
    let (model, tokens) = open(family, kind);
    let config = model.config();
    // Where a hook stands at the scale, it is divided by; elsewhere the fused kernel's quotient may be taken.
    let hooks = match carried {
        true => enlarge().replace(HookFilter::names(|name| name.ends_with("hook_scale")), |x, _| x.shallow_clone()),
        false => enlarge(),
    };
    let cache = model.run(&tokens, RunOptions::new().hooks(hooks).cache(HookFilter::All)).unwrap().cache;
    for (input, scale_at, normalized_at) in norms(&model, &cache) {
        let (scale, normalized) = (&cache[scale_at], &cache[normalized_at]);
        let what = format!("{family}, {kind:?}, {scale_at}");
        assert_eq!((scale.kind(), normalized.kind()), (Kind::Float, kind), "{what}");
        let wide = input.to_kind(Kind::Double);
        let of = |x: &Tensor| x.mean_dim([-1i64].as_slice(), true, Kind::Double);
        let centered = if config.normalization_type().centers() { &wide - of(&wide) } else { wide };
        let exact = (of(&centered.square()) + config.eps()).sqrt();
        assert!(relative(scale, &exact) < 1e-5, "{what}: the scale is off by {:.1e}", relative(scale, &exact));
        let rounded = (&centered / &exact).to_kind(kind);
        let off = normalized.ne_tensor(&rounded).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        assert!(off < 0.03, "{what}: {:.0}% of the quotients are not the exact ones, rounded", 100.0 * off);
    }
}

/// What is computed where nothing looks is what is computed where something does.
#[rstest]
fn norms_that_nothing_observes_do_not_overflow_either(
    #[values(Kind::Half, Kind::BFloat16)] kind: Kind,
    #[values("gpt2", "llama", "gemma2", "gemma3", "qwen3", "toy_solu_ln")] family: &str,
) {
    let (model, tokens) = open(family, kind);
    let run = |select: HookFilter<'static>| {
        model.run(&tokens, RunOptions::new().hooks(enlarge()).cache(select)).unwrap().cache
    };
    let all = run(HookFilter::All);
    for site in ["q", "attn_out", "mlp_out"] {
        for layer in 0..model.config().n_layers as i64 {
            let alone = run((site, layer).into());
            let off = relative(&alone[(site, layer)], &all[(site, layer)]);
            assert!(off < 0.03, "{family}, {kind:?}, {site} of layer {layer}: {off:.1e}");
            assert!(all[(site, layer)].abs().max().double_value(&[]) > 0.0);
        }
    }
}

#[rstest]
fn patterns_are_exact(
    #[values(Kind::Half, Kind::BFloat16)] kind: Kind,
    #[values("gpt2", "gpt_oss", "gemma2")] family: &str,
) {
    let (model, tokens) = open(family, kind);
    let cache = model.run(&tokens, RunOptions::new().cache(["attn_scores", "pattern"])).unwrap().cache;
    let sinks = model.parameters().into_iter().find(|(name, _)| name.ends_with("0.attn.sinks")).map(|(_, sinks)| sinks);
    let mut scores = cache[("attn_scores", 0)].to_kind(Kind::Double);
    let n_keys = scores.size()[3];
    if let Some(sinks) = sinks {
        let size = scores.size();
        let sinks =
            sinks.detach().to_kind(Kind::Double).view([1, -1, 1, 1]).expand([size[0], size[1], size[2], 1], false);
        scores = Tensor::cat(&[scores, sinks], -1);
    }
    let rounded = scores.softmax(-1, Kind::Double).narrow(-1, 0, n_keys).to_kind(kind);
    let off = cache[("pattern", 0)].ne_tensor(&rounded).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
    assert!(off < 0.02, "{family}, {kind:?}: {:.0}% of the pattern is not the exact one, rounded", 100.0 * off);
}

#[rstest]
fn routers_and_losses_are_in_fp32(
    #[values(Kind::Half, Kind::BFloat16)] kind: Kind,
    #[values("olmoe", "mixtral", "gpt_oss")] family: &str,
) {
    let (model, tokens) = open(family, kind);
    let run = RunOptions::new().cache("expert_weights").return_type(ReturnType::Both);
    let outcome = model.run(&tokens, run).unwrap();
    let weights = &outcome.cache[("expert_weights", 0)];
    assert_eq!(weights.kind(), Kind::Float);
    let sums = weights.to_kind(Kind::Double).sum_dim_intlist([-1i64].as_slice(), false, None);
    assert!(max_diff("sums", &sums, &sums.ones_like()) < 1e-6);
    let loss = outcome.loss.unwrap();
    assert_eq!(loss.kind(), Kind::Float);
    let log_probs = outcome.logits.unwrap().to_kind(Kind::Double).log_softmax(-1, Kind::Double);
    let n = tokens.ids.size()[1];
    let next = tokens.ids.narrow(1, 1, n - 1).unsqueeze(-1);
    let exact = -log_probs.narrow(1, 0, n - 1).gather(-1, &next, false).mean(Kind::Double);
    assert!(relative(&loss, &exact) < 1e-6, "{family}, {kind:?}: the loss is off by {:.1e}", relative(&loss, &exact));
}
