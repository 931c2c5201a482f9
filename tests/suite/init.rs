//! Fresh weights: each scheme's spread, the same for the same seed, and nobody else's random numbers touched.

use crate::common::child;
use approx::{abs_diff_eq, assert_relative_eq};
use rstest::rstest;
use tch::{Kind, Tensor};
use tch_lens::config::{Activation, Experts, MlpConfig, NormConfig, NormPosition, Normalization, QkNorm, Routing};
use tch_lens::{Config, HookedTransformer, Init};

fn config() -> Config {
    Config {
        n_key_value_heads: 4,
        d_vocab_out: 250,
        mlp: Some(MlpConfig::gated(200, Activation::GeluNew)),
        ..Config::new(2, 96, 8, 300, 64)
    }
}

/// That, with something changed.
fn with(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = config();
    change(&mut config);
    config
}

/// Every matrix, with `fan_in` and `fan_out`.
fn matrices(model: &HookedTransformer) -> Vec<(&'static str, Tensor, [f64; 2])> {
    let stacked = |t: tch_lens::Result<Tensor>| t.unwrap();
    vec![
        ("W_E", stacked(model.w_e()), [300.0, 96.0]),
        ("W_pos", stacked(model.w_pos()), [64.0, 96.0]),
        ("W_U", stacked(model.w_u()), [96.0, 250.0]),
        ("W_Q", stacked(model.w_q(..)), [96.0, 96.0]),
        ("W_K", stacked(model.w_k_grouped(..)), [96.0, 48.0]),
        ("W_V", stacked(model.w_v_grouped(..)), [96.0, 48.0]),
        ("W_O", stacked(model.w_o(..)), [12.0, 768.0]),
        ("W_in", stacked(model.w_in(..)), [96.0, 200.0]),
        ("W_gate", stacked(model.w_gate(..)), [96.0, 200.0]),
        ("W_out", stacked(model.w_out(..)), [200.0, 96.0]),
    ]
}

#[rstest]
#[case::gpt2(Init::Gpt2 { std: Some(0.02) }, |_: f64, _: f64| 0.02, true)]
#[case::xavier_uniform(Init::XavierUniform, |i: f64, o: f64| (2.0 / (i + o)).sqrt(), false)]
#[case::xavier_normal(Init::XavierNormal, |i: f64, o: f64| (2.0 / (i + o)).sqrt(), true)]
#[case::kaiming_uniform(Init::KaimingUniform, |i: f64, _: f64| (2.0 / i).sqrt(), false)]
#[case::kaiming_normal(Init::KaimingNormal, |i: f64, _: f64| (2.0 / i).sqrt(), true)]
fn every_scheme_has_its_spread(#[case] init: Init, #[case] std: fn(f64, f64) -> f64, #[case] normal: bool) {
    let model = HookedTransformer::init_with(config(), init, 3).unwrap();
    for (name, matrix, [fan_in, fan_out]) in matrices(&model) {
        let unit = matrix.to_kind(Kind::Double) / std(fan_in, fan_out);
        let n = unit.numel() as f64;
        let figure = |t: Tensor| t.mean(Kind::Double).double_value(&[]);
        let within = |what: &str, found: f64, expected: f64, tolerance: f64| {
            let near = abs_diff_eq!(found, expected, epsilon = tolerance);
            assert!(near, "{init:?} {name}: {what} is {found}, not {expected} ± {tolerance}");
        };
        // Five standard errors of each figure.
        within("mean", figure(unit.shallow_clone()), 0.0, 5.0 / n.sqrt());
        within("variance", figure(unit.square()), 1.0, 5.0 * (2.0 / n).sqrt());
        let share = figure(unit.abs().gt(1.5).to_kind(Kind::Double));
        let largest = unit.abs().max().double_value(&[]);
        if normal {
            within("share beyond 1.5", share, 0.133_614, 5.0 * (0.1336 * 0.8664 / n).sqrt());
            assert!((3.0..6.0).contains(&largest), "{init:?} {name}: {largest}");
        } else {
            let bound = 3f64.sqrt();
            within("share beyond 1.5", share, 1.0 - 1.5 / bound, 5.0 * (0.134 * 0.866 / n).sqrt());
            assert!(largest <= bound && largest > 0.99 * bound, "{init:?} {name}: {largest}");
        }
    }
    for (name, tensor) in model.parameters() {
        let zero =
            name.ends_with(".b") || name.ends_with("bias") || name.ends_with("b_U") || name.ends_with("b_product");
        if zero || name.ends_with(".w") {
            let expected = if zero { 0.0 } else { 1.0 };
            assert_eq!((tensor - expected).abs().max().double_value(&[]), 0.0, "{name}");
        }
    }
}

