//! A batch of texts of different lengths gives each row what it gets alone, on whichever side it is padded.

use crate::common::{families, max_diff, raw, tokenizer, Fixture, Tally};
use approx::assert_abs_diff_eq;
use rstest::rstest;
use tch::{Device, IndexOp, Kind, Tensor};
use tch_lens::config::{Activation, AttentionConfig, MlpConfig, PerLayer, Positions, Reach};
use tch_lens::{Bos, Config, HookFilter, HookedTransformer, Init, Load, Output, PaddingSide, Run, Tokens};

const TOLERANCE: f64 = 1e-4;
/// In fp64 nothing but a mistake is larger; in fp32 the activations of a model without norms are too large to tell.
const FP64_TOLERANCE: f64 = 1e-10;

/// Rows of 7, 3, 5 and 1 tokens, of vocabularies as small as 16.
fn rows() -> Vec<Vec<i64>> {
    vec![vec![5, 14, 3, 10, 9, 6, 11], vec![7, 4, 12], vec![3, 3, 8, 13, 15], vec![9]]
}

/// Where a row's own tokens stand.
fn real(row: &[i64], longest: usize, side: PaddingSide) -> (i64, i64) {
    let (len, longest) = (row.len() as i64, longest as i64);
    match side {
        PaddingSide::Right => (0, len),
        PaddingSide::Left => (longest - len, len),
    }
}

fn rows_are_as_if_alone(what: &str, model: &HookedTransformer, side: PaddingSide, tally: &mut Tally) {
    let rows = rows();
    let longest = 7;
    let batch = Tokens::padded(&rows, 0, side).unwrap();
    let run = || Run::new().padding_side(side);
    let fused = model.run(&batch, run()).unwrap().logits.unwrap();
    let formed = model.run(&batch, run().cache(HookFilter::All)).unwrap(); // scores and patterns are formed
    for (i, row) in rows.iter().enumerate() {
        let i = i as i64;
        let (start, len) = real(row, longest, side);
        let (alone, cache) = model.run_with_cache(row.clone()).unwrap();
        tally.compare(&format!("{what}, row {i}"), &fused.i(i).narrow(0, start, len), &alone.i(0), FP64_TOLERANCE);
        let logits = formed.logits.as_ref().unwrap();
        tally.compare(
            &format!("{what}, row {i}, formed"),
            &logits.i(i).narrow(0, start, len),
            &alone.i(0),
            FP64_TOLERANCE,
        );
        for point in cache.keys() {
            let Some(position) = point.axes().position else { continue }; // experts' rows: of the whole batch
            let name = point.to_string();
            let mut ours = formed.cache[point].i(i).narrow(position as i64 - 1, start, len);
            if name.ends_with("hook_pattern") || name.ends_with("hook_attn_scores") {
                ours = ours.narrow(-1, start, len);
            }
            tally.compare(&format!("{what}, row {i}, {name}"), &ours, &cache[point].i(0), FP64_TOLERANCE);
        }
    }
    for (point, tensor) in &formed.cache {
        assert!(!tensor.isnan().any().int64_value(&[]).eq(&1), "{what}: NaN at {point}");
    }
    // Queries that are padding see nothing.
    let hidden = batch.mask.as_ref().unwrap().logical_not().unsqueeze(1).unsqueeze(-1); // [batch, 1, query, 1]
    for layer in 0..model.config().n_layers {
        let pattern = &formed.cache[("pattern", layer as i64)];
        let of_padding = pattern.where_self(&hidden, &pattern.zeros_like());
        assert_eq!(of_padding.abs().max().double_value(&[]), 0.0, "{what}: padding looks at something");
    }
}

fn in_fp64() -> Load {
    Load::new().no_processing().kind(Kind::Double)
}

#[rstest]
#[case::left(PaddingSide::Left)]
#[case::right(PaddingSide::Right)]
fn each_row_gets_what_it_gets_alone(#[case] side: PaddingSide) {
    let mut tally = Tally::default();
    for family in families() {
        let model = in_fp64().open(Fixture::folder(&family)).unwrap();
        rows_are_as_if_alone(&family, &model, side, &mut tally);
    }
    let small = Config { mlp: Some(MlpConfig::plain(32, Activation::GeluNew)), ..Config::new(2, 24, 3, 16, 16) };
    let alibi = Config { positions: Positions::Alibi { bias_max: 8.0 }, ..small.clone() };
    let reach = PerLayer::All(Reach::Window(2));
    let local = Config { attention: AttentionConfig { reach, ..AttentionConfig::default() }, ..small };
    for (what, config) in [("alibi", alibi), ("local", local)] {
        let weights = HookedTransformer::init_with(config.clone(), Init::Gpt2 { std: Some(0.3) }, 0)
            .unwrap()
            .state_dict()
            .unwrap();
        let model = in_fp64().state_dict(config, weights).unwrap();
        rows_are_as_if_alone(what, &model, side, &mut tally);
    }
    tally.finish(&format!("{side:?}"));
}

