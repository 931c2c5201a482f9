//! [`Component`], the label of a row of a decomposition, and [`Target`], the input that the rows of a decomposition sum to.

mod sublayer;
mod target;

use std::fmt;
use std::sync::Arc;

pub(crate) use sublayer::Sublayer;
pub(crate) use target::Reach;
pub use target::Target;

use crate::hook::{HookPoint, Site};

/// The component of the model that a row of a stack belongs to. Prints as TransformerLens' label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Component {
    /// `embed`
    Embed,
    /// `pos_embed`
    PosEmbed,
    /// `token_type_embed`: the embeddings of the tokens' types.
    TokenTypeEmbed,
    /// `3_attn_out`
    AttnOut(usize),
    /// `3_mlp_out`
    MlpOut(usize),
    /// `3_ple_out`: what the per-layer embedding added.
    PleOut(usize),
    /// `L3H1`
    Head {
        /// The layer.
        layer: usize,
        /// The query head.
        head: usize,
    },
    /// `3_cross_attn_out`, in a decoder.
    CrossAttnOut(usize),
    /// `L3C1`: a head of a decoder's cross-attention.
    CrossHead {
        /// The layer.
        layer: usize,
        /// The query head.
        head: usize,
    },
    /// `L3N100`
    Neuron {
        /// The layer.
        layer: usize,
        /// The neuron.
        neuron: usize,
    },
    /// `L3E2N100`
    ExpertNeuron {
        /// The layer.
        layer: usize,
        /// The expert.
        expert: usize,
        /// The neuron.
        neuron: usize,
    },
    /// `L3F100`: a feature of the dictionary that reconstructs what the MLP of layer 3 writes; `L3F100.attn_out` of another one, and
    /// `L3F100→5` what a feature of a cross-layer transcoder writes to another layer.
    Feature {
        /// The activation that its dictionary reconstructs.
        hook: HookPoint,
        /// The feature.
        feature: usize,
        /// The later activation to which it writes, of a cross-layer transcoder.
        to: Option<HookPoint>,
    },
    /// `3_mlp_out_bias`: `b_dec` of the dictionary that reconstructs this activation.
    DictionaryBias(HookPoint),
    /// `3_mlp_out_skip`: what its skip connection adds.
    DictionarySkip(HookPoint),
    /// `3_mlp_out_error`: what its features, bias and skip connection leave out of what flowed on.
    DictionaryError(HookPoint),
    /// `bias`: the sum of all biases that were added to the stream.
    Bias,
    /// `remainder`: the stream minus all other rows.
    Remainder,
    /// `intervention`: the changes by hooks that no other row contains.
    Intervention,
    /// `3_pre`: the whole stream before block 3.
    ResidPre(usize),
    /// `3_mid`: the whole stream between attention and MLP of block 3.
    ResidMid(usize),
    /// `3_mid_cross`: the whole stream between cross-attention and MLP of block 3.
    ResidMidCross(usize),
    /// `final_post`: the whole stream after the last block.
    FinalPost,
    /// A sum of several rows, under the name of the group.
    Group(Arc<str>),
}

impl Component {
    /// The layer of the component; `None` for components outside the layers.
    pub fn layer(&self) -> Option<usize> {
        match self {
            Component::AttnOut(layer)
            | Component::MlpOut(layer)
            | Component::CrossAttnOut(layer)
            | Component::PleOut(layer)
            | Component::Head { layer, .. }
            | Component::CrossHead { layer, .. }
            | Component::Neuron { layer, .. }
            | Component::ExpertNeuron { layer, .. }
            | Component::ResidPre(layer)
            | Component::ResidMid(layer)
            | Component::ResidMidCross(layer) => Some(*layer),
            Component::Feature { hook, .. }
            | Component::DictionaryBias(hook)
            | Component::DictionarySkip(hook)
            | Component::DictionaryError(hook) => hook.layer(),
            _ => None,
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Component::Embed => f.pad("embed"),
            Component::PosEmbed => f.pad("pos_embed"),
            Component::TokenTypeEmbed => f.pad("token_type_embed"),
            Component::Bias => f.pad("bias"),
            Component::Remainder => f.pad("remainder"),
            Component::Intervention => f.pad("intervention"),
            Component::FinalPost => f.pad("final_post"),
            Component::AttnOut(layer) => f.pad(&format!("{layer}_attn_out")),
            Component::MlpOut(layer) => f.pad(&format!("{layer}_mlp_out")),
            Component::PleOut(layer) => f.pad(&format!("{layer}_ple_out")),
            Component::Head { layer, head } => f.pad(&format!("L{layer}H{head}")),
            Component::CrossAttnOut(layer) => f.pad(&format!("{layer}_cross_attn_out")),
            Component::CrossHead { layer, head } => f.pad(&format!("L{layer}C{head}")),
            Component::Neuron { layer, neuron } => f.pad(&format!("L{layer}N{neuron}")),
            Component::ExpertNeuron { layer, expert, neuron } => f.pad(&format!("L{layer}E{expert}N{neuron}")),
            Component::ResidPre(layer) => f.pad(&format!("{layer}_pre")),
            Component::ResidMid(layer) => f.pad(&format!("{layer}_mid")),
            Component::ResidMidCross(layer) => f.pad(&format!("{layer}_mid_cross")),
            Component::Feature { hook, feature, to } => {
                let place = match hook.site() {
                    Site::MlpOut | Site::MlpHookOut => String::new(),
                    site => format!(".{}", short_name(site)),
                };
                let to = to.and_then(HookPoint::layer).map_or(String::new(), |layer| format!("→{layer}"));
                f.pad(&format!("L{}F{feature}{place}{to}", hook.layer().unwrap_or(0)))
            }
            Component::DictionaryBias(hook) => f.pad(&format!("{}_bias", place_name(*hook))),
            Component::DictionarySkip(hook) => f.pad(&format!("{}_skip", place_name(*hook))),
            Component::DictionaryError(hook) => f.pad(&format!("{}_error", place_name(*hook))),
            Component::Group(name) => f.pad(name),
        }
    }
}

/// A site's name without its `hook_`.
fn short_name(site: Site) -> &'static str {
    site.name().strip_prefix("hook_").unwrap_or(site.name())
}

/// A layer and what is there: `3_mlp_out`.
fn place_name(hook: HookPoint) -> String {
    match hook.layer() {
        Some(layer) => format!("{layer}_{}", short_name(hook.site())),
        None => short_name(hook.site()).into(),
    }
}
