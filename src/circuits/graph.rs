//! [`CircuitGraph`]: the nodes and edges that a model has.

use std::ops::Range;
use std::sync::Arc;

use super::node::{CircuitEdge, CircuitNode, HeadInput};
use super::part::{PartKind, PartNodes};
use crate::{Config, Error, Result};

/// The nodes and edges that a model of some shape has.
///
/// Nodes that write are numbered as senders, in the order of the data: the input, then of each layer its heads and its MLP. What is read is
/// numbered as receivers: of each layer the queries of all heads, their keys, their values, and the MLP; at last the logits. These are the
/// rows and columns of the benchmark's matrices.
///
/// A head is a query head. Two exceptions: a pair of differential heads is one node, and where a router chooses a token's heads, those of
/// all its experts are nodes, one expert after the other.
///
/// Some models have more. In a decoder, the heads of cross-attention come between a layer's own heads and its MLP; their keys and values
/// read the [encoder's output](CircuitNode::Encoder), the sender after all others. Per-layer embeddings come after a layer's MLP; each reads
/// the stream and [its own input](CircuitNode::LayerInputs), the last sender. Heads of a layer that looks at keys and values of an earlier
/// one have receivers for queries alone: what leads to the earlier layer's keys and values leads to them as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CircuitGraph {
    shape: Arc<GraphShape>,
    parts: Arc<[PartNodes]>,
    pub(super) d_model: usize,
}

/// What a graph is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GraphShape {
    /// The number of each layer's heads.
    pub(super) heads: Vec<usize>,
    /// The layer whose keys and values a layer looks at, where it has none of its own.
    pub(super) keys_of: Vec<Option<usize>>,
    pub(super) d_model: usize,
    /// Heads and MLP of a layer read the same stream.
    pub(super) parallel: bool,
    pub(super) has_mlps: bool,
    /// Each layer has as many heads of cross-attention as of its own.
    pub(super) has_cross: bool,
    pub(super) has_layer_embeddings: bool,
}

impl GraphShape {
    fn of(config: &Config) -> Self {
        let heads = |layer: usize| {
            let heads = config.heads(layer);
            match config.attention.experts {
                Some(experts) => experts.num_experts * heads.key_value,
                None if config.attention.differential => heads.query / 2,
                None => heads.query,
            }
        };
        GraphShape {
            heads: (0..config.n_layers).map(heads).collect(),
            keys_of: (0..config.n_layers).map(|layer| config.shares_keys_of(layer)).collect(),
            d_model: config.d_model,
            parallel: config.parallel_attn_mlp,
            has_mlps: !config.attn_only(),
            has_cross: config.attention.cross.is_some(),
            has_layer_embeddings: config.stream.layer_embedding.is_some(),
        }
    }

    /// How many nodes that write a graph of this shape has; `None` where that is no number.
    pub(super) fn n_senders(&self) -> Option<usize> {
        let heads = self.heads.iter().try_fold(0usize, |sum, heads| sum.checked_add(*heads))?;
        let of_layers = usize::from(self.has_mlps) + usize::from(self.has_layer_embeddings);
        let others = self.heads.len().checked_mul(of_layers)?;
        let sides = usize::from(self.has_cross) + usize::from(self.has_layer_embeddings);
        heads.checked_mul(1 + usize::from(self.has_cross))?.checked_add(others)?.checked_add(1 + sides)
    }

    /// Whether a layer that looks at the keys of another one has as many heads.
    pub(super) fn keys_fit(&self) -> bool {
        let fits = |(layer, keys_of): (usize, &Option<usize>)| match keys_of {
            None => true,
            Some(of) => {
                let has_own = self.keys_of.get(*of).is_some_and(Option::is_none);
                *of < layer && has_own && self.heads[*of] == self.heads[layer]
            }
        };
        self.keys_of.len() == self.heads.len() && self.keys_of.iter().enumerate().all(fits)
    }
}

impl CircuitGraph {
    /// The graph of a model of this shape.
    pub fn new(config: &Config) -> Self {
        CircuitGraph::of_shape(GraphShape::of(config))
    }

