//! A harvest on a cluster of Apache Ballista: a scheduler, workers, and the client that hands shards to them.
//!
//! Workers ask the scheduler for tasks, so only the scheduler needs an address that others reach; results come back through it, too. A
//! worker runs one task at a time: start one for each GPU.

mod client;
mod codec;
mod scheduler;
mod worker;

use std::sync::Arc;

use url::Url;

pub use self::client::{harvest_on_cluster, ClusterOptions};
pub use self::codec::HarvestCodec;
pub use self::scheduler::{serve_scheduler, SchedulerOptions};
pub use self::worker::{serve_worker, WorkerOptions};
use crate::{Error, Result};

/// The port of a scheduler whose address has none.
pub const SCHEDULER_PORT: u16 = 50050;

/// Host and port of a scheduler's address, such as `df://host:50050`.
fn scheduler_address(address: &str) -> Result<(String, u16)> {
    let wrong = |why: String| Error::Address { address: address.into(), why };
    let hint = "the scheduler's address is such as `df://host:50050`";
    let url = Url::parse(address).map_err(|why| wrong(format!("{why}; {hint}")))?;
    match url.host_str() {
        Some(host) if url.scheme() == "df" && !host.is_empty() => {
            Ok((host.into(), url.port().unwrap_or(SCHEDULER_PORT)))
        }
        _ => Err(wrong(hint.into())),
    }
}

fn codec() -> Arc<HarvestCodec> {
    Arc::new(HarvestCodec::default())
}

/// The engine's error as ours: our own sentence, if it carries one.
fn told(error: impl std::fmt::Display) -> Error {
    let text = error.to_string();
    Error::Engine(super::Told::sentence(&text).map_or(text.clone(), str::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_schedulers() {
        assert_eq!(scheduler_address("df://127.0.0.1:7").unwrap(), ("127.0.0.1".into(), 7));
        assert_eq!(scheduler_address("df://host").unwrap(), ("host".into(), SCHEDULER_PORT));
        for wrong in ["host:50050", "http://host:50050", "df://", "host"] {
            let error = scheduler_address(wrong).unwrap_err().to_string();
            assert!(error.contains("df://host:50050"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_sentence_comes_out_of_the_engines_text() {
        let ours = crate::engine::Told(Error::NoManifest { store: "a \"b\"".into() });
        let external = datafusion::error::DataFusionError::External(Box::new(ours));
        let text = format!("Job 7 failed: Task failed due to runtime execution error: {external:?}");
        let expected = Error::NoManifest { store: "a \"b\"".into() }.to_string();
        assert_eq!(told(text).to_string(), Error::Engine(expected).to_string());
    }
}
