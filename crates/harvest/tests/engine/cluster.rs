//! A scheduler, workers and a client, each a process of its own on this machine, whatever is killed.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tch_lens_harvest::{harvest, Manifest};

use crate::support::{assert_equal, documents, job, lines, options, plan, Outcome};

/// Ends with the test, killed.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(arguments: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_harvest"));
    program.args(arguments).env("OMP_NUM_THREADS", "1").env("RUST_LOG", "warn,ballista_executor=off");
    program
}

fn start(arguments: &[&str]) -> Process {
    Process(program(arguments).spawn().unwrap())
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

struct Cluster {
    listen: String,
    address: String,
}

impl Cluster {
    fn new() -> Self {
        let port = free_port();
        Cluster { listen: format!("127.0.0.1:{port}"), address: format!("df://127.0.0.1:{port}") }
    }

    fn scheduler(&self) -> Process {
        start(&["scheduler", "--listen", &self.listen, "--silence", "7"])
    }

    fn worker(&self) -> Process {
        start(&["worker", "--scheduler", &self.address, "--threads", "1"])
    }

    fn client(&self, store: &Path, patience: &str) -> Command {
        let store = store.to_str().unwrap();
        program(&[
            "run",
            store,
            "--scheduler",
            &self.address,
            "--shards-per-task",
            "2",
            "--patience",
            patience,
            "--quiet",
        ])
    }

    fn start_client(&self, store: &Path) -> Process {
        Process(self.client(store, "120").stderr(Stdio::piped()).spawn().unwrap())
    }
}

fn committed(store: &Path) -> usize {
    std::fs::read_dir(store.join("shards")).map_or(0, Iterator::count)
}

/// Looks until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(120), "waited two minutes until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn finish(client: Process) -> Output {
    let mut client = client;
    until("the client ends", || client.0.try_wait().unwrap().is_some());
    let mut errors = String::new();
    if let Some(mut pipe) = client.0.stderr.take() {
        use std::io::Read as _;
        pipe.read_to_string(&mut errors).unwrap();
    }
    Output { status: client.0.wait().unwrap(), stdout: Vec::new(), stderr: errors.into_bytes() }
}

/// A harvest of many small shards, made without an engine; the folder that it and others lie in.
fn reference(documents_: usize) -> (tempfile::TempDir, Manifest, PathBuf) {
    tch_lens::tch::set_num_threads(1);
    let folder = tempfile::tempdir().unwrap();
    let corpus = lines(folder.path(), &documents(documents_));
    let manifest = plan(options().shard_tokens(60).batch_tokens(32), &corpus).unwrap();
    let place = folder.path().join("reference");
    let alone = job(&manifest, &place).unwrap();
    harvest(&alone, manifest.shards(), |_| ()).unwrap();
    (folder, manifest, place)
}

/// A planned harvest without shards.
fn planned(manifest: &Manifest, folder: &Path, name: &str) -> PathBuf {
    let place = folder.join(name);
    job(manifest, &place).unwrap();
    place
}

#[test]
fn a_cluster_and_shard_processes_make_the_same_bytes() -> Outcome {
    let (folder, manifest, expected) = reference(60);
    let cluster = Cluster::new();
    let store = planned(&manifest, folder.path(), "cluster");
    let _running = [cluster.scheduler(), cluster.worker(), cluster.worker()];
    let done = finish(cluster.start_client(&store));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_equal(&store, &expected);

    let store = planned(&manifest, folder.path(), "array");
    let place = store.to_str().unwrap();
    let shards = ["0/4", "1/4", "2/4", "3/4"];
    let array = shards.map(|shard| start(&["run", place, "--shard", shard, "--threads", "1", "--quiet"]));
    for process in array {
        assert!(finish(process).status.success());
    }
    assert_equal(&store, &expected);
    Ok(())
}

#[test]
fn a_worker_and_then_the_scheduler_may_be_killed() -> Outcome {
    let (folder, manifest, expected) = reference(160);
    let cluster = Cluster::new();
    let store = planned(&manifest, folder.path(), "harvest");
    let scheduler = cluster.scheduler();
    let (victim, other) = (cluster.worker(), cluster.worker());
    let client = cluster.start_client(&store);
    until("some shards are there", || committed(&store) > 3);
    drop(victim);
    let at_first = committed(&store);
    until("more shards are there", || committed(&store) > at_first + 3);
    drop(scheduler);
    let at_second = committed(&store);
    let _scheduler = cluster.scheduler();
    let done = finish(client);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    println!("killed a worker at {at_first} and the scheduler at {at_second} of {} shards", manifest.shards.len());
    assert!(at_second < manifest.shards.len());
    drop(other);
    remove_leftovers(&store);
    assert_equal(&store, &expected);
    Ok(())
}

