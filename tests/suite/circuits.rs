//! Attribution patching, integrated gradients and circuits: against the field's Python tools, brute force, and a model whose circuit is
//! known.

use crate::common::models::{fresh, in_fp64, small};
use crate::common::{fixtures, read, Fixture, Tally};
use rstest::rstest;
use std::collections::BTreeMap;
use tch::{Device, IndexOp, Kind, Tensor};
use tch_lens::analysis::Answer;
use tch_lens::circuits::{
    Ablation, Circuit, CircuitEdge, CircuitFile, CircuitGraph, CircuitNode, CircuitTask, CurveOptions, EdgeMethod,
    EdgeScores, HeadInput, NodeMethod,
};
use tch_lens::config::{NormConfig, Normalization};
use tch_lens::gradient::{AttributionPatchingOptions, IntegratedGradientsOptions, Quadrature};
use tch_lens::{
    hook, BackwardRules, Config, HookPoint, HookedTransformer, Hooks, LoadOptions, Metric, RunOptions, Tokens,
};

/// What the tools compute on pairs of prompts.
struct Pair {
    tensors: BTreeMap<String, Tensor>,
    model: HookedTransformer,
    answers: [Vec<i64>; 2],
}

impl Pair {
    fn open(name: &str) -> Self {
        let mut tensors = read(&fixtures().join(format!("interventions/{name}.safetensors")));
        tensors.extend(read(&fixtures().join(format!("circuits/{name}_eap.safetensors"))));
        let raw = LoadOptions::new().no_processing();
        let model = match name.starts_with("toy") {
            true => raw.toy().unwrap(),
            false => raw.open(Fixture::folder(name)).unwrap(),
        };
        let answers = [0, 1].map(|column| Vec::try_from(tensors["answers"].select(1, column)).unwrap());
        Pair { tensors, model, answers }
    }

    fn metric(&self) -> Metric<'static> {
        let [right, wrong] = self.answers.clone();
        Metric::logit_diff(Answer::per_row(right), Answer::per_row(wrong))
    }

    fn task<'m>(&self, metric: &'m Metric<'static>) -> CircuitTask<'m, 'static> {
        let ablation = Ablation::counterfactual(&self.tensors["corrupted_tokens"]);
        CircuitTask::new(&self.model, &self.tensors["clean_tokens"], ablation, metric).unwrap()
    }

    fn batch(&self) -> f64 {
        self.answers[0].len() as f64
    }
}

#[rstest]
#[case("toy_ioi_one")]
#[case("toy_ioi_two")]
#[case("llama_gqa_tied")]
fn attribution_patching_is_the_tools(#[case] name: &str) {
    let pair = Pair::open(name);
    let metric = pair.metric();
    let [clean, corrupted] = ["clean", "corrupted"].map(|run| pair.tensors[&format!("{run}_tokens")].shallow_clone());
    let options = AttributionPatchingOptions::new();
    let estimates = pair.model.attribution_patching(&corrupted, &clean, &metric, options).unwrap();
    let mut tally = Tally::default();
    for (key, expected) in &pair.tensors {
        if let Some(site) = key.strip_prefix("attr.") {
            tally.compare(&format!("{name}, {site}"), &estimates.by_layer(site).unwrap(), expected, 1e-4);
        }
    }
    assert_eq!(tally.count, 9);
    for (what, ours) in [("clean", estimates.source_metric()), ("corrupted", estimates.base_metric())] {
        tally.compare(what, &Tensor::from(ours).to_kind(Kind::Float), &pair.tensors[&format!("{what}_metric")], 1e-4);
    }
    tally.finish("attribution patching");
}

