//! The client: hands shards to a scheduler, in waves, until all are committed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballista_core::execution_plans::execute_physical_plan;
use ballista_core::extension::SessionConfigExt as _;
use ballista_core::ids::new_instance_id;
use datafusion::prelude::SessionConfig;
use datafusion_proto::protobuf::PhysicalPlanNode;
use futures_util::TryStreamExt as _;

use super::{codec, scheduler_address, told};
use crate::engine::{block_on, operator, HarvestExec, HarvestReference, Told};
use crate::job::committed;
use crate::{Error, Progress, Result, ShardId, ShardMetadata, Store};

/// The most tasks of one submission. Scheduler and client hold all tasks of one in memory, and a message has at most 16 MB.
const WAVE: usize = 1024;
/// How often the store is asked how far the harvest is.
const LOOK: Duration = Duration::from_secs(2);

/// How a client works.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The scheduler's address, such as `df://host:50050`.
    pub scheduler: String,
    /// The shards of a task. Within a task, reading and writing of one shard overlap with the forward passes of another.
    pub shards_per_task: usize,
    /// How long it waits for the next shard before it gives up.
    pub patience: Duration,
}

impl ClusterOptions {
    /// Tasks of 4 shards, and an hour of patience.
    pub fn of(scheduler: &str) -> Self {
        ClusterOptions { scheduler: scheduler.into(), shards_per_task: 4, patience: Duration::from_secs(3600) }
    }
}

/// Harvests shards on a cluster, and returns their metadata by number. Committed ones are not made again, and no model is loaded here.
///
/// The store decides what is done: after each submission, whatever became of it, the shards that are not committed are submitted again. So a
/// scheduler that was restarted costs the tasks that ran. `progress` is called every 2 seconds in which shards came.
///
/// It blocks: call it from a thread that may wait.
///
/// # Errors
///
/// [`Error::Engine`] with the worker's own sentence for a shard that cannot be made, and if no shard comes for as long as the patience;
/// [`Error::NoManifest`], [`Error::NoSuchShard`], [`Error::Address`], [`Error::Store`].
pub fn harvest_on_cluster(
    store: &Store,
    shards: Option<Vec<ShardId>>,
    options: &ClusterOptions,
    progress: impl Fn(&Progress) + Sync,
) -> Result<Vec<ShardMetadata>> {
    let (host, port) = scheduler_address(&options.scheduler)?;
    let (reference, manifest) = HarvestReference::read(store)?;
    let shards = shards.unwrap_or_else(|| manifest.shards().collect());
    for &shard in &shards {
        manifest.shard(shard)?;
    }
    let mut client = Client {
        store,
        reference,
        url: format!("http://{host}:{port}"),
        options,
        wanted: shards.len(),
        start: Instant::now(),
        last: Instant::now(),
        found: BTreeMap::new(),
        before: (0, 0, 0),
        progress: &progress,
    };
    client.look(&shards)?;
    client.before = client.sums();
    let mut rest = client.missing(&shards);
    let mut pause = Duration::from_millis(500);
    while !rest.is_empty() {
        let wave: Vec<ShardId> = rest.iter().copied().take(WAVE * options.shards_per_task.max(1)).collect();
        let known = client.found.len();
        let ended = client.submit(&wave)?;
        if client.look(&wave)? {
            client.tell();
        }
        if client.found.len() > known {
            pause = Duration::from_millis(500);
        } else {
            pause = (2 * pause).min(Duration::from_secs(30));
        }
        if let Err(error) = ended {
            let text = error.to_string();
            // A worker's own sentence: the shard fails wherever it is made, or its store failed four times.
            if Told::sentence(&text).is_some() {
                return Err(told(text));
            }
            tracing::warn!("the scheduler lost a harvest, which is submitted again: {text}");
            client.impatient(&text)?;
            std::thread::sleep(pause);
        }
        rest = client.missing(&shards);
    }
    shards.iter().map(|shard| client.found.get(shard).cloned().ok_or(Error::Missing { shard: *shard })).collect()
}

struct Client<'a> {
    store: &'a Store,
    reference: HarvestReference,
    url: String,
    options: &'a ClusterOptions,
    /// The shards that were asked for.
    wanted: usize,
    start: Instant,
    /// When the last shard came.
    last: Instant,
    found: BTreeMap<ShardId, ShardMetadata>,
    /// What of it was there before.
    before: (usize, u64, u64),
    progress: &'a (dyn Fn(&Progress) + Sync),
}

