//! A harvest as a pipeline: one thread reads and tokenises, one runs the model, one collects what is kept, one writes files. Bounded
//! channels lie between them, so memory is that of a few shards, and none waits for another unless it is the slowest.

use std::sync::mpsc::{sync_channel, Receiver, SyncSender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::collect::Collected;
use super::forward::{forward, Values};
use crate::job::Job;
use crate::output::commit;
use crate::prepare::{prepare, Prepared};
use crate::{Error, Result, ShardId, ShardMetadata};

/// How far a harvest is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Shards that are committed, those before this run included.
    pub shards_done: usize,
    /// All shards that this run was asked for.
    pub shards: usize,
    /// Tokens that this run has written, padding not counted.
    pub tokens: u64,
    /// Bytes of files that this run has written.
    pub bytes: u64,
    /// The time since the start.
    pub elapsed: Duration,
    /// The time that the rest takes at the present rate; none before the first shard.
    pub remaining: Option<Duration>,
}

impl Progress {
    /// Tokens a second.
    pub fn rate(&self) -> f64 {
        self.tokens as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// What goes from thread to thread.
enum Message {
    /// A shard that is committed already.
    Skip(ShardMetadata),
    Begin(Arc<Prepared>),
    Batch(usize, Vec<Values>),
    End,
}

/// What is ready to be written.
enum Ready {
    Skip(ShardMetadata),
    Shard(Collected),
}

/// Harvests one shard: reads its documents, runs the model, writes its files and commits them. A shard that is committed already is not made
/// again, so this may be called any number of times, by any number of workers.
///
/// It blocks: call it from a thread that may wait.
///
/// # Errors
///
/// Those of [`harvest`].
pub fn harvest_shard(job: &Job, shard: ShardId) -> Result<ShardMetadata> {
    harvest(job, [shard], |_| ())?.pop().ok_or(Error::Missing { shard })
}

/// Harvests shards, in this order, and returns the metadata of each. Those that are committed already are not made again.
///
/// `progress` is shown after each shard, from another thread.
///
/// # Errors
///
/// [`Error::NoSuchShard`]; [`Error::CorpusChanged`] and others of reading; [`Error::LongDocument`]; [`Error::Value`] for a number that its
/// type cannot hold; [`Error::Store`] for a store that cannot be written; [`Error::Conflict`]. What was committed before stays.
pub fn harvest(
    job: &Job,
    shards: impl IntoIterator<Item = ShardId>,
    progress: impl Fn(&Progress) + Sync,
) -> Result<Vec<ShardMetadata>> {
    let shards: Vec<ShardId> = shards.into_iter().collect();
    for &shard in &shards {
        job.manifest().shard(shard)?;
    }
    std::thread::scope(|scope| {
        let (to_run, prepared) = sync_channel::<Message>(1);
        let (to_collect, outputs) = sync_channel::<Message>(2);
        let (to_write, ready) = sync_channel::<Ready>(1);
        let reader = scope.spawn(|| read(job, &shards, to_run));
        let collector = scope.spawn(move || collect(job, outputs, to_write));
        let (shards, progress) = (&shards, &progress);
        let writer = scope.spawn(move || write(job, shards, ready, progress));
        let ran = run(job, prepared, to_collect);
        // The cause is in the thread that is farthest: the others only find their channels closed.
        let written = writer.join().map_err(|_| Error::Thread("the writer"))?;
        collector.join().map_err(|_| Error::Thread("the collector"))?.and(written).and_then(|written| {
            ran?;
            reader.join().map_err(|_| Error::Thread("the reader"))??;
            Ok(written)
        })
    })
}

/// Sends a message. Returns false if the receiving thread has ended.
fn send<T>(to: &SyncSender<T>, message: T) -> bool {
    to.send(message).is_ok()
}

fn read(job: &Job, shards: &[ShardId], to: SyncSender<Message>) -> Result<()> {
    for &shard in shards {
        let message = match job.committed(shard)? {
            Some(metadata) => {
                job.check_sizes(&metadata)?;
                Message::Skip(metadata)
            }
            None => {
                let allow = job.manifest().allow_unknown;
                let tokenizer = job.model().tokenizer().ok().map(|tokenizer| tokenizer.clone().allow_unknown(allow));
                Message::Begin(Arc::new(prepare(job.manifest(), job.corpus(), tokenizer.as_ref(), shard)?))
            }
        };
        if !send(&to, message) {
            break;
        }
    }
    Ok(())
}

fn run(job: &Job, from: Receiver<Message>, to: SyncSender<Message>) -> Result<()> {
    for message in from {
        let Message::Begin(prepared) = message else {
            if !send(&to, message) {
                break;
            }
            continue;
        };
        if !send(&to, Message::Begin(prepared.clone())) {
            break;
        }
        for (n, batch) in prepared.batches.iter().enumerate() {
            let started = Instant::now();
            let values = forward(job, &prepared, batch)?;
            tracing::debug!(shard = prepared.shard.0, batch = n, seconds = started.elapsed().as_secs_f64(), "run");
            if !send(&to, Message::Batch(n, values)) {
                return Ok(());
            }
        }
        if !send(&to, Message::End) {
            break;
        }
    }
    Ok(())
}

fn collect(job: &Job, from: Receiver<Message>, to: SyncSender<Ready>) -> Result<()> {
    let mut open: Option<Collected> = None;
    for message in from {
        let ready = match (message, &mut open) {
            (Message::Skip(metadata), _) => Ready::Skip(metadata),
            (Message::Begin(prepared), open) => {
                *open = Some(Collected::new(job, prepared)?);
                continue;
            }
            (Message::Batch(n, values), Some(open)) => {
                let prepared = open.prepared.clone();
                open.add(job, &prepared.batches[n], &values)?;
                continue;
            }
            (Message::End, open) => match open.take() {
                Some(collected) => Ready::Shard(collected),
                None => continue,
            },
            (Message::Batch(..), None) => continue,
        };
        if !send(&to, ready) {
            break;
        }
    }
    Ok(())
}

fn write(
    job: &Job,
    shards: &[ShardId],
    from: Receiver<Ready>,
    progress: &(impl Fn(&Progress) + Sync),
) -> Result<Vec<ShardMetadata>> {
    let started = Instant::now();
    let mut so_far = Progress { shards: shards.len(), ..Progress::default() };
    let mut made = 0;
    let mut all = Vec::new();
    for ready in from {
        let metadata = match ready {
            Ready::Skip(metadata) => metadata,
            Ready::Shard(collected) => {
                let metadata = commit(job, collected)?;
                let bytes: u64 = metadata.files.iter().map(|file| file.bytes).sum();
                so_far.tokens += metadata.tokens;
                so_far.bytes += bytes;
                made += 1;
                tracing::info!(
                    shard = metadata.shard.0,
                    tokens = metadata.tokens,
                    activations = metadata.activations,
                    bytes,
                    "committed"
                );
                metadata
            }
        };
        so_far.shards_done += 1;
        so_far.elapsed = started.elapsed();
        so_far.remaining =
            (made > 0).then(|| so_far.elapsed.mul_f64((so_far.shards - so_far.shards_done) as f64 / made as f64));
        progress(&so_far);
        all.push(metadata);
    }
    if all.len() == shards.len() || so_far.shards == 0 {
        tracing::info!(shards = all.len(), made, tokens = so_far.tokens, rate = so_far.rate(), "done");
    }
    Ok(all)
}
