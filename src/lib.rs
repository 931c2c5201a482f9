//! Mechanistic interpretability on libtorch: TransformerLens' `HookedTransformer` and `ActivationCache`, with its names, its
//! shapes and its figures.
//!
//! ```
//! use tch_lens::{HookedTransformer, LensOptions};
//!
//! let model = HookedTransformer::toy()?;
//! let (logits, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
//! let lens = cache.logit_lens(LensOptions::new().pos(-1))?;
//! println!("{}", lens.rank_of(" Mary")?);
//! # Ok::<(), tch_lens::Error>(())
//! ```
//!
//! # Finding one's way, along that of the data
//!
//! | you have | you want | look at |
//! | --- | --- | --- |
//! | a folder with a checkpoint | a model | [`HookedTransformer::from_pretrained`]; [`Load`] for its choices; [`HookedTransformer::toy`] |
//! | a shape | a model with fresh weights | [`Config`], [`HookedTransformer::init`] |
//! | text, texts, ids | tokens | [`Input`] is made of all of them; [`HookedTransformer::to_tokens`], [`Tokenizer`] |
//! | tokens | logits, a loss | [`HookedTransformer::forward`], [`HookedTransformer::loss`] |
//! | tokens | activations | [`HookedTransformer::run_with_cache`]; [`HookFilter`] says which |
//! | an idea what a part does | what happens without it | [`Hooks`], [`HookedTransformer::run_with_hooks`] |
//! | several of these wishes | one run | [`Run`], [`HookedTransformer::run`] |
//! | the name of an activation | a typed one | [`hook`]: [`HookPoint`], its names and short hand |
//! | a cache | who did what | [`analysis`]: decompositions, attributions, the logit lens |
//!
//! Everything that can fail returns an [`Error`] of one sentence. Batch rows and other axes are chosen by
//! [`Slice`]s, which are Python's, and positions by [`Positions`], of which a slice is one.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod analysis;
mod cache;
mod component;
pub mod config;
mod error;
mod format;
pub mod generate;
pub mod hook;
mod hooked_transformer;
mod layer;
mod model;
mod pretrained;
mod run;
mod tensor;
mod text;
mod unchecked;
pub mod weights;

pub use analysis::{
    AccumulateOptions, Answer, DecomposeOptions, FullOptions, HeadOptions, LensOptions, Mode, NeuronOptions,
    NeuronResultOptions,
};
pub use cache::ActivationCache;
/// The tensors of every interface, in the version that this crate was built with.
pub use tch;

pub use component::{Component, Target};
pub use config::Config;
pub use error::{Error, HubError, Result, UnknownWord};
pub use format::FormatError;
pub use generate::{GenerateOptions, Sampler, SamplingOptions, StopReason};
pub use hook::{HookFilter, HookPoint};
pub use hooked_transformer::{
    AnswerPosition, HookedTransformer, Init, Occurrence, Outcome, Output, OutputTokens, PromptTest, PromptTestOptions,
    RankedToken, Run, SingleToken,
};
pub use layer::Layer;
pub use model::Transformer;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use pretrained::fuzzing;
#[cfg(feature = "hub")]
pub use pretrained::hub::Hub;
pub use pretrained::processing::{Processing, Step};
pub use pretrained::Load;
pub use run::{Done, FileSink, HookError, Hooks, Patch, PatchValue, Plan, PlannedEntry, Replacement, Sink, SinkEntry};
pub use tensor::columns::Columns;
pub use tensor::factored::{FactoredMatrix, Svd};
pub use tensor::slice::Slice;
pub use tensor::span::Span;
pub use text::input::{Input, TokenOptions, Tokens};
pub use text::positions::Positions;
pub use text::stream::TextStream;
pub use text::tokenizer::{Bos, PaddingSide, SpecialRole, SpecialToken, TokenSpan, Tokenizer};
pub use unchecked::allocator::{tune_allocator, AllocatorTuning};
pub use unchecked::autodiff::{autodiff, AutodiffGuard};
pub use unchecked::cuda::cuda_if_available;
pub use weights::Composition;

/// The README's code runs as well.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