    pub(super) fn of_shape(shape: GraphShape) -> Self {
        let (mut first_sender, mut first_receiver) = (1, 0);
        let mut parts = Vec::new();
        for (layer, n_heads) in shape.heads.iter().copied().enumerate() {
            let kinds = [
                Some((PartKind::Attention, n_heads)),
                shape.has_cross.then_some((PartKind::CrossAttention, n_heads)),
                shape.has_mlps.then_some((PartKind::Mlp, 1)),
                shape.has_layer_embeddings.then_some((PartKind::LayerEmbedding, 1)),
            ];
            let first_of_layer = first_sender;
            for (kind, n) in kinds.into_iter().flatten() {
                let reads = match (kind, shape.parallel) {
                    (PartKind::Mlp, true) => first_of_layer,
                    _ => first_sender,
                };
                let keys_of = shape.keys_of.get(layer).copied().flatten().filter(|_| kind == PartKind::Attention);
                let part = PartNodes { layer, kind, n, first_sender, first_receiver, reads, keys_of };
                first_sender += n;
                first_receiver += part.n_receivers();
                parts.push(part);
            }
        }
        CircuitGraph { parts: parts.into(), d_model: shape.d_model, shape: shape.into() }
    }

    pub(super) fn shape(&self) -> &GraphShape {
        &self.shape
    }

    /// The parts of all layers, in the order of the data.
    pub(super) fn parts(&self) -> &[PartNodes] {
        &self.parts
    }

    fn part(&self, layer: usize, kind: PartKind) -> Option<&PartNodes> {
        self.parts.iter().find(|part| part.layer == layer && part.kind == kind)
    }

    /// How many layers there are.
    pub fn n_layers(&self) -> usize {
        self.shape.heads.len()
    }

    /// How many heads a layer has; none where there is no such layer.
    pub fn n_heads(&self, layer: usize) -> usize {
        self.shape.heads.get(layer).copied().unwrap_or(0)
    }

    /// How many nodes write.
    pub fn n_senders(&self) -> usize {
        self.n_in_stream() + self.sides().count()
    }

    /// How many nodes write to the stream: all but the last ones.
    pub(super) fn n_in_stream(&self) -> usize {
        self.parts.last().map_or(1, |part| part.first_sender + part.n)
    }

    /// The nodes that do not write to the stream, in their order.
    fn sides(&self) -> impl Iterator<Item = CircuitNode> {
        let encoder = self.shape.has_cross.then_some(CircuitNode::Encoder);
        let inputs = self.shape.has_layer_embeddings.then_some(CircuitNode::LayerInputs);
        encoder.into_iter().chain(inputs)
    }

    /// The number of the encoder's output, and that of the layers' inputs, where there are some.
    pub(super) fn side(&self, node: CircuitNode) -> Option<usize> {
        self.sides().position(|side| side == node).map(|place| self.n_in_stream() + place)
    }

    /// Whether a sender reads nothing: the input, the encoder's output and the layers' inputs.
    pub(super) fn is_source(&self, sender: usize) -> bool {
        sender == 0 || sender >= self.n_in_stream()
    }

    /// How many inputs are read.
    pub fn n_receivers(&self) -> usize {
        1 + self.parts.last().map_or(0, |part| part.first_receiver + part.n_receivers())
    }

    /// How many edges there are.
    pub fn n_edges(&self) -> usize {
        (0..self.n_receivers()).map(|receiver| self.senders_of(receiver).len()).sum()
    }

