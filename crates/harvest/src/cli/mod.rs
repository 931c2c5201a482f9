//! The commands.

#[cfg(feature = "cluster")]
mod cluster;
mod plan;
mod progress;
#[cfg(feature = "engine")]
mod query;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tch_lens::tch::Device;
#[cfg(feature = "engine")]
use tch_lens_harvest::engine::harvest_embedded;
#[cfg(not(feature = "engine"))]
use tch_lens_harvest::harvest;
use tch_lens_harvest::{load_model, verify, Error, Job, Manifest, PointStatistics, Progress, Result, ShardId, Store};

use self::plan::PlanArgs;

/// Activations of a corpus: any points of a model, to sharded, shuffled, resumable storage.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the manifest of a harvest: reads the corpus once, runs nothing.
    Plan {
        /// Where the harvest goes: a folder, or a URL such as s3://bucket/folder.
        store: String,
        #[command(flatten)]
        plan: PlanArgs,
    },
    /// Harvest the shards that are not there yet; with --model and what goes with it, plan first.
    Run {
        /// Where the harvest goes: a folder, or a URL such as s3://bucket/folder.
        store: String,
        #[command(flatten)]
        run: RunArgs,
        #[command(flatten)]
        plan: PlanArgs,
    },
    /// Compare all files of a harvest with their checksums.
    Verify {
        /// Where the harvest lies.
        store: String,
        /// Let damaged shards be made again by the next run.
        #[arg(long)]
        repair: bool,
    },
    /// Print the statistics of a whole harvest, one line of JSON a point.
    Statistics {
        /// Where the harvest lies.
        store: String,
    },
    /// Hand the shards of harvests to workers, until the process ends.
    #[cfg(feature = "cluster")]
    Scheduler(cluster::SchedulerArgs),
    /// Harvest what a scheduler hands out, one task at a time, until the process ends. Start one for each GPU.
    #[cfg(feature = "cluster")]
    Worker(cluster::WorkerArgs),
    #[cfg(feature = "engine")]
    #[command(flatten)]
    Question(query::Question),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The shards: one (7), or every fourth from the first (0/4). All, unless said otherwise.
    #[arg(long, value_name = "N or N/M")]
    shard: Option<String>,
    /// The device: cpu, cuda, or cuda:1.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads of libtorch. Shards have the same bytes only with the same number.
    #[arg(long)]
    threads: Option<i32>,
    /// Print no progress.
    #[arg(long, short)]
    quiet: bool,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    cluster: cluster::ClientArgs,
}

pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Plan { store, plan } => {
            let store = Store::open(&store)?;
            let model = plan.load(Device::Cpu)?;
            let manifest = plan.manifest(&model)?;
            let (shards, documents) = (manifest.shards.len(), manifest.corpus.documents);
            Job::new(manifest, model, store.clone())?;
            println!("{}: {documents} documents, {shards} shards, numbered from 0", store.address());
            Ok(ExitCode::SUCCESS)
        }
        Command::Run { store, run, plan } => {
            set_threads(run.threads)?;
            let device = device(&run.device)?;
            let store = Store::open(&store)?;
            #[cfg(feature = "cluster")]
            if let Some(scheduler) = &run.cluster.scheduler {
                if plan.is_given() {
                    let model = plan.load(Device::Cpu)?;
                    Job::new(plan.manifest(&model)?, model, store.clone())?;
                }
                let shards = shards(&Job::manifest_of(&store)?, run.shard.as_deref())?;
                run.cluster.harvest(scheduler, &store, shards, show_progress(run.quiet))?;
                return Ok(ExitCode::SUCCESS);
            }
            let job = match plan.is_given() {
                true => {
                    let model = plan.load(device)?;
                    Job::new(plan.manifest(&model)?, model, store)?
                }
                false => Job::open(&store, device)?,
            };
            let shards = shards(job.manifest(), run.shard.as_deref())?;
            let show = show_progress(run.quiet);
            #[cfg(feature = "engine")]
            harvest_embedded(&job, shards, 1, show)?;
            #[cfg(not(feature = "engine"))]
            harvest(&job, shards, show)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify { store, repair } => {
            let found = verify(&Store::open(&store)?, repair)?;
            for (_, error) in &found.damaged {
                eprintln!("harvest: {error}");
            }
            println!(
                "{} shards whole ({} tokens, {} activations, {}), {} not harvested yet, {} damaged{}",
                found.whole.len(),
                found.tokens,
                found.activations,
                progress::bytes(found.bytes),
                found.missing.len(),
                found.damaged.len(),
                if repair && !found.damaged.is_empty() { ": run `harvest run` to make them again" } else { "" },
            );
            Ok(if found.damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        #[cfg(feature = "cluster")]
        Command::Scheduler(scheduler) => scheduler.serve().map(|()| ExitCode::SUCCESS),
        #[cfg(feature = "cluster")]
        Command::Worker(worker) => worker.serve().map(|()| ExitCode::SUCCESS),
        #[cfg(feature = "engine")]
        Command::Question(question) => question.answer().map(|()| ExitCode::SUCCESS),
        Command::Statistics { store } => {
            let store = Store::open(&store)?;
            let manifest = Job::manifest_of(&store)?;
            let model =
                load_model(&manifest.model.source, manifest.model.dtype, manifest.model.processed, Device::Cpu)?;
            let job = Job::new(manifest, model, store)?;
            for of in PointStatistics::of_harvest(&job)? {
                let line = serde_json::json!({
                    "point": of.column, "count": of.count, "mean": of.mean, "variance": of.variance(), "active": of.active,
                    "norm": of.norm_mean,
                });
                println!("{line}");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn set_threads(threads: Option<i32>) -> Result<()> {
    match threads {
        Some(threads) if threads < 1 => Err(Error::Setting(format!("--threads is at least 1, and not {threads}"))),
        Some(threads) => {
            tch_lens::tch::set_num_threads(threads);
            Ok(())
        }
        None => Ok(()),
    }
}

fn device(name: &str) -> Result<Device> {
    match name.strip_prefix("cuda") {
        Some("") => Ok(Device::Cuda(0)),
        Some(number) => match number.strip_prefix(':').and_then(|number| number.parse().ok()) {
            Some(number) => Ok(Device::Cuda(number)),
            None => Err(Error::Setting(format!("there is no device `{name}`: choose cpu, cuda, or cuda:N"))),
        },
        None if name == "cpu" => Ok(Device::Cpu),
        None => Err(Error::Setting(format!("there is no device `{name}`: choose cpu, cuda, or cuda:N"))),
    }
}

fn show_progress(quiet: bool) -> impl Fn(&Progress) + Send + Sync + 'static {
    move |progress| {
        if !quiet {
            progress::print(progress);
        }
    }
}

/// The shards of `--shard`.
fn shards(manifest: &Manifest, wanted: Option<&str>) -> Result<Vec<ShardId>> {
    let Some(wanted) = wanted else { return Ok(manifest.shards().collect()) };
    let wrong = || Error::Setting(format!("`--shard {wanted}` is neither a shard (7) nor every M-th (0/4)"));
    match wanted.split_once('/') {
        None => Ok(vec![ShardId(wanted.parse().map_err(|_| wrong())?)]),
        Some((first, of)) => {
            let (first, of): (u32, u32) = (first.parse().map_err(|_| wrong())?, of.parse().map_err(|_| wrong())?);
            if first >= of {
                return Err(Error::Setting(format!(
                    "`--shard {wanted}` is worker {first} of {of}, which are numbered from 0"
                )));
            }
            Ok(manifest.shards().skip(first as usize).step_by(of as usize).collect())
        }
    }
}
