//! Weights by name, circuits, biases and composition scores, for every family that there are fixtures of: against
//! TransformerLens' figures, and against what the model computes with them.

use std::collections::BTreeMap;

use crate::common::{families, processed_like_transformer_lens, Fixture, Tally};
use rstest::rstest;
use tch::{Kind, Tensor};
use tch_lens::config::{Activation, MlpConfig, NormPosition, PositionalEmbedding, Positions};
use tch_lens::{
    hook, Composition, Config, Error, FullOptions, HookedTransformer, Layer, LoadOptions, NeuronResultOptions,
    OutputTokens, Result, Slice, Target,
};

const TOLERANCE: f64 = 1e-4;

fn settings(fixture: &Fixture) -> [(&'static str, HookedTransformer); 2] {
    let mut processed = processed_like_transformer_lens(fixture);
    if fixture.meta["tl_cfg"]["raw"]["normalization_type"] == "LNPre" {
        // TransformerLens centres what reads a layer norm together with folding its gain only, and here is none.
        processed = processed.fold_ln(false);
    }
    [
        ("raw", LoadOptions::new().no_processing().open(&fixture.folder).unwrap()),
        ("processed", processed.open(&fixture.folder).unwrap()),
    ]
}

/// A weight by the name that it has in TransformerLens' state dict; `None` where we have no accessor for it.
fn by_name(model: &HookedTransformer, name: &str) -> Option<Result<Tensor>> {
    let Some((layer, rest)) = name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) else {
        return match name {
            "embed.W_E" => Some(model.w_e()),
            "pos_embed.W_pos" => Some(model.w_pos()),
            "unembed.W_U" => Some(model.w_u()),
            "unembed.b_U" => Some(model.b_u()),
            _ => None,
        };
    };
    let layer: i64 = layer.parse().unwrap();
    Some(match rest {
        "attn.W_Q" => model.w_q(layer),
        "attn.W_K" => model.w_k(layer),
        "attn.W_V" => model.w_v(layer),
        "attn._W_K" => model.w_k_grouped(layer),
        "attn._W_V" => model.w_v_grouped(layer),
        "attn.W_O" => model.w_o(layer),
        "attn.b_Q" => model.b_q(layer),
        "attn.b_K" => model.b_k(layer),
        "attn.b_V" => model.b_v(layer),
        "attn._b_K" => model.b_k_grouped(layer),
        "attn._b_V" => model.b_v_grouped(layer),
        "attn.b_O" => model.b_o(layer),
        "mlp.W_in" => model.w_in(layer),
        "mlp.W_gate" => model.w_gate(layer),
        "mlp.W_out" => model.w_out(layer),
        "mlp.b_in" => model.b_in(layer),
        "mlp.b_out" => model.b_out(layer),
        _ => return None,
    })
}

/// TransformerLens' own state dict: shapes, sums and absolute sums; those of norms among our parameters.
#[test]
fn weights_are_transformer_lens_own() {
    let mut tally = Tally::default();
    let mut left_out = BTreeMap::<String, usize>::new();
    for family in families() {
        let fixture = Fixture::open(&family);
        for (setting, model) in settings(&fixture) {
            let parameters: BTreeMap<String, Tensor> = model.parameters().into_iter().collect();
            for (name, summary) in fixture.meta["weights_summary"][setting].as_object().unwrap() {
                let what = format!("{family} {setting} {name}");
                let positions = model.config().positional_embedding_type();
                if name == "pos_embed.W_pos" && positions == PositionalEmbedding::Alibi {
                    continue; // TransformerLens carries one that nothing reads
                }
                let centers = model.config().normalization_type().centers();
                if name.ends_with("mlp.W_gate") && setting == "processed" && centers {
                    continue; // TransformerLens centres what reads a layer norm, but for this
                }
                if name == "unembed.W_U" && setting == "processed" && matches!(family.as_str(), "olmo2" | "olmo3") {
                    continue; // TransformerLens leaves the last norm of these as it is
                }
                let ours = match (by_name(&model, name), parameters.get(name)) {
                    (Some(ours), _) => ours.unwrap_or_else(|error| panic!("{what}: {error}")),
                    (None, Some(ours)) => ours.shallow_clone(),
                    (None, None) => {
                        let of_layer = name.split_once('.').map_or(name.as_str(), |(_, rest)| rest);
                        *left_out
                            .entry(of_layer.trim_start_matches(|c: char| c == '.' || c.is_numeric()).into())
                            .or_default() += 1;
                        continue;
                    }
                };
                let shape: Vec<i64> = serde_json::from_value(summary["shape"].clone()).unwrap();
                assert_eq!(ours.size(), shape, "{what}");
                let ours = ours.to_kind(Kind::Double);
                let figure = |name: &str| summary[name].as_f64().unwrap();
                // Rounding is relative to the entries, which cancel in a sum.
                let unit = figure("abs_sum").max(1e-3);
                let compare = |tally: &mut Tally, name: &str, ours: Tensor| {
                    tally.compare(&format!("{what}, {name}"), &(ours / unit), &Tensor::from(figure(name) / unit), 1e-5);
                };
                compare(&mut tally, "sum", ours.sum(Kind::Double));
                compare(&mut tally, "abs_sum", ours.abs().sum(Kind::Double));
            }
        }
    }
    println!("left out, as neither accessors nor parameters have them: {left_out:?}");
    tally.finish("weights against TransformerLens' state dict, shape, sum and absolute sum, relative");
}

