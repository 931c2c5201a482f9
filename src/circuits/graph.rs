//! [`CircuitGraph`]: the nodes and edges that a model has.

use std::sync::Arc;

use super::node::{CircuitEdge, CircuitNode, HeadInput};
use crate::{Config, Error, Result};

/// The nodes and edges that a model of some shape has.
///
/// Nodes that write are numbered as senders, in the order of the data: the input, then of each layer its heads and its MLP. What is read is
/// numbered as receivers: of each layer the queries of all heads, their keys, their values, and the MLP; at last the logits. These are the
/// rows and columns of the benchmark's matrices.
///
/// A head is a query head. Two exceptions: a pair of differential heads is one node, and where a router chooses a token's heads, those of
/// all its experts are nodes, one expert after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitGraph {
    layers: Arc<[LayerNodes]>,
    pub(super) d_model: usize,
    /// Heads and MLP of a layer read the same stream.
    pub(super) parallel: bool,
    pub(super) has_mlps: bool,
}

/// The nodes of a layer: how many heads it has, and where its numbers begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LayerNodes {
    n_heads: usize,
    first_sender: usize,
    first_receiver: usize,
}

impl CircuitGraph {
    /// The graph of a model of this shape.
    pub fn new(config: &Config) -> Self {
        let heads = (0..config.n_layers).map(|layer| {
            let heads = config.heads(layer);
            match config.attention.experts {
                Some(experts) => experts.num_experts * heads.key_value,
                None if config.attention.differential => heads.query / 2,
                None => heads.query,
            }
        });
        CircuitGraph::of_heads(heads, config.d_model, config.parallel_attn_mlp, !config.attn_only())
    }

    /// The graph of layers with these numbers of heads.
    pub(super) fn of_heads(heads: impl Iterator<Item = usize>, d_model: usize, parallel: bool, has_mlps: bool) -> Self {
        let (mut first_sender, mut first_receiver) = (1, 0);
        let layers = heads.map(|n_heads| {
            let layer = LayerNodes { n_heads, first_sender, first_receiver };
            first_sender += n_heads + usize::from(has_mlps);
            first_receiver += 3 * n_heads + usize::from(has_mlps);
            layer
        });
        CircuitGraph { layers: layers.collect(), d_model, parallel, has_mlps }
    }

    /// How many layers there are.
    pub fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// How many heads a layer has; none where there is no such layer.
    pub fn n_heads(&self, layer: usize) -> usize {
        self.layers.get(layer).map_or(0, |nodes| nodes.n_heads)
    }

    /// How many nodes write.
    pub fn n_senders(&self) -> usize {
        self.first_sender(self.n_layers())
    }

    /// How many inputs are read.
    pub fn n_receivers(&self) -> usize {
        1 + self.first_receiver(self.n_layers())
    }