/// Texts pad themselves, on the side asked for.
#[test]
fn texts_of_different_lengths() {
    let model = raw("gpt2").with_tokenizer(tokenizer());
    let texts = ["the road ends", "road"];
    for side in [PaddingSide::Left, PaddingSide::Right] {
        let tokens = model.to_tokens_with(texts, Bos::Default, side).unwrap();
        let mask = tokens.mask.as_ref().unwrap();
        let expected = match side {
            PaddingSide::Left => [false, false, true, true],
            PaddingSide::Right => [true, true, false, false],
        };
        assert_eq!(Vec::<bool>::try_from(mask.i(1)).unwrap(), expected);
        let logits = model.run(texts, Run::new().padding_side(side)).unwrap().logits.unwrap();
        for (i, text) in texts.iter().enumerate() {
            let alone = model.forward(*text).unwrap();
            let len = alone.size()[1];
            let start = if side == PaddingSide::Left { 4 - len } else { 0 };
            let diff = max_diff(text, &logits.i(i as i64).narrow(0, start, len), &alone.i(0));
            assert!(diff <= TOLERANCE, "{text}: {diff:.3e}");
        }
    }
    // As many tokens need no padding, and no mask.
    assert!(model.to_tokens(["the road", "road ends"]).unwrap().mask.is_none());
}

#[test]
fn a_row_of_nothing_but_padding_is_zero_and_never_nan() {
    for family in families() {
        let model = raw(&family);
        let ids = Tensor::from_slice2(&[[5i64, 9, 3], [1, 1, 1]]);
        let mask = Tensor::from_slice2(&[[true, true, true], [false, false, false]]);
        let tokens = Tokens { ids, mask: Some(mask) };
        let outcome = model.run(&tokens, Run::new().cache(HookFilter::All)).unwrap();
        for (point, tensor) in &outcome.cache {
            assert_eq!(tensor.isnan().any().int64_value(&[]), 0, "{family}: NaN at {point}");
        }
        for layer in 0..model.config().n_layers as i64 {
            for site in ["pattern", "z"] {
                assert_eq!(outcome.cache[(site, layer)].i(1).abs().max().double_value(&[]), 0.0, "{family}: {site}");
            }
        }
        for logits in [outcome.logits.unwrap(), model.forward(&tokens).unwrap()] {
            assert_eq!(logits.isfinite().all().int64_value(&[]), 1, "{family}");
            let alone = model.forward([5, 9, 3]).unwrap();
            let diff = max_diff(&family, &logits.i(0), &alone.i(0));
            assert!(diff <= TOLERANCE, "{family}: {diff:.3e}");
        }
    }
}

#[test]
fn the_loss_is_that_of_the_real_tokens() {
    let model = raw("llama_gqa_tied");
    let (mut sum, mut count) = (0.0, 0.0);
    for row in rows().into_iter().filter(|row| row.len() > 1) {
        let n = row.len() as f64 - 1.0;
        sum += model.loss(row).unwrap() * n;
        count += n;
    }
    for side in [PaddingSide::Left, PaddingSide::Right] {
        let batch = Tokens::padded(&rows(), 0, side).unwrap();
        let loss = model.loss(&batch).unwrap();
        assert_abs_diff_eq!(loss, sum / count, epsilon = TOLERANCE);
        let per_token = model.run(&batch, Run::new().output(Output::LossPerToken)).unwrap().loss.unwrap();
        assert_eq!(per_token.size(), [4, 6]);
        let counted = per_token.ne(0.0).sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
        assert_eq!(Vec::<i64>::try_from(counted).unwrap(), [6, 2, 4, 0]);
        assert_abs_diff_eq!(per_token.sum(Kind::Double).double_value(&[]), sum, epsilon = 1e-3);
    }
}

/// In half precision as well: −∞ and sums that overflow are where padding usually goes wrong.
#[rstest]
#[case(Kind::BFloat16)]
#[case(Kind::Half)]
fn padding_in_low_precision(#[case] kind: Kind) {
    for family in ["gpt2", "llama_gqa_tied"] {
        let load = Load::new().no_processing().kind(kind).device(Device::Cpu);
        let model = load.open(crate::common::Fixture::folder(family)).unwrap();
        for side in [PaddingSide::Left, PaddingSide::Right] {
            let batch = Tokens::padded(&rows(), 0, side).unwrap();
            let logits = model.forward(&batch).unwrap();
            assert_eq!(logits.isfinite().all().int64_value(&[]), 1, "{family}, {kind:?}");
            for (i, row) in rows().into_iter().enumerate() {
                let (start, len) = real(&row, 7, side);
                let alone = model.forward(row).unwrap();
                let diff = max_diff(family, &logits.i(i as i64).narrow(0, start, len), &alone.i(0));
                let bound = if kind == Kind::Half { 0.1 } else { 0.5 };
                assert!(diff <= bound, "{family}, {kind:?}, row {i}: {diff:.3e}");
            }
        }
    }
}
