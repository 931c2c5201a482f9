//! Stacks, attributions and lenses carry their cache: selection in token coordinates, averages, tables, and what they refuse.

use crate::common::{raw, Fixture};
use tch::{IndexOp, Kind, Tensor};
use tch_lens::config::{NormConfig, NormPosition, Normalization};
use tch_lens::{
    hook, AccumulateOptions, ActivationCache, Answer, Component, Config, DecomposeOptions, Error, FullOptions,
    HeadOptions, HookFilter, HookedTransformer, LensOptions, LoadOptions, Mode, NeuronOptions, NeuronResultOptions,
    PaddingSide, Positions, Result, RunOptions, Target, TokenizerError, Tokens,
};

const TOLERANCE: f64 = 1e-5;

fn cache() -> ActivationCache {
    let fixture = Fixture::open("gpt2");
    raw("gpt2").run_with_cache(fixture.want("tokens")).unwrap().1 // 2 rows of 7 positions
}

/// Rows of 4 and 2 tokens.
fn padded(side: PaddingSide) -> ActivationCache {
    let tokens = Tokens::padded(&[vec![5, 14, 3, 10], vec![7, 4]], 0, side).unwrap();
    raw("gpt2").run(&tokens, RunOptions::new().cache(HookFilter::All)).unwrap().cache
}

#[track_caller]
fn close(ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.size(), theirs.size());
    let diff = (ours - theirs).abs().max().double_value(&[]);
    assert!(diff < TOLERANCE, "differs by {diff:.3e}");
}

#[test]
fn a_stack_asks_nothing_again() {
    let cache = cache();
    let options = || DecomposeOptions::new().pos([5, 2]).batch(1);
    let stack = cache.decompose_resid(options()).unwrap();
    close(&stack.apply_ln().unwrap().tensor(), &cache.apply_ln_to_stack(&stack).unwrap().tensor());
    let attrs = stack.logit_attrs(5).unwrap();
    close(&attrs.tensor(), &cache.logit_attrs(&stack, 5).unwrap().tensor());
    assert!(attrs.residual_error().unwrap() < 1e-4);
    // The cache may be gone, and sliced otherwise, before the stack is used.
    let sliced = cache.apply_slice_to_batch_dim([1]).unwrap();
    let later = sliced.decompose_resid(DecomposeOptions::new().pos([5, 2]).batch(0)).unwrap();
    drop(sliced);
    close(&later.logit_attrs(5).unwrap().tensor(), &attrs.tensor());
    assert_eq!(later.concat(&stack).unwrap().len(), 2 * stack.len()); // the same row of the same run
}

#[test]
fn stacks_of_other_windows_runs_and_targets_are_refused() {
    let (cache, other) = (cache(), cache());
    let of = |cache: &ActivationCache, options| cache.decompose_resid(options).unwrap();
    let ours = of(&cache, DecomposeOptions::new().pos(3));
    assert!(matches!(ours.concat(&of(&cache, DecomposeOptions::new().pos(4))), Err(Error::OtherWindow { .. })));
    assert!(matches!(
        ours.concat(&of(&cache, DecomposeOptions::new().pos(3).batch([0, 0]))),
        Err(Error::OtherWindow { .. })
    ));
    assert!(matches!(ours.concat(&of(&cache, DecomposeOptions::new().pos([3]))), Err(Error::OtherWindow { .. })));
    let theirs = of(&other, DecomposeOptions::new().pos(3));
    assert!(matches!(ours.concat(&theirs), Err(Error::OtherRun { .. })));
    assert!(matches!(cache.logit_attrs(&theirs, 5), Err(Error::OtherRun { .. })));
    assert!(matches!(cache.apply_ln_to_stack(&theirs), Err(Error::OtherRun { .. })));
    assert!(ours.concat(&of(&cache, DecomposeOptions::new().pos(3).target(Target::Attn(1)))).is_err());
    assert!(ours.concat(&ours.apply_ln().unwrap()).is_err());
    let onto = |x: f64| Tensor::ones([24], (Kind::Float, tch::Device::Cpu)) * x;
    let projected = |x: f64| cache.stack_head_results(HeadOptions::new().pos(3).project(&onto(x))).unwrap();
    assert!(projected(1.0).concat(&projected(2.0)).is_err() && projected(1.0).concat(&ours).is_err());
    assert!(projected(1.0).concat(&projected(1.0)).is_ok());
}