/// `[…, head, d_model]` or `[…, d_model]` times `[head, d_model, d_head]`.
fn to_heads(x: &Tensor, w: &Tensor, b: &Tensor) -> Tensor {
    Tensor::einsum("bpm,hme->bphe", &[x, w], None::<&[i64]>) + b
}

/// What the accessors give is what the forward pass multiplies with: its activations come out.
#[test]
fn weights_make_the_activations() {
    let mut tally = Tally::default();
    for family in families() {
        let fixture = Fixture::open(&family);
        let models = [
            ("raw", LoadOptions::new().no_processing().open(&fixture.folder).unwrap()),
            ("processed", LoadOptions::new().open(&fixture.folder).unwrap()),
        ];
        for (setting, model) in models {
            let config = model.config().clone();
            let tokens = fixture.want("tokens");
            let (_, cache) = model.run_with_cache(&tokens).unwrap();
            let parameters: BTreeMap<String, Tensor> = model.parameters().into_iter().collect();
            let mut compare = |name: &str, ours: Tensor, theirs: &Tensor| {
                tally.compare(&format!("{family} {setting}: {name}"), &ours, theirs, TOLERANCE);
            };
            if !config.post_embedding_ln() {
                compare(
                    "embed",
                    model.w_e().unwrap().index_select(0, &tokens.reshape(-1)).view_as(&cache["hook_embed"]),
                    &cache["hook_embed"],
                );
            }
            compare(
                "logits before any cap",
                cache["unembed.hook_in"].matmul(&model.w_u().unwrap()) + model.b_u().unwrap(),
                &cache["unembed.hook_out"],
            );
            for layer in 0..config.n_layers {
                let at = layer as i64;
                // What a norm before the sublayer gives, with its gain and bias, where these are not folded.
                let read = |norm: &str, stream: &str| -> Tensor {
                    let normalized = format!("blocks.{layer}.{norm}.hook_normalized");
                    if config.norm_position() == NormPosition::After || !cache.contains(normalized.as_str()) {
                        return cache[format!("blocks.{layer}.{stream}").as_str()].shallow_clone();
                    }
                    let mut x = cache[normalized.as_str()].shallow_clone();
                    if let Some(w) = parameters.get(&format!("blocks.{layer}.{norm}.w")) {
                        x *= w;
                    }
                    match parameters.get(&format!("blocks.{layer}.{norm}.b")) {
                        Some(b) => x + b,
                        None => x,
                    }
                };
                let x = read("ln1", "hook_resid_pre");
                let grouped = config.n_key_value_heads;
                compare(
                    "v",
                    to_heads(&x, &model.w_v_grouped(at).unwrap(), &model.b_v_grouped(at).unwrap()),
                    &cache[("v", at)],
                );
                assert_eq!(model.w_k_grouped(at).unwrap().size()[0], grouped as i64);
                // Short-former's queries and keys read positions too.
                if family != "toy_shortformer" {
                    compare("q", to_heads(&x, &model.w_q(at).unwrap(), &model.b_q(at).unwrap()), &cache[("q", at)]);
                    compare(
                        "k",
                        to_heads(&x, &model.w_k_grouped(at).unwrap(), &model.b_k_grouped(at).unwrap()),
                        &cache[("k", at)],
                    );
                }
                let z = &cache[hook::z(layer)];
                let result = Tensor::einsum("bphe,hem->bphm", &[z, &model.w_o(at).unwrap()], None::<&[i64]>);
                if config.norm_position() == NormPosition::Before {
                    let out = result.sum_dim_intlist([2i64].as_slice(), false, Kind::Float) + model.b_o(at).unwrap();
                    compare("attn_out", out, &cache[("attn_out", at)]);
                }
                if config.attn_only() || config.experts().is_some() {
                    let error = model.w_in(at).unwrap_err().to_string();
                    let expected = if config.attn_only() { "attention-only" } else { "experts there: `parameters()`" };
                    assert!(error.contains(expected), "{family}: {error}");
                    continue;
                }
                let x = read("ln2", if config.parallel_attn_mlp { "hook_resid_pre" } else { "hook_resid_mid" });
                if config.gated_mlp() {
                    let pre = x.matmul(&model.w_gate(at).unwrap()) + model.b_gate(at).unwrap();
                    compare("pre", pre, &cache[("pre", at)]);
                    let linear = x.matmul(&model.w_in(at).unwrap()) + model.b_pre_linear(at).unwrap();
                    compare("pre_linear", linear, &cache[("pre_linear", at)]);
                } else {
                    compare("pre", x.matmul(&model.w_in(at).unwrap()) + model.b_in(at).unwrap(), &cache[("pre", at)]);
                    assert!(model.w_gate(at).unwrap_err().to_string().contains("no gate"));
                }
                if config.norm_position() == NormPosition::Before {
                    let post = &cache[("post", at)];
                    compare(
                        "mlp_out",
                        post.matmul(&model.w_out(at).unwrap()) + model.b_out(at).unwrap(),
                        &cache[("mlp_out", at)],
                    );
                }
            }
        }
    }
    tally.finish("activations from weights by name");
}

