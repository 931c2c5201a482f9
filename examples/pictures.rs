//! What do results look like? One page of HTML with every kind of picture, of the toy model's indirect-object prompt.
//!
//! Prints where the page lies, and the figures as text. The page needs no network: open it in any browser. With `--svg` each
//! figure is written as SVG as well, and with the feature `png` as PNG.
//!
//! ```text
//! cargo run --example pictures --features view
//! cargo run --example pictures --features view -- --out page.html --svg folder
//! cargo run --example pictures --features png -- --svg folder
//! ```

use std::error::Error;
use std::path::{Path, PathBuf};

use lexopt::prelude::*;
use tch_lens::view::{
    AttentionPatterns, Draw, Figure, Graph, GraphNode, HeatMap, HeatMapAxis, LinePlot, Page, TokenLogProbs, TokenStrip,
};
use tch_lens::{
    hook, patching, Composition, HeadOptions, HookedTransformer, LensOptions, Metric, NeuronOptions, Result,
};

const HELP: &str = "\
One page with every kind of picture, of the toy model

  --out FILE     the page (default: pictures.html)
  --svg FOLDER   write each figure there, too, as SVG; with the feature `png` as PNG as well";

const CLEAN: &str = "When Mary and John went to the shop, John gave a bag to";
const CORRUPTED: &str = "When Mary and John went to the shop, Mary gave a bag to";

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let (mut out, mut svg) = (PathBuf::from("pictures.html"), None);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("out") => out = arguments.value()?.into(),
            Long("svg") => svg = Some(PathBuf::from(arguments.value()?)),
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let figures = figures()?;
    let mut page =
        Page::new("Who gets the bag?").text(format!("“{CLEAN}” …: what the toy model does with this prompt."));
    for (name, figure) in &figures {
        println!("{figure}\n");
        page = page.section(figure.title(), figure)?;
        if let Some(folder) = &svg {
            save(figure, folder, name)?;
        }
    }
    page.save(&out)?;
    println!("{} figures are in {}", figures.len(), out.display());
    Ok(())
}

fn save(figure: &Figure, folder: &Path, name: &str) -> std::result::Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    figure.save_svg(folder.join(format!("{name}.svg")))?;
    #[cfg(feature = "png")]
    figure.save_png(folder.join(format!("{name}.png")), 2.0)?;
    Ok(())
}

/// Every kind of picture, with a name for its file.
fn figures() -> Result<Vec<(&'static str, Figure)>> {
    let model = HookedTransformer::toy()?;
    let (logits, cache) = model.run_with_cache(CLEAN)?;
    let tokens = model.to_tokens(CLEAN)?;
    let words = model.to_str_tokens(CLEAN)?;
    let answers = (" Mary", " John");
    let metric = Metric::logit_diff(" Mary", " John");

    let lens = cache.logit_lens(LensOptions::new())?;
    let mut climbing = LinePlot::new("stream", lens.labels(), "probability");
    for name in [" Mary", " John", " Nina"] {
        let ranks = lens.pos(-1)?.rank_of(name)?;
        climbing = climbing.line(name, ranks.rows.iter().map(|(_, _, probability)| *probability as f32).collect())?;
    }

    let neurons = |neuron: i64| Vec::<f32>::try_from(cache[hook::post(0)].select(0, 0).select(1, neuron)); // [pos]
    let strip = TokenStrip::new(words, "L0N7", neurons(7)?)?.and("L0N12", neurons(12)?)?;

    let heads = cache.logit_attrs(HeadOptions::new().pos(-1), answers)?;
    let by_position = cache.logit_attrs(HeadOptions::new(), answers)?;
    let neuron_attrs = cache.logit_attrs(NeuronOptions::new().pos(-1), answers)?;
    let composition = model.all_composition_scores(Composition::K)?.select(0, 0).select(1, 1); // [head, head]
    let axis = |layer: usize| HeatMapAxis::new("head", (0..4).map(|head| format!("L{layer}H{head}")));

    Ok(vec![
        ("attention", AttentionPatterns::of(&cache, 0)?.figure()?),
        ("one_head", AttentionPatterns::of(&cache, 0)?.head(1, 2)?.figure()?),
        ("logit_lens", lens.figure()?),
        ("ranks", lens.pos(-1)?.rank_of(" Mary")?.figure()?),
        ("lines", Figure::new("How names climb", climbing)),
        ("log_probs", TokenLogProbs::new(&model, &tokens, 0, &logits, 5)?.figure()?),
        ("tokens", Figure::new("Two neurons", strip)),
        ("heads", heads.figure()?),
        ("heads_by_position", by_position.figure()?),
        ("neurons", neuron_attrs.figure()?),
        ("patching", patching::get_act_patch_resid_pre(&model, CORRUPTED, &cache, &metric)?.figure()?),
        (
            "patching_heads",
            patching::get_act_patch_attn_head_out_all_pos(&model, CORRUPTED, &cache, &metric)?.figure()?,
        ),
        ("composition", Figure::new("K-composition", HeatMap::from_tensor(axis(0), axis(1), &composition)?)),
        ("prompt", model.test_prompt(CLEAN, ["Mary", "John"])?.figure()?),
        ("graph", largest_heads(&heads.top(6)?)?),
    ])
}

/// The heads that add most to the answer, between the input and the logits.
fn largest_heads(ranking: &tch_lens::analysis::Ranking) -> Result<Figure> {
    let mut graph = Graph::new("logit");
    let input = graph.node(GraphNode::new("input", 0));
    let logits = graph.node(GraphNode::new("logits", 100));
    for (row, value) in &ranking.rows {
        let layer = row.layer().unwrap_or(0);
        let node = graph.node(GraphNode::new(row.to_string(), 1 + layer).detail(format!("adds {value:.3}")));
        graph.edge(input, node, 0.0)?;
        graph.edge(node, logits, *value as f32)?;
    }
    Ok(Figure::new("The heads that add most", graph)
        .with_caption("Edges to the logits are as wide as what a head adds."))
}