#[test]
fn results_are_narrowed_in_token_coordinates() {
    let cache = cache();
    let attrs = cache.logit_attrs(HeadOptions::new().pos([6, 2, 4]).batch([1, 0]), Answer::per_row([5, 3])).unwrap();
    let whole = attrs.tensor(); // [row, batch, pos]
    close(&attrs.pos(2).unwrap().tensor(), &whole.i((.., .., 1)));
    close(&attrs.pos(-1).unwrap().tensor(), &whole.i((.., .., 0)));
    close(&attrs.batch(0).unwrap().tensor(), &whole.i((.., 1)));
    close(&attrs.pos([4, 2]).unwrap().tensor(), &whole.index_select(2, &Tensor::from_slice(&[2i64, 1])));
    let per_row = attrs.pos(Positions::PerRow(vec![4, 6])).unwrap();
    close(&per_row.tensor(), &Tensor::stack(&[whole.i((.., 0, 2)), whole.i((.., 1, 0))], 1));
    for narrowed in [attrs.pos(2).unwrap().batch(0).unwrap(), per_row, attrs.batch([0]).unwrap()] {
        let logit = narrowed.logit().unwrap();
        assert_eq!(logit.size(), narrowed.tensor().size()[1..]);
        close(&logit.reshape(-1).i(0), &attrs_logit(&cache, &narrowed));
    }
    assert!(matches!(attrs.pos(3), Err(Error::NoPosition { position: 3, .. })));
    assert!(matches!(attrs.pos(2).unwrap().batch([0]).unwrap().batch(1), Err(Error::NoBatchRow { row: 1, .. })));
    assert!(attrs.pos(2).unwrap().pos(2).is_err() && attrs.batch(2).is_err());
    let lens = cache.logit_lens(LensOptions::new()).unwrap();
    close(&lens.pos(3).unwrap().batch(1).unwrap().logits(), &lens.logits().i((.., 1, 3)));
}

/// The logit of the answers (5 for batch row 1, 3 for row 0) at the first entry of a result.
fn attrs_logit(cache: &ActivationCache, attrs: &tch_lens::analysis::Attribution) -> Tensor {
    // The first row of the batch that is left, by what its logits are.
    let logits = &cache["unembed.hook_out"];
    let position = attrs.positions().of_row(0)[0];
    let ours = attrs.logit().unwrap().reshape(-1).double_value(&[0]);
    let candidates = [(0, 3), (1, 5)].map(|(row, id)| logits.i((row, position, id)));
    let near = |t: &Tensor| (t.double_value(&[]) - ours).abs() < 1e-4;
    candidates.into_iter().find(near).unwrap_or_else(|| panic!("{ours} is no logit at {position}"))
}

#[test]
fn padding_is_refused_in_results_too() {
    let cache = padded(PaddingSide::Right);
    let attrs = cache.logit_attrs(HeadOptions::new(), 5).unwrap();
    assert!(matches!(attrs.pos(-1), Err(Error::PaddingChosen { row: 1, position: 3 })));
    assert!(matches!(attrs.mean_batch(), Err(Error::PaddingChosen { .. })));
    assert!(matches!(attrs.mean_pos(), Err(Error::PaddingChosen { .. })));
    let last = attrs.pos(Positions::LastToken).unwrap();
    close(&last.tensor().i((.., 1)), &attrs.tensor().i((.., 1, 1)));
    assert!(last.mean_batch().is_ok() && attrs.batch(0).unwrap().pos(-1).is_ok());
    assert!(attrs.pos(Positions::from(-1).with_padding()).is_ok());
}

