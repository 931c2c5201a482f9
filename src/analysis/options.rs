//! What each analysis can be asked: small builders with TransformerLens' defaults. Each has what its method means, and nothing else.

use tch::Tensor;

use super::window::WindowOptions;
use crate::component::Target;
use crate::tensor::slice::Slice;
use crate::text::positions::Positions;

/// Which sublayers a decomposition has rows of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Attention and MLPs.
    #[default]
    All,
    /// Attention only.
    Attn,
    /// MLPs only.
    Mlp,
}

/// At which scale [`accumulated_resid`](crate::ActivationCache::accumulated_resid) normalises its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scale {
    /// The target's, as it was in the run: rows are compared as parts of what the target read.
    #[default]
    Target,
    /// Each row's own: rows are read as if the model ended there, as a logit lens does.
    Own,
}

/// What [`decompose_resid`](crate::ActivationCache::decompose_resid) is asked.
#[derive(Debug)]
pub struct DecomposeOptions {
    pub(crate) target: Target,
    pub(crate) apply_ln: bool,
    pub(crate) window: WindowOptions,
    pub(crate) mode: Mode,
    pub(crate) incl_embeds: bool,
}

impl Default for DecomposeOptions {
    fn default() -> Self {
        DecomposeOptions {
            target: Target::default(),
            apply_ln: false,
            window: WindowOptions::default(),
            mode: Mode::All,
            incl_embeds: true,
        }
    }
}

impl DecomposeOptions {
    /// Which sublayers get a row.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }

    /// Whether the embeddings get rows; yes unless said otherwise.
    pub fn incl_embeds(mut self, yes: bool) -> Self {
        self.incl_embeds = yes;
        self
    }
}

/// What [`accumulated_resid`](crate::ActivationCache::accumulated_resid) is asked.
#[derive(Debug, Default)]
pub struct AccumulateOptions {
    pub(crate) target: Target,
    pub(crate) apply_ln: bool,
    pub(crate) window: WindowOptions,
    pub(crate) incl_mid: bool,
    pub(crate) scale: Option<Scale>,
}

impl AccumulateOptions {
    /// At which scale rows are normalised, [`Scale::Target`] unless said otherwise. An error where `apply_ln` is not asked for.
    pub fn scale(mut self, scale: Scale) -> Self {
        self.scale = Some(scale);
        self
    }
}

/// What [`logit_lens`](crate::ActivationCache::logit_lens) is asked.
///
/// The target says up to where the stream is read: whatever the rows lead up to, each is read by the unembedding.
#[derive(Debug, Default)]
pub struct LensOptions {
    pub(crate) target: Target,
    pub(crate) window: WindowOptions,
    pub(crate) incl_mid: bool,
}

/// What [`stack_head_results`](crate::ActivationCache::stack_head_results) is asked, and, given to
/// [`logit_attrs`](crate::ActivationCache::logit_attrs) in place of a stack, an attribution by heads.
#[derive(Debug, Default)]
pub struct HeadOptions {
    pub(crate) target: Target,
    pub(crate) apply_ln: bool,
    pub(crate) window: WindowOptions,
    pub(crate) incl_remainder: bool,
    pub(crate) project: Option<Tensor>,
}

/// What [`stack_neuron_results`](crate::ActivationCache::stack_neuron_results) is asked, and, given to
/// [`logit_attrs`](crate::ActivationCache::logit_attrs) in place of a stack, an attribution by neurons.
#[derive(Debug, Default)]
pub struct NeuronOptions {
    pub(crate) target: Target,
    pub(crate) apply_ln: bool,
    pub(crate) window: WindowOptions,
    pub(crate) neurons: Slice,
    pub(crate) incl_remainder: bool,
    pub(crate) project: Option<Tensor>,
}

/// What [`get_neuron_results`](crate::ActivationCache::get_neuron_results) is asked.
#[derive(Debug, Default)]
pub struct NeuronResultOptions {
    pub(crate) window: WindowOptions,
    pub(crate) neurons: Slice,
    pub(crate) project: Option<Tensor>,
}

/// What [`stack_feature_results`](crate::ActivationCache::stack_feature_results) is asked, and, given to
/// [`logit_attrs`](crate::ActivationCache::logit_attrs) in place of a stack, an attribution by features of dictionaries.
#[derive(Debug, Default)]
pub struct FeatureOptions {
    pub(crate) target: Target,
    pub(crate) apply_ln: bool,
    pub(crate) window: WindowOptions,
    pub(crate) project: Option<Tensor>,
}

