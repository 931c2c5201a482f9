//! After an intervention sums hold: at every point of every family in turn something else is put in place, and every decomposition is
//! held against what the run had at every target.

use std::collections::HashMap;

use crate::common::{child, families, mechanisms, raw};
use tch::{IndexOp, Kind, Tensor};
use tch_lens::config::{NormPosition, Normalization};
use tch_lens::hook::Site;
use tch_lens::{
    hook, ActivationCache, Answer, Component, DecomposeOptions, Error, FullOptions, HeadOptions, HookPoint,
    HookedTransformer, Hooks, LensOptions, NeuronOptions, NeuronResultOptions, RunOptions, Target,
};

/// Relative to the largest entry, or absolute where that is below one.
const TOLERANCE: f64 = 1e-4;

/// A family's model and its parameters by name.
struct Model {
    model: HookedTransformer,
    weights: HashMap<String, Tensor>,
    tokens: Tensor,
}

impl Model {
    fn open(family: &str) -> Self {
        let model = raw(family);
        let weights = model.parameters().into_iter().collect();
        let tokens = Tensor::from_slice(&[5i64, 3, 9, 11, 2, 7]).view([2, 3]);
        Model { model, weights, tokens }
    }

    /// A run of which everything is kept.
    fn run(&self, hooks: Hooks) -> tch_lens::Result<ActivationCache> {
        Ok(self.model.run(&self.tokens, RunOptions::new().hooks(hooks).cache(self.model.hook_names()))?.cache)
    }

    /// A run in which something else stands at one point.
    fn changed(&self, point: HookPoint) -> tch_lens::Result<ActivationCache> {
        self.run(Hooks::new().replace(point, move |tensor, _| something_else(tensor, point)))
    }

    fn points(&self) -> Vec<HookPoint> {
        let run = RunOptions::new().cache(self.model.hook_names());
        self.model.run(&self.tokens, run).unwrap().cache.keys().collect()
    }

    fn targets(&self) -> Vec<Target> {
        let config = self.model.config();
        let mut targets = vec![Target::Unembed];
        for layer in 0..config.n_layers as i64 {
            targets.push(Target::Attn(layer));
            targets.extend((!config.attn_only()).then_some(Target::Mlp(layer)));
        }
        targets
    }

    fn weight(&self, name: &str) -> Option<&Tensor> {
        self.weights.get(name)
    }

    fn stream(&self, target: Target) -> HookPoint {
        let parallel = self.model.config().parallel_attn_mlp;
        match target {
            Target::Unembed if self.is_in_stream() => hook::normalized_resid_post(-1),
            Target::Unembed => hook::resid_post(self.model.config().n_layers - 1),
            Target::Mlp(layer) if !parallel => hook::resid_mid(layer),
            Target::CrossAttn(layer) => hook::resid_mid(layer),
            Target::Attn(layer) | Target::Mlp(layer) => hook::resid_pre(layer),
        }
    }

    /// Whether norms are of the stream itself.
    fn is_in_stream(&self) -> bool {
        self.model.config().norm_position() == NormPosition::InStream
    }

    /// What a target reads, less the bias of its norm; `None` where heads read different streams.
    fn reading(&self, cache: &ActivationCache, target: Target) -> Option<Tensor> {
        let config = self.model.config();
        let times = |quotient: &Tensor, name: String| match self.weight(&name) {
            Some(w) => quotient * w,
            None => quotient.shallow_clone(),
        };
        let reads_a_norm = !matches!(config.norm_position(), NormPosition::After | NormPosition::InStream);
        let has_norm = config.normalization_type() != Normalization::None && reads_a_norm;
        match target {
            Target::CrossAttn(_) => unreachable!("no family here is a decoder of an encoder-decoder"),
            Target::Unembed if config.head.is_some() => {
                Some(times(&cache[hook::ln_final_normalized()], "ln_final.w".into()))
            }
            Target::Unembed => {
                let read = cache["unembed.hook_in"].shallow_clone();
                Some(match self.weight("ln_final.b") {
                    Some(b) => read - b,
                    None => read,
                })
            }
            Target::Attn(layer) => {
                let inputs = [hook::attn_in(layer), hook::q_input(layer), hook::k_input(layer), hook::v_input(layer)];
                if inputs.into_iter().any(|point| cache.is_changed(point)) {
                    return None;
                }
                Some(match has_norm && !(config.norms.bare_first_attention && layer == 0) {
                    true => times(&cache[hook::ln1_normalized(layer)], format!("blocks.{layer}.ln1.w")),
                    false => cache[hook::resid_pre(layer)].shallow_clone(),
                })
            }
            Target::Mlp(layer) if cache.is_changed(hook::mlp_hook_in(layer)) => {
                let read = cache[hook::mlp_hook_in(layer)].shallow_clone();
                let norm = if self.is_in_stream() { "ln1" } else { "ln2" };
                let bias = self.weight(&format!("blocks.{layer}.{norm}.b")).filter(|_| has_norm || self.is_in_stream());
                Some(bias.map_or(read.shallow_clone(), |b| read - b))
            }
            Target::Mlp(layer) if self.is_in_stream() => {
                Some(times(&cache[hook::ln1_normalized(layer)], format!("blocks.{layer}.ln1.w")))
            }
            Target::Mlp(layer) => Some(match has_norm {
                true => times(&cache[hook::ln2_normalized(layer)], format!("blocks.{layer}.ln2.w")),
                false => cache[hook::mlp_in(layer)].shallow_clone(),
            }),
        }
    }
}

