//! A model with compiled weights, whose circuit is known: the search finds it, and the measures of circuits say what it is.

use std::collections::BTreeMap;

use crate::common::models::{fresh, small};
use tch::{Device, Kind, Tensor};
use tch_lens::analysis::Answer;
use tch_lens::circuits::{
    Ablation, Circuit, CircuitEdge, CircuitFile, CircuitGraph, CircuitTask, CurveOptions, EdgeMethod, EdgeScores,
    NodeMethod,
};
use tch_lens::config::{NormConfig, Normalization};
use tch_lens::{BackwardRules, Config, HookedTransformer, LoadOptions, Metric};

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
        EdgeScores::from_fn(graph.clone(), |edge| Ok(score(edge == first))).unwrap().auroc(&known).unwrap()
    };
    assert_eq!(auroc(f64::from), 1.0);
    assert_eq!(auroc(|known| f64::from(!known)), 0.0);
    assert_eq!(auroc(|_| 1.0), 0.5);
    assert!(EdgeScores::from_fn(graph.clone(), |_| Ok(0.0)).unwrap().auroc(&Circuit::empty(graph)).is_err());
}

/// Of edges with the same score, the first is taken.
#[test]
fn the_first_of_equal_edges_is_taken() {
    let (model, _) = induction_model();
    let scores = EdgeScores::from_fn(CircuitGraph::new(model.config()), |_| Ok(1.0)).unwrap();
    for circuit in
        [scores.greedy(1).unwrap(), Circuit::of_edges(model.config(), ["input->logits".parse().unwrap()]).unwrap()]
    {
        assert_eq!(circuit.edges().map(|edge| edge.to_string()).collect::<Vec<_>>(), ["input->logits"]);
    }
}

#[test]
fn files_of_circuits_lead_back() {
    let (model, edges) = induction_model();
    let circuit = Circuit::of_edges(model.config(), edges).unwrap();
    let graph = CircuitGraph::new(model.config());
    let scores = EdgeScores::from_fn(graph.clone(), |edge| Ok(edge.to_string().len() as f64 / 7.0)).unwrap();
    let file = CircuitFile {
        circuit: circuit.clone(),
        edge_scores: Some(scores),
        node_scores: Some((0..graph.n_senders()).map(|n| n as f64 / 3.0).collect()),
        dimension_scores: None,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("circuit.json");
    file.write(&path).unwrap();
    assert_eq!(CircuitFile::read(&path).unwrap(), file);
    let toy = HookedTransformer::toy().unwrap();
    let full = CircuitFile::new(Circuit::full(CircuitGraph::new(toy.config())));
    assert_eq!(CircuitFile::from_json(&full.to_json().unwrap()).unwrap().circuit, full.circuit);

    let text = file.to_json().unwrap();
    let cases = [
        ("{", "the circuit's JSON cannot be read"),
        (&text.replace("\"n_layers\":2", "\"n_layers\":9000000000000000000"), "which is not what"),
        (&text.replace("\"a0.h1\"", "\"a0.h9\""), "there is no `a0.h9`"),
        (&text.replace("\"input->a0.h0<v>\"", "\"input->a0.h0<w>\""), "there is no `input->a0.h0<w>`"),
        (&text.replace("\"a0.h1\":{", "\"a0.h1\":{\"neurons\":[true],"), "has 1 neurons, and the stream"),
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
    let error = same.faithfulness(&Circuit::empty(same.graph().clone())).unwrap_err().to_string();
    assert!(error.contains("whether edges are ablated or not"), "{error}");
}
