//! Which hook points a model has, and which of them fire unasked.

use super::point::{ExpertSite, HookPoint, Site, OUTSIDE, SITES};
use crate::config::{Activation, NormPosition, Normalization, PositionalEmbedding};
use crate::Config;

/// Whether a model has a hook point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It fires in every run.
    Default,
    /// It is computed when something asks for it by name.
    OnRequest,
    /// The model has none, for this reason.
    Absent(&'static str),
}

/// Whether a model of this shape has `point`.
pub(crate) fn presence(point: HookPoint, config: &Config) -> Presence {
    use Presence::{Absent, Default, OnRequest};
    let norm = config.normalization_type() != Normalization::None;
    let only_if = |has: bool, why| if has { Default } else { Absent(why) };
    match point {
        HookPoint::Tokens => OnRequest,
        HookPoint::EmbedLnScale | HookPoint::EmbedLnNormalized => {
            only_if(config.post_embedding_ln(), "it has no norm after the embedding")
        }
        HookPoint::PosEmbed => only_if(config.has_w_pos(), "it has no learned position embeddings"),
        HookPoint::LnFinalScale | HookPoint::LnFinalNormalized => {
            only_if(config.norms.last() != Normalization::None, "it has no norms")
        }
        HookPoint::Embed | HookPoint::UnembedIn | HookPoint::UnembedOut => Default,
        HookPoint::Expert { expert, site, .. } => match config.experts() {
            None => Absent("its MLPs are no mixture of experts"),
            Some(moe) if expert >= moe.num_experts => Absent("it has fewer experts"),
            Some(_) if site == ExpertSite::Pre || config.gated_mlp() || site == ExpertSite::Post => Default,
            Some(_) => Absent("its experts have no gate"),
        },
        HookPoint::Block(_, site) => in_block(site, config, norm),
    }
}

fn in_block(site: Site, config: &Config, norm: bool) -> Presence {
    use Presence::{Absent, Default, OnRequest};
    use Site::*;
    let only_if = |has: bool, why| if has { Default } else { Absent(why) };
    let post = config.norm_position() == NormPosition::BeforeAndAfter;
    let dense = !config.attn_only() && config.experts().is_none();
    let why_not_dense = if config.attn_only() { "it has no MLPs" } else { "its MLPs are mixtures of experts" };
    match site {
        ResidPre | Q | K | V | AttnScores | Pattern | Z | AttnOut | ResidPost => Default,
        AttnIn | QInput | KInput | VInput | Result => OnRequest,
        Ln1Scale | Ln1Normalized => only_if(norm, "it has no norms"),
        Ln1PostScale | Ln1PostNormalized => only_if(norm && post, "it has no norm after attention of that name"),
        Ln2PostScale | Ln2PostNormalized => {
            only_if(norm && post && !config.attn_only(), "it has no norm after the MLP of that name")
        }
        QNormScale | QNormNormalized | KNormScale | KNormNormalized => {
            only_if(config.qk_norm().is_some(), "its queries and keys are not normalised")
        }
        RotQ | RotK => {
            only_if(config.positional_embedding_type() == PositionalEmbedding::Rotary, "its positions are not rotary")
        }
        ResidMid if config.attn_only() => Absent("it has no MLPs, so resid_post follows attention"),
        ResidMid => only_if(!config.parallel_attn_mlp, "its attention and MLP run in parallel; both read resid_pre"),
        MlpIn if config.attn_only() => Absent("it has no MLPs"),
        MlpIn => OnRequest,
        MlpOut => only_if(!config.attn_only(), "it has no MLPs"),
        Ln2Scale | Ln2Normalized if config.attn_only() => Absent("it has no MLPs"),
        Ln2Scale | Ln2Normalized => only_if(norm, "it has no norms"),
        Pre | Post => only_if(dense, why_not_dense),
        PreLinear if !dense => Absent(why_not_dense),
        PreLinear => only_if(config.gated_mlp(), "its MLPs are not gated"),
        Mid | MlpLnScale | MlpLnNormalized if !dense => Absent(why_not_dense),
        Mid | MlpLnScale | MlpLnNormalized => {
            only_if(config.act_fn() == Some(Activation::SoluLn), "its activation function has no norm of its own")
        }
        ExpertWeights | ExpertIndices => only_if(config.experts().is_some(), "its MLPs are no mixture of experts"),
    }
}

/// Every hook point of a model, those computed on request included, in firing order (but for norms
/// that stand after their sublayer).
pub(crate) fn all_points(config: &Config) -> impl Iterator<Item = HookPoint> + '_ {
    let before = OUTSIDE[..5].iter().map(|(point, _)| *point);
    let after = OUTSIDE[5..].iter().map(|(point, _)| *point);
    let blocks = (0..config.n_layers).flat_map(move |layer| {
        let (to_experts, from_experts) = SITES.split_at(Site::ExpertIndices as usize + 1);
        let sites = |sites: &'static [(Site, &str)]| sites.iter().map(move |(site, _)| HookPoint::Block(layer, *site));
        let experts = config.experts().into_iter().flat_map(move |moe| {
            (0..moe.num_experts).flat_map(move |expert| {
                [ExpertSite::Gate, ExpertSite::Pre, ExpertSite::Post].map(|site| HookPoint::Expert {
                    layer,
                    expert,
                    site,
                })
            })
        });
        sites(to_experts).chain(experts).chain(sites(from_experts))
    });
    before.chain(blocks).chain(after).filter(move |point| !matches!(presence(*point, config), Presence::Absent(_)))
}
