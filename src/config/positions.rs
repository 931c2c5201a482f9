//! [`Positions`]: where positions enter, with what each way of entering needs.

use serde::{Deserialize, Serialize};

/// Where positions enter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Positions {
    /// Learned vectors are added to the token embeddings.
    #[default]
    Learned,
    /// Learned vectors are added to the input of the queries and keys only (Press et al. 2020, "Shortformer").
    Shortformer,
    /// Queries and keys are rotated.
    Rotary {
        /// The rotation of the layers that reach every position, and of the others where `local` is `None`.
        global: Rotary,
        /// The rotation of the layers with a window, where it is another (Gemma 3, OLMo 3).
        #[serde(default)]
        local: Option<Rotary>,
    },
    /// A penalty on attention scores, linear in the distance (Press et al. 2021, "ALiBi").
    Alibi {
        /// The slope of the steepest head is `2^(-bias_max / n_heads)`. BLOOM and most of MPT's models have 8.
        bias_max: f64,
    },
    /// Positions do not enter.
    None,
}

impl Positions {
    /// The same rotation in every layer.
    pub fn rotary(rotary: Rotary) -> Self {
        Positions::Rotary { global: rotary, local: None }
    }
}

/// TransformerLens' names of [`Positions`], without what they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionalEmbedding {
    /// [`Positions::Learned`].
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
    /// How the wavelengths are stretched for longer contexts.
    #[serde(default)]
    pub scaling: RopeScaling,
}

impl Rotary {
    /// `dim` dimensions of each head rotate in halves, with wavelengths of this base and no scaling: Llama's rotation.
    pub fn new(dim: usize, base: f64) -> Self {
        Rotary { dim, base, adjacent_pairs: false, scaling: RopeScaling::None }
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
