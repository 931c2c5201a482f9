//! [`Sublayer`]: a part of a layer that writes to the residual stream.

use super::Component;
use crate::hook::{self, HookPoint, Stack};
use crate::Config;

/// A part of a layer that writes to the residual stream, in the order in which they write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sublayer {
    Attention,
    CrossAttention,
    Mlp,
}

impl Sublayer {
    /// Those of the layers of a model.
    pub(crate) fn of(config: &Config) -> impl Iterator<Item = Sublayer> {
        let (cross, mlp) = (config.stack == Stack::Decoder, !config.attn_only());
        let all = [(Sublayer::Attention, true), (Sublayer::CrossAttention, cross), (Sublayer::Mlp, mlp)];
        all.into_iter().filter(|(_, has)| *has).map(|(sublayer, _)| sublayer)
    }

    /// Whether it is an attention, whose heads write.
    pub(crate) fn is_attention(self) -> bool {
        self != Sublayer::Mlp
    }

    /// What it writes, as a whole.
    pub(crate) fn component(self, layer: usize) -> Component {
        match self {
            Sublayer::Attention => Component::AttnOut(layer),
            Sublayer::CrossAttention => Component::CrossAttnOut(layer),
            Sublayer::Mlp => Component::MlpOut(layer),
        }
    }

    /// The hook point of what it writes.
    pub(crate) fn out(self, layer: usize) -> HookPoint {
        match self {
            Sublayer::Attention => hook::attn_out(layer),
            Sublayer::CrossAttention => hook::cross_attn_out(layer),
            Sublayer::Mlp => hook::mlp_out(layer),
        }
    }
}
