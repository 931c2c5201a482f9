//! [`HookPoint`]: a place in the forward pass, as a small value that prints as TransformerLens' string.

use std::fmt;

/// A place in the forward pass at which an activation can be read or replaced.
///
/// Prints as TransformerLens' name; made by the functions of [`hook`](crate::hook), or parsed from a
/// name by [`HookName::resolve`](crate::hook::HookName::resolve).
///
/// ```
/// use tch_lens::hook;
/// assert_eq!(hook::q(3).to_string(), "blocks.3.attn.hook_q");
/// assert_eq!(hook::q(3).axes().head, Some(2)); // [batch, pos, head, d_head]
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HookPoint {
    /// The token ids: `[batch, pos]`.
    Tokens,
    /// What the norm between embedding and blocks divides by: `[batch, pos, 1]`.
    EmbedLnScale,
    /// That norm's quotient: `[batch, pos, d_model]`.
    EmbedLnNormalized,
    /// Token embeddings: `[batch, pos, d_model]`.
    Embed,
    /// Position embeddings: `[batch, pos, d_model]`.
    PosEmbed,
    /// A place within block `.0`.
    Block(usize, Site),
    /// A place within expert `expert` of block `layer`; rows are the tokens routed to it: `[row, d_mlp]`.
    Expert {
        /// The block.
        layer: usize,
        /// The expert.
        expert: usize,
        /// The place.
        site: ExpertSite,
    },
    /// What the last norm divides by: `[batch, pos, 1]`.
    LnFinalScale,
    /// The last norm's quotient: `[batch, pos, d_model]`.
    LnFinalNormalized,
    /// What the unembedding reads: `[batch, pos, d_model]`.
    UnembedIn,
    /// The logits before any cap: `[batch, pos, d_vocab_out]`.
    UnembedOut,
}

/// A place within a block. `as u32`, it is its bit in a [`Plan`](crate::hook::Plan).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    /// The residual stream before the block: `[batch, pos, d_model]`.
    ResidPre,
    /// The stream as each head reads it: `[batch, pos, head, d_model]`; computed when asked for.
    AttnIn,
    /// The stream as each head's query reads it: `[batch, pos, head, d_model]`; computed when asked for.
    QInput,
    /// The stream as each head's key reads it: `[batch, pos, kv_head, d_model]`; computed when asked for.
    KInput,
    /// The stream as each head's value reads it: `[batch, pos, kv_head, d_model]`; computed when asked for.
    VInput,
    /// What the norm before attention (after it, in OLMo 2 and 3) divides by: `[batch, pos, 1]`.
    Ln1Scale,
    /// That norm's quotient, before gain and bias: `[batch, pos, d_model]`.
    Ln1Normalized,
    /// Queries: `[batch, pos, head, d_head]`.
    Q,
    /// Keys: `[batch, pos, kv_head, d_head]`.
    K,
    /// Values: `[batch, pos, kv_head, d_head]`.
    V,
    /// What the queries' norm divides by: `[batch, pos, head, 1]`, or `[batch, pos, 1]` over all heads.
    QNormScale,
    /// The queries' norm's quotient.
    QNormNormalized,
    /// What the keys' norm divides by: `[batch, pos, kv_head, 1]`, or `[batch, pos, 1]` over all heads.
    KNormScale,
    /// The keys' norm's quotient.
    KNormNormalized,
    /// Queries after rotation: `[batch, pos, head, d_head]`.
    RotQ,
    /// Keys after rotation: `[batch, pos, kv_head, d_head]`.
    RotK,
    /// Scores, scaled, capped and masked (−∞): `[batch, head, query, key]`.
    AttnScores,
    /// The softmax of the scores: `[batch, head, query, key]`.
    Pattern,
    /// Values mixed by the pattern: `[batch, pos, head, d_head]`.
    Z,
    /// Each head's output: `[batch, pos, head, d_model]`; computed when asked for.
    Result,
    /// What the norm after attention divides by: `[batch, pos, 1]`.
    Ln1PostScale,
    /// That norm's quotient: `[batch, pos, d_model]`.
    Ln1PostNormalized,
    /// What attention adds to the stream: `[batch, pos, d_model]`.
    AttnOut,
    /// The stream between attention and MLP: `[batch, pos, d_model]`.
    ResidMid,
    /// The stream as the MLP reads it, before its norm: `[batch, pos, d_model]`; computed when asked for.
    MlpIn,
    /// What the norm before the MLP (after it, in OLMo 2 and 3) divides by: `[batch, pos, 1]`.
    Ln2Scale,
    /// That norm's quotient: `[batch, pos, d_model]`.
    Ln2Normalized,
    /// Neurons (gates, in a gated MLP) before the activation function: `[batch, pos, d_mlp]`.
    Pre,
    /// What a gated MLP's gates multiply: `[batch, pos, d_mlp]`.
    PreLinear,
    /// SoLU's neurons before its norm: `[batch, pos, d_mlp]`.
    Mid,
    /// What SoLU's norm divides by: `[batch, pos, 1]`.
    MlpLnScale,
    /// SoLU's norm's quotient: `[batch, pos, d_mlp]`.
    MlpLnNormalized,
    /// Neurons after the activation function: `[batch, pos, d_mlp]`.
    Post,
    /// The router's weights of all experts: `[batch, pos, expert]`.
    ExpertWeights,
    /// The experts chosen: `[batch, pos, experts_per_token]`.
    ExpertIndices,
    /// What the norm after the MLP divides by: `[batch, pos, 1]`.
    Ln2PostScale,
    /// That norm's quotient: `[batch, pos, d_model]`.
    Ln2PostNormalized,
    /// What the MLP adds to the stream: `[batch, pos, d_model]`.
    MlpOut,
    /// The stream after the block: `[batch, pos, d_model]`.
    ResidPost,
}