/// A tensor of the same shape and kind with other values. Of the experts' indices, another choice, some tokens going twice to one.
fn something_else(tensor: &Tensor, point: HookPoint) -> Tensor {
    match point.site() {
        Site::Tokens => (tensor + 1i64).remainder(16),
        Site::ExpertIndices => {
            let other = (tensor + 1i64).remainder(tensor.max().int64_value(&[]) + 1);
            let first = other.narrow(-1, 0, 1).expand_as(&other);
            let odd = Tensor::arange(other.size()[1], (Kind::Int64, other.device())).remainder(2).view([1, -1, 1]);
            first.where_self(&odd.eq(1), &other)
        }
        site => {
            let noise = Tensor::arange(tensor.numel() as i64, (Kind::Float, tensor.device())) * 1.7;
            let noise = noise.sin().view(tensor.size().as_slice()).to_kind(tensor.kind());
            let scale = site.name().ends_with("scale");
            // A scale stays positive.
            tensor * 0.5 + if scale { noise.abs() + 0.1 } else { noise * 0.3 }
        }
    }
}

#[track_caller]
fn close(what: &str, ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.size(), theirs.size(), "{what}");
    let largest = theirs.abs().max().double_value(&[]).max(1.0);
    let diff = (ours - theirs).abs().max().double_value(&[]) / largest;
    assert!(diff < TOLERANCE, "{what}: differs by {diff:.3e}");
}

fn has_intervention(rows: &[Component]) -> bool {
    rows.contains(&Component::Intervention)
}

/// What is a part itself, or comes before one, needs no row of its own: the parts show it. Whether the stream, or a sublayer's output,
/// is no longer the sum of its parts.
fn breaks(m: &Model, point: HookPoint) -> (bool, bool) {
    let is_after = match point.site() {
        Site::Ln1Normalized | Site::Ln2Normalized => m.model.config().norm_position() == NormPosition::After,
        Site::Ln1PostNormalized | Site::Ln2PostNormalized => true,
        Site::ExpertsLnNormalized | Site::SharedLnNormalized => true,
        _ => false,
    };
    match point.site() {
        Site::ResidPre | Site::ResidMid | Site::ResidPost | Site::NormalizedResidPost => (true, true),
        Site::Ln1Normalized | Site::Ln2Normalized | Site::MlpIn if m.is_in_stream() => (true, true),
        Site::AttnOut | Site::MlpOut | Site::MlpHookOut => (false, true),
        _ => (false, is_after),
    }
}

/// Only what no row explains is a row of interventions.
fn check_rows(m: &Model, what: &str, point: HookPoint, cache: &ActivationCache) {
    let (stream, parts) = breaks(m, point);
    let sublayers = |target| cache.decompose_resid(DecomposeOptions::new().target(target)).unwrap();
    assert_eq!(has_intervention(sublayers(Target::Unembed).rows()), stream, "{what}");
    assert_eq!(has_intervention(sublayers(Target::Attn(0)).rows()), point == hook::resid_pre(0), "{what}");
    let attrs = cache.logit_attrs(FullOptions::new(), 4).unwrap();
    let at_the_end = matches!(point.site(), Site::LnFinalNormalized | Site::UnembedIn | Site::UnembedOut);
    assert_eq!(has_intervention(attrs.rows()), parts || at_the_end, "{what}");
}

