//! [`Circuit`]: the nodes and edges that are kept.

use std::collections::BTreeMap;

use super::graph::CircuitGraph;
use super::node::{CircuitEdge, CircuitNode};
use crate::{Config, Error, Result};

/// Some nodes and edges of a model: the circuit. What is not in it is ablated.
///
/// Of what a node writes, a circuit may keep [some dimensions](Circuit::with_dimensions) only, which the MIB benchmark calls neurons. All of
/// the node's edges carry the other dimensions ablated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circuit {
    graph: CircuitGraph,
    /// Of each sender.
    nodes: Vec<bool>,
    /// Of each sender and receiver, sender by sender.
    edges: Vec<bool>,
    /// Whether each dimension that a sender writes is kept, of senders that do not keep all.
    dimensions: BTreeMap<usize, Vec<bool>>,
}

impl Circuit {
    /// No node and no edge.
    pub fn empty(graph: CircuitGraph) -> Self {
        let (senders, receivers) = (graph.n_senders(), graph.n_receivers());
        let dimensions = BTreeMap::new();
        Circuit { graph, nodes: vec![false; senders], edges: vec![false; senders * receivers], dimensions }
    }

    /// All nodes and edges: the model itself.
    pub fn full(graph: CircuitGraph) -> Self {
        let mut circuit = Circuit::empty(graph);
        for (sender, receiver) in circuit.graph.pairs() {
            circuit.set(sender, receiver, true);
        }
        circuit.nodes.fill(true);
        circuit
    }

