//! [`Stack`]: which stack of blocks a model is.

use serde::{Deserialize, Serialize};

/// A stack of layers: what one [`Transformer`](crate::Transformer) is.
///
/// A point that is made without a stack, such as `hook::q(3)`, has [`Stack::Blocks`]. In an encoder or a decoder it means the point of
/// that stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stack {
    /// The only stack of a decoder-only (or encoder-only) model: `blocks.L.`.
    #[default]
    Blocks,
    /// The encoder of an encoder-decoder model: `encoder.L.`.
    Encoder,
    /// The decoder of an encoder-decoder model: `decoder.L.`.
    Decoder,
}

impl Stack {
    pub(crate) const ALL: [Stack; 3] = [Stack::Blocks, Stack::Encoder, Stack::Decoder];

    /// The first part of the names of its points.
    pub fn name(self) -> &'static str {
        match self {
            Stack::Blocks => "blocks",
            Stack::Encoder => "encoder",
            Stack::Decoder => "decoder",
        }
    }
}
