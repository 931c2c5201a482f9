//! [`StreamMean`]: whether the residual streams of a model have their mean.

use crate::pretrained::processing::Step;
use crate::{Error, HookedTransformer, Result};

/// Whether the residual streams of a model have their mean over `d_model`, or lost it when the weights were processed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamMean {
    Kept,
    TakenOff,
}

impl StreamMean {
    pub(super) fn of(model: &HookedTransformer) -> Self {
        let centers = |step: &crate::Processing| step.step == Step::CenterWritingWeights && step.done;
        match model.processing().iter().any(centers) {
            true => StreamMean::TakenOff,
            false => StreamMean::Kept,
        }
    }

    /// That a model's streams are as those that a lens was fitted on.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`].
    pub(super) fn check(self, model: &HookedTransformer) -> Result<()> {
        match (self, StreamMean::of(model)) {
            (StreamMean::Kept, StreamMean::TakenOff) => Err(Error::wrong_input(
                "the lens was fitted on streams with their mean, which this model's weight processing takes off: load the model with \
                 `LoadOptions::center_writing_weights(false)`",
            )),
            (StreamMean::TakenOff, StreamMean::Kept) => Err(Error::wrong_input(
                "the lens was fitted on streams without their mean: load the model with `LoadOptions::center_writing_weights(true)`",
            )),
            _ => Ok(()),
        }
    }
}
