//! [`Stack`]: which stack of blocks a model is.

use serde::{Deserialize, Serialize};

use super::{AttentionDir, Config, CrossAttention};

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

impl Config {
    /// The same shape as an encoder: each token sees all others, and there is no unembedding.
    ///
    /// ```
    /// use tch_lens::{Config, HookedEncoderDecoder, HookedTransformer};
    /// let encoder = Config::new(2, 16, 2, 50, 12).encoder();
    /// let decoder = Config::new(3, 16, 2, 50, 12).decoder_of(&encoder);
    /// let encoder = HookedTransformer::init(encoder, 0)?;
    /// let decoder = HookedTransformer::init(decoder, 1)?;
    /// let model = HookedEncoderDecoder::new(encoder, decoder, Some(0))?;
    /// assert_eq!(model.forward([3, 1, 4], [0, 5])?.size(), [1, 2, 50]); // [batch, pos, d_vocab_out]
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn encoder(mut self) -> Self {
        self.stack = Stack::Encoder;
        self.attention.direction = AttentionDir::Bidirectional;
        self
    }

    /// The same shape as a decoder that attends to the output of this encoder.
    pub fn decoder_of(mut self, encoder: &Config) -> Self {
        self.stack = Stack::Decoder;
        self.attention.cross = Some(CrossAttention { d_encoder: encoder.d_model });
        self
    }
}