/// Checks every decomposition of a run at these targets.
fn check(m: &Model, what: &str, cache: &ActivationCache, targets: &[Target]) {
    let has_mlp = !m.model.config().attn_only();
    for target in targets.iter().copied() {
        let whole = &cache[m.stream(target)];
        let reading = m.reading(cache, target);
        let what = |name: &str| format!("{what}: {name} at {target}");
        for apply_ln in [false, true] {
            let mut stacks = vec![
                ("decompose_resid", cache.decompose_resid(DecomposeOptions::new().target(target).apply_ln(apply_ln))),
                (
                    "heads and remainder",
                    cache.stack_head_results(HeadOptions::new().target(target).apply_ln(apply_ln).incl_remainder(true)),
                ),
            ];
            for expand in [false, true] {
                let full = FullOptions::new().target(target).apply_ln(apply_ln).expand_neurons(expand);
                stacks.push(("full", cache.get_full_resid_decomposition(full)));
            }
            if has_mlp {
                let some = NeuronOptions::new().target(target).neurons((0, 1000, 3)).incl_remainder(true);
                stacks.push(("neurons and remainder", cache.stack_neuron_results(some.apply_ln(apply_ln))));
            }
            for (name, stack) in stacks {
                match (apply_ln, &reading) {
                    (false, _) => close(&what(name), &stack.unwrap().sum().unwrap(), whole),
                    (true, Some(reading)) => {
                        close(&what(&format!("{name}, normalised")), &stack.unwrap().sum().unwrap(), reading)
                    }
                    (true, None) => assert!(matches!(stack, Err(Error::HeadsReadApart { .. })), "{}", what(name)),
                }
            }
        }
        // Projected first is projected last, the row of interventions included.
        let u =
            Tensor::ones([m.model.config().d_model as i64, 1], (Kind::Float, tch::Device::Cpu)).cumsum(0, Kind::Float);
        let full = || FullOptions::new().target(target).apply_ln(reading.is_some());
        let formed = cache.get_full_resid_decomposition(full()).unwrap();
        let projected = cache.get_full_resid_decomposition(full().project(&u)).unwrap();
        assert_eq!(formed.labels(), projected.labels(), "{}", what("projected"));
        close(&what("projected"), &projected.tensor(), &formed.tensor().matmul(&u));
    }
    check_attributions(m, what, cache);
}

fn check_attributions(m: &Model, what: &str, cache: &ActivationCache) {
    let answer = || Answer::from(4).versus(1);
    let logits = &cache["unembed.hook_out"];
    let logit = logits.i((.., .., 4)) - logits.i((.., .., 1));
    let stack = cache.decompose_resid(DecomposeOptions::new()).unwrap();
    let mut attrs = vec![
        ("stack", stack.logit_attrs(answer())),
        ("stack, normalised", stack.apply_ln().unwrap().logit_attrs(answer())),
        ("heads", cache.logit_attrs(HeadOptions::new().incl_remainder(true), answer())),
        ("full", cache.logit_attrs(FullOptions::new(), answer())),
        ("full, MLPs whole", cache.logit_attrs(FullOptions::new().expand_neurons(false), answer())),
    ];
    if !m.model.config().attn_only() {
        attrs.push(("neurons", cache.logit_attrs(NeuronOptions::new().incl_remainder(true), answer())));
    }
    for (name, attrs) in attrs {
        let attrs = attrs.unwrap_or_else(|error| panic!("{what}: {name}: {error}"));
        close(&format!("{what}: attribution of {name}"), &attrs.sum().unwrap(), &logit);
        close(&format!("{what}: logit of {name}"), &attrs.logit().unwrap(), &logit);
        let error = attrs.residual_error().unwrap() / logit.abs().max().double_value(&[]).max(1.0);
        assert!(error < TOLERANCE, "{what}: residual error of {name}: {error:.3e}");
    }
}

