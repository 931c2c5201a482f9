//! [`Sink`]: where the activations go that a run keeps.

mod budget;
mod file;

use tch::{Kind, Tensor};

use super::hooks::{HookError, HookResult};
use crate::hook::HookPoint;
use crate::tensor::columns::Columns;
use crate::text::input::Tokens;
use crate::Error;

pub(crate) use budget::Budget;
pub use file::FileSink;
pub(crate) use file::{FIELD, TOKENS};

/// Where the activations go that a run keeps, in place of the memory of its cache: [`RunOptions::sink`](crate::RunOptions::sink).
///
/// A closure that gets a [`SinkEntry`] is a sink: a stream, of which nothing is retained. [`FileSink`] writes a file.
///
/// ```
/// use tch_lens::{HookedTransformer, ReturnType, RunOptions, SinkEntry};
/// let model = HookedTransformer::toy()?;
/// let mut norms = Vec::new();
/// let stream = |entry: SinkEntry| norms.push((entry.point, entry.tensor.norm().double_value(&[])));
/// let run = RunOptions::new().cache("resid_post").return_type(ReturnType::None).sink(stream);
/// assert!(model.run("When Mary and John went to the shop", run)?.cache.is_empty());
/// assert_eq!(norms.len(), 4);
/// # Ok::<(), tch_lens::Error>(())
/// ```
pub trait Sink {
    /// May learn of which run the activations are: before they come, and again when all have come and it is known what hooks changed. The
    /// description is made where `run` is called; it has the hash of the weights, which takes a pass over them the first time.
    ///
    /// # Errors
    ///
    /// An error ends the run.
    fn describe(&mut self, run: &dyn Fn() -> crate::Result<RunDescription>) -> Result<(), HookError> {
        let _ = run;
        Ok(())
    }

    /// Learns what will come, in the order in which it comes, before the run computes anything.
    ///
    /// # Errors
    ///
    /// An error ends the run.
    fn begin(&mut self, planned: &[PlannedEntry]) -> Result<(), HookError> {
        let _ = planned;
        Ok(())
    }

    /// Takes an activation, and returns what the run's cache holds of it: nothing, or a tensor of the same values.
    ///
    /// # Errors
    ///
    /// An error ends the run.
    fn keep(&mut self, entry: SinkEntry<'_>) -> Result<Option<Tensor>, HookError>;

    /// Learns that everything has come. It is not called where the run fails.
    ///
    /// # Errors
    ///
    /// An error is the run's.
    fn finish(&mut self) -> Result<(), HookError> {
        Ok(())
    }
}

/// What a [`Sink`] will get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedEntry {
    /// The hook point.
    pub point: HookPoint,
    /// The shape; of an expert, `None`: how many rows it gets is known once tokens are routed.
    pub shape: Option<Vec<i64>>,
    /// The kind of the numbers.
    pub kind: Kind,
}

/// What the file of a run's activations says of the run: its tokens, positions, rows and model, and what hooks changed.
#[derive(Clone, Debug)]
pub struct RunDescription {
    /// JSON.
    pub(crate) text: String,
    pub(crate) tokens: Tokens,
}

/// What a [`Sink`] gets: an activation as a run's cache would hold it.
#[derive(Debug)]
pub struct SinkEntry<'r> {
    /// The hook point.
    pub point: HookPoint,
    /// The activation at the positions that the run keeps. The run may go on with the same memory: it is not to be changed in
    /// place.
    pub tensor: Tensor,
    /// The token columns that it holds, on the axis that the point has for positions; of an expert, those whose rows it holds.
    pub positions: &'r Columns,
}

impl<R: HookResult, F: FnMut(SinkEntry<'_>) -> R> Sink for F {
    fn keep(&mut self, entry: SinkEntry<'_>) -> Result<Option<Tensor>, HookError> {
        self(entry).into_result()?;
        Ok(None)
    }
}

/// A sink's error: the crate's own as it is, any other with the point at which it came.
pub(crate) fn failed(point: Option<HookPoint>, source: HookError) -> Error {
    match source.downcast::<Error>() {
        Ok(error) => *error,
        Err(source) => {
            let place = point.map_or(String::new(), |point| format!(" at `{point}`"));
            Error::Sink { place, source }
        }
    }
}
