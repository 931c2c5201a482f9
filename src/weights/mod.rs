//! Access to the weights and analyses of them: methods of [`HookedTransformer`](crate::HookedTransformer) with TransformerLens' names
//! and shapes.
//!
//! | weights | methods |
//! | --- | --- |
//! | the whole model | `w_e`, `w_pos`, `w_e_pos`, `w_u`, `b_u` |
//! | attention | `w_q`, `w_k`, `w_v`, `w_o`, `b_q`, `b_k`, `b_v`, `b_o`; per key-value head in grouped-query models: `w_k_grouped`, `w_v_grouped`, `b_k_grouped`, `b_v_grouped` |
//! | MLPs | `w_in`, `w_gate`, `w_out`, `b_in`, `b_gate`, `b_pre_linear`, `b_out` |
//! | circuits, as [`FactoredMatrix`](crate::FactoredMatrix) | `qk`, `ov`, `all_composition_scores`, `all_head_labels` |
//! | what heads copy, and singular vectors as tokens | `copying_scores`, [`SvdInterpreter`] |
//! | directions in the stream | `tokens_to_residual_directions`, `accumulated_bias` |
//!
//! Methods for the weights of layers take one layer, which adds no axis, or several layers, which are stacked:
//!
//! ```
//! use tch_lens::HookedTransformer;
//! let model = HookedTransformer::toy()?;
//! assert_eq!(model.w_q(2)?.size(), [4, 128, 32]); // [head, d_model, d_head], a view
//! assert_eq!(model.w_q(-1)?.size(), [4, 128, 32]); // the last layer
//! assert_eq!(model.w_q(..)?.size(), [4, 4, 128, 32]); // [layer, head, d_model, d_head], as TransformerLens' W_Q
//! assert_eq!(model.w_q(0..2)?.size(), [2, 4, 128, 32]);
//! # Ok::<(), tch_lens::Error>(())
//! ```
//!
//! All methods return the weights after processing. Weights of one layer and of the whole model are views of the model's memory where
//! the shape allows it. Weights of several layers are a copy.

mod accumulated_bias;
mod by_name;
mod circuits;
mod contributions;
mod copying;
mod svd_interpreter;

pub use circuits::Composition;
pub use svd_interpreter::{SvdInterpreter, SvdMatrix};

pub(crate) use contributions::NeuronWriter;
