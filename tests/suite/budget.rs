//! What a cache takes, known beforehand; what becomes of it where that is too much; devices that are not there.

use crate::common::{families, raw, Fixture};
use tch::{Device, Kind, Tensor};
use tch_lens::{hook, Error, HookFilter, HookPoint, HookedTransformer, Hooks, LoadOptions, ReturnType, RunOptions};

fn bytes(tensor: &Tensor) -> u64 {
    tensor.numel() as u64 * tensor.kind().elt_size_in_bytes() as u64
}

/// Runs, and compares the estimate with what the cache holds.
#[track_caller]
fn estimated(what: &str, model: &HookedTransformer, tokens: &Tensor, run: impl Fn() -> RunOptions<'static>) {
    let size = tokens.size();
    let estimate = model.plan(&run()).unwrap().estimate(size[0] as usize, size[1] as usize).unwrap();
    let cache = model.run(tokens, run()).unwrap().cache;
    let real: u64 = cache.values().map(bytes).sum();
    assert_eq!(estimate, real, "{what}");
}

#[test]
fn estimates_are_the_bytes_of_every_family_s_cache() {
    let families = families();
    for family in &families {
        let (model, tokens) = (raw(family), Fixture::open(family).want("tokens"));
        estimated(family, &model, &tokens, || RunOptions::new().cache(HookFilter::All));
        // With all that fires on request only.
        let names = || model.hook_names();
        estimated(family, &model, &tokens, || RunOptions::new().cache(names()));
        estimated(family, &model, &tokens, || RunOptions::new().cache(HookFilter::All).pos(-1).stop_at_layer(1));
        let run = || RunOptions::new().cache("unembed.hook_out").logits_at(1..3);
        estimated(family, &model, &tokens, run);
        let every_point = |point: HookPoint| {
            let size = tokens.size();
            let run = RunOptions::new().cache(point).return_type(ReturnType::None);
            let cache = model.run(&tokens, run).unwrap().cache;
            // An expert has as many rows as are routed to it.
            let shape = point.shape(model.config(), size[0] as usize, size[1] as usize);
            point.expert().is_some() || cache[point].size() == shape
        };
        for point in model.run(&tokens, RunOptions::new().cache(names())).unwrap().cache.keys() {
            assert!(every_point(point), "{family}: {point}");
        }
    }
    println!("{} families", families.len());
}

#[test]
fn estimates_know_kinds_and_hooks() {
    for kind in [Kind::BFloat16, Kind::Double] {
        for family in ["gpt2", "olmoe", "gemma2", "qwen3"] {
            let fixture = Fixture::open(family);
            let model = LoadOptions::new().no_processing().kind(kind).open(&fixture.folder).unwrap();
            estimated(family, &model, &fixture.want("tokens"), || RunOptions::new().cache(HookFilter::All));
        }
    }
    let (model, tokens) = (raw("gpt2"), Fixture::open("gpt2").want("tokens"));
    let run = || RunOptions::new().cache(HookFilter::All).hooks(Hooks::new().replace("v_input", |v, _| v * 2.0));
    estimated("gpt2 with a stream for each head", &model, &tokens, run);
}

#[test]
fn an_estimate_of_experts_is_an_upper_bound() {
    let (model, tokens) = (raw("olmoe"), Fixture::open("olmoe").want("tokens"));
    let size = tokens.size();
    let run = || RunOptions::new().cache("blocks.0.mlp.experts.1.hook_post");
    let estimate = model.plan(&run()).unwrap().estimate(size[0] as usize, size[1] as usize).unwrap();
    let real: u64 = model.run(&tokens, run()).unwrap().cache.values().map(bytes).sum();
    assert!(real <= estimate, "{real} {estimate}");
}

