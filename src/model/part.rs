//! [`Part`]: every tensor that a transformer can have, with its name, its shape and its role. [`Address`] is one of a model.

use std::fmt;

use crate::config::{HeadGate, LatentAttention, NormPosition, QkNorm};
use crate::Config;

/// How a part enters the computation, and with it what a model computes that lacks the part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A linear map or an embedding. A model that needs one cannot do without it.
    Matrix,
    /// Added. Absent, it is zero.
    Bias,
    /// Multiplied with. Absent, it is one.
    Gain,
    /// Read by an activation function or a softmax. A model that needs one cannot do without it.
    Parameter,
    /// As [`Role::Parameter`], but kept in fp32 and not trained.
    Constant,
}

macro_rules! parts {
    ($($(#[$doc:meta])* $part:ident: $role:ident, $name:literal;)*) => {
        /// A tensor of a transformer. Matrices are in libtorch's orientation, `[out, in]`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum Part {
            $($(#[$doc])* $part,)*
        }

        impl Part {
            /// The name in [`Transformer::parameters`](super::Transformer::parameters), without block and expert.
            pub(crate) const fn name(self) -> &'static str {
                match self {
                    $(Part::$part => $name,)*
                }
            }

            /// How the part enters the computation.
            pub(crate) const fn role(self) -> Role {
                match self {
                    $(Part::$part => Role::$role,)*
                }
            }
        }
    };
}

parts! {
    /// Token embedding: `[d_vocab, d_embed]`.
    WE: Matrix, "embed.W_E";
    EmbedLnW: Gain, "embed.ln.w";
    EmbedLnB: Bias, "embed.ln.b";
    /// Position embedding: `[n_ctx, d_embed]`.
    WPos: Matrix, "pos_embed.W_pos";
    /// Embedding of the types of tokens: `[token_types, d_embed]`.
    WTokenType: Matrix, "embed.token_type_embed.W_token_type";
    /// Embedding of tasks, of which the first counts: `[task_types, d_embed]`.
    WTaskType: Matrix, "embed.W_task_type";
    /// Embeddings of distances: `[2 · span, d_model]`.
    WDistance: Matrix, "embed.W_distance";
    DistanceLnW: Gain, "embed.distance_ln.w";
    DistanceLnB: Bias, "embed.distance_ln.b";
    /// From the embeddings to the stream: `[d_model, d_embed]`.
    EmbedProject: Matrix, "embed.project.weight";
    EmbedProjectB: Bias, "embed.project.bias";
    /// Per-layer embeddings, those of all layers side by side: `[rows, n_layers · width]`.
    PleTable: Matrix, "embed.ple.W_E";
    /// What each layer's input has of the embedding: `[n_layers · width, d_model]`.
    PleProjection: Matrix, "embed.ple.projection.weight";
    /// `[width]`
    PleProjectionNormW: Gain, "embed.ple.norm.w";
    Ln1W: Gain, "ln1.w";
    Ln1B: Bias, "ln1.b";
    /// What the model keeps: [`Part::Q`], [`Part::K`] and [`Part::V`], one below the other.
    Qkv: Matrix, "attn.qkv.weight";
    QkvB: Bias, "attn.qkv.bias";
    /// `[n_heads · d_head, d_model]`
    Q: Matrix, "attn.q.weight";
    QB: Bias, "attn.q.bias";
    /// `[n_kv_heads · d_head, d_model]`
    K: Matrix, "attn.k.weight";
    KB: Bias, "attn.k.bias";
    /// `[n_kv_heads · d_value, d_model]`
    V: Matrix, "attn.v.weight";
    VB: Bias, "attn.v.bias";
    /// What makes keys and queries of embeddings of distances: `[n_heads · d_head, d_model]`.
    DistanceK: Matrix, "attn.distance_k.weight";
    DistanceKB: Bias, "attn.distance_k.bias";
    DistanceQ: Matrix, "attn.distance_q.weight";
    DistanceQB: Bias, "attn.distance_q.bias";
    /// From the stream to the latent of the queries: `[query_rank, d_model]`.
    QDown: Matrix, "attn.q_down.weight";
    QDownB: Bias, "attn.q_down.bias";
    QLatentW: Gain, "attn.q_latent_norm.w";
    /// `[n_heads · d_head, query_rank]`
    QUp: Matrix, "attn.q_up.weight";
    /// From the stream to the latent of keys and values and to the rotated part of all keys: `[key_value_rank + rotary dim, d_model]`.
    KvDown: Matrix, "attn.kv_down.weight";
    KvDownB: Bias, "attn.kv_down.bias";
    KvLatentW: Gain, "attn.kv_latent_norm.w";
    /// Of each head, the unrotated part of its keys and then its values: `[n_heads · (d_head - rotary dim + d_value), key_value_rank]`.
    KvUp: Matrix, "attn.kv_up.weight";
    /// Of an indexer, from the latent of the queries: `[index_heads · index_width, query_rank]`.
    IndexQ: Matrix, "attn.indexer.q.weight";
    /// `[index_width, d_model]`
    IndexK: Matrix, "attn.indexer.k.weight";
    IndexKB: Bias, "attn.indexer.k.bias";
    IndexKNormW: Gain, "attn.indexer.k_norm.w";
    IndexKNormB: Bias, "attn.indexer.k_norm.b";
    /// `[index_heads, d_model]`
    IndexWeights: Matrix, "attn.indexer.weights.weight";
    IndexWeightsB: Bias, "attn.indexer.weights.bias";
    /// `[d_head]`, `[n_heads, d_head]`, or of all heads together `[n_heads · d_head]`.
    QNormW: Gain, "attn.q_norm.w";
    QNormB: Bias, "attn.q_norm.b";
    KNormW: Gain, "attn.k_norm.w";
    KNormB: Bias, "attn.k_norm.b";
    /// Chooses the experts whose heads a token has: `[num_experts, d_model]`.
    HeadRouter: Matrix, "attn.router.weight";
    /// `[n_heads]`
    Sinks: Parameter, "attn.sinks";
    /// The bias of each head's scores, by the bucket of the distance: `[buckets, n_heads]`.
    RelativeBias: Matrix, "attn.rel_pos_bias.weight";
    /// Of a dynamic mask: `[n_kv_heads]`.
    DynamicA: Parameter, "attn.dynamic_mask.A";
    /// `[n_kv_heads, n_kv_heads · d_value]`
    DynamicDt: Matrix, "attn.dynamic_mask.dt.weight";
    DynamicDtB: Bias, "attn.dynamic_mask.dt.bias";
    /// Of all heads: `[n_heads · d_head]`.
    ZNormW: Gain, "attn.z_norm.w";
    ZNormB: Bias, "attn.z_norm.b";
    /// Of differential attention: `[d_head]` each.
    LambdaQ1: Parameter, "attn.lambda_q1";
    LambdaK1: Parameter, "attn.lambda_k1";
    LambdaQ2: Parameter, "attn.lambda_q2";
    LambdaK2: Parameter, "attn.lambda_k2";
    /// What the gates of the heads' output are made of: `[n_heads · d_value, d_model]`, or `[n_heads, d_model]`.
    HeadGate: Matrix, "attn.gate.weight";
    /// `[n_heads]`
    HeadGateB: Bias, "attn.gate.bias";
    /// `[d_model, n_heads · d_value]`
    O: Matrix, "attn.o.weight";
    OB: Bias, "attn.o.bias";
    Ln1PostW: Gain, "ln1_post.w";
    Ln1PostB: Bias, "ln1_post.b";
    /// Of the norm of cross-attention.
    CrossLnW: Gain, "cross_ln.w";
    CrossLnB: Bias, "cross_ln.b";
    /// `[n_heads · d_head, d_model]`
    CrossQ: Matrix, "cross_attn.q.weight";
    CrossQB: Bias, "cross_attn.q.bias";
    /// What the model keeps: [`Part::CrossK`] and [`Part::CrossV`], one below the other.
    CrossKv: Matrix, "cross_attn.kv.weight";
    CrossKvB: Bias, "cross_attn.kv.bias";
    /// `[n_kv_heads · d_head, d_encoder]`
    CrossK: Matrix, "cross_attn.k.weight";
    CrossKB: Bias, "cross_attn.k.bias";
    /// `[n_kv_heads · d_value, d_encoder]`
    CrossV: Matrix, "cross_attn.v.weight";
    CrossVB: Bias, "cross_attn.v.bias";
    /// `[d_model, n_heads · d_value]`
    CrossO: Matrix, "cross_attn.o.weight";
    CrossOB: Bias, "cross_attn.o.bias";
    CrossLnPostW: Gain, "cross_ln_post.w";
    CrossLnPostB: Bias, "cross_ln_post.b";
    Ln2W: Gain, "ln2.w";
    Ln2B: Bias, "ln2.b";
    /// `[num_experts, d_model]`
    Router: Matrix, "mlp.router.weight";
    RouterB: Bias, "mlp.router.bias";
    /// Of what the router, the experts and the shared expert of a mixture read, where each has its own: `[d_model]`.
    RouterInputW: Gain, "mlp.router.input_gain";
    ExpertsInputW: Gain, "mlp.experts_input_gain";
    SharedInputW: Gain, "mlp.shared.input_gain";
    /// Of the weights of a mixture's experts: `[num_experts]`.
    ExpertScale: Gain, "mlp.router.expert_scale";
    /// Of the norms after the experts and the shared expert, where each has one: `[d_model]`.
    ExpertsLnW: Gain, "mlp.experts_ln.w";
    SharedLnW: Gain, "mlp.shared_ln.w";
    /// Added before experts are chosen, and not to their weights: `[num_experts]`.
    ChoiceB: Constant, "mlp.router.choice_bias";
    /// Added to what a mixture's experts write: `[d_model]`.
    MixtureB: Bias, "mlp.bias";
    /// A mixture's shared expert: `[d_mlp, d_model]`, of its own width.
    SharedIn: Matrix, "mlp.shared.in.weight";
    SharedInB: Bias, "mlp.shared.in.bias";
    SharedGate: Matrix, "mlp.shared.gate.weight";
    SharedGateB: Bias, "mlp.shared.gate.bias";
    /// `[d_model, d_mlp]`
    SharedOut: Matrix, "mlp.shared.out.weight";
    SharedOutB: Bias, "mlp.shared.out.bias";
    /// `[1, d_model]`
    SharedWeight: Matrix, "mlp.shared.weight.weight";
    /// `[d_mlp, d_model]`; of a mixture, each expert's.
    In: Matrix, "mlp.in.weight";
    InB: Bias, "mlp.in.bias";
    /// `[d_mlp, d_model]`
    Gate: Matrix, "mlp.gate.weight";
    GateB: Bias, "mlp.gate.bias";
    /// TransformerLens' bias of a gated MLP, added to the product of gate and linear part: `[d_mlp]`.
    ProductB: Bias, "mlp.b_product";
    /// SoLU's norm: `[d_mlp]`.
    MlpLnW: Gain, "mlp.ln.w";
    MlpLnB: Bias, "mlp.ln.b";
    /// `[d_model, d_mlp]`
    Out: Matrix, "mlp.out.weight";
    OutB: Bias, "mlp.out.bias";
    /// xIELU's alphas as checkpoints have them, before their softplus: one entry each, as all of xIELU's.
    XieluAlphaP: Constant, "mlp.act_fn.alpha_p";
    XieluAlphaN: Constant, "mlp.act_fn.alpha_n";
    /// The alphas as the model uses them: their softplus, and for the negative half plus beta.
    XieluPositive: Constant, "mlp.act_fn.positive";
    XieluNegative: Constant, "mlp.act_fn.negative";
    XieluBeta: Constant, "mlp.act_fn.beta";
    XieluEps: Constant, "mlp.act_fn.eps";
    Ln2PostW: Gain, "ln2_post.w";
    Ln2PostB: Bias, "ln2_post.b";
    /// The gate of the per-layer embedding: `[width, d_model]`.
    PleGate: Matrix, "ple.gate.weight";
    /// `[d_model, width]`
    PleOut: Matrix, "ple.out.weight";
    PleLnW: Gain, "ple.ln.w";
    /// What the stream is multiplied by before attention and before the MLP add to it: `[d_model]`.
    AttnStreamW: Gain, "attn_stream.w";
    MlpStreamW: Gain, "mlp_stream.w";
    /// What the stream is multiplied by after the layer: `[1]`.
    LayerScalar: Gain, "layer_scalar";
    LnFinalW: Gain, "ln_final.w";
    LnFinalB: Bias, "ln_final.b";
    /// Of the neurons between the last norm and the unembedding: `[d_unembed, d_model]`.
    HeadW: Matrix, "mlm_head.weight";
    HeadB: Bias, "mlm_head.bias";
    HeadLnW: Gain, "mlm_head.ln.w";
    HeadLnB: Bias, "mlm_head.ln.b";
    /// `[d_vocab_out, d_unembed]`
    U: Matrix, "unembed.weight";
    UB: Bias, "unembed.b_U";
}

impl Part {
    /// Whether a block, or its experts, can have it: some blocks of a model may have a mixture, and others one MLP.
    pub(crate) fn is_in_block(self, config: &Config, layer: usize, of_expert: bool) -> bool {
        let is_mixture = config.experts_of(layer).is_some();
        match self {
            Part::Router | Part::RouterB | Part::ChoiceB | Part::MixtureB => is_mixture,
            Part::SharedIn | Part::SharedInB | Part::SharedGate | Part::SharedGateB => is_mixture,
            Part::SharedOut | Part::SharedOutB | Part::SharedWeight => is_mixture,
            Part::In | Part::InB | Part::Gate | Part::GateB | Part::Out | Part::OutB => is_mixture == of_expert,
            Part::RouterInputW | Part::ExpertsInputW | Part::SharedInputW => config.has_separate_norms(layer),
            Part::ExpertScale | Part::ExpertsLnW | Part::SharedLnW => config.has_separate_norms(layer),
            Part::Ln2W => !config.has_separate_norms(layer),
            Part::K | Part::KB | Part::V | Part::VB => config.shares_keys_of(layer).is_none(),
            Part::KNormW | Part::KNormB => config.shares_keys_of(layer).is_none(),
            Part::Sinks => config.has_sinks(layer),
            Part::IndexQ | Part::IndexK | Part::IndexKB => config.indexer_of(layer).is_some(),
            Part::IndexKNormW | Part::IndexKNormB => config.indexer_of(layer).is_some(),
            Part::IndexWeights | Part::IndexWeightsB => config.indexer_of(layer).is_some(),
            Part::RelativeBias => config.relative_bias_owner(layer) == Some(layer),
            Part::Ln2PostW => config.norms.position == NormPosition::BeforeAndAfter || config.has_norm_after_mlp(layer),
            _ => true,
        }
    }

    /// The shape at a place of a model of this configuration. A norm of queries or keys may have a gain for each head instead:
    /// `[heads, d_head]`.
    pub(crate) fn shape(self, config: &Config, location: Location) -> Vec<i64> {
        let layer = location.layer.unwrap_or(0);
        let (d_head, d_value) = (config.d_head_of(layer) as i64, config.d_value_of(layer) as i64);
        let d_model = config.d_model as i64;
        let (ple_width, ple_rows) =
            config.stream.layer_embedding.map_or((0, 0), |it| (it.width as i64, it.d_vocab as i64));
        let ple_all = config.n_layers as i64 * ple_width;
        let d_mlp = match (location.expert, location.layer) {
            (None, Some(layer)) => config.neurons_of(layer) as i64,
            _ => config.d_mlp() as i64,
        };
        let heads = config.heads(layer);
        let (n_heads, n_kv_heads) = (heads.query as i64, heads.key_value as i64);
        let (q_rows, k_rows, v_rows) = (n_heads * d_head, n_kv_heads * d_head, n_kv_heads * d_value);
        // Of a mixture of heads, those of all experts.
        let all_heads_of_experts = config.attention.experts.map_or(n_heads, |it| it.num_experts as i64 * n_kv_heads);
        let q_rows = config.attention.experts.map_or(q_rows, |_| all_heads_of_experts * d_head);
        let latent = config.attention.latent.unwrap_or_default();
        let (q_rank, kv_rank) = (latent.query_rank.unwrap_or(0) as i64, latent.key_value_rank as i64);
        let rotated = config.rotary_dim().unwrap_or(0) as i64;
        let (index_heads, index_width) =
            config.attention.indexer.as_ref().map_or((0, 0), |it| (it.n_heads as i64, it.d_head as i64));
        let all_heads = matches!(config.qk_norm(), Some(QkNorm::AllHeads(_)));
        let experts = config.num_experts().unwrap_or(0) as i64;
        let d_vocab_out = config.d_vocab_out as i64;
        let d_encoder = config.attention.cross.map_or(0, |cross| cross.d_encoder as i64);
        let d_embed = config.d_embed() as i64;
        match self {
            Part::WE => vec![config.d_vocab as i64, d_embed],
            Part::WPos => vec![config.n_ctx as i64, d_embed],
            Part::WTokenType => vec![config.embed.token_types as i64, d_embed],
            Part::WTaskType => vec![config.embed.task_types as i64, d_embed],
            Part::EmbedProject => vec![d_model, d_embed],
            Part::EmbedLnW | Part::EmbedLnB => vec![d_embed],
            Part::WDistance => vec![2 * config.attention.disentangled.map_or(0, |it| it.span as i64), d_model],
            Part::DistanceLnW | Part::DistanceLnB => vec![d_model],
            Part::DistanceK | Part::DistanceQ => vec![n_heads * d_head, d_model],
            Part::DistanceKB | Part::DistanceQB => vec![n_heads * d_head],
            Part::EmbedProjectB | Part::LnFinalW | Part::LnFinalB => vec![d_model],
            Part::PleTable => vec![ple_rows, ple_all],
            Part::PleProjection => vec![ple_all, d_model],
            Part::PleProjectionNormW => vec![ple_width],
            Part::PleGate => vec![ple_width, d_model],
            Part::PleOut => vec![d_model, ple_width],
            Part::LayerScalar => vec![1],
            Part::AttnStreamW | Part::MlpStreamW => vec![d_model],
            Part::DynamicA | Part::DynamicDtB => vec![n_kv_heads],
            Part::DynamicDt => vec![n_kv_heads, v_rows],
            Part::RouterInputW | Part::ExpertsInputW | Part::SharedInputW => vec![d_model],
            Part::ExpertsLnW | Part::SharedLnW | Part::PleLnW => vec![d_model],
            Part::ExpertScale => vec![experts],
            Part::Ln1W | Part::Ln1B | Part::Ln2W | Part::Ln2B => vec![d_model],
            Part::Ln1PostW | Part::Ln1PostB | Part::Ln2PostW | Part::Ln2PostB => vec![d_model],
            Part::Qkv => vec![reader_rows(config, location), d_model],
            Part::QkvB => vec![reader_rows(config, location)],
            Part::Q => vec![q_rows, d_model],
            Part::QB => vec![q_rows],
            Part::K => vec![k_rows, d_model],
            Part::KB => vec![k_rows],
            Part::V => vec![v_rows, d_model],
            Part::VB => vec![v_rows],
            Part::CrossLnW | Part::CrossLnB | Part::CrossLnPostW | Part::CrossLnPostB => vec![d_model],
            Part::CrossQ => vec![q_rows, d_model],
            Part::CrossQB => vec![q_rows],
            Part::CrossKv => vec![k_rows + v_rows, d_encoder],
            Part::CrossKvB => vec![k_rows + v_rows],
            Part::CrossK => vec![k_rows, d_encoder],
            Part::CrossKB => vec![k_rows],
            Part::CrossV => vec![v_rows, d_encoder],
            Part::CrossVB => vec![v_rows],
            Part::CrossO => vec![d_model, n_heads * d_value],
            Part::CrossOB => vec![d_model],
            Part::QDown => vec![q_rank, d_model],
            Part::QDownB | Part::QLatentW => vec![q_rank],
            Part::QUp => vec![q_rows, q_rank],
            Part::KvDown => vec![kv_rank + rotated, d_model],
            Part::KvDownB => vec![kv_rank + rotated],
            Part::KvLatentW => vec![kv_rank],
            Part::KvUp => vec![n_heads * (d_head - rotated + d_value), kv_rank],
            Part::IndexQ => vec![index_heads * index_width, q_rank],
            Part::IndexK => vec![index_width, d_model],
            Part::IndexKB | Part::IndexKNormW | Part::IndexKNormB => vec![index_width],
            Part::IndexWeights => vec![index_heads, d_model],
            Part::IndexWeightsB => vec![index_heads],
            Part::QNormW | Part::QNormB => vec![if all_heads { q_rows } else { d_head }],
            Part::KNormW | Part::KNormB => vec![if all_heads { k_rows } else { d_head }],
            Part::ZNormW | Part::ZNormB => vec![n_heads * d_value],
            Part::Sinks => vec![n_heads],
            Part::RelativeBias => vec![config.attention.relative_bias.map_or(0, |it| it.buckets as i64), n_heads],
            Part::HeadGate => match config.attention.gate {
                Some(HeadGate { per_head: true, .. }) => vec![n_heads, d_model],
                _ => vec![n_heads * d_value, d_model],
            },
            Part::HeadGateB => vec![n_heads],
            Part::HeadRouter => vec![config.attention.experts.map_or(0, |it| it.num_experts as i64), d_model],
            Part::O => vec![d_model, all_heads_of_experts * d_value],
            Part::OB | Part::OutB | Part::SharedOutB | Part::MixtureB => vec![d_model],
            Part::LambdaQ1 | Part::LambdaK1 | Part::LambdaQ2 | Part::LambdaK2 => vec![d_head],
            Part::Router => vec![experts, d_model],
            Part::RouterB | Part::ChoiceB => vec![experts],
            Part::SharedIn | Part::SharedGate => vec![d_mlp, d_model],
            Part::SharedInB | Part::SharedGateB => vec![d_mlp],
            Part::SharedOut => vec![d_model, d_mlp],
            Part::SharedWeight => vec![1, d_model],
            Part::In | Part::Gate => vec![d_mlp, d_model],
            Part::InB | Part::GateB | Part::ProductB | Part::MlpLnW | Part::MlpLnB => vec![d_mlp],
            Part::Out => vec![d_model, d_mlp],
            Part::XieluAlphaP | Part::XieluAlphaN | Part::XieluPositive | Part::XieluNegative => vec![1],
            Part::XieluBeta | Part::XieluEps => vec![1],
            Part::HeadW => vec![config.d_unembed() as i64, d_model],
            Part::HeadB | Part::HeadLnW | Part::HeadLnB => vec![config.d_unembed() as i64],
            Part::U => vec![d_vocab_out, config.d_unembed() as i64],
            Part::UB => vec![d_vocab_out],
        }
    }
}

/// The parts of a layer that read the stream in one product: queries, keys and values, or what they are made of.
pub(crate) fn stream_readers(config: &Config, layer: usize) -> &'static [(Part, Part)] {
    match config.attention.latent {
        None if config.shares_keys_of(layer).is_some() => &[(Part::Q, Part::QB)],
        None => &[(Part::Q, Part::QB), (Part::K, Part::KB), (Part::V, Part::VB)],
        Some(LatentAttention { query_rank: None, .. }) => &[(Part::Q, Part::QB), (Part::KvDown, Part::KvDownB)],
        Some(_) => &[(Part::QDown, Part::QDownB), (Part::KvDown, Part::KvDownB)],
    }
}

/// The parts that read an encoder's output in one product: keys and values.
pub(crate) const ENCODER_READERS: &[(Part, Part)] = &[(Part::CrossK, Part::CrossKB), (Part::CrossV, Part::CrossVB)];

/// The rows of all of [`stream_readers`].
fn reader_rows(config: &Config, location: Location) -> i64 {
    stream_readers(config, location.layer.unwrap_or(0))
        .iter()
        .map(|(weight, _)| weight.shape(config, location)[0])
        .sum()
}

/// Which block and expert a part belongs to: none outside the blocks, and no expert outside a mixture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Location {
    pub(crate) layer: Option<usize>,
    pub(crate) expert: Option<usize>,
}

impl Location {
    /// Within this block.
    pub(crate) fn block(layer: usize) -> Self {
        Location { layer: Some(layer), expert: None }
    }

    /// Within this expert of the same block.
    pub(crate) fn expert(self, expert: usize) -> Self {
        Location { expert: Some(expert), ..self }
    }
}

/// A part of one model. It prints as its name in [`Transformer::parameters`](super::Transformer::parameters).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) location: Location,
    pub(crate) part: Part,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(layer) = self.location.layer {
            write!(f, "blocks.{layer}.")?;
        }
        match (self.location.expert, self.part.name().split_once('.')) {
            (Some(expert), Some((component, rest))) => write!(f, "{component}.experts.{expert}.{rest}"),
            _ => f.write_str(self.part.name()),
        }
    }
}
