//! Which hook points a model has, and which of them fire unasked.

use super::point::HookPoint;
use super::shape::dictionary_at;
use super::site::{Place, Site};
use crate::config::{Activation, NormPosition, Normalization, PositionalEmbedding, Stack};
use crate::layer::Layer;
use crate::Config;

/// Whether a model has a hook point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It fires in every run.
    Default,
    /// It is computed when something asks for it by name.
    OnRequest,
    /// The model does not have it, for this reason.
    Absent(&'static str),
}

use Presence::{Absent, Default, OnRequest};

/// Whether a model of this shape has `point`, whose layer counts from the start.
pub(crate) fn presence(point: HookPoint, config: &Config) -> Presence {
    if point.spliced_at().is_some() {
        return match dictionary_at(config, point) {
            None => Absent("no dictionary is attached there (`HookedTransformer::with_saes`)"),
            Some(dictionary) if dictionary.error_term => Default,
            Some(_) => (point.site().row().presence)(config, 0),
        };
    }
    let is_first_norm = matches!(point.site(), Site::Ln1Scale | Site::Ln1Normalized) && point.layer() == Some(0);
    if is_first_norm && config.norms.bare_first_attention {
        return Absent("its first attention reads the stream without a norm");
    }
    match (point.expert(), config.experts()) {
        (Some(expert), Some(moe)) if expert >= moe.num_experts => Absent("it has fewer experts"),
        _ => (point.site().row().presence)(config, point.layer().unwrap_or(0)),
    }
}

/// The stream before the first layer, or what tokens give to it where nothing but positions is added.
pub(crate) fn embedding(config: &Config) -> HookPoint {
    match config.has_full_embed() {
        true => super::full_embed(),
        false => super::embed(),
    }
}

/// The stream after a layer, as what comes next reads it.
pub(crate) fn stream_after(config: &Config, layer: impl Into<Layer>) -> HookPoint {
    match config.norm_position() {
        NormPosition::InStream => super::normalized_resid_post(layer),
        _ => super::resid_post(layer),
    }
}

/// Every hook point of a model, those computed on request included, in firing order.
pub(crate) fn all_points(config: &Config) -> impl Iterator<Item = HookPoint> + '_ {
    let outside = |place| Site::at(place).map(|site| HookPoint::outside(site.at_its_turn(config)));
    let layers = (0..config.n_layers).flat_map(move |layer| {
        let layer = Layer::from(layer);
        let sites = move |before_experts: bool| {
            Site::at(Place::Layer)
                .filter(move |site| (*site < Site::ExpertGate) == before_experts)
                .map(move |site| HookPoint::in_layer(layer, site.at_its_turn(config)))
        };
        let n_experts = layer.index().and_then(|layer| config.experts_of(layer)).map_or(0, |moe| moe.num_experts);
        let experts = (0..n_experts)
            .flat_map(move |expert| Site::at(Place::Expert).map(move |site| HookPoint::in_expert(layer, expert, site)));
        sites(true).chain(experts).chain(sites(false))
    });
    let points = outside(Place::Before).chain(layers).chain(outside(Place::After));
    let points = points.map(move |point| point.with_stack(config.stack));
    let points = points.flat_map(move |point| {
        let attached = config.dictionaries.at(point.layer(), point.site().name()).is_some() && point.expert().is_none();
        let steps =
            attached.then(|| Site::at(Place::Dictionary).map(move |site| HookPoint::of_dictionary(point, site)));
        steps.into_iter().flatten().chain([point])
    });
    points.filter(move |point| !matches!(presence(*point, config), Absent(_)))
}

// --- the rules that the table of sites names --------------------------------------------------------------------------

const NO_NORMS: &str = "it has no norms";
const NO_MLPS: &str = "it has no MLPs";
const NO_MIXTURE: &str = "its MLP there is not a mixture of experts";

fn only_if(has: bool, why_not: &'static str) -> Presence {
    if has {
        Default
    } else {
        Absent(why_not)
    }
}

