//! [`AttentionConfig`]: which positions attention reaches, and how its scores are formed.

use serde::{Deserialize, Serialize};

use super::{Normalization, PerLayer};

/// How attention works in every block. The default is GPT-2's: causal, global, scores divided by `√d_head`.
///
/// ```
/// use tch_lens::config::{AttentionConfig, PerLayer, Reach};
/// let local = AttentionConfig { reach: PerLayer::All(Reach::Window(256)), ..AttentionConfig::default() };
/// assert_eq!(local.reach.get(0), Some(&Reach::Window(256)));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttentionConfig {
    /// Which positions a query may see.
    pub direction: AttentionDir,
    /// How far each layer reaches.
    pub reach: PerLayer<Reach>,
    /// Scores are divided by this. `None` means `√d_head`.
    pub scale: Option<f64>,
    /// Scores are also divided by the layer's number, counted from 1 (Stanford's GPT-2).
    pub scale_by_inverse_layer_idx: bool,
    /// Scores are squashed to ± this: `c tanh(x / c)`.
    pub scores_soft_cap: Option<f64>,
    /// Queries, keys and values are clamped to ± this, after their norms and hook points.
    pub clip_qkv: Option<f64>,
    /// Each head has one more score that belongs to no position, so that a pattern's rows sum to less than one (gpt-oss).
    pub sinks: bool,
    /// What goes to the sinks is taken from what a head has mixed, and patterns' rows sum to one all the same (Granite with windows).
    pub sinks_after_pattern: bool,
    /// Norms of the queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// These norms come after the rotation (Hunyuan, nanochat).
    pub qk_norm_after_rotation: bool,
    /// Only layers that rotate have these norms (Llama 4).
    pub qk_norm_where_rotated: bool,
    /// The norm of each head's values, without a gain, after `hook_v` (Gemma 4).
    pub value_norm: Option<Normalization>,
    /// The layers that make no keys and values, and look at those of an earlier layer, which this names (Gemma 3n and 4).
    pub shared_keys: PerLayer<Option<usize>>,
    /// Each key has a bias of its own, and each query sees the keys with the largest ones.
    pub dynamic_mask: Option<DynamicMask>,
    /// The norm of what all heads have mixed, between them and `W_O` (BitNet).
    pub z_norm: Option<Normalization>,
    /// Heads come in pairs, and what the second of a pair has mixed is taken from what the first has (Ye et al. 2024, "Differential
    /// Transformer"). `hook_z` is what `W_O` reads then: each pair's difference as two heads.
    pub differential: bool,
    /// What queries are multiplied by, after their norms and rotation (Ministral 3).
    pub temperature: PerLayer<Option<Temperature>>,
    /// Only layers with a window have sinks (MiMo).
    pub sinks_where_local: bool,
    /// The numbers of heads of the layers where they are not the model's.
    pub heads: PerLayer<Option<Heads>>,
    /// A router chooses each token's queries and output weights from those of several experts.
    pub experts: Option<HeadExperts>,
    /// What the heads have mixed is multiplied by gates before `W_O`.
    pub gate: Option<HeadGate>,
    /// Each layer also attends to the output of an encoder, between its self-attention and its MLP.
    pub cross: Option<CrossAttention>,
    /// A learned bias of scores, by the distance between query and key (T5, MPNet).
    pub relative_bias: Option<RelativeBias>,
    /// Queries and keys are compared with embeddings of distances as well (DeBERTa).
    pub disentangled: Option<Disentangled>,
    /// The width of a head's values, where it is not that of its queries and keys.
    pub d_value: Option<usize>,
    /// Keys and values, and perhaps queries, are made from latents of a few dimensions.
    pub latent: Option<LatentAttention>,
    /// A small network chooses the keys that each query sees.
    pub indexer: Option<Indexer>,
}

/// Attention to the output of an encoder (Vaswani et al. 2017), with as many heads, of the same widths, as self-attention has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CrossAttention {
    /// The width of the encoder's output.
    pub d_encoder: usize,
}

/// Disentangled attention (He et al. 2021, "DeBERTa"): to the score of a query and a key come the query's product with a key of their distance,
/// and the key's product with a query of their distance, each divided as the score is. Keys and queries of distances are made of one
/// table of embeddings, of `2 · span` rows, that all layers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disentangled {
    /// Distances (of buckets, where there are some) count up to this.
    pub span: usize,
    /// Distances up to half of the span count by themselves, and others in buckets that widen as their logarithm does, up to this one.
    #[serde(default)]
    pub bucketed_up_to: Option<usize>,
    /// Queries are compared with keys of distances.
    pub content_to_position: bool,
    /// Keys are compared with queries of distances.
    pub position_to_content: bool,
    /// Queries and keys of distances are made by the weights that make those of tokens, and not by weights of their own.
    #[serde(default)]
    pub shares_weights: bool,
    /// The embeddings of distances pass through a layer norm.
    #[serde(default)]
    pub norm: bool,
}

/// A learned bias that is added to the scores of a head, by the distance between query and key (Raffel et al. 2020, "T5").
///
/// Distances are sorted into buckets: one for each short distance, and for longer ones buckets that widen as their logarithm does.
/// Where a query sees what follows it, half of the buckets are for keys after the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelativeBias {
    /// The number of buckets: at least 2, or 4 where a query sees what follows it.
    pub buckets: usize,
    /// All distances from this one on are in the last bucket.
    pub max_distance: usize,
    /// Each layer has a table of its own (UMT5). Otherwise all layers use that of the first.
    pub per_layer: bool,
}