#[test]
fn a_shard_that_cannot_be_made_is_one_sentence() -> Outcome {
    let (folder, manifest, _) = reference(40);
    let cluster = Cluster::new();
    let store = planned(&manifest, folder.path(), "harvest");
    let corpus = folder.path().join("corpus.txt");
    std::fs::write(&corpus, std::fs::read_to_string(&corpus)?.replace("France", "Frence"))?;
    let _running = [cluster.scheduler(), cluster.worker()];
    let done = finish(cluster.start_client(&store));
    let errors = String::from_utf8(done.stderr)?;
    println!("{errors}");
    assert!(!done.status.success());
    let last = errors.lines().last().unwrap();
    assert!(
        last.starts_with("harvest: ") && last.contains("is not the file that the harvest was planned with"),
        "{last}"
    );
    assert!(!last.contains("DataFusionError"), "{last}");
    Ok(())
}

#[test]
fn without_a_scheduler_patience_ends() -> Outcome {
    let (folder, manifest, _) = reference(10);
    let cluster = Cluster::new();
    let store = planned(&manifest, folder.path(), "harvest");
    let done = cluster.client(&store, "1").output()?;
    let errors = String::from_utf8(done.stderr)?;
    println!("{errors}");
    assert!(!done.status.success());
    assert!(errors.lines().last().unwrap().contains("see whether a scheduler and workers run at df://"), "{errors}");
    Ok(())
}

/// Removes unfinished files; how many there were. A worker leaves one if it is killed while it makes a shard that another has committed.
fn remove_leftovers(folder: &Path) -> usize {
    let mut removed = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            removed += remove_leftovers(&path);
        } else if path.extension().is_some_and(|ending| ending == "part") {
            std::fs::remove_file(path).unwrap();
            removed += 1;
        }
    }
    removed
}

/// `HARVEST_KILLS` processes, 50 unless it is set, are killed at random points: `cargo test --features cluster --test engine -- --ignored soak`.
#[test]
#[ignore = "takes minutes; fifty kills"]
fn soak() {
    let kills: usize = std::env::var("HARVEST_KILLS").map_or(50, |text| text.parse().unwrap());
    let (folder, manifest, expected) = reference(400);
    let (mut killed, mut round, mut leftovers) = ([0usize; 3], 0, 0);
    let mut seed = 88_172_645_463_325_252u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let begun = Instant::now();
    while killed.iter().sum::<usize>() < kills {
        let cluster = Cluster::new();
        let store = planned(&manifest, folder.path(), &format!("soak{round}"));
        let mut scheduler = cluster.scheduler();
        let mut workers = [cluster.worker(), cluster.worker()];
        let mut client = cluster.start_client(&store);
        let mut next = Instant::now() + Duration::from_millis(300 + random(2500));
        until("the harvest is whole", || {
            if let Some(status) = client.0.try_wait().unwrap() {
                if !status.success() {
                    let mut errors = String::new();
                    std::io::Read::read_to_string(client.0.stderr.as_mut().unwrap(), &mut errors).unwrap();
                    panic!("the client ended with {errors}");
                }
                return true;
            }
            if Instant::now() > next && killed.iter().sum::<usize>() < kills {
                next = Instant::now() + Duration::from_millis(300 + random(2500));
                // Replaced after it is dropped, as the scheduler's port must be free.
                match random(5) {
                    0 => {
                        scheduler.0.kill().unwrap();
                        scheduler.0.wait().unwrap();
                        scheduler = cluster.scheduler();
                        killed[0] += 1;
                    }
                    1 => {
                        client.0.kill().unwrap();
                        client.0.wait().unwrap();
                        client = cluster.start_client(&store);
                        killed[1] += 1;
                    }
                    n => {
                        let worker = &mut workers[n as usize % 2];
                        worker.0.kill().unwrap();
                        worker.0.wait().unwrap();
                        *worker = cluster.worker();
                        killed[2] += 1;
                    }
                }
            }
            false
        });
        drop(workers);
        leftovers += remove_leftovers(&store);
        assert_equal(&store, &expected);
        std::fs::remove_dir_all(&store).unwrap();
        round += 1;
    }
    println!(
        "{} kills (scheduler {}, client {}, workers {}) in {round} harvests of {} shards and {:.0} s: all equal, {leftovers} unfinished files left",
        killed.iter().sum::<usize>(),
        killed[0],
        killed[1],
        killed[2],
        manifest.shards.len(),
        begun.elapsed().as_secs_f64(),
    );
}
