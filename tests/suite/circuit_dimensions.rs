//! Circuits whose nodes keep some dimensions of what they write, which the MIB benchmark calls neurons.

use rstest::rstest;
use tch::Tensor;
use tch_lens::circuits::{Ablation, Circuit, CircuitFile, CircuitGraph, CircuitNode, CircuitTask, NodeMethod};
use tch_lens::{hook, Hooks, RunOptions};

use crate::common::models::{fresh, small};
use crate::common::pairs::{in_double, pair, STRUCTURES};
use crate::common::Tally;

/// A dimension that a node does not keep is what it is ablated, for all that read it.
#[test]
fn dropped_dimensions_are_ablated_at_their_node() {
    let mut tally = Tally::default();
    for family in STRUCTURES.into_iter().chain(["transformers/openai-gpt"]) {
        let grouped = in_double(family);
        let model = grouped.ungrouped().unwrap();
        let (clean, corrupted, metric) = pair();
        let task = CircuitTask::new(&grouped, &clean, Ablation::counterfactual(&corrupted), &metric).unwrap();
        let d_model = model.config().d_model;
        let (_, other) = model.run_with_cache_of(&corrupted, [hook::result(0), hook::mlp_out(1)]).unwrap();
        let kept: Vec<usize> = (0..d_model).filter(|dimension| dimension % 3 != 0).collect();
        let dropped: Vec<i64> = (0..d_model as i64).filter(|dimension| dimension % 3 == 0).collect();
        let index = Tensor::from_slice(&dropped);
        let mut compare = |node: CircuitNode, hooks: Hooks| {
            let circuit = Circuit::full(task.graph().clone()).with_dimensions(node, kept.clone()).unwrap();
            let output = model.run(&clean, RunOptions::new().hooks(hooks)).unwrap();
            let expected = metric.scalar(output.logits().unwrap(), &output.cache).unwrap();
            let ours = Tensor::from(task.metric_of(&circuit).unwrap());
            tally.compare(&format!("{family}, {node}"), &ours, &expected, 1e-9);
            assert!((ours - task.clean_metric()).abs().double_value(&[]) > 1e-9, "{family}, {node}: nothing changed");
        };
        let ablated = |x: &Tensor, other: &Tensor| x.index_copy(-1, &index, &other.index_select(-1, &index));
        let hooks = Hooks::new().replace(hook::result(0), |x, _| {
            let result = x.copy(); // [batch, pos, head, d_model]
            result.select(2, 1).copy_(&ablated(&x.select(2, 1), &other[hook::result(0)].select(2, 1)));
            result
        });
        compare(CircuitNode::Head { layer: 0, head: 1 }, hooks);
        let hooks = Hooks::new().replace(hook::mlp_out(1), |x, _| ablated(x, &other[hook::mlp_out(1)]));
        compare(CircuitNode::Mlp { layer: 1 }, hooks);
    }
    tally.finish("dropped dimensions");
}

#[test]
fn dimensions_are_chosen_by_their_scores() {
    let model = fresh(small());
    let (clean, corrupted, metric) = pair();
    let task = CircuitTask::new(&model, &clean, Ablation::counterfactual(&corrupted), &metric).unwrap();
    let scores = task.node_scores(NodeMethod::Gradient).unwrap();
    let d_model = model.config().d_model;
    let all = (task.graph().n_senders() - 1) * d_model;
    let whole = scores.top_n_dimensions(all).unwrap();
    assert_eq!(whole, Circuit::full(task.graph().clone()));
    assert!((task.faithfulness(&whole).unwrap() - 1.0).abs() < 1e-9);
    assert!(
        (task.metric_of(&scores.top_n_dimensions(0).unwrap()).unwrap() - task.ablated_metric().unwrap()).abs() < 1e-9
    );

    let circuit = scores.top_n_dimensions(40).unwrap();
    assert_eq!(circuit.n_dimensions(), d_model + 40, "the input is whole, and nothing of 40 is cut off here");
    // Each dimension that is kept has a larger score than each that is not.
    let (mut kept, mut left) = (f64::INFINITY, 0.0f64);
    for (sender, node) in task.graph().senders().enumerate().skip(1) {
        let of_node = circuit.dimensions(node).unwrap();
        for dimension in 0..d_model {
            let score = scores.dimensions().double_value(&[sender as i64, dimension as i64]).abs();
            match of_node.contains(&dimension) {
                true => kept = kept.min(score),
                false => left = left.max(score),
            }
        }
    }
    assert!(kept >= left, "{kept}, {left}");
    assert_eq!(scores.dimensions_above(kept).unwrap(), circuit);
    assert!(scores.top_n_dimensions(all + 1).unwrap_err().to_string().contains("write"));
    assert!(circuit.complement().is_err() && task.completeness(&circuit).is_err());
    let node = CircuitNode::Mlp { layer: 0 };
    let error = circuit.with_dimensions(node, [d_model]).unwrap_err().to_string();
    assert!(error.contains("the stream has 24 dimensions"), "{error}");
    assert!(circuit.with_dimensions(CircuitNode::Logits, [0]).is_err());
    // A node without a dimension writes nothing.
    let without = Circuit::full(task.graph().clone()).with_dimensions(node, []).unwrap().pruned();
    assert!(!without.contains_node(node));
    let others = task.graph().senders().filter(|other| *other != node);
    assert_eq!(without, Circuit::of_nodes(model.config(), others).unwrap());
}