/// A place within an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExpertSite {
    /// Gates before the activation function.
    Gate,
    /// What the gates multiply.
    Pre,
    /// Neurons after the activation function.
    Post,
}

/// Which dimension of an activation means what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axes {
    /// The batch.
    pub batch: Option<usize>,
    /// The position (the query's, of scores and patterns).
    pub position: Option<usize>,
    /// The head.
    pub head: Option<usize>,
}

/// Every site of a block in firing order, with its name below `blocks.L.`.
pub(crate) const SITES: [(Site, &str); 39] = [
    (Site::ResidPre, "hook_resid_pre"),
    (Site::AttnIn, "hook_attn_in"),
    (Site::QInput, "hook_q_input"),
    (Site::KInput, "hook_k_input"),
    (Site::VInput, "hook_v_input"),
    (Site::Ln1Scale, "ln1.hook_scale"),
    (Site::Ln1Normalized, "ln1.hook_normalized"),
    (Site::Q, "attn.hook_q"),
    (Site::K, "attn.hook_k"),
    (Site::V, "attn.hook_v"),
    (Site::QNormScale, "attn.q_norm.hook_scale"),
    (Site::QNormNormalized, "attn.q_norm.hook_normalized"),
    (Site::KNormScale, "attn.k_norm.hook_scale"),
    (Site::KNormNormalized, "attn.k_norm.hook_normalized"),
    (Site::RotQ, "attn.hook_rot_q"),
    (Site::RotK, "attn.hook_rot_k"),
    (Site::AttnScores, "attn.hook_attn_scores"),
    (Site::Pattern, "attn.hook_pattern"),
    (Site::Z, "attn.hook_z"),
    (Site::Result, "attn.hook_result"),
    (Site::Ln1PostScale, "ln1_post.hook_scale"),
    (Site::Ln1PostNormalized, "ln1_post.hook_normalized"),
    (Site::AttnOut, "hook_attn_out"),
    (Site::ResidMid, "hook_resid_mid"),
    (Site::MlpIn, "hook_mlp_in"),
    (Site::Ln2Scale, "ln2.hook_scale"),
    (Site::Ln2Normalized, "ln2.hook_normalized"),
    (Site::Pre, "mlp.hook_pre"),
    (Site::PreLinear, "mlp.hook_pre_linear"),
    (Site::Mid, "mlp.hook_mid"),
    (Site::MlpLnScale, "mlp.ln.hook_scale"),
    (Site::MlpLnNormalized, "mlp.ln.hook_normalized"),
    (Site::Post, "mlp.hook_post"),
    (Site::ExpertWeights, "mlp.hook_expert_weights"),
    (Site::ExpertIndices, "mlp.hook_expert_indices"),
    (Site::Ln2PostScale, "ln2_post.hook_scale"),
    (Site::Ln2PostNormalized, "ln2_post.hook_normalized"),
    (Site::MlpOut, "hook_mlp_out"),
    (Site::ResidPost, "hook_resid_post"),
];

/// The places outside the blocks and experts, in firing order, with their names.
pub(crate) const OUTSIDE: [(HookPoint, &str); 9] = [
    (HookPoint::Tokens, "hook_tokens"),
    (HookPoint::EmbedLnScale, "embed.ln.hook_scale"),
    (HookPoint::EmbedLnNormalized, "embed.ln.hook_normalized"),
    (HookPoint::Embed, "hook_embed"),
    (HookPoint::PosEmbed, "hook_pos_embed"),
    (HookPoint::LnFinalScale, "ln_final.hook_scale"),
    (HookPoint::LnFinalNormalized, "ln_final.hook_normalized"),
    (HookPoint::UnembedIn, "unembed.hook_in"),
    (HookPoint::UnembedOut, "unembed.hook_out"),
];

