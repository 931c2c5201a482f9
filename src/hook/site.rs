//! The table of sites: each place of the forward pass is one row, and all that is known about places follows from the rows.
//!
//! A new hook point is a new row here, at its place in the firing order, and a call of the tap in the forward pass.

use tch::Kind;

use super::point::HookPoint;
use super::presence::{self, Presence};
use crate::config::{NormPosition, Stack};
use crate::layer::Layer;
use crate::Config;

/// Where a site is: outside the stacks of layers, in each layer, or in each expert of each layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// Before the first layer.
    Before,
    /// In each layer.
    Layer,
    /// In each expert of each layer.
    Expert,
    /// After the last layer.
    After,
    /// Between an activation and what a dictionary puts in its place.
    Dictionary,
}

/// What one dimension of an activation runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    Batch,
    /// The position; of scores and patterns, the query's.
    Pos,
    /// The position of the key.
    Key,
    /// The position in the encoder's output.
    EncoderPos,
    /// The query head.
    Head,
    /// The key-value head.
    KvHead,
    /// The tokens routed to an expert.
    Row,
    DModel,
    /// The width of the embeddings.
    DEmbed,
    /// The width of what the unembedding reads.
    DUnembed,
    DHead,
    /// The width of a head's values.
    DValue,
    /// The gates of a head.
    Gate,
    /// A layer's input of per-layer embeddings.
    Ple,
    DMlp,
    /// All query heads' entries, side by side.
    Heads,
    /// All key-value heads' entries, side by side.
    KvHeads,
    DVocabOut,
    Expert,
    /// The experts of a token.
    Chosen,
    /// The experts of a mixture of heads.
    HeadExpert,
    /// Those of a token.
    HeadChosen,
    /// A single entry.
    One,
    /// What a dictionary reads.
    DictionaryIn,
    /// The features of a dictionary.
    Feature,
    /// What a dictionary reconstructs, heads side by side.
    DictionaryOut,
}

/// The kind of an activation's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KindRule {
    /// That of the weights.
    Weights,
    /// That of the weights, but at least fp32: norms and routers are computed so.
    AtLeastFloat,
    /// Whole numbers.
    Indices,
}

/// What is known about a site.
pub(crate) struct Row {
    /// TransformerLens' name, below `blocks.L.` or `blocks.L.mlp.experts.E.` where the site is in a layer or an expert.
    pub(crate) name: &'static str,
    pub(crate) place: Place,
    /// What each dimension runs over; nothing, where it is what the dimensions of the activation that a dictionary reconstructs do.
    pub(crate) extents: &'static [Extent],
    /// The same in models that norm all heads of queries and keys together.
    pub(crate) merged: &'static [Extent],
    pub(crate) kind: KindRule,
    /// Whether a model has it in a layer.
    pub(crate) presence: fn(&Config, usize) -> Presence,
    /// The site with which it changes places in the firing order where norms stand after their sublayer.
    pub(crate) swap: Option<Site>,
}

macro_rules! or {
    ($default:expr) => {
        $default
    };
    ($default:expr, $given:expr) => {
        $given
    };
}

