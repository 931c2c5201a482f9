//! Circuits of every structure and family: edges by hand, sums of scores, the two ends.

use std::collections::BTreeMap;

use crate::common::models::in_fp64;
use crate::common::pairs::{in_double, pair, STRUCTURES};
use crate::common::{fixtures, Tally};
use tch::{IndexOp, Kind, Tensor};
use tch_lens::circuits::{Ablation, Circuit, CircuitEdge, CircuitNode, CircuitTask, EdgeMethod, HeadInput, NodeMethod};
use tch_lens::config::NormPosition;
use tch_lens::{
    hook, ActivationCache, BackwardRules, HookPoint, HookedTransformer, Hooks, LoadOptions, Metric, RunOptions,
};

/// Models between whose stream and heads lies more than a product: latents, with and without one of queries; gates of entries and of heads,
/// in layers of different numbers of heads; a router that chooses heads; differential heads; and norms of the stream itself.
const UNUSUAL: [&str; 7] = [
    "transformers/minicpm3",
    "transformers/deepseek_v2",
    "transformers/afmoe",
    "transformers/laguna",
    "transformers/jetmoe",
    "transformers/diffllama",
    "transformers/openai-gpt",
];

fn structures() -> impl Iterator<Item = &'static str> {
    STRUCTURES.into_iter().chain(UNUSUAL)
}

/// A model whose heads stand apart is the same function, also once it was saved.
#[test]
fn ungrouped_models_compute_the_same() {
    let mut tally = Tally::default();
    for family in structures() {
        let grouped = in_double(family);
        let model = grouped.ungrouped().unwrap();
        let (clean, ..) = pair();
        let expected = grouped.forward(&clean).unwrap();
        let (logits, cache) = model.run_with_cache(&clean).unwrap();
        tally.compare(family, &logits, &expected, 1e-12);
        for layer in 0..model.config().n_layers {
            let heads = cache[hook::q(layer)].size()[2];
            assert_eq!([hook::k(layer), hook::v(layer)].map(|point| cache[point].size()[2]), [heads; 2], "{family}");
        }
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path()).unwrap();
        let again = LoadOptions::new().kind(Kind::Double).open(folder.path()).unwrap();
        assert_eq!(again.config(), model.config(), "{family}");
        tally.compare(&format!("{family}, saved"), &again.forward(&clean).unwrap(), &logits, 1e-12);
    }
    tally.finish("ungrouped models");

    // A router's heads are those of all experts; each token has gates for as many as it goes to.
    let routed = in_double("transformers/jetmoe");
    let experts = routed.config().attention.experts.unwrap();
    let model = routed.ungrouped().unwrap();
    let (_, cache) = model.run_with_cache(&pair().0).unwrap();
    let gates = &cache[hook::head_gate(0)]; // [batch, pos, head, 1]
    let heads = routed.config().n_key_value_heads;
    assert_eq!(gates.size()[2], (experts.num_experts * heads) as i64);
    let open = gates.not_equal(0.0).sum_dim_intlist([2i64].as_slice(), false, Kind::Int64);
    let expected = Tensor::full_like(&open, (experts.experts_per_token * heads) as i64);
    assert_eq!(open, expected);
}

/// The heads of a node: as `W_O` reads what they mixed, and as they read the stream.
fn heads_of(model: &HookedTransformer, layer: usize, head: usize) -> (Vec<i64>, Vec<i64>) {
    let head = head as i64;
    match model.config().attention.differential {
        false => (vec![head], vec![head]),
        true => {
            let half = model.config().heads(layer).query as i64 / 2;
            (vec![2 * head, 2 * head + 1], vec![head, head + half])
        }
    }
}

/// The point at which a receiver reads, its heads there, and the point of the stream that it reads.
fn input_of(edge: CircuitEdge, model: &HookedTransformer) -> (HookPoint, Vec<i64>, HookPoint) {
    let in_stream = model.config().norm_position() == NormPosition::InStream;
    let (config, point) = (model.config(), |layer, input| match input {
        Some(HeadInput::Q) => hook::q_input(layer),
        Some(HeadInput::K) => hook::k_input(layer),
        _ => hook::v_input(layer),
    });
    match edge.to {
        CircuitNode::Head { layer, head } => {
            (point(layer, edge.input), heads_of(model, layer, head).1, hook::resid_pre(layer))
        }
        CircuitNode::Mlp { layer } if in_stream => (hook::mlp_hook_in(layer), vec![], hook::mlp_hook_in(layer)),
        CircuitNode::Mlp { layer } if config.parallel_attn_mlp => (hook::mlp_in(layer), vec![], hook::resid_pre(layer)),
        CircuitNode::Mlp { layer } => (hook::mlp_in(layer), vec![], hook::resid_mid(layer)),
        _ if in_stream => (hook::normalized_resid_post(-1), vec![], hook::normalized_resid_post(config.n_layers - 1)),
        _ => (hook::resid_post(config.n_layers - 1), vec![], hook::resid_post(config.n_layers - 1)),
    }
}