    /// The senders, in their order.
    pub fn senders(&self) -> impl Iterator<Item = CircuitNode> + '_ {
        (0..self.n_senders()).map(|index| self.sender(index))
    }

    /// All edges, receiver by receiver.
    pub fn edges(&self) -> impl Iterator<Item = CircuitEdge> + '_ {
        (0..self.n_receivers())
            .flat_map(move |receiver| self.senders_of(receiver).map(move |sender| self.edge(sender, receiver)))
    }

    /// The senders and receivers of all edges, receiver by receiver.
    pub(super) fn pairs(&self) -> Vec<(usize, usize)> {
        let of = |receiver: usize| self.senders_of(receiver).map(move |sender| (sender, receiver));
        (0..self.n_receivers()).flat_map(of).collect()
    }

    /// The sender of this number.
    pub(super) fn sender(&self, index: usize) -> CircuitNode {
        if let Some(place) = index.checked_sub(self.n_in_stream()) {
            return self.sides().nth(place).unwrap_or(CircuitNode::Logits);
        }
        let after = self.parts.partition_point(|part| part.first_sender <= index);
        match after.checked_sub(1).map(|part| &self.parts[part]) {
            Some(part) => part.node(index - part.first_sender),
            None => CircuitNode::Input,
        }
    }

    /// The part that has the receiver of this number, and its place there; `None` for the logits.
    fn part_of_receiver(&self, index: usize) -> Option<(&PartNodes, usize)> {
        let after = self.parts.partition_point(|part| part.first_receiver <= index);
        let part = &self.parts[after.checked_sub(1)?];
        let place = index - part.first_receiver;
        (place < part.n_receivers()).then_some((part, place))
    }

    /// What is read at the receiver of this number.
    pub(super) fn receiver(&self, index: usize) -> (CircuitNode, Option<HeadInput>) {
        match self.part_of_receiver(index) {
            Some((part, place)) if part.kind.has_heads() => {
                (part.node(place % part.n), HeadInput::ALL.get(place / part.n).copied())
            }
            Some((part, _)) => (part.node(0), None),
            None => (CircuitNode::Logits, None),
        }
    }

    pub(super) fn edge(&self, sender: usize, receiver: usize) -> CircuitEdge {
        let (to, input) = self.receiver(receiver);
        CircuitEdge { from: self.sender(sender), to, input }
    }

    /// The senders that lead to a receiver: of the stream, all that wrote before it.
    pub(super) fn senders_of(&self, receiver: usize) -> Range<usize> {
        let side = |node: CircuitNode| self.side(node).map_or(0..0, |side| side..side + 1);
        match self.part_of_receiver(receiver) {
            Some((part, place)) => match part.kind {
                PartKind::CrossAttention if place >= part.n => side(CircuitNode::Encoder),
                PartKind::LayerEmbedding if place > 0 => side(CircuitNode::LayerInputs),
                _ => 0..part.reads,
            },
            None => 0..self.n_in_stream(),
        }
    }

    /// The receivers of a node: three for a head, one for an MLP or the logits, no receiver for the input. A head that looks at an earlier
    /// layer's keys and values has those there.
    pub(super) fn receivers_of(&self, sender: usize) -> Vec<usize> {
        let after = self.parts.partition_point(|part| part.first_sender <= sender);
        let Some(part) = after.checked_sub(1).map(|part| &self.parts[part]).filter(|_| !self.is_source(sender)) else {
            return Vec::new();
        };
        let head = sender - part.first_sender;
        let input = |part: &PartNodes, input: usize| part.first_receiver + input * part.n + head;
        match (part.kind.has_heads(), part.keys_of.and_then(|of| self.part(of, PartKind::Attention))) {
            (true, None) => (0..3).map(|place| input(part, place)).collect(),
            (true, Some(of)) => vec![input(part, 0), input(of, 1), input(of, 2)],
            (false, _) => (0..part.n_receivers()).map(|place| part.first_receiver + place).collect(),
        }
    }

    /// The numbers of the nodes that read at a receiver; none for the logits.
    pub(super) fn readers_of(&self, receiver: usize) -> Vec<usize> {
        let Some((part, place)) = self.part_of_receiver(receiver) else { return Vec::new() };
        if !part.kind.has_heads() {
            return vec![part.first_sender];
        }
        let mut readers = vec![part.first_sender + place % part.n];
        if part.kind == PartKind::Attention && place >= part.n {
            let shared = self.parts.iter().filter(|other| other.keys_of == Some(part.layer));
            readers.extend(shared.map(|other| other.first_sender + place % part.n));
        }
        readers
    }

    /// The number of a node as a sender.
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`] where the model has no such node, or it does not write.
    pub fn sender_index(&self, node: CircuitNode) -> Result<usize> {
        let index = match node {
            CircuitNode::Input => Some(0),
            CircuitNode::Encoder | CircuitNode::LayerInputs => self.side(node),
            CircuitNode::Logits => None,
            _ => self.part_of(node).map(|(part, place)| part.first_sender + place),
        };
        index.ok_or_else(|| self.absent(node.to_string()))
    }

    /// The part that a node is in, and its place there.
    fn part_of(&self, node: CircuitNode) -> Option<(&PartNodes, usize)> {
        let (layer, kind, place) = match node {
            CircuitNode::Head { layer, head } => (layer, PartKind::Attention, head),
            CircuitNode::CrossHead { layer, head } => (layer, PartKind::CrossAttention, head),
            CircuitNode::Mlp { layer } => (layer, PartKind::Mlp, 0),
            CircuitNode::LayerEmbedding { layer } => (layer, PartKind::LayerEmbedding, 0),
            CircuitNode::Input | CircuitNode::Encoder | CircuitNode::LayerInputs | CircuitNode::Logits => return None,
        };
        self.part(layer, kind).filter(|part| place < part.n).map(|part| (part, place))
    }

    /// The numbers of an edge's sender and receiver.
    ///
    /// # Errors
    ///
    /// [`Error::NoCircuitPart`] where the model has no such edge.
    pub fn edge_index(&self, edge: CircuitEdge) -> Result<(usize, usize)> {
        let sender = self.sender_index(edge.from)?;
        let receiver = match (edge.to, self.part_of(edge.to)) {
            (CircuitNode::Logits, _) => edge.input.is_none().then(|| self.n_receivers() - 1),
            (_, Some((part, place))) => match (edge.input, part.kind.has_heads()) {
                (Some(input), true) => {
                    let place = input as usize * part.n + place;
                    (place < part.n_receivers()).then_some(part.first_receiver + place)
                }
                (None, false) => Some(part.first_receiver + usize::from(edge.from == CircuitNode::LayerInputs)),
                _ => None,
            },
            _ => None,
        };
        match receiver.filter(|receiver| self.senders_of(*receiver).contains(&sender)) {
            Some(receiver) => Ok((sender, receiver)),
            None => Err(self.absent(edge.to_string())),
        }
    }

    fn absent(&self, name: String) -> Error {
        let GraphShape { heads, has_mlps, parallel, has_cross, has_layer_embeddings, .. } = self.shape();
        let of_heads = match heads.iter().all(|n| *n == self.n_heads(0)) {
            true => format!("{} layers of {} heads", self.n_layers(), self.n_heads(0)),
            false => format!("layers of {heads:?} heads"),
        };
        let mlps = match (has_mlps, parallel) {
            (false, _) => ", without MLPs",
            (true, true) => " and parallel MLPs",
            (true, false) => " and MLPs",
        };
        let cross = if *has_cross { ", with cross-attention" } else { "" };
        let embeddings = if *has_layer_embeddings { ", with per-layer embeddings" } else { "" };
        let keys = match self.parts.iter().any(|part| part.keys_of.is_some()) {
            true => ", of which some look at the keys and values of an earlier one",
            false => "",
        };
        let why = format!(
            "the model has {of_heads}{mlps}{cross}{embeddings}{keys}, and an edge leads from a node to a later one"
        );
        Error::NoCircuitPart { name, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_lead_back() {
        let shapes = [(false, true), (true, true), (false, false)].map(|(parallel, has_mlps)| GraphShape {
            heads: vec![2, 3, 1],
            d_model: 8,
            parallel,
            has_mlps,
            ..GraphShape::default()
        });
        let decoder = GraphShape { has_cross: true, ..shapes[0].clone() };
        let keys_of = vec![None, None, Some(0), Some(1)];
        let shared = GraphShape { heads: vec![2, 3, 2, 3], keys_of, has_layer_embeddings: true, ..shapes[0].clone() };
        assert!(shared.keys_fit());
        for shape in shapes.into_iter().chain([decoder, shared]) {
            let senders = shape.n_senders();
            let graph = CircuitGraph::of_shape(shape);
            assert_eq!(senders, Some(graph.n_senders()));
            let edges: Vec<CircuitEdge> = graph.edges().collect();
            assert_eq!(edges.len(), graph.n_edges());
            for edge in edges {
                let (sender, receiver) = graph.edge_index(edge).unwrap();
                assert_eq!(graph.edge(sender, receiver), edge);
                assert_eq!(edge.to_string().parse::<CircuitEdge>().unwrap(), edge);
            }
            for sender in 0..graph.n_senders() {
                assert_eq!(graph.sender_index(graph.sender(sender)).unwrap(), sender);
                for receiver in graph.receivers_of(sender) {
                    assert!(graph.readers_of(receiver).contains(&sender));
                }
            }
            for receiver in 0..graph.n_receivers() {
                for reader in graph.readers_of(receiver) {
                    assert!(graph.receivers_of(reader).contains(&receiver));
                }
            }
        }
        // GPT-2 small.
        let graph = CircuitGraph::of_shape(GraphShape {
            heads: vec![12; 12],
            d_model: 768,
            has_mlps: true,
            ..GraphShape::default()
        });
        assert_eq!((graph.n_senders(), graph.n_receivers(), graph.n_edges()), (157, 445, 32_491));
    }
}
