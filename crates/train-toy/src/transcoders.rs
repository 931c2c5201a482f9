//! Trains the transcoders of the toy model that the crate carries, and measures them.

use std::error::Error;
use std::path::Path;

use indicatif::ProgressBar;
use rand::rngs::StdRng;
use rand::SeedableRng;
use tch::{Kind, Tensor};
use tch_lens::dictionary_learning::{evaluate, Sparsity, Trainer, TrainerOptions};
use tch_lens::sae::DictionarySet;
use tch_lens::{hook, Dictionary, HookPoint, HookedTransformer, ReturnType, RunOptions};

use crate::language::Task;
use crate::lessons::Stage;

const FEATURES: usize = 512;
/// Active features of a position, on average.
const ACTIVE: usize = 12;

/// All kinds of sentences, as in the last part of the model's own training.
const STAGE: Stage = Stage { from: 0.0, tasks: &Task::ALL, documents: 16, length: 64, repeated: 1.0 };

/// Trains a transcoder for each MLP, all from the same runs, and writes them in circuit-tracer's format, at 16 bits a number.
pub fn train(steps: usize, seed: u64, out: &Path) -> Result<(), Box<dyn Error>> {
    let model = HookedTransformer::from_pretrained("models/toy")?;
    let layers = 0..model.config().n_layers;
    let hooks: Vec<(HookPoint, HookPoint)> =
        layers.map(|layer| (hook::ln2_normalized(layer), hook::mlp_out(layer))).collect();
    let options = |layer: usize| {
        let seed = seed + layer as u64;
        TrainerOptions::new(FEATURES, Sparsity::BatchTopK(ACTIVE)).steps(steps).rate(2e-3).seed(seed).dead_after(100)
    };
    let mut trainers = Vec::new();
    for (layer, (read, out)) in hooks.iter().enumerate() {
        trainers.push(Trainer::transcoder(*read, *out, options(layer))?);
    }
    let points: Vec<HookPoint> = hooks.iter().flat_map(|(read, out)| [*read, *out]).collect();
    let mut rng = StdRng::seed_from_u64(seed);
    let bar = ProgressBar::new(steps as u64);
    for step in 0..steps {
        let tokens = STAGE.lesson(model.tokenizer()?, &mut rng)?.tokens;
        let run = RunOptions::new().cache(points.clone()).return_type(ReturnType::None);
        let cache = model.run(tokens, run)?.cache;
        let mut line = format!("step {:5}", step + 1);
        for (trainer, (read, out)) in trainers.iter_mut().zip(&hooks) {
            let done = trainer.step(cache.get(*read)?, cache.get(*out)?)?;
            line.push_str(&format!("   {:.3} ({} dead)", done.explained_variance, done.dead));
        }
        bar.inc(1);
        if (step + 1) % 100 == 0 {
            bar.suspend(|| println!("{line}"));
        }
    }
    bar.finish_and_clear();
    let half = |trainer: &Trainer| -> tch_lens::Result<Dictionary> {
        let mut dictionary = trainer.dictionary()?;
        dictionary = dictionary.named("toy");
        dictionary.to(Kind::Half, tch::Device::Cpu)
    };
    let dictionaries = trainers.iter().map(half).collect::<tch_lens::Result<Vec<_>>>()?;
    DictionarySet::new(dictionaries)?.save_circuit_tracer(out)?;
    report(&model, out)
}

/// Prints what the written transcoders keep of the model.
fn report(model: &HookedTransformer, folder: &Path) -> Result<(), Box<dyn Error>> {
    let set = tch_lens::DictionaryOptions::new().open_set(folder)?;
    let mut rng = StdRng::seed_from_u64(1_000_003);
    let mut texts: Vec<Tensor> = Vec::new();
    for _ in 0..20 {
        texts.push(STAGE.lesson(model.tokenizer()?, &mut rng)?.tokens);
    }
    let evaluation = evaluate(model, set.dictionaries().to_vec(), texts)?;
    println!("\nWritten to {}. On texts never seen:\n", folder.display());
    println!(
        "loss {:.3}, with all transcoders {:.3}, with zeros {:.3}: {:.1} % recovered",
        evaluation.loss,
        evaluation.loss_with_saes,
        evaluation.loss_with_zeros,
        100.0 * evaluation.loss_recovered()
    );
    for of in &evaluation.dictionaries {
        println!(
            "{}: {:.1} features a token, {:.1} % of the variance, {} of {FEATURES} never active",
            of.hook,
            of.l0,
            100.0 * of.explained_variance,
            of.dead_features()?.len()
        );
    }
    Ok(())
}
