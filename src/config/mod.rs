//! [`Config`]: the shape of a transformer.
//!
//! The sizes are fields of [`Config`] itself. What belongs to one component is a part of its own: [`AttentionConfig`],
//! [`Positions`], [`MlpConfig`], [`NormConfig`]. TransformerLens' flat names stand beside them as methods:
//! `config.d_mlp()`, `config.normalization_type()`, `config.window_size()`, ….
//!
//! A config holds what a forward pass computes, and nothing else. TransformerLens' `use_attn_result` and the like have no
//! field, because a hook point is computed when something asks for it.

mod attention;
mod dictionaries;
mod embed;
mod flat;
mod head;
mod mlp;
mod norms;
mod per_layer;
mod positions;
mod routing;
mod stack;
mod stream;
mod validate;

use serde::{Deserialize, Serialize};

use crate::layer::Layer;
use crate::Result;

pub use attention::{
    AttentionConfig, AttentionDir, AttnType, CrossAttention, Disentangled, DynamicMask, GateFunction, HeadExperts,
    HeadGate, Heads, Indexer, LatentAttention, QkNorm, Reach, RelativeBias, Temperature, TemperatureGrowth,
};
pub use dictionaries::AttachedDictionaries;
pub(crate) use dictionaries::AttachedDictionary;
pub use embed::EmbedConfig;
pub use head::HeadConfig;
pub use mlp::{Activation, ExpertGate, Experts, MlpConfig, MlpKind, SharedExpert};
pub use norms::{NormConfig, NormPosition, Normalization};
pub use per_layer::PerLayer;
pub use positions::{PositionalEmbedding, Positions, RopeScaling, Rotary, Sinusoids};
pub use routing::{ChoiceBias, ExpertGroups, GroupRank, Routing, Scores, WeightNorm};
pub use stack::Stack;
pub use stream::{LayerEmbedding, StreamConfig, StreamFactors};
pub(crate) use validate::MAX_LAYERS;

/// The shape of a transformer.
///
/// [`Config::new`] is a GPT-2 of the given sizes. Set the parts that differ:
///
/// ```
/// use tch_lens::config::{Activation, MlpConfig, NormConfig, Normalization, Positions, Rotary};
/// use tch_lens::Config;
/// // A small Llama: 2 layers, d_model 64, 4 heads, 100 tokens, a context of 32.
/// let config = Config {
///     n_key_value_heads: 2,
///     mlp: Some(MlpConfig::gated(172, Activation::Silu)),
///     norms: NormConfig::new(Normalization::RMS),
///     positions: Positions::rotary(Rotary::new(16, 10000.0)),
///     ..Config::new(2, 64, 4, 100, 32)
/// };
/// config.validate()?;
/// assert_eq!((config.d_head, config.d_mlp(), config.gated_mlp()), (16, 172, true));
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The model's name; for people.
    pub model_name: String,
    /// The architecture that it was read from, such as `GPT2LMHeadModel`; for people.
    pub original_architecture: String,

    /// Which stack it is: one of its own, or an encoder, or a decoder that reads an encoder's output.
    #[serde(default)]
    pub stack: Stack,
    /// Blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads of a layer.
    pub n_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Key and value heads of a layer: `n_heads`, or a divisor of it (grouped-query attention).
    pub n_key_value_heads: usize,
    /// Entries of the vocabulary.
    pub d_vocab: usize,
    /// Entries of the output: `d_vocab`, or the number of a classifier's classes.
    pub d_vocab_out: usize,
    /// Positions that the model was made for.
    pub n_ctx: usize,

    /// How attention works.
    pub attention: AttentionConfig,
    /// Where positions enter.
    pub positions: Positions,
    /// What becomes of tokens before the first block, beside positions.
    #[serde(default)]
    pub embed: EmbedConfig,
    /// The MLPs; `None` for a model of attention only.
    pub mlp: Option<MlpConfig>,
    /// The norms of the residual stream.
    pub norms: NormConfig,
    /// What else happens to the residual stream.
    #[serde(default)]
    pub stream: StreamConfig,
    /// Attention and MLP both read the stream before the block, which has no `resid_mid`.
    pub parallel_attn_mlp: bool,
    /// The neurons between the last norm and the unembedding (BERT's prediction head).
    #[serde(default)]
    pub head: Option<HeadConfig>,
    /// Logits are squashed to ± this: `c tanh(x / c)`.
    pub output_logits_soft_cap: Option<f64>,
    /// The unembedding is the embedding: one tensor. In a model that is loaded, what is true of its memory: processing unties
    /// most models, and Gemma scales its embedding only.
    pub tie_word_embeddings: bool,
    /// The dictionaries that are spliced into the runs of this handle; none in a file.
    #[serde(skip)]
    pub dictionaries: AttachedDictionaries,
}