/// A mean is that of the rows, of the constants and of the logit.
#[test]
fn averages_are_those_of_every_part() {
    let cache = cache();
    let attrs = cache.logit_attrs(FullOptions::new(), Answer::per_row([5, 3]).versus(7)).unwrap();
    let mean = |t: Tensor, dim: i64| t.mean_dim([dim].as_slice(), false, None);
    for (averaged, dims) in [
        (attrs.mean_batch().unwrap(), vec![0]),
        (attrs.mean_pos().unwrap(), vec![1]),
        (attrs.mean_batch().unwrap().mean_pos().unwrap(), vec![0, 0]),
    ] {
        let by_hand = |whole: Tensor, first: i64| dims.iter().fold(whole, |t, dim| mean(t, dim + first));
        close(&averaged.tensor(), &by_hand(attrs.tensor(), 1));
        close(&averaged.logit().unwrap(), &by_hand(attrs.logit().unwrap(), 0));
        close(&averaged.sum().unwrap(), &by_hand(attrs.sum().unwrap(), 0));
        close(&averaged.constants()[0].1, &by_hand(attrs.constants()[0].1.shallow_clone(), 0));
        assert!(averaged.residual_error().unwrap() < 1e-4);
    }
    let one = attrs.mean_batch().unwrap().pos(3).unwrap();
    close(&one.tensor(), &attrs.pos(3).unwrap().mean_batch().unwrap().tensor());
    close(&one.logit().unwrap(), &mean(attrs.logit().unwrap().i((.., 3)), 0));
    assert_eq!(one.top(2).unwrap().rows.len(), 2);
    assert!(attrs.mean_batch().unwrap().mean_batch().is_err() && attrs.mean_batch().unwrap().batch(0).is_err());
    let stack = cache.decompose_resid(DecomposeOptions::new()).unwrap();
    close(&stack.mean_batch().unwrap().tensor(), &mean(stack.tensor(), 1));
    // Each row has a scale of its own.
    let averaged = stack.mean_batch().unwrap();
    assert!(averaged.apply_ln().is_err() && averaged.logit_attrs(5).is_err());
}

#[test]
fn tables_fit_80_columns_and_show_every_position() {
    let model = HookedTransformer::toy().unwrap();
    let prompts = ["When Mary and John went to the shop, John gave a bag to", "When Mary and John"];
    let run = RunOptions::new().cache(HookFilter::All).padding_side(PaddingSide::Left);
    let cache = model.run(prompts, run).unwrap().cache;
    let lens = cache.logit_lens(LensOptions::new()).unwrap();
    let attrs = cache.logit_attrs(HeadOptions::new(), " Mary").unwrap();
    let stack = cache.decompose_resid(DecomposeOptions::new()).unwrap();
    for table in [lens.to_string(), attrs.to_string(), stack.to_string()] {
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        assert!(table.contains("batch row 0") && table.contains("batch row 1") && !table.ends_with('\n'));
        let numbers = table.split_whitespace().filter(|word| *word == "14").count();
        assert_eq!(numbers, 2, "{table}"); // the last position, once for each row
    }
    let last = lens.batch(0).unwrap().pos(-1).unwrap().to_string();
    assert_eq!(last.lines().count(), 2 + 5, "{last}"); // number, token, a line for each row
    assert!(last.lines().last().unwrap().ends_with("\" Mary\""), "{last}");
    let mean = attrs.pos(-1).unwrap().mean_batch().unwrap().to_string();
    assert_eq!(mean.lines().count(), 1 + 16, "{mean}"); // its number and the heads; tokens differ by row
    let everything = cache.logit_attrs(FullOptions::new().pos(-1), " Mary").unwrap().to_string();
    assert!(everything.contains("more rows"));
    // Without a tokenizer a table has the numbers of positions alone, and ids.
    let plain = cache_of_gpt2_lens();
    assert!(plain.contains("\"<") && plain.lines().all(|line| line.chars().count() <= 80));
}

fn cache_of_gpt2_lens() -> String {
    cache().logit_lens(LensOptions::new().batch(0)).unwrap().to_string()
}

