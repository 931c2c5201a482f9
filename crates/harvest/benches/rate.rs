//! The rate of a harvest against the bare forward pass on the same tokens: GPT-2 small's shape with random weights, fp32, two points kept.
//! Both are measured in turn, in one process.
//!
//! ```text
//! ./with-libtorch cargo bench --manifest-path crates/harvest/Cargo.toml --bench rate -- [TOKENS [ROUNDS]]
//! ```

use std::time::{Duration, Instant};

use tch_lens::{Config, HookedTransformer, RunOptions};
use tch_lens_harvest::manifest::CorpusFormat;
use tch_lens_harvest::{harvest, DType, Job, PlanOptions, Store};

const CONTEXT: usize = 256;
const BATCH: usize = 2048;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let tokens = numbers.first().copied().unwrap_or(16384);
    let rounds = numbers.get(1).copied().unwrap_or(3);
    let config = Config::new(12, 768, 12, 50257, 1024);
    let model = HookedTransformer::init(config, 1)?;
    let folder = tempfile::tempdir()?;
    let corpus = folder.path().join("tokens.jsonl");
    let mut state = 1u64;
    let mut rows: Vec<Vec<i64>> = Vec::new();
    for _ in 0..tokens / CONTEXT {
        let row = (0..CONTEXT).map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as i64 % 50257
        });
        rows.push(row.collect());
    }
    let lines: Vec<String> = rows.iter().map(|row| format!("{{\"tokens\":{row:?}}}\n")).collect();
    std::fs::write(&corpus, lines.concat())?;
    let format = CorpusFormat::JsonLines { column: "tokens".into(), tokens: true };
    let manifest = PlanOptions::new("random weights")
        .point("blocks.5.hook_resid_post", DType::Fp32)
        .point("blocks.11.hook_resid_post", DType::Fp32)
        .context(CONTEXT)
        .batch_tokens(BATCH)
        .shard_tokens(4096)
        .plan(&model, format, &[corpus.display().to_string()])?;
    let bare = || -> Result<Duration, Box<dyn std::error::Error>> {
        let started = Instant::now();
        for batch in rows.chunks(BATCH / CONTEXT) {
            // All layers, without the unembedding, which a harvest of these points does not need either.
            model.run(batch.to_vec(), RunOptions::new().stop_at_layer(12))?;
        }
        Ok(started.elapsed())
    };
    bare()?;
    let mut sums = [Duration::ZERO; 2];
    for round in 0..rounds {
        let before = bare()?;
        let store = Store::open(&folder.path().join(format!("harvest-{round}")).display().to_string())?;
        let job = Job::new(manifest.clone(), model.clone(), store)?;
        let started = Instant::now();
        let shards = harvest(&job, job.manifest().shards(), |_| ())?;
        let harvested = started.elapsed();
        let after = bare()?;
        let bytes: u64 = shards.iter().flat_map(|shard| &shard.files).map(|file| file.bytes).sum();
        let forward = (before + after) / 2;
        sums[0] += forward;
        sums[1] += harvested;
        println!(
            "round {round}: bare {:.0} tokens/s, harvest {:.0} tokens/s ({:.1} MB in {} shards), ratio {:.3}",
            tokens as f64 / forward.as_secs_f64(),
            tokens as f64 / harvested.as_secs_f64(),
            bytes as f64 / 1e6,
            shards.len(),
            forward.as_secs_f64() / harvested.as_secs_f64(),
        );
        std::fs::remove_dir_all(folder.path().join(format!("harvest-{round}")))?;
    }
    println!("ratio of all rounds: {:.3}", sums[0].as_secs_f64() / sums[1].as_secs_f64());
    Ok(())
}
