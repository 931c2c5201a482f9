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
    /// The norm of what all heads have mixed, between them and `W_O` (BitNet).
    pub z_norm: Option<Normalization>,
    /// Heads come in pairs, and what the second of a pair has mixed is taken from what the first has (Ye et al. 2024, "Differential
    /// Transformer"). `hook_z` is what `W_O` reads then: each pair's difference as two heads.
    pub differential: bool,
    /// What queries are multiplied by, after their norms and rotation (Ministral 3).
    pub temperature: PerLayer<Option<Temperature>>,
}

/// A factor of queries that grows with their position: `1 + beta · ln(1 + ⌊(position + offset) / period⌋)`.
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

/// How far a layer's attention reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reach {
    /// Every position.
    #[default]
    Global,
    /// This many positions, the query's own included. In a bidirectional model, as many on either side.
    Window(usize),
}

/// TransformerLens' two kinds of layers: [`Reach`] without the window's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttnType {
    /// [`Reach::Global`].
    Global,
    /// [`Reach::Window`].
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