/// Every point of every family; the targets in turn, or each of them for each point with `TCH_LENS_ALL_TARGETS` set.
#[test]
fn sums_hold_whatever_a_hook_has_changed() {
    // Thousands of small products take a tenth of the time on one thread.
    if child::argument().is_none() {
        let name = "changed_runs::sums_hold_whatever_a_hook_has_changed";
        let printed = child::run(name, "", |child| {
            child.env("OMP_NUM_THREADS", "1");
        });
        return println!("{}", printed.unwrap_or_else(|failure| panic!("{failure}")));
    }
    let all = std::env::var_os("TCH_LENS_ALL_TARGETS").is_some();
    let (mut runs, mut refused) = (0, 0);
    for family in families().into_iter().chain(mechanisms()) {
        let m = Model::open(&family);
        let targets = m.targets();
        for (i, point) in m.points().into_iter().enumerate() {
            let in_head = [hook::head_ln_scale(), hook::head_ln_normalized(), hook::unembed_in()];
            if m.model.config().head.is_some() && in_head.contains(&point) {
                let cache = m.changed(point).unwrap();
                let error = cache.logit_attrs(FullOptions::new(), 4).unwrap_err();
                assert!(matches!(error, Error::ChangedOnTheWay { .. }), "{error}");
                continue;
            }
            let what = format!("{family}, {point} changed");
            let targets = if all { &targets[..] } else { &targets[i % targets.len()..][..1] };
            match m.changed(point) {
                Ok(cache) => {
                    check_rows(&m, &what, point, &cache);
                    check(&m, &what, &cache, targets);
                }
                // A stream for each query head does not say what shared keys read.
                Err(error) => {
                    assert!(
                        point.site() == Site::AttnIn && error.to_string().contains("keys and values"),
                        "{what}: {error}"
                    );
                    refused += 1;
                }
            }
            runs += 1;
        }
    }
    println!("{runs} runs, {refused} of them refused");
    assert!(runs > 1500);
}

/// Heads' rows are what a hook left in `result`; they and the neurons' rows are the run's own, whatever came after.
#[test]
fn rows_are_what_the_run_had() {
    for family in families() {
        let m = Model::open(&family);
        if m.model.config().norm_position() != NormPosition::Before {
            continue; // rows pass through the norm after the sublayer: the sums above
        }
        let layer = m.model.config().n_layers - 1;
        let cache = m.changed(hook::result(layer)).unwrap();
        let heads = cache.stack_head_results(HeadOptions::new()).unwrap();
        for head in 0..m.model.config().n_heads {
            let row = heads.row(&Component::Head { layer, head }).unwrap();
            close(&family, &row, &cache[hook::result(layer)].i((.., .., head as i64)));
        }
        if m.model.config().attn_only() {
            continue;
        }
        let cache = m.changed(hook::mlp_out(0)).unwrap();
        let plain = m.run(Hooks::new()).unwrap();
        let neurons = |cache: &ActivationCache| cache.get_neuron_results(0, NeuronResultOptions::new()).unwrap();
        close(&family, &neurons(&cache), &neurons(&plain));
        if m.model.config().experts().is_some() {
            // Twice to one expert counts twice.
            let cache = m.changed(hook::expert_indices(0)).unwrap();
            let bias = |expand| {
                let full = FullOptions::new().target(Target::Attn(1)).expand_neurons(expand);
                cache.get_full_resid_decomposition(full).unwrap().row(&Component::Bias).unwrap()
            };
            let summed = neurons(&cache).sum_dim_intlist([2i64].as_slice(), false, None) + bias(true) - bias(false);
            close(&family, &summed, &cache[hook::mlp_out(0)]);
        }
    }
}

