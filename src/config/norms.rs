//! [`NormConfig`]: the norms of the residual stream, their kind and their place.

use serde::{Deserialize, Serialize};

/// The norms of the residual stream. The default is GPT-2's: layer norms before the sublayers and at the end.
///
/// ```
/// use tch_lens::config::{NormConfig, Normalization};
/// let llama = NormConfig { eps: 1e-6, ..NormConfig::new(Normalization::RMS) };
/// assert_eq!(llama.last(), Normalization::RMS);
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NormConfig {
    /// The kind of the blocks' norms, and of the last one unless `last` is another.
    pub kind: Normalization,
    /// The kind of the last norm, where it is not that of the blocks.
    pub last: Option<Normalization>,
    /// Where a block's norms stand.
    pub position: NormPosition,
    /// Added to the variance, or mean square, of every norm.
    pub eps: f64,
    /// That of the last norm, where it is another (CTRL).
    pub last_eps: Option<f64>,
    /// A norm stands between the embedding of tokens and the first block (BLOOM).
    pub after_embedding: bool,
    /// A norm stands between the sum of all embeddings, those of positions and token types included, and the first block (BERT).
    pub after_full_embed: bool,
    /// The first block's attention reads the stream without a norm (ModernBERT).
    pub bare_first_attention: bool,
    /// A norm stands between a mixture of experts and the stream, in layers that have one (A.X K1).
    pub after_mixtures: bool,
}

impl Default for NormConfig {
    fn default() -> Self {
        NormConfig::new(Normalization::LN)
    }
}

impl NormConfig {
    /// Norms of one kind, before the sublayers and at the end, with an `eps` of 1e-5.
    pub fn new(kind: Normalization) -> Self {
        NormConfig {
            kind,
            last: None,
            position: NormPosition::Before,
            eps: 1e-5,
            last_eps: None,
            after_embedding: false,
            after_full_embed: false,
            bare_first_attention: false,
            after_mixtures: false,
        }
    }

    /// The kind of the last norm.
    pub fn last(&self) -> Normalization {
        self.last.unwrap_or(self.kind)
    }

    /// What is added to the variance, or mean square, of the last norm.
    pub fn last_eps(&self) -> f64 {
        self.last_eps.unwrap_or(self.eps)
    }
}

/// How activations are normalised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Normalization {
    /// None at all.
    None,
    /// Layer norm: centre, divide by the standard deviation, multiply by a gain, add a bias.
    LN,
    /// Layer norm whose gain and bias are folded into the weights that read it.
    LNPre,
    /// Root-mean-square norm: divide by the root mean square, multiply by a gain.
    RMS,
    /// Root-mean-square norm whose gain is folded into the weights that read it.
    RMSPre,
}

impl Normalization {
    /// Whether the mean is subtracted.
    pub fn centers(self) -> bool {
        matches!(self, Normalization::LN | Normalization::LNPre)
    }

    /// Whether gain and bias are folded into the weights that read the norm.
    pub(crate) fn is_folded(self) -> bool {
        matches!(self, Normalization::LNPre | Normalization::RMSPre)
    }

    /// The same norm with its gain and bias folded away.
    pub(crate) fn folded(self) -> Self {
        match self {
            Normalization::LN => Normalization::LNPre,
            Normalization::RMS => Normalization::RMSPre,
            other => other,
        }
    }
}

/// Where a block's norms stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NormPosition {
    /// `x + attn(ln1(x))`: nearly every model.
    #[default]
    Before,
    /// `x + ln1(attn(x))`: OLMo 2 and 3.
    After,
    /// `x + ln1_post(attn(ln1(x)))`: Gemma 2 and 3.
    BeforeAndAfter,
    /// `ln1(x + attn(x))`, so that the stream itself is normalised: GPT-1, BERT. `resid_mid` and `resid_post` are the sums before the
    /// norms, as in TransformerLens' `BertBlock`.
    InStream,
}