#[rstest]
#[case("toy_ioi_one")]
#[case("toy_ioi_two")]
#[case("llama_gqa_tied")]
fn integrated_gradients_are_captum_s(#[case] name: &str) {
    let pair = Pair::open(name);
    let metric = pair.metric();
    let (clean, corrupted) = (&pair.tensors["clean_tokens"], &pair.tensors["corrupted_tokens"]);
    let (_, cache) = pair.model.run_with_cache_of(corrupted, hook::resid_pre(0)).unwrap();
    let stream = cache[hook::resid_pre(0)].shallow_clone();
    let mut tally = Tally::default();
    for (baseline, value) in [("zero", stream.zeros_like()), ("corrupted", stream)] {
        for (rule, quadrature) in [
            ("gausslegendre", Quadrature::GaussLegendre),
            ("riemann_left", Quadrature::Left),
            ("riemann_middle", Quadrature::Middle),
            ("riemann_right", Quadrature::Right),
            ("riemann_trapezoid", Quadrature::Trapezoid),
        ] {
            let options = IntegratedGradientsOptions::new().quadrature(quadrature).steps(16);
            let ours = pair.model.integrated_gradients(clean, hook::resid_pre(0), &value, &metric, options).unwrap();
            let what = format!("ig.{baseline}.{rule}");
            let expected = |suffix: &str| pair.tensors.get(&format!("{what}{suffix}"));
            let trapezoid = quadrature == Quadrature::Trapezoid;
            // Captum weighs the 16 points of a trapezoid with 1/16, whose sum is 15/16.
            let scale = if trapezoid { 15.0 / 16.0 } else { 1.0 };
            // At a stream of zeros a root-mean-square norm is so steep that shares go up to 6e6.
            let size = 1.0 + expected("").unwrap().abs().max().double_value(&[]);
            let relative = |x: &Tensor| x / size;
            tally.compare(
                &what,
                &relative(&(ours.by_position().unwrap() * scale)),
                &relative(expected("").unwrap()),
                1e-4,
            );
            if let Some(full) = expected(".full") {
                tally.compare(&format!("{what}.full"), ours.tensor(), full, 1e-4);
            }
            if !trapezoid {
                let delta = ours.completeness_error().unwrap();
                tally.compare(
                    &format!("{what}.delta"),
                    &relative(&delta),
                    &relative(expected(".delta").unwrap()),
                    1e-4,
                );
            }
            tally.compare("metric", ours.metric(), &pair.tensors["ig.metric_clean"], 1e-4);
            let of_baseline = &pair.tensors[&format!("ig.metric_{baseline}")];
            tally.compare("baseline", ours.baseline_metric(), of_baseline, 1e-4);
        }
    }
    tally.finish("integrated gradients");
}

/// With enough steps the shares sum to the difference of the metric, at any point and in every structure.
#[test]
fn integrated_gradients_are_complete() {
    let mut tally = Tally::default();
    for family in ["gpt2", "llama_gqa_tied", "gemma2", "gpt_neox", "olmo2", "mixtral"] {
        let model = LoadOptions::new().no_processing().kind(Kind::Double).open(Fixture::folder(family)).unwrap();
        let (clean, corrupted, metric) = pair();
        let (_, cache) = model.run_with_cache(&corrupted).unwrap();
        // A router's choice is no continuous function of the stream.
        let smooth = [hook::attn_out(0), hook::pattern(1), hook::z(0), hook::resid_post(1)];
        for point in smooth.into_iter().filter(|point| family != "mixtral" || *point == hook::resid_post(1)) {
            let options = IntegratedGradientsOptions::new().steps(100);
            let shares = model.integrated_gradients(&clean, point, &cache[point], &metric, options).unwrap();
            let scale = 1.0 + shares.metric().abs().max().double_value(&[]);
            let error = shares.completeness_error().unwrap() / scale;
            tally.compare(&format!("{family}, {point}"), &error, &error.zeros_like(), 1e-4);
        }
    }
    tally.finish("completeness of integrated gradients");
}

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

/// A pair of prompts for small models, and a metric.
fn pair() -> (Tensor, Tensor, Metric<'static>) {
    let clean = Tensor::from_slice2(&[[5i64, 14, 3, 10], [9, 6, 11, 5]]);
    let corrupted = Tensor::from_slice2(&[[5i64, 4, 3, 10], [9, 6, 2, 5]]);
    (clean, corrupted, Metric::logit_diff(4, 3))
}

