//! [`AttributionNode`]: what the nodes of an attribution graph are.

use std::fmt;

/// A node of an [`AttributionGraph`](super::AttributionGraph). It prints as `L1F27@4`: layer, feature, position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AttributionNode {
    /// A feature of a transcoder.
    Feature {
        /// The layer that it reads.
        layer: usize,
        /// The position.
        pos: usize,
        /// Its number in the transcoder.
        feature: usize,
    },
    /// A neuron of an MLP, or of a mixture's shared expert.
    Neuron {
        /// The layer.
        layer: usize,
        /// The position.
        pos: usize,
        /// Its number in the MLP.
        neuron: usize,
    },
    /// A neuron of an expert.
    ExpertNeuron {
        /// The layer.
        layer: usize,
        /// The position.
        pos: usize,
        /// The expert.
        expert: usize,
        /// Its number in the expert.
        neuron: usize,
    },
    /// An attention head.
    Head {
        /// The layer.
        layer: usize,
        /// The position, which is that of the query.
        pos: usize,
        /// The head.
        head: usize,
    },
    /// What a layer's transcoder leaves of the MLP's output.
    Error {
        /// The layer.
        layer: usize,
        /// The position.
        pos: usize,
    },
    /// The embedding of a token, with what per-layer embeddings make of it.
    Token {
        /// The position.
        pos: usize,
        /// The token's id.
        id: i64,
    },
    /// What a decoder's cross-attention reads of an encoder at one of its positions.
    Encoder {
        /// The position in the encoder's output.
        pos: usize,
    },
    /// The logit of a token at the last position, less the mean of all logits, before any cap.
    Logit {
        /// The position.
        pos: usize,
        /// The token's id.
        id: i64,
    },
}

impl AttributionNode {
    /// The position; of what is read of an encoder, the encoder's.
    pub fn pos(&self) -> usize {
        match *self {
            AttributionNode::Feature { pos, .. }
            | AttributionNode::Neuron { pos, .. }
            | AttributionNode::ExpertNeuron { pos, .. }
            | AttributionNode::Head { pos, .. }
            | AttributionNode::Error { pos, .. }
            | AttributionNode::Token { pos, .. }
            | AttributionNode::Encoder { pos }
            | AttributionNode::Logit { pos, .. } => pos,
        }
    }

    /// The layer; `None` for tokens, an encoder's positions and logits.
    pub fn layer(&self) -> Option<usize> {
        match *self {
            AttributionNode::Feature { layer, .. }
            | AttributionNode::Neuron { layer, .. }
            | AttributionNode::ExpertNeuron { layer, .. }
            | AttributionNode::Head { layer, .. }
            | AttributionNode::Error { layer, .. } => Some(layer),
            AttributionNode::Token { .. } | AttributionNode::Encoder { .. } | AttributionNode::Logit { .. } => None,
        }
    }
}

impl fmt::Display for AttributionNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttributionNode::Feature { layer, pos, feature } => write!(f, "L{layer}F{feature}@{pos}"),
            AttributionNode::Neuron { layer, pos, neuron } => write!(f, "L{layer}N{neuron}@{pos}"),
            AttributionNode::ExpertNeuron { layer, pos, expert, neuron } => {
                write!(f, "L{layer}E{expert}N{neuron}@{pos}")
            }
            AttributionNode::Head { layer, pos, head } => write!(f, "L{layer}H{head}@{pos}"),
            AttributionNode::Error { layer, pos } => write!(f, "error {layer}@{pos}"),
            AttributionNode::Token { pos, id } => write!(f, "token {id}@{pos}"),
            AttributionNode::Encoder { pos } => write!(f, "encoder {pos}"),
            AttributionNode::Logit { pos, id } => write!(f, "logit {id}@{pos}"),
        }
    }
}
