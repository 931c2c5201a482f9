//! This crate's side of the group `graphs` of `benches/peers/run`: one attribution graph.
//!
//! `graph_peer MODEL TRANSCODERS POSITIONS NODES [budget]` prints the milliseconds, the process's peak memory in bytes, and the sum of the
//! absolute values of all edges. With `budget`, edges in memory take a quarter of what the dense matrix of circuit-tracer takes.

use std::error::Error;
use std::time::Instant;

use tch::{Device, Kind, Tensor};
use tch_lens::graphs::AttributionGraphOptions;
use tch_lens::{DictionaryOptions, LoadOptions};

fn main() -> Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, transcoders, positions, nodes, ..] = &arguments[..] else {
        return Err("usage: graph_peer MODEL TRANSCODERS POSITIONS NODES [budget]".into());
    };
    let model = LoadOptions::new().no_processing().kind(Kind::Float).open(model)?;
    let transcoders = DictionaryOptions::new().open_set(transcoders)?;
    let vocabulary = model.config().d_vocab as i64;
    let ids = Tensor::arange(positions.parse::<i64>()?, (Kind::Int64, Device::Cpu)) * 7919;
    let ids = ids.remainder(vocabulary - 7).unsqueeze(0);
    let options = AttributionGraphOptions::new().transcoders(transcoders).logits([5, 7]).batch_size(64);
    let mut options = options.max_nodes(nodes.parse()?).update_interval(4);
    let start = Instant::now();
    if arguments.get(4).is_some_and(|word| word == "budget") {
        let dense = model.estimate_graph(&ids, options.clone())?.dense_bytes;
        options = options.memory(dense / 4);
    }
    let graph = model.attribution_graph(&ids, options)?;
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    let mut sum = 0.0;
    for node in 0..graph.nodes().len() {
        sum += graph.edges_into(node)?.iter().map(|(_, edge)| f64::from(edge.abs())).sum::<f64>();
    }
    println!("{milliseconds} {} {sum}", peak_bytes());
    Ok(())
}

fn peak_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(f64::NAN) * 1024.0
}
