//! Gradients: of what a hook point shows, of the parameters, and in padded batches, against finite differences and TransformerLens.

use crate::common::models::{fresh, in_fp64, of_transformers, small};
use crate::common::{families, raw, shaped_like, Fixture, Tally};
use tch::{IndexOp, Kind, Tensor};
use tch_lens::hook::Site;
use tch_lens::{HookFilter, HookPoint, HookedTransformer, Hooks, LoadOptions, ReturnType, RunOptions, Tokens};

/// Half of a central difference's distance: errors of rounding and of the third derivative are both near 1e-10 in fp64.
const STEP: f64 = 1e-5;

/// Numbers of the same shape that depend on nothing but the seed.
fn random_like(x: &Tensor, seed: i64) -> Tensor {
    let n = x.numel() as i64;
    let numbers: Vec<f64> = (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f64 / 504.5 - 1.0).collect();
    Tensor::from_slice(&numbers).view(x.size().as_slice()).to_kind(x.kind())
}

/// Has the embeddings record gradients, so that every activation does.
fn recording(model: HookedTransformer) -> HookedTransformer {
    for (name, weight) in model.parameters() {
        if name == "embed.W_E" || name == "pos_embed.W_pos" {
            let _ = weight.set_requires_grad(true);
        }
    }
    model
}

/// What a run gave: a number that depends on all logits, and what was kept.
struct Scored {
    score: Tensor,
    cache: tch_lens::ActivationCache,
}

fn leaf(x: &Tensor) -> Tensor {
    x.detach().copy().set_requires_grad(true)
}

/// Keeps `select`, and adds `change` to what stands at a point.
fn scored(
    model: &HookedTransformer,
    tokens: &Tokens,
    select: &[String],
    change: Option<(HookPoint, &Tensor)>,
) -> Scored {
    let mut hooks = Hooks::new();
    if let Some((point, change)) = change {
        hooks = hooks.replace(point, move |x, _| x + change);
    }
    let outcome = model.run(tokens, RunOptions::new().hooks(hooks).cache(select.to_vec())).unwrap();
    let logits = outcome.logits.unwrap();
    Scored { score: (&logits * random_like(&logits, 3)).sum(Kind::Double), cache: outcome.cache }
}

fn is_whole_numbers(point: HookPoint) -> bool {
    let name = point.to_string();
    name == "hook_tokens" || name.ends_with("expert_indices")
}

fn two_rows() -> Tokens {
    Tokens::new(&Tensor::from_slice2(&[[5i64, 14, 3, 10], [9, 6, 11, 5]])).unwrap()
}

/// The kept points of a run that have numbers, and the gradient of the score with respect to each. Every point has one.
fn gradients_of(what: &str, model: &HookedTransformer, select: &[String]) -> Vec<(HookPoint, Tensor, Tensor)> {
    let Scored { score, cache } = scored(model, &two_rows(), select, None);
    // An expert that no token goes to has no rows.
    let has_numbers = |point: &HookPoint| !is_whole_numbers(*point) && cache[*point].numel() > 0;
    let points: Vec<HookPoint> = cache.keys().filter(has_numbers).collect();
    let shown: Vec<&Tensor> = points.iter().map(|point| &cache[*point]).collect();
    let gradients = Tensor::run_backward(&[&score], &shown, false, false);
    let entries = points.into_iter().zip(shown).zip(gradients);
    entries
        .map(|((point, shown), gradient)| {
            assert!(gradient.defined(), "{what}, {point} is not on the path to the logits");
            assert_eq!(gradient.size(), shown.size(), "{what}, {point}");
            assert!(gradient.abs().max().double_value(&[]) > 0.0, "{what}, {point}: the gradient is zero");
            (point, shown.detach(), gradient)
        })
        .collect()
}

