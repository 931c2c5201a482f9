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

    /// These nodes with all edges between them, to the logits and from the input, which is always in, as are the encoder's output and the
    /// inputs of per-layer embeddings.
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`] for a node that the model does not have.
    pub fn of_nodes(config: &Config, nodes: impl IntoIterator<Item = CircuitNode>) -> Result<Self> {
        let graph = CircuitGraph::new(config);
        let mut kept = vec![false; graph.n_senders()];
        (0..kept.len()).filter(|sender| graph.is_source(*sender)).for_each(|sender| kept[sender] = true);
        for node in nodes.into_iter().filter(|node| *node != CircuitNode::Logits) {
            kept[graph.sender_index(node)?] = true;
        }
        Ok(Circuit::between(graph, kept))
    }

    /// All edges between the nodes that are kept, and to the logits.
    pub(super) fn between(graph: CircuitGraph, nodes: Vec<bool>) -> Self {
        let mut circuit = Circuit { nodes, ..Circuit::empty(graph) };
        for receiver in 0..circuit.graph.n_receivers() {
            let readers = circuit.graph.readers_of(receiver);
            if readers.is_empty() || readers.into_iter().any(|reader| circuit.nodes[reader]) {
                for sender in circuit.graph.senders_of(receiver) {
                    circuit.set(sender, receiver, circuit.nodes[sender]);
                }
            }
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
    /// [`Error::NoCircuitPart`] for a node that the model does not have, or that does not write to the stream; [`Error::Setting`] for a
    /// dimension that the stream does not have.
    pub fn with_dimensions(&self, node: CircuitNode, kept: impl IntoIterator<Item = usize>) -> Result<Self> {
        let (sender, d_model) = (self.graph.sender_index(node)?, self.graph.d_model);
        if sender >= self.graph.n_in_stream() {
            let why = "it does not write to the stream, so it is kept whole or not at all".into();
            return Err(Error::NoCircuitPart { name: node.to_string(), why });
        }
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

    /// How many dimensions its nodes keep of what they write to the stream, all nodes together.
    pub fn n_dimensions(&self) -> usize {
        let of = |sender: usize| match self.dimensions.get(&sender) {
            Some(kept) => kept.iter().filter(|kept| **kept).count(),
            None => self.graph.d_model,
        };
        (0..self.graph.n_in_stream()).filter(|sender| self.nodes[*sender]).map(of).sum()
    }

    /// The dimensions that a node keeps of what it writes to the stream; none where the node is not in the circuit, or does not write there.
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`] for a node that the model does not have, or that does not write.
    pub fn dimensions(&self, node: CircuitNode) -> Result<Vec<usize>> {
        let sender = self.graph.sender_index(node)?;
        let keeps = |dimension: &usize| self.dimensions.get(&sender).is_none_or(|kept| kept[*dimension]);
        let writes = self.nodes[sender] && sender < self.graph.n_in_stream();
        let d_model = if writes { self.graph.d_model } else { 0 };
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
    /// input nor the logits need both edges, nor do the encoder's output and the inputs of per-layer embeddings.
    pub fn pruned(&self) -> Self {
        let mut circuit = self.clone();
        let receivers = circuit.graph.n_receivers();
        let readers: Vec<Vec<usize>> = (0..receivers).map(|receiver| circuit.graph.readers_of(receiver)).collect();
        loop {
            let graph = &circuit.graph;
            let mut reads = vec![false; receivers];
            let mut writes = vec![false; graph.n_senders()];
            for (receiver, reads) in reads.iter_mut().enumerate() {
                for sender in graph.senders_of(receiver).filter(|sender| circuit.has(*sender, receiver)) {
                    *reads = true;
                    writes[sender] = true;
                }
            }
            let nodes: Vec<bool> = (0..graph.n_senders())
                .map(|sender| {
                    let keeps = circuit.dimensions.get(&sender).is_none_or(|kept| kept.contains(&true));
                    writes[sender]
                        && keeps
                        && (graph.is_source(sender)
                            || graph.receivers_of(sender).iter().any(|receiver| reads[*receiver]))
                })
                .collect();
            let mut edges = circuit.edges.clone();
            for (receiver, readers) in readers.iter().enumerate() {
                let reads = readers.is_empty() || readers.iter().any(|reader| nodes[*reader]);
                for (sender, kept) in nodes.iter().enumerate() {
                    edges[sender * receivers + receiver] &= reads && *kept;
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
        let mut senders = self.graph.senders_of(receiver);
        let partial = self.dimensions.range(senders.clone()).next().is_some();
        partial || senders.any(|sender| !self.has(sender, receiver))
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
                if let Some(reader) = self.graph.readers_of(receiver).first() {
                    self.nodes[*reader] = true;
                }
            }
        }
    }
}
