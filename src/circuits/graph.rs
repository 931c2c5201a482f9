//! [`CircuitGraph`]: the nodes and edges that a model has.

use super::node::{CircuitEdge, CircuitNode, HeadInput};
use crate::{Config, Error, Result};

/// The nodes and edges that a model of some shape has.
///
/// Nodes that write are numbered as senders, in the order of the data: the input, then of each layer its heads and its MLP. What is read is
/// numbered as receivers: of each layer the queries of all heads, their keys, their values, and the MLP; at last the logits. These are the
/// rows and columns of the benchmark's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitGraph {
    pub(super) n_layers: usize,
    pub(super) n_heads: usize,
    pub(super) d_model: usize,
    /// Heads and MLP of a layer read the same stream.
    pub(super) parallel: bool,
    pub(super) has_mlps: bool,
}

impl CircuitGraph {
    /// The graph of a model of this shape.
    pub fn new(config: &Config) -> Self {
        CircuitGraph {
            n_layers: config.n_layers,
            n_heads: config.n_heads,
            d_model: config.d_model,
            parallel: config.parallel_attn_mlp,
            has_mlps: !config.attn_only(),
        }
    }

    /// How many nodes write.
    pub fn n_senders(&self) -> usize {
        1 + self.n_layers * self.senders_per_layer()
    }

    /// How many inputs are read.
    pub fn n_receivers(&self) -> usize {
        1 + self.n_layers * self.receivers_per_layer()
    }

    /// How many edges there are.
    pub fn n_edges(&self) -> usize {
        (0..self.n_receivers()).map(|receiver| self.senders_before(receiver)).sum()
    }

    fn senders_per_layer(&self) -> usize {
        self.n_heads + usize::from(self.has_mlps)
    }

    fn receivers_per_layer(&self) -> usize {
        3 * self.n_heads + usize::from(self.has_mlps)
    }

