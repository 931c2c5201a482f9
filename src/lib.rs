//! Mechanistic interpretability on libtorch: TransformerLens' `HookedTransformer` and `ActivationCache`, with the same names, shapes and
//! results.
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
//! # Where to start
//!
//! | task | items |
//! | --- | --- |
//! | load a model | [`HookedTransformer::from_pretrained`]; [`LoadOptions`] with settings; [`HookedTransformer::toy`] |
//! | make a model with fresh weights | [`Config`], [`HookedTransformer::init`] |
//! | convert texts to tokens | [`HookedTransformer::to_tokens`], [`Input`], [`Tokenizer`] |
//! | compute logits or a loss | [`HookedTransformer::forward`], [`HookedTransformer::loss`] |
//! | cache activations | [`HookedTransformer::run_with_cache`], [`HookFilter`] |
//! | change activations | [`Hooks`], [`Patch`], [`HookedTransformer::run_with_hooks`] |
//! | differentiate a logit, a loss or any other number | [`HookedTransformer::run_with_grad`], [`gradient`] |
//! | find the circuit of a task | [`circuits`] |
//! | trace a logit through features, neurons and heads: attribution graphs | [`graphs`] |
//! | combine hooks, a cache and other settings in one run | [`RunOptions`], [`HookedTransformer::run`] |
//! | measure a run: a logit difference, a probability, a divergence, a function of yours | [`Metric`] |
//! | patch activations of a clean run into a corrupted run | [`patching`] |
//! | find heads by what they look at | [`heads`] |
//! | name an activation | [`hook`], [`HookPoint`] |
//! | decompose the residual stream, attribute logits, read a logit lens | [`analysis`] |
//! | read streams by a tuned lens, a Jacobian lens or a Patchscope | [`lens`] |
//! | steer a model by a direction from pairs of texts | [`steering`] |
//! | read classes from activations by linear probes with controls | [`probe`] |
//! | read the weights, the circuits of heads and their composition | [`weights`] |
//! | generate text | [`generate`] |
//! | draw results: pages, SVG, PNG, notebooks | the module `view`, with the feature `view` |
//!
//! [`recipes`] has a short program for each common task.
//!
//! All functions that can fail return an [`Error`], which prints as one sentence. [`Slice`] selects batch rows, heads and other axes like a
//! Python slice. [`Positions`] selects positions: a slice, or the last token of each row.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod analysis;
mod cache;
pub mod circuits;
mod component;
pub mod config;
pub mod dictionary_learning;
mod error;
mod format;
pub mod generate;
pub mod gradient;
pub mod graphs;
pub mod heads;
pub mod hook;
mod hooked_encoder;
mod hooked_encoder_decoder;
mod hooked_transformer;
mod layer;
pub mod lens;
mod metric;
mod model;
pub mod patching;
mod pretrained;
pub mod probe;
mod run;
pub mod sae;
pub mod steering;
mod tensor;
mod text;
mod unchecked;
#[cfg(feature = "view")]
pub mod view;
pub mod weights;

pub use analysis::{
    AccumulateOptions, Answer, DecomposeOptions, FeatureOptions, FullOptions, HeadOptions, LensOptions, Mode,
    NeuronOptions, NeuronResultOptions,
};
pub use cache::ActivationCache;
/// The tensors of every interface, in the version that this crate was built with.
pub use tch;

pub use component::{Component, Target};
pub use config::Config;
pub use error::{
    CheckpointError, Error, HookFailure, HubError, KeyValueStoreError, Result, TokenizerError, UnknownWord,
};
pub use format::FormatError;
pub use generate::{Continuation, GenerateOptions, Sampler, SamplingOptions, StopReason};
pub use gradient::{EncoderDecoderGradients, GradientCache, GradientOutput, Jacobian};
pub use hook::{HookFilter, HookPoint};
pub use hooked_encoder::{BertNextSentencePrediction, HookedEncoder};
pub use hooked_encoder_decoder::{EncoderDecoderCache, EncoderDecoderOutput, HookedEncoderDecoder};
pub use hooked_transformer::{
    AnswerPosition, Generated, Generation, GenerationStep, HookedTransformer, Init, ModelWithHooks, Occurrence,
    OutputTokens, PromptTest, PromptTestOptions, RankedToken, ReturnType, RowStep, RunOptions, RunOutput, SingleToken,
    StepInfo, StepOptions,
};
pub use layer::Layer;
pub use metric::{Baseline, Metric, MetricResult};
pub use model::{EncoderOutput, KeyValueStore, Transformer};
pub use pretrained::dictionaries::DictionaryOptions;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use pretrained::fuzzing;
#[cfg(feature = "hub")]
pub use pretrained::hub::Hub;
pub use pretrained::processing::{Processing, Step};
pub use pretrained::supported::{Comparison, Reference, SupportedArchitecture};
pub use pretrained::LoadOptions;
pub use run::{
    BackwardRules, FileSink, HookError, HookReplacement, HookResult, Hooks, Patch, PatchValue, Plan, PlannedEntry,
    RunDescription, RunValues, Sink, SinkEntry,
};
pub use sae::{Dictionary, DictionarySet};
pub use tensor::columns::Columns;
pub use tensor::factored::{FactoredMatrix, Svd};
pub use tensor::slice::Slice;
pub use tensor::span::Span;
#[cfg(feature = "chat")]
pub use text::chat::{ChatMessage, ChatOptions};
pub use text::input::{Input, TokenOptions, Tokens};
pub use text::positions::Positions;
pub use text::stream::TextStream;
pub use text::tokenizer::{Bos, PaddingSide, SpecialRole, SpecialToken, TokenSpan, Tokenizer};
pub use unchecked::allocator::{tune_allocator, AllocatorTuning};
pub use unchecked::autodiff::{autodiff, AutodiffGuard};
pub use unchecked::cuda::cuda_if_available;
pub use weights::Composition;

#[doc = include_str!("../docs/recipes.md")]
pub mod recipes {}

#[doc = include_str!("../docs/transformer_lens.md")]
pub mod transformer_lens {}

/// Tests the code of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Tests the code of the book's chapters, which also makes the book's pictures.
#[cfg(all(doctest, feature = "toy", feature = "view"))]
mod book {
    macro_rules! chapters {
        ($($name:ident $path:literal)*) => {
            $(#[doc = include_str!(concat!("../docs/book/", $path))]
            struct $name;)*
        };
    }

    chapters! {
        LogitLens "logit_lens.md"
        DirectLogitAttribution "direct_logit_attribution.md"
        InductionHeads "induction_heads.md"
        ActivationPatching "activation_patching.md"
        PathPatching "path_patching.md"
        IndirectObject "indirect_object.md"
        Lenses "lenses.md"
        Steering "steering.md"
        Probes "probes.md"
        Dictionaries "dictionaries.md"
        Pictures "pictures.md"
    }
}
