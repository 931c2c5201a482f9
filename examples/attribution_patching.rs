//! How good are estimates of patches? Attribution patching beside exact patching, with plain gradients and with those of relevance patching.
//!
//! Each activation of a corrupted run is patched by that of a clean run, once by running the model with the patch, and once by an estimate
//! from gradients, which takes two forward passes and one backward pass for all patches together. What will be seen on the toy model: plain
//! gradients correlate with the exact effects at about 0.9, for the stream, attention, MLPs and heads alike, and miss a quarter of the largest
//! effect; with the rules of relevance patching (RelP) the correlations are above 0.98.
//!
//! ```text
//! cargo run --release --example attribution_patching
//! ```

use std::error::Error;

use lexopt::prelude::*;
use tch_lens::gradient::AttributionPatchingOptions;
use tch_lens::tch::{Kind, Tensor};
use tch_lens::{patching, BackwardRules, HookedTransformer, Metric, Result};

const HELP: &str = "\
Attribution patching beside exact patching

  --clean TEXT      (default: When Mary and John went to the shop, John gave a bag to)
  --corrupted TEXT  (default: When Mary and John went to the shop, Mary gave a bag to)
  --answer TOKEN    (default: ' Mary')
  --wrong TOKEN     the token that the answer is compared with (default: ' John')";

struct Options {
    clean: String,
    corrupted: String,
    answer: String,
    wrong: String,
}

/// The sites that are patched, and what they are.
const SITES: [(&str, &str); 4] = [
    ("resid_pre", "the stream before each layer"),
    ("attn_out", "what attention adds"),
    ("mlp_out", "what the MLP adds"),
    ("z", "what each head mixes"),
];

fn main() -> std::result::Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let mut options = Options {
        clean: "When Mary and John went to the shop, John gave a bag to".into(),
        corrupted: "When Mary and John went to the shop, Mary gave a bag to".into(),
        answer: " Mary".into(),
        wrong: " John".into(),
    };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("clean") => options.clean = arguments.value()?.string()?,
            Long("corrupted") => options.corrupted = arguments.value()?.string()?,
            Long("answer") => options.answer = arguments.value()?.string()?,
            Long("wrong") => options.wrong = arguments.value()?.string()?,
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(print(&options)?)
}

fn print(options: &Options) -> Result<()> {
    println!(
        "Expected: plain gradients correlate with the exact effects of patches at about 0.9 and miss a quarter of"
    );
    println!("the largest one; with the rules of relevance patching (RelP) the correlations are above 0.98.\n");

    let model = HookedTransformer::toy()?;
    let metric = Metric::logit_diff(&options.answer, &options.wrong);
    let estimated = |rules: BackwardRules| {
        let options_of = AttributionPatchingOptions::new().points(SITES.map(|(site, _)| site)).backward_rules(rules);
        model.attribution_patching(&options.corrupted, &options.clean, &metric, options_of)
    };
    let (plain, relp) = (estimated(BackwardRules::new())?, estimated(BackwardRules::relp())?);
    println!("clean:     {}  {:+.3}", options.clean, plain.source_metric());
    println!("corrupted: {}  {:+.3}\n", options.corrupted, plain.base_metric());

    println!("{:<34}{:>8}   correlation with exact patches", "patches to", "patches");
    println!("{:<42}   {:>8} {:>8}", "", "plain", "RelP");
    for (site, what) in SITES {
        let exact = exact(&model, options, &metric, site, plain.base_metric())?;
        println!(
            "{what:<34}{:>8}   {:>8.3} {:>8.3}",
            exact.numel(),
            correlation(&exact, &plain.by_layer(site)?),
            correlation(&exact, &relp.by_layer(site)?)
        );
    }

    println!("\nwhat attention adds at the last position, layer by layer: exact, plain, RelP");
    let exact = exact(&model, options, &metric, "attn_out", plain.base_metric())?;
    let [exact, plain, relp] = [exact, plain.by_layer("attn_out")?, relp.by_layer("attn_out")?].map(last);
    for (layer, ((exact, plain), relp)) in exact.iter().zip(plain).zip(relp).enumerate() {
        println!("  layer {layer}  {exact:+8.3} {plain:+8.3} {relp:+8.3}");
    }
    Ok(())
}

/// The effect of each patch on the metric, exactly: `[layer, pos]`, or of heads `[layer, pos, head]`.
fn exact(model: &HookedTransformer, options: &Options, metric: &Metric, site: &str, base: f64) -> Result<Tensor> {
    let (_, clean) = model.run_with_cache(&options.clean)?;
    let sweep = match site {
        "resid_pre" => patching::get_act_patch_resid_pre,
        "attn_out" => patching::get_act_patch_attn_out,
        "mlp_out" => patching::get_act_patch_mlp_out,
        _ => patching::get_act_patch_attn_head_out_by_pos,
    };
    Ok(sweep(model, &options.corrupted, &clean, metric)?.tensor() - base)
}

/// Pearson's correlation of all entries.
fn correlation(a: &Tensor, b: &Tensor) -> f64 {
    let centered = |x: &Tensor| {
        let x = x.to_kind(Kind::Double).flatten(0, -1);
        &x - x.mean(Kind::Double)
    };
    let (a, b) = (centered(a), centered(b));
    ((&a * &b).sum(Kind::Double) / (a.norm() * b.norm())).double_value(&[])
}

/// The values of the last position: one for each layer.
fn last(by_position: Tensor) -> Vec<f64> {
    Vec::try_from(by_position.select(1, -1).to_kind(Kind::Double)).unwrap_or_default()
}
