//! [`EdgeScores`] and [`NodeScores`]: how important each edge and node is, and the circuits that follow.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use tch::{Device, Kind, Tensor};

use super::circuit::Circuit;
use super::graph::CircuitGraph;
use super::node::{CircuitEdge, CircuitNode};
use crate::tensor::scalar::Scalar;
use crate::{Error, Result};

/// A score for every edge of a model: by how much the metric changes where the edge is ablated, exactly or by an estimate.
#[derive(Clone, Debug, PartialEq)]
pub struct EdgeScores {
    graph: CircuitGraph,
    /// Sender by sender.
    scores: Vec<f64>,
    signed: bool,
}

/// A score for every node that writes, and for every dimension that it writes.
#[derive(Debug)]
pub struct NodeScores {
    graph: CircuitGraph,
    /// `[sender, d_model]`
    dimensions: Tensor,
    scores: Vec<f64>,
}

impl EdgeScores {
    /// Scores `[sender, receiver]`.
    pub(super) fn of_tensor(graph: CircuitGraph, scores: &Tensor) -> Result<Self> {
        let flat = scores.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?.f_contiguous()?.f_view(-1)?;
        Ok(EdgeScores { graph, scores: Vec::try_from(flat)?, signed: false })
    }

    /// Scores of all edges, by a function.
    ///
    /// # Errors
    ///
    /// Those of the function.
    pub fn from_fn(graph: CircuitGraph, mut score: impl FnMut(CircuitEdge) -> Result<f64>) -> Result<Self> {
        let receivers = graph.n_receivers();
        let mut scores = vec![0.0; graph.n_senders() * receivers];
        for (sender, receiver) in graph.pairs() {
            scores[sender * receivers + receiver] = score(graph.edge(sender, receiver))?;
        }
        Ok(EdgeScores { graph, scores, signed: false })
    }

    /// Whether circuits are made of the largest scores rather than of the largest absolute values: signed scores leave out edges that work
    /// against the metric.
    pub fn signed(mut self, signed: bool) -> Self {
        self.signed = signed;
        self
    }

    /// The graph whose edges are scored.
    pub fn graph(&self) -> &CircuitGraph {
        &self.graph
    }