#[test]
fn what_was_changed_and_not_kept_is_named() {
    let m = Model::open("gpt2");
    let run = |point: HookPoint, keep: &dyn Fn(HookPoint) -> bool| {
        let hooks = Hooks::new().replace(point, move |tensor, _| something_else(tensor, point));
        let names: Vec<HookPoint> = m.points().into_iter().filter(|point| keep(*point)).collect();
        m.model.run(&m.tokens, RunOptions::new().hooks(hooks).cache(names)).unwrap().cache
    };
    let missing = |result: tch_lens::Result<f64>, name: &str| match result {
        Err(Error::NoEntry { name: found, .. }) => assert_eq!(found, name),
        other => panic!("{name}: {other:?}"),
    };
    let sum = |cache: &ActivationCache, options: HeadOptions| {
        Ok(cache.stack_head_results(options)?.sum()?.sum(Kind::Double).double_value(&[]))
    };
    let without = |gone: HookPoint| move |point: HookPoint| point != gone;
    let cache = run(hook::result(1), &without(hook::result(1)));
    missing(sum(&cache, HeadOptions::new()), "blocks.1.attn.hook_result");
    assert!(cache.stack_head_results(HeadOptions::new().target(Target::Attn(1))).is_ok()); // before the change
    let mut again = cache.clone();
    assert!(matches!(again.compute_head_results(), Err(Error::NoEntry { .. })));

    let cache = run(hook::resid_post(1), &without(hook::resid_post(1)));
    missing(cache.decompose_resid(DecomposeOptions::new()).map(|_| 0.0), "blocks.1.hook_resid_post");
    assert!(cache.decompose_resid(DecomposeOptions::new().target(Target::Mlp(1))).is_ok());

    let cache = run(hook::ln_final_normalized(), &without(hook::ln_final_normalized()));
    missing(cache.logit_attrs(FullOptions::new(), 5).map(|_| 0.0), "ln_final.hook_normalized");
    // Some rows of the stream add up to no logit, and need nothing more.
    assert!(cache.logit_attrs(HeadOptions::new(), 5).is_ok());
}

/// `residual_error` compares with something that the attribution was not made of.
#[test]
fn the_logit_is_the_run_s_own() {
    let m = Model::open("gpt2");
    let plain = m.run(Hooks::new()).unwrap();
    let logit = plain["unembed.hook_out"].i((.., .., 5));
    let kept = |gone: &[HookPoint], hooks: Hooks| {
        let names: Vec<HookPoint> = m.points().into_iter().filter(|point| !gone.contains(point)).collect();
        m.model.run(&m.tokens, RunOptions::new().hooks(hooks).cache(names)).unwrap().cache
    };
    let (scale, normalized) = (hook::ln_final_scale(), hook::ln_final_normalized());
    let (read, out) = (hook::unembed_in(), hook::unembed_out());
    for gone in [vec![], vec![out], vec![out, read], vec![out, read, normalized]] {
        let attrs = kept(&gone, Hooks::new()).logit_attrs(FullOptions::new(), 5).unwrap();
        close("logit", &attrs.logit().unwrap(), &logit);
        assert!(attrs.residual_error().unwrap() < TOLERANCE);
    }
    // A wrong scale is found, as the logit does not use it: the attribution divides by what the hook left, the norm here does not.
    let doubled = || Hooks::new().replace(scale, |scale, _| scale * 2.0);
    let attrs = kept(&[out], doubled()).logit_attrs(FullOptions::new(), 5).unwrap();
    assert!(attrs.residual_error().unwrap() < TOLERANCE); // `unembed.hook_in` is the run's
    let attrs = kept(&[out, read], doubled()).logit_attrs(FullOptions::new(), 5).unwrap();
    let error = attrs.residual_error().unwrap_err();
    assert_eq!(
        error.to_string(),
        "a hook changed `ln_final.hook_scale`, so the logit does not follow from the stream: keep `unembed.hook_out` in the cache \
         as well, at these positions"
    );
    let attrs = kept(&[out], Hooks::new().replace(out, |x, _| x * 2.0)).logit_attrs(HeadOptions::new(), 5).unwrap();
    assert!(matches!(attrs.logit(), Err(Error::ChangedOnTheWay { .. })));
    // Rows that leave something out miss it.
    let heads = plain.logit_attrs(HeadOptions::new(), 5).unwrap();
    let missing = (heads.sum().unwrap() - &logit).abs().max().double_value(&[]);
    assert!((heads.residual_error().unwrap() - missing).abs() < TOLERANCE && missing > 0.1);
    let none = kept(&[out, read, hook::resid_post(1)], Hooks::new());
    let attrs = none.logit_attrs(HeadOptions::new(), 5).unwrap();
    assert!(matches!(attrs.logit(), Err(Error::NoEntry { .. })));
}

/// A lens reads the stream as the unembedding does.
#[test]
fn a_lens_reads_changed_streams() {
    let m = Model::open("gpt2");
    let cache = m.changed(hook::resid_post(0)).unwrap();
    let lens = cache.logit_lens(LensOptions::new()).unwrap();
    close("the end", &lens.row(&Component::FinalPost).unwrap(), &cache["unembed.hook_out"]);
}