const STRUCTURES: [&str; 6] = ["gpt2", "llama_gqa_tied", "gpt_neox", "gemma2", "olmo2", "mixtral"];

fn in_double(family: &str) -> HookedTransformer {
    LoadOptions::new().no_processing().kind(Kind::Double).open(Fixture::folder(family)).unwrap()
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
        let embed = &plain.output.cache["hook_embed"];
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
        if what.starts_with("openai") {
            assert!(task.unwrap_err().to_string().contains("norms change the stream itself"), "{what}");
            continue;
        }
        let task = task.unwrap();
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
    println!("{loaded} families");
    assert!(loaded >= 40, "{loaded}");
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

// --- a model whose circuit is known -----------------------------------------------------------------

const WORDS: i64 = 8;
const LENGTH: i64 = 8;

/// Induction by construction: head 0 of layer 0 copies the token before into a space of its own, and head 0 of layer 1 looks for the place
/// after an earlier occurrence of the present token and writes that token's logit. All other heads read everything, and write where nothing
/// reads but other heads of that kind.
fn induction_model() -> (HookedTransformer, Vec<CircuitEdge>) {
    let n_heads = 4;
    let (tokens, positions, before, answer, noise) = (0, WORDS, WORDS + LENGTH, 2 * WORDS + LENGTH, 3 * WORDS + LENGTH);
    let d_model = noise + 24;
    let d_head = WORDS.max(LENGTH);
    let options = (Kind::Float, Device::Cpu);
    let eye = |n: i64| Tensor::eye(n, options);
    // `[rows, columns]` with a block at a place.
    let block = |shape: [i64; 2], at: [i64; 2], of: &Tensor| {
        let matrix = Tensor::zeros(shape, options);
        let (rows, columns) = (of.size()[0], of.size()[1]);
        matrix.narrow(0, at[0], rows).narrow(1, at[1], columns).copy_(of);
        matrix
    };
    let reads = |place: i64, of: &Tensor| block([d_model, d_head], [place, 0], of);
    let writes = |place: i64, of: &Tensor| block([d_head, d_model], [0, place], of);
    // The key of position p − 1 is the query of position p.
    let shift = eye(LENGTH).roll([-1], [0]);
    let strong = 4.0 * (d_head as f64).sqrt();
    let mut weights: BTreeMap<String, Tensor> = BTreeMap::new();
    let mut seed = 1i64;
    let mut random = |shape: &[i64], scale: f64| {
        seed += 1;
        let n: i64 = shape.iter().product();
        let numbers: Vec<f64> = (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f64 / 504.5 - 1.0).collect();
        Tensor::from_slice(&numbers).to_kind(Kind::Float).view(shape) * scale
    };
    for layer in 0..2 {
        let mut parts: [Vec<Tensor>; 4] = Default::default();
        for head in 0..n_heads {
            let known = match (layer, head) {
                (0, 0) => Some([
                    reads(positions, &(eye(LENGTH) * strong)),
                    reads(positions, &shift),
                    reads(tokens, &eye(WORDS)),
                    writes(before, &eye(WORDS)),
                ]),
                (1, 0) => Some([
                    reads(tokens, &(eye(WORDS) * strong)),
                    reads(before, &eye(WORDS)),
                    reads(tokens, &eye(WORDS)),
                    writes(answer, &eye(WORDS)),
                ]),
                _ => None,
            };
            let made = known.unwrap_or_else(|| {
                let mut reader = || random(&[d_model, d_head], 0.3);
                let [q, k, v] = [reader(), reader(), reader()];
                [q, k, v, block([d_head, d_model], [0, noise], &random(&[d_head, 24], 0.3))]
            });
            for (part, matrix) in parts.iter_mut().zip(made) {
                part.push(matrix);
            }
        }
        for (name, part) in ["W_Q", "W_K", "W_V", "W_O"].into_iter().zip(parts) {
            weights.insert(format!("blocks.{layer}.attn.{name}"), Tensor::stack(&part, 0));
        }
        for name in ["b_Q", "b_K", "b_V"] {
            weights.insert(format!("blocks.{layer}.attn.{name}"), Tensor::zeros([n_heads, d_head], options));
        }
        weights.insert(format!("blocks.{layer}.attn.b_O"), Tensor::zeros([d_model], options));
    }
    weights.insert("embed.W_E".into(), block([WORDS, d_model], [0, tokens], &eye(WORDS)));
    weights.insert("pos_embed.W_pos".into(), block([LENGTH, d_model], [0, positions], &eye(LENGTH)));
    weights.insert("unembed.W_U".into(), block([d_model, WORDS], [answer, 0], &eye(WORDS)));
    weights.insert("unembed.b_U".into(), Tensor::zeros([WORDS], options));
    let config = Config {
        mlp: None,
        norms: NormConfig { kind: Normalization::None, ..NormConfig::default() },
        d_head: d_head as usize,
        ..Config::new(2, d_model as usize, n_heads as usize, WORDS as usize, LENGTH as usize)
    };
    let load = LoadOptions::new().no_processing().kind(Kind::Double);
    let model = load.state_dict(config, weights.into_iter().collect::<Vec<_>>()).unwrap();
    let edges = ["input->a0.h0<v>", "a0.h0->a1.h0<k>", "input->a1.h0<q>", "input->a1.h0<v>", "a1.h0->logits"];
    (model, edges.map(|edge| edge.parse().unwrap()).to_vec())
}

/// A repeated token and what followed it, against a prompt in which another token followed, another came before, and another is repeated.
fn induction_prompts() -> (Tensor, Tensor) {
    let clean = Tensor::from_slice2(&[[0i64, 3, 5, 1, 2, 6, 7, 3], [4, 1, 2, 6, 0, 7, 3, 2], [7, 0, 4, 5, 3, 1, 2, 0]]);
    let corrupted =
        Tensor::from_slice2(&[[0i64, 6, 2, 1, 5, 3, 4, 1], [4, 5, 1, 2, 3, 6, 0, 7], [7, 6, 1, 3, 5, 0, 4, 2]]);
    (clean, corrupted)
}

fn induction_metric() -> Metric<'static> {
    Metric::logit_diff(Answer::per_row([5, 6, 4]), Answer::per_row([1, 3, 6]))
}

