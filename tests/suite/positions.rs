//! Which positions are meant, what a cache holds of them, and that an analysis reads what it names or is an error.

use crate::common::{families, max_diff, raw, Fixture, Tally};
use tch::{IndexOp, Tensor};
use tch_lens::{
    hook, ActivationCache, DecomposeOptions, FullOptions, HookFilter, HookedTransformer, NeuronOptions, PaddingSide,
    Positions, RunOptions, Slice, Tokens,
};

const TOLERANCE: f64 = 1e-5;

fn fixture(family: &str) -> (HookedTransformer, Tensor) {
    (raw(family), Fixture::open(family).want("tokens"))
}

fn cached(model: &HookedTransformer, tokens: &Tensor, run: RunOptions<'_>) -> ActivationCache {
    model.run(tokens, run.cache(HookFilter::All)).unwrap().cache
}

/// The rows of 7, 3 and 5 tokens.
fn ragged(side: PaddingSide) -> Tokens {
    Tokens::padded(&[vec![5, 14, 3, 10, 9, 6, 11], vec![7, 4, 12], vec![3, 8, 13, 15, 2]], 0, side).unwrap()
}

#[test]
fn logits_at_one_position_are_never_spread_over_all() {
    let (model, tokens) = fixture("gpt2");
    let cache = cached(&model, &tokens, RunOptions::new().logits_at(-1));
    let whole = cached(&model, &tokens, RunOptions::new());
    assert_eq!(cache.positions().to_string(), "0 to 6");
    assert_eq!(cache.positions_of("ln_final.hook_scale").unwrap().to_string(), "6");
    let error = cache.logit_attrs(FullOptions::new(), 5).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`ln_final.hook_scale` has no position 0, only 6, but all positions that the run kept are asked for: narrow with \
         pos(…), or leave out `logits_at`"
    );
    let error = cache.logit_attrs(FullOptions::new().pos(2), 5).unwrap_err();
    assert!(error.to_string().starts_with("`ln_final.hook_scale` has no position 2, only 6 in this cache"), "{error}");
    let ours = cache.logit_attrs(FullOptions::new().pos(-1), 5).unwrap();
    let theirs = whole.logit_attrs(FullOptions::new().pos(-1), 5).unwrap();
    assert!(max_diff("the last position", &ours.tensor(), &theirs.tensor()) < TOLERANCE);
    assert!(ours.residual_error().unwrap() < 1e-4);
}

#[test]
fn positions_kept_and_logits_formed_elsewhere_are_told_apart() {
    let (model, tokens) = fixture("gpt2");
    let apart = cached(&model, &tokens, RunOptions::new().pos(0..3).logits_at(5..7));
    let error = apart.get("ln_final.hook_scale").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the cache has no `ln_final.hook_scale`: the run kept positions 0 to 2 and formed logits at 5 to 6, which have none in \
         common for every row"
    );
    assert_eq!(apart["blocks.0.hook_resid_pre"].size()[1], 3);
    let some = cached(&model, &tokens, RunOptions::new().pos([6, 2, 4]).logits_at(4..));
    assert_eq!(some.positions_of("unembed.hook_out").unwrap().of_row(0), [6, 4]);
    let whole = cached(&model, &tokens, RunOptions::new());
    let expected = whole["unembed.hook_out"].index_select(1, &Tensor::from_slice(&[6i64, 4]));
    assert!(max_diff("logits", &some["unembed.hook_out"], &expected) < TOLERANCE);
}

/// Rows of a mixture are right for any order of positions and of the batch.
#[test]
fn analyses_of_reordered_runs_are_those_of_the_whole_run() {
    let mut tally = Tally::default();
    for family in families() {
        let (model, tokens) = fixture(&family);
        let whole = cached(&model, &tokens, RunOptions::new());
        let theirs = whole.get_full_resid_decomposition(FullOptions::new()).unwrap().tensor(); // [row, batch, pos, d_model]
        let kept: [Positions; 4] =
            [[4, 3, 2, 1, 0].into(), [2, 2, 5].into(), (-3).into(), Positions::PerRow(vec![3, -1])];
        for positions in kept {
            let cache = cached(&model, &tokens, RunOptions::new().pos(positions.clone()));
            let both = cache.clone().apply_slice_to_batch_dim([1, 0]).unwrap();
            let second = cache.clone().apply_slice_to_batch_dim(1).unwrap();
            let what = format!("{family}, {positions:?}");
            let ours = cache.get_full_resid_decomposition(FullOptions::new()).unwrap().tensor(); // [row, batch, pos, d_model]
            let at = |row: i64| Tensor::from_slice(&cache.positions().of_row(row as usize));
            let swapped = both.get_full_resid_decomposition(FullOptions::new()).unwrap().tensor();
            for row in 0..2 {
                let expected = theirs.select(1, row).index_select(1, &at(row));
                tally.compare(&what, &ours.select(1, row), &expected, 1e-4);
                tally.compare(&format!("{what}, swapped"), &swapped.select(1, 1 - row), &expected, 1e-4);
            }
            let one = second.get_full_resid_decomposition(FullOptions::new()).unwrap().tensor();
            tally.compare(&format!("{what}, one row"), &one, &theirs.select(1, 1).index_select(1, &at(1)), 1e-4);
        }
        if !model.config().attn_only() {
            let some = NeuronOptions::new().pos([6, 0, 6]).batch([1, 0, 1]);
            let ours = whole.stack_neuron_results(some).unwrap().tensor();
            let all = whole.stack_neuron_results(NeuronOptions::new()).unwrap().tensor();
            let (rows, columns) = (Tensor::from_slice(&[1i64, 0, 1]), Tensor::from_slice(&[6i64, 0, 6]));
            tally.compare(&family, &ours, &all.index_select(1, &rows).index_select(2, &columns), 1e-5);
        }
    }
    tally.finish("reordered runs");
}

