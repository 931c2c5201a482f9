//! What the weights say, before anything is run: methods of [`HookedTransformer`](crate::HookedTransformer) with
//! TransformerLens' names and shapes.
//!
//! | of | methods |
//! | --- | --- |
//! | the whole model | `w_e`, `w_pos`, `w_e_pos`, `w_u`, `b_u` |
//! | attention | `w_q`, `w_k`, `w_v`, `w_o`, `b_q`, `b_k`, `b_v`, `b_o`; as stored, where query heads share them: `w_k_grouped`, `w_v_grouped`, `b_k_grouped`, `b_v_grouped` |
//! | MLPs | `w_in`, `w_gate`, `w_out`, `b_in`, `b_gate`, `b_pre_linear`, `b_out` |
//! | circuits, as [`FactoredMatrix`](crate::FactoredMatrix) | `qk`, `ov`, `all_composition_scores`, `all_head_labels` |
//! | directions in the stream | `tokens_to_residual_directions`, `accumulated_bias` |
//!
//! What is of a layer takes one layer, whose axis goes, or several, which are stacked:
//!
//! ```
//! use tch_lens::HookedTransformer;
//! let model = HookedTransformer::toy()?;
//! assert_eq!(model.w_q(2)?.size(), [4, 128, 32]); // [head, d_model, d_head], a view
//! assert_eq!(model.w_q(-1)?.size(), [4, 128, 32]); // the last layer's
//! assert_eq!(model.w_q(..)?.size(), [4, 4, 128, 32]); // [layer, head, d_model, d_head], as TransformerLens' W_Q
//! assert_eq!(model.w_q(0..2)?.size(), [2, 4, 128, 32]);
//! # Ok::<(), tch_lens::Error>(())
//! ```
//!
//! These are the weights as they are after processing. Those of one layer, and of the whole model, are views of the model's own
//! memory wherever the shape allows; several layers are a copy.

mod accumulated_bias;
mod by_name;
mod circuits;
mod contributions;

pub use circuits::Composition;

pub(crate) use contributions::NeuronWriter;
