//! What sums to what, for every family that there are fixtures of, raw and processed, at every target; and projection
//! first against projection last. Property tests draw slices, targets and tokens.

use crate::common::{families, Fixture, Tally};
use proptest::prelude::*;
use tch::{Kind, Tensor};
use tch_lens::analysis::ResidualStack;
use tch_lens::{
    hook, ActivationCache, Answer, Component, DecomposeOptions, FullOptions, HeadOptions, HookedTransformer,
    LoadOptions, NeuronOptions, NeuronResultOptions, Slice, Target,
};

/// Relative to the largest entry, or absolute where that is below one.
const TOLERANCE: f64 = 1e-4;

fn settings(fixture: &Fixture) -> [(&'static str, HookedTransformer); 2] {
    [
        ("raw", LoadOptions::new().no_processing().open(&fixture.folder).unwrap()),
        ("processed", LoadOptions::new().open(&fixture.folder).unwrap()),
    ]
}

fn cache_of(model: &HookedTransformer, fixture: &Fixture) -> ActivationCache {
    model.run_with_cache(fixture.want("tokens")).unwrap().1
}

fn targets(model: &HookedTransformer) -> Vec<Target> {
    let config = model.config();
    let mut targets = vec![Target::Unembed];
    for layer in 0..config.n_layers as i64 {
        targets.push(Target::Attn(layer));
        if !config.attn_only() {
            targets.push(Target::Mlp(layer));
        }
    }
    targets
}

/// The stream that a target reads.
fn stream(cache: &ActivationCache, target: Target) -> Tensor {
    let parallel = cache.model().config().parallel_attn_mlp;
    let name = match target {
        Target::Unembed => ("resid_post", -1),
        Target::Mlp(layer) if !parallel => ("resid_mid", layer),
        Target::CrossAttn(layer) => ("resid_mid", layer),
        Target::Attn(layer) | Target::Mlp(layer) => ("resid_pre", layer),
    };
    cache[name].shallow_clone()
}

impl Tally {
    fn relative(&mut self, what: &str, ours: &Tensor, theirs: &Tensor) {
        let largest = if theirs.numel() == 0 { 1.0 } else { theirs.abs().max().double_value(&[]).max(1.0) };
        self.compare(what, &(ours / largest), &(theirs / largest), TOLERANCE);
    }
}

#[test]
fn decompositions_sum_to_the_stream() {
    let mut tally = Tally::default();
    for family in families() {
        let fixture = Fixture::open(&family);
        for (setting, model) in settings(&fixture) {
            let cache = cache_of(&model, &fixture);
            let without_batch = cache.clone().apply_slice_to_batch_dim(1).unwrap();
            for target in targets(&model) {
                let what = |name: &str| format!("{family} {setting}: {name} at {target}");
                let whole = stream(&cache, target);
                let stack = cache.decompose_resid(DecomposeOptions::new().target(target)).unwrap();
                tally.relative(&what("decompose_resid"), &stack.sum().unwrap(), &whole);
                for expand in [false, true] {
                    let full = || FullOptions::new().target(target).expand_neurons(expand);
                    let stack = cache.get_full_resid_decomposition(full()).unwrap();
                    tally.relative(&what("full"), &stack.sum().unwrap(), &whole);
                    let one = without_batch.get_full_resid_decomposition(full().pos(-2)).unwrap();
                    tally.relative(
                        &what("full, one position, no batch"),
                        &one.sum().unwrap(),
                        &whole.select(0, 1).select(0, -2),
                    );
                }
                let heads = cache.stack_head_results(HeadOptions::new().target(target).incl_remainder(true)).unwrap();
                tally.relative(&what("heads and remainder"), &heads.sum().unwrap(), &whole);
                if !model.config().attn_only() {
                    let some = NeuronOptions::new().target(target).neurons((0, 1000, 3)).incl_remainder(true);
                    let neurons = cache.stack_neuron_results(some).unwrap();
                    tally.relative(&what("neurons and remainder"), &neurons.sum().unwrap(), &whole);
                }
            }
        }
    }
    tally.finish("decompositions against streams");
}

#[test]
fn heads_and_neurons_sum_to_their_sublayers() {
    let mut tally = Tally::default();
    for family in families() {
        let fixture = Fixture::open(&family);
        for (setting, model) in settings(&fixture) {
            let cache = cache_of(&model, &fixture);
            for layer in 0..model.config().n_layers {
                let next = if layer + 1 < model.config().n_layers { Target::attn(layer + 1) } else { Target::Unembed };
                // What biases write between this target and the next: all that is neither head nor neuron.
                let bias = |target| full_row(&cache, target, &Component::Bias);
                let biases = bias(next) - bias(Target::attn(layer));
                let in_layer = |row: &Component| row.layer() == Some(layer);
                let heads = cache
                    .stack_head_results(HeadOptions::new().target(next))
                    .unwrap()
                    .select(in_layer)
                    .unwrap()
                    .sum()
                    .unwrap();
                let mut written = cache[hook::attn_out(layer)].shallow_clone();
                let mut parts = heads + biases;
                if !model.config().attn_only() {
                    let neurons = cache.stack_neuron_results(NeuronOptions::new().target(next)).unwrap();
                    parts += neurons.select(in_layer).unwrap().sum().unwrap();
                    written += &cache[hook::mlp_out(layer)];
                }
                tally.relative(
                    &format!("{family} {setting} layer {layer}: heads + neurons + biases"),
                    &parts,
                    &written,
                );
            }
        }
    }
    tally.finish("heads, neurons and biases against sublayers");
}

fn full_row(cache: &ActivationCache, target: Target, row: &Component) -> Tensor {
    let full = FullOptions::new().target(target);
    cache.get_full_resid_decomposition(full).unwrap().row(row).unwrap()
}

/// Σ head rows + b_O = attn_out and Σ neuron rows + b_out = mlp_out, with the biases as they are in the weights.
#[test]
fn heads_and_b_o_are_attn_out() {
    let mut tally = Tally::default();
    for family in families() {
        let fixture = Fixture::open(&family);
        for (setting, model) in settings(&fixture) {
            if model.config().norm_position() != tch_lens::config::NormPosition::Before {
                continue; // a bias passes through a norm of its own scale there: the test above
            }
            let parameters: std::collections::HashMap<_, _> = model.parameters().into_iter().collect();
            let bias = |name: String| parameters.get(&name).map_or(Tensor::from(0.0f32), Tensor::shallow_clone);
            let cache = cache_of(&model, &fixture);
            for layer in 0..model.config().n_layers {
                let in_layer = |row: &Component| row.layer() == Some(layer);
                let heads = cache.stack_head_results(HeadOptions::new()).unwrap().select(in_layer).unwrap();
                let sum = heads.sum().unwrap() + bias(format!("blocks.{layer}.attn.o.bias"));
                tally.relative(
                    &format!("{family} {setting} layer {layer}: heads + b_O"),
                    &sum,
                    &cache[hook::attn_out(layer)],
                );
                if model.config().attn_only() || model.config().experts().is_some() {
                    continue; // experts' biases are weighted by the router: the test above
                }
                let neurons = cache.get_neuron_results(layer, NeuronResultOptions::new()).unwrap();
                let sum = neurons.sum_dim_intlist([2i64].as_slice(), false, None)
                    + bias(format!("blocks.{layer}.mlp.out.bias"));
                tally.relative(
                    &format!("{family} {setting} layer {layer}: neurons + b_out"),
                    &sum,
                    &cache[hook::mlp_out(layer)],
                );
            }
        }
    }
    tally.finish("heads + b_O and neurons + b_out");
}

#[test]
fn attributions_sum_to_the_logit() {
    let mut tally = Tally::default();
    for family in families() {
        let fixture = Fixture::open(&family);
        for (setting, model) in settings(&fixture) {
            let cache = cache_of(&model, &fixture);
            let before_cap = &cache["unembed.hook_out"];
            let d_vocab = model.config().d_vocab_out as i64;
            let ids = fixture.want("logit_tokens.batch_pos").remainder(d_vocab);
            let wrong = fixture.want("logit_tokens.batch_pos_wrong").remainder(d_vocab);
            let logit = |ids: &Tensor| before_cap.gather(-1, &ids.unsqueeze(-1), false).squeeze_dim(-1);
            let answer = || Answer::per_row_and_position(&ids);
            let stack = cache.decompose_resid(DecomposeOptions::new()).unwrap();
            let attrs = [
                ("sublayers", cache.logit_attrs(&stack, answer())),
                ("sublayers, normalised", cache.logit_attrs(&stack.apply_ln().unwrap(), answer())),
                ("heads and remainder", cache.logit_attrs(HeadOptions::new().incl_remainder(true), answer())),
                ("full", cache.logit_attrs(FullOptions::new(), answer())),
                ("full, MLPs whole", cache.logit_attrs(FullOptions::new().expand_neurons(false), answer())),
            ];
            for (name, attrs) in attrs {
                let attrs = attrs.unwrap();
                tally.relative(&format!("{family} {setting}: {name}"), &attrs.sum().unwrap(), &logit(&ids));
                let error = attrs.residual_error().unwrap();
                assert!(
                    error < TOLERANCE * logit(&ids).abs().max().double_value(&[]).max(1.0),
                    "{family} {setting}: {error}"
                );
            }
            let difference =
                cache.logit_attrs(FullOptions::new(), answer().versus(Answer::per_row_and_position(&wrong))).unwrap();
            tally.relative(
                &format!("{family} {setting}: difference"),
                &difference.sum().unwrap(),
                &(logit(&ids) - logit(&wrong)),
            );
        }
    }
    tally.finish("attributions against logits");
}

/// Rows projected without being formed are rows formed and then projected.
fn projection_first(
    tally: &mut Tally,
    what: &str,
    cache: &ActivationCache,
    target: Target,
    pos: &Slice,
    batch: &Slice,
    u: &Tensor,
) {
    for apply_ln in [false, true] {
        macro_rules! both {
            ($method:ident, $options:expr) => {{
                let options = || $options.target(target).pos(pos.clone()).batch(batch.clone()).apply_ln(apply_ln);
                let formed: ResidualStack = cache.$method(options()).unwrap();
                let projected: ResidualStack = cache.$method(options().project(u)).unwrap();
                assert_eq!(formed.labels(), projected.labels());
                let name = format!("{what}: {} at {target}, apply_ln {apply_ln}", stringify!($method));
                tally.relative(&name, &projected.tensor(), &formed.tensor().matmul(u));
            }};
        }
        both!(stack_head_results, HeadOptions::new().incl_remainder(true));
        both!(get_full_resid_decomposition, FullOptions::new());
        if !cache.model().config().attn_only() {
            both!(stack_neuron_results, NeuronOptions::new().neurons((1, 1000, 5)).incl_remainder(true));
        }
    }
}

#[test]
fn projection_first_is_projection_last() {
    let mut tally = Tally::default();
    for family in families() {
        let fixture = Fixture::open(&family);
        for (setting, model) in settings(&fixture) {
            let cache = cache_of(&model, &fixture);
            tch::manual_seed(1);
            let d_model = model.config().d_model as i64;
            for u in [vec![d_model], vec![d_model, 3]] {
                let u = Tensor::randn(u.as_slice(), (Kind::Float, tch::Device::Cpu));
                for target in targets(&model) {
                    projection_first(
                        &mut tally,
                        &format!("{family} {setting}"),
                        &cache,
                        target,
                        &Slice::All,
                        &Slice::All,
                        &u,
                    );
                }
            }
        }
    }
    tally.finish("projection first against projection last");
}

/// Slices of an axis of `len`, some of which drop it.
fn slices(len: i64) -> impl Strategy<Value = Slice> {
    prop_oneof![
        Just(Slice::All),
        (-len..len).prop_map(Slice::Index),
        (0..len, 1i64..3).prop_map(move |(start, step)| Slice::Range { start: Some(start), end: Some(len), step }),
        prop::collection::vec(-len..len, 1..4).prop_map(Slice::List),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn slicing_first_is_slicing_last(
        family in 0usize..1000, processed: bool, target in 0usize..100,
        pos in slices(7), batch in slices(2), token in 0i64..5,
    ) {
        let families = families();
        let fixture = Fixture::open(&families[family % families.len()]);
        let [(_, raw), (_, model)] = settings(&fixture);
        let model = if processed { model } else { raw };
        let cache = cache_of(&model, &fixture);
        let targets = targets(&model);
        let target = targets[target % targets.len()];
        // Slicing the later axis first keeps the earlier one's number.
        let cut = |whole: Tensor| batch.apply(&pos.apply(&whole, 2, "position").unwrap(), 1, "batch").unwrap();
        let mut tally = Tally::default();
        let full = || FullOptions::new().target(target).apply_ln(true);
        let whole = cache.get_full_resid_decomposition(full()).unwrap().tensor();
        let sliced = cache.get_full_resid_decomposition(full().pos(pos.clone()).batch(batch.clone())).unwrap().tensor();
        tally.relative("full", &sliced, &cut(whole));
        let whole = cache.logit_attrs(HeadOptions::new().target(target), token).unwrap().tensor();
        let heads = HeadOptions::new().target(target).pos(pos.clone()).batch(batch.clone());
        let sliced = cache.logit_attrs(heads, token).unwrap().tensor();
        tally.relative("logit_attrs by head", &sliced, &cut(whole));
        let u = Tensor::randn([model.config().d_model as i64, 2], (Kind::Float, tch::Device::Cpu));
        projection_first(&mut tally, "drawn", &cache, target, &pos, &batch, &u);
        prop_assert!(tally.failures.is_empty(), "{:?}", tally.failures);
    }
}