impl RelativeBias {
    /// The buckets of one direction, and how many of them are for one distance each.
    pub(crate) fn of_direction(self, direction: AttentionDir) -> (usize, usize) {
        let buckets = match direction {
            AttentionDir::Causal => self.buckets,
            AttentionDir::Bidirectional => self.buckets / 2,
        };
        (buckets, buckets / 2)
    }
}

/// A factor of queries that grows with their position.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Temperature {
    /// How fast it grows.
    pub beta: f64,
    /// Positions with the same factor.
    pub period: f64,
    /// Added to the position, which counts from zero.
    #[serde(default)]
    pub offset: usize,
    /// The form of the growth.
    #[serde(default)]
    pub growth: TemperatureGrowth,
}

/// How a factor of queries grows with their position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemperatureGrowth {
    /// `1 + beta · ln(1 + ⌊(position + offset) / period⌋)` (Llama 4, Ministral 3).
    #[default]
    Logarithmic,
    /// `(1 + (position + offset) / period)^beta` (BEAM).
    Power,
}

/// A mask that the values make (Shi et al. 2025, "Trainable Dynamic Mask Sparse Attention"; Doge): `exp(A · softplus(W v + b))` is added to
/// the scores of a key, for each of its heads, and a query sees the keys for which this is largest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DynamicMask {
    /// How many keys a query sees at most.
    pub keep: usize,
}

/// How many heads a layer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heads {
    /// Query heads.
    pub query: usize,
    /// Key and value heads: as many, or a divisor.
    pub key_value: usize,
    /// Their width, where it is not the model's `d_head`.
    #[serde(default)]
    pub d_head: Option<usize>,
}

impl Heads {
    /// Whether several query heads share a key and value.
    pub(crate) fn is_grouped(self) -> bool {
        self.query != self.key_value
    }
}

/// The experts of a mixture of attention heads: each has a query head for each key and value, and output weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadExperts {
    /// How many experts a layer has.
    pub num_experts: usize,
    /// How many of them each token goes to. A layer's query heads are theirs, one expert after the other.
    pub experts_per_token: usize,
}

/// Gates of what the heads have mixed, made of what attention reads (Qiu et al. 2025, "Gated Attention").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadGate {
    /// One gate for each head, rather than one for each of its entries.
    pub per_head: bool,
    /// The function of the gates.
    pub function: GateFunction,
}

/// The function of gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateFunction {
    /// `σ(x)`.
    Sigmoid,
    /// `ln(1 + eˣ)`.
    Softplus,
    /// The weight of the head's expert, as a router gives it, and zero where the router chooses other experts. This is what
    /// [`experts`](AttentionConfig::experts) become where [each head stands by itself](crate::HookedTransformer::ungrouped).
    Router(HeadExperts),
}

/// Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2"): the stream is projected onto latents, normalised by their root
/// mean square, from which each head has its own queries, keys and values.
///
/// The last dimensions of each key, those that rotate, are the same for all heads and come from the stream itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentAttention {
    /// The width of the latent of the queries. `None`: these are projected from the stream.
    pub query_rank: Option<usize>,
    /// The width of the latent of keys and values.
    pub key_value_rank: usize,
    /// Added to the mean square of the latents.
    pub eps: f64,
}

/// Which positions a query may see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionDir {
    /// Its own and those before it.
    #[default]
    Causal,
    /// All.
    Bidirectional,
}

/// A network that chooses the keys that each query sees (DeepSeek-AI 2025, "DeepSeek-V3.2-Exp"). It has queries, made of the latent of attention's
/// queries, and keys of its own, which its heads share. A query sees the keys `s` for which `Σ_h w_h relu(q_h · k_s)` is largest; the
/// weights `w` are made of what attention reads. The choice is a constant for gradients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Indexer {
    /// How many heads it has.
    pub n_heads: usize,
    /// Their width. The first dimensions rotate, as many as of attention's keys.
    pub d_head: usize,
    /// How many keys a query sees at most.
    pub keep: usize,
    /// What rotates lies side by side, and not in two halves.
    #[serde(default)]
    pub adjacent_pairs: bool,
    /// The layers without an indexer, whose queries see the keys that the last indexer before them has chosen (GLM-5).
    #[serde(default)]
    pub shares_choice: PerLayer<bool>,
}

/// How far a layer's attention reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Every position.
    #[default]
    Global,
    /// The positions of the query's own chunk of so many (Llama 4).
    Chunk(usize),
    /// This many positions, the query's own included. In a bidirectional model, as many on either side.
    Window(usize),
}

/// TransformerLens' two kinds of layers: [`Reach`] without the window's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttnType {
    /// [`Reach::Global`].
    Global,
    /// [`Reach::Window`] and [`Reach::Chunk`].
    Local,
}

/// Norms of the queries and keys, before their rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QkNorm {
    /// Each head by itself. All heads share one gain (Qwen 3, Gemma 3), or each has its own (StableLM).
    PerHead(Normalization),
    /// The values of all heads together (OLMo 2, OLMoE).
    AllHeads(Normalization),
}
