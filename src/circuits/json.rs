//! [`CircuitFile`]: circuits and scores as the JSON of the MIB benchmark.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::circuit::Circuit;
use super::graph::{CircuitGraph, GraphShape};
use super::node::{CircuitEdge, CircuitNode};
use super::scores::EdgeScores;
use crate::{Error, Result};

/// A circuit and its scores, as the MIB benchmark stores them: JSON with every node and edge by name.
///
/// ```
/// use tch_lens::circuits::{Circuit, CircuitFile, CircuitGraph};
/// use tch_lens::HookedTransformer;
/// let model = HookedTransformer::toy()?;
/// let circuit = Circuit::full(CircuitGraph::new(model.config()));
/// let text = CircuitFile::new(circuit.clone()).to_json()?;
/// assert_eq!(CircuitFile::from_json(&text)?.circuit, circuit);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CircuitFile {
    /// The circuit.
    pub circuit: Circuit,
    /// A score for every edge. Without, an edge is written with the score 1 where it is in the circuit and 0 elsewhere.
    pub edge_scores: Option<EdgeScores>,
    /// A score for every node that writes, in the order of the data. NaN is none, and is written as `null`.
    pub node_scores: Option<Vec<f64>>,
    /// A score for every dimension that every node writes, node by node in the order of the data: the benchmark's `neurons_scores`. NaN is
    /// none, and is written as `null`.
    pub dimension_scores: Option<Vec<Vec<f64>>>,
}

#[derive(Serialize, Deserialize)]
struct Json {
    cfg: Cfg,
    nodes: BTreeMap<String, Node>,
    edges: BTreeMap<String, Edge>,
}

#[derive(Serialize, Deserialize)]
struct Cfg {
    n_layers: usize,
    n_heads: HeadCounts,
    parallel_attn_mlp: bool,
    d_model: usize,
    /// Where layers have heads of cross-attention, per-layer embeddings, or look at keys of earlier ones. The benchmark has no such models.
    #[serde(default, skip_serializing_if = "is_false")]
    cross_attention: bool,
    #[serde(default, skip_serializing_if = "is_false")]
    layer_embeddings: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys_of: Vec<Option<usize>>,
}

fn is_false(flag: &bool) -> bool {
    !flag
}

/// The number of heads; of each layer, where layers differ. The benchmark has no such models.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum HeadCounts {
    Same(usize),
    Each(Vec<usize>),
}

#[derive(Serialize, Deserialize)]
struct Node {
    in_graph: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    /// Whether each dimension that the node writes is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    neurons: Option<Vec<bool>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    neurons_scores: Option<Vec<Option<f64>>>,
}

#[derive(Serialize, Deserialize)]
struct Edge {
    in_graph: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
}

impl CircuitFile {
    /// A circuit without scores.
    pub fn new(circuit: Circuit) -> Self {
        CircuitFile { circuit, edge_scores: None, node_scores: None, dimension_scores: None }
    }

    /// The file's text. Dimensions are written where a node keeps some of them only, or where they have scores.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] where scores are of another graph.
    pub fn to_json(&self) -> Result<String> {
        let circuit = &self.circuit;
        let graph = circuit.graph();
        let (senders, d_model) = (graph.n_senders(), graph.d_model);
        let apart = self.edge_scores.as_ref().is_some_and(|scores| scores.graph() != graph)
            || self.node_scores.as_ref().is_some_and(|scores| scores.len() != senders)
            || self
                .dimension_scores
                .as_ref()
                .is_some_and(|scores| scores.len() != senders || scores.iter().any(|of_node| of_node.len() != d_model));
        if apart {
            return Err(Error::wrong_input("the circuit and its scores are of models of different shapes"));
        }
        let has_dimensions = !circuit.partial().is_empty() || self.dimension_scores.is_some();
        let node = |(index, node): (usize, CircuitNode)| {
            let in_graph = circuit.contains_node(node);
            let score = self.node_scores.as_ref().map(|scores| scores[index]);
            let neurons = has_dimensions.then(|| match circuit.partial().get(&index) {
                Some(kept) => kept.clone(),
                None => vec![in_graph; d_model],
            });
            let scores = self.dimension_scores.as_ref().map(|scores| &scores[index]);
            let neurons_scores =
                scores.map(|scores| scores.iter().map(|score| Some(*score).filter(|it| !it.is_nan())).collect());
            (node.to_string(), Node { in_graph, score, neurons, neurons_scores })
        };
        let mut nodes: BTreeMap<String, Node> = graph.senders().enumerate().map(node).collect();
        let logits = Node { in_graph: true, score: None, neurons: None, neurons_scores: None };
        nodes.insert(CircuitNode::Logits.to_string(), logits);
        let mut edges = BTreeMap::new();
        for edge in graph.edges() {
            let in_graph = circuit.contains(edge);
            let score = match &self.edge_scores {
                Some(scores) => scores.get(edge)?,
                None => f64::from(in_graph),
            };
            edges.insert(edge.to_string(), Edge { in_graph, score: Some(score) });
        }
        let heads: Vec<usize> = (0..graph.n_layers()).map(|layer| graph.n_heads(layer)).collect();
        let n_heads = match heads.iter().all(|n| *n == graph.n_heads(0)) {
            true => HeadCounts::Same(graph.n_heads(0)),
            false => HeadCounts::Each(heads),
        };
        let shape = graph.shape();
        let shares = shape.keys_of.iter().any(Option::is_some);
        let cfg = Cfg {
            n_layers: graph.n_layers(),
            n_heads,
            parallel_attn_mlp: shape.parallel,
            d_model,
            cross_attention: shape.has_cross,
            layer_embeddings: shape.has_layer_embeddings,
            keys_of: if shares { shape.keys_of.clone() } else { Vec::new() },
        };
        serde_json::to_string(&Json { cfg, nodes, edges })
            .map_err(|error| Error::wrong_input(format!("the circuit cannot be written: {error}")))
    }