/// Every setting counts or is refused.
#[test]
fn no_setting_is_ignored() {
    let cache = cache();
    let u = Tensor::ones([24], (Kind::Float, tch::Device::Cpu));
    let is_setting = |result: Result<()>| assert!(matches!(result, Err(Error::Setting { .. })), "{result:?}");
    let attrs = |of: tch_lens::analysis::Attributed| cache.logit_attrs(of, 5).map(|_| ());
    is_setting(attrs(HeadOptions::new().apply_ln(true).into()));
    is_setting(attrs(NeuronOptions::new().apply_ln(true).into()));
    is_setting(attrs(FullOptions::new().apply_ln(true).into()));
    is_setting(attrs(HeadOptions::new().project(&u).into()));
    is_setting(attrs(NeuronOptions::new().project(&u).into()));
    is_setting(attrs(FullOptions::new().project(&u).into()));
    let own = AccumulateOptions::new().scale(tch_lens::analysis::Scale::Own);
    is_setting(cache.accumulated_resid(own).map(|_| ()));
    // What counts changes the result.
    let sizes = |lens: LensOptions| cache.logit_lens(lens).unwrap().labels();
    assert_eq!(sizes(LensOptions::new().target(Target::Attn(1))), ["0_pre", "1_pre"]);
    assert_eq!(sizes(LensOptions::new().incl_mid(true)).len(), 5);
    let results = |options| cache.get_neuron_results(0, options).unwrap().size();
    assert_eq!(results(NeuronResultOptions::new().neurons([1, 2]).pos(3).batch(0)), [2, 24]);
    assert_eq!(results(NeuronResultOptions::new().neurons([1, 2]).project(&u)), [2, 7, 2]);
}

/// The errors that the docs of each method name are those that come.
#[test]
fn documented_errors_come() {
    let (cache, model) = (cache(), raw("gpt2"));
    let bare = model.run([5, 3, 9], RunOptions::new().cache("resid_post")).unwrap().cache;
    let wide = Tensor::ones([23], (Kind::Float, tch::Device::Cpu));
    macro_rules! comes {
        ($($result:expr => $error:pat,)*) => {
            $(let result = $result.map(|_| ());
            assert!(matches!(result, Err($error)), "{}: {result:?}", stringify!($result));)*
        };
    }
    comes! {
        bare.decompose_resid(DecomposeOptions::new()) => Error::NoEntry { .. },
        cache.decompose_resid(DecomposeOptions::new().target(Target::Attn(2))) => Error::LayerOutOfRange { .. },
        cache.decompose_resid(DecomposeOptions::new().pos(7)) => Error::SliceOutOfRange { .. },
        cache.decompose_resid(DecomposeOptions::new().target(Target::Attn(0)).mode(Mode::Mlp).incl_embeds(false)) => Error::NothingSelected { .. },
        cache.decompose_resid(DecomposeOptions::new().pos(Positions::PerRow(vec![1]))) => Error::Shape { .. },
        bare.accumulated_resid(AccumulateOptions::new()) => Error::NoEntry { .. },
        bare.stack_head_results(HeadOptions::new()) => Error::NoEntry { .. },
        cache.stack_head_results(HeadOptions::new().target(Target::Mlp(-3))) => Error::LayerOutOfRange { .. },
        cache.stack_head_results(HeadOptions::new().project(&wide)) => Error::Shape { .. },
        cache.stack_head_results(HeadOptions::new().batch(2)) => Error::SliceOutOfRange { .. },
        bare.stack_neuron_results(NeuronOptions::new()) => Error::NoEntry { .. },
        cache.stack_neuron_results(NeuronOptions::new().neurons([100_000])) => Error::SliceOutOfRange { .. },
        bare.get_neuron_results(0, NeuronResultOptions::new()) => Error::NoEntry { .. },
        cache.get_neuron_results(2, NeuronResultOptions::new()) => Error::LayerOutOfRange { .. },
        cache.get_neuron_results(0, NeuronResultOptions::new().project(&wide)) => Error::Shape { .. },
        bare.get_full_resid_decomposition(FullOptions::new()) => Error::NoEntry { .. },
        cache.get_full_resid_decomposition(FullOptions::new().project(&wide)) => Error::Shape { .. },
        bare.clone().compute_head_results() => Error::NoEntry { .. },
        bare.logit_lens(LensOptions::new()) => Error::NoEntry { .. },
        cache.logit_lens(LensOptions::new().target(Target::Attn(9))) => Error::LayerOutOfRange { .. },
        cache.logit_lens(LensOptions::new()).unwrap().rank_of(5) => Error::SeveralPositions { .. },
        cache.logit_lens(LensOptions::new().pos(1).batch(0)).unwrap().rank_of("word") => Error::Tokenizer(TokenizerError::Missing),
        cache.logit_lens(LensOptions::new().pos(1).batch(0)).unwrap().top(3) => Error::Tokenizer(TokenizerError::Missing),
        cache.logit_lens(LensOptions::new().pos(1).batch(0)).unwrap().rank_of(96) => Error::TokenOutOfRange { .. },
        bare.logit_attrs(HeadOptions::new(), 5) => Error::NoEntry { .. },
        cache.logit_attrs(HeadOptions::new(), 96) => Error::TokenOutOfRange { .. },
        cache.logit_attrs(HeadOptions::new(), "word") => Error::Tokenizer(TokenizerError::Missing),
        cache.logit_attrs(HeadOptions::new(), Answer::per_row([1, 2, 3])) => Error::Shape { .. },
        cache.logit_attrs(HeadOptions::new(), 5).unwrap().top(3) => Error::SeveralPositions { .. },
        cache.logit_attrs(HeadOptions::new(), 5).unwrap().row(&Component::Embed) => Error::NoRow { .. },
        cache.stack_activation("attn_patern", None) => Error::UnknownHook { .. },
        bare.stack_activation("pattern", None) => Error::NoEntry { .. },
        cache.stack_activation("pattern", Some(5)) => Error::LayerOutOfRange { .. },
        cache.get("ln_finall.hook_scale") => Error::UnknownHook { .. },
        bare.get(hook::z(0)) => Error::NoEntry { .. },
        bare.positions_of(hook::z(0)) => Error::NoEntry { .. },
        cache.clone().apply_slice_to_batch_dim(2) => Error::SliceOutOfRange { .. },
    }
    let no_mlp = raw("toy_attn_only_2l_ln");
    let (_, cache) = no_mlp.run_with_cache([1, 2]).unwrap();
    assert!(cache.stack_neuron_results(NeuronOptions::new()).is_err());
    assert!(cache.logit_attrs(NeuronOptions::new(), 1).is_err());
}