    /// How many edges there are.
    pub fn n_edges(&self) -> usize {
        (0..self.n_receivers()).map(|receiver| self.senders_before(receiver)).sum()
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

    /// The senders and receivers of all edges, receiver by receiver.
    pub(super) fn pairs(&self) -> Vec<(usize, usize)> {
        let of = |receiver: usize| (0..self.senders_before(receiver)).map(move |sender| (sender, receiver));
        (0..self.n_receivers()).flat_map(of).collect()
    }

    /// The sender of this number.
    pub(super) fn sender(&self, index: usize) -> CircuitNode {
        let after = self.layers.partition_point(|nodes| nodes.first_sender <= index);
        let Some(layer) = after.checked_sub(1) else { return CircuitNode::Input };
        let head = index - self.first_sender(layer);
        match head < self.n_heads(layer) {
            true => CircuitNode::Head { layer, head },
            false => CircuitNode::Mlp { layer },
        }
    }

    /// What is read at the receiver of this number.
    pub(super) fn receiver(&self, index: usize) -> (CircuitNode, Option<HeadInput>) {
        let after = self.layers.partition_point(|nodes| nodes.first_receiver <= index);
        let Some(layer) = after.checked_sub(1).filter(|_| index + 1 < self.n_receivers()) else {
            return (CircuitNode::Logits, None);
        };
        let (place, n_heads) = (index - self.first_receiver(layer), self.n_heads(layer));
        match HeadInput::ALL.get(place / n_heads) {
            Some(input) => (CircuitNode::Head { layer, head: place % n_heads }, Some(*input)),
            None => (CircuitNode::Mlp { layer }, None),
        }
    }

    pub(super) fn edge(&self, sender: usize, receiver: usize) -> CircuitEdge {
        let (to, input) = self.receiver(receiver);
        CircuitEdge { from: self.sender(sender), to, input }
    }

    /// The first sender of a layer; of the number of layers, how many there are.
    pub(super) fn first_sender(&self, layer: usize) -> usize {
        match (self.layers.get(layer), self.layers.last()) {
            (Some(nodes), _) => nodes.first_sender,
            (None, Some(last)) => last.first_sender + last.n_heads + usize::from(self.has_mlps),
            (None, None) => 1,
        }
    }

    /// The first receiver of a layer; of the number of layers, that of the logits.
    pub(super) fn first_receiver(&self, layer: usize) -> usize {
        match (self.layers.get(layer), self.layers.last()) {
            (Some(nodes), _) => nodes.first_receiver,
            (None, Some(last)) => last.first_receiver + 3 * last.n_heads + usize::from(self.has_mlps),
            (None, None) => 0,
        }
    }

    /// The number of a layer's MLP as a sender.
    pub(super) fn mlp_sender(&self, layer: usize) -> usize {
        self.first_sender(layer) + self.n_heads(layer)
    }

    /// The number of a layer's MLP as a receiver.
    pub(super) fn mlp_receiver(&self, layer: usize) -> usize {
        self.first_receiver(layer) + 3 * self.n_heads(layer)
    }

    /// How many senders come before a receiver: all with a smaller number.
    pub(super) fn senders_before(&self, receiver: usize) -> usize {
        match self.receiver(receiver) {
            (CircuitNode::Head { layer, .. }, _) => self.first_sender(layer),
            (CircuitNode::Mlp { layer }, _) if self.parallel => self.first_sender(layer),
            (CircuitNode::Mlp { layer }, _) => self.mlp_sender(layer),
            _ => self.n_senders(),
        }
    }

    /// The receivers of a node: three for a head, one for an MLP or the logits, no receiver for the input.
    pub(super) fn receivers_of(&self, sender: usize) -> Vec<usize> {
        match self.sender(sender) {
            CircuitNode::Head { layer, head } => {
                (0..3).map(|input| self.first_receiver(layer) + input * self.n_heads(layer) + head).collect()
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
            CircuitNode::Head { layer, head } if head < self.n_heads(layer) => Some(self.first_sender(layer) + head),
            CircuitNode::Mlp { layer } if layer < self.n_layers() && self.has_mlps => Some(self.mlp_sender(layer)),
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
            (CircuitNode::Logits, None) => Some(self.first_receiver(self.n_layers())),
            (CircuitNode::Mlp { layer }, None) if layer < self.n_layers() && self.has_mlps => {
                Some(self.mlp_receiver(layer))
            }
            (CircuitNode::Head { layer, head }, Some(input)) if head < self.n_heads(layer) => {
                Some(self.first_receiver(layer) + input as usize * self.n_heads(layer) + head)
            }
            _ => None,
        };
        match receiver {
            Some(receiver) if sender < self.senders_before(receiver) => Ok((sender, receiver)),
            _ => Err(self.absent(edge.to_string())),
        }
    }

    fn absent(&self, name: String) -> Error {
        let heads = match self.layers.iter().all(|nodes| nodes.n_heads == self.n_heads(0)) {
            true => format!("{} layers of {} heads", self.n_layers(), self.n_heads(0)),
            false => format!("layers of {:?} heads", self.layers.iter().map(|it| it.n_heads).collect::<Vec<_>>()),
        };
        let mlps = match (self.has_mlps, self.parallel) {
            (false, _) => ", without MLPs",
            (true, true) => " and parallel MLPs",
            (true, false) => " and MLPs",
        };
        let why = format!("the model has {heads}{mlps}, and an edge leads from a node to a later one");
        Error::NoCircuitPart { name, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back() {
        for (parallel, has_mlps) in [(false, true), (true, true), (false, false)] {
            let graph = CircuitGraph::of_heads([2, 3, 1].into_iter(), 8, parallel, has_mlps);
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
        let graph = CircuitGraph::of_heads([12; 12].into_iter(), 768, false, true);
        assert_eq!((graph.n_senders(), graph.n_receivers(), graph.n_edges()), (157, 445, 32_491));
    }
}