#[test]
fn the_default_spread_is_transformer_lens_default() {
    let model = HookedTransformer::init(config(), 0).unwrap();
    let std = model.w_in(..).unwrap().std(false).double_value(&[]);
    assert_relative_eq!(std, 0.8 / 96f64.sqrt(), max_relative = 0.03);
}

#[test]
fn a_seed_says_all() {
    let of = |init, seed| HookedTransformer::init_with(config(), init, seed).unwrap().parameters();
    for init in [Init::default(), Init::XavierUniform] {
        let (first, same, other) = (of(init, 7), of(init, 7), of(init, 8));
        for (((name, first), (_, same)), (_, other)) in first.iter().zip(&same).zip(&other) {
            assert_eq!(first, same, "{name}");
            if first.std(false).double_value(&[]) > 0.0 {
                assert_ne!(first, other, "{name}");
            }
        }
    }
}

/// A matrix's numbers are of its name alone, and no two matrices' are related.
#[test]
fn matrices_have_numbers_of_their_own() {
    let short = HookedTransformer::init(config(), 0).unwrap();
    let long = HookedTransformer::init(Config { n_layers: 3, ..config() }, 0).unwrap();
    assert_eq!(short.w_q(1).unwrap(), long.w_q(1).unwrap());
    let flat = |t: Tensor| {
        let t = t.reshape(-1).to_kind(Kind::Double);
        &t / t.norm()
    };
    let several = [short.w_q(0), short.w_q(1), long.w_q(2), HookedTransformer::init(config(), 1).unwrap().w_q(0)];
    let several: Vec<Tensor> = several.into_iter().map(|w| flat(w.unwrap())).collect();
    for (i, a) in several.iter().enumerate() {
        for b in &several[i + 1..] {
            let correlation = a.dot(b).double_value(&[]);
            assert!(correlation.abs() < 5.0 / (a.numel() as f64).sqrt(), "{correlation}");
        }
    }
}

#[test]
fn libtorch_s_generator_is_left_alone() {
    // Other tests draw from the same generator.
    if child::argument().is_none() {
        child::run("init::libtorch_s_generator_is_left_alone", "", |_| ()).unwrap();
        return;
    }
    tch::manual_seed(1);
    let expected = Tensor::randn([4], tch::kind::FLOAT_CPU);
    tch::manual_seed(1);
    HookedTransformer::init(config(), 2).unwrap();
    assert_eq!(Tensor::randn([4], tch::kind::FLOAT_CPU), expected);
}

#[rstest]
#[case::norms_on_both_sides(with(|config| config.norms.position = NormPosition::BeforeAndAfter), "blocks.1.ln2_post.w")]
#[case::norms_after(with(|config| config.norms = NormConfig { position: NormPosition::After, ..NormConfig::new(Normalization::RMS) }), "blocks.1.ln2.w")]
#[case::norm_of_the_embedding(with(|config| config.norms.after_embedding = true), "embed.ln.b")]
#[case::norms_of_heads(with(|config| config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS))), "blocks.0.attn.k_norm.w")]
#[case::norms_of_all_heads(with(|config| config.attention.qk_norm = Some(QkNorm::AllHeads(Normalization::RMS))), "blocks.0.attn.q_norm.w")]
#[case::sinks(with(|config| config.attention.sinks = true), "blocks.0.attn.sinks")]
#[case::solu(with(|config| config.mlp = Some(MlpConfig::plain(200, Activation::SoluLn))), "blocks.1.mlp.ln.w")]
#[case::attention_only(Config { mlp: None, norms: NormConfig::new(Normalization::None), ..config() }, "blocks.1.attn.o.bias")]
#[case::tied(Config { tie_word_embeddings: true, d_vocab_out: 300, ..config() }, "embed.W_E")]
fn every_shape_gets_all_its_weights(#[case] config: Config, #[case] name: &str) {
    let d_vocab_out = config.d_vocab_out as i64;
    let model = HookedTransformer::init(config, 0).unwrap();
    assert!(model.parameters().iter().any(|(found, _)| found == name), "{name}");
    let logits = model.forward([1, 2, 3]).unwrap();
    assert_eq!(logits.size(), [1, 3, d_vocab_out]);
    assert!(logits.isfinite().all().int64_value(&[]) == 1);
}

