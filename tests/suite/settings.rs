//! Every setting of a run has an effect, or is refused with a reason.

use crate::common::raw;
use rstest::rstest;
use tch_lens::{
    hook, Bos, Error, FileSink, HookFilter, Hooks, PaddingSide, Positions, ReturnType, RunOptions, SinkEntry,
};

const PROMPT: [i64; 5] = [5, 14, 3, 10, 9];

/// Combinations in which a setting would be ignored.
#[rstest]
#[case(RunOptions::new().pos(-1), "pos", "the run keeps no activations, so select some with `cache`")]
#[case(RunOptions::new().pos(Positions::LastToken), "pos", "the run keeps no activations, so select some with `cache`")]
#[case(RunOptions::new().budget(1 << 20), "budget", "the run keeps no activations, so select some with `cache`")]
#[case(RunOptions::new().sink(|_: SinkEntry| ()), "sink", "the run keeps no activations, so select some with `cache`")]
#[case(RunOptions::new().cache("z").sink(|_: SinkEntry| ()).budget(1 << 20), "budget", "the run has a `sink`, so its cache stays empty: use one of the two")]
#[case(RunOptions::new().cache("z").sink(FileSink::new("unwritten")).budget(1 << 20), "budget", "the run has a `sink`, so its cache stays empty: use one of the two")]
#[case(RunOptions::new().stop_at_layer(1).return_type(ReturnType::Logits), "stop_at_layer", "`return_type` asks for logits, which are computed after all layers")]
#[case(RunOptions::new().stop_at_layer(1).return_type(ReturnType::Loss), "stop_at_layer", "`return_type` asks for a loss, which is computed after all layers")]
#[case(RunOptions::new().stop_at_layer(1).return_type(ReturnType::LossPerToken), "stop_at_layer", "`return_type` asks for a loss, which is computed after all layers")]
#[case(RunOptions::new().stop_at_layer(1).return_type(ReturnType::Both), "stop_at_layer", "`return_type` asks for a loss, which is computed after all layers")]
#[case(RunOptions::new().stop_at_layer(1).logits_at(-1), "logits_at", "the run stops before it computes logits")]
#[case(RunOptions::new().stop_at_layer(1).return_type(ReturnType::None).cache("z0").logits_at(-1), "logits_at", "the run stops before it computes logits")]
#[case(RunOptions::new().return_type(ReturnType::Loss).logits_at(-1), "logits_at", "a loss needs the logits at all positions")]
#[case(RunOptions::new().return_type(ReturnType::LossPerToken).logits_at(1..), "logits_at", "a loss needs the logits at all positions")]
#[case(RunOptions::new().return_type(ReturnType::Both).logits_at(-1), "logits_at", "a loss needs the logits at all positions")]
#[case(RunOptions::new().return_type(ReturnType::None).logits_at(-1), "logits_at", "the run ends before it computes logits, at the last hook point that is used")]
#[case(RunOptions::new().return_type(ReturnType::None).cache("resid_post").logits_at(-1), "logits_at", "the run ends before it computes logits, at the last hook point that is used")]
fn a_setting_without_effect_is_refused(#[case] run: RunOptions, #[case] setting: &str, #[case] why: &str) {
    let model = raw("gpt2");
    let planned = model.plan(&run).unwrap_err();
    let ran = model.run(PROMPT, run).unwrap_err();
    for error in [planned, ran] {
        assert!(matches!(&error, Error::Setting { name, .. } if *name == setting), "{error}");
        assert_eq!(error.to_string(), format!("the run's `{setting}` cannot be used: {why}"));
    }
}

/// A BOS token is put before texts only.
#[test]
fn ids_are_taken_as_they_are() {
    let model = raw("gpt2");
    let error = model.run(PROMPT, RunOptions::new().prepend_bos(Bos::Yes)).unwrap_err();
    assert!(matches!(error, Error::Setting { name: "prepend_bos", .. }), "{error}");
    assert!(model.run(PROMPT, RunOptions::new().prepend_bos(Bos::No)).is_ok());
}

