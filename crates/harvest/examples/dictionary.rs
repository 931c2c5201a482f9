//! From a corpus to a dictionary and a page of its features, on the toy model.
//!
//! ```console
//! $ ./with-libtorch cargo run --manifest-path crates/harvest/Cargo.toml --example dictionary -- features.html
//! ```

use std::fmt::Write as _;

use tch_lens::dictionary_learning::{Sparsity, Trainer, TrainerOptions};
use tch_lens::view::{Figure, Page, TokenStrip};
use tch_lens::{hook, HookedTransformer};
use tch_lens_harvest::manifest::{CorpusFormat, LongDocuments, Rows};
use tch_lens_harvest::{harvest, ActivationStore, Context, DType, Job, PlanOptions, PointStatistics, Store};

const NAMES: [&str; 6] = ["Mary", "John", "Anna", "Tom", "James", "Sarah"];
const PLACES: [&str; 3] = ["shop", "park", "school"];
const FACTS: [&str; 4] = [
    "The capital of France is Paris",
    "The capital of Italy is Rome",
    "The keys near the cabinet are",
    "The war lasted from 1732 to 1745",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let page = std::env::args().nth(1).unwrap_or("features.html".into());
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name).display().to_string();
    let model = HookedTransformer::toy()?;
    let point = hook::resid_post(1);

    // A corpus of sentences that the model knows.
    let mut corpus = String::new();
    for first in NAMES {
        for second in NAMES.into_iter().filter(|name| *name != first) {
            for place in PLACES {
                writeln!(corpus, "When {first} and {second} went to the {place}, {second} gave a bag to {first}")?;
            }
        }
    }
    for _ in 0..10 {
        FACTS.iter().try_for_each(|fact| writeln!(corpus, "{fact}"))?;
    }
    std::fs::write(at("corpus.txt"), corpus)?;

    // Its activations.
    let rows = Rows::Documents { long: LongDocuments::Refuse };
    let options = || PlanOptions::new("toy").rows(rows).allow_unknown(true);
    let files = [at("corpus.txt")];
    let store = Store::open(&at("activations"))?;
    let manifest = options().point(point.to_string(), DType::Fp32).plan(&model, CorpusFormat::Lines, &files)?;
    let job = Job::new(manifest, model.clone(), store.clone())?;
    harvest(&job, job.manifest().shards(), |progress| println!("{} tokens harvested", progress.tokens))?;

    // A dictionary that is trained on them, epoch after epoch.
    let batches = ActivationStore::open(&store, &point.to_string())?.batch_size(256);
    let mut trainer = Trainer::autoencoder(point, TrainerOptions::new(256, Sparsity::TopK(8)).steps(300).rate(2e-3))?;
    let mut epoch = 0;
    while !trainer.is_done() {
        for batch in batches.epoch(epoch)? {
            if trainer.is_done() {
                break;
            }
            let batch = batch?;
            let step = trainer.step(&batch, &batch)?;
            if step.step % 100 == 0 {
                println!("step {}: {:.1} % of the variance explained", step.step, 100.0 * step.explained_variance);
            }
        }
        epoch += 1;
    }
    let dictionary = trainer.dictionary()?;
    dictionary.save_saelens(at("dictionary"))?;

    // The features of the corpus, and where those that are most telling are largest: rare ones with large values.
    let manifest = options().dictionary(point.to_string(), DType::Fp32, at("dictionary")).plan(
        &model,
        CorpusFormat::Lines,
        &files,
    )?;
    let job = Job::new(manifest, model.clone(), Store::open(&at("features"))?)?;
    harvest(&job, job.manifest().shards(), |_| ())?;
    let statistics = PointStatistics::of_harvest(&job)?.remove(0);
    let mut features: Vec<usize> = (0..statistics.width()).filter(|&feature| statistics.active[feature] >= 8).collect();
    features.sort_by_key(|&feature| statistics.active[feature]);
    let mut shown = Page::new("Features of the toy model");
    for &feature in features.iter().take(6) {
        let density = statistics.active[feature] as f64 / statistics.count as f64;
        let mut seen = Vec::new();
        for top in &statistics.top[feature] {
            let context = Context::of_rows(&job, top.shard, &[top.row])?.remove(0);
            if seen.len() == 3 || seen.contains(&context.tokens) {
                continue; // the corpus has some sentences several times
            }
            seen.push(context.tokens.clone());
            let (_, cache) = model.run_with_cache_of(context.tokens.as_slice(), point)?;
            let acts = dictionary.encode(cache.get(point)?)?.f_select(0, 0)?.f_select(1, feature as i64)?; // [pos]
            let tokens = model.tokenizer()?.str_tokens(&context.tokens)?;
            println!("feature {feature}: {:.2} at `{}`", top.value, tokens[context.position]);
            let strip = TokenStrip::new(tokens, format!("feature {feature}"), Vec::<f32>::try_from(acts)?)?;
            let caption = format!("active at {:.1} % of all tokens; document {}", 100.0 * density, context.document);
            shown = shown.figure(Figure::new(format!("Feature {feature}"), strip).with_caption(caption))?;
        }
    }
    shown.save(&page)?;
    println!("{page}");
    Ok(())
}