/// A task's two runs.
struct ByHand<'t> {
    model: &'t HookedTransformer,
    metric: &'t Metric<'t>,
    clean: &'t Tensor,
    before: ActivationCache,
    after: ActivationCache,
}

impl<'t> ByHand<'t> {
    fn new(model: &'t HookedTransformer, metric: &'t Metric<'t>, clean: &'t Tensor, corrupted: &Tensor) -> Self {
        let n_layers = model.config().n_layers;
        let points: Vec<HookPoint> = (0..n_layers)
            .flat_map(|l| [hook::z(l), hook::mlp_out(l), hook::attn_out(l)])
            .chain([hook::embed()])
            .collect();
        let of = |tokens| model.run_with_cache_of(tokens, points.clone()).unwrap().1;
        ByHand { model, metric, clean, before: of(clean), after: of(corrupted) }
    }

    /// The metric where one edge carries `amount` of the way to what it carries ablated: with all other nodes as they are, what reaches the
    /// receiver's stream; then a run in which the receiver alone reads that.
    fn moved(&self, edge: CircuitEdge, amount: f64) -> f64 {
        let between = |point: HookPoint| &self.before[point] + (&self.after[point] - &self.before[point]) * amount;
        let n_layers = self.model.config().n_layers;
        let nodes: Vec<HookPoint> = (0..n_layers).flat_map(|l| [hook::z(l), hook::mlp_out(l)]).collect();
        let hooks = Hooks::new().freeze(nodes, &self.before);
        let hooks = match edge.from {
            CircuitNode::Head { layer, head } => {
                let (z, heads) = (between(hook::z(layer)), heads_of(self.model, layer, head).0);
                hooks.edit(hook::z(layer), move |x, _| {
                    heads.iter().for_each(|head| x.select(2, *head).copy_(&z.select(2, *head)));
                })
            }
            CircuitNode::Mlp { layer } => {
                let out = between(hook::mlp_out(layer));
                hooks.replace(hook::mlp_out(layer), move |_, _| out.shallow_clone())
            }
            _ => {
                let embed = between(hook::embed());
                hooks.replace(hook::embed(), move |_, _| embed.shallow_clone())
            }
        };
        let (point, heads, stream) = input_of(edge, self.model);
        let told = self.model.run(self.clean, RunOptions::new().hooks(hooks).cache(stream)).unwrap().cache;
        let hooks = Hooks::new().edit(point, |x, _| match heads.is_empty() {
            true => x.copy_(&told[stream]),
            false => heads.iter().for_each(|head| x.select(2, *head).copy_(&told[stream])),
        });
        let output = self.model.run(self.clean, RunOptions::new().hooks(hooks)).unwrap();
        self.metric.scalar(output.logits().unwrap(), &output.cache).unwrap().double_value(&[])
    }
}

/// An ablated edge is a run in which its receiver alone reads something else, and its score by gradients is the slope there.
#[test]
fn edges_are_moved_by_hand() {
    let mut tally = Tally::default();
    for family in structures() {
        let grouped = in_double(family);
        let model = grouped.ungrouped().unwrap();
        let (clean, corrupted, metric) = pair();
        let task = CircuitTask::new(&grouped, &clean, Ablation::counterfactual(&corrupted), &metric).unwrap();
        let scores = task.edge_scores(EdgeMethod::Gradient).unwrap();
        let by_hand = ByHand::new(&model, &metric, &clean, &corrupted);
        let edges: Vec<CircuitEdge> = task.graph().edges().collect();
        for edge in edges.iter().copied().step_by(edges.len() / 25 + 1) {
            let circuit = Circuit::full(task.graph().clone()).without([edge]).unwrap();
            let ours = Tensor::from(task.metric_of(&circuit).unwrap());
            tally.compare(&format!("{family}, {edge}"), &ours, &Tensor::from(by_hand.moved(edge, 1.0)), 1e-9);
            let slope = (by_hand.moved(edge, 1e-4) - by_hand.moved(edge, -1e-4)) / 2e-4;
            let ours = Tensor::from(scores.get(edge).unwrap() / (1.0 + slope.abs()));
            let slope = Tensor::from(slope / (1.0 + slope.abs()));
            tally.compare(&format!("{family}, slope of {edge}"), &ours, &slope, 1e-6);
        }
    }
    tally.finish("edges by hand");
}