/// The function in [`hook`](crate::hook) that makes the points of a site.
macro_rules! function {
    ($(#[$doc:meta])* Layer $name:literal $function:ident $site:ident) => {
        #[doc = concat!("`blocks.L.", $name, "`.")]
        #[doc = ""]
        $(#[$doc])*
        #[inline]
        pub fn $function(layer: impl Into<Layer>) -> HookPoint {
            HookPoint::in_layer(layer.into(), Site::$site)
        }
    };
    ($(#[$doc:meta])* Expert $name:literal $function:ident $site:ident) => {
        #[doc = concat!("`blocks.L.mlp.experts.E.", $name, "`.")]
        #[doc = ""]
        $(#[$doc])*
        #[inline]
        pub fn $function(layer: impl Into<Layer>, expert: usize) -> HookPoint {
            HookPoint::in_expert(layer.into(), expert, Site::$site)
        }
    };
    ($(#[$doc:meta])* Dictionary $name:literal $function:ident $site:ident) => {
        #[doc = concat!("`<hook>.", $name, "`, where `hook` is the activation that a dictionary reconstructs.")]
        #[doc = ""]
        $(#[$doc])*
        #[inline]
        pub fn $function(hook: HookPoint) -> HookPoint {
            HookPoint::of_dictionary(hook, Site::$site)
        }
    };
    ($(#[$doc:meta])* $place:ident $name:literal $function:ident $site:ident) => {
        #[doc = concat!("`", $name, "`.")]
        #[doc = ""]
        $(#[$doc])*
        #[inline]
        pub const fn $function() -> HookPoint {
            HookPoint::outside(Site::$site)
        }
    };
}

/// A row: `place Variant, function, name, [axes], [axes where heads are normed together]?, kind, presence, swaps Variant?`.
macro_rules! sites {
    ($(
        $(#[$doc:meta])*
        $place:ident $site:ident, $function:ident, $name:literal, [$($extent:ident)*], $([$($merged:ident)+],)?
        $kind:ident, $presence:ident $(, swaps $swap:ident)?;
    )+) => {
        /// A place in the forward pass: in the order in which they fire where norms stand before their sublayer.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Site {
            $($(#[$doc])* $site,)+
        }

        impl Site {
            /// Every site, in the order of the table.
            pub(crate) const ALL: &'static [Site] = &[$(Site::$site,)+];
        }

        static TABLE: &[Row] = &[$(
            Row {
                name: $name,
                place: Place::$place,
                extents: &[$(Extent::$extent,)*],
                merged: or!(&[$(Extent::$extent,)*] $(, &[$(Extent::$merged,)+])?),
                kind: KindRule::$kind,
                presence: presence::$presence,
                swap: or!(None $(, Some(Site::$swap))?),
            },
        )+];

        $(function! { $(#[$doc])* $place $name $function $site })+
    };
}

sites! {
    /// The token ids: `[batch, pos]`; shown on request.
    Before Tokens, tokens, "hook_tokens", [Batch Pos], Indices, on_request;
    /// What the norm between embedding and layers divides by: `[batch, pos, 1]`. Where it is of the sum of all embeddings (BERT), it
    /// fires after them.
    Before EmbedLnScale, embed_ln_scale, "embed.ln.hook_scale", [Batch Pos One], AtLeastFloat, embed_norm;
    /// The quotient of that norm: `[batch, pos, d_embed]`.
    Before EmbedLnNormalized, embed_ln_normalized, "embed.ln.hook_normalized", [Batch Pos DEmbed], Weights, embed_norm;
    /// Token embeddings: `[batch, pos, d_embed]`. TransformerLens' `HookedEncoder` calls it `embed.hook_embed`, which is accepted.
    Before Embed, embed, "hook_embed", [Batch Pos DEmbed], Weights, always;
    /// Position embeddings: `[batch, pos, d_embed]`. TransformerLens' `HookedEncoder` calls it `embed.hook_pos_embed`, which is accepted.
    Before PosEmbed, pos_embed, "hook_pos_embed", [Batch Pos DEmbed], Weights, learned_positions;
    /// Embeddings of the tokens' types (BERT's segments): `[batch, pos, d_embed]`.
    Before TokenTypeEmbed, token_type_embed, "embed.hook_token_type_embed", [Batch Pos DEmbed], Weights, token_types;
    /// The stream that all embeddings give, through their norm and their map to `d_model`, where a model has these or types of tokens:
    /// `[batch, pos, d_model]`.
    Before FullEmbed, full_embed, "hook_full_embed", [Batch Pos DModel], Weights, full_embed;

    /// The residual stream before the layer: `[batch, pos, d_model]`.
    Layer ResidPre, resid_pre, "hook_resid_pre", [Batch Pos DModel], Weights, always;
    /// The stream as each head reads it: `[batch, pos, head, d_model]`; computed on request.
    Layer AttnIn, attn_in, "hook_attn_in", [Batch Pos Head DModel], Weights, heads_apart;
    /// The stream as each head's query reads it: `[batch, pos, head, d_model]`; computed on request.
    Layer QInput, q_input, "hook_q_input", [Batch Pos Head DModel], Weights, heads_apart;
    /// The stream as each head's key reads it: `[batch, pos, kv_head, d_model]`; computed on request.
    Layer KInput, k_input, "hook_k_input", [Batch Pos KvHead DModel], Weights, own_keys_apart;
    /// The stream as each head's value reads it: `[batch, pos, kv_head, d_model]`; computed on request.
    Layer VInput, v_input, "hook_v_input", [Batch Pos KvHead DModel], Weights, own_keys_apart;
    /// What the norm before attention (after it, in OLMo 2 and 3; of the stream after it, in GPT-1) divides by: `[batch, pos, 1]`.
    Layer Ln1Scale, ln1_scale, "ln1.hook_scale", [Batch Pos One], AtLeastFloat, norm, swaps Ln1PostScale;
    /// The quotient of that norm, before gain and bias: `[batch, pos, d_model]`.
    Layer Ln1Normalized, ln1_normalized, "ln1.hook_normalized", [Batch Pos DModel], Weights, norm, swaps Ln1PostNormalized;
    /// The weights of all experts of a mixture of heads: `[batch, pos, expert]`.
    Layer HeadWeights, head_weights, "attn.hook_head_weights", [Batch Pos HeadExpert], AtLeastFloat, head_experts;
    /// The experts whose heads each token has: `[batch, pos, experts_per_token]`.
    Layer HeadIndices, head_indices, "attn.hook_head_indices", [Batch Pos HeadChosen], Indices, head_experts;
    /// Queries: `[batch, pos, head, d_head]`.
    Layer Q, q, "attn.hook_q", [Batch Pos Head DHead], Weights, always;
    /// Keys: `[batch, pos, kv_head, d_head]`.
    Layer K, k, "attn.hook_k", [Batch Pos KvHead DHead], Weights, own_keys;
    /// Values: `[batch, pos, kv_head, d_head]`, or as wide as values are where that is another width.
    Layer V, v, "attn.hook_v", [Batch Pos KvHead DValue], Weights, own_keys;
    /// What the norm of queries divides by: `[batch, pos, head, 1]`, or `[batch, pos, 1]` over all heads.
    Layer QNormScale, q_norm_scale, "attn.q_norm.hook_scale", [Batch Pos Head One], [Batch Pos One], AtLeastFloat, qk_norm;
    /// The quotient of the norm of queries: `[batch, pos, head, d_head]`, or `[batch, pos, head · d_head]` over all heads.
    Layer QNormNormalized, q_norm_normalized, "attn.q_norm.hook_normalized", [Batch Pos Head DHead], [Batch Pos Heads],
        Weights, qk_norm;
    /// What the norm of keys divides by: `[batch, pos, kv_head, 1]`, or `[batch, pos, 1]` over all heads.
    Layer KNormScale, k_norm_scale, "attn.k_norm.hook_scale", [Batch Pos KvHead One], [Batch Pos One], AtLeastFloat,
        key_norm;
    /// The quotient of the norm of keys: `[batch, pos, kv_head, d_head]`, or `[batch, pos, kv_head · d_head]` over all heads.
    Layer KNormNormalized, k_norm_normalized, "attn.k_norm.hook_normalized", [Batch Pos KvHead DHead], [Batch Pos KvHeads],
        Weights, key_norm;
    /// What the norm of values divides by: `[batch, pos, kv_head, 1]`.
    Layer VNormScale, v_norm_scale, "attn.v_norm.hook_scale", [Batch Pos KvHead One], AtLeastFloat, value_norm;
    /// The quotient of the norm of values, which is what the pattern mixes: `[batch, pos, kv_head, d_head]`.
    Layer VNormNormalized, v_norm_normalized, "attn.v_norm.hook_normalized", [Batch Pos KvHead DValue], Weights, value_norm;
    /// Queries after rotation, which leaves them as they are in a layer that is blind to positions: `[batch, pos, head, d_head]`.
    Layer RotQ, rot_q, "attn.hook_rot_q", [Batch Pos Head DHead], Weights, rotary;
    /// Keys after rotation, likewise: `[batch, pos, kv_head, d_head]`.
    Layer RotK, rot_k, "attn.hook_rot_k", [Batch Pos KvHead DHead], Weights, rotary_keys;
    /// Scores, scaled, capped and masked (−∞): `[batch, head, query, key]`.
    Layer AttnScores, attn_scores, "attn.hook_attn_scores", [Batch Head Pos Key], Weights, always;
    /// The softmax of the scores: `[batch, head, query, key]`.
    Layer Pattern, pattern, "attn.hook_pattern", [Batch Head Pos Key], Weights, always;
    /// What a norm between the heads and `W_O` divides by: `[batch, pos, 1]`.
    Layer ZNormScale, z_norm_scale, "attn.z_norm.hook_scale", [Batch Pos One], AtLeastFloat, z_norm;
    /// The quotient of that norm: `[batch, pos, head · d_head]`.
    Layer ZNormNormalized, z_norm_normalized, "attn.z_norm.hook_normalized", [Batch Pos Heads], Weights, z_norm;
    /// The gates of what the heads have mixed: `[batch, pos, head, d_head]`, or `[batch, pos, head, 1]`.
    Layer HeadGate, head_gate, "attn.hook_gate", [Batch Pos Head Gate], Weights, head_gate;
    /// Values mixed by the pattern, by the gates where there are some: `[batch, pos, head, d_head]`, or as wide as values are where
    /// that is another width.
    Layer Z, z, "attn.hook_z", [Batch Pos Head DValue], Weights, always;
    /// The output of each head: `[batch, pos, head, d_model]`; computed on request.
    Layer Result, result, "attn.hook_result", [Batch Pos Head DModel], Weights, on_request;
    /// What the norm after attention divides by: `[batch, pos, 1]`.
    Layer Ln1PostScale, ln1_post_scale, "ln1_post.hook_scale", [Batch Pos One], AtLeastFloat, attn_post_norm,
        swaps Ln1Scale;
    /// The quotient of that norm: `[batch, pos, d_model]`.
    Layer Ln1PostNormalized, ln1_post_normalized, "ln1_post.hook_normalized", [Batch Pos DModel], Weights, attn_post_norm,
        swaps Ln1Normalized;
    /// What attention adds to the stream: `[batch, pos, d_model]`.
    Layer AttnOut, attn_out, "hook_attn_out", [Batch Pos DModel], Weights, always;
    /// The stream between attention and MLP: `[batch, pos, d_model]`. Where norms are of the stream itself, before the norm, as at the
    /// next point.
    Layer ResidMid, resid_mid, "hook_resid_mid", [Batch Pos DModel], Weights, resid_mid;
    /// The stream as cross-attention reads it, before its norm: `[batch, pos, d_model]`; computed on request.
    Layer CrossAttnIn, cross_attn_in, "hook_cross_attn_in", [Batch Pos DModel], Weights, cross_on_request;
    /// What the norm before cross-attention (of the stream after it, in BART) divides by: `[batch, pos, 1]`.
    Layer CrossLnScale, cross_ln_scale, "ln2.hook_scale", [Batch Pos One], AtLeastFloat, cross_norm, swaps CrossLnPostScale;
    /// The quotient of that norm, before gain and bias: `[batch, pos, d_model]`.
    Layer CrossLnNormalized, cross_ln_normalized, "ln2.hook_normalized", [Batch Pos DModel], Weights, cross_norm,
        swaps CrossLnPostNormalized;
    /// Queries of cross-attention: `[batch, pos, head, d_head]`.
    Layer CrossQ, cross_q, "cross_attn.hook_q", [Batch Pos Head DHead], Weights, cross;
    /// Keys of the encoder's output: `[batch, encoder_pos, kv_head, d_head]`.
    Layer CrossK, cross_k, "cross_attn.hook_k", [Batch EncoderPos KvHead DHead], Weights, cross;
    /// Values of the encoder's output: `[batch, encoder_pos, kv_head, d_head]`.
    Layer CrossV, cross_v, "cross_attn.hook_v", [Batch EncoderPos KvHead DValue], Weights, cross;
    /// Scores of cross-attention, scaled, capped and masked (−∞): `[batch, head, query, encoder_pos]`.
    Layer CrossAttnScores, cross_attn_scores, "cross_attn.hook_attn_scores", [Batch Head Pos EncoderPos], Weights, cross;
    /// The softmax of these scores: `[batch, head, query, encoder_pos]`.
    Layer CrossPattern, cross_pattern, "cross_attn.hook_pattern", [Batch Head Pos EncoderPos], Weights, cross;
    /// The encoder's values mixed by that pattern: `[batch, pos, head, d_head]`.
    Layer CrossZ, cross_z, "cross_attn.hook_z", [Batch Pos Head DValue], Weights, cross;
    /// The output of each head of cross-attention: `[batch, pos, head, d_model]`; computed on request.
    Layer CrossResult, cross_result, "cross_attn.hook_result", [Batch Pos Head DModel], Weights, cross_on_request;
    /// What the norm after cross-attention divides by: `[batch, pos, 1]`.
    Layer CrossLnPostScale, cross_ln_post_scale, "ln2_post.hook_scale", [Batch Pos One], AtLeastFloat, cross_post_norm,
        swaps CrossLnScale;
    /// The quotient of that norm: `[batch, pos, d_model]`.
    Layer CrossLnPostNormalized, cross_ln_post_normalized, "ln2_post.hook_normalized", [Batch Pos DModel], Weights,
        cross_post_norm, swaps CrossLnNormalized;
    /// What cross-attention adds to the stream: `[batch, pos, d_model]`.
    Layer CrossAttnOut, cross_attn_out, "hook_cross_attn_out", [Batch Pos DModel], Weights, cross;
    /// The stream between cross-attention and MLP: `[batch, pos, d_model]`.
    Layer ResidMidCross, resid_mid_cross, "hook_resid_mid_cross", [Batch Pos DModel], Weights, cross;
    /// The stream as the MLP reads it, before its norm: `[batch, pos, d_model]`; computed on request.
    Layer MlpIn, mlp_in, "hook_mlp_in", [Batch Pos DModel], Weights, mlp_on_request;
    /// What the norm before the MLP (after it, in OLMo 2 and 3; of the stream after it, in GPT-1) divides by: `[batch, pos, 1]`.
    Layer Ln2Scale, ln2_scale, "ln2.hook_scale", [Batch Pos One], AtLeastFloat, mlp_norm, swaps Ln2PostScale;
    /// The quotient of that norm: `[batch, pos, d_model]`.
    Layer Ln2Normalized, ln2_normalized, "ln2.hook_normalized", [Batch Pos DModel], Weights, mlp_norm,
        swaps Ln2PostNormalized;
    /// What the MLP's weights read, after its norm: `[batch, pos, d_model]`; shown on request.
    Layer MlpHookIn, mlp_hook_in, "mlp.hook_in", [Batch Pos DModel], Weights, mlp_on_request;
    /// Neurons (gates, in a gated MLP) before the activation function: `[batch, pos, d_mlp]`. In a mixture, those of the shared
    /// expert, as at the next points.
    Layer Pre, pre, "mlp.hook_pre", [Batch Pos DMlp], Weights, dense;
    /// What the gates of a gated MLP multiply: `[batch, pos, d_mlp]`.
    Layer PreLinear, pre_linear, "mlp.hook_pre_linear", [Batch Pos DMlp], Weights, dense_gated;
    /// Neurons before a norm of their own (SoLU's, BitNet's): `[batch, pos, d_mlp]`.
    Layer Mid, mid, "mlp.hook_mid", [Batch Pos DMlp], Weights, neuron_norm;
    /// What the neurons' norm divides by: `[batch, pos, 1]`.
    Layer MlpLnScale, mlp_ln_scale, "mlp.ln.hook_scale", [Batch Pos One], AtLeastFloat, neuron_norm;
    /// The quotient of the neurons' norm: `[batch, pos, d_mlp]`.
    Layer MlpLnNormalized, mlp_ln_normalized, "mlp.ln.hook_normalized", [Batch Pos DMlp], Weights, neuron_norm;
    /// Neurons after the activation function: `[batch, pos, d_mlp]`.
    Layer Post, post, "mlp.hook_post", [Batch Pos DMlp], Weights, dense;
    /// What the output of a mixture's shared expert is multiplied by: `[batch, pos, 1]`.
    Layer SharedGate, shared_gate, "mlp.hook_shared_gate", [Batch Pos One], Weights, gated_shared_expert;
    /// What the norm after the shared expert divides by, where it has one of its own: `[batch, pos, 1]`.
    Layer SharedLnScale, shared_ln_scale, "mlp.shared_ln.hook_scale", [Batch Pos One], AtLeastFloat, separate_norms;
    /// The quotient of that norm: `[batch, pos, d_model]`.
    Layer SharedLnNormalized, shared_ln_normalized, "mlp.shared_ln.hook_normalized", [Batch Pos DModel], Weights,
        separate_norms;
    /// The router's weights of all experts, before those of the chosen ones are normalised: `[batch, pos, expert]`.
    Layer ExpertWeights, expert_weights, "mlp.hook_expert_weights", [Batch Pos Expert], AtLeastFloat, mixture;
    /// The experts chosen: `[batch, pos, experts_per_token]`.
    Layer ExpertIndices, expert_indices, "mlp.hook_expert_indices", [Batch Pos Chosen], Indices, mixture;
    /// Gates of an expert before the activation function, of the tokens routed to it: `[row, d_mlp]`.
    Expert ExpertGate, expert_gate, "hook_gate", [Row DMlp], Weights, mixture;
    /// What the gates of an expert multiply, of the tokens routed to it: `[row, d_mlp]`.
    Expert ExpertPre, expert_pre, "hook_pre", [Row DMlp], Weights, mixture;
    /// Neurons of an expert after the activation function, of the tokens routed to it: `[row, d_mlp]`.
    Expert ExpertPost, expert_post, "hook_post", [Row DMlp], Weights, mixture;
    /// What the norm after all experts divides by, where they have one of their own: `[batch, pos, 1]`.
    Layer ExpertsLnScale, experts_ln_scale, "mlp.experts_ln.hook_scale", [Batch Pos One], AtLeastFloat, separate_norms;
    /// The quotient of that norm: `[batch, pos, d_model]`.
    Layer ExpertsLnNormalized, experts_ln_normalized, "mlp.experts_ln.hook_normalized", [Batch Pos DModel], Weights,
        separate_norms;
    /// What the MLP's weights write, before a norm after them: `[batch, pos, d_model]`; shown on request.
    Layer MlpHookOut, mlp_hook_out, "mlp.hook_out", [Batch Pos DModel], Weights, mlp_on_request;
    /// What the norm after the MLP divides by: `[batch, pos, 1]`.
    Layer Ln2PostScale, ln2_post_scale, "ln2_post.hook_scale", [Batch Pos One], AtLeastFloat, mlp_post_norm, swaps Ln2Scale;
    /// The quotient of that norm: `[batch, pos, d_model]`.
    Layer Ln2PostNormalized, ln2_post_normalized, "ln2_post.hook_normalized", [Batch Pos DModel], Weights, mlp_post_norm,
        swaps Ln2Normalized;
    /// What the MLP adds to the stream: `[batch, pos, d_model]`.
    Layer MlpOut, mlp_out, "hook_mlp_out", [Batch Pos DModel], Weights, mlp;
    /// The stream as the per-layer embedding reads it: `[batch, pos, d_model]`; computed on request.
    Layer PleIn, ple_in, "ple.hook_in", [Batch Pos DModel], Weights, layer_embedding_on_request;
    /// The layer's input of per-layer embeddings: `[batch, pos, width]`.
    Layer PleEmbed, ple_embed, "ple.hook_embed", [Batch Pos Ple], Weights, layer_embedding;
    /// The gate of that input, before its function: `[batch, pos, width]`.
    Layer PlePre, ple_pre, "ple.hook_pre", [Batch Pos Ple], Weights, layer_embedding;
    /// The input times its gate: `[batch, pos, width]`.
    Layer PlePost, ple_post, "ple.hook_post", [Batch Pos Ple], Weights, layer_embedding;
    /// What the norm after the per-layer embedding divides by: `[batch, pos, 1]`.
    Layer PleLnScale, ple_ln_scale, "ple.ln.hook_scale", [Batch Pos One], AtLeastFloat, layer_embedding;
    /// The quotient of that norm: `[batch, pos, d_model]`.
    Layer PleLnNormalized, ple_ln_normalized, "ple.ln.hook_normalized", [Batch Pos DModel], Weights, layer_embedding;
    /// What the per-layer embedding adds to the stream: `[batch, pos, d_model]`.
    Layer PleOut, ple_out, "hook_ple_out", [Batch Pos DModel], Weights, layer_embedding;
    /// The stream after the layer: `[batch, pos, d_model]`. Where norms are of the stream itself, before the last of them.
    Layer ResidPost, resid_post, "hook_resid_post", [Batch Pos DModel], Weights, always;
    /// The stream after the layer and its last norm, where norms are of the stream itself: `[batch, pos, d_model]`.
    Layer NormalizedResidPost, normalized_resid_post, "hook_normalized_resid_post", [Batch Pos DModel], Weights,
        norm_of_stream;

    /// What the last norm divides by: `[batch, pos, 1]`.
    After LnFinalScale, ln_final_scale, "ln_final.hook_scale", [Batch Pos One], AtLeastFloat, final_norm;
    /// The quotient of the last norm: `[batch, pos, d_model]`.
    After LnFinalNormalized, ln_final_normalized, "ln_final.hook_normalized", [Batch Pos DModel], Weights, final_norm;
    /// What the norm of a prediction head divides by: `[batch, pos, 1]`.
    After HeadLnScale, head_ln_scale, "mlm_head.ln.hook_scale", [Batch Pos One], AtLeastFloat, head_norm;
    /// The quotient of that norm: `[batch, pos, d_unembed]`.
    After HeadLnNormalized, head_ln_normalized, "mlm_head.ln.hook_normalized", [Batch Pos DUnembed], Weights, head_norm;
    /// What the unembedding reads: `[batch, pos, d_unembed]`, which is `d_model` in nearly all models. Of an encoder of two stacks, its
    /// output, `encoder.hook_out`.
    After UnembedIn, unembed_in, "unembed.hook_in", [Batch Pos DUnembed], Weights, always;
    /// The logits before any cap: `[batch, pos, d_vocab_out]`.
    After UnembedOut, unembed_out, "unembed.hook_out", [Batch Pos DVocabOut], Weights, unembedding;

    /// What a dictionary encodes, heads side by side: `[batch, pos, d_in]`.
    Dictionary SaeInput, sae_input, "hook_sae_input", [Batch Pos DictionaryIn], AtLeastFloat, always;
    /// Features before their activation function; of a gated dictionary, the magnitudes: `[batch, pos, feature]`.
    Dictionary SaeActsPre, sae_acts_pre, "hook_sae_acts_pre", [Batch Pos Feature], AtLeastFloat, always;
    /// The activations of features: `[batch, pos, feature]`.
    Dictionary SaeActsPost, sae_acts_post, "hook_sae_acts_post", [Batch Pos Feature], AtLeastFloat, always;
    /// The reconstruction, heads side by side, before a norm of the input is undone and without a skip connection: `[batch, pos, d_out]`.
    Dictionary SaeRecons, sae_recons, "hook_sae_recons", [Batch Pos DictionaryOut], AtLeastFloat, always;
    /// What the reconstruction leaves out of the activation, in its shape; on request where it is not added.
    Dictionary SaeError, sae_error, "hook_sae_error", [], Weights, on_request;
    /// What takes the activation's place, in its shape.
    Dictionary SaeOutput, sae_output, "hook_sae_output", [], Weights, always;
}

/// A layer's sites are the bits of one word.
const _: () = assert!(Site::ALL.len() <= u128::BITS as usize);

impl Site {
    #[inline]
    pub(crate) fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// TransformerLens' name, below `blocks.L.` for a site in a layer and below `blocks.L.mlp.experts.E.` for one in an expert.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// TransformerLens' name in a stack. The second norm of a decoder's layer is that of its cross-attention.
    pub(crate) fn name_in(self, stack: Stack) -> &'static str {
        match (stack, self) {
            (Stack::Decoder, Site::Ln2Scale) => "ln3.hook_scale",
            (Stack::Decoder, Site::Ln2Normalized) => "ln3.hook_normalized",
            (Stack::Decoder, Site::Ln2PostScale) => "ln3_post.hook_scale",
            (Stack::Decoder, Site::Ln2PostNormalized) => "ln3_post.hook_normalized",
            (Stack::Encoder, Site::UnembedIn) => "hook_out",
            _ => self.name(),
        }
    }

    /// The site in cross-attention that this one is in self-attention.
    pub(crate) fn in_cross_attention(self) -> Site {
        match self {
            Site::Q => Site::CrossQ,
            Site::K => Site::CrossK,
            Site::V => Site::CrossV,
            Site::AttnScores => Site::CrossAttnScores,
            Site::Pattern => Site::CrossPattern,
            Site::Z => Site::CrossZ,
            Site::Result => Site::CrossResult,
            other => other,
        }
    }

    #[inline]
    pub(crate) fn place(self) -> Place {
        self.row().place
    }

    /// Whether its activation is the memory of the weights or of the caller's tokens.
    pub(crate) fn is_alias(self) -> bool {
        matches!(self, Site::Tokens | Site::PosEmbed | Site::TokenTypeEmbed)
    }

    /// Its bit in a set of points.
    #[inline]
    pub(crate) const fn bit(self) -> u128 {
        1 << self as u32
    }

    /// The site of this name at one of these places of a stack.
    pub(crate) fn named(name: &str, places: &[Place], stack: Stack) -> Option<Site> {
        let is_there =
            |site: &&Site| places.contains(&site.place()) && (stack == Stack::Decoder || !site.is_of_cross());
        Site::ALL.iter().filter(is_there).copied().find(|site| site.name_in(stack) == name)
    }

    /// Whether the site is of cross-attention.
    fn is_of_cross(self) -> bool {
        (Site::CrossAttnIn..=Site::ResidMidCross).contains(&self)
    }

    /// The sites at a place, in the order of the table.
    pub(crate) fn at(place: Place) -> impl Iterator<Item = Site> {
        Site::ALL.iter().copied().filter(move |site| site.place() == place)
    }

    /// The site that fires at this one's turn in a model of this shape.
    pub(crate) fn at_its_turn(self, config: &Config) -> Site {
        match self {
            Site::QNormScale
            | Site::QNormNormalized
            | Site::KNormScale
            | Site::KNormNormalized
            | Site::RotQ
            | Site::RotK
                if config.attention.qk_norm_after_rotation =>
            {
                self.where_norms_are_rotated()
            }
            Site::EmbedLnScale | Site::EmbedLnNormalized | Site::Embed | Site::PosEmbed | Site::TokenTypeEmbed
                if config.norms.after_full_embed =>
            {
                self.where_all_embeddings_are_normed()
            }
            _ if config.norm_position() == NormPosition::InStream => {
                self.where_norms_are_in_the_stream(config.attn_only(), config.attention.cross.is_some())
            }
            _ => self.row().swap.filter(|_| config.norm_position() == NormPosition::After).unwrap_or(self),
        }
    }

    /// The site that fires at this one's turn where norms are of the stream itself.
    fn where_norms_are_in_the_stream(self, attn_only: bool, has_cross: bool) -> Site {
        match self {
            Site::Ln1Scale => Site::Ln1PostScale,
            Site::Ln1Normalized => Site::Ln1PostNormalized,
            Site::Ln1PostScale => Site::Ln2PostScale,
            Site::Ln1PostNormalized => Site::Ln2PostNormalized,
            Site::CrossLnScale if has_cross => Site::Ln1Scale,
            Site::CrossLnNormalized if has_cross => Site::Ln1Normalized,
            Site::Ln2Scale if has_cross => Site::CrossLnScale,
            Site::Ln2Normalized if has_cross => Site::CrossLnNormalized,
            Site::Ln2Scale if attn_only => Site::ResidPost,
            Site::Ln2Normalized if attn_only => Site::Ln1Scale,
            Site::Ln2PostScale if attn_only => Site::Ln1Normalized,
            Site::Ln2PostNormalized if attn_only => Site::MlpOut,
            Site::Ln2Scale => Site::Ln1Scale,
            Site::Ln2Normalized => Site::Ln1Normalized,
            Site::Ln2PostScale => Site::MlpOut,
            Site::Ln2PostNormalized => Site::ResidPost,
            Site::MlpOut => Site::Ln2Scale,
            Site::ResidPost => Site::Ln2Normalized,
            other => other,
        }
    }

    /// The site that fires at this one's turn where the norm after the embedding is of all embeddings.
    fn where_all_embeddings_are_normed(self) -> Site {
        match self {
            Site::EmbedLnScale => Site::Embed,
            Site::EmbedLnNormalized => Site::PosEmbed,
            Site::Embed => Site::TokenTypeEmbed,
            Site::PosEmbed => Site::EmbedLnScale,
            Site::TokenTypeEmbed => Site::EmbedLnNormalized,
            other => other,
        }
    }

    /// The site that fires at this one's turn where queries and keys are normed after their rotation.
    fn where_norms_are_rotated(self) -> Site {
        match self {
            Site::QNormScale => Site::RotQ,
            Site::QNormNormalized => Site::RotK,
            Site::KNormScale => Site::QNormScale,
            Site::KNormNormalized => Site::QNormNormalized,
            Site::RotQ => Site::KNormScale,
            Site::RotK => Site::KNormNormalized,
            other => other,
        }
    }
}

impl KindRule {
    /// The kind in a model whose weights are of kind `weights`.
    pub(crate) fn kind(self, weights: Kind) -> Kind {
        match self {
            KindRule::Weights => weights,
            KindRule::AtLeastFloat if matches!(weights, Kind::Half | Kind::BFloat16) => Kind::Float,
            KindRule::AtLeastFloat => weights,
            KindRule::Indices => Kind::Int64,
        }
    }
}
