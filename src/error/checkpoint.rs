//! [`CheckpointError`]: how weights and a configuration differ.

/// How the weights of a checkpoint and the configuration of a model differ.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A weight that the checkpoint lacks.
    #[error("the checkpoint has no tensor `{name}` (expected with shape {expected:?})")]
    MissingTensor {
        /// The tensor's name in the checkpoint.
        name: String,
        /// The shape that the configuration implies.
        expected: Vec<i64>,
    },
    /// Weights that nothing in the configuration asks for.
    #[error("the checkpoint has {count} tensor(s) that this configuration does not use: {names}")]
    ExtraTensors {
        /// How many.
        count: usize,
        /// The first of them, with shapes.
        names: String,
    },
    /// A weight of another shape than the configuration implies.
    #[error("tensor `{name}` has shape {found:?} in the checkpoint, but the configuration implies {expected:?}")]
    TensorShape {
        /// The tensor's name in the checkpoint.
        name: String,
        /// Its shape there.
        found: Vec<i64>,
        /// The shape that the configuration implies.
        expected: Vec<i64>,
    },
    /// A weight that a format of checkpoints cannot hold.
    #[error("the model cannot be written as {format}: `{name}`: {why}")]
    NotRepresentable {
        /// The format.
        format: String,
        /// The weight, as [`Transformer::parameters`](crate::Transformer::parameters) names it.
        name: String,
        /// What rules it out.
        why: String,
    },
}