pub(super) fn always(_: &Config, _: usize) -> Presence {
    Default
}

pub(super) fn on_request(_: &Config, _: usize) -> Presence {
    OnRequest
}

pub(super) fn embed_norm(config: &Config, _: usize) -> Presence {
    only_if(config.post_embedding_ln(), "it has no norm after the embedding")
}

pub(super) fn learned_positions(config: &Config, _: usize) -> Presence {
    only_if(config.has_w_pos(), "it has no learned position embeddings")
}

pub(super) fn head_norm(config: &Config, _: usize) -> Presence {
    only_if(config.head.is_some_and(|head| head.norm), "it has no prediction head with a norm")
}

pub(super) fn token_types(config: &Config, _: usize) -> Presence {
    only_if(config.embed.token_types > 0, "its tokens have no types")
}

pub(super) fn full_embed(config: &Config, _: usize) -> Presence {
    only_if(config.has_full_embed(), "its stream begins as the sum of the embeddings of tokens and positions")
}

pub(super) fn norm_of_stream(config: &Config, layer: usize) -> Presence {
    match norm(config, layer) {
        Default => only_if(config.norm_position() == NormPosition::InStream, "its norms are not of the stream itself"),
        absent => absent,
    }
}

pub(super) fn rotary(config: &Config, _: usize) -> Presence {
    only_if(config.positional_embedding_type() == PositionalEmbedding::Rotary, "its positions are not rotary")
}

pub(super) fn norm(config: &Config, _: usize) -> Presence {
    only_if(config.normalization_type() != Normalization::None, NO_NORMS)
}

pub(super) fn final_norm(config: &Config, _: usize) -> Presence {
    only_if(config.norms.last() != Normalization::None, NO_NORMS)
}

const OTHER_KEYS: &str = "the layer looks at keys and values of an earlier layer";

/// Keys and values, which some layers have from an earlier one.
pub(super) fn own_keys(config: &Config, layer: usize) -> Presence {
    only_if(config.shares_keys_of(layer).is_none(), OTHER_KEYS)
}

pub(super) fn own_keys_apart(config: &Config, layer: usize) -> Presence {
    match own_keys(config, layer) {
        Default => heads_apart(config, layer),
        absent => absent,
    }
}

pub(super) fn rotary_keys(config: &Config, layer: usize) -> Presence {
    match own_keys(config, layer) {
        Default => rotary(config, layer),
        absent => absent,
    }
}

pub(super) fn key_norm(config: &Config, layer: usize) -> Presence {
    match own_keys(config, layer) {
        Default => qk_norm(config, layer),
        absent => absent,
    }
}

pub(super) fn value_norm(config: &Config, layer: usize) -> Presence {
    match own_keys(config, layer) {
        Default => only_if(config.attention.value_norm.is_some(), "its values are not normalised"),
        absent => absent,
    }
}

pub(super) fn separate_norms(config: &Config, layer: usize) -> Presence {
    only_if(config.has_separate_norms(layer), "it has no norms of the experts and the shared expert there")
}

pub(super) fn layer_embedding(config: &Config, _: usize) -> Presence {
    only_if(config.stream.layer_embedding.is_some(), "it has no per-layer embeddings")
}

pub(super) fn layer_embedding_on_request(config: &Config, layer: usize) -> Presence {
    match layer_embedding(config, layer) {
        Default => OnRequest,
        absent => absent,
    }
}

pub(super) fn qk_norm(config: &Config, layer: usize) -> Presence {
    only_if(config.qk_norm_of(layer).is_some(), "its queries and keys are not normalised")
}

pub(super) fn z_norm(config: &Config, _: usize) -> Presence {
    only_if(config.attention.z_norm.is_some(), "it has no norm between heads and `W_O`")
}

pub(super) fn attn_post_norm(config: &Config, _: usize) -> Presence {
    let has =
        config.norm_position() == NormPosition::BeforeAndAfter && config.normalization_type() != Normalization::None;
    only_if(has, "it has no norm after attention of that name")
}

