//! Sequences whose masks or scores are made in parts: the same figures as where they are made whole.

use tch::{Kind, Tensor};
use tch_lens::config::{Activation, AttentionDir, MlpConfig, PerLayer, Positions, Reach};
use tch_lens::{Config, HookedTransformer, Init, LoadOptions, PaddingSide, ReturnType, RunOptions, Tokens};

const N_CTX: usize = 4200;

fn model(change: impl FnOnce(&mut Config)) -> HookedTransformer {
    let mut config = Config { mlp: Some(MlpConfig::plain(16, Activation::GeluNew)), ..Config::new(2, 8, 2, 50, N_CTX) };
    change(&mut config);
    // Of a wide spread, so that patterns are no averages.
    HookedTransformer::init_with(config, Init::Gpt2 { std: Some(0.3) }, 0).unwrap()
}

/// The stream after the last block, without and with the scores looked at, which then are made whole.
#[track_caller]
fn in_parts_and_whole(what: &str, model: &HookedTransformer, tokens: &Tokens) {
    let last = |names: &[&str]| {
        let run = RunOptions::new().cache(names.to_vec()).return_type(ReturnType::None);
        model.run(tokens, run).unwrap().cache["blocks.1.hook_resid_post"].shallow_clone()
    };
    let (parts, whole) = (last(&["resid_post"]), last(&["resid_post", "pattern"]));
    assert!(whole.abs().max().double_value(&[]) > 0.1, "{what}: there is something to compare");
    let diff = (parts - whole).abs().max().double_value(&[]);
    assert!(diff < 1e-4, "{what}: differs by {diff:.2e}");
}

fn tokens(batch: i64, pos: i64) -> Tokens {
    tch::manual_seed(1);
    Tokens::new(&Tensor::randint(50, [batch, pos], (Kind::Int64, tch::Device::Cpu))).unwrap()
}

fn local(config: &mut Config) {
    config.attention.reach = PerLayer::Each(vec![Reach::Window(700), Reach::Global]);
}

#[test]
fn local_windows() {
    in_parts_and_whole("window", &model(local), &tokens(1, 4200));
    let both_ways = |config: &mut Config| {
        local(config);
        config.attention.direction = AttentionDir::Bidirectional;
    };
    in_parts_and_whole("window both ways", &model(both_ways), &tokens(1, 4200));
}

#[test]
fn alibi() {
    let alibi = |config: &mut Config| config.positions = Positions::alibi(8.0);
    in_parts_and_whole("ALiBi", &model(alibi), &tokens(1, 3000));
}

#[test]
fn soft_capped_scores() {
    let capped = |config: &mut Config| config.attention.scores_soft_cap = Some(2.0);
    in_parts_and_whole("soft cap", &model(capped), &tokens(1, 3000));
    let grouped = |config: &mut Config| {
        config.attention.scores_soft_cap = Some(2.0);
        config.n_key_value_heads = 1;
    };
    in_parts_and_whole("soft cap, grouped", &model(grouped), &tokens(1, 3000));
}

#[test]
fn sinks() {
    let without = model(|_| {});
    let mut weights = without.state_dict().unwrap();
    weights.extend((0..2).map(|l| (format!("blocks.{l}.attn.sinks"), Tensor::from_slice(&[0.5f32, 3.0]))));
    let mut config = without.config().clone();
    config.attention.sinks = true;
    let model = LoadOptions::new().no_processing().state_dict(config, weights).unwrap();
    in_parts_and_whole("sinks", &model, &tokens(1, 3000));
}

#[test]
fn padding() {
    for side in [PaddingSide::Left, PaddingSide::Right] {
        let rows: Vec<Vec<i64>> = [3000, 40].map(|n| (0..n).map(|i| i * 7 % 50).collect()).to_vec();
        let tokens = Tokens::padded(&rows, 0, side).unwrap();
        in_parts_and_whole("padded", &model(|_| {}), &tokens);
        in_parts_and_whole("padded window", &model(local), &tokens);
    }
}
