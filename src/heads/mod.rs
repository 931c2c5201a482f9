//! What heads look at: TransformerLens' head detector, and scores on repeated random tokens.
//!
//! | question | function |
//! | --- | --- |
//! | which heads look at the previous token, at duplicates, or as induction heads do? | [`detect_head`] |
//! | which heads continue repeated sequences? | [`induction_scores`] |
//! | which heads look behind earlier occurrences of their token? | [`prefix_matching_scores`] |
//! | which heads raise the logits of what they look at? | [`Transformer::copying_scores`](crate::Transformer::copying_scores) |
//! | what happens if some positions cannot look at others? | [`Hooks::knock_out_attention`](crate::Hooks::knock_out_attention) |

mod detect;
mod repeated;

pub use detect::{detect_head, DetectHeadOptions, ErrorMeasure, HeadPattern};
pub use repeated::{induction_scores, prefix_matching_scores, RepeatedTokens};
