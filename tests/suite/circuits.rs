//! Scores of edges and nodes, and what circuits do: against the field's Python tools and brute force, in every family.

use std::collections::BTreeMap;

use crate::common::models::{fresh, in_fp64, small};
use crate::common::pairs::{in_double, pair, Pair, STRUCTURES};
use crate::common::{fixtures, Tally};
use rstest::rstest;
use tch::{IndexOp, Kind, Tensor};
use tch_lens::circuits::{
    Ablation, Circuit, CircuitEdge, CircuitNode, CircuitTask, EdgeMethod, EdgeScores, HeadInput, NodeMethod,
};
use tch_lens::config::{NormPosition, PerLayer};
use tch_lens::gradient::{AttributionPatchingOptions, IntegratedGradientsOptions};
use tch_lens::{hook, BackwardRules, Config, HookPoint, Hooks, LoadOptions, Metric, RunOptions, Tokens};

#[rstest]
#[case("toy_ioi_one")]
#[case("toy_ioi_two")]
#[case("llama_gqa_tied")]
fn scores_are_the_tools(#[case] name: &str) {
    let pair = Pair::open(name);
    let metric = pair.metric();
    let task = pair.task(&metric);
    let graph = *task.graph();
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(fixtures().join(format!("circuits/{name}_eap.json"))).unwrap())
            .unwrap();
    let names: Vec<String> = graph.senders().map(|node| node.to_string()).collect();
    assert_eq!(serde_json::json!(names), json["eap"]["src"]);
    assert_eq!(graph.n_edges(), json["eap"]["n_edges"].as_u64().unwrap() as usize);

    let mut tally = Tally::default();
    let expected = |key: &str| pair.tensors[key].to_kind(Kind::Double);
    let steps = 5;
    let mut compare = |key: &str, method: EdgeMethod, factor: f64| {
        if pair.tensors.contains_key(key) {
            let ours = task.edge_scores(method).unwrap().tensor().unwrap();
            // Without position embeddings, the package loses the gradients of the first layer's heads where embeddings are constants.
            let loses_heads = name == "llama_gqa_tied" && key.ends_with("IG-activations");
            let first = if loses_heads { 3 * pair.model.config().n_heads as i64 } else { 0 };
            let compared = |x: &Tensor| x.narrow(1, first, x.size()[1] - first);
            tally.compare(&format!("{name}, {key}"), &compared(&ours), &compared(&(expected(key) * factor)), 1e-4);
        }
    };
    // The package divides by the batch once more than the mean does.
    let batch = pair.batch();
    compare("def.edge.EAP", EdgeMethod::Gradient, 1.0);
    compare("eap.edge.EAP", EdgeMethod::Gradient, batch);
    compare("eap.edge.EAP-IG-inputs", EdgeMethod::IntegratedInputs { steps }, batch);
    compare("eap.edge.EAP-IG-activations", EdgeMethod::IntegratedActivations { steps }, batch);
    compare("eap.edge.clean-corrupted", EdgeMethod::CleanAndCounterfactual, batch);
    compare("eap.edge.information-flow-routes", EdgeMethod::InformationFlow, 1.0);
    compare("eap.edge.exact", EdgeMethod::Exact, 1.0);

    let nodes = task.node_scores(NodeMethod::Gradient).unwrap();
    let ours = Tensor::from_slice(nodes.scores());
    tally.compare("def.node.EAP", &ours, &expected("def.node.EAP"), 1e-4);
    // The package takes the gradient of an MLP at its input.
    let others: Vec<i64> = graph
        .senders()
        .enumerate()
        .filter(|(_, node)| !matches!(node, CircuitNode::Mlp { .. }))
        .map(|(index, _)| index as i64)
        .collect();
    let rows = Tensor::from_slice(&others);
    // The package's integrated node scores leave out the ablated end rather than the clean one.
    let integrated = |steps| task.node_scores(NodeMethod::IntegratedInputs { steps }).unwrap().dimensions().copy();
    let moved = integrated(steps) + (nodes.dimensions() - integrated(1)) / steps as f64;
    for (method, dimensions) in [("EAP", nodes.dimensions()), ("EAP-IG-inputs", &moved)] {
        let ours = dimensions.index_select(0, &rows);
        let theirs = |level: &str| expected(&format!("eap.{level}.{method}")).index_select(0, &rows) * batch;
        tally.compare(&format!("eap.neuron.{method}"), &ours, &theirs("neuron"), 1e-4);
        let sums = ours.sum_dim_intlist([1i64].as_slice(), false, None);
        tally.compare(&format!("eap.node.{method}"), &sums, &theirs("node"), 1e-4);
    }

    // Circuits of the package's own scores, and what they do.
    let theirs = expected("eap.edge.EAP-IG-inputs");
    let value = |edge: CircuitEdge| {
        let (sender, receiver) = graph.edge_index(edge).unwrap();
        Ok(theirs.double_value(&[sender as i64, receiver as i64]))
    };
    let scores = EdgeScores::from_fn(graph, value).unwrap();
    for (kind, circuit) in [("topn60", scores.top_n(60).unwrap()), ("greedy60", scores.greedy(60).unwrap())] {
        let kept = |key: &str| pair.tensors[&format!("eap.circuit.{kind}.{key}")].shallow_clone();
        for edge in graph.edges() {
            let (sender, receiver) = graph.edge_index(edge).unwrap();
            let theirs = kept("in_graph").int64_value(&[sender as i64, receiver as i64]) != 0;
            assert_eq!(circuit.contains(edge), theirs, "{name}, {kind}, {edge}");
        }
        let nodes: Vec<bool> = graph.senders().map(|node| circuit.contains_node(node)).collect();
        assert_eq!(nodes, Vec::<bool>::try_from(kept("nodes_in_graph")).unwrap(), "{name}, {kind}");
        let ours = Tensor::from(task.metric_of(&circuit).unwrap());
        tally.compare(&format!("{name}, {kind}"), &ours, &kept("metric").to_kind(Kind::Double), 1e-4);
    }
    tally.finish("EAP");
}

