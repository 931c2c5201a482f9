//! [`Positions`]: where positions enter, with what each way of entering needs.

use serde::{Deserialize, Serialize};

use super::PerLayer;

/// Where positions enter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Positions {
    /// Learned vectors are added to the token embeddings.
    #[default]
    Learned,
    /// Learned vectors are added to the input of the queries and keys only (Press et al. 2020, "Shortformer").
    Shortformer,
    /// Sines and cosines are added to the token embeddings (Vaswani et al. 2017).
    Sinusoidal(Sinusoids),
    /// Queries and keys are rotated, by the rotation of their layer. Layers with `None` are blind to positions (Cohere 2, SmolLM 3).
    Rotary(PerLayer<Option<Rotary>>),
    /// A penalty on attention scores, linear in the distance (Press et al. 2021, "ALiBi").
    Alibi {
        /// The slope of the steepest head is `2^(-bias_max / n_heads)`. BLOOM and most of MPT's models have 8.
        bias_max: f64,
        /// Falcon's, as transformers' eager attention computes it: in bfloat16, from the key's position alone, divided as the scores are,
        /// and counted twice, with the mask and with the scores.
        #[serde(default)]
        rounded: bool,
    },
    /// Positions do not enter.
    None,
}

impl Positions {
    /// The same rotation in every layer.
    pub fn rotary(rotary: Rotary) -> Self {
        Positions::Rotary(PerLayer::All(Some(rotary)))
    }

    /// BLOOM's penalty.
    pub fn alibi(bias_max: f64) -> Self {
        Positions::Alibi { bias_max, rounded: false }
    }
}

/// TransformerLens' names of [`Positions`], without what they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionalEmbedding {
    /// [`Positions::Learned`], and [`Positions::Sinusoidal`], which are added in the same way.
    Standard,
    /// [`Positions::Rotary`].
    Rotary,
    /// [`Positions::Shortformer`].
    Shortformer,
    /// [`Positions::Alibi`].
    Alibi,
    /// [`Positions::None`].
    None,
}

/// A table of sines and, after them, cosines. Entry `k` of the `d_model / 2` of either is of the angle
/// `(position + offset) · 10000^(-k / steps)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sinusoids {
    /// The angle of the first position's first entry (XGLM: 2).
    pub offset: usize,
    /// `d_model / 2` (CTRL), or one less, so that the last wavelength is `10000 · 2π` (XGLM).
    pub steps: usize,
}

/// Rotary position embedding (Su et al. 2021, "RoFormer").
///
/// Pair `i` of a head's `dim` rotated dimensions turns by `position · base^(-2i / dim)`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotary {
    /// How many of a head's dimensions rotate, from the first on; even.
    pub dim: usize,
    /// The base of the wavelengths, `theta`.
    pub base: f64,
    /// Pairs are neighbours `(0, 1), (2, 3), …` (GPT-J) rather than halves `(0, dim/2), …` (NeoX, Llama).
    #[serde(default)]
    pub adjacent_pairs: bool,
    /// Pairs turn the other way round (nanochat).
    #[serde(default)]
    pub reversed: bool,
    /// Only so many of the pairs turn, the first ones, at the pace that they have in `dim` dimensions (Gemma 4's "proportional").
    #[serde(default)]
    pub pairs: Option<usize>,
    /// How the wavelengths are stretched for longer contexts.
    #[serde(default)]
    pub scaling: RopeScaling,
}

impl Rotary {
    /// `dim` dimensions of each head rotate in halves, with wavelengths of this base and no scaling: Llama's rotation.
    pub fn new(dim: usize, base: f64) -> Self {
        Rotary { dim, base, adjacent_pairs: false, reversed: false, pairs: None, scaling: RopeScaling::None }
    }
}

/// How rotary wavelengths are stretched to contexts longer than the trained one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// The base grows once the sequence is longer than the trained context.
    Dynamic {
        /// The stretch.
        factor: f64,
        /// The trained context.
        original_max_position_embeddings: usize,
    },
    /// Llama 3.1's: long wavelengths stretched, short ones kept, those between interpolated.
    Llama3 {
        /// The stretch.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are stretched.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// The trained context.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// The stretch.
        factor: f64,
        /// Multiplies cosine and sine.
        attention_factor: f64,
        /// Rotations within the trained context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations below which it is stretched.
        beta_slow: f64,
        /// Whether the bounds between are rounded to whole dimensions.
        truncate: bool,
        /// The trained context.
        original_max_position_embeddings: usize,
    },
    /// LongRoPE (Ding et al. 2024): one divisor a frequency, another set past the trained context.
    LongRope {
        /// Divisors within the trained context.
        short_factor: Vec<f64>,
        /// Divisors past it.
        long_factor: Vec<f64>,
        /// Multiplies cosine and sine.
        attention_factor: f64,
        /// The trained context.
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    /// transformers' name for it.
    pub(crate) fn rope_type(&self) -> &'static str {
        match self {
            RopeScaling::None => "default",
            RopeScaling::Linear { .. } => "linear",
            RopeScaling::Dynamic { .. } => "dynamic",
            RopeScaling::Llama3 { .. } => "llama3",
            RopeScaling::Yarn { .. } => "yarn",
            RopeScaling::LongRope { .. } => "longrope",
        }
    }
}
