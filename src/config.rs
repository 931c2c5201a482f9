//! [`Config`]: the shape of a transformer, in TransformerLens' terms.
//!
//! Everything that changes what a forward pass computes stands here, and nothing that only says what
//! is looked at: TransformerLens' `use_attn_result` and its like are not needed, since a hook point is
//! computed when something asks for it.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

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
}

/// Norms of the queries and keys, before rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QkNorm {
    /// Each head by itself, one gain for all heads (Qwen 3, Gemma 3) or one each (StableLM).
    PerHead(Normalization),
    /// All heads' values together (OLMo 2, OLMoE).
    AllHeads(Normalization),
}

/// The MLP's activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x Φ(x)`, exact.
    Gelu,
    /// The tanh approximation of [`Activation::Gelu`]: GPT-2's.
    GeluNew,
    /// The same approximation, under GPT-J's and Phi's name.
    GeluFast,
    /// The same approximation, under Gemma's name.
    GeluPytorchTanh,
    /// `x σ(1.702 x)`.
    QuickGelu,
    /// `x σ(x)`.
    Silu,
    /// `x softmax(x)`, then a layer norm of its own
    /// (Elhage et al. 2022, "Softmax Linear Units").
    SoluLn,
    /// The piecewise quadratic and exponential function of Apertus, with two trained parameters
    /// (Huang & Schlag 2024, "Deriving Activation Functions Using Integration").
    Xielu,
}

/// Where positions enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PositionalEmbedding {
    /// Learned vectors, added to the token embeddings.
    Standard,
    /// Rotations of queries and keys: [`Config::rotary`].
    Rotary,
    /// Learned vectors, added to the input of the queries and keys only (Press et al. 2020, "Shortformer").
    Shortformer,
    /// A penalty on attention scores, linear in the distance (Press et al. 2021, "ALiBi").
    Alibi,
    /// None.
    None,
}

/// Which positions a position may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionDir {
    /// Itself and those before it.
    Causal,
    /// All.
    Bidirectional,
}

/// How far a layer's attention reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttnType {
    /// As far as there are positions.
    Global,
    /// [`Config::window_size`] positions, the query's own included.
    Local,
}

/// Rotary position embedding (Su et al. 2021, "RoFormer").
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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

/// A mixture of experts in place of each block's MLP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moe {
    /// How many experts there are.
    pub num_experts: usize,
    /// How many of them each token goes to.
    pub experts_per_token: usize,
    /// How the router's logits become weights.
    pub router: Router,
    /// The experts' gate: plain, or gpt-oss'.
    #[serde(default)]
    pub gate: ExpertGate,
}

/// How a router's logits become the chosen experts' weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Router {
    /// Softmax over all experts, the largest kept as they are (OLMoE).
    Softmax,
    /// Softmax over all experts, the largest kept and divided by their sum (Mixtral).
    SoftmaxRenormalized,
    /// The largest logits, softmax over those (gpt-oss).
    TopKSoftmax,
}

/// What an expert does with its gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertGate {
    /// `act(gate) · up`.
    #[default]
    Plain,
    /// gpt-oss': `gate σ(alpha gate) · (up + 1)`, with gate and up clamped to `limit`.
    ClampedSwiglu {
        /// The slope within the sigmoid.
        alpha: f64,
        /// The clamp.
        limit: f64,
    },
}