impl Client<'_> {
    fn missing(&self, shards: &[ShardId]) -> Vec<ShardId> {
        shards.iter().copied().filter(|shard| !self.found.contains_key(shard)).collect()
    }

    /// Asks the store for the shards that are not known yet. Whether some came.
    fn look(&mut self, shards: &[ShardId]) -> Result<bool> {
        let known = self.found.len();
        for shard in self.missing(shards) {
            if let Some(metadata) = committed(self.store, &self.reference.manifest, shard)? {
                self.found.insert(shard, metadata);
            }
        }
        let some = self.found.len() > known;
        if some {
            self.last = Instant::now();
        }
        Ok(some)
    }

    /// The shards, tokens and bytes that are there.
    fn sums(&self) -> (usize, u64, u64) {
        let tokens = self.found.values().map(|metadata| metadata.tokens).sum();
        let bytes = self.found.values().flat_map(|metadata| &metadata.files).map(|file| file.bytes).sum();
        (self.found.len(), tokens, bytes)
    }

    fn tell(&self) {
        let (now, before) = (self.sums(), self.before);
        let (done, tokens, bytes) = (now.0 - before.0, now.1 - before.1, now.2 - before.2);
        let elapsed = self.start.elapsed();
        let remaining = (done > 0).then(|| elapsed.mul_f64((self.wanted - self.found.len()) as f64 / done as f64));
        let (shards_done, shards) = (self.found.len(), self.wanted);
        (self.progress)(&Progress { shards_done, shards, tokens, bytes, elapsed, remaining });
    }

    fn impatient(&self, why: &str) -> Result<()> {
        let waited = self.last.elapsed();
        if waited < self.options.patience {
            return Ok(());
        }
        Err(Error::Engine(format!(
            "no shard came for {} s, and {} of {} are missing ({why}): see whether a scheduler and workers run at {}, then run this again, \
             which goes on where it was",
            waited.as_secs(),
            self.wanted - self.found.len(),
            self.wanted,
            self.options.scheduler,
        )))
    }

    /// Submits shards and waits for the end, whatever it is. The error inside is the engine's; the one outside ends the harvest.
    fn submit(&mut self, wave: &[ShardId]) -> Result<Result<()>> {
        let tasks: Vec<Vec<ShardId>> =
            wave.chunks(self.options.shards_per_task.max(1)).map(<[ShardId]>::to_vec).collect();
        let plan = HarvestExec::over(self.reference.clone(), &tasks).map_err(told)?;
        let mut config = SessionConfig::new_with_ballista();
        // A task is one partition. The client is told of changes over a stream, which ends when the scheduler does: one that asks would
        // wait for ever if a scheduler came back that does not know the job. Pings find out a scheduler that is gone without a word.
        for (key, value) in [
            ("ballista.scheduler.max_partitions_per_task", "1"),
            ("ballista.client.pull", "false"),
            ("ballista.client.grpc_http2_keepalive_interval_seconds", "10"),
            ("ballista.job.name", "harvest"),
        ] {
            config.options_mut().set(key, value).map_err(told)?;
        }
        let url = self.url.clone();
        let job = async move {
            let ballista = config.ballista_config();
            let codec = codec();
            let session = new_instance_id();
            let results = execute_physical_plan::<PhysicalPlanNode>(
                url,
                &ballista,
                Arc::new(plan),
                codec.as_ref(),
                session,
                config,
            )
            .await?;
            results.try_collect::<Vec<_>>().await
        };
        let (to_here, ended) = std::sync::mpsc::channel();
        let this = &mut *self;
        std::thread::scope(|scope| {
            // Dropping the other end stops the wait for the engine.
            let (give_up, gives_up) = tokio::sync::oneshot::channel::<()>();
            scope.spawn(move || {
                let ended = block_on(1, async move {
                    tokio::select! {
                        ended = job => ended.map_err(|error| Error::Engine(error.to_string())),
                        _ = gives_up => Err(Error::Engine("given up".into())),
                    }
                });
                let _ = to_here.send(ended);
            });
            loop {
                match ended.recv_timeout(LOOK) {
                    Ok(Ok(batches)) => {
                        for metadata in operator::metadata(&batches)? {
                            this.found.insert(metadata.shard, metadata);
                            this.last = Instant::now();
                        }
                        this.tell();
                        return Ok(Ok(()));
                    }
                    Ok(Err(error)) => return Ok(Err(error)),
                    Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                        if this.look(wave)? {
                            this.tell();
                        }
                        this.impatient("the scheduler has it")?;
                    }
                    Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                        drop(give_up);
                        return Err(Error::Thread("the engine"));
                    }
                }
            }
        })
    }
}
