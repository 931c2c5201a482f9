//! [`Processing`]: rewriting weights into an equivalent model that is easier to interpret, as TransformerLens does.
//!
//! Every step leaves each log-probability as it was. Where TransformerLens' form of a step would change one, the step is done
//! differently or left out, and [`HookedTransformer::processing`](crate::HookedTransformer::processing) says which and why. A
//! block is processed right after it is laid out, in fp32 or better, and converted last.

mod processor;
mod transforms;

use std::fmt;

pub(crate) use self::processor::Processor;

/// A step of processing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Gains and biases of norms go into the weights that read them.
    FoldLn,
    /// What writes to the stream loses its mean, which every layer norm would take off.
    CenterWritingWeights,
    /// `W_U` loses its mean over the vocabulary, to which the softmax is blind.
    CenterUnembed,
    /// A pattern's rows sum to one, so the values' biases are a constant: they go into `b_O`.
    FoldValueBiases,
    /// `W_Q`, `W_K` and `W_V`, `W_O` become the even, orthogonal factors of their products.
    RefactorFactoredAttnMatrices,
}

/// A step that was asked for, and whether it was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Processing {
    /// The step.
    pub step: Step,
    /// Whether it was done.
    pub done: bool,
    /// What was left out or done differently from TransformerLens, and why; may be empty.
    pub note: &'static str,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::FoldLn => "fold_ln",
            Step::CenterWritingWeights => "center_writing_weights",
            Step::CenterUnembed => "center_unembed",
            Step::FoldValueBiases => "fold_value_biases",
            Step::RefactorFactoredAttnMatrices => "refactor_factored_attn_matrices",
        })
    }
}

impl fmt::Display for Processing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = if self.done { "done" } else { "left out" };
        let colon = if self.note.is_empty() { "" } else { ": " };
        write!(f, "{} {done}{colon}{}", self.step, self.note)
    }
}

/// Which steps are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcessingOptions {
    pub(crate) fold_ln: bool,
    pub(crate) center_writing_weights: bool,
    pub(crate) center_unembed: bool,
    pub(crate) fold_value_biases: bool,
    pub(crate) refactor_factored_attn_matrices: bool,
}

impl Default for ProcessingOptions {
    /// TransformerLens' defaults.
    fn default() -> Self {
        ProcessingOptions {
            fold_ln: true,
            center_writing_weights: true,
            center_unembed: true,
            fold_value_biases: true,
            refactor_factored_attn_matrices: false,
        }
    }
}

impl ProcessingOptions {
    /// No step at all.
    pub(crate) fn none() -> Self {
        ProcessingOptions {
            fold_ln: false,
            center_writing_weights: false,
            center_unembed: false,
            fold_value_biases: false,
            refactor_factored_attn_matrices: false,
        }
    }
}