/// The target of a key such as `accumulated_bias.layer_1.mlp_input`.
fn target(key: &str) -> Target {
    if key.contains("layer_-1") {
        Target::Unembed
    } else {
        assert!(key.contains("layer_1.mlp_input"), "{key}");
        Target::Mlp(1)
    }
}

#[test]
fn biases_and_compositions_are_transformer_lens_own() {
    let (mut biases, mut compositions) = (Tally::default(), Tally::default());
    let mut skipped = BTreeMap::<&str, usize>::new();
    let mut seen = 0;
    for family in families() {
        let fixture = Fixture::open(&family);
        seen += 1;
        for (setting, model) in settings(&fixture) {
            let config = model.config();
            for key in fixture.keys(&format!("{setting}.accumulated_bias")) {
                let what = format!("{family} {key}");
                let mlps = !key.ends_with("no_mlp");
                if config.parallel_attn_mlp && key.contains("mlp_input") {
                    *skipped
                        .entry("TransformerLens counts a layer's attention as input of its parallel MLP")
                        .or_default() += 1;
                    continue;
                }
                if config.attn_only() && key.contains("mlp_input") {
                    *skipped.entry("an attention-only model has no MLP that could be a target").or_default() += 1;
                    continue;
                }
                match model.accumulated_bias(target(&key), mlps) {
                    Ok(ours) => biases.compare(&what, &ours, &fixture.want(&key), TOLERANCE),
                    Err(error) if config.norm_position() != NormPosition::Before || config.experts().is_some() => {
                        assert!(error.to_string().contains("depends on the input"), "{what}: {error}");
                        *skipped.entry("what biases add depends on the input").or_default() += 1;
                    }
                    Err(error) => panic!("{what}: {error}"),
                }
            }
            for (letter, mode) in [("Q", Composition::Q), ("K", Composition::K), ("V", Composition::V)] {
                let key = format!("{setting}.all_composition_scores.{letter}");
                let ours = model.all_composition_scores(mode).unwrap();
                if let Some(theirs) = fixture.get(&key) {
                    compositions.compare(&format!("{family} {key}"), &ours, &theirs, TOLERANCE);
                }
            }
            let labels = model.all_head_labels();
            assert_eq!(labels.len(), config.n_layers * config.n_heads);
            assert_eq!(labels.last().unwrap(), &format!("L{}H{}", config.n_layers - 1, config.n_heads - 1));
        }
    }
    for (reason, count) in skipped {
        println!("{count:>5} figures skipped: {reason}");
    }
    println!("{seen} families");
    biases.finish("accumulated biases against TransformerLens");
    compositions.finish("composition scores against TransformerLens");
}

