//! [`PartNodes`]: the nodes of one part of a layer, and where the stream passes it.

use tch::Tensor;

use super::node::CircuitNode;
use crate::component::Sublayer;
use crate::hook::{self, HookPoint};
use crate::model::placed_norm::PlacedNorm;
use crate::model::Transformer;
use crate::Result;

/// A part of a layer that reads the stream and adds to it, in the order in which they add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartKind {
    Attention,
    CrossAttention,
    Mlp,
    LayerEmbedding,
}

/// The nodes of a part of a layer, and where its numbers begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartNodes {
    pub(super) layer: usize,
    pub(super) kind: PartKind,
    /// How many nodes: heads, or one.
    pub(super) n: usize,
    pub(super) first_sender: usize,
    pub(super) first_receiver: usize,
    /// How many senders wrote to the stream before the part reads it.
    pub(super) reads: usize,
    /// The layer whose keys and values the heads look at, where they have none of their own.
    pub(super) keys_of: Option<usize>,
}

impl PartKind {
    /// Whether its nodes are heads.
    pub(super) fn has_heads(self) -> bool {
        matches!(self, PartKind::Attention | PartKind::CrossAttention)
    }
}

impl PartNodes {
    /// How many inputs it reads: queries, keys and values of each head, or a stream, and a layer's own input besides.
    pub(super) fn n_receivers(&self) -> usize {
        match self.kind {
            PartKind::Attention if self.keys_of.is_some() => self.n,
            PartKind::Attention | PartKind::CrossAttention => 3 * self.n,
            PartKind::Mlp => 1,
            PartKind::LayerEmbedding => 2,
        }
    }

    /// A node of it, by its place.
    pub(super) fn node(&self, place: usize) -> CircuitNode {
        let layer = self.layer;
        match self.kind {
            PartKind::Attention => CircuitNode::Head { layer, head: place },
            PartKind::CrossAttention => CircuitNode::CrossHead { layer, head: place },
            PartKind::Mlp => CircuitNode::Mlp { layer },
            PartKind::LayerEmbedding => CircuitNode::LayerEmbedding { layer },
        }
    }

    fn sublayer(&self) -> Option<Sublayer> {
        match self.kind {
            PartKind::Attention => Some(Sublayer::Attention),
            PartKind::CrossAttention => Some(Sublayer::CrossAttention),
            PartKind::Mlp => Some(Sublayer::Mlp),
            PartKind::LayerEmbedding => None,
        }
    }

    /// What its nodes compute: of heads, the mixed values.
    pub(super) fn computed(&self) -> HookPoint {
        match self.kind {
            PartKind::Attention => hook::z(self.layer),
            PartKind::CrossAttention => hook::cross_z(self.layer),
            _ => self.written(),
        }
    }

    /// What all its nodes add to the stream together.
    pub(super) fn written(&self) -> HookPoint {
        match self.kind {
            PartKind::Attention => hook::attn_out(self.layer),
            PartKind::CrossAttention => hook::cross_attn_out(self.layer),
            PartKind::Mlp => hook::mlp_out(self.layer),
            PartKind::LayerEmbedding => hook::ple_out(self.layer),
        }
    }

    /// The norm that the heads of it pass together.
    pub(super) fn norm_after_heads<'m>(&self, model: &'m Transformer) -> Result<Option<PlacedNorm<'m>>> {
        match self.sublayer().filter(|_| self.kind.has_heads()) {
            Some(sublayer) => model.norm_after(self.layer, sublayer),
            None => Ok(None),
        }
    }

    /// What multiplies the stream before it adds to it: `[1]`, or `[d_model]`.
    pub(super) fn factor_before(&self, model: &Transformer) -> Result<Option<Tensor>> {
        match self.sublayer() {
            Some(sublayer) => model.stream_factor(self.layer, sublayer),
            None => Ok(None),
        }
    }

    /// The norm of the stream itself after it has added to it.
    pub(super) fn norm_of_stream<'m>(&self, model: &'m Transformer) -> Result<Option<PlacedNorm<'m>>> {
        match self.sublayer() {
            Some(sublayer) => model.norm_of_stream(self.layer, sublayer),
            None => Ok(None),
        }
    }

    /// What multiplies the stream once its layer has added to it, where it is the last part: `[1]`.
    pub(super) fn factor_after(&self, model: &Transformer, is_last: bool) -> Result<Option<Tensor>> {
        match is_last {
            true => model.layer_factor(self.layer),
            false => Ok(None),
        }
    }

    /// The stream after it, before any norm or factor of the stream.
    pub(super) fn summed(&self, is_last: bool) -> HookPoint {
        match self.kind {
            _ if is_last => hook::resid_post(self.layer),
            PartKind::CrossAttention => hook::resid_mid_cross(self.layer),
            _ => hook::resid_mid(self.layer),
        }
    }
}

/// Whether a part is the last one of its layer.
pub(super) fn is_last(parts: &[PartNodes], index: usize) -> bool {
    parts.get(index + 1).is_none_or(|next| next.layer != parts[index].layer)
}