impl Config {
    /// A GPT-2 of these sizes: heads of `d_model / n_heads` with keys and values of their own, MLPs of `4 d_model`
    /// neurons, learned positions, layer norms, an untied unembedding of the whole vocabulary.
    ///
    /// ```
    /// use tch_lens::Config;
    /// let config = Config::new(2, 64, 4, 100, 32);
    /// assert_eq!((config.d_head, config.n_key_value_heads, config.d_mlp(), config.d_vocab_out), (16, 4, 256, 100));
    /// ```
    pub fn new(n_layers: usize, d_model: usize, n_heads: usize, d_vocab: usize, n_ctx: usize) -> Self {
        Config {
            model_name: "custom".into(),
            original_architecture: String::new(),
            stack: Stack::Blocks,
            n_layers,
            d_model,
            n_heads,
            d_head: d_model.checked_div(n_heads).unwrap_or(0),
            n_key_value_heads: n_heads,
            d_vocab,
            d_vocab_out: d_vocab,
            n_ctx,
            attention: AttentionConfig::default(),
            positions: Positions::default(),
            embed: EmbedConfig::default(),
            mlp: Some(MlpConfig::plain(d_model.saturating_mul(4), Activation::GeluNew)),
            norms: NormConfig::default(),
            stream: StreamConfig::default(),
            parallel_attn_mlp: false,
            head: None,
            output_logits_soft_cap: None,
            tie_word_embeddings: false,
            dictionaries: AttachedDictionaries::default(),
        }
    }

    /// How far the attention of layer `layer` reaches.
    pub fn reach(&self, layer: usize) -> Reach {
        self.attention.reach.get(layer).copied().unwrap_or_default()
    }

    /// The window of layer `layer`, if it has one.
    pub(crate) fn window(&self, layer: usize) -> Option<usize> {
        match self.reach(layer) {
            Reach::Global | Reach::Chunk(_) => None,
            Reach::Window(size) => Some(size),
        }
    }

    /// The rotation of layer `layer`, if it has one.
    pub(crate) fn rotation(&self, layer: usize) -> Option<&Rotary> {
        match &self.positions {
            Positions::Rotary(rotations) => rotations.get(layer)?.as_ref(),
            _ => None,
        }
    }

    /// The rotations of all layers.
    pub(crate) fn rotations(&self) -> impl Iterator<Item = &Rotary> {
        let rotations = match &self.positions {
            Positions::Rotary(rotations) => rotations.values(),
            _ => &[],
        };
        rotations.iter().flatten()
    }

    /// The width of a head's values.
    pub fn d_value(&self) -> usize {
        self.attention.d_value.unwrap_or(self.d_head)
    }

    /// The heads of layer `layer`.
    pub fn heads(&self, layer: usize) -> Heads {
        let own = self.attention.heads.get(layer).copied().flatten();
        own.unwrap_or(Heads { query: self.n_heads, key_value: self.n_key_value_heads, d_head: None })
    }

    /// The width of the heads of layer `layer`.
    pub(crate) fn d_head_of(&self, layer: usize) -> usize {
        self.heads(layer).d_head.unwrap_or(self.d_head)
    }

    /// The width of the values of layer `layer`.
    pub(crate) fn d_value_of(&self, layer: usize) -> usize {
        self.attention.d_value.unwrap_or(self.d_head_of(layer))
    }

    /// The layer whose keys and values the attention of layer `layer` looks at, where these are not its own.
    pub(crate) fn shares_keys_of(&self, layer: usize) -> Option<usize> {
        self.attention.shared_keys.get(layer).copied().flatten()
    }

    /// The indexer that layer `layer` has.
    pub(crate) fn indexer_of(&self, layer: usize) -> Option<&Indexer> {
        self.attention.indexer.as_ref().filter(|indexer| indexer.shares_choice.get(layer) == Some(&false))
    }

    /// The earlier layer without which layer `layer` does not run: whose keys it looks at, or which chooses its keys.
    pub(crate) fn needs_layer(&self, layer: usize) -> Option<usize> {
        let chooses = self.attention.indexer.as_ref().filter(|indexer| indexer.shares_choice.get(layer) == Some(&true));
        let chooser = || chooses.and_then(|_| (0..layer).rev().find(|layer| self.indexer_of(*layer).is_some()));
        self.shares_keys_of(layer).or_else(chooser)
    }

    /// The last layer, up to `layer`, at which a run can start: no layer from there on needs a layer before it.
    pub(crate) fn start_for(&self, layer: usize) -> usize {
        let sources = |start: usize| (start..self.n_layers).filter_map(|layer| self.needs_layer(layer)).min();
        let mut start = layer;
        while let Some(source) = sources(start).filter(|source| *source < start) {
            start = source;
        }
        start
    }