/// Where TransformerLens cannot compute them: against the `bias` row of the full decomposition, at every target.
#[test]
fn biases_are_the_bias_rows() {
    let mut tally = Tally::default();
    for family in families() {
        let fixture = Fixture::open(&family);
        for (setting, model) in settings(&fixture) {
            let (_, cache) = model.run_with_cache(fixture.want("tokens")).unwrap();
            let layers = 0..model.config().n_layers as i64;
            let targets = layers.flat_map(|l| [Target::Attn(l), Target::Mlp(l)]).chain([Target::Unembed]);
            for target in targets.filter(|t| !(model.config().attn_only() && matches!(t, Target::Mlp(_)))) {
                let Ok(ours) = model.accumulated_bias(target, true) else { continue };
                let stack = cache.get_full_resid_decomposition(FullOptions::new().target(target)).unwrap();
                let row = stack.labels().iter().position(|label| label == "bias").unwrap();
                let theirs = stack.tensor().select(0, row as i64);
                tally.compare(&format!("{family} {setting} {target}"), &ours.expand_as(&theirs), &theirs, TOLERANCE);
            }
        }
    }
    tally.finish("accumulated biases against the bias rows");
}

fn small() -> Config {
    Config {
        n_key_value_heads: 2,
        mlp: Some(MlpConfig::plain(20, Activation::GeluNew)),
        ..Config::new(3, 12, 4, 30, 8)
    }
}

fn fill(model: &HookedTransformer, name: &str, value: f64) {
    let (_, mut tensor) = model.parameters().into_iter().find(|(found, _)| found == name).unwrap();
    let _ = tensor.fill_(value);
}

#[test]
fn layers_are_an_index_or_a_stack() {
    let model = HookedTransformer::init(small(), 0).unwrap();
    let all = model.w_k(..).unwrap();
    assert_eq!(all.size(), [3, 4, 12, 3]);
    assert_eq!(model.w_k(-1).unwrap(), all.get(2));
    assert_eq!(model.w_k(1..).unwrap(), all.narrow(0, 1, 2));
    assert_eq!(model.w_k([2, 0]).unwrap().get(1), all.get(0));
    assert_eq!(model.w_k(Tensor::from(1i64)).unwrap(), all.get(1));
    // Heads that share keys have the same ones.
    assert_eq!(all.select(1, 0), all.select(1, 1));
    assert_eq!(model.w_k_grouped(0).unwrap().size(), [2, 12, 3]);
    // A layer is a view.
    let (q, parameters) = (model.w_q(1).unwrap(), model.parameters());
    let (_, qkv) = parameters.iter().find(|(name, _)| name == "blocks.1.attn.qkv.weight").unwrap();
    assert_eq!(q.data_ptr(), qkv.data_ptr());
    let error = model.w_q(3).unwrap_err().to_string();
    assert_eq!(error, "layer 3 is out of range: the model has 3 layers, so -3 to 2 (negative ones count from the end)");
    let error = model.w_q(5..).unwrap_err().to_string();
    assert_eq!(error, "the slice 5: is out of range for the layer axis, which has 3 entries");
    assert!(model.w_q(Slice::from([0, 7])).is_err());
}