/// Every edge by itself: the gradient at what the receiver reads, where heads read apart, times the change that the sender makes to the
/// stream.
#[test]
fn edge_scores_are_gradients_times_differences() {
    let mut tally = Tally::default();
    // Where norms change the stream itself, edges pass through them: `edges_are_moved_by_hand`.
    for family in structures().filter(|family| *family != "transformers/openai-gpt") {
        let grouped = in_double(family);
        let model = grouped.ungrouped().unwrap();
        let (clean, corrupted, metric) = pair();
        for rules in [BackwardRules::new(), BackwardRules::relp()] {
            let task = CircuitTask::new(&grouped, &clean, Ablation::counterfactual(&corrupted), &metric)
                .unwrap()
                .backward_rules(rules);
            let scores = task.edge_scores(EdgeMethod::Gradient).unwrap();
            let config = model.config();
            let mut names: Vec<HookPoint> = Vec::new();
            for layer in 0..config.n_layers {
                names.extend([hook::q_input(layer), hook::k_input(layer), hook::v_input(layer), hook::mlp_in(layer)]);
            }
            names.push(hook::resid_post(-1));
            let run = RunOptions::new().cache(names).backward_rules(rules);
            let gradients =
                model.run_with_grad(&clean, run, |run| metric.scalar(run.logits()?, &run.cache)).unwrap().gradients;
            let ByHand { before, after, .. } = ByHand::new(&model, &metric, &clean, &corrupted);
            let mut changes = BTreeMap::new();
            for node in task.graph().senders() {
                let difference = |point: HookPoint| &after[point] - &before[point];
                let change = match node {
                    CircuitNode::Head { layer, head } => {
                        let z = difference(hook::z(layer));
                        let of_head = z.zeros_like();
                        for head in heads_of(&model, layer, head).0 {
                            of_head.i((.., .., head)).copy_(&z.i((.., .., head)));
                        }
                        let run = RunOptions::new().backward_rules(rules);
                        let jacobian = model.jacobian(&clean, run, hook::attn_out(layer), hook::z(layer)).unwrap();
                        jacobian.jvp(&of_head).unwrap()
                    }
                    CircuitNode::Mlp { layer } => difference(hook::mlp_out(layer)),
                    _ => difference(hook::embed()),
                };
                changes.insert(node, change);
            }
            for edge in task.graph().edges() {
                let (point, heads, _) = input_of(edge, &model);
                let gradient = match heads.is_empty() {
                    true => gradients[point].shallow_clone(),
                    false => heads.iter().map(|head| gradients[point].select(2, *head)).sum(),
                };
                let expected = (gradient * &changes[&edge.from]).sum(Kind::Double);
                let scale = 1.0 + expected.abs().double_value(&[]);
                let ours = Tensor::from(scores.get(edge).unwrap());
                tally.compare(&format!("{family}, {edge}"), &(ours / scale), &(expected / scale), 1e-9);
            }
        }
    }
    assert!(tally.count > 1000, "{}", tally.count);
    tally.finish("edges");
}

/// Edge scores sum to node scores; the model without an ablated edge is the clean run, and with all it is the counterfactual one.
#[test]
fn sums_and_ends_hold_for_every_family() {
    let mut tally = Tally::default();
    for (what, model) in in_fp64() {
        let (clean, corrupted, metric) = pair();
        let task = CircuitTask::new(&model, &clean, Ablation::counterfactual(&corrupted), &metric).unwrap();
        let number = |x: f64| Tensor::from(x);
        let value = |tokens: &Tensor| {
            let output = model.run(tokens, RunOptions::new()).unwrap();
            metric.scalar(output.logits().unwrap(), &output.cache).unwrap()
        };
        let full = task.metric_of(&Circuit::full(task.graph().clone())).unwrap();
        tally.compare(&format!("{what}, all edges"), &number(full), &value(&clean), 1e-9);
        tally.compare(&format!("{what}, clean"), &number(task.clean_metric()), &value(&clean), 1e-9);
        tally.compare(&format!("{what}, no edges"), &number(task.ablated_metric().unwrap()), &value(&corrupted), 1e-9);

        for rules in [BackwardRules::new(), BackwardRules::relp()] {
            let ablation = Ablation::counterfactual(&corrupted);
            let task = CircuitTask::new(&model, &clean, ablation, &metric).unwrap().backward_rules(rules);
            for (edges, nodes) in [
                (EdgeMethod::Gradient, NodeMethod::Gradient),
                (EdgeMethod::IntegratedInputs { steps: 2 }, NodeMethod::IntegratedInputs { steps: 2 }),
            ] {
                let sums = Tensor::from_slice(&task.edge_scores(edges).unwrap().by_sender());
                let nodes = task.node_scores(nodes).unwrap();
                let scale = 1.0 + sums.abs().max().double_value(&[]);
                let nodes = Tensor::from_slice(nodes.scores());
                tally.compare(&format!("{what}, {edges:?}"), &(sums / scale), &(nodes / scale), 1e-9);
            }
        }
    }
    tally.finish("sums of edges");
}

