//! A harvest by DataFusion in this process.

use std::sync::Arc;

use datafusion::physical_plan::collect;
use datafusion::prelude::SessionContext;

use super::{block_on, from_engine, opened, operator, HarvestExec};
use crate::{Job, Progress, Result, ShardId, ShardMetadata};

/// Harvests shards by DataFusion in this process, and returns their metadata by number. Committed ones are not made again.
///
/// `parallel` shards are under way at once, each with a pipeline of its own (at least one). They share the model, so more than one helps
/// only where one forward pass leaves the device idle. `progress` is called from other threads; each pipeline counts its own shards.
///
/// It blocks: call it from a thread that may wait.
///
/// # Errors
///
/// Those of [`harvest`](crate::harvest()): what was committed before stays. [`Error::Engine`](crate::Error::Engine) for those of the engine
/// itself.
///
/// ```no_run
/// # fn main() -> tch_lens_harvest::Result<()> {
/// use tch_lens_harvest::{engine::harvest_embedded, Job, Store};
///
/// let job = Job::open(&Store::open("activations")?, tch_lens::tch::Device::Cpu)?;
/// for shard in harvest_embedded(&job, job.manifest().shards(), 1, |_| ())? {
///     println!("{}: {} tokens", shard.shard, shard.tokens);
/// }
/// # Ok(())
/// # }
/// ```
pub fn harvest_embedded(
    job: &Job,
    shards: impl IntoIterator<Item = ShardId>,
    parallel: usize,
    progress: impl Fn(&Progress) + Send + Sync + 'static,
) -> Result<Vec<ShardMetadata>> {
    let shards: Vec<ShardId> = shards.into_iter().collect();
    for &shard in &shards {
        job.manifest().shard(shard)?;
    }
    if shards.is_empty() {
        return Ok(Vec::new());
    }
    let parallel = parallel.clamp(1, shards.len());
    // Dealt in turn, so that all advance from the first to the last.
    let partitions: Vec<Vec<ShardId>> =
        (0..parallel).map(|first| shards.iter().copied().skip(first).step_by(parallel).collect()).collect();
    let held = opened::hold(job, Arc::new(progress))?;
    let plan = HarvestExec::over(held.reference.clone(), &partitions).map_err(from_engine)?;
    let batches = block_on(parallel, async move {
        collect(Arc::new(plan), SessionContext::new().task_ctx()).await.map_err(from_engine)
    })?;
    operator::metadata(&batches)
}
