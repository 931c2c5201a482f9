//! Dictionaries: sparse autoencoders, transcoders and cross-layer transcoders.
//!
//! A [`Dictionary`] reads an activation, writes it as a few of many features, and reconstructs an activation from them: the one that it
//! read (a sparse autoencoder), or another one (a transcoder). With `x` the activation at [`hook_in`](Dictionary::hook_in):
//!
//! ```text
//! pre  = (x − b_dec) W_encᵀ + b_enc        [feature]; without b_dec where the format does not subtract it
//! acts = f(pre)                            a FeatureActivation
//! out  = acts W_dec + b_dec (+ x W_skipᵀ)
//! ```
//!
//! This layer knows no files and no models. `pretrained` reads dictionaries from files, and a run computes what is spliced into it.

mod activation;
mod config;
mod construct;
mod decoder;
mod dictionary;
mod encode;
mod features;
mod kind;
mod normalization;
mod set;
mod splice;
mod weights;

pub use self::config::DictionaryConfig;
pub use self::dictionary::Dictionary;
pub use self::features::SparseFeatures;
pub use self::kind::FeatureActivation;
pub use self::normalization::InputNormalization;
pub use self::set::DictionarySet;
pub use self::splice::SaeOptions;
pub use self::weights::DictionaryWeights;

pub(crate) use self::decoder::{Decoder, RowSource};
pub(crate) use self::normalization::Undo;
pub(crate) use self::splice::{Splice, Splices};
pub(crate) use self::weights::Encoder;