/// The shape of a transformer. `Config::default()` is a bare GPT-2-like one layer of size zero;
/// set what differs:
///
/// ```
/// use tch_lens::Config;
/// let config = Config { n_layers: 2, d_model: 64, n_heads: 4, d_head: 16, n_key_value_heads: 4, d_mlp: 256,
///                       d_vocab: 100, d_vocab_out: 100, n_ctx: 32, ..Config::default() };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What the model calls itself; for people.
    pub model_name: String,
    /// The architecture that it was read from, such as `GPT2LMHeadModel`; for people.
    pub original_architecture: String,

    /// Blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads a layer.
    pub n_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Key and value heads a layer: `n_heads`, or a divisor of it (grouped-query attention).
    pub n_key_value_heads: usize,
    /// Neurons a layer (an expert, in a mixture); unused with `attn_only`.
    pub d_mlp: usize,
    /// Entries of the vocabulary.
    pub d_vocab: usize,
    /// Entries of the output: `d_vocab`, or a classifier's classes.
    pub d_vocab_out: usize,
    /// Positions that the model was made for.
    pub n_ctx: usize,

    /// No MLPs.
    pub attn_only: bool,
    /// Attention and MLP both read the stream before the block, which has no `resid_mid`.
    pub parallel_attn_mlp: bool,
    /// The MLP's activation function.
    pub act_fn: Activation,
    /// `act(gate) · pre_linear` in place of `act(pre)`.
    pub gated_mlp: bool,
    /// A mixture of experts in place of each MLP.
    pub moe: Option<Moe>,

    /// The norms of the blocks and, unless `final_rms`, of the end.
    pub normalization_type: Normalization,
    /// The last norm is a root-mean-square one whatever the others are.
    pub final_rms: bool,
    /// Where a block's norms stand.
    pub norm_position: NormPosition,
    /// Added to the variance, or mean square, of every norm.
    pub eps: f64,
    /// A norm between embedding and first block (BLOOM).
    pub post_embedding_ln: bool,
    /// Norms of queries and keys.
    pub qk_norm: Option<QkNorm>,

    /// Where positions enter.
    pub positional_embedding_type: PositionalEmbedding,
    /// The rotation, where positions are rotary.
    pub rotary: Option<Rotary>,
    /// The local layers' rotation, where it is another (Gemma 3, OLMo 3).
    pub rotary_local: Option<Rotary>,
    /// The slope of the steepest ALiBi head is `2^(-alibi_bias_max / n_heads)`; 8 but for some of MPT's.
    pub alibi_bias_max: f64,

    /// Which positions a position may look at.
    pub attention_dir: AttentionDir,
    /// How far each layer's attention reaches; empty where every layer's is global.
    pub attn_types: Vec<AttnType>,
    /// How many positions a local layer sees, the query's own included.
    pub window_size: Option<usize>,
    /// Scores are divided by this: `√d_head`, but for models that say otherwise.
    pub attn_scale: f64,
    /// Scores are also divided by the layer's number, counted from 1 (Stanford's GPT-2).
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Scores are squashed to ± this: `c tanh(x / c)`.
    pub attn_scores_soft_cap: Option<f64>,
    /// Logits are squashed to ± this.
    pub output_logits_soft_cap: Option<f64>,
    /// Queries, keys and values are clamped to ± this, after their hook points and norms.
    pub clip_qkv: Option<f64>,
    /// Each head has one more score, of nothing, so that a pattern's rows sum to less than one (gpt-oss).
    pub attention_sinks: bool,

    /// The checkpoint's unembedding is its embedding.
    pub tie_word_embeddings: bool,
    /// `to_tokens` puts the BOS token first unless told otherwise; as TransformerLens' default.
    pub default_prepend_bos: bool,
    /// `hook_tokens` fires by default.
    pub use_hook_tokens: bool,
    /// The standard deviation of fresh weights of [`Init::Gpt2`](crate::Init::Gpt2); negative: `0.8 / √d_model`.
    pub initializer_range: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            model_name: "custom".into(),
            original_architecture: String::new(),
            n_layers: 1,
            d_model: 0,
            n_heads: 1,
            d_head: 0,
            n_key_value_heads: 1,
            d_mlp: 0,
            d_vocab: 0,
            d_vocab_out: 0,
            n_ctx: 1024,
            attn_only: false,
            parallel_attn_mlp: false,
            act_fn: Activation::GeluNew,
            gated_mlp: false,
            moe: None,
            normalization_type: Normalization::LN,
            final_rms: false,
            norm_position: NormPosition::Before,
            eps: 1e-5,
            post_embedding_ln: false,
            qk_norm: None,
            positional_embedding_type: PositionalEmbedding::Standard,
            rotary: None,
            rotary_local: None,
            alibi_bias_max: 8.0,
            attention_dir: AttentionDir::Causal,
            attn_types: Vec::new(),
            window_size: None,
            attn_scale: 0.0,
            scale_attn_by_inverse_layer_idx: false,
            attn_scores_soft_cap: None,
            output_logits_soft_cap: None,
            clip_qkv: None,
            attention_sinks: false,
            tie_word_embeddings: false,
            default_prepend_bos: true,
            use_hook_tokens: false,
            initializer_range: 0.02,
        }
    }
}

