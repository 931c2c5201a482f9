//! Trains small dictionaries, and measures dictionaries over texts.
//!
//! [`Trainer`] learns a sparse autoencoder or transcoder from activations: from a cache, or a stream of batches of any kind.
//! [`evaluate`] says what a model loses with dictionaries in its runs.

mod adam;
mod evaluation;
mod initial;
mod objective;
mod options;
mod state;
mod trainer;

pub use self::evaluation::{activations, evaluate, DictionaryEvaluation, Evaluation};
pub use self::options::{Sparsity, TrainerOptions};
pub use self::trainer::{Trainer, TrainingStep};