#[test]
fn the_search_finds_a_circuit_that_is_known() {
    let (model, edges) = induction_model();
    let ((clean, corrupted), metric) = (induction_prompts(), induction_metric());
    let task = CircuitTask::new(&model, &clean, Ablation::counterfactual(&corrupted), &metric).unwrap();
    assert!(task.clean_metric() > 0.5, "{}", task.clean_metric());
    let known = Circuit::of_edges(model.config(), edges.clone()).unwrap();
    for method in [EdgeMethod::Gradient, EdgeMethod::IntegratedInputs { steps: 5 }, EdgeMethod::Exact] {
        let scores = task.edge_scores(method).unwrap();
        let auroc = scores.auroc(&known).unwrap();
        println!("{method:?}: AUROC {auroc:.4}");
        assert!(auroc >= 0.99, "{method:?}: {auroc}");
        assert_eq!(scores.top_n(5).unwrap(), known, "{method:?}");
        assert_eq!(scores.greedy(5).unwrap(), known, "{method:?}");
    }
    // The circuit does all that the model does, nothing else does any of it, and none of its edges is superfluous.
    assert!((task.faithfulness(&known).unwrap() - 1.0).abs() < 1e-9);
    assert!((task.completeness(&known).unwrap() - 1.0).abs() < 1e-9);
    assert!(task.incompleteness(&known, &edges[..2]).unwrap() < 1e-9);
    let falls = task.minimality(&known).unwrap();
    assert!(falls.len() == 5 && falls.iter().all(|(edge, fall)| *fall > 0.05 || panic!("{edge}: {fall}")));
    let nodes = task.node_scores(NodeMethod::IntegratedInputs { steps: 5 }).unwrap().top_n(3).unwrap();
    assert_eq!(nodes.nodes().map(|node| node.to_string()).collect::<Vec<_>>(), ["input", "a0.h0", "a1.h0"]);
    assert!((task.faithfulness(&nodes).unwrap() - 1.0).abs() < 1e-9);

    // The benchmark's summaries, by hand.
    let scores = task.edge_scores(EdgeMethod::Exact).unwrap();
    let curve = task.faithfulness_curve(&scores, CurveOptions::new().fractions([0.0, 0.1, 0.5, 1.0])).unwrap();
    let heights: Vec<f64> = curve.points().iter().map(|point| point.faithfulness).collect();
    let (a, b, c) = ((heights[0] + heights[1]) / 2.0, (heights[1] + heights[2]) / 2.0, (heights[2] + heights[3]) / 2.0);
    assert!((curve.cpr() - (0.1 * a + 0.4 * b + 0.5 * c)).abs() < 1e-12);
    assert!(heights[0].abs() < 1e-9 && (heights[1] - 1.0).abs() < 1e-9 && (heights[3] - 1.0).abs() < 1e-9, "{curve}");
    assert!((curve.cmd() - 0.05).abs() < 1e-9 && curve.to_string().lines().count() == 5);
}