    /// The senders, in their order.
    pub fn senders(&self) -> impl Iterator<Item = CircuitNode> + '_ {
        (0..self.n_senders()).map(|index| self.sender(index))
    }

    /// All edges, receiver by receiver.
    pub fn edges(&self) -> impl Iterator<Item = CircuitEdge> + '_ {
        (0..self.n_receivers())
            .flat_map(move |receiver| (0..self.senders_before(receiver)).map(move |sender| self.edge(sender, receiver)))
    }

    /// The sender of this number.
    pub(super) fn sender(&self, index: usize) -> CircuitNode {
        let Some(index) = index.checked_sub(1) else { return CircuitNode::Input };
        let (layer, place) = (index / self.senders_per_layer(), index % self.senders_per_layer());
        match place < self.n_heads {
            true => CircuitNode::Head { layer, head: place },
            false => CircuitNode::Mlp { layer },
        }
    }

    /// What is read at the receiver of this number.
    pub(super) fn receiver(&self, index: usize) -> (CircuitNode, Option<HeadInput>) {
        let (layer, place) = (index / self.receivers_per_layer(), index % self.receivers_per_layer());
        if layer == self.n_layers {
            return (CircuitNode::Logits, None);
        }
        match HeadInput::ALL.get(place / self.n_heads) {
            Some(input) => (CircuitNode::Head { layer, head: place % self.n_heads }, Some(*input)),
            None => (CircuitNode::Mlp { layer }, None),
        }
    }

    pub(super) fn edge(&self, sender: usize, receiver: usize) -> CircuitEdge {
        let (to, input) = self.receiver(receiver);
        CircuitEdge { from: self.sender(sender), to, input }
    }

    /// The first sender of a layer.
    pub(super) fn first_sender(&self, layer: usize) -> usize {
        1 + layer * self.senders_per_layer()
    }

    /// The first receiver of a layer; of the number of layers, that of the logits.
    pub(super) fn first_receiver(&self, layer: usize) -> usize {
        layer * self.receivers_per_layer()
    }

    /// The number of a layer's MLP as a receiver.
    pub(super) fn mlp_receiver(&self, layer: usize) -> usize {
        self.first_receiver(layer) + 3 * self.n_heads
    }

    /// How many senders come before a receiver: all with a smaller number.
    pub(super) fn senders_before(&self, receiver: usize) -> usize {
        match self.receiver(receiver) {
            (CircuitNode::Head { layer, .. }, _) => self.first_sender(layer),
            (CircuitNode::Mlp { layer }, _) if self.parallel => self.first_sender(layer),
            (CircuitNode::Mlp { layer }, _) => self.first_sender(layer) + self.n_heads,
            _ => self.n_senders(),
        }
    }

    /// The receivers of a node: three for a head, one for an MLP or the logits, no receiver for the input.
    pub(super) fn receivers_of(&self, sender: usize) -> Vec<usize> {
        match self.sender(sender) {
            CircuitNode::Head { layer, head } => {
                (0..3).map(|input| self.first_receiver(layer) + input * self.n_heads + head).collect()
            }
            CircuitNode::Mlp { layer } => vec![self.mlp_receiver(layer)],
            _ => Vec::new(),
        }
    }

    /// The number of a node as a sender.
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`] where the model has no such node, or it does not write.
    pub fn sender_index(&self, node: CircuitNode) -> Result<usize> {
        let index = match node {
            CircuitNode::Input => Some(0),
            CircuitNode::Head { layer, head } if layer < self.n_layers && head < self.n_heads => {
                Some(self.first_sender(layer) + head)
            }
            CircuitNode::Mlp { layer } if layer < self.n_layers && self.has_mlps => {
                Some(self.first_sender(layer) + self.n_heads)
            }
            _ => None,
        };
        index.ok_or_else(|| self.absent(node.to_string()))
    }

    /// The numbers of an edge's sender and receiver.
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`] where the model has no such edge.
    pub fn edge_index(&self, edge: CircuitEdge) -> Result<(usize, usize)> {
        let sender = self.sender_index(edge.from)?;
        let receiver = match (edge.to, edge.input) {
            (CircuitNode::Logits, None) => Some(self.first_receiver(self.n_layers)),
            (CircuitNode::Mlp { layer }, None) if layer < self.n_layers && self.has_mlps => {
                Some(self.mlp_receiver(layer))
            }
            (CircuitNode::Head { layer, head }, Some(input)) if layer < self.n_layers && head < self.n_heads => {
                Some(self.first_receiver(layer) + input as usize * self.n_heads + head)
            }
            _ => None,
        };
        match receiver {
            Some(receiver) if sender < self.senders_before(receiver) => Ok((sender, receiver)),
            _ => Err(self.absent(edge.to_string())),
        }
    }

    fn absent(&self, name: String) -> Error {
        let (layers, heads) = (self.n_layers, self.n_heads);
        let mlps = match (self.has_mlps, self.parallel) {
            (false, _) => ", without MLPs",
            (true, true) => " and parallel MLPs",
            (true, false) => " and MLPs",
        };
        let why = format!(
            "the model has {layers} layers of {heads} heads{mlps}, and an edge leads from a node to a later one"
        );
        Error::NoCircuitPart { name, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back() {
        for (parallel, has_mlps) in [(false, true), (true, true), (false, false)] {
            let graph = CircuitGraph { n_layers: 3, n_heads: 2, d_model: 8, parallel, has_mlps };
            let edges: Vec<CircuitEdge> = graph.edges().collect();
            assert_eq!(edges.len(), graph.n_edges());
            for edge in edges {
                let (sender, receiver) = graph.edge_index(edge).unwrap();
                assert_eq!(graph.edge(sender, receiver), edge);
            }
            for sender in 0..graph.n_senders() {
                assert_eq!(graph.sender_index(graph.sender(sender)).unwrap(), sender);
                for receiver in graph.receivers_of(sender) {
                    assert_eq!(graph.receiver(receiver).0, graph.sender(sender));
                }
            }
        }
        // GPT-2 small.
        let graph = CircuitGraph { n_layers: 12, n_heads: 12, d_model: 768, parallel: false, has_mlps: true };
        assert_eq!((graph.n_senders(), graph.n_receivers(), graph.n_edges()), (157, 445, 32_491));
    }
}
