//! The commands.

mod plan;
mod progress;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tch_lens::tch::Device;
use tch_lens_harvest::{harvest, load_model, verify, Error, Job, PointStatistics, Result, ShardId, Store};

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
            if let Some(threads) = run.threads {
                if threads < 1 {
                    return Err(Error::Setting(format!("--threads is at least 1, and not {threads}")));
                }
                tch_lens::tch::set_num_threads(threads);
            }
            let device = device(&run.device)?;
            let store = Store::open(&store)?;
            let job = match plan.is_given() {
                true => {
                    let model = plan.load(device)?;
                    Job::new(plan.manifest(&model)?, model, store)?
                }
                false => Job::open(&store, device)?,
            };
            let shards = shards(&job, run.shard.as_deref())?;
            harvest(&job, shards, |progress| {
                if !run.quiet {
                    progress::print(progress);
                }
            })?;
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

/// The shards of `--shard`.
fn shards(job: &Job, wanted: Option<&str>) -> Result<Vec<ShardId>> {
    let Some(wanted) = wanted else { return Ok(job.manifest().shards().collect()) };
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
            Ok(job.manifest().shards().skip(first as usize).step_by(of as usize).collect())
        }
    }
}
