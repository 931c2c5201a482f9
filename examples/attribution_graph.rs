//! Through which features does the model name the indirect object? The attribution graph of one prompt.
//!
//! Features of the toy model's transcoders stand for its MLPs. Every node adds something to the stream, and an edge is what it adds to what
//! another node reads, through attention at the patterns and norms of the run. What will be seen on the toy model: the inputs of every
//! node add up to what it reads, to a millionth. The token ` Mary` has most influence on the logit of ` Mary`. The feature with most
//! influence is one of the first MLP at the word after the names, `went`: ` Mary` is its largest input, and the logit its largest output.
//!
//! With `--exact`, neurons and heads are the nodes, so that nothing is a dictionary's approximation. Then a head of the first layer copies
//! ` Mary` to the word after the names, and two heads of the second layer take it from there to the last position.
//!
//! ```text
//! cargo run --release --example attribution_graph
//! cargo run --release --example attribution_graph -- --exact
//! cargo run --release --example attribution_graph -- --prompt "When Peter and Anna went to the park, Anna gave a ball to" --logit " Peter"
//! cargo run --release --example attribution_graph -- --transcoders FOLDER --write FOLDER
//! ```

use std::error::Error;
use std::path::PathBuf;

use lexopt::prelude::*;
use tch_lens::graphs::{AttributionGraph, AttributionGraphOptions, AttributionNode, GraphFile, PruneOptions};
use tch_lens::sae::DictionarySet;
use tch_lens::{DictionaryOptions, HookedTransformer};

const PROMPT: &str = "When Mary and John went to the shop, John gave a bag to";
const LOGIT: &str = " Mary";

const HELP: &str = "\
The attribution graph of a prompt of the toy model

  --prompt TEXT          the prompt
  --logit TOKEN          whose logit is traced (default: \" Mary\")
  --nodes N              how many features, or heads and neurons, are nodes
                         (default: all features; 400 heads and neurons)
  --exact                heads and neurons are nodes, and no dictionary is used
  --transcoders FOLDER   circuit-tracer's transcoders in place of the toy's own
  --write FOLDER         also write the graph as JSON for circuit-tracer's page
                         and Neuronpedia";

const FEATURES: &str = "\
Expected: sums that hold to a millionth. The token ` Mary` has most influence
on its logit. The feature with most influence is one of the first MLP at the
word after the names, `went`: between the token ` Mary` and the logit.
";

const HEADS: &str = "\
Expected: sums that hold to a millionth. The token ` Mary` has most influence
on its logit, by a head of the first layer at the word after the names, and
two heads of the second layer at the last position.
";

fn main() -> Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let (mut prompt, mut logit, mut exact) = (String::from(PROMPT), String::from(LOGIT), false);
    let (mut nodes, mut transcoders, mut write) = (None, None::<PathBuf>, None::<PathBuf>);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("prompt") => prompt = arguments.value()?.string()?,
            Long("logit") => logit = arguments.value()?.string()?,
            Long("nodes") => nodes = Some(arguments.value()?.parse()?),
            Long("exact") => exact = true,
            Long("transcoders") => transcoders = Some(arguments.value()?.into()),
            Long("write") => write = Some(arguments.value()?.into()),
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }

    if exact && transcoders.is_some() {
        return Err("`--exact` uses no transcoders: leave out one of `--exact` and `--transcoders`".into());
    }
    if prompt == PROMPT && logit == LOGIT && transcoders.is_none() {
        println!("{}", if exact { HEADS } else { FEATURES });
    }

    let model = HookedTransformer::toy()?;
    let mut options = AttributionGraphOptions::new().logits([logit.as_str()]);
    options = match transcoders {
        _ if exact => options.heads(true),
        Some(folder) => options.transcoders(DictionaryOptions::new().open_set(folder)?),
        None => options.transcoders(DictionarySet::toy()?),
    };
    if let Some(n) = nodes.or(exact.then_some(400)) {
        options = options.max_nodes(n);
    }
    println!("{prompt}");
    let estimate = model.estimate_graph(prompt.as_str(), options.clone())?;
    let graph = model.attribution_graph(prompt.as_str(), options)?;
    println!("{} active units, of which {} are nodes", graph.n_active(), graph.n_selected());
    println!(
        "edges take at most {:.1} MB, a dense matrix {:.1} MB",
        estimate.edge_bytes as f64 / 1e6,
        estimate.dense_bytes as f64 / 1e6
    );
    println!("the inputs of each node add up to what it reads, but for {:.1e}\n", graph.residual()?);

    let influence = graph.influence()?;
    println!("the units with most influence on the logit of `{logit}`");
    let mut ranked: Vec<usize> = (0..graph.n_selected()).collect();
    ranked.sort_by(|a, b| influence[*b].total_cmp(&influence[*a]));
    for node in ranked.iter().copied().take(12) {
        let at = named(&graph, graph.nodes()[node].pos())?;
        println!("  {:<10} at {at:<12} {:6.3}", graph.label(node)?, influence[node]);
    }
    println!("\nthe tokens with most influence");
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

/// A node with its position, or the logit of a token.
fn place(graph: &AttributionGraph, node: usize) -> Result<String, tch_lens::Error> {
    let label = graph.label(node)?;
    Ok(match graph.nodes()[node] {
        AttributionNode::Logit { .. } => format!("logit{label}"),
        of => format!("{label}@{}", of.pos()),
    })
}