    /// Whether layer `layer` has attention sinks.
    pub(crate) fn has_sinks(&self, layer: usize) -> bool {
        self.attention.sinks && (!self.attention.sinks_where_local || self.reach(layer) != Reach::Global)
    }

    /// The layer whose table of relative biases layer `layer` uses.
    pub(crate) fn relative_bias_owner(&self, layer: usize) -> Option<usize> {
        self.attention.relative_bias.map(|bias| if bias.per_layer { layer } else { 0 })
    }

    /// The norms of the queries and keys of layer `layer`.
    pub(crate) fn qk_norm_of(&self, layer: usize) -> Option<QkNorm> {
        self.qk_norm().filter(|_| !self.attention.qk_norm_where_rotated || self.rotation(layer).is_some())
    }

    /// The first of a head's dimensions that rotate: they come last where keys are made from latents.
    pub(crate) fn rotation_start(&self) -> usize {
        match self.attention.latent {
            Some(_) => self.d_head - self.rotary_dim().unwrap_or(0),
            None => 0,
        }
    }

    /// What the scores of layer `layer` are divided by.
    pub(crate) fn score_divisor(&self, layer: usize) -> f64 {
        let scale = self.attention.scale.unwrap_or((self.d_head_of(layer) as f64).sqrt());
        match self.attention.scale_by_inverse_layer_idx {
            true => scale * (layer + 1) as f64,
            false => scale,
        }
    }

    /// The mixture of experts, if the MLPs are one.
    pub fn experts(&self) -> Option<&Experts> {
        match &self.mlp {
            Some(MlpConfig { kind: MlpKind::Experts(experts), .. }) => Some(experts),
            _ => None,
        }
    }

    /// The mixture of experts of layer `layer`, if its MLP is one.
    pub(crate) fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts().filter(|experts| experts.dense(layer).is_none())
    }

    /// Whether layer `layer` has a mixture whose parts have norms of their own.
    pub(crate) fn has_separate_norms(&self, layer: usize) -> bool {
        self.experts_of(layer).is_some_and(|experts| experts.separate_norms)
    }

    /// The neurons that every token of layer `layer` has: those of its MLP, or of its mixture's shared expert.
    pub(crate) fn neurons_of(&self, layer: usize) -> usize {
        let own = self.mlp.as_ref().and_then(|mlp| mlp.widths.get(layer).copied().flatten());
        match self.experts() {
            None => own.unwrap_or(self.d_mlp()),
            Some(experts) => {
                let shared = experts.shared.map(|shared| own.unwrap_or(shared.d_mlp));
                experts.dense(layer).or(shared).unwrap_or(0)
            }
        }
    }

    /// Whether a norm stands between the MLP of layer `layer` and the stream, beside one before it.
    pub(crate) fn has_norm_after_mlp(&self, layer: usize) -> bool {
        match self.norms.position {
            NormPosition::Before => self.norms.after_mixtures && self.experts_of(layer).is_some(),
            NormPosition::BeforeAndAfter => true,
            NormPosition::After | NormPosition::InStream => false,
        }
    }

    /// The neurons of the widest MLP or expert.
    pub(crate) fn widest_mlp(&self) -> usize {
        let experts = self.experts().into_iter();
        let others = experts.flat_map(|e| e.dense.values().iter().flatten().copied().chain(e.shared.map(|s| s.d_mlp)));
        let own = self.mlp.iter().flat_map(|mlp| mlp.widths.values().iter().flatten().copied());
        others.chain(own).fold(self.d_mlp(), usize::max)
    }

    /// The width of the embeddings.
    pub fn d_embed(&self) -> usize {
        self.embed.width.unwrap_or(self.d_model)
    }

    /// The width of what the unembedding reads: the neurons of a prediction head, or else `d_model`.
    pub fn d_unembed(&self) -> usize {
        self.head.and_then(|head| head.width).unwrap_or(self.d_model)
    }

    /// Whether the stream before the first block is more than the sum of the embeddings of tokens and positions.
    pub(crate) fn has_full_embed(&self) -> bool {
        self.norms.after_full_embed || self.embed.token_types > 0 || self.embed.width.is_some()
    }

    /// Whether there is a table of position embeddings.
    pub(crate) fn has_w_pos(&self) -> bool {
        matches!(self.positions, Positions::Learned | Positions::Sinusoidal(_) | Positions::Shortformer)
    }

    /// Layer `layer` as an index. Negative layers count from the end.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`](crate::Error::LayerOutOfRange).
    pub fn layer(&self, layer: impl Into<Layer>) -> Result<usize> {
        layer.into().resolve(self.n_layers)
    }
}