    /// The score of an edge.
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`] where the model has no such edge.
    pub fn get(&self, edge: CircuitEdge) -> Result<f64> {
        let (sender, receiver) = self.graph.edge_index(edge)?;
        Ok(self.of(sender, receiver))
    }

    fn of(&self, sender: usize, receiver: usize) -> f64 {
        self.scores[sender * self.graph.n_receivers() + receiver]
    }

    /// All scores: `[sender, receiver]`, in fp64 on the CPU; zero where there is no edge.
    ///
    /// # Errors
    ///
    /// libtorch's own, where memory runs out.
    pub fn tensor(&self) -> Result<Tensor> {
        let shape = [self.graph.n_senders() as i64, self.graph.n_receivers() as i64];
        Ok(Tensor::f_from_slice(&self.scores)?.f_view(shape)?)
    }

    /// The sum of the scores of all edges that leave a node, for each sender. Of gradient methods, this is the node's own score.
    pub fn by_sender(&self) -> Vec<f64> {
        self.scores.chunks(self.graph.n_receivers()).map(|row| row.iter().sum()).collect()
    }

    /// The edges with their scores, the most important first.
    pub fn ranked(&self) -> Vec<(CircuitEdge, f64)> {
        let mut edges: Vec<(CircuitEdge, f64)> = self
            .graph
            .edges()
            .filter_map(|edge| self.graph.edge_index(edge).ok().map(|(s, r)| (edge, self.of(s, r))))
            .collect();
        edges.sort_by(|a, b| descending(self.key(a.1), self.key(b.1)));
        edges
    }

    /// What circuits are chosen by.
    fn key(&self, score: f64) -> f64 {
        if self.signed {
            score
        } else {
            score.abs()
        }
    }

    /// The circuit of the `n` most important edges, without what is not connected.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] where there are fewer edges.
    pub fn top_n(&self, n: usize) -> Result<Circuit> {
        self.check(n)?;
        let mut circuit = Circuit::empty(self.graph.clone());
        for (edge, _) in self.ranked().into_iter().take(n) {
            let (sender, receiver) = self.graph.edge_index(edge)?;
            circuit.set(sender, receiver, true);
        }
        Ok(circuit.pruned())
    }

    /// The circuit of all edges whose score is at least `threshold`, without what is not connected.
    pub fn above(&self, threshold: f64) -> Circuit {
        let mut circuit = Circuit::empty(self.graph.clone());
        for receiver in 0..self.graph.n_receivers() {
            for sender in self.graph.senders_of(receiver) {
                circuit.set(sender, receiver, self.key(self.of(sender, receiver)) >= threshold);
            }
        }
        circuit.pruned()
    }

    /// The circuit that grows from the logits: `n` times the most important edge to a node that is in it already, whose sender then is, too.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] where there are fewer edges.
    pub fn greedy(&self, n: usize) -> Result<Circuit> {
        self.check(n)?;
        let graph = &self.graph;
        let mut circuit = Circuit::empty(graph.clone());
        let mut candidates = BinaryHeap::new();
        let mut open = vec![graph.n_receivers() - 1];
        let mut opened = vec![false; graph.n_receivers()];
        for _ in 0..n {
            for receiver in open.drain(..) {
                // Heads of several layers may read the same keys and values.
                if std::mem::replace(&mut opened[receiver], true) {
                    continue;
                }
                candidates.extend(graph.senders_of(receiver).map(|sender| Candidate {
                    key: self.key(self.of(sender, receiver)),
                    sender,
                    receiver,
                }));
            }
            let Some(Candidate { sender, receiver, .. }) = candidates.pop() else { break };
            circuit.set(sender, receiver, true);
            if !circuit.has_node(sender) {
                circuit.set_node(sender, true);
                open = graph.receivers_of(sender);
            }
        }
        Ok(circuit.pruned())
    }

    fn check(&self, n: usize) -> Result<()> {
        let edges = self.graph.n_edges();
        match n <= edges {
            true => Ok(()),
            false => Err(Error::option_value("n", n, format!("the model has {edges} edges"))),
        }
    }

    /// How well the scores tell the edges of a known circuit from all others: the area under the receiver operating characteristic, which is
    /// the probability that an edge of the circuit has a larger score than another edge. 1 is perfect, 0.5 is chance; ties count half.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] where the circuit is of another graph, has no edge, or has all.
    pub fn auroc(&self, circuit: &Circuit) -> Result<f64> {
        if circuit.graph() != &self.graph {
            return Err(Error::wrong_input("the circuit and the scores are of models of different shapes"));
        }
        let mut edges: Vec<(f64, bool)> = Vec::new();
        for receiver in 0..self.graph.n_receivers() {
            for sender in self.graph.senders_of(receiver) {
                edges.push((self.key(self.of(sender, receiver)), circuit.has(sender, receiver)));
            }
        }
        let positives = edges.iter().filter(|(_, known)| *known).count();
        let negatives = edges.len() - positives;
        if positives == 0 || negatives == 0 {
            return Err(Error::wrong_input("the known circuit must have some edges of the model, and not all"));
        }
        edges.sort_by(|a, b| descending(b.0, a.0)); // ascending
                                                    // The sum of the circuit's ranks, which ties share.
        let (mut sum, mut start) = (0.0, 0);
        while start < edges.len() {
            let end = start + edges[start..].iter().take_while(|edge| edge.0 == edges[start].0).count();
            let rank = (start + end + 1) as f64 / 2.0;
            sum += rank * edges[start..end].iter().filter(|(_, known)| *known).count() as f64;
            start = end;
        }
        let (p, n) = (positives as f64, negatives as f64);
        Ok((sum - p * (p + 1.0) / 2.0) / (p * n))
    }
}

/// An edge to a node that is in a circuit: the one with the largest key is the greatest, of equal ones the first.
struct Candidate {
    key: f64,
    sender: usize,
    receiver: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let place = |edge: &Self| (edge.receiver, edge.sender);
        descending(other.key, self.key).then_with(|| place(other).cmp(&place(self)))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// The larger one first; NaN last.
fn descending(a: f64, b: f64) -> Ordering {
    b.partial_cmp(&a).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
}

impl NodeScores {
    /// Scores of nodes that write to the stream, `[sender, d_model]`, and of those that do not, `[sender]`.
    pub(super) fn of_tensors(graph: CircuitGraph, dimensions: &Tensor, sides: &Tensor) -> Result<Self> {
        let double = |x: &Tensor| Ok::<_, Error>(x.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?);
        let (dimensions, sides) = (double(dimensions)?, double(sides)?);
        let sums = dimensions.f_sum_dim_intlist([-1i64].as_slice(), false, None)?;
        let scores = Vec::try_from(Tensor::f_cat(&[&sums, &sides], 0)?)?;
        let dimensions = dimensions.f_constant_pad_nd([0, 0, 0, sides.size()[0]])?;
        Ok(NodeScores { graph, scores, dimensions })
    }

    /// The graph whose nodes are scored.
    pub fn graph(&self) -> &CircuitGraph {
        &self.graph
    }

    /// The score of a node.
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`] where the model has no such node, or it does not write.
    pub fn get(&self, node: CircuitNode) -> Result<f64> {
        Ok(self.scores[self.graph.sender_index(node)?])
    }

    /// The scores of all nodes, in the order of the data.
    pub fn scores(&self) -> &[f64] {
        &self.scores
    }

    /// The share of every dimension that a node writes to the stream, which its score is the sum of: `[sender, d_model]`, in fp64 on the CPU.
    /// Zero for the encoder's output and the inputs of per-layer embeddings, which do not write there.
    pub fn dimensions(&self) -> &Tensor {
        &self.dimensions
    }

    /// The nodes with their scores, the largest absolute value first.
    pub fn ranked(&self) -> Vec<(CircuitNode, f64)> {
        let mut nodes: Vec<(CircuitNode, f64)> = self.graph.senders().zip(self.scores.iter().copied()).collect();
        nodes.sort_by(|a, b| descending(a.1.abs(), b.1.abs()));
        nodes
    }

    /// The circuit of the `n` nodes with the largest absolute scores and of the input (and the encoder's output and the inputs of per-layer
    /// embeddings), with all edges between them, without what is not connected.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] where there are fewer nodes.
    pub fn top_n(&self, n: usize) -> Result<Circuit> {
        let nodes = self.graph.n_senders();
        if n > nodes {
            return Err(Error::option_value("n", n, format!("the model has {nodes} nodes that write")));
        }
        let mut kept: Vec<bool> = (0..nodes).map(|sender| self.graph.is_source(sender)).collect();
        for (node, _) in self.ranked().into_iter().take(n) {
            kept[self.graph.sender_index(node)?] = true;
        }
        Ok(Circuit::between(self.graph.clone(), kept).pruned())
    }

    /// The circuit of the `n` dimensions with the largest absolute scores, of all nodes but the input, which is kept whole, as are the nodes
    /// that do not write to the stream; with all edges between nodes that keep one, without what is not connected.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] where there are fewer dimensions.
    pub fn top_n_dimensions(&self, n: usize) -> Result<Circuit> {
        let dimensions = (self.graph.n_in_stream() - 1) * self.graph.d_model;
        if n > dimensions {
            let rule = format!("the nodes after the input write {dimensions} dimensions");
            return Err(Error::option_value("n", n, rule));
        }
        let scores = self.of_dimensions()?;
        let mut order: Vec<usize> = (self.graph.d_model..self.graph.n_in_stream() * self.graph.d_model).collect();
        order.sort_by(|a, b| descending(scores[*a].abs(), scores[*b].abs()));
        let mut kept = vec![false; scores.len()];
        order.into_iter().take(n).for_each(|dimension| kept[dimension] = true);
        Ok(self.with_dimensions(&kept))
    }

    /// The circuit of the dimensions whose absolute score is at least `threshold`, of all nodes but the input, which is kept whole; as
    /// [`NodeScores::top_n_dimensions`] makes it.
    ///
    /// # Errors
    ///
    /// libtorch's own, where memory runs out.
    pub fn dimensions_above(&self, threshold: f64) -> Result<Circuit> {
        let kept: Vec<bool> = self.of_dimensions()?.into_iter().map(|score| score.abs() >= threshold).collect();
        Ok(self.with_dimensions(&kept))
    }

    /// The scores of all dimensions, node by node.
    fn of_dimensions(&self) -> Result<Vec<f64>> {
        Ok(Vec::try_from(self.dimensions.f_contiguous()?.f_view(-1)?)?)
    }

    /// The circuit of the nodes that keep a dimension, each with those that it keeps.
    fn with_dimensions(&self, kept: &[bool]) -> Circuit {
        let of_nodes: Vec<&[bool]> = kept.chunks(self.graph.d_model).collect();
        let nodes = of_nodes.iter().enumerate();
        let nodes = nodes.map(|(sender, kept)| self.graph.is_source(sender) || kept.contains(&true)).collect();
        let mut circuit = Circuit::between(self.graph.clone(), nodes);
        for (sender, kept) in of_nodes.into_iter().enumerate().filter(|(sender, _)| !self.graph.is_source(*sender)) {
            circuit.keep(sender, kept.to_vec());
        }
        circuit.pruned()
    }

    /// The circuit of the nodes whose absolute score is at least `threshold`, and of the input, with all edges between them.
    pub fn above(&self, threshold: f64) -> Circuit {
        let scores = self.scores.iter().enumerate();
        let kept = scores.map(|(sender, score)| self.graph.is_source(sender) || score.abs() >= threshold).collect();
        Circuit::between(self.graph.clone(), kept).pruned()
    }
}

/// A sum of scores, each with a weight.
pub(super) fn add_weighted(sum: Option<Tensor>, scores: &Tensor, weight: f64) -> Result<Tensor> {
    let weighted = scores.mul_number(weight)?;
    match sum {
        Some(sum) => Ok(sum.f_add(&weighted)?),
        None => Ok(weighted),
    }
}
