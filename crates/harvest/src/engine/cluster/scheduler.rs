//! The scheduler.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ballista_core::config::TaskSchedulingPolicy;
use ballista_scheduler::cluster::BallistaCluster;
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::start_server;

use super::{codec, told};
use crate::engine::block_on;
use crate::Result;

/// How a scheduler works.
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// Where it listens.
    pub listen: SocketAddr,
    /// How long a worker may be silent before its tasks go to others. A busy worker speaks every 5 seconds, so at least 7.
    pub silence: Duration,
}

impl SchedulerOptions {
    /// A scheduler at an address, with 30 seconds of silence.
    pub fn at(listen: SocketAddr) -> Self {
        SchedulerOptions { listen, silence: Duration::from_secs(30) }
    }
}

/// Serves as a scheduler until the process ends. It has no state beside what runs: clients that lose it submit again what is missing.
///
/// # Errors
///
/// [`Error::Setting`](crate::Error::Setting) for a silence under 7 seconds; [`Error::Engine`](crate::Error::Engine) for an address where it
/// cannot listen.
pub fn serve_scheduler(options: &SchedulerOptions) -> Result<()> {
    if options.silence < Duration::from_secs(7) {
        return Err(crate::Error::Setting(format!(
            "a busy worker speaks every 5 seconds, so its silence is at least 7 seconds, and not {:?}",
            options.silence
        )));
    }
    let config = SchedulerConfig {
        bind_host: options.listen.ip().to_string(),
        bind_port: options.listen.port(),
        // Workers ask for tasks: they need no address that the scheduler reaches, and come back by themselves after it was restarted.
        scheduling_policy: TaskSchedulingPolicy::PullStaged,
        executor_timeout_seconds: options.silence.as_secs(),
        expire_dead_executor_interval_seconds: 1,
        no_executors_grace_period_seconds: options.silence.as_secs().max(60),
        // Clients fetch results through the scheduler.
        enable_embedded_flight_proxy: true,
        override_physical_codec: Some(codec()),
        ..SchedulerConfig::default()
    };
    let listen = options.listen;
    block_on(2, async move {
        let cluster = BallistaCluster::new_from_config(&config).await.map_err(told)?;
        start_server(cluster, listen, Arc::new(config)).await.map_err(told)
    })
}