/// The point at which a receiver reads, and its head.
fn input_of(edge: CircuitEdge, n_layers: usize) -> (HookPoint, Option<i64>) {
    match (edge.to, edge.input) {
        (CircuitNode::Head { layer, head }, Some(HeadInput::Q)) => (hook::q_input(layer), Some(head as i64)),
        (CircuitNode::Head { layer, head }, Some(HeadInput::K)) => (hook::k_input(layer), Some(head as i64)),
        (CircuitNode::Head { layer, head }, _) => (hook::v_input(layer), Some(head as i64)),
        (CircuitNode::Mlp { layer }, _) => (hook::mlp_in(layer), None),
        _ => (hook::resid_post(n_layers - 1), None),
    }
}

/// Every edge by itself: the gradient at what the receiver reads, where heads read apart, times the change that the sender makes to the
/// stream.
#[test]
fn edge_scores_are_gradients_times_differences() {
    let mut tally = Tally::default();
    for family in STRUCTURES {
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
            let points: Vec<HookPoint> =
                (0..config.n_layers).flat_map(|l| [hook::z(l), hook::mlp_out(l)]).chain([hook::embed()]).collect();
            let [before, after] =
                [&clean, &corrupted].map(|tokens| model.run_with_cache_of(tokens, points.clone()).unwrap().1);
            let mut changes = BTreeMap::new();
            for node in task.graph().senders() {
                let difference = |point: HookPoint| &after[point] - &before[point];
                let change = match node {
                    CircuitNode::Head { layer, head } => {
                        let z = difference(hook::z(layer));
                        let of_head = z.zeros_like();
                        of_head.i((.., .., head as i64)).copy_(&z.i((.., .., head as i64)));
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
                let (point, head) = input_of(edge, config.n_layers);
                let gradient = gradients[point].shallow_clone();
                let gradient = head.map_or(gradient.shallow_clone(), |head| gradient.select(2, head));
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
        let full = task.metric_of(&Circuit::full(*task.graph())).unwrap();
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

/// The same, and gradients through cuts at every point, for every family of transformers that loads.
/// Whether every layer has the same heads, with queries, keys and values that are linear in what attention reads.
fn has_plain_heads(config: &Config) -> bool {
    let attention = &config.attention;
    attention.latent.is_none()
        && attention.experts.is_none()
        && attention.gate.is_none()
        && attention.heads == PerLayer::default()
        && attention.d_value.is_none_or(|d_value| d_value == config.d_head)
}

#[test]
fn every_family_of_transformers_has_gradients_and_circuits() {
    let folders = std::fs::read_dir(fixtures().join("transformers")).unwrap();
    let mut folders: Vec<std::path::PathBuf> = folders.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let (mut tally, mut loaded, mut refused) = (Tally::default(), 0, 0);
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

        let task = CircuitTask::new(&model, &clean, Ablation::counterfactual(&corrupted), &metric);
        let task = match task {
            Err(error) if model.config().norm_position() == NormPosition::InStream => {
                assert!(error.to_string().contains("norms change the stream itself"), "{what}: {error}");
                continue;
            }
            Err(error) if !has_plain_heads(model.config()) => {
                assert!(error.to_string().contains("linear in what attention reads"), "{what}: {error}");
                refused += 1;
                continue;
            }
            task => task.unwrap_or_else(|error| panic!("{what}: {error}")),
        };
        let full = task.metric_of(&Circuit::full(*task.graph())).unwrap();
        let other = model.run(&corrupted, RunOptions::new()).unwrap();
        let other = scalar(&other).unwrap().double_value(&[]);
        for (end, ours, theirs) in
            [("all edges", full, plain.value), ("no edges", task.ablated_metric().unwrap(), other)]
        {
            tally.compare(&format!("{what}, {end}"), &Tensor::from(ours), &Tensor::from(theirs), 1e-9);
        }
        let edges = Tensor::from_slice(&task.edge_scores(EdgeMethod::Gradient).unwrap().by_sender());
        let nodes = Tensor::from_slice(task.node_scores(NodeMethod::Gradient).unwrap().scores());
        let scale = 1.0 + edges.abs().max().double_value(&[]);
        tally.compare(&format!("{what}, sums"), &(edges / scale), &(nodes / scale), 1e-9);
    }
    println!("{loaded} families, {refused} of which have heads that no edges lead to");
    assert!(loaded >= 100 && loaded - refused >= 70, "{loaded}, {refused}");
    tally.finish("families of transformers");
}

/// Ablating one edge is a run in which its receiver alone reads something else.
#[test]
fn an_edge_is_ablated_by_hand() {
    let mut tally = Tally::default();
    for family in STRUCTURES {
        let grouped = in_double(family);
        let model = grouped.ungrouped().unwrap();
        let (clean, corrupted, metric) = pair();
        let task = CircuitTask::new(&grouped, &clean, Ablation::counterfactual(&corrupted), &metric).unwrap();
        let n_layers = model.config().n_layers;
        let points: Vec<HookPoint> = (0..n_layers)
            .flat_map(|l| [hook::z(l), hook::mlp_out(l), hook::attn_out(l)])
            .chain([hook::embed()])
            .collect();
        let [before, after] =
            [&clean, &corrupted].map(|tokens| model.run_with_cache_of(tokens, points.clone()).unwrap().1);
        for edge in task.graph().edges().step_by(7) {
            let change = match edge.from {
                CircuitNode::Head { layer, head } => {
                    // What attention writes where this head alone is another, through any norm after it.
                    let other = after[hook::z(layer)].select(2, head as i64);
                    let hooks = Hooks::new().replace(hook::z(layer), |z, _| {
                        let z = z.copy();
                        z.select(2, head as i64).copy_(&other);
                        z
                    });
                    let run = RunOptions::new().hooks(hooks).cache(hook::attn_out(layer));
                    &model.run(&clean, run).unwrap().cache[hook::attn_out(layer)] - &before[hook::attn_out(layer)]
                }
                CircuitNode::Mlp { layer } => &after[hook::mlp_out(layer)] - &before[hook::mlp_out(layer)],
                _ => &after[hook::embed()] - &before[hook::embed()],
            };
            let (point, head) = input_of(edge, n_layers);
            let hooks = Hooks::new().replace(point, |x, _| match head {
                Some(head) => {
                    let x = x.copy();
                    let _ = x.select(2, head).g_add_(&change);
                    x
                }
                None => x + &change,
            });
            let output = model.run(&clean, RunOptions::new().hooks(hooks)).unwrap();
            let expected = metric.scalar(output.logits().unwrap(), &output.cache).unwrap();
            let circuit = Circuit::full(*task.graph()).without([edge]).unwrap();
            let ours = Tensor::from(task.metric_of(&circuit).unwrap());
            tally.compare(&format!("{family}, {edge}"), &ours, &expected, 1e-9);
        }
    }
    tally.finish("ablated edges");
}

/// Other ablations: a mean over one prompt's positions is what it is there, and padding does not count.
#[test]
fn means_and_zeros_are_ablations() {
    let model = fresh(small());
    let metric = Metric::logit_diff(7, 3);
    let clean = Tensor::from_slice2(&[[5i64, 14, 3, 10]]);
    let other = Tensor::from_slice2(&[[5i64, 4, 3, 10]]);
    let ablated = |ablation: Ablation| {
        let task = CircuitTask::new(&model, &clean, ablation, &metric).unwrap();
        (task.ablated_metric().unwrap(), task.edge_scores(EdgeMethod::Gradient).unwrap().tensor().unwrap())
    };
    let (counterfactual, scores) = ablated(Ablation::counterfactual(&other));
    let (per_position, same) = ablated(Ablation::mean_per_position(&other));
    assert!((counterfactual - per_position).abs() < 1e-12 && scores.allclose(&same, 1e-9, 1e-9, false));

    let padded = |filler: i64| Tokens {
        ids: Tensor::from_slice2(&[[5i64, 4, 3, 10], [9, 6, filler, filler]]),
        mask: Some(Tensor::from_slice2(&[[true, true, true, true], [true, true, false, false]])),
    };
    let means = [1, 2].map(|filler| ablated(Ablation::mean(padded(filler))).0);
    assert!((means[0] - means[1]).abs() < 1e-12);
    let twice = Tensor::from_slice2(&[[5i64, 4, 3, 10], [5, 4, 3, 10]]);
    let of_one = ablated(Ablation::mean(&other)).0;
    assert!((of_one - ablated(Ablation::mean(&twice)).0).abs() < 1e-12 && (of_one - means[0]).abs() > 1e-6);

    // Nothing but positions and biases is left.
    let (zero, _) = ablated(Ablation::zero());
    let hooks = Hooks::new().patch(["hook_embed", "z", "mlp_out"], tch_lens::Patch::zero());
    let output = model.run(&clean, RunOptions::new().hooks(hooks)).unwrap();
    let expected = metric.scalar(output.logits().unwrap(), &output.cache).unwrap().double_value(&[]);
    assert!((zero - expected).abs() < 1e-9, "{zero}, {expected}");
    let hooks =
        Hooks::new().replace(["embed", "attn_out", "mlp_out"].map(String::from).to_vec(), |x, _| x.zeros_like());
    let _ = hooks;
    let task = CircuitTask::new(&model, &clean, Ablation::zero(), &metric).unwrap();
    assert!((task.faithfulness(&Circuit::full(*task.graph())).unwrap() - 1.0).abs() < 1e-9);
}

/// Each prompt of a padded batch counts as it does alone.
#[test]
fn padding_does_not_count() {
    let mut tally = Tally::default();
    for family in STRUCTURES {
        let model = in_double(family);
        let metric = Metric::logit_diff(4, 3);
        let alone = [([5i64, 14, 3, 10].to_vec(), [5i64, 4, 3, 10].to_vec()), (vec![9, 6], vec![11, 6])];
        let mut sum: Option<(Tensor, f64)> = None;
        for (clean, corrupted) in &alone {
            let ablation = Ablation::counterfactual(corrupted.as_slice());
            let task = CircuitTask::new(&model, clean.as_slice(), ablation, &metric).unwrap();
            let scores = task.edge_scores(EdgeMethod::Gradient).unwrap();
            let circuit = scores.top_n(0).unwrap();
            let (tensor, metric) = (scores.tensor().unwrap() / 2.0, task.metric_of(&circuit).unwrap() / 2.0);
            sum = Some(sum.map_or((tensor.shallow_clone(), metric), |(t, m)| (t + &tensor, m + metric)));
        }
        let (expected, expected_metric) = sum.unwrap();
        for left in [true, false] {
            let padded = |rows: [&[i64]; 2]| {
                let short = if left { [1, 1, rows[1][0], rows[1][1]] } else { [rows[1][0], rows[1][1], 1, 1] };
                let real = if left { [false, false, true, true] } else { [true, true, false, false] };
                let ids = [[rows[0][0], rows[0][1], rows[0][2], rows[0][3]], short];
                Tokens { ids: Tensor::from_slice2(&ids), mask: Some(Tensor::from_slice2(&[[true; 4], real])) }
            };
            let clean = padded([&alone[0].0, &alone[1].0]);
            let ablation = Ablation::counterfactual(padded([&alone[0].1, &alone[1].1]));
            let task = CircuitTask::new(&model, &clean, ablation, &metric).unwrap();
            let scores = task.edge_scores(EdgeMethod::Gradient).unwrap();
            tally.compare(&format!("{family}, left {left}"), &scores.tensor().unwrap(), &expected, 1e-9);
            let metric = Tensor::from(task.metric_of(&scores.top_n(0).unwrap()).unwrap());
            tally.compare(&format!("{family}, left {left}, metric"), &metric, &Tensor::from(expected_metric), 1e-9);
        }
    }
    tally.finish("padded prompts");
}

/// A metric of activations is kept by the runs that need it.
#[test]
fn a_metric_may_be_of_activations() {
    let model = fresh(small());
    let (clean, corrupted, _) = pair();
    let metric = Metric::with_cache("pattern", |_, cache| cache[hook::pattern(1)].i((.., 1, -1, 1)));
    let task = CircuitTask::new(&model, &clean, Ablation::counterfactual(&corrupted), &metric).unwrap();
    let value = |tokens: &Tensor| {
        let (_, cache) = model.run_with_cache(tokens).unwrap();
        cache[hook::pattern(1)].i((.., 1, -1, 1)).mean(Kind::Double).double_value(&[])
    };
    assert!((task.clean_metric() - value(&clean)).abs() < 1e-12);
    assert!((task.ablated_metric().unwrap() - value(&corrupted)).abs() < 1e-9);
    let scores = task.edge_scores(EdgeMethod::IntegratedInputs { steps: 3 }).unwrap();
    let nodes = task.node_scores(NodeMethod::IntegratedInputs { steps: 3 }).unwrap();
    for (sum, node) in scores.by_sender().into_iter().zip(nodes.scores()) {
        assert!((sum - node).abs() < 1e-9);
    }
    // Nothing after the pattern counts.
    assert_eq!(scores.get("input->logits".parse().unwrap()).unwrap(), 0.0);
    let options = AttributionPatchingOptions::new().points("resid_pre");
    let estimates = model.attribution_patching(&corrupted, &clean, &metric, options).unwrap();
    assert!((estimates.source_metric() - task.clean_metric()).abs() < 1e-9);
    let shares = model
        .integrated_gradients(&clean, hook::embed(), 0.0, &metric, IntegratedGradientsOptions::new().steps(30))
        .unwrap();
    assert!(shares.completeness_error().unwrap().abs().max().double_value(&[]) < 1e-3);
}