#[test]
fn what_a_model_lacks_is_an_error_or_zero() {
    let config = Config { positions: Positions::alibi(8.0), mlp: None, ..small() };
    let model = HookedTransformer::init(config, 0).unwrap();
    let error = |result: Result<Tensor>| result.unwrap_err().to_string();
    assert_eq!(error(model.w_pos()), "the model has no W_pos: its positions are Alibi");
    assert_eq!(error(model.w_e_pos()), "the model has no W_pos: its positions are Alibi");
    assert_eq!(error(model.b_out(0)), "the model has no MLPs: it is attention-only");
    assert_eq!(
        error(model.accumulated_bias(Target::Mlp(0), true)),
        "the model has no MLPs: it is attention-only, so the MLP of layer 0 cannot be a target"
    );
    assert_eq!(model.accumulated_bias(Target::Unembed, true).unwrap().size(), [12]);
    // A checkpoint without biases.
    let llama = LoadOptions::new().no_processing().open(Fixture::open("llama").folder).unwrap();
    assert_eq!(llama.b_u().unwrap().abs().max().double_value(&[]), 0.0);
    let config = llama.config();
    assert_eq!(llama.b_k(..).unwrap().size(), [config.n_layers, config.n_heads, config.d_head].map(|n| n as i64));
}

/// Layers and heads are often counted in `usize`, and literals are `i32`.
#[test]
fn a_layer_is_an_integer_of_any_type() {
    let model = HookedTransformer::init(small(), 0).unwrap();
    let n_layers = model.config().n_layers;
    let last = model.w_q(-1).unwrap();
    for weight in [model.w_q(n_layers - 1), model.w_q(n_layers as i64 - 1), model.w_q(Layer::from(-1))] {
        assert_eq!(weight.unwrap(), last);
    }
    assert_eq!(model.w_o(0..n_layers).unwrap(), model.w_o(..).unwrap());
    assert_eq!(model.b_out([n_layers - 1, 0]).unwrap(), model.b_out([-1, 0]).unwrap());
    assert_eq!(model.qk(1..n_layers).unwrap().ab().unwrap(), model.qk(1..).unwrap().ab().unwrap());
    assert_eq!(
        model.accumulated_bias(Target::attn(n_layers - 1), true).unwrap(),
        model.accumulated_bias(Target::Attn(-1), true).unwrap()
    );
    assert!(matches!(model.w_q(usize::MAX), Err(Error::LayerOutOfRange { .. })));
    assert!(matches!(model.w_q(n_layers), Err(Error::LayerOutOfRange { .. })));

    let (_, cache) = model.run_with_cache([1, 2, 3]).unwrap();
    assert_eq!(cache.get(("q", n_layers - 1)).unwrap(), cache.get(("q", -1)).unwrap());
    let neurons = |layer: Layer| cache.get_neuron_results(layer, NeuronResultOptions::new()).unwrap();
    assert_eq!(neurons((n_layers - 1).into()), neurons((-1).into()));
}

#[test]
fn biases_through_a_norm_depend_on_the_input() {
    let mut config = small();
    config.norms.position = NormPosition::BeforeAndAfter;
    let model = HookedTransformer::init(config, 0).unwrap();
    assert_eq!(model.accumulated_bias(Target::Unembed, true).unwrap().abs().max().double_value(&[]), 0.0);
    fill(&model, "blocks.1.mlp.out.bias", 0.5);
    assert!(model.accumulated_bias(Target::Mlp(1), true).is_ok());
    assert!(model.accumulated_bias(Target::Unembed, false).is_ok());
    assert_eq!(
        model.accumulated_bias(Target::Attn(2), true).unwrap_err().to_string(),
        "the contribution of biases in layer 1 depends on the input, because the bias of the MLP passes through the norm after the \
         MLP: use the `bias` row of get_full_resid_decomposition, which has one value per position"
    );
}

#[test]
fn parallel_mlps_do_not_read_their_attention() {
    let model = HookedTransformer::init(Config { parallel_attn_mlp: true, ..small() }, 0).unwrap();
    fill(&model, "blocks.0.attn.o.bias", 1.0);
    fill(&model, "blocks.1.attn.o.bias", 10.0);
    let bias = |target| model.accumulated_bias(target, true).unwrap().double_value(&[0]);
    assert_eq!(bias(Target::Mlp(1)), 1.0);
    assert_eq!(bias(Target::Attn(2)), 11.0);
}