pub(super) fn mlp_post_norm(config: &Config, layer: usize) -> Presence {
    match mlp(config, layer) {
        Default => {
            let has = config.has_norm_after_mlp(layer) && config.normalization_type() != Normalization::None;
            only_if(has, "it has no norm after the MLP of that name there")
        }
        absent => absent,
    }
}

pub(super) fn resid_mid(config: &Config, _: usize) -> Presence {
    if config.attn_only() {
        return Absent("it has no MLPs, so resid_post follows attention");
    }
    only_if(!config.parallel_attn_mlp, "its attention and MLP run in parallel; both read resid_pre")
}

pub(super) fn mlp(config: &Config, _: usize) -> Presence {
    only_if(!config.attn_only(), NO_MLPS)
}

pub(super) fn mlp_on_request(config: &Config, layer: usize) -> Presence {
    match mlp(config, layer) {
        Default => OnRequest,
        absent => absent,
    }
}

pub(super) fn mlp_norm(config: &Config, layer: usize) -> Presence {
    match mlp(config, layer) {
        Default => norm(config, layer),
        absent => absent,
    }
}

pub(super) fn dense(config: &Config, layer: usize) -> Presence {
    match mlp(config, layer) {
        Default => only_if(config.neurons_of(layer) > 0, "its MLP there is a mixture of experts without a shared one"),
        absent => absent,
    }
}

pub(super) fn dense_gated(config: &Config, layer: usize) -> Presence {
    match dense(config, layer) {
        Default => only_if(config.gated_mlp(), "its MLPs are not gated"),
        absent => absent,
    }
}

pub(super) fn neuron_norm(config: &Config, layer: usize) -> Presence {
    match dense(config, layer) {
        Default => {
            let norm =
                config.mlp.as_ref().is_some_and(|mlp| mlp.activation == Activation::SoluLn || mlp.norm.is_some());
            only_if(norm, "its neurons have no norm of their own")
        }
        absent => absent,
    }
}

pub(super) fn mixture(config: &Config, layer: usize) -> Presence {
    only_if(config.experts_of(layer).is_some(), NO_MIXTURE)
}

pub(super) fn gated_shared_expert(config: &Config, layer: usize) -> Presence {
    let gated = config.experts_of(layer).and_then(|experts| experts.shared).is_some_and(|shared| shared.gated);
    only_if(gated, "it has no shared expert with a gate there")
}

/// Cross-attention.
pub(super) fn cross(config: &Config, _: usize) -> Presence {
    only_if(config.attention.cross.is_some(), "it has no cross-attention")
}

pub(super) fn cross_on_request(config: &Config, layer: usize) -> Presence {
    match cross(config, layer) {
        Default => OnRequest,
        absent => absent,
    }
}

pub(super) fn cross_norm(config: &Config, layer: usize) -> Presence {
    match cross(config, layer) {
        Default => norm(config, layer),
        absent => absent,
    }
}

pub(super) fn cross_post_norm(config: &Config, layer: usize) -> Presence {
    match cross(config, layer) {
        Default => attn_post_norm(config, layer),
        absent => absent,
    }
}

pub(super) fn unembedding(config: &Config, _: usize) -> Presence {
    only_if(config.stack != Stack::Encoder, "it is an encoder, without an unembedding")
}

pub(super) fn head_gate(config: &Config, _: usize) -> Presence {
    only_if(config.attention.gate.is_some(), "its heads have no gates")
}

pub(super) fn head_experts(config: &Config, _: usize) -> Presence {
    only_if(config.attention.experts.is_some(), "no router chooses its heads")
}

/// Heads read different streams on request.
pub(super) fn heads_apart(config: &Config, _: usize) -> Presence {
    match config.attention.experts {
        None => OnRequest,
        Some(_) => Absent("a router chooses a token's heads from the stream that they all read"),
    }
}
