//! [`CircuitNode`] and [`CircuitEdge`]: parts of a circuit, with the names that the MIB benchmark gives them.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// A node of a circuit. Prints as `input`, `a3.h1`, `m3` or `logits`; in models that have such nodes, also as `encoder`, `c3.h1`,
/// `layer_inputs` or `e3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CircuitNode {
    /// The token embeddings.
    Input,
    /// The output of an encoder, which the keys and values of a decoder's cross-attention read.
    Encoder,
    /// What per-layer embeddings make of the tokens for all layers: their `ple_embed`.
    LayerInputs,
    /// A head of a layer's attention.
    Head {
        /// The layer.
        layer: usize,
        /// The query head.
        head: usize,
    },
    /// A head of a layer's cross-attention.
    CrossHead {
        /// The layer.
        layer: usize,
        /// The query head.
        head: usize,
    },
    /// A layer's MLP, or its mixture of experts.
    Mlp {
        /// The layer.
        layer: usize,
    },
    /// A layer's per-layer embedding.
    LayerEmbedding {
        /// The layer.
        layer: usize,
    },
    /// The last norm and the unembedding.
    Logits,
}

/// For what a head reads the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HeadInput {
    /// Its queries.
    Q,
    /// Its keys.
    K,
    /// Its values.
    V,
}

impl HeadInput {
    /// All three, in their order.
    pub const ALL: [HeadInput; 3] = [HeadInput::Q, HeadInput::K, HeadInput::V];

    fn letter(self) -> char {
        match self {
            HeadInput::Q => 'q',
            HeadInput::K => 'k',
            HeadInput::V => 'v',
        }
    }
}

/// An edge of a circuit: what one node writes, as another one reads it. Prints as `a0.h1->a3.h2<q>` or `m0->logits`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CircuitEdge {
    /// The node that writes.
    pub from: CircuitNode,
    /// The node that reads.
    pub to: CircuitNode,
    /// For what a head reads; absent of other nodes.
    pub input: Option<HeadInput>,
}

impl fmt::Display for CircuitNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CircuitNode::Input => f.pad("input"),
            CircuitNode::Encoder => f.pad("encoder"),
            CircuitNode::LayerInputs => f.pad("layer_inputs"),
            CircuitNode::CrossHead { layer, head } => f.pad(&format!("c{layer}.h{head}")),
            CircuitNode::LayerEmbedding { layer } => f.pad(&format!("e{layer}")),
            CircuitNode::Head { layer, head } => f.pad(&format!("a{layer}.h{head}")),
            CircuitNode::Mlp { layer } => f.pad(&format!("m{layer}")),
            CircuitNode::Logits => f.pad("logits"),
        }
    }
}

impl fmt::Display for CircuitEdge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let input = self.input.map_or(String::new(), |input| format!("<{}>", input.letter()));
        f.pad(&format!("{}->{}{input}", self.from, self.to))
    }
}

impl FromStr for CircuitNode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let number = |text: &str| text.parse::<usize>().ok().filter(|n| n.to_string() == text);
        let layer = |letter: char| name.strip_prefix(letter).and_then(number);
        let head = |letter: char| {
            let (layer, head) = name.strip_prefix(letter)?.split_once(".h")?;
            Some((number(layer)?, number(head)?))
        };
        let node = match name {
            "input" => Some(CircuitNode::Input),
            "encoder" => Some(CircuitNode::Encoder),
            "layer_inputs" => Some(CircuitNode::LayerInputs),
            "logits" => Some(CircuitNode::Logits),
            _ => (layer('m').map(|layer| CircuitNode::Mlp { layer }))
                .or_else(|| head('a').map(|(layer, head)| CircuitNode::Head { layer, head }))
                .or_else(|| head('c').map(|(layer, head)| CircuitNode::CrossHead { layer, head }))
                .or_else(|| layer('e').map(|layer| CircuitNode::LayerEmbedding { layer })),
        };
        node.ok_or_else(|| Error::NoCircuitPart {
            name: name.into(),
            why: "a node is `input`, `a0.h1`, `m0` or `logits`; of some models also `encoder`, `c0.h1`, `layer_inputs` or `e0`"
                .into(),
        })
    }
}

impl FromStr for CircuitEdge {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let malformed = || Error::NoCircuitPart {
            name: name.into(),
            why: "an edge is `input->m0`, or to a head `m0->a1.h0<q>` with q, k or v".into(),
        };
        let (from, to) = name.split_once("->").ok_or_else(malformed)?;
        let (to, input) = match to.strip_suffix('>').and_then(|to| to.split_once('<')) {
            None => (to, None),
            Some((to, letter)) => {
                let input = HeadInput::ALL.into_iter().find(|input| input.letter().to_string() == letter);
                (to, Some(input.ok_or_else(malformed)?))
            }
        };
        let edge = CircuitEdge { from: from.parse()?, to: to.parse()?, input };
        let has_inputs = matches!(edge.to, CircuitNode::Head { .. } | CircuitNode::CrossHead { .. });
        match has_inputs == input.is_some() {
            true => Ok(edge),
            false => Err(malformed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back() {
        for name in [
            "input->a0.h11<v>",
            "a3.h0->m3",
            "m10->a11.h2<q>",
            "a0.h0->logits",
            "encoder->c2.h0<k>",
            "c2.h0->e3",
            "layer_inputs->e3",
        ] {
            assert_eq!(name.parse::<CircuitEdge>().unwrap().to_string(), name);
        }
        for name in [
            "",
            "m0",
            "m0->",
            "m0->a1.h0",
            "m0->m1<q>",
            "m00->m1",
            "a1->m1",
            "a1.h->m1",
            "m0->a1.h0<x>",
            "x->m0",
            "m0->c1.h0",
            "c1->m1",
            "e->m1",
        ] {
            assert!(name.parse::<CircuitEdge>().is_err(), "{name}");
        }
    }
}
