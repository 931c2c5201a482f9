//! Through which heads and neurons does the model name the indirect object? The attribution graph of one prompt.
//!
//! Every node adds something to the stream, and an edge is what it adds directly to what another node reads, at the attention patterns and
//! norms of the run. What will be seen on the toy model: the inputs of every node add up to what it reads, to a millionth. Most influence on
//! the logit of ` Mary` comes from the token ` Mary`: a head of the first layer copies it to the word after the names, and two heads of the
//! second layer take it from there to the last position, where they write the logit.
//!
//! ```text
//! cargo run --release --example attribution_graph
//! cargo run --release --example attribution_graph -- --prompt "When Peter and Anna went to the park, Anna gave a ball to" --logit " Peter"
//! cargo run --release --example attribution_graph -- --transcoders FOLDER --write FOLDER
//! ```

use std::error::Error;
use std::path::PathBuf;

use lexopt::prelude::*;
use tch_lens::graphs::{AttributionGraph, AttributionGraphOptions, AttributionNode, GraphFile, PruneOptions};
use tch_lens::{DictionaryOptions, HookedTransformer};

const HELP: &str = "\
The attribution graph of a prompt of the toy model

  --prompt TEXT          the prompt
  --logit TOKEN          whose logit is traced (default: \" Mary\")
  --nodes N              how many heads and neurons (or features) are nodes (default: 400)
  --transcoders FOLDER   circuit-tracer's transcoders, whose features stand for MLPs
  --write FOLDER         also write the graph as JSON for circuit-tracer's page and Neuronpedia";

fn main() -> Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let mut prompt = String::from("When Mary and John went to the shop, John gave a bag to");
    let (mut logit, mut nodes, mut transcoders, mut write) = (String::from(" Mary"), 400, None, None::<PathBuf>);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("prompt") => prompt = arguments.value()?.string()?,
            Long("logit") => logit = arguments.value()?.string()?,
            Long("nodes") => nodes = arguments.value()?.parse()?,
            Long("transcoders") => transcoders = Some(PathBuf::from(arguments.value()?)),
            Long("write") => write = Some(arguments.value()?.into()),
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }

    println!("Expected: sums that hold to a millionth; most influence on the logit comes from the token ` Mary`, by a head of");
    println!("the first layer at the word after the names, and two heads of the second layer at the last position.\n");

    let model = HookedTransformer::toy()?;
    let mut options = AttributionGraphOptions::new().logits([logit.as_str()]).max_nodes(nodes);
    options = match transcoders {
        Some(folder) => options.transcoders(DictionaryOptions::new().open_set(folder)?),
        None => options.heads(true),
    };
    println!("{prompt}");
    let estimate = model.estimate_graph(prompt.as_str(), options.clone())?;
    println!(
        "{} active units, of which {nodes} are nodes; edges take at most {:.1} MB, a dense matrix {:.1} MB",
        estimate.n_active,
        estimate.edge_bytes as f64 / 1e6,
        estimate.dense_bytes as f64 / 1e6
    );
    let graph = model.attribution_graph(prompt.as_str(), options)?;
    println!("the inputs of each node add up to what it reads, but for {:.1e} of them\n", graph.residual()?);

    let influence = graph.influence()?;
    println!("the nodes that most influence on the logit of `{logit}` passes through");
    let mut ranked: Vec<usize> = (0..graph.n_selected()).collect();
    ranked.sort_by(|a, b| influence[*b].total_cmp(&influence[*a]));
    for node in ranked.iter().copied().take(12) {
        let at = named(&graph, graph.nodes()[node].pos())?;
        println!("  {:<10} at {at:<12} {:6.3}", graph.label(node)?, influence[node]);
    }
    println!("\nwhere it comes from");
    let is_token = |node: &usize| matches!(graph.nodes()[*node], AttributionNode::Token { .. });
    let mut tokens: Vec<usize> = (0..graph.nodes().len()).filter(is_token).collect();
    tokens.sort_by(|a, b| influence[*b].total_cmp(&influence[*a]));
    for node in tokens.into_iter().take(5) {
        println!("  {:<10} {:6.3}", named(&graph, graph.nodes()[node].pos())?, influence[node]);
    }

    let pruned = graph.prune(PruneOptions::new().nodes(0.6).edges(0.9))?;
    let mut edges: Vec<_> = pruned.edges().iter().collect();
    edges.sort_by(|a, b| b.effect.abs().total_cmp(&a.effect.abs()));
    println!(
        "\nthe largest of {} edges between the {} nodes with 60 % of the influence",
        edges.len(),
        pruned.nodes().count()
    );
    for edge in edges.into_iter().take(12) {
        println!("  {:>16} -> {:<16} {:+7.3}", place(&graph, edge.source)?, place(&graph, edge.target)?, edge.effect);
    }
    if let Some(folder) = write {
        let path = graph.write_files(&GraphFile::new("attribution-graph").scan("toy"), folder)?;
        println!("\nwritten to {}", path.display());
    }
    Ok(())
}

/// A token with its position.
fn named(graph: &AttributionGraph, pos: usize) -> Result<String, tch_lens::Error> {
    let is_it = |node: &AttributionNode| matches!(node, AttributionNode::Token { pos: at, .. } if *at == pos);
    let node = graph.nodes().iter().position(is_it).unwrap_or(0);
    Ok(format!("{pos}:{}", graph.label(node)?))
}

/// A node with its position.
fn place(graph: &AttributionGraph, node: usize) -> Result<String, tch_lens::Error> {
    Ok(format!("{}@{}", graph.label(node)?, graph.nodes()[node].pos()))
}