    /// Reads a file's text.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] where it is no such file, or lacks a node, an edge, a dimension or a score that others have;
    /// [`Error::NoCircuitPart`] for a name that its model does not have.
    pub fn from_json(text: &str) -> Result<Self> {
        let wrong = |why: String| Error::wrong_input(format!("the circuit's JSON cannot be read: {why}"));
        // Python writes a score that a dimension does not have as NaN, which is no JSON. No name has these letters.
        let text = text.replace("NaN", "null");
        let Json { cfg, nodes, edges } = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let has_mlps = nodes.contains_key("m0");
        let d_model = cfg.d_model;
        let n_layers = cfg.n_layers;
        let of_heads = match &cfg.n_heads {
            HeadCounts::Same(heads) => format!("{heads} heads"),
            HeadCounts::Each(heads) => format!("{heads:?} heads"),
        };
        let misfit = |found: usize| {
            wrong(format!("it has {found} nodes, which is not what {n_layers} layers of {of_heads} have"))
        };
        // Every layer has a node: before anything is made of these sizes.
        if n_layers == 0 || n_layers > nodes.len() {
            return Err(misfit(nodes.len()));
        }
        let heads = match cfg.n_heads {
            HeadCounts::Same(heads) => vec![heads; n_layers],
            HeadCounts::Each(heads) => heads,
        };
        let keys_of = if cfg.keys_of.is_empty() { vec![None; n_layers] } else { cfg.keys_of };
        let shape = GraphShape {
            heads,
            keys_of,
            d_model,
            parallel: cfg.parallel_attn_mlp,
            has_mlps,
            has_cross: cfg.cross_attention,
            has_layer_embeddings: cfg.layer_embeddings,
        };
        let fits = shape.heads.len() == n_layers && !shape.heads.contains(&0);
        if !fits || shape.n_senders().and_then(|n| n.checked_add(1)) != Some(nodes.len()) {
            return Err(misfit(nodes.len()));
        }
        if !shape.keys_fit() {
            return Err(wrong("its `keys_of` does not name an earlier layer of as many heads for each layer".into()));
        }
        let graph = CircuitGraph::of_shape(shape);
        if edges.len() != graph.n_edges() {
            return Err(wrong(format!("it has {} edges, and its model {}", edges.len(), graph.n_edges())));
        }
        let mut circuit = Circuit::empty(graph.clone());
        let mut node_scores = vec![None; graph.n_senders()];
        let mut dimension_scores = vec![None; graph.n_senders()];
        let mut with_dimensions = 0;
        for (name, Node { in_graph, score, neurons, neurons_scores }) in nodes {
            let parsed: CircuitNode = name.parse()?;
            if parsed == CircuitNode::Logits {
                continue;
            }
            let lengths = [neurons.as_ref().map(Vec::len), neurons_scores.as_ref().map(Vec::len)];
            if let Some(found) = lengths.into_iter().flatten().find(|length| *length != d_model) {
                return Err(wrong(format!("`{name}` has {found} neurons, and the stream {d_model} dimensions")));
            }
            let index = graph.sender_index(parsed)?;
            circuit.set_node(index, in_graph);
            if let Some(kept) = neurons {
                with_dimensions += 1;
                // A node that is not in the circuit writes nothing to it.
                if in_graph && index < graph.n_in_stream() {
                    circuit.keep(index, kept);
                }
            }
            node_scores[index] = score;
            dimension_scores[index] = neurons_scores
                .map(|scores| scores.into_iter().map(|score| score.unwrap_or(f64::NAN)).collect::<Vec<f64>>());
        }
        let scored = dimension_scores.iter().flatten().count();
        for (what, having) in [("neurons", with_dimensions), ("neurons_scores", scored)] {
            if having != 0 && having != graph.n_senders() {
                let without = graph.n_senders() - having;
                return Err(wrong(format!("{without} of its nodes have no `{what}`, and others have them")));
            }
        }
        let mut scores = BTreeMap::new();
        for (name, edge) in edges {
            let parsed: CircuitEdge = name.parse()?;
            let (sender, receiver) = graph.edge_index(parsed)?;
            circuit.set(sender, receiver, edge.in_graph);
            if let Some(score) = edge.score {
                scores.insert(parsed, score);
            }
        }
        let edge_scores = match scores.len() == graph.n_edges() {
            true => Some(EdgeScores::from_fn(graph, |edge| Ok(scores.get(&edge).copied().unwrap_or_default()))?),
            false if scores.is_empty() => None,
            false => return Err(wrong(format!("{} of its edges have no score", graph.n_edges() - scores.len()))),
        };
        let has_scores = node_scores.iter().any(Option::is_some);
        let node_scores = node_scores.into_iter().map(|score| score.unwrap_or(f64::NAN)).collect();
        Ok(CircuitFile {
            circuit,
            edge_scores,
            node_scores: has_scores.then_some(node_scores),
            dimension_scores: dimension_scores.into_iter().collect(),
        })
    }

    /// Writes a file.
    ///
    /// # Errors
    ///
    /// Those of [`CircuitFile::to_json`]; [`Error::Io`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        std::fs::write(path.as_ref(), self.to_json()?).map_err(Error::io(path.as_ref()))
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Malformed`] with what [`CircuitFile::from_json`] says.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let text = std::fs::read_to_string(path.as_ref()).map_err(Error::io(path.as_ref()))?;
        CircuitFile::from_json(&text).map_err(|error| Error::malformed(path.as_ref(), error))
    }
}
