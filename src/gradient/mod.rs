//! Gradients of a number that a run computes, with respect to its activations.
//!
//! | question | item |
//! | --- | --- |
//! | how does this number change with each activation? | [`run_with_grad`](crate::HookedTransformer::run_with_grad) |
//! | the same of an encoder-decoder, through both stacks | [`HookedEncoderDecoder::run_with_grad`](crate::HookedEncoderDecoder::run_with_grad) |
//! | how does one activation change with another? | [`Jacobian`]: products with vectors, from both sides |
//! | which entries of an activation make the difference to a baseline? | [`integrated_gradients`](crate::HookedTransformer::integrated_gradients) |
//! | what would patches do, to first order? | [`attribution_patching`](crate::HookedTransformer::attribution_patching) |
//!
//! A [`GradientCache`] holds the gradients under the activations' names. Hooks on gradients are
//! [`Hooks::observe_gradient`](crate::Hooks::observe_gradient) and [`Hooks::replace_gradient`](crate::Hooks::replace_gradient);
//! [`BackwardRules`](crate::BackwardRules) change what the backward pass takes for constant.
//!
//! Parameters stay as they are: they need not record gradients, and nothing is added to the gradients that they have.

mod attribution_patching;
mod cache;
mod encoder_decoder;
mod integrated;
mod jacobian;
mod run;

pub use attribution_patching::{AttributionPatching, AttributionPatchingOptions};
pub use cache::GradientCache;
pub use encoder_decoder::EncoderDecoderGradients;
pub use integrated::{IntegratedGradients, IntegratedGradientsOptions, Quadrature};
pub use jacobian::Jacobian;
pub use run::GradientOutput;
