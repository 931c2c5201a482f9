//! Scheduler, workers and clients of a cluster.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tch_lens_harvest::engine::cluster::{
    harvest_on_cluster, serve_scheduler, serve_worker, ClusterOptions, SchedulerOptions, WorkerOptions,
};
use tch_lens_harvest::{Progress, Result, ShardId, Store};

#[derive(Debug, Args)]
pub(super) struct SchedulerArgs {
    /// The address where it listens.
    #[arg(long, default_value = "127.0.0.1:50050")]
    listen: SocketAddr,
    /// The seconds for which a worker may be silent before its tasks go to others; at least 7.
    #[arg(long, default_value_t = 30)]
    silence: u64,
}

impl SchedulerArgs {
    pub(super) fn serve(self) -> Result<()> {
        let silence = Duration::from_secs(self.silence);
        serve_scheduler(&SchedulerOptions { silence, ..SchedulerOptions::at(self.listen) })
    }
}

#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    /// The scheduler's address, such as df://host:50050.
    #[arg(long)]
    scheduler: String,
    /// The device: cpu, cuda, or cuda:1.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads of libtorch. Shards have the same bytes only with the same number.
    #[arg(long)]
    threads: Option<i32>,
    /// The address where the scheduler fetches results.
    #[arg(long, default_value = "127.0.0.1")]
    listen: IpAddr,
    /// The port; a free one, unless said otherwise.
    #[arg(long)]
    port: Option<u16>,
    /// The name under which the scheduler reaches this machine; the address from which it calls, unless said otherwise.
    #[arg(long)]
    host: Option<String>,
    /// A folder for results, a few kilobytes a task; a temporary one, unless said otherwise.
    #[arg(long)]
    folder: Option<PathBuf>,
}

impl WorkerArgs {
    pub(super) fn serve(self) -> Result<()> {
        super::set_threads(self.threads)?;
        let device = super::device(&self.device)?;
        let WorkerArgs { scheduler, listen, port, host, folder, .. } = self;
        serve_worker(&WorkerOptions { scheduler, device, listen, port, host, folder })
    }
}

#[derive(Debug, Args)]
pub(super) struct ClientArgs {
    /// Harvest on a cluster, whose scheduler has this address, such as df://host:50050. Its workers choose device and threads.
    #[arg(long)]
    pub(super) scheduler: Option<String>,
    /// The shards of a task on a cluster.
    #[arg(long, default_value_t = 4)]
    shards_per_task: usize,
    /// The seconds for which it waits for the next shard of a cluster.
    #[arg(long, default_value_t = 3600)]
    patience: u64,
}

impl ClientArgs {
    pub(super) fn harvest(
        &self,
        scheduler: &str,
        store: &Store,
        shards: Vec<ShardId>,
        progress: impl Fn(&Progress) + Sync,
    ) -> Result<()> {
        let options = ClusterOptions {
            shards_per_task: self.shards_per_task,
            patience: Duration::from_secs(self.patience),
            ..ClusterOptions::of(scheduler)
        };
        harvest_on_cluster(store, Some(shards), &options, progress).map(|_| ())
    }
}