/// Families whose layers multiply the stream, so that it is no sum of what nodes write, and those that choose keys.
const WITHOUT_CIRCUITS: [&str; 5] = ["beam", "doge", "gemma4", "deepseek_v32", "glm_moe_dsa"];

/// The same, and gradients through cuts at every point, for every family of transformers that loads.
#[test]
fn every_family_of_transformers_has_gradients_and_circuits() {
    let folders = std::fs::read_dir(fixtures().join("transformers")).unwrap();
    let mut folders: Vec<std::path::PathBuf> = folders.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let (mut tally, mut loaded) = (Tally::default(), 0);
    for folder in folders.iter().filter(|folder| folder.join("config.json").is_file()) {
        let load = LoadOptions::new().no_processing().kind(Kind::Double);
        let Ok(model) = load.open(folder) else { continue }; // refused: `transformers_families` says why
        loaded += 1;
        let what = folder.file_name().unwrap().to_str().unwrap();
        let (clean, corrupted, metric) = pair();
        let scalar = |output: &tch_lens::RunOutput| metric.scalar(output.logits()?, &output.cache);
        let plain = model.run_with_grad(&clean, RunOptions::new(), scalar).unwrap();
        let hooks = Hooks::new().replace_gradient(plain.gradients.keys().collect::<Vec<_>>(), |g, _| g * 1.0);
        let cut = model.run_with_grad(&clean, RunOptions::new().hooks(hooks), scalar).unwrap();
        for (point, gradient) in plain.gradients.items().filter(|(_, gradient)| gradient.numel() > 0) {
            let scale = 1.0 + gradient.abs().max().double_value(&[]);
            tally.compare(&format!("{what}, {point}"), &(&cut.gradients[point] / scale), &(gradient / scale), 1e-9);
        }
        // The slope in a direction of the embeddings.
        let embed = &plain.run.cache["hook_embed"];
        let direction = embed.sin();
        let moved = |by: f64| {
            let hooks = Hooks::new().replace("hook_embed", |x, _| x + &direction * by);
            let output = model.run(&clean, RunOptions::new().hooks(hooks)).unwrap();
            scalar(&output).unwrap().double_value(&[])
        };
        let slope = (&plain.gradients["hook_embed"] * &direction).sum(Kind::Double).double_value(&[]);
        let found = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        let scale = 1.0 + slope.abs();
        tally.compare(&format!("{what}, slope"), &Tensor::from(slope / scale), &Tensor::from(found / scale), 1e-6);

        let task = match CircuitTask::new(&model, &clean, Ablation::counterfactual(&corrupted), &metric) {
            Ok(task) => task,
            Err(error) if WITHOUT_CIRCUITS.iter().any(|start| what.starts_with(start)) => {
                assert!(matches!(error, tch_lens::Error::Unsupported { .. }), "{what}: {error}");
                continue;
            }
            Err(error) => panic!("{what}: {error}"),
        };
        let full = task.metric_of(&Circuit::full(task.graph().clone())).unwrap();
        let other = model.run(&corrupted, RunOptions::new()).unwrap();
        let other = scalar(&other).unwrap().double_value(&[]);
        for (end, ours, theirs) in
            [("all edges", full, plain.value), ("no edges", task.ablated_metric().unwrap(), other)]
        {
            tally.compare(&format!("{what}, {end}"), &Tensor::from(ours), &Tensor::from(theirs), 1e-9);
        }
        let shares = task.edge_scores(EdgeMethod::InformationFlow).unwrap().tensor().unwrap();
        let sums = shares.sum_dim_intlist([0i64].as_slice(), false, None); // [receiver]
        assert!(shares.min().double_value(&[]) >= 0.0 && sums.max().double_value(&[]) <= 1.0 + 1e-9, "{what}: {sums}");
        let mut task = task;
        for rules in [BackwardRules::new(), BackwardRules::relp()] {
            task = task.backward_rules(rules);
            let edges = Tensor::from_slice(&task.edge_scores(EdgeMethod::Gradient).unwrap().by_sender());
            let nodes = Tensor::from_slice(task.node_scores(NodeMethod::Gradient).unwrap().scores());
            let scale = 1.0 + edges.abs().max().double_value(&[]);
            tally.compare(&format!("{what}, sums"), &(edges / scale), &(nodes / scale), 1e-9);
        }
    }
    println!("{loaded} families");
    assert!(loaded >= 100, "{loaded}");
    tally.finish("families of transformers");
}
