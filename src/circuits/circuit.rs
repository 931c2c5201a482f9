//! [`Circuit`]: the nodes and edges that are kept.

use super::graph::CircuitGraph;
use super::node::{CircuitEdge, CircuitNode};
use crate::{Config, Result};

/// Some nodes and edges of a model: the circuit. What is not in it is ablated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circuit {
    graph: CircuitGraph,
    /// Of each sender.
    nodes: Vec<bool>,
    /// Of each sender and receiver, sender by sender.
    edges: Vec<bool>,
}

impl Circuit {
    /// No node and no edge.
    pub fn empty(graph: CircuitGraph) -> Self {
        let (senders, receivers) = (graph.n_senders(), graph.n_receivers());
        Circuit { graph, nodes: vec![false; senders], edges: vec![false; senders * receivers] }
    }

    /// All nodes and edges: the model itself.
    pub fn full(graph: CircuitGraph) -> Self {
        let mut circuit = Circuit::empty(graph);
        for receiver in 0..graph.n_receivers() {
            for sender in 0..graph.senders_before(receiver) {
                circuit.set(sender, receiver, true);
            }
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
    /// [`Error::NoCircuitPart`](crate::Error::NoCircuitPart) for an edge that the model does not have.
    pub fn of_edges(config: &Config, edges: impl IntoIterator<Item = CircuitEdge>) -> Result<Self> {
        let graph = CircuitGraph::new(config);
        let mut circuit = Circuit::empty(graph);
        for edge in edges {
            let (sender, receiver) = graph.edge_index(edge)?;
            circuit.set(sender, receiver, true);
        }
        circuit.add_ends();
        Ok(circuit)
    }

    /// These nodes with all edges between them, to the logits and from the input, which is always in.
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`](crate::Error::NoCircuitPart) for a node that the model does not have.
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
        for receiver in 0..graph.n_receivers() {
            let reads = graph.sender_index(graph.receiver(receiver).0).map_or(true, |reader| circuit.nodes[reader]);
            for sender in 0..graph.senders_before(receiver) {
                let kept = reads && circuit.nodes[sender];
                circuit.set(sender, receiver, kept);
            }
        }
        circuit
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
    /// [`Error::NoCircuitPart`](crate::Error::NoCircuitPart) for an edge that the model does not have.
    pub fn without(&self, edges: impl IntoIterator<Item = CircuitEdge>) -> Result<Self> {
        let mut circuit = self.clone();
        for edge in edges {
            let (sender, receiver) = self.graph.edge_index(edge)?;
            circuit.set(sender, receiver, false);
        }
        Ok(circuit)
    }

    /// All edges that this circuit does not have.
    pub fn complement(&self) -> Self {
        let mut circuit = Circuit::full(self.graph);
        for (edge, kept) in circuit.edges.iter_mut().zip(&self.edges) {
            *edge &= !kept;
        }
        circuit.nodes.fill(false);
        circuit.add_ends();
        circuit
    }

    /// The connected part: nodes that have an edge from and to others in it, and the edges between them. Neither the input nor the logits
    /// need both.
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
                    writes
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
            let next = Circuit { nodes, edges, graph: circuit.graph };
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

    /// Whether any edge leads to a receiver that is not in the circuit.
    pub(super) fn ablates(&self, receiver: usize) -> bool {
        (0..self.graph.senders_before(receiver)).any(|sender| !self.has(sender, receiver))
    }

    /// Whether what a sender writes is read in the circuit.
    pub(super) fn is_read(&self, sender: usize) -> bool {
        (0..self.graph.n_receivers()).any(|receiver| self.has(sender, receiver))
    }

    /// Adds the nodes at the ends of its edges.
    fn add_ends(&mut self) {
        for receiver in 0..self.graph.n_receivers() {
            let reader = self.graph.sender_index(self.graph.receiver(receiver).0).ok();
            for sender in 0..self.graph.senders_before(receiver) {
                if self.has(sender, receiver) {
                    self.nodes[sender] = true;
                    if let Some(reader) = reader {
                        self.nodes[reader] = true;
                    }
                }
            }
        }
    }
}