/// What counts, does.
#[test]
fn combinations_that_mean_something_run() {
    let model = raw("gpt2");
    let all = model.forward(PROMPT).unwrap();
    // Logits are formed for the hook point, at those positions.
    let run = RunOptions::new().return_type(ReturnType::None).cache("unembed.hook_out").logits_at(-1);
    let outcome = model.run(PROMPT, run).unwrap();
    assert!(outcome.logits.is_none());
    assert_eq!(outcome.cache[hook::unembed_out()].size(), [1, 1, all.size()[2]]);
    let seen = std::cell::RefCell::new(Vec::new());
    let hooks = Hooks::new().observe("ln_final.hook_normalized", |x, _| seen.borrow_mut().push(x.size()));
    model.run(PROMPT, RunOptions::new().return_type(ReturnType::None).hooks(hooks).logits_at([1, 3])).unwrap();
    assert_eq!(*seen.borrow(), [[1, 2, 24]]);
    // Nothing is asked for, so nothing is given, and the run ends with what is kept.
    let run = RunOptions::new().stop_at_layer(-1).return_type(ReturnType::None).cache(hook::z(0));
    let outcome = model.run(PROMPT, run).unwrap();
    assert!(outcome.resid.is_none() && outcome.cache.len() == 1);
    // The stream at a layer given as any integer; its number of layers is the end.
    for (layer, stop) in [(1, RunOptions::new().stop_at_layer(1usize)), (1, RunOptions::new().stop_at_layer(-1i64))] {
        let resid = model.run(PROMPT, stop).unwrap().resid.unwrap();
        let pre = model.run_with_cache_of(PROMPT, hook::resid_pre(layer)).unwrap().1;
        assert_eq!(resid, pre[hook::resid_pre(layer)]);
    }
    let end = model.run(PROMPT, RunOptions::new().stop_at_layer(2)).unwrap().resid.unwrap();
    assert_eq!(end, model.run_with_cache_of(PROMPT, hook::resid_post(1)).unwrap().1[hook::resid_post(1)]);
    // Rows of one length have nothing to pad, on either side.
    assert_eq!(model.run(PROMPT, RunOptions::new().padding_side(PaddingSide::Right)).unwrap().logits.unwrap(), all);
}

#[test]
fn a_loss_with_hooks_is_one_call() {
    let model = raw("gpt2");
    let hooks = || Hooks::new().replace(hook::mlp_out(0), |x, _| x * 0.5);
    let run = RunOptions::new().hooks(hooks()).return_type(ReturnType::Loss);
    let long = model.run(PROMPT, run).unwrap().loss.unwrap().double_value(&[]);
    assert_eq!(model.loss_with_hooks(PROMPT, hooks()).unwrap(), long);
    assert_ne!(model.loss(PROMPT).unwrap(), long);
}

/// Sizes that no memory holds are counted, not multiplied past the end of their numbers.
#[test]
fn the_estimate_of_an_absurd_run_is_a_number_or_an_error() {
    for family in ["gpt2", "llama_gqa_tied", "mixtral", "olmo2"] {
        let model = raw(family);
        let every = model.plan(&RunOptions::new().cache(model.hook_names())).unwrap();
        for (batch, pos) in
            [(1, usize::MAX), (usize::MAX, 1), (usize::MAX, usize::MAX), (0, usize::MAX), (1 << 40, 1 << 40)]
        {
            if let Ok(bytes) = every.estimate(batch, pos) {
                assert!(bytes == 0 || bytes > 1 << 40, "{family}: {bytes}");
            }
        }
        let some = |positions: Positions| model.plan(&RunOptions::new().cache(HookFilter::All).pos(positions)).unwrap();
        for positions in [Positions::from(-1), Positions::from([3, 0]), Positions::from(2..), Positions::LastToken] {
            assert!(some(positions.clone()).estimate(1, usize::MAX).is_ok(), "{family}: {positions}");
        }
    }
}
