//! How circuits are drawn.

use std::collections::BTreeMap;

use super::figure::{Draw, Figure};
use super::graph::{Graph, GraphNode};
use super::line_plot::LinePlot;
use crate::circuits::{Circuit, CircuitEdge, CircuitNode, EdgeScores, FaithfulnessCurve};
use crate::Result;

/// A circuit with the scores of its edges, to be drawn.
///
/// ```
/// use tch_lens::circuits::{Ablation, CircuitTask, EdgeMethod};
/// use tch_lens::view::{Draw, ScoredCircuit};
/// use tch_lens::{HookedTransformer, Metric};
/// let model = HookedTransformer::toy()?;
/// let clean = "When Mary and John went to the shop, John gave a bag to";
/// let corrupted = "When Mary and John went to the shop, Mary gave a bag to";
/// let metric = Metric::logit_diff(" Mary", " John");
/// let task = CircuitTask::new(&model, clean, Ablation::counterfactual(corrupted), &metric)?;
/// let scores = task.edge_scores(EdgeMethod::Gradient)?;
/// let circuit = scores.top_n(12)?.pruned();
/// println!("{}", ScoredCircuit { circuit: &circuit, scores: &scores }.figure()?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ScoredCircuit<'a> {
    /// The circuit.
    pub circuit: &'a Circuit,
    /// The scores of the edges, at least of those in the circuit.
    pub scores: &'a EdgeScores,
}

impl Draw for Circuit {
    /// The nodes that edges lead from or to, in the order of the data from the bottom to the top; all edges weigh the same.
    fn figure(&self) -> Result<Figure> {
        let graph = drawn(self, "edges", |_| Ok(1.0))?;
        Ok(Figure::new("Circuit", graph)
            .with_caption(caption(self, "An edge is drawn once for queries, keys and values.")))
    }
}

impl Draw for ScoredCircuit<'_> {
    /// The nodes that edges lead from or to, in the order of the data from the bottom to the top, and edges by their scores.
    fn figure(&self) -> Result<Figure> {
        let graph = drawn(self.circuit, "score", |edge| self.scores.get(edge))?;
        let what = "An edge's width is its score, the sum of those for queries, keys and values.";
        Ok(Figure::new("Circuit", graph).with_caption(caption(self.circuit, what)))
    }
}

fn caption(circuit: &Circuit, what: &str) -> String {
    format!("{} of {} edges. {what}", circuit.n_edges(), circuit.graph().n_edges())
}

/// The circuit as nodes in layers. Of a pair of nodes, the weights of all edges are summed.
fn drawn(circuit: &Circuit, value_name: &str, weight: impl Fn(CircuitEdge) -> Result<f64>) -> Result<Graph> {
    let mut pairs: BTreeMap<(CircuitNode, CircuitNode), f64> = BTreeMap::new();
    let mut readings: BTreeMap<CircuitNode, Vec<String>> = BTreeMap::new();
    for edge in circuit.edges() {
        *pairs.entry((edge.from, edge.to)).or_default() += weight(edge)?;
        readings.entry(edge.to).or_default().push(edge.to_string());
    }
    let last = pairs.keys().flat_map(|(from, to)| [row(*from), row(*to)]).filter(|row| *row < usize::MAX).max();
    let last = last.unwrap_or(0);
    let mut graph = Graph::new(value_name);
    let mut numbers: BTreeMap<CircuitNode, usize> = BTreeMap::new();
    let mut nodes: Vec<CircuitNode> = pairs.keys().flat_map(|(from, to)| [*from, *to]).collect();
    nodes.sort_by_key(|node| (row(*node), *node));
    nodes.dedup();
    for node in nodes {
        let detail = readings.get(&node).map_or(String::new(), |edges| format!("{} edges lead here", edges.len()));
        let drawn = GraphNode::new(node.to_string(), row(node).min(last + 1)).detail(detail);
        numbers.insert(node, graph.node(drawn));
    }
    for ((from, to), weight) in pairs {
        if let (Some(from), Some(to)) = (numbers.get(&from), numbers.get(&to)) {
            graph.edge(*from, *to, weight as f32)?;
        }
    }
    Ok(graph)
}

/// The row of a node, the input at the bottom: two for each layer, its heads and its MLP, and more where it has more parts.
fn row(node: CircuitNode) -> usize {
    match node {
        CircuitNode::Input | CircuitNode::Encoder | CircuitNode::LayerInputs => 0,
        CircuitNode::Head { layer, .. } => 4 * layer + 1,
        CircuitNode::CrossHead { layer, .. } => 4 * layer + 2,
        CircuitNode::Mlp { layer } => 4 * layer + 3,
        CircuitNode::LayerEmbedding { layer } => 4 * layer + 4,
        CircuitNode::Logits => usize::MAX,
    }
}

impl Draw for FaithfulnessCurve {
    /// The faithfulness of circuits by their share of all edges.
    fn figure(&self) -> Result<Figure> {
        let labels = self.points().iter().map(|point| format!("{} %", 100.0 * point.fraction));
        let values = self.points().iter().map(|point| point.faithfulness as f32).collect();
        let plot = LinePlot::new("share of edges", labels, "faithfulness").line("faithfulness", values)?;
        let caption = format!(
            "How much of the metric each circuit keeps. The area under the curve (CPR) is {:.3}, the distance to 1 (CMD) {:.3}.",
            self.cpr(),
            self.cmd()
        );
        Ok(Figure::new("Faithfulness", plot).with_caption(caption))
    }
}
