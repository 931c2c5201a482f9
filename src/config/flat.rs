//! TransformerLens' flat names of what stands in the parts of a [`Config`].

use super::{
    Activation, AttentionDir, AttnType, Config, MlpKind, NormPosition, Normalization, PositionalEmbedding, Positions,
    QkNorm, Reach, Rotary,
};

/// TransformerLens' flat names, as methods.
///
/// ```
/// use tch_lens::config::{Activation, Normalization, PositionalEmbedding};
/// let config = tch_lens::Config::new(2, 64, 4, 100, 32);
/// assert_eq!(config.act_fn(), Some(Activation::GeluNew));
/// assert_eq!(config.normalization_type(), Normalization::LN);
/// assert_eq!(config.positional_embedding_type(), PositionalEmbedding::Standard);
/// assert_eq!((config.d_mlp(), config.attn_scale(), config.window_size()), (256, 4.0, None));
/// ```
impl Config {
    /// Whether the blocks have no MLPs.
    pub fn attn_only(&self) -> bool {
        self.mlp.is_none()
    }

    /// Neurons of a layer (in a mixture, of an expert that a router chooses): 0 in a model of attention only.
    pub fn d_mlp(&self) -> usize {
        self.mlp.as_ref().map_or(0, |mlp| mlp.d_mlp)
    }

    /// The activation function of the MLPs, if there are any.
    pub fn act_fn(&self) -> Option<Activation> {
        self.mlp.as_ref().map(|mlp| mlp.activation)
    }

    /// Whether the MLPs, or a mixture's experts, have a gate.
    pub fn gated_mlp(&self) -> bool {
        self.mlp.as_ref().is_some_and(|mlp| mlp.kind != MlpKind::Plain)
    }

    /// Experts of a layer, in a mixture.
    pub fn num_experts(&self) -> Option<usize> {
        self.experts().map(|experts| experts.num_experts)
    }

    /// How many experts each token goes to, in a mixture.
    pub fn experts_per_token(&self) -> Option<usize> {
        self.experts().map(|experts| experts.experts_per_token)
    }

    /// The kind of the blocks' norms.
    pub fn normalization_type(&self) -> Normalization {
        self.norms.kind
    }

    /// Whether the last norm is a root-mean-square one.
    pub fn final_rms(&self) -> bool {
        matches!(self.norms.last(), Normalization::RMS | Normalization::RMSPre)
    }

    /// Where a block's norms stand.
    pub fn norm_position(&self) -> NormPosition {
        self.norms.position
    }

    /// What is added to the variance, or mean square, of every norm.
    pub fn eps(&self) -> f64 {
        self.norms.eps
    }

    /// Whether a norm stands between the embedding and the first block.
    pub fn post_embedding_ln(&self) -> bool {
        self.norms.after_embedding || self.norms.after_full_embed
    }

    /// Where positions enter.
    pub fn positional_embedding_type(&self) -> PositionalEmbedding {
        match self.positions {
            Positions::Learned | Positions::Sinusoidal(_) => PositionalEmbedding::Standard,
            Positions::Shortformer => PositionalEmbedding::Shortformer,
            Positions::Rotary(_) => PositionalEmbedding::Rotary,
            Positions::Alibi { .. } => PositionalEmbedding::Alibi,
            Positions::None => PositionalEmbedding::None,
        }
    }

    /// The rotation, if positions are rotary: where layers have several, that of the first layer that reaches every position and
    /// rotates, or else of the first that rotates.
    pub fn rotary(&self) -> Option<&Rotary> {
        let rotations = (0..self.n_layers).filter_map(|layer| Some((layer, self.rotation(layer)?)));
        let global = rotations.clone().find(|(layer, _)| self.reach(*layer) == Reach::Global);
        global.or_else(|| rotations.clone().next()).map(|(_, rotary)| rotary)
    }

    /// How many of a head's dimensions rotate, if positions are rotary.
    pub fn rotary_dim(&self) -> Option<usize> {
        self.rotary().map(|rotary| rotary.dim)
    }

    /// The base of the rotation's wavelengths, if positions are rotary.
    pub fn rotary_base(&self) -> Option<f64> {
        self.rotary().map(|rotary| rotary.base)
    }

    /// Which positions a query may see.
    pub fn attention_dir(&self) -> AttentionDir {
        self.attention.direction
    }

    /// Whether layer `layer` reaches every position or a window.
    pub fn attn_type(&self, layer: usize) -> AttnType {
        match self.reach(layer) {
            Reach::Global => AttnType::Global,
            Reach::Window(_) | Reach::Chunk(_) => AttnType::Local,
        }
    }

    /// [`Config::attn_type`] of every layer.
    pub fn attn_types(&self) -> Vec<AttnType> {
        (0..self.n_layers).map(|layer| self.attn_type(layer)).collect()
    }

    /// Whether a layer has a window.
    pub fn use_local_attn(&self) -> bool {
        self.attn_types().contains(&AttnType::Local)
    }

    /// The window of the first layer that has one.
    pub fn window_size(&self) -> Option<usize> {
        self.attention.reach.values().iter().find_map(|reach| match reach {
            Reach::Global | Reach::Chunk(_) => None,
            Reach::Window(size) => Some(*size),
        })
    }

    /// What scores are divided by: `√d_head`, unless the model says otherwise.
    pub fn attn_scale(&self) -> f64 {
        self.attention.scale.unwrap_or((self.d_head as f64).sqrt())
    }

    /// Whether scores are also divided by the layer's number, counted from 1.
    pub fn scale_attn_by_inverse_layer_idx(&self) -> bool {
        self.attention.scale_by_inverse_layer_idx
    }

    /// What scores are squashed to.
    pub fn attn_scores_soft_cap(&self) -> Option<f64> {
        self.attention.scores_soft_cap
    }

    /// What queries, keys and values are clamped to.
    pub fn clip_qkv(&self) -> Option<f64> {
        self.attention.clip_qkv
    }

    /// Whether each head has a score that belongs to no position.
    pub fn use_attention_sinks(&self) -> bool {
        self.attention.sinks
    }

    /// The norms of the queries and keys.
    pub fn qk_norm(&self) -> Option<QkNorm> {
        self.attention.qk_norm
    }
}
