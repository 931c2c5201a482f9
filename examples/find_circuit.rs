//! Which edges of the model name the indirect object? The circuit of the toy model's task, found by attribution and tested by ablation.
//!
//! In the prompts, one of two names is repeated, and the answer is the other one; in their counterparts, the other name is repeated. An edge
//! that is not in a circuit carries what it carries for the counterpart. What will be seen on the toy model: edges scored by integrated
//! gradients (EAP-IG) give a circuit of less than 10 % of all edges that keeps more than 90 % of the difference of logits, while all
//! other edges together keep next to nothing. It begins where a head of the first layer reads the repeated name, and ends with the heads of
//! the last layer, which write the answer's logit.
//!
//! ```text
//! cargo run --release --example find_circuit
//! cargo run --release --example find_circuit -- --faithfulness 0.8 --method gradient --write circuit.json
//! ```

use std::error::Error;
use std::path::PathBuf;

use lexopt::prelude::*;
use tch_lens::analysis::Answer;
use tch_lens::circuits::{Ablation, CircuitFile, CircuitNode, CircuitTask, CurveOptions, EdgeMethod};
use tch_lens::{HookedTransformer, Metric};

const HELP: &str = "\
The circuit of the toy model's indirect-object task

  --method NAME        how edges are scored: gradient, integrated or exact (default: integrated)
  --faithfulness F     how much of the model's logit difference the circuit must keep (default: 0.9)
  --top N              how many edges to list (default: 12)
  --write FILE         also write circuit and scores as JSON of the MIB benchmark";

/// Pairs of names: the answer, and the one that is repeated.
const NAMES: [(&str, &str); 4] = [("Mary", "John"), ("Peter", "Anna"), ("John", "Mary"), ("Anna", "Peter")];

struct Options {
    method: EdgeMethod,
    faithfulness: f64,
    top: usize,
    write: Option<PathBuf>,
}

fn main() -> Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let steps = 5;
    let mut options =
        Options { method: EdgeMethod::IntegratedInputs { steps }, faithfulness: 0.9, top: 12, write: None };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("method") => {
                options.method = match arguments.value()?.string()?.as_str() {
                    "gradient" => EdgeMethod::Gradient,
                    "integrated" => EdgeMethod::IntegratedInputs { steps },
                    "exact" => EdgeMethod::Exact,
                    other => {
                        return Err(format!("there is no method `{other}`: use gradient, integrated or exact").into())
                    }
                }
            }
            Long("faithfulness") => options.faithfulness = arguments.value()?.parse()?,
            Long("top") => options.top = arguments.value()?.parse()?,
            Long("write") => options.write = Some(arguments.value()?.into()),
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }

    println!("Expected: a circuit of less than 10 % of all edges that keeps more than 90 % of the difference of");
    println!("logits between the right and the wrong name, while the rest of the model keeps next to nothing.\n");

    let model = HookedTransformer::toy()?;
    let prompt = |(answer, other): &(&str, &str), repeated: &str| {
        format!("When {answer} and {other} went to the shop, {repeated} gave a bag to")
    };
    let clean: Vec<String> = NAMES.iter().map(|names| prompt(names, names.1)).collect();
    let counterparts: Vec<String> = NAMES.iter().map(|names| prompt(names, names.0)).collect();
    let token = |name: &str| format!(" {name}");
    let right = Answer::per_row_texts(NAMES.map(|(answer, _)| token(answer)));
    let wrong = Answer::per_row_texts(NAMES.map(|(_, other)| token(other)));
    let metric = Metric::logit_diff(right, wrong);
    println!("{} and {} more prompts; the counterpart repeats the other name", clean[0], NAMES.len() - 1);

    let task = CircuitTask::new(&model, clean, Ablation::counterfactual(counterparts), &metric)?;
    println!(
        "logit difference: {:+.3}; with every edge ablated: {:+.3}\n",
        task.clean_metric(),
        task.ablated_metric()?
    );

    let scores = task.edge_scores(options.method)?;
    println!("the {} most important of {} edges", options.top, task.graph().n_edges());
    for (edge, score) in scores.ranked().into_iter().take(options.top) {
        println!("  {:<20} {score:+8.3}", edge.to_string());
    }

    println!("\ncircuits of the most important edges");
    let fractions: Vec<f64> = (1..=20).map(|n| n as f64 / 100.0).chain([0.3, 0.5, 1.0]).collect();
    let curve = task.faithfulness_curve(&scores, CurveOptions::new().fractions(fractions))?;
    println!("{curve}");

    let enough = curve.points().iter().find(|point| point.faithfulness >= options.faithfulness);
    let Some(point) = enough else { return Err("no circuit is faithful enough".into()) };
    let n = (point.fraction * task.graph().n_edges() as f64) as usize;
    let circuit = scores.top_n(n)?;
    println!(
        "\nthe circuit: {} edges, {:.1} % of all; it keeps {:.0} % of the difference, all other edges {:.0} %",
        circuit.n_edges(),
        100.0 * circuit.n_edges() as f64 / task.graph().n_edges() as f64,
        100.0 * task.faithfulness(&circuit)?,
        100.0 * (1.0 - task.completeness(&circuit)?),
    );
    let nodes: Vec<String> =
        circuit.nodes().filter(|node| *node != CircuitNode::Input).map(|node| node.to_string()).collect();
    println!("its heads and MLPs: {}", nodes.join(", "));
    if let Some(path) = options.write {
        CircuitFile { edge_scores: Some(scores), ..CircuitFile::new(circuit) }.write(&path)?;
        println!("written to {}", path.display());
    }
    Ok(())
}
