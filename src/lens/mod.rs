//! Lenses beyond the logit lens: what the stream says in the middle of the model, read by a map that was fitted or by another prompt.
//!
//! | lens | how a stream before block `l` is read |
//! | --- | --- |
//! | [`logit_lens`](crate::ActivationCache::logit_lens) | by the last norm and the unembedding, as it is |
//! | [`TunedLens`] | after an affine map that was trained to predict the model's own output (Belrose et al. 2023) |
//! | [`JacobianLens`] | after the mean derivative of the last stream with respect to it (Gurnee et al. 2026) |
//! | [`Patchscope`] | by the model itself, in place of the stream of another prompt (Ghandeharioun et al. 2024) |
//!
//! All of them give a [`LogitLens`](crate::analysis::LogitLens): logits of each stream at each position. It prints as a table, says where an
//! answer stands in each row, and is a picture with the feature `view`.
//!
//! [`TunedLens::open`] and [`JacobianLens::open`] read files; `LensHub` (feature `hub`) reads the published ones by their names.
//!
//! A map belongs to the streams that it was fitted on. Weight processing takes the mean off the streams of models with layer norms
//! (`center_writing_weights`), so files that were fitted on other programs' activations need a model without that step. A lens refuses
//! models that differ in this.

mod fit;
#[cfg(feature = "hub")]
mod hub;
mod jacobian;
mod jacobian_file;
mod patchscope;
mod stream_mean;
mod tensors;
mod tuned;

pub use fit::JacobianLensOptions;
#[cfg(feature = "hub")]
pub use hub::LensHub;
pub use jacobian::JacobianLens;
pub use patchscope::Patchscope;
pub use tuned::TunedLens;