#[test]
fn what_cannot_be_made_is_an_error() {
    let says = |config: Config| HookedTransformer::init(config, 0).unwrap_err().to_string();
    let experts = MlpConfig::experts(8, Activation::Silu, Experts::new(4, 2, Routing::softmax()));
    assert!(says(Config { mlp: Some(experts), ..config() }).contains("not made of mixtures of experts"));
    assert!(
        says(Config { mlp: Some(MlpConfig::plain(8, Activation::Xielu)), ..config() }).contains("`act_fn` is xielu")
    );
    for std in [f64::NAN, f64::INFINITY, -1.0] {
        let error = HookedTransformer::init_with(config(), Init::Gpt2 { std: Some(std) }, 0).unwrap_err().to_string();
        assert!(error.contains(&format!("`std` is {std}")), "{error}");
    }
    assert!(says(Config { d_model: 0, ..config() }).contains("`d_model` is 0"));
}

/// 4 TB, which no host has: where the system refuses such memory, that is an error and not the end of the process.
#[test]
#[cfg(target_os = "linux")]
fn a_model_too_large_for_memory_is_an_error() {
    let overcommits = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|mode| mode.trim() == "1");
    if overcommits {
        return println!("not tried: this system gives any memory that is asked for");
    }
    let config = Config { mlp: None, ..Config::new(1, 1 << 12, 1, 1 << 28, 8) };
    let error = HookedTransformer::init(config, 0).unwrap_err().to_string();
    assert!(error.contains("memory"), "{error}");
}

/// Fresh weights are part of what a study can be repeated with: they are the same in every version.
#[test]
fn fresh_weights_stay_what_they_were() {
    let model = HookedTransformer::init_with(config(), Init::XavierUniform, 7).unwrap();
    let first = |tensor: Tensor| tensor.reshape(-1).double_value(&[0]);
    let normal = HookedTransformer::init(config(), 7).unwrap();
    let found = [
        first(model.w_e().unwrap()),
        first(model.w_q(1).unwrap()),
        first(model.w_v_grouped(1).unwrap()),
        first(model.w_o(0).unwrap()),
        first(model.w_gate(1).unwrap()),
        first(model.w_u().unwrap()),
        first(normal.w_out(0).unwrap()),
        normal.w_e().unwrap().abs().sum(Kind::Double).double_value(&[]),
    ];
    let expected = [
        0.0810772180557251,
        -0.09529755264520645,
        0.17596124112606049,
        0.020476998761296272,
        0.09010648727416992,
        0.13152752816677094,
        -0.1155751645565033,
        1879.300098740308,
    ];
    assert_eq!(found, expected);
}

/// A norm after a sublayer is there whether or not it has a gain.
#[test]
fn norms_after_sublayers_need_no_gain() {
    for kind in [Normalization::LN, Normalization::LNPre, Normalization::RMS, Normalization::RMSPre] {
        let mut config = Config::new(2, 12, 2, 16, 12);
        config.norms.kind = kind;
        config.norms.position = NormPosition::BeforeAndAfter;
        let model = HookedTransformer::init(config, 1).unwrap();
        let (_, cache) = model.run_with_cache([1i64, 2, 3]).unwrap();
        for name in
            ["ln1_post.hook_scale", "ln1_post.hook_normalized", "ln2_post.hook_scale", "ln2_post.hook_normalized"]
        {
            assert!(cache.contains(format!("blocks.1.{name}").as_str()), "{kind:?}: {name}");
        }
        let size = cache["blocks.1.hook_mlp_out"].square().mean(tch::Kind::Double).double_value(&[]);
        assert!((size - 1.0).abs() < 1e-2, "{kind:?}: {size}");
    }
}