/// The gradient of every point, where all are kept, is the slope of the score in a direction.
fn check_slopes(
    what: &str,
    model: &HookedTransformer,
    select: &[String],
    gradients: &[(HookPoint, Tensor, Tensor)],
    tally: &mut Tally,
) {
    let tokens = two_rows();
    let grouped = model.config().n_heads != model.config().n_key_value_heads;
    for (point, shown, gradient) in gradients {
        if grouped && point.to_string().ends_with("hook_attn_in") {
            continue; // not to be replaced; below
        }
        // −∞ in masked scores stays.
        let direction = random_like(shown, 1).where_self(&shown.isfinite(), &Tensor::from(0.0));
        let slope = (gradient * &direction).sum(Kind::Double).double_value(&[]);
        let moved = |by: f64| {
            let change = &direction * by;
            scored(model, &tokens, select, Some((*point, &change))).score.double_value(&[])
        };
        let found = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
        let scale = 1.0 + slope.abs();
        tally.compare(&format!("{what}, {point}"), &Tensor::from(slope / scale), &Tensor::from(found / scale), 1e-6);
    }
}

fn is_on_request(name: &str) -> bool {
    ["attn_in", "q_input", "k_input", "v_input", "result", "mlp_in"].iter().any(|site| name.ends_with(site))
}

/// A point has the same gradient, whichever other points are kept. The exception is the norm before attention: with `attn_in` kept,
/// each head has its own, and its points show that of the values.
#[test]
fn every_kept_point_is_on_the_path() {
    let mut tally = Tally::default();
    // Keys that later layers look at, embeddings and factors of layers.
    let mechanisms = ["gemma4_text", "gemma4_unified_values", "beam"].map(of_transformers);
    for (what, model) in in_fp64().into_iter().chain(mechanisms) {
        let model = recording(model);
        let names = model.hook_names();
        let all = gradients_of(&what, &model, &names);
        check_slopes(&what, &model, &names, &all, &mut tally);
        let (on_request, by_default): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| is_on_request(name));
        let selections = on_request.into_iter().map(|name| vec![name]).chain([by_default]);
        for select in selections {
            let what = format!("{what}, {} kept", select.len());
            let (norms, others): (Vec<_>, Vec<_>) = gradients_of(&what, &model, &select)
                .into_iter()
                .partition(|(point, ..)| matches!(point.site(), Site::Ln1Scale | Site::Ln1Normalized));
            check_slopes(&what, &model, &select, &norms, &mut tally);
            for (point, _, gradient) in others {
                let (_, _, expected) = all.iter().find(|(found, ..)| *found == point).unwrap();
                let scale = 1.0 + expected.abs().max().double_value(&[]);
                tally.compare(&format!("{what}, {point}"), &(gradient / scale), &(expected / scale), 1e-12);
            }
        }
    }
    tally.finish("gradients of hook points");
}

/// In grouped-query models heads share keys and values: what they share is spread evenly over what the heads read.
#[test]
fn what_grouped_heads_read_has_the_gradient_of_its_query_and_its_share_of_keys_and_values() {
    let load = LoadOptions::new().no_processing().kind(Kind::Double);
    let model = recording(load.open(Fixture::folder("llama_gqa_tied")).unwrap());
    let group = (model.config().n_heads / model.config().n_key_value_heads) as i64;
    assert!(group > 1);
    let tokens = Tokens::new(&Tensor::from_slice(&[5i64, 14, 3, 10])).unwrap();
    let names = ["attn_in", "q_input", "k_input", "v_input"].map(|site| format!("blocks.1.hook_{site}"));
    let Scored { score, cache } = scored(&model, &tokens, &names, None);
    let gradients = Tensor::run_backward(&[&score], &names.each_ref().map(|name| &cache[name.as_str()]), false, false);
    let [heads, q, k, v] = <[Tensor; 4]>::try_from(gradients).unwrap();
    let expected = q + (k + v).repeat_interleave_self_int(group, 2, None) / group as f64;
    let mut tally = Tally::default();
    tally.compare("hook_attn_in", &heads, &expected, 1e-12);
    tally.finish("grouped heads");
}