    /// These edges, and the nodes between which they are.
    ///
    /// ```
    /// use tch_lens::circuits::{Circuit, CircuitEdge};
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let edges = ["input->a0.h1<v>", "a0.h1->logits"].map(|edge| edge.parse::<CircuitEdge>().unwrap());
    /// let circuit = Circuit::of_edges(model.config(), edges)?;
    /// assert_eq!((circuit.n_edges(), circuit.n_nodes()), (2, 2));
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`] for an edge that the model does not have.
    pub fn of_edges(config: &Config, edges: impl IntoIterator<Item = CircuitEdge>) -> Result<Self> {
        let graph = CircuitGraph::new(config);
        let mut circuit = Circuit::empty(graph);
        for edge in edges {
            let (sender, receiver) = circuit.graph.edge_index(edge)?;
            circuit.set(sender, receiver, true);
        }
        circuit.add_ends();
        Ok(circuit)
    }

    /// These nodes with all edges between them, to the logits and from the input, which is always in.
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`] for a node that the model does not have.
    pub fn of_nodes(config: &Config, nodes: impl IntoIterator<Item = CircuitNode>) -> Result<Self> {
        let graph = CircuitGraph::new(config);
        let mut kept = vec![false; graph.n_senders()];
        kept[0] = true;
        for node in nodes.into_iter().filter(|node| *node != CircuitNode::Logits) {
            kept[graph.sender_index(node)?] = true;
        }
        Ok(Circuit::between(graph, kept))
    }

    /// All edges between the nodes that are kept, and to the logits.
    pub(super) fn between(graph: CircuitGraph, nodes: Vec<bool>) -> Self {
        let mut circuit = Circuit { nodes, ..Circuit::empty(graph) };
        for (sender, receiver) in circuit.graph.pairs() {
            let reader = circuit.graph.sender_index(circuit.graph.receiver(receiver).0);
            let kept = circuit.nodes[sender] && reader.map_or(true, |reader| circuit.nodes[reader]);
            circuit.set(sender, receiver, kept);
        }
        circuit
    }

    /// The circuit in which a node keeps these dimensions of what it writes, and no others.
    ///
    /// ```
    /// use tch_lens::circuits::{Circuit, CircuitGraph, CircuitNode};
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let whole = Circuit::full(CircuitGraph::new(model.config()));
    /// let node = CircuitNode::Mlp { layer: 0 };
    /// let circuit = whole.with_dimensions(node, [3, 7])?;
    /// assert_eq!(circuit.dimensions(node)?, [3, 7]);
    /// assert_eq!(whole.n_dimensions() - circuit.n_dimensions(), 126);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`] for a node that the model does not have, or that does not write; [`Error::Setting`] for a dimension that
    /// the stream does not have.
    pub fn with_dimensions(&self, node: CircuitNode, kept: impl IntoIterator<Item = usize>) -> Result<Self> {
        let (sender, d_model) = (self.graph.sender_index(node)?, self.graph.d_model);
        let mut dimensions = vec![false; d_model];
        for dimension in kept {
            match dimensions.get_mut(dimension) {
                Some(kept) => *kept = true,
                None => {
                    let rule = format!("the stream has {d_model} dimensions");
                    return Err(Error::option_value("kept", dimension, rule));
                }
            }
        }
        let mut circuit = self.clone();
        circuit.keep(sender, dimensions);
        Ok(circuit)
    }

    /// The graph whose part it is.
    pub fn graph(&self) -> &CircuitGraph {
        &self.graph
    }

    /// How many edges it has.
    pub fn n_edges(&self) -> usize {
        self.edges.iter().filter(|kept| **kept).count()
    }

    /// How many nodes that write it has.
    pub fn n_nodes(&self) -> usize {
        self.nodes.iter().filter(|kept| **kept).count()
    }

    /// How many dimensions its nodes keep of what they write, all nodes together.
    pub fn n_dimensions(&self) -> usize {
        let of = |sender: usize| match self.dimensions.get(&sender) {
            Some(kept) => kept.iter().filter(|kept| **kept).count(),
            None => self.graph.d_model,
        };
        (0..self.nodes.len()).filter(|sender| self.nodes[*sender]).map(of).sum()
    }

    /// The dimensions that a node keeps of what it writes; none where the node is not in the circuit.
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`] for a node that the model does not have, or that does not write.
    pub fn dimensions(&self, node: CircuitNode) -> Result<Vec<usize>> {
        let sender = self.graph.sender_index(node)?;
        let keeps = |dimension: &usize| self.dimensions.get(&sender).is_none_or(|kept| kept[*dimension]);
        let d_model = if self.nodes[sender] { self.graph.d_model } else { 0 };
        Ok((0..d_model).filter(keeps).collect())
    }

    /// Its edges, receiver by receiver.
    pub fn edges(&self) -> impl Iterator<Item = CircuitEdge> + '_ {
        self.graph.edges().filter(|edge| self.contains(*edge))
    }

    /// Its nodes that write, in the order of the data.
    pub fn nodes(&self) -> impl Iterator<Item = CircuitNode> + '_ {
        self.graph.senders().zip(&self.nodes).filter(|(_, kept)| **kept).map(|(node, _)| node)
    }

    /// Whether it has an edge; one that the model does not have gives `false`.
    pub fn contains(&self, edge: CircuitEdge) -> bool {
        self.graph.edge_index(edge).is_ok_and(|(sender, receiver)| self.has(sender, receiver))
    }

    /// Whether it has a node; one that the model does not have gives `false`, and the logits `true`.
    pub fn contains_node(&self, node: CircuitNode) -> bool {
        node == CircuitNode::Logits || self.graph.sender_index(node).is_ok_and(|sender| self.nodes[sender])
    }

    /// The circuit without some of its edges.
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`] for an edge that the model does not have.
    pub fn without(&self, edges: impl IntoIterator<Item = CircuitEdge>) -> Result<Self> {
        let mut circuit = self.clone();
        for edge in edges {
            let (sender, receiver) = self.graph.edge_index(edge)?;
            circuit.set(sender, receiver, false);
        }
        Ok(circuit)
    }

    /// All edges that this circuit does not have.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where nodes keep some of their dimensions only: the rest of the model is no circuit then, as edges would carry
    /// different dimensions of one node.
    pub fn complement(&self) -> Result<Self> {
        if !self.dimensions.is_empty() {
            return Err(Error::unsupported(
                "a circuit whose nodes keep some of their dimensions has no complement: its edges would carry different dimensions of one node",
            ));
        }
        let mut circuit = Circuit::full(self.graph.clone());
        for (edge, kept) in circuit.edges.iter_mut().zip(&self.edges) {
            *edge &= !kept;
        }
        circuit.nodes.fill(false);
        circuit.add_ends();
        Ok(circuit)
    }

    /// The connected part: nodes that have an edge from and to others in it and keep a dimension, and the edges between them. Neither the
    /// input nor the logits need both edges.
    pub fn pruned(&self) -> Self {
        let mut circuit = self.clone();
        loop {
            let receivers = circuit.graph.n_receivers();
            let reads: Vec<bool> = (0..receivers)
                .map(|receiver| (0..circuit.graph.senders_before(receiver)).any(|sender| circuit.has(sender, receiver)))
                .collect();
            let nodes: Vec<bool> = (0..circuit.nodes.len())
                .map(|sender| {
                    let writes = (0..receivers).any(|receiver| circuit.has(sender, receiver));
                    let keeps = circuit.dimensions.get(&sender).is_none_or(|kept| kept.contains(&true));
                    writes
                        && keeps
                        && (sender == 0 || circuit.graph.receivers_of(sender).iter().any(|receiver| reads[*receiver]))
                })
                .collect();
            let mut edges = circuit.edges.clone();
            for receiver in 0..receivers {
                let reader = circuit.graph.sender_index(circuit.graph.receiver(receiver).0);
                let reads = reader.map_or(true, |reader| nodes[reader]);
                for sender in 0..nodes.len() {
                    edges[sender * receivers + receiver] &= reads && nodes[sender];
                }
            }
            let mut dimensions = circuit.dimensions.clone();
            dimensions.retain(|sender, _| nodes[*sender]);
            let next = Circuit { nodes, edges, dimensions, graph: circuit.graph.clone() };
            if next == circuit {
                return circuit;
            }
            circuit = next;
        }
    }

    // --- by number ------------------------------------------------------------------------------

    pub(super) fn has(&self, sender: usize, receiver: usize) -> bool {
        self.edges[sender * self.graph.n_receivers() + receiver]
    }

    pub(super) fn set(&mut self, sender: usize, receiver: usize, kept: bool) {
        let receivers = self.graph.n_receivers();
        self.edges[sender * receivers + receiver] = kept;
    }

    pub(super) fn set_node(&mut self, sender: usize, kept: bool) {
        self.nodes[sender] = kept;
    }

    pub(super) fn has_node(&self, sender: usize) -> bool {
        self.nodes[sender]
    }

    /// Sets which dimensions a sender keeps.
    pub(super) fn keep(&mut self, sender: usize, dimensions: Vec<bool>) {
        match dimensions.contains(&false) {
            true => self.dimensions.insert(sender, dimensions),
            false => self.dimensions.remove(&sender),
        };
    }

    /// Which dimensions senders keep, of those that do not keep all.
    pub(super) fn partial(&self) -> &BTreeMap<usize, Vec<bool>> {
        &self.dimensions
    }

    /// Whether something that leads to a receiver is not in the circuit: an edge, or a dimension of what a sender writes.
    pub(super) fn ablates(&self, receiver: usize) -> bool {
        let senders = self.graph.senders_before(receiver);
        (0..senders).any(|sender| !self.has(sender, receiver)) || self.dimensions.range(..senders).next().is_some()
    }

    /// Whether what a sender writes is read in the circuit.
    pub(super) fn is_read(&self, sender: usize) -> bool {
        (0..self.graph.n_receivers()).any(|receiver| self.has(sender, receiver))
    }

    /// Adds the nodes at the ends of its edges.
    fn add_ends(&mut self) {
        for (sender, receiver) in self.graph.pairs() {
            if self.has(sender, receiver) {
                self.nodes[sender] = true;
                if let Ok(reader) = self.graph.sender_index(self.graph.receiver(receiver).0) {
                    self.nodes[reader] = true;
                }
            }
        }
    }
}
