//! A batch of texts of different lengths gives each row what it gets alone, on whichever side it is padded.

use crate::common::models::in_fp64;
use crate::common::{families, max_diff, raw, tokenizer, Tally};
use approx::assert_abs_diff_eq;
use rstest::rstest;
use tch::{Device, IndexOp, Kind, Tensor};
use tch_lens::{HookFilter, HookedTransformer, LoadOptions, PaddingSide, ReturnType, RunOptions, TokenOptions, Tokens};

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

/// Rows whose tokens stand in these columns of seven, with a token that is looked at by mistake elsewhere.
fn placed(rows: &[Vec<i64>], columns: &[Vec<i64>]) -> Tokens {
    let (mut ids, mut mask) = (Vec::new(), Vec::new());
    for (row, columns) in rows.iter().zip(columns) {
        let place = |column: i64| columns.iter().position(|c| *c == column);
        ids.extend((0..7).map(|column| place(column).map_or(2, |i| row[i])));
        mask.extend((0..7).map(|column| place(column).is_some()));
    }
    let shape = [rows.len() as i64, 7];
    Tokens { ids: Tensor::from_slice(&ids).view(shape), mask: Some(Tensor::from_slice(&mask).view(shape)), types: None }
}

fn rows_are_as_if_alone(what: &str, model: &HookedTransformer, columns: &[Vec<i64>], tally: &mut Tally) {
    let rows = rows();
    let batch = placed(&rows, columns);
    let fused = model.run(&batch, RunOptions::new()).unwrap().logits.unwrap();
    let formed = model.run(&batch, RunOptions::new().cache(HookFilter::All)).unwrap(); // scores and patterns are formed
    for (i, (row, columns)) in rows.iter().zip(columns).enumerate() {
        let i = i as i64;
        let columns = Tensor::from_slice(columns);
        let of_row = |x: &Tensor, axis: i64| x.i(i).index_select(axis - 1, &columns);
        let (alone, cache) = model.run_with_cache(row.clone()).unwrap();
        tally.compare(&format!("{what}, row {i}"), &of_row(&fused, 1), &alone.i(0), FP64_TOLERANCE);
        let logits = formed.logits.as_ref().unwrap();
        tally.compare(&format!("{what}, row {i}, formed"), &of_row(logits, 1), &alone.i(0), FP64_TOLERANCE);
        for point in cache.keys() {
            let Some(position) = point.axes().position else { continue }; // experts' rows: of the whole batch
            let name = point.to_string();
            let mut ours = of_row(&formed.cache[point], position as i64);
            if name.ends_with("hook_pattern") || name.ends_with("hook_attn_scores") {
                ours = ours.index_select(-1, &columns);
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

/// Padding may be anywhere: a row's positions count its real tokens, and ALiBi and windows measure between those.
#[rstest]
#[case::left(["1111111", "0000111", "0011111", "0000001"])]
#[case::right(["1111111", "1110000", "1111100", "1000000"])]
#[case::holes(["1111111", "1011000", "1100111", "0001000"])]
#[case::wide_holes(["1111111", "0100011", "1011101", "0100000"])]
fn each_row_gets_what_it_gets_alone(#[case] masks: [&str; 4]) {
    let columns = masks.map(|mask| (0..7).filter(|i| mask.as_bytes()[*i as usize] == b'1').collect::<Vec<i64>>());
    let mut tally = Tally::default();
    for (what, model) in in_fp64() {
        rows_are_as_if_alone(&what, &model, &columns, &mut tally);
    }
    tally.finish("padded rows");
}

/// Texts pad themselves, on the side asked for.
#[test]
fn texts_of_different_lengths() {
    let model = raw("gpt2").with_tokenizer(tokenizer());
    let texts = ["the road ends", "road"];
    for side in [PaddingSide::Left, PaddingSide::Right] {
        let tokens = model.to_tokens_with(texts, TokenOptions::new().padding_side(side)).unwrap();
        let mask = tokens.mask.as_ref().unwrap();
        let expected = match side {
            PaddingSide::Left => [false, false, true, true],
            PaddingSide::Right => [true, true, false, false],
        };
        assert_eq!(Vec::<bool>::try_from(mask.i(1)).unwrap(), expected);
        let logits = model.run(texts, RunOptions::new().padding_side(side)).unwrap().logits.unwrap();
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
        let tokens = Tokens { ids, mask: Some(mask), types: None };
        let outcome = model.run(&tokens, RunOptions::new().cache(HookFilter::All)).unwrap();
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

#[rstest]
#[case::left(["1111111", "0000111", "0011111", "0000001"], [6, 2, 4, 0])]
#[case::right(["1111111", "1110000", "1111100", "1000000"], [6, 2, 4, 0])]
#[case::holes(["1111111", "1010010", "0111101", "0001000"], [6, 2, 4, 0])]
fn the_loss_is_that_of_the_real_tokens(#[case] masks: [&str; 4], #[case] predicted: [i64; 4]) {
    let model = raw("llama_gqa_tied");
    let (mut sum, mut count) = (0.0, 0.0);
    let rows: Vec<_> = rows().into_iter().zip(predicted).map(|(row, n)| row[..n as usize + 1].to_vec()).collect();
    for row in rows.iter().filter(|row| row.len() > 1) {
        let n = row.len() as f64 - 1.0;
        sum += model.loss(row).unwrap() * n;
        count += n;
    }
    let columns = masks.map(|mask| (0..7).filter(|i| mask.as_bytes()[*i as usize] == b'1').collect::<Vec<i64>>());
    let batch = placed(&rows, &columns);
    let loss = model.loss(&batch).unwrap();
    assert_abs_diff_eq!(loss, sum / count, epsilon = TOLERANCE);
    let per_token = model.run(&batch, RunOptions::new().return_type(ReturnType::LossPerToken)).unwrap().loss.unwrap();
    assert_eq!(per_token.size(), [4, 6]);
    let counted = per_token.ne(0.0).sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
    assert_eq!(Vec::<i64>::try_from(counted).unwrap(), predicted);
    assert_abs_diff_eq!(per_token.sum(Kind::Double).double_value(&[]), sum, epsilon = 1e-3);
}

/// In half precision as well: −∞ and sums that overflow are where padding usually goes wrong.
#[rstest]
#[case(Kind::BFloat16)]
#[case(Kind::Half)]
fn padding_in_low_precision(#[case] kind: Kind) {
    for family in ["gpt2", "llama_gqa_tied"] {
        let load = LoadOptions::new().no_processing().kind(kind).device(Device::Cpu);
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