impl Config {
    /// Checks that the numbers fit together.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigField`], naming the first field that does not.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("n_layers", self.n_layers),
            ("d_model", self.d_model),
            ("n_heads", self.n_heads),
            ("d_head", self.d_head),
            ("n_key_value_heads", self.n_key_value_heads),
            ("d_vocab", self.d_vocab),
            ("d_vocab_out", self.d_vocab_out),
            ("n_ctx", self.n_ctx),
        ];
        for (field, value) in positive {
            // Anything past this is a lying file; products of two of these must fit an i64.
            if value == 0 || value > 1 << 28 {
                return Err(Error::field(field, value, "it must be between 1 and 2^28"));
            }
        }
        if self.n_layers > 1 << 12 {
            return Err(Error::field("n_layers", self.n_layers, "more than 4096 layers are not supported"));
        }
        if !self.attn_only && (self.d_mlp == 0 || self.d_mlp > 1 << 28) {
            return Err(Error::field("d_mlp", self.d_mlp, "a model with MLPs needs at least one neuron"));
        }
        if !self.n_heads.is_multiple_of(self.n_key_value_heads) {
            let why = format!("it must divide n_heads, {}", self.n_heads);
            return Err(Error::field("n_key_value_heads", self.n_key_value_heads, &why));
        }
        if !self.eps.is_finite() || self.eps < 0.0 {
            return Err(Error::field("eps", self.eps, "it must be a number, zero or above"));
        }
        if !self.attn_types.is_empty() && self.attn_types.len() != self.n_layers {
            let why = format!("it must have one entry a layer, {}", self.n_layers);
            return Err(Error::field("attn_types", format!("{} entries", self.attn_types.len()), &why));
        }
        if self.attn_types.contains(&AttnType::Local) && self.window_size.unwrap_or(0) == 0 {
            return Err(Error::field("window_size", "absent", "a local layer needs one, of at least 1"));
        }
        for rotary in [&self.rotary, &self.rotary_local].into_iter().flatten() {
            if rotary.dim == 0 || rotary.dim % 2 != 0 || rotary.dim > self.d_head {
                let why = format!("it must be even and at most d_head, {}", self.d_head);
                return Err(Error::field("rotary.dim", rotary.dim, &why));
            }
        }
        if self.positional_embedding_type == PositionalEmbedding::Rotary && self.rotary.is_none() {
            return Err(Error::field("rotary", "absent", "rotary positions need one"));
        }
        if let Some(moe) = &self.moe {
            if moe.num_experts == 0 || moe.experts_per_token == 0 || moe.experts_per_token > moe.num_experts {
                let why = format!("it must be between 1 and the number of experts, {}", moe.num_experts);
                return Err(Error::field("experts_per_token", moe.experts_per_token, &why));
            }
        }
        if self.parallel_attn_mlp && self.norm_position != NormPosition::Before {
            return Err(Error::field("parallel_attn_mlp", true, "a parallel block has its norms before it"));
        }
        if self.act_fn == Activation::SoluLn && (self.gated_mlp || self.moe.is_some()) {
            return Err(Error::field("act_fn", "solu_ln", "it belongs to a plain MLP"));
        }
        Ok(())
    }

    /// What scores are divided by in layer `layer`.
    pub(crate) fn attn_scale(&self, layer: usize) -> f64 {
        let scale = if self.attn_scale > 0.0 { self.attn_scale } else { (self.d_head as f64).sqrt() };
        if self.scale_attn_by_inverse_layer_idx {
            scale * (layer + 1) as f64
        } else {
            scale
        }
    }

    /// How far the attention of layer `layer` reaches.
    pub fn attn_type(&self, layer: usize) -> AttnType {
        self.attn_types.get(layer).copied().unwrap_or(AttnType::Global)
    }

    /// The window of layer `layer`, if it is local.
    pub(crate) fn window(&self, layer: usize) -> Option<usize> {
        self.window_size.filter(|_| self.attn_type(layer) == AttnType::Local)
    }

    /// The rotation of layer `layer`, if positions are rotary.
    pub(crate) fn rotary_of(&self, layer: usize) -> Option<&Rotary> {
        if self.positional_embedding_type != PositionalEmbedding::Rotary {
            return None;
        }
        match self.attn_type(layer) {
            AttnType::Local if self.rotary_local.is_some() => self.rotary_local.as_ref(),
            _ => self.rotary.as_ref(),
        }
    }

    /// The kind of the last norm.
    pub(crate) fn final_normalization(&self) -> Normalization {
        match (self.final_rms, self.normalization_type) {
            (true, Normalization::LN) => Normalization::RMS,
            (true, Normalization::LNPre) => Normalization::RMSPre,
            (_, other) => other,
        }
    }

    /// Layer `layer` as an index, with negative ones counted from the end.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`].
    pub fn layer(&self, layer: i64) -> Result<usize> {
        let index = if layer < 0 { layer + self.n_layers as i64 } else { layer };
        if (0..self.n_layers as i64).contains(&index) {
            Ok(index as usize)
        } else {
            Err(Error::LayerOutOfRange { layer, n_layers: self.n_layers })
        }
    }
}