/// The places within an expert, with their names below `blocks.L.mlp.experts.E.`.
pub(crate) const EXPERT_SITES: [(ExpertSite, &str); 3] =
    [(ExpertSite::Gate, "hook_gate"), (ExpertSite::Pre, "hook_pre"), (ExpertSite::Post, "hook_post")];

impl Site {
    /// The name below `blocks.L.`.
    pub fn name(self) -> &'static str {
        SITES[self as usize].1
    }
}

impl HookPoint {
    /// The block that this place is in.
    pub fn layer(self) -> Option<usize> {
        match self {
            HookPoint::Block(layer, _) | HookPoint::Expert { layer, .. } => Some(layer),
            _ => None,
        }
    }

    /// Which dimension of the activation means what.
    pub fn axes(self) -> Axes {
        use Site::*;
        let axes = |batch, position, head| Axes { batch, position, head };
        match self {
            HookPoint::Expert { .. } => axes(None, None, None),
            HookPoint::Block(_, AttnScores | Pattern) => axes(Some(0), Some(2), Some(1)),
            HookPoint::Block(_, AttnIn | QInput | KInput | VInput | Q | K | V | RotQ | RotK | Z | Result) => {
                axes(Some(0), Some(1), Some(2))
            }
            _ => axes(Some(0), Some(1), None),
        }
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            HookPoint::Block(layer, site) => write!(f, "blocks.{layer}.{}", site.name()),
            HookPoint::Expert { layer, expert, site } => {
                write!(f, "blocks.{layer}.mlp.experts.{expert}.{}", EXPERT_SITES[site as usize].1)
            }
            outside => {
                let entry = OUTSIDE.iter().find(|(point, _)| *point == outside);
                f.write_str(entry.map_or("", |(_, name)| name))
            }
        }
    }
}

macro_rules! block_points {
    ($($(#[$doc:meta])* $name:ident => $site:ident,)*) => {
        $(
            $(#[$doc])*
            pub const fn $name(layer: usize) -> HookPoint {
                HookPoint::Block(layer, Site::$site)
            }
        )*
    };
}

block_points! {
    /// `blocks.L.hook_resid_pre`
    resid_pre => ResidPre,
    /// `blocks.L.hook_attn_in`
    attn_in => AttnIn,
    /// `blocks.L.hook_q_input`
    q_input => QInput,
    /// `blocks.L.hook_k_input`
    k_input => KInput,
    /// `blocks.L.hook_v_input`
    v_input => VInput,
    /// `blocks.L.ln1.hook_scale`
    ln1_scale => Ln1Scale,
    /// `blocks.L.ln1.hook_normalized`
    ln1_normalized => Ln1Normalized,
    /// `blocks.L.attn.hook_q`
    q => Q,
    /// `blocks.L.attn.hook_k`
    k => K,
    /// `blocks.L.attn.hook_v`
    v => V,
    /// `blocks.L.attn.hook_rot_q`
    rot_q => RotQ,
    /// `blocks.L.attn.hook_rot_k`
    rot_k => RotK,
    /// `blocks.L.attn.hook_attn_scores`
    attn_scores => AttnScores,
    /// `blocks.L.attn.hook_pattern`
    pattern => Pattern,
    /// `blocks.L.attn.hook_z`
    z => Z,
    /// `blocks.L.attn.hook_result`
    result => Result,
    /// `blocks.L.hook_attn_out`
    attn_out => AttnOut,
    /// `blocks.L.hook_resid_mid`
    resid_mid => ResidMid,
    /// `blocks.L.hook_mlp_in`
    mlp_in => MlpIn,
    /// `blocks.L.ln2.hook_scale`
    ln2_scale => Ln2Scale,
    /// `blocks.L.ln2.hook_normalized`
    ln2_normalized => Ln2Normalized,
    /// `blocks.L.mlp.hook_pre`
    pre => Pre,
    /// `blocks.L.mlp.hook_pre_linear`
    pre_linear => PreLinear,
    /// `blocks.L.mlp.hook_mid`
    mid => Mid,
    /// `blocks.L.mlp.hook_post`
    post => Post,
    /// `blocks.L.hook_mlp_out`
    mlp_out => MlpOut,
    /// `blocks.L.hook_resid_post`
    resid_post => ResidPost,
}

/// `hook_embed`
pub const fn embed() -> HookPoint {
    HookPoint::Embed
}

/// `hook_pos_embed`
pub const fn pos_embed() -> HookPoint {
    HookPoint::PosEmbed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_in_the_order_of_their_enums() {
        for (i, (site, _)) in SITES.iter().enumerate() {
            assert_eq!(*site as usize, i);
        }
        for (i, (site, _)) in EXPERT_SITES.iter().enumerate() {
            assert_eq!(*site as usize, i);
        }
    }
}
