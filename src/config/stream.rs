//! [`StreamConfig`]: what happens to the residual stream beside what attention and MLPs add to it.

use serde::{Deserialize, Serialize};

use super::{Activation, PerLayer};

/// What happens to the residual stream beside what attention and MLPs add to it. In most models nothing does: the default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamConfig {
    /// Each layer ends with a sublayer that adds a trained embedding of the token (Gemma 3n and 4).
    pub layer_embedding: Option<LayerEmbedding>,
    /// Each layer multiplies the stream by a trained number once it has added to it (Gemma 4).
    pub layer_scalars: bool,
    /// Each entry of the stream is multiplied by a trained number of its own before a sublayer adds to it (Doge).
    pub gains: bool,
    /// What a layer multiplies the stream by before its sublayers add to it (BEAM).
    pub factors: PerLayer<Option<StreamFactors>>,
}

impl StreamConfig {
    /// Whether what is written to the stream stays as it is.
    pub(crate) fn keeps_what_is_written(&self) -> bool {
        !self.layer_scalars && !self.gains && self.factors.values().iter().all(Option::is_none)
    }
}

/// Per-layer embeddings (Gemma 3n and 4). Each layer has an input of `width` numbers for every token: the token's row of a table, plus the
/// normalised projection of its embedding. The sublayer adds `norm(W_out (act(W_gate x) · input))`, where `x` is the stream itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerEmbedding {
    /// The numbers of a layer's input.
    pub width: usize,
    /// The rows of the table: as many as the vocabulary has entries, or more.
    pub d_vocab: usize,
    /// The function of the gate.
    pub activation: Activation,
}

/// What the stream is multiplied by in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StreamFactors {
    /// Before attention adds to it.
    pub attn: f64,
    /// Before the MLP adds to it.
    pub mlp: f64,
}