/// What [`get_full_resid_decomposition`](crate::ActivationCache::get_full_resid_decomposition) is asked, and, given to
/// [`logit_attrs`](crate::ActivationCache::logit_attrs) in place of a stack, an attribution by everything.
#[derive(Debug)]
pub struct FullOptions {
    pub(crate) target: Target,
    pub(crate) apply_ln: bool,
    pub(crate) window: WindowOptions,
    pub(crate) expand_neurons: bool,
    pub(crate) project: Option<Tensor>,
}

impl Default for FullOptions {
    fn default() -> Self {
        FullOptions {
            target: Target::default(),
            apply_ln: false,
            window: WindowOptions::default(),
            expand_neurons: true,
            project: None,
        }
    }
}

impl FullOptions {
    /// Whether MLPs are rows of neurons, or of one output each; neurons unless said otherwise.
    pub fn expand_neurons(mut self, yes: bool) -> Self {
        self.expand_neurons = yes;
        self
    }
}

/// A setting that several types have.
macro_rules! setting {
    (window: $($name:ident),*) => {
        $(impl $name {
            /// TransformerLens' defaults.
            pub fn new() -> Self {
                Self::default()
            }

            /// Which positions, as token columns; all that the run kept unless said otherwise. An index, the last token and one
            /// position for each row drop the axis.
            pub fn pos(mut self, positions: impl Into<Positions>) -> Self {
                self.window.pos = positions.into();
                self
            }

            /// Which rows of the batch; all unless said otherwise. An index drops the axis.
            pub fn batch(mut self, rows: impl Into<Slice>) -> Self {
                self.window.batch = rows.into();
                self
            }
        })*
    };
    (target: $($name:ident),*) => {
        $(impl $name {
            /// The input that rows lead up to; the unembedding's unless said otherwise.
            pub fn target(mut self, target: Target) -> Self {
                self.target = target;
                self
            }
        })*
    };
    (apply_ln: $($name:ident),*) => {
        $(impl $name {
            /// Whether rows pass through the target's norm, at the scale that it had in the run; no unless said otherwise.
            pub fn apply_ln(mut self, yes: bool) -> Self {
                self.apply_ln = yes;
                self
            }
        })*
    };
    (incl_mid: $($name:ident),*) => {
        $(impl $name {
            /// Whether the stream between attention and MLP gets rows, where there is one; no unless said otherwise.
            pub fn incl_mid(mut self, yes: bool) -> Self {
                self.incl_mid = yes;
                self
            }
        })*
    };
    (neurons: $($name:ident),*) => {
        $(impl $name {
            /// Which neurons of each layer, or of each expert; all unless said otherwise.
            pub fn neurons(mut self, neurons: impl Into<Slice>) -> Self {
                self.neurons = neurons.into();
                self
            }
        })*
    };
    (incl_remainder: $($name:ident),*) => {
        $(impl $name {
            /// Whether what the other rows leave out of the stream gets a row; no unless said otherwise.
            pub fn incl_remainder(mut self, yes: bool) -> Self {
                self.incl_remainder = yes;
                self
            }
        })*
    };
    (project: $($name:ident),*) => {
        $(impl $name {
            /// Projects each row onto these directions, `[d_model]` or `[d_model, k]`, without forming it: the last axis is `k`, or
            /// absent. A normalised row is projected after its norm.
            pub fn project(mut self, directions: &Tensor) -> Self {
                self.project = Some(directions.shallow_clone());
                self
            }
        })*
    };
}

setting!(window: DecomposeOptions, AccumulateOptions, LensOptions, HeadOptions, NeuronOptions, NeuronResultOptions, FullOptions, FeatureOptions);
setting!(target: DecomposeOptions, AccumulateOptions, LensOptions, HeadOptions, NeuronOptions, FullOptions, FeatureOptions);
setting!(apply_ln: DecomposeOptions, AccumulateOptions, HeadOptions, NeuronOptions, FullOptions, FeatureOptions);
setting!(incl_mid: AccumulateOptions, LensOptions);
setting!(neurons: NeuronOptions, NeuronResultOptions);
setting!(incl_remainder: HeadOptions, NeuronOptions);
setting!(project: HeadOptions, NeuronOptions, NeuronResultOptions, FullOptions, FeatureOptions);
