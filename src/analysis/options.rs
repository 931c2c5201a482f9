//! What each analysis can be asked: small builders with TransformerLens' defaults.

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

macro_rules! options {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name {
            pub(crate) target: Target,
            pub(crate) apply_ln: bool,
            pub(crate) window: WindowOptions,
            $(pub(crate) $field: $type,)*
        }

        impl Default for $name {
            fn default() -> Self {
                $name { target: Target::Unembed, apply_ln: false, window: WindowOptions::default(), $($field: $default,)* }
            }
        }

        impl $name {
            /// TransformerLens' defaults.
            pub fn new() -> Self {
                Self::default()
            }

            /// The input that rows add up to; the unembedding's unless said otherwise.
            pub fn target(mut self, target: Target) -> Self {
                self.target = target;
                self
            }

            /// Whether rows pass through the target's norm, at the scale that it had in the run; no unless said otherwise.
            pub fn apply_ln(mut self, yes: bool) -> Self {
                self.apply_ln = yes;
                self
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
        }
    };
}

options! {
    /// What [`decompose_resid`](crate::ActivationCache::decompose_resid) is asked.
    Decompose {
        mode: Mode = Mode::All,
        incl_embeds: bool = true,
    }
}

impl Decompose {
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

options! {
    /// What [`accumulated_resid`](crate::ActivationCache::accumulated_resid) is asked.
    Accumulate {
        incl_mid: bool = false,
        scale: Scale = Scale::Target,
    }
}

impl Accumulate {
    /// Whether the stream between attention and MLP gets rows; no unless said otherwise.
    pub fn incl_mid(mut self, yes: bool) -> Self {
        self.incl_mid = yes;
        self
    }

    /// At which scale rows are normalised, where `apply_ln` is asked for.
    pub fn scale(mut self, scale: Scale) -> Self {
        self.scale = scale;
        self
    }
}

options! {
    /// What [`stack_head_results`](crate::ActivationCache::stack_head_results) is asked, and, given to
    /// [`logit_attrs`](crate::ActivationCache::logit_attrs) in a stack's place, an attribution by heads.
    Heads {
        incl_remainder: bool = false,
        project: Option<Tensor> = None,
    }
}

options! {
    /// What [`stack_neuron_results`](crate::ActivationCache::stack_neuron_results) is asked, and, given to
    /// [`logit_attrs`](crate::ActivationCache::logit_attrs) in a stack's place, an attribution by neurons.
    Neurons {
        neurons: Slice = Slice::All,
        incl_remainder: bool = false,
        project: Option<Tensor> = None,
    }
}

impl Neurons {
    /// Which neurons of each layer.
    pub fn neurons(mut self, neurons: impl Into<Slice>) -> Self {
        self.neurons = neurons.into();
        self
    }
}

options! {
    /// What [`get_full_resid_decomposition`](crate::ActivationCache::get_full_resid_decomposition) is asked, and, given to
    /// [`logit_attrs`](crate::ActivationCache::logit_attrs) in a stack's place, an attribution by everything.
    Full {
        expand_neurons: bool = true,
        project: Option<Tensor> = None,
    }
}

impl Full {
    /// Whether MLPs are rows of neurons, or of one output each; neurons unless said otherwise.
    pub fn expand_neurons(mut self, yes: bool) -> Self {
        self.expand_neurons = yes;
        self
    }
}

macro_rules! remainder {
    ($($name:ident),*) => {
        $(impl $name {
            /// Whether what the other rows leave out of the stream gets a row; no unless said otherwise.
            pub fn incl_remainder(mut self, yes: bool) -> Self {
                self.incl_remainder = yes;
                self
            }
        })*
    };
}
remainder!(Heads, Neurons);

macro_rules! project {
    ($($name:ident),*) => {
        $(impl $name {
            /// Projects each row onto these directions, `[d_model]` or `[d_model, k]`, without ever forming it: the stack's last axis
            /// is `k`, or none. With `apply_ln`, it is the normalised row that is projected.
            pub fn project(mut self, directions: &Tensor) -> Self {
                self.project = Some(directions.shallow_clone());
                self
            }
        })*
    };
}
project!(Heads, Neurons, Full);
