//! Any number of workers, killed or not, make the same bytes.

mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{assert_equal, documents, files, lines, Outcome, POINT};

/// `harvest run STORE` with these arguments.
fn worker(store: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_harvest"));
    command.arg("run").arg(store).args(["--threads", "1"]).args(arguments).stderr(Stdio::null());
    command
}

/// Plans a harvest of `n` documents into a folder.
fn plan(store: &Path, corpus: &Path, shard_tokens: &str) {
    let planned = Command::new(env!("CARGO_BIN_EXE_harvest"))
        .arg("plan")
        .arg(store)
        .args(["--model", "toy", "--corpus-format", "lines", "--corpus"])
        .arg(corpus)
        .args(["--point", POINT, "--point", "mlp_out2:bf16", "--format", "parquet,safetensors"])
        .args(["--batch-tokens", "512", "--shard-tokens", shard_tokens])
        .output()
        .unwrap();
    assert!(planned.status.success(), "{}", String::from_utf8_lossy(&planned.stderr));
}

fn finish(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn four_workers_make_the_bytes_of_one() -> Outcome {
    let folder = tempfile::tempdir()?;
    let corpus = lines(folder.path(), &documents(120));
    let [one, four] = ["one", "four"].map(|name| folder.path().join(name));
    plan(&one, &corpus, "500");
    plan(&four, &corpus, "500");
    finish(worker(&one, &[]).spawn()?);
    let workers: Vec<Child> =
        ["0/4", "1/4", "2/4", "3/4"].iter().map(|part| worker(&four, &["--shard", part]).spawn().unwrap()).collect();
    workers.into_iter().for_each(finish);
    assert_equal(&four, &one);
    Ok(())
}

#[test]
fn workers_on_the_same_shards_make_the_bytes_of_one() -> Outcome {
    let folder = tempfile::tempdir()?;
    let corpus = lines(folder.path(), &documents(60));
    let [one, two] = ["one", "two"].map(|name| folder.path().join(name));
    plan(&one, &corpus, "500");
    plan(&two, &corpus, "500");
    finish(worker(&one, &[]).spawn()?);
    let workers: Vec<Child> = (0..2).map(|_| worker(&two, &[]).spawn().unwrap()).collect();
    workers.into_iter().for_each(finish);
    assert_equal(&two, &one);
    Ok(())
}

/// Kills workers at times spread over their lives until the harvest is done; at most `most` of them.
fn killed(kills: u32, most: u32, n: usize, shard_tokens: &str) -> Outcome {
    let folder = tempfile::tempdir()?;
    let corpus = lines(folder.path(), &documents(n));
    let [whole, killed] = ["whole", "killed"].map(|name| folder.path().join(name));
    plan(&whole, &corpus, shard_tokens);
    let started = Instant::now();
    finish(worker(&whole, &[]).spawn()?);
    let life = started.elapsed();
    plan(&killed, &corpus, shard_tokens);
    let (mut done, mut landed, mut partial) = (0, 0, 0);
    let mut state = 1u64;
    while landed < kills && done < most {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let share = (state >> 40) as f64 / (1u64 << 24) as f64;
        let mut child = worker(&killed, &[]).spawn()?;
        let until = Instant::now() + Duration::from_secs_f64(life.as_secs_f64() * (0.2 + share / 2.0));
        while Instant::now() < until && child.try_wait()?.is_none() {
            std::thread::yield_now();
        }
        landed += u32::from(child.try_wait()?.is_none());
        child.kill()?; // SIGKILL
        child.wait()?;
        done += 1;
        let shards = files(&killed).keys().filter(|path| path.starts_with("shards")).count();
        let all = files(&whole).keys().filter(|path| path.starts_with("shards")).count();
        partial += u32::from(shards < all);
        if shards == all && landed < kills {
            // All is committed, so that nothing is left to kill: half of it is made again.
            for shard in (0..all).step_by(2) {
                let _ = std::fs::remove_file(killed.join(format!("shards/{shard:06}.json")));
            }
        }
    }
    finish(worker(&killed, &[]).spawn()?);
    println!("{landed} of {done} kills hit a running worker, {partial} left the harvest unfinished");
    assert!(landed > 0);
    assert_equal(&killed, &whole);
    Ok(())
}

#[test]
fn a_harvest_that_was_killed_goes_on() -> Outcome {
    killed(3, 6, 120, "700")
}

/// Takes minutes: `cargo test --test workers -- --ignored --nocapture`.
#[test]
#[ignore = "a soak test of sixty kills"]
fn a_harvest_that_was_killed_sixty_times_goes_on() -> Outcome {
    killed(60, 400, 2500, "700")
}