#[test]
fn the_last_token_of_each_row() {
    for family in ["gpt2", "llama_gqa_tied", "mixtral"] {
        let model = raw(family);
        for side in [PaddingSide::Left, PaddingSide::Right] {
            let tokens = ragged(side);
            let last: Vec<i64> = if side == PaddingSide::Left { vec![6, 6, 6] } else { vec![6, 2, 4] };
            let whole = model.run(&tokens, RunOptions::new().cache(HookFilter::All)).unwrap().cache;
            let run =
                || RunOptions::new().cache(HookFilter::All).pos(Positions::LastToken).logits_at(Positions::LastToken);
            let outcome = model.run(&tokens, run()).unwrap();
            let ours = outcome.cache.logit_attrs(FullOptions::new(), 5).unwrap();
            let also = whole.logit_attrs(FullOptions::new().pos(Positions::LastToken), 5).unwrap();
            let per_row = whole.logit_attrs(FullOptions::new().pos(Positions::PerRow(last.clone())), 5).unwrap();
            assert_eq!((ours.tensor().dim(), also.tensor().dim()), (3, 2)); // in an analysis the axis goes
            let all = whole.logit_attrs(FullOptions::new(), 5).unwrap().tensor(); // [row, batch, pos]
            for (row, position) in last.iter().enumerate() {
                let row = row as i64;
                assert_eq!(outcome.cache.positions().of_row(row as usize), [*position]);
                let expected = all.i((.., row, *position));
                let logits = outcome.logits.as_ref().unwrap();
                assert!(max_diff("kept", &ours.tensor().i((.., row, 0)), &expected) < 1e-4);
                assert!(max_diff("chosen", &also.tensor().i((.., row)), &expected) < 1e-4);
                assert!(max_diff("per row", &per_row.tensor().i((.., row)), &expected) < 1e-4);
                let formed = &whole["unembed.hook_out"].i((row, *position));
                assert!(max_diff("logits", &logits.i((row, 0)), formed) < 1e-4);
            }
        }
    }
}

#[test]
fn padding_is_read_only_where_it_is_meant() {
    let model = raw("gpt2");
    let tokens = ragged(PaddingSide::Right);
    let said = "position 6 of batch row 1 is padding: choose `Positions::LastToken` for each row's last token, or add \
                `.with_padding()` to read it all the same";
    let run = |positions: Positions| model.run(&tokens, RunOptions::new().cache(HookFilter::All).pos(positions));
    assert_eq!(run((-1).into()).unwrap_err().to_string(), said);
    let at = |positions: Positions| {
        model.run(&tokens, RunOptions::new().logits_at(positions)).map(|run| run.logits.unwrap())
    };
    assert_eq!(at((-1).into()).unwrap_err().to_string(), said);
    assert_eq!(at(Positions::from(-1).with_padding()).unwrap().size(), [3, 1, 96]);
    let cache = run(Positions::default()).unwrap().cache;
    let error = cache.decompose_resid(DecomposeOptions::new().pos(-1)).unwrap_err();
    assert_eq!(error.to_string(), said);
    let read = |options: DecomposeOptions| cache.decompose_resid(options).map(|stack| stack.tensor().size());
    assert_eq!(read(DecomposeOptions::new().pos(Positions::from(-1).with_padding())).unwrap()[1..], [3, 24]);
    assert_eq!(read(DecomposeOptions::new()).unwrap()[1..], [3, 7, 24]); // all, padding included
    assert_eq!(read(DecomposeOptions::new().pos(0..3)).unwrap()[1..], [3, 3, 24]);
    assert_eq!(read(DecomposeOptions::new().pos(-1).batch(0)).unwrap()[1..], [24]); // this row has no padding
    assert!(read(DecomposeOptions::new().pos(4).batch([0, 1])).unwrap_err().to_string().contains("batch row 1"));
    // Slicing the batch slices the mask with it.
    let first = cache.clone().apply_slice_to_batch_dim([0]).unwrap();
    assert!(first.decompose_resid(DecomposeOptions::new().pos(-1)).is_ok());
    let third = cache.clone().apply_slice_to_batch_dim(2).unwrap();
    assert!(third
        .decompose_resid(DecomposeOptions::new().pos(5))
        .unwrap_err()
        .to_string()
        .contains("position 5 of batch row 0"));
    assert!(third.decompose_resid(DecomposeOptions::new().pos(4)).is_ok());
}

/// −1 is the last column of the input wherever it is said, and not the last that is held.
#[test]
fn minus_one_is_the_last_column_of_the_input() {
    let (model, tokens) = fixture("gpt2");
    let cache = cached(&model, &tokens, RunOptions::new().pos(0..3));
    let error = cache.decompose_resid(DecomposeOptions::new().pos(-1)).unwrap_err();
    assert!(error.to_string().starts_with("`hook_embed` has no position 6, only 0 to 2 in this cache"), "{error}");
    let cache = cached(&model, &tokens, RunOptions::new().pos(4..));
    let ours = cache.decompose_resid(DecomposeOptions::new().pos(-1)).unwrap();
    let last = &cache[hook::resid_post(1)].i((.., 2));
    assert!(max_diff("the last", &ours.sum().unwrap(), last) < 1e-4);
    assert!(cache.decompose_resid(DecomposeOptions::new().pos(0)).is_err());
    assert!(cached(&model, &tokens, RunOptions::new().pos(Slice::from(-1)))
        .decompose_resid(DecomposeOptions::new().pos(6))
        .is_ok());
}