/// A file with the fields of EAP-IG's `Graph.to_json`, as Python writes it: a dimension without a score is NaN.
fn python_file(graph: &CircuitGraph) -> String {
    let number = |score: Option<f64>| score.map_or("NaN".to_string(), |score| format!("{score:?}"));
    let nodes = graph.senders().enumerate().map(|(i, node)| {
        let kept: Vec<bool> = (0..24).map(|d| node != CircuitNode::Input && (d + i) % 2 == 0 || i == 0).collect();
        let scores: Vec<String> = (0..24).map(|d| number((d > 0).then_some(d as f64 / 8.0))).collect();
        let score = number((i != 2).then_some(i as f64));
        format!(
            r#""{node}": {{"in_graph": true, "score": {score}, "neurons": {kept:?}, "neurons_scores": [{}]}}"#,
            scores.join(", ")
        )
    });
    let nodes: Vec<String> = nodes.chain([r#""logits": {"in_graph": true}"#.to_string()]).collect();
    let edges: Vec<String> =
        graph.edges().map(|edge| format!(r#""{edge}": {{"score": 0.5, "in_graph": true}}"#)).collect();
    format!(
        r#"{{"cfg": {{"n_layers": 2, "n_heads": 3, "parallel_attn_mlp": false, "d_model": 24}}, "nodes": {{{}}}, "edges": {{{}}}}}"#,
        nodes.join(", "),
        edges.join(", ")
    )
}

#[test]
fn files_with_neurons_are_read_written_and_evaluated() {
    let model = fresh(small());
    let (clean, corrupted, metric) = pair();
    let task = CircuitTask::new(&model, &clean, Ablation::counterfactual(&corrupted), &metric).unwrap();
    let file = CircuitFile::from_json(&python_file(task.graph())).unwrap();
    let mut expected = Circuit::full(task.graph().clone());
    for (i, node) in task.graph().senders().enumerate().skip(1) {
        expected = expected.with_dimensions(node, (0..24).filter(|d| (d + i) % 2 == 0)).unwrap();
    }
    assert_eq!(file.circuit, expected);
    let scores = file.node_scores.clone().unwrap();
    assert!(scores[2].is_nan() && scores[3] == 3.0);
    let scores = file.dimension_scores.clone().unwrap();
    assert!(scores[4][0].is_nan() && scores[4][5] == 5.0 / 8.0);
    let faithfulness = task.faithfulness(&file.circuit).unwrap();
    assert!(faithfulness.is_finite() && (faithfulness - 1.0).abs() > 1e-6, "{faithfulness}");

    let again = CircuitFile::from_json(&file.to_json().unwrap()).unwrap();
    assert_eq!((&again.circuit, &again.edge_scores), (&file.circuit, &file.edge_scores));
    assert_eq!(format!("{:?}", again.node_scores), format!("{:?}", file.node_scores));
    assert_eq!(format!("{:?}", again.dimension_scores), format!("{:?}", file.dimension_scores));
    // A node outside of the circuit keeps nothing.
    let circuit = file.circuit.without(task.graph().edges().filter(|edge| edge.from == CircuitNode::Mlp { layer: 1 }));
    let text = CircuitFile::new(circuit.unwrap().pruned()).to_json().unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["nodes"]["m1"]["neurons"], serde_json::json!(vec![false; 24]));
    assert_eq!(json["nodes"]["input"]["neurons"], serde_json::json!(vec![true; 24]));
    // What it says of its dimensions does not count.
    let outside = python_file(task.graph()).replacen(r#""m1": {"in_graph": true"#, r#""m1": {"in_graph": false"#, 1);
    let read = CircuitFile::from_json(&outside).unwrap().circuit;
    assert_eq!(read.dimensions(CircuitNode::Mlp { layer: 1 }).unwrap(), Vec::<usize>::new());
    assert!(CircuitFile::new(read)
        .to_json()
        .unwrap()
        .contains(&format!(r#""neurons":{}"#, serde_json::json!(vec![false; 24]))));
    let of_part = CircuitFile { dimension_scores: Some(vec![vec![0.0; 24]; 3]), ..CircuitFile::new(expected) };
    assert!(of_part.to_json().unwrap_err().to_string().contains("different shapes"));
}

#[rstest]
#[case(r#""neurons": [true, "#, r#""neurons": ["#, "has 23 neurons, and the stream 24 dimensions")]
#[case(r#""neurons_scores": [NaN, "#, r#""neurons_scores": ["#, "has 23 neurons, and the stream 24 dimensions")]
#[case(r#""neurons": [true, "#, r#""others": [true, "#, "of its nodes have no `neurons`, and others have them")]
#[case(
    r#""neurons_scores": [NaN, "#,
    r#""others": [NaN, "#,
    "of its nodes have no `neurons_scores`, and others have them"
)]
#[case(r#""n_heads": 3"#, r#""n_heads": [3]"#, "which is not what 2 layers of [3] heads have")]
#[case(r#""n_heads": 3"#, r#""n_heads": [6, 0]"#, "which is not what 2 layers of [6, 0] heads have")]
fn incomplete_files_are_refused(#[case] find: &str, #[case] replace: &str, #[case] sentence: &str) {
    let text = python_file(&CircuitGraph::new(&small()));
    let changed = text.replacen(find, replace, 1);
    assert_ne!(changed, text);
    let error = CircuitFile::from_json(&changed).unwrap_err().to_string();
    assert!(error.contains(sentence), "{error}");
}

#[test]
fn files_of_layers_with_different_heads_lead_back() {
    let model = in_double("transformers/laguna");
    let circuit = Circuit::full(CircuitGraph::new(model.config()));
    assert_ne!(circuit.graph().n_heads(0), circuit.graph().n_heads(1));
    let text = CircuitFile::new(circuit.clone()).to_json().unwrap();
    assert_eq!(CircuitFile::from_json(&text).unwrap().circuit, circuit);
    assert_eq!(circuit.n_edges(), circuit.graph().n_edges());
}