/// TransformerLens' backward cache, of the mean loss.
#[test]
fn gradients_are_transformer_lens_own() {
    let mut tally = Tally::default();
    for family in families() {
        let fixture = Fixture::open(&family);
        let model = recording(raw(&family));
        if model.config().d_vocab != model.config().d_vocab_out {
            continue; // no loss
        }
        for key in fixture.keys("raw.grad.") {
            let name = key.strip_prefix("raw.grad.").unwrap();
            // Where TransformerLens passes a point several times, the cache has the last time; the sum is the point's.
            let theirs = fixture.get(&format!("raw.grad_sum.{name}")).unwrap_or_else(|| fixture.want(&key));
            let run = RunOptions::new().cache(name).return_type(ReturnType::Loss);
            let outcome = model.run(fixture.want("tokens"), run).unwrap();
            let ours = Tensor::run_backward(&[outcome.loss.unwrap()], &[&outcome.cache[name]], false, false).remove(0);
            let (size, heads) = (ours.size(), theirs.size());
            let theirs = match size.len() == 4 && heads.len() == 4 && size[2] < heads[2] {
                // TransformerLens repeats keys and values for each head of a group.
                true => theirs.view([size[0], size[1], size[2], -1, size[3]]).sum_dim_intlist(
                    [3i64].as_slice(),
                    false,
                    None,
                ),
                false => theirs,
            };
            let ours = shaped_like(&ours, &theirs, outcome.cache.keys().next().unwrap(), &model);
            tally.compare(&format!("{family}, {name}"), &ours, &theirs, 1e-4);
        }
    }
    assert!(tally.count > 300, "{}", tally.count);
    tally.finish("TransformerLens' gradients");
}

/// The loss' slope in a direction of each parameter's own.
#[test]
fn parameters_have_their_gradients() {
    let mut tally = Tally::default();
    for family in ["gpt2", "gemma2", "mixtral", "toy_shortformer", "toy_solu_ln"] {
        let model = LoadOptions::new().no_processing().kind(Kind::Double).open(Fixture::folder(family)).unwrap();
        let tokens = Fixture::open(family).want("tokens");
        let loss = || model.run(&tokens, RunOptions::new().return_type(ReturnType::Loss)).unwrap().loss.unwrap();
        let parameters: Vec<(String, Tensor)> =
            model.parameters().into_iter().map(|(name, w)| (name, w.set_requires_grad(true))).collect();
        let leaves: Vec<&Tensor> = parameters.iter().map(|(_, w)| w).collect();
        let gradients = Tensor::run_backward(&[loss()], &leaves, false, false);
        for ((name, parameter), gradient) in parameters.iter().zip(gradients) {
            let what = format!("{family}, {name}");
            assert!(gradient.defined(), "{what} has no gradient");
            let direction = random_like(parameter, 1);
            let slope = (&gradient * &direction).sum(Kind::Double).double_value(&[]);
            let moved = |by: f64| {
                tch::no_grad(|| {
                    let mut handle = parameter.shallow_clone();
                    let _ = handle.g_add_(&(&direction * by));
                    let loss = loss().double_value(&[]);
                    let _ = handle.g_sub_(&(&direction * by));
                    loss
                })
            };
            let found = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let scale = 1.0 + slope.abs();
            tally.compare(&what, &Tensor::from(slope / scale), &Tensor::from(found / scale), 1e-6);
        }
    }
    tally.finish("gradients of parameters");
}