#[test]
fn circuits_are_products() {
    let mut tally = Tally::default();
    let model = HookedTransformer::init(small(), 0).unwrap();
    let dense_qk = model.w_q(..).unwrap().matmul(&model.w_k(..).unwrap().transpose(-2, -1));
    let dense_ov = model.w_v(..).unwrap().matmul(&model.w_o(..).unwrap());
    tally.compare("qk", &model.qk(..).unwrap().ab().unwrap(), &dense_qk, 1e-7);
    tally.compare("ov of a layer", &model.ov(1).unwrap().ab().unwrap(), &dense_ov.get(1), 1e-7);
    // All scores one by one, formed in full.
    let frobenius = |t: Tensor| t.norm().double_value(&[]);
    for (mode, later) in [
        (Composition::Q, dense_qk.shallow_clone()),
        (Composition::K, dense_qk.transpose(-2, -1)),
        (Composition::V, dense_ov.shallow_clone()),
    ] {
        let scores = model.all_composition_scores(mode).unwrap();
        assert_eq!(scores.size(), [3, 4, 3, 4]);
        for [l1, h1, l2, h2] in (0..144).map(|i| [i / 48, i / 12 % 4, i / 4 % 3, i % 4]) {
            let (w1, w2) = (dense_ov.get(l1).get(h1), later.get(l2).get(h2));
            let full = frobenius(w1.matmul(&w2)) / frobenius(w1) / frobenius(w2);
            let expected = Tensor::from(if l1 < l2 { full } else { 0.0 });
            let found = scores.double_value(&[l1, h1, l2, h2]);
            tally.compare(&format!("{mode:?}-composition"), &Tensor::from(found), &expected, 1e-5);
        }
    }
    tally.finish("circuits and composition scores against full matrices");
    // A head that writes nothing composes with nothing.
    fill(&model, "blocks.0.attn.o.weight", 0.0);
    let scores = model.all_composition_scores(Composition::V).unwrap();
    assert_eq!(scores.get(0).abs().max().double_value(&[]), 0.0);
}

#[test]
fn low_precision_decomposes_in_fp32() {
    let model = LoadOptions::new().kind(Kind::BFloat16).toy().unwrap();
    assert_eq!(model.w_q(0).unwrap().kind(), Kind::BFloat16);
    assert_eq!(model.all_composition_scores(Composition::Q).unwrap().kind(), Kind::Float);
    assert_eq!(model.ov(..).unwrap().svd().unwrap().s.kind(), Kind::Float);
    assert_eq!(model.ov(0).unwrap().eigenvalues().unwrap().size(), [4, 32]);
    assert_eq!(model.accumulated_bias(Target::Unembed, true).unwrap().kind(), Kind::Float);
}

#[rstest]
#[case::text(" Mary".into(), &[128])]
#[case::id(7.into(), &[128])]
#[case::list([7, 8].into(), &[2, 128])]
#[case::scalar(Tensor::from(7i64).into(), &[128])]
#[case::batch((&Tensor::from_slice(&[1i64, 2, 3, 4, 5, 6]).view([2, 3])).into(), &[2, 3, 128])]
#[case::none(Tensor::from_slice::<i64>(&[]).into(), &[0, 128])]
fn directions_have_the_tokens_shape(#[case] tokens: OutputTokens, #[case] shape: &[i64]) {
    let model = HookedTransformer::toy().unwrap();
    assert_eq!(model.tokens_to_residual_directions(tokens).unwrap().size(), shape);
}

#[test]
fn directions_are_columns_of_w_u() {
    let model = HookedTransformer::toy().unwrap();
    let mary = model.to_single_token(" Mary").unwrap();
    assert_eq!(model.tokens_to_residual_directions(" Mary").unwrap(), model.w_u().unwrap().select(1, mary));
    let ids = Tensor::from_slice(&[5i64, 9]).view([2, 1]);
    let directions = model.tokens_to_residual_directions(&ids).unwrap();
    assert_eq!(directions.get(1).get(0), model.w_u().unwrap().select(1, 9));
    let error = |tokens: OutputTokens| model.tokens_to_residual_directions(tokens).unwrap_err().to_string();
    assert_eq!(error(1047.into()), "token id 1047 is out of range: the vocabulary has 1047 entries, 0 to 1046");
    assert!(error("Mary had".into()).contains("exactly one is needed"));
    assert_eq!(error(Tensor::from(0.5).into()), "the tokens' Double tensor has shape [], expected integers");
}
