//! Scores of edges and nodes, and what circuits do: figures of the field's Python tools, ablations, padding, metrics.

use crate::common::models::{fresh, small};
use crate::common::pairs::{in_double, pair, Pair, STRUCTURES};
use crate::common::{fixtures, Tally};
use rstest::rstest;
use tch::{IndexOp, Kind, Tensor};
use tch_lens::circuits::{
    Ablation, Circuit, CircuitEdge, CircuitNode, CircuitTask, EdgeMethod, EdgeScores, NodeMethod,
};
use tch_lens::gradient::{AttributionPatchingOptions, IntegratedGradientsOptions};
use tch_lens::{hook, Hooks, Metric, RunOptions, Tokens};

#[rstest]
#[case("toy_ioi_one")]
#[case("toy_ioi_two")]
#[case("llama_gqa_tied")]
fn scores_are_the_tools(#[case] name: &str) {
    let pair = Pair::open(name);
    let metric = pair.metric();
    let task = pair.task(&metric);
    let graph = task.graph().clone();
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
    let scores = EdgeScores::from_fn(graph.clone(), value).unwrap();
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
        types: None,
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
    assert!((task.faithfulness(&Circuit::full(task.graph().clone())).unwrap() - 1.0).abs() < 1e-9);
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
                Tokens {
                    ids: Tensor::from_slice2(&ids),
                    mask: Some(Tensor::from_slice2(&[[true; 4], real])),
                    types: None,
                }
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