#[test]
fn an_estimate_of_a_name_that_is_none_is_the_name_s_error() {
    let error = raw("gpt2").plan(&RunOptions::new().cache("blocks.0.attn.hook_qq")).unwrap_err();
    let expected = "there is no hook point `blocks.0.attn.hook_qq`; the nearest is `blocks.0.attn.hook_q`";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn positions_that_there_are_not_are_an_error_of_the_estimate() {
    let plan = raw("gpt2").plan(&RunOptions::new().cache("resid_post").pos(7)).unwrap();
    assert!(plan.estimate(1, 8).is_ok());
    assert_eq!(
        plan.estimate(1, 7).unwrap_err().to_string(),
        "index 7 is out of range for the position axis, which has 7 entries"
    );
}

#[test]
fn a_run_within_a_budget_keeps_the_same_activations() {
    for family in ["gpt2", "llama", "olmoe"] {
        let (model, tokens) = (raw(family), Fixture::open(family).want("tokens"));
        let (logits, free) = model.run_with_cache(&tokens).unwrap();
        let all: u64 = free.values().map(bytes).sum();
        let largest = free.values().map(bytes).max().unwrap();
        for budget in [largest, all / 2, all, u64::MAX] {
            let outcome = model.run(&tokens, RunOptions::new().cache(HookFilter::All).budget(budget)).unwrap();
            assert_eq!(outcome.cache.len(), free.len());
            for (point, tensor) in outcome.cache.items() {
                assert!(tensor.equal(&free[point]), "{family}, {budget} bytes: {point}");
            }
            assert!(outcome.logits.unwrap().equal(&logits));
        }
    }
}

#[test]
fn what_was_moved_outlives_its_cache_and_can_be_worked_with() {
    let model = raw("gpt2");
    let run = RunOptions::new().cache("resid_post").budget(5 * 32 * 4 * 8);
    let cache = model.run([5, 17, 3, 60, 9], run).unwrap().cache;
    let last = cache[("resid_post", -1)].shallow_clone();
    let attrs = cache.accumulated_resid(tch_lens::AccumulateOptions::new()).err();
    drop((cache, attrs));
    let doubled = &last * 2.0; // of memory that was mapped
    assert!((doubled - &last).allclose(&last, 1e-6, 1e-6, false));
}

#[test]
fn a_budget_smaller_than_one_entry_is_an_error_that_names_it() {
    let (model, tokens) = (raw("gpt2"), Tensor::from_slice(&[5i64, 17, 3, 60]));
    let largest = hook::resid_post(0).shape(model.config(), 1, 4).iter().product::<i64>() * 4;
    let error = model.run(&tokens, RunOptions::new().cache("resid_post").budget(largest as u64 - 1)).unwrap_err();
    let expected = format!(
        "a budget of {} bytes is smaller than one entry: `blocks.0.hook_resid_post` takes {largest}",
        largest - 1
    );
    assert_eq!(error.to_string(), expected);
    // Nothing kept, nothing to exceed.
    let run = RunOptions::new().cache("unembed.hook_out").logits_at(1..1).budget(0);
    assert!(model.run(&tokens, run).is_ok());
}

#[test]
fn a_gradient_through_a_file_is_an_error() {
    let model = raw("gpt2");
    let hooks = Hooks::new().replace("hook_embed", |x, _| x.set_requires_grad(true));
    let one = 4 * model.config().d_model as u64 * 4;
    let run = RunOptions::new().cache("resid_post").hooks(hooks).budget(one);
    let error = model.run([5, 17, 3, 60], run).unwrap_err();
    let expected = "`blocks.1.hook_resid_post` requires a gradient, so it cannot be moved to a file: raise the budget";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let (first, why) = match tch::Cuda::device_count() {
        0 => (
            0,
            "libtorch finds no GPU: use the CPU, or `cuda_if_available`, which returns an available device".to_string(),
        ),
        n => (n as usize, format!("libtorch finds {n} GPU(s), Cuda(0) to Cuda({})", n - 1)),
    };
    let folder = Fixture::open("gpt2").folder;
    let (_, cache) = raw("gpt2").run_with_cache([1, 2, 3]).unwrap();
    // As a signed number the last two are negative, which libtorch would take for the current device.
    for index in [first, 1 << 31, usize::MAX, 1 << 63] {
        let expected = format!("there is no device Cuda({index}): {why}");
        let error = LoadOptions::new().device(Device::Cuda(index)).open(&folder).unwrap_err();
        assert_eq!(error.to_string(), expected);
        let error = cache.clone().to(Device::Cuda(index)).unwrap_err();
        assert!(matches!(error, Error::NoDevice { .. }));
        assert_eq!(error.to_string(), expected);
    }
}
