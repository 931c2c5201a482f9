//! [`CircuitFile`]: circuits and scores as the JSON of the MIB benchmark.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::circuit::Circuit;
use super::graph::CircuitGraph;
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
/// let text = CircuitFile { circuit: circuit.clone(), edge_scores: None, node_scores: None }.to_json()?;
/// assert_eq!(CircuitFile::from_json(&text)?.circuit, circuit);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CircuitFile {
    /// The circuit.
    pub circuit: Circuit,
    /// A score for every edge. Without, an edge is written with the score 1 where it is in the circuit and 0 elsewhere.
    pub edge_scores: Option<EdgeScores>,
    /// A score for every node that writes, in the order of the data.
    pub node_scores: Option<Vec<f64>>,
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
    n_heads: usize,
    parallel_attn_mlp: bool,
    d_model: usize,
}

#[derive(Serialize, Deserialize)]
struct Node {
    in_graph: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    #[serde(default, skip_serializing)]
    neurons: Option<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct Edge {
    in_graph: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
}

impl CircuitFile {
    /// The file's text.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] where scores are of another graph.
    pub fn to_json(&self) -> Result<String> {
        let circuit = &self.circuit;
        let graph = circuit.graph();
        let apart = self.edge_scores.as_ref().is_some_and(|scores| scores.graph() != graph)
            || self.node_scores.as_ref().is_some_and(|scores| scores.len() != graph.n_senders());
        if apart {
            return Err(Error::wrong_input("the circuit and its scores are of models of different shapes"));
        }
        let node = |(index, node): (usize, CircuitNode)| {
            let score = self.node_scores.as_ref().map(|scores| scores[index]);
            (node.to_string(), Node { in_graph: circuit.contains_node(node), score, neurons: None })
        };
        let mut nodes: BTreeMap<String, Node> = graph.senders().enumerate().map(node).collect();
        nodes.insert(CircuitNode::Logits.to_string(), Node { in_graph: true, score: None, neurons: None });
        let mut edges = BTreeMap::new();
        for edge in graph.edges() {
            let in_graph = circuit.contains(edge);
            let score = match &self.edge_scores {
                Some(scores) => scores.get(edge)?,
                None => f64::from(in_graph),
            };
            edges.insert(edge.to_string(), Edge { in_graph, score: Some(score) });
        }
        let CircuitGraph { n_layers, n_heads, d_model, parallel, .. } = *graph;
        let json = Json { cfg: Cfg { n_layers, n_heads, parallel_attn_mlp: parallel, d_model }, nodes, edges };
        serde_json::to_string(&json)
            .map_err(|error| Error::wrong_input(format!("the circuit cannot be written: {error}")))
    }

    /// Reads a file's text.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] where it is no such file, lacks a node or an edge, or keeps single dimensions of nodes; [`Error::NoCircuitPart`]
    /// for a name that its model does not have.
    pub fn from_json(text: &str) -> Result<Self> {
        let wrong = |why: String| Error::wrong_input(format!("the circuit's JSON cannot be read: {why}"));
        let Json { cfg, nodes, edges } = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        let has_mlps = nodes.contains_key("m0");
        let graph = CircuitGraph {
            n_layers: cfg.n_layers,
            n_heads: cfg.n_heads,
            d_model: cfg.d_model,
            parallel: cfg.parallel_attn_mlp,
            has_mlps,
        };
        // Before anything is made of these sizes.
        let per_layer = cfg.n_heads.checked_add(usize::from(has_mlps));
        let expected = per_layer.and_then(|n| n.checked_mul(cfg.n_layers)).and_then(|n| n.checked_add(2));
        if expected != Some(nodes.len()) || cfg.n_layers == 0 || cfg.n_heads == 0 {
            let (layers, heads, found) = (cfg.n_layers, cfg.n_heads, nodes.len());
            return Err(wrong(format!(
                "it has {found} nodes, which is not what {layers} layers of {heads} heads have"
            )));
        }
        if edges.len() != graph.n_edges() {
            return Err(wrong(format!("it has {} edges, and its model {}", edges.len(), graph.n_edges())));
        }
        let mut circuit = Circuit::empty(graph);
        let mut node_scores = vec![None; graph.n_senders()];
        for (name, node) in nodes {
            if node.neurons.is_some() {
                return Err(wrong(format!("`{name}` keeps some of its dimensions only, which a `Circuit` cannot")));
            }
            let parsed: CircuitNode = name.parse()?;
            if parsed != CircuitNode::Logits {
                let index = graph.sender_index(parsed)?;
                circuit.set_node(index, node.in_graph);
                node_scores[index] = node.score;
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
        Ok(CircuitFile { circuit, edge_scores, node_scores: node_scores.into_iter().collect() })
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
