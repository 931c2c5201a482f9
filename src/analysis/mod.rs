//! Which parts of the model did what: the methods of [`ActivationCache`](crate::ActivationCache) over what a run kept.
//!
//! | question | method |
//! | --- | --- |
//! | what did each sublayer write? | [`decompose_resid`](crate::ActivationCache::decompose_resid) |
//! | what does the model believe after each layer? | [`accumulated_resid`](crate::ActivationCache::accumulated_resid), [`logit_lens`](crate::ActivationCache::logit_lens) |
//! | what did each head write? | [`stack_head_results`](crate::ActivationCache::stack_head_results) |
//! | what did each neuron write? | [`stack_neuron_results`](crate::ActivationCache::stack_neuron_results), [`get_neuron_results`](crate::ActivationCache::get_neuron_results) |
//! | what did each feature of a dictionary write? | [`stack_feature_results`](crate::ActivationCache::stack_feature_results) |
//! | what is the stream made of, to the last part? | [`get_full_resid_decomposition`](crate::ActivationCache::get_full_resid_decomposition) |
//! | who pushes towards this answer? | [`logit_attrs`](crate::ActivationCache::logit_attrs) |
//!
//! A decomposition is a [`ResidualStack`], which knows its rows, its axes and its [`Target`], the input that it adds up to. An
//! [`Attribution`] sums to the logit, and says by how much it does not. Both hold at the norms' scales as they were in the run
//! ("frozen"): `docs/attribution.md` explains what that means and what sums to what.

mod answer;
mod attribution;
mod features;
pub(crate) mod frozen_head;
pub(crate) mod frozen_norm;
mod full;
mod heads;
mod interventions;
mod labelled;
mod lens;
mod neurons;
mod options;
mod passage;
mod ranking;
mod readout;
mod recipe;
mod residual;
mod row_form;
mod stack;
mod table;
pub(crate) mod window;

pub use crate::component::{Component, Target};
pub use answer::Answer;
pub use attribution::{Attributed, Attribution, LogitShares};
pub use labelled::LabelledTensor;
pub use lens::{LikelyTokens, LogitLens, Logits, Ranks};
pub use options::{
    AccumulateOptions, DecomposeOptions, FeatureOptions, FullOptions, HeadOptions, LensOptions, Mode, NeuronOptions,
    NeuronResultOptions, Scale,
};
pub use ranking::Ranking;
pub use stack::{Contributions, ResidualStack};