/// Every bias of every norm counts: layer norms with biases before, after, and on both sides of the sublayers.
#[test]
fn biases_of_norms_after_sublayers_are_in_the_bias() {
    for position in [NormPosition::Before, NormPosition::After, NormPosition::BeforeAndAfter] {
        let norms = NormConfig { position, ..NormConfig::new(Normalization::LN) };
        let config = Config { norms, ..Config::new(2, 16, 2, 20, 8) };
        let weights = HookedTransformer::init(config.clone(), 3).unwrap().state_dict().unwrap();
        let other = |(i, (name, tensor)): (usize, (String, Tensor))| {
            let n = Tensor::arange(tensor.numel() as i64, (Kind::Float, tch::Device::Cpu)) * 1.3 + i as f64;
            let noise = n.sin().view(tensor.size().as_slice());
            let is_vector = name.contains(".b_") || name.ends_with(".b") || name.ends_with(".w");
            (name, if is_vector { tensor + noise * 0.5 } else { tensor + noise * 0.1 })
        };
        let weights: Vec<(String, Tensor)> = weights.into_iter().enumerate().map(other).collect();
        let model = LoadOptions::new().no_processing().state_dict(config, weights).unwrap();
        let (_, cache) = model.run_with_cache([5, 3, 9, 1]).unwrap();
        for target in [Target::Attn(1), Target::Mlp(1), Target::Unembed] {
            let whole = match target {
                Target::Attn(layer) => &cache[hook::resid_pre(layer)],
                Target::CrossAttn(layer) | Target::Mlp(layer) => &cache[hook::resid_mid(layer)],
                Target::Unembed => &cache[hook::resid_post(1)],
            };
            for expand in [false, true] {
                let full = FullOptions::new().target(target).expand_neurons(expand);
                let sum = cache.get_full_resid_decomposition(full).unwrap().sum().unwrap();
                let scale = whole.abs().max().double_value(&[]);
                close(&(sum / scale), &(whole / scale));
            }
        }
        let attrs = cache.logit_attrs(FullOptions::new(), 4).unwrap();
        assert!(attrs.residual_error().unwrap() < 1e-4, "{position:?}");
    }
}