/// Chance is one half, ties count half, and the wrong order is zero.
#[test]
fn auroc_is_a_probability() {
    let model = fresh(small());
    let graph = CircuitGraph::new(model.config());
    let first = graph.edges().next().unwrap();
    let known = Circuit::of_edges(model.config(), [first]).unwrap();
    let auroc = |score: fn(bool) -> f64| {
        EdgeScores::from_fn(graph, |edge| Ok(score(edge == first))).unwrap().auroc(&known).unwrap()
    };
    assert_eq!(auroc(f64::from), 1.0);
    assert_eq!(auroc(|known| f64::from(!known)), 0.0);
    assert_eq!(auroc(|_| 1.0), 0.5);
    assert!(EdgeScores::from_fn(graph, |_| Ok(0.0)).unwrap().auroc(&Circuit::empty(graph)).is_err());
}

#[test]
fn files_of_circuits_lead_back() {
    let (model, edges) = induction_model();
    let circuit = Circuit::of_edges(model.config(), edges).unwrap();
    let graph = CircuitGraph::new(model.config());
    let scores = EdgeScores::from_fn(graph, |edge| Ok(edge.to_string().len() as f64 / 7.0)).unwrap();
    let file = CircuitFile {
        circuit: circuit.clone(),
        edge_scores: Some(scores),
        node_scores: Some((0..graph.n_senders()).map(|n| n as f64 / 3.0).collect()),
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("circuit.json");
    file.write(&path).unwrap();
    assert_eq!(CircuitFile::read(&path).unwrap(), file);
    let toy = HookedTransformer::toy().unwrap();
    let full =
        CircuitFile { circuit: Circuit::full(CircuitGraph::new(toy.config())), edge_scores: None, node_scores: None };
    assert_eq!(CircuitFile::from_json(&full.to_json().unwrap()).unwrap().circuit, full.circuit);

    let text = file.to_json().unwrap();
    let cases = [
        ("{", "the circuit's JSON cannot be read"),
        (&text.replace("\"n_layers\":2", "\"n_layers\":9000000000000000000"), "which is not what"),
        (&text.replace("\"a0.h1\"", "\"a0.h9\""), "there is no `a0.h9`"),
        (&text.replace("\"input->a0.h0<v>\"", "\"input->a0.h0<w>\""), "there is no `input->a0.h0<w>`"),
        (&text.replace("\"logits\":{", "\"logits\":{\"neurons\":[true],"), "keeps some of its dimensions"),
    ];
    for (text, expected) in cases {
        let error = CircuitFile::from_json(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_cannot_be_a_task_is_refused() {
    let model = HookedTransformer::toy().unwrap();
    let metric = Metric::logit_diff(" Mary", " John");
    let (clean, corrupted) = ("When Mary and John went", "When John and Mary went");
    let error = CircuitTask::new(&model, clean, Ablation::counterfactual("When"), &metric).unwrap_err().to_string();
    assert!(error.contains("the counterfactual's tensor of tokens has shape [1, 2], expected [1, 6]"), "{error}");
    let task = CircuitTask::new(&model, clean, Ablation::zero(), &metric).unwrap();
    let failure = |method| task.edge_scores(method).unwrap_err().to_string();
    assert!(failure(EdgeMethod::CleanAndCounterfactual).contains("use `Ablation::counterfactual`"));
    assert!(failure(EdgeMethod::IntegratedInputs { steps: 0 }).contains("at least one"));
    assert!(failure(EdgeMethod::IntegratedActivations { steps: 0 }).contains("at least one"));
    let scores = task.edge_scores(EdgeMethod::Gradient).unwrap();
    assert!(scores.top_n(480).unwrap_err().to_string().contains("the model has 479 edges"));
    assert!(scores.greedy(480).is_err());
    let (other, _) = induction_model();
    let circuit = Circuit::empty(CircuitGraph::new(other.config()));
    assert!(task.metric_of(&circuit).unwrap_err().to_string().contains("of another shape"));
    assert!(scores.auroc(&circuit).is_err());
    let options = CurveOptions::new().fractions([0.5, 0.1]);
    assert!(task.faithfulness_curve(&scores, options).unwrap_err().to_string().contains("larger than the one before"));
    let edge = "m0->a0.h0<q>".parse::<CircuitEdge>().unwrap();
    assert!(scores.get(edge).unwrap_err().to_string().contains("there is no `m0->a0.h0<q>`"));
    let relp = CircuitTask::new(&model, clean, Ablation::counterfactual(corrupted), &metric)
        .unwrap()
        .backward_rules(BackwardRules::relp());
    assert!(relp.edge_scores(EdgeMethod::Exact).unwrap_err().to_string().contains("no backward pass"));
    let same = CircuitTask::new(&model, clean, Ablation::counterfactual(clean), &metric).unwrap();
    let error = same.faithfulness(&Circuit::empty(*same.graph())).unwrap_err().to_string();
    assert!(error.contains("whether edges are ablated or not"), "{error}");
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

#[test]
fn what_has_no_estimate_is_refused() {
    let model = in_double("mixtral");
    let (clean, corrupted, metric) = pair();
    let failure = |point: HookPoint| {
        let options = AttributionPatchingOptions::new().points(point);
        model.attribution_patching(&corrupted, &clean, &metric, options).unwrap_err().to_string()
    };
    assert!(failure(hook::expert_post(0, 1)).contains("has the rows that are routed to an expert"));
    assert!(failure(hook::expert_indices(0)).contains("holds whole numbers"));
    let options = AttributionPatchingOptions::new;
    let short = Tensor::from_slice2(&[[5i64, 14]]);
    let error = model.attribution_patching(&short, &clean, &metric, options()).unwrap_err().to_string();
    assert!(error.contains("the source's tensor of tokens has shape [2, 4], expected [1, 2]"), "{error}");
    let estimates = model.attribution_patching(&corrupted, &clean, &metric, options().points("z")).unwrap();
    assert!(estimates.get("hook_embed").unwrap_err().to_string().contains("select it with"));
    let everything = model.attribution_patching(&corrupted, &clean, &metric, options()).unwrap();
    assert!(everything.keys().len() > 20 && everything.keys().all(|point| point.expert().is_none()));

    let integrated = |point: HookPoint, steps: usize, rule: Quadrature| {
        let options = IntegratedGradientsOptions::new().steps(steps).quadrature(rule);
        model.integrated_gradients(&clean, point, 0.0, &metric, options).unwrap_err().to_string()
    };
    assert!(integrated(hook::expert_pre(0, 1), 4, Quadrature::Left).contains("routed to an expert"));
    assert!(integrated(hook::z(0), 0, Quadrature::Left).contains("at least 1"));
    assert!(integrated(hook::z(0), 1, Quadrature::Trapezoid).contains("at least 2"));
    assert!(integrated(hook::expert_indices(0), 4, Quadrature::Left).contains("whole numbers"));
}
