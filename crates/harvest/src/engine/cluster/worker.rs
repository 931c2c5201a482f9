//! A worker: Ballista's executor with our codec.

use std::net::{IpAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;

use ballista_core::config::TaskSchedulingPolicy;
use ballista_executor::executor_process::{start_executor_process, ExecutorProcessConfig};
use tch_lens::tch::Device;

use super::{codec, scheduler_address, told};
use crate::engine::{block_on, opened};
use crate::{Error, Result};

/// How a worker works.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The scheduler's address, such as `df://host:50050`.
    pub scheduler: String,
    /// The device on which it loads the model.
    pub device: Device,
    /// Where it listens for the scheduler, which fetches results.
    pub listen: IpAddr,
    /// The port; a free one if none is given.
    pub port: Option<u16>,
    /// The name or address under which the scheduler reaches it; the one from which it calls, if none is given.
    pub host: Option<String>,
    /// A folder for results, a few kilobytes a task; one of its own among the system's temporary files, if none is given.
    pub folder: Option<PathBuf>,
}

impl WorkerOptions {
    /// A worker of a scheduler, on a device, reachable from this machine only.
    pub fn of(scheduler: &str, device: Device) -> Self {
        WorkerOptions {
            scheduler: scheduler.into(),
            device,
            listen: IpAddr::from([127, 0, 0, 1]),
            port: None,
            host: None,
            folder: None,
        }
    }
}

/// Serves as a worker until the process is told to end (SIGTERM, Ctrl-C); the task under way is finished then. It runs one task at a time,
/// and loads the model of a harvest with its first task. It waits for a scheduler that is not there yet, and outlives one that goes.
///
/// # Errors
///
/// [`Error::Address`] for what is no scheduler's address; [`Error::Engine`] for a scheduler that is not there within ten minutes, and for a
/// port that is taken.
pub fn serve_worker(options: &WorkerOptions) -> Result<()> {
    let (scheduler_host, scheduler_port) = scheduler_address(&options.scheduler)?;
    opened::set_device(options.device);
    let port = match options.port {
        Some(port) => port,
        // Ballista tells others the number that it was given, so a free one must be known before.
        None => TcpListener::bind((options.listen, 0))
            .and_then(|listener| listener.local_addr())
            .map_err(|why| Error::Engine(format!("no free port at {}: {why}", options.listen)))?
            .port(),
    };
    let own = std::env::temp_dir().join(format!("tch-lens-harvest-worker-{}", std::process::id()));
    let folder = options.folder.as_ref().unwrap_or(&own);
    std::fs::create_dir_all(folder).map_err(Error::store("write", folder.display().to_string()))?;
    let config = ExecutorProcessConfig {
        bind_host: options.listen.to_string(),
        external_host: options.host.clone(),
        port,
        scheduler_host,
        scheduler_port,
        scheduler_connect_timeout_seconds: 600,
        // One task at a time: a device has one model, and a forward pass fills it.
        vcores: 1,
        task_scheduling_policy: TaskSchedulingPolicy::PullStaged,
        // Without one, Ballista 55 makes a temporary folder and removes it at once.
        work_dir: Some(folder.display().to_string()),
        job_data_clean_up_interval_seconds: 600,
        job_data_ttl_seconds: 24 * 3600,
        override_physical_codec: Some(codec()),
        ..ExecutorProcessConfig::default()
    };
    let served = block_on(2, async move { start_executor_process(Arc::new(config)).await.map_err(told) });
    if options.folder.is_none() {
        let _ = std::fs::remove_dir_all(&own);
    }
    served
}
