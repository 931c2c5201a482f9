//! The engine: a harvest as one operator of Apache DataFusion, in this process or, with the feature `cluster`, on workers of Apache Ballista.
//!
//! The operator, [`HarvestExec`], reads numbers of shards and gives their metadata. It carries only where the manifest lies and its hash, so
//! a plan is small whatever the model; each process opens the harvest once and keeps its model. Whatever the engine does, shards stay what
//! they are: a task that runs twice, or again after its worker was killed, finds its shard committed or makes the same bytes.

#[cfg(feature = "cluster")]
pub mod cluster;
mod embedded;
mod opened;
mod operator;
mod reference;

use std::fmt;

use datafusion::error::DataFusionError;

pub use self::embedded::harvest_embedded;
pub use self::operator::HarvestExec;
pub use self::reference::HarvestReference;
use crate::{Error, Result};

/// Our error on its way through the engine. Ballista hands errors on as text, in Rust's form for debugging; there it is a sentence between
/// marks, so that the other side finds it.
struct Told(Error);

impl Told {
    const MARKS: [char; 2] = ['\u{27e6}', '\u{27e7}'];

    /// The sentence in a text of the engine.
    #[cfg(feature = "cluster")]
    fn sentence(text: &str) -> Option<&str> {
        let [open, close] = Told::MARKS;
        let (_, rest) = text.split_once(open)?;
        Some(rest.split_once(close)?.0)
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [open, close] = Told::MARKS;
        write!(f, "{open}{}{close}", self.0)
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Told {}

/// Our error in one of the engine's, as far as it is there.
pub(crate) fn from_engine(error: DataFusionError) -> Error {
    match error {
        DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => from_engine(*inner),
        DataFusionError::External(inner) => match inner.downcast::<Told>() {
            Ok(ours) => ours.0,
            Err(other) => Error::Engine(other.to_string()),
        },
        DataFusionError::IoError(inner) => match inner.downcast::<Told>() {
            Ok(ours) => ours.0,
            Err(other) => Error::Engine(other.to_string()),
        },
        DataFusionError::ArrowError(inner, backtrace) => match *inner {
            arrow_schema::ArrowError::ExternalError(inner) => from_engine(DataFusionError::External(inner)),
            other => Error::Engine(DataFusionError::ArrowError(Box::new(other), backtrace).to_string()),
        },
        other => Error::Engine(other.strip_backtrace().replace('\n', " ")),
    }
}

/// Runs a future of the engine to its end, on a thread of its own, so that callers may be on any thread that may block.
pub(crate) fn block_on<T: Send>(threads: usize, future: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let no_thread = |why: std::io::Error| Error::Setting(format!("no thread for the engine can be started: {why}"));
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("harvest-engine".into()).spawn_scoped(scope, || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(threads.max(1))
                .enable_all()
                .build()
                .map_err(no_thread)?;
            runtime.block_on(future)
        });
        thread.map_err(no_thread)?.join().map_err(|_| Error::Thread("the engine"))?
    })
}