/// A query that is padding sees nothing: no NaN comes of it, and a row has the gradient that it has alone.
#[test]
fn padded_rows_have_the_gradients_that_they_have_alone() {
    let mut tally = Tally::default();
    for (what, model) in in_fp64() {
        let mask = Tensor::from_slice2(&[[false, false, true, true, true], [true, false, true, true, false]]);
        let ids = Tensor::from_slice2(&[[1i64, 1, 7, 4, 12], [7, 1, 4, 12, 1]]);
        let gradient = |tokens: Tokens, select: Option<HookFilter>, columns: &[&[i64]]| {
            let mut embeddings = None;
            let hooks = Hooks::new().replace("hook_embed", |x, _| {
                let x = leaf(x);
                embeddings = Some(x.shallow_clone());
                x
            });
            let mut run = RunOptions::new().hooks(hooks);
            if let Some(select) = select {
                run = run.cache(select);
            }
            let logits = model.run(tokens, run).unwrap().logits.unwrap();
            let rows = columns.iter().enumerate().map(|(row, columns)| {
                let logits = logits.i(row as i64).index_select(0, &Tensor::from_slice(columns));
                (&logits * random_like(&logits, 3)).sum(Kind::Double)
            });
            let score: Tensor = rows.sum();
            Tensor::run_backward(&[score], &[embeddings.unwrap()], false, false).remove(0)
        };
        let columns: [&[i64]; 2] = [&[2, 3, 4], &[0, 2, 3]];
        let alone = gradient(Tokens::new(&Tensor::from_slice(&[7i64, 4, 12])).unwrap(), None, &[&[0, 1, 2]]);
        for select in [None, Some(HookFilter::All), Some(model.hook_names().into())] {
            let tokens = Tokens { ids: ids.shallow_clone(), mask: Some(mask.shallow_clone()), types: None };
            let found = gradient(tokens, select, &columns);
            assert_eq!(found.isfinite().all().int64_value(&[]), 1, "{what}: a gradient is no number");
            for (row, columns) in columns.iter().enumerate() {
                let of_row = found.i(row as i64).index_select(0, &Tensor::from_slice(columns));
                tally.compare(&format!("{what}, row {row}"), &of_row, &alone.i(0), 1e-9);
            }
        }
    }
    tally.finish("gradients of padded rows");
}

/// What a hook or the cache was shown stays what it was, whatever the forward pass writes in place.
#[test]
fn what_was_shown_is_not_overwritten() {
    let mut tally = Tally::default();
    for (what, model) in in_fp64() {
        let tokens = [5, 14, 3, 10];
        let all = model.run(tokens, RunOptions::new().cache(model.hook_names())).unwrap().cache;
        for (point, expected) in &all {
            let mut shown = None;
            let hooks = Hooks::new().observe(*point, |x, _| shown = Some(x.shallow_clone()));
            let cache = model.run(tokens, RunOptions::new().hooks(hooks).cache(*point)).unwrap().cache;
            tally.compare(&format!("{what}, {point}, cached"), &cache[*point], expected, 1e-9);
            tally.compare(&format!("{what}, {point}, observed"), &shown.unwrap(), expected, 1e-9);
        }
    }
    tally.finish("what was shown");
}

/// A model that is looked at in part keeps its gradients, and positions that are kept are on the path as well.
#[test]
fn kept_positions_are_on_the_path() {
    let model = fresh(small());
    let mut tally = Tally::default();
    for positions in [tch_lens::Slice::from(-1), (1..3).into(), vec![2, 0].into()] {
        for name in ["resid_post", "pattern", "z", "result", "mlp_in"] {
            let hooks = || Hooks::new().replace("hook_embed", |x, _| leaf(x));
            let score = |logits: &Tensor| (logits * random_like(logits, 3)).sum(Kind::Double);
            let whole = model.run([5, 14, 3, 10], RunOptions::new().hooks(hooks()).cache((name, 0))).unwrap();
            let of_whole = Tensor::run_backward(
                &[score(whole.logits.as_ref().unwrap())],
                &[&whole.cache[(name, 0)]],
                false,
                false,
            );
            let run = RunOptions::new().hooks(hooks()).cache((name, 0)).pos(positions.clone());
            let part = model.run([5, 14, 3, 10], run).unwrap();
            let of_part =
                Tensor::run_backward(&[score(part.logits.as_ref().unwrap())], &[&part.cache[(name, 0)]], false, false);
            assert!(of_part[0].defined(), "{name} at {positions}");
            let axis = if name == "pattern" { 2 } else { 1 };
            let expected = positions.apply(&of_whole[0], axis, "position").unwrap();
            let expected = if positions.drops_axis() { expected.unsqueeze(axis) } else { expected };
            tally.compare(&format!("{name} at {positions}"), &of_part[0], &expected, 1e-12);
        }
    }
    tally.finish("gradients at positions");
}
