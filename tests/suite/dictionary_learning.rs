//! What each part of a training does: the decoder's norms, the first parameters, thresholds, sparsity, dead features.

use tch::{Device, Kind, Tensor};
use tch_lens::dictionary_learning::{Sparsity, Trainer, TrainerOptions, TrainingStep};
use tch_lens::{hook, Dictionary};

/// Activations with a mean, made of few of 24 directions: `[64, 16]`.
fn batch(step: i64) -> Tensor {
    let draw = |n: i64, seed: i64| {
        let x = Tensor::arange(n, (Kind::Double, Device::Cpu));
        ((x * 12.9898 + seed as f64 * 78.233).sin() * 43758.5453).frac().abs().to_kind(Kind::Float)
    };
    let directions = draw(24 * 16, 1).reshape([24, 16]) - 0.5;
    (draw(64 * 24, 2 + step).reshape([64, 24]) - 0.8).relu().matmul(&directions) * 20.0 + 3.0
}

fn trained(options: TrainerOptions, steps: i64) -> (Dictionary, TrainingStep) {
    let mut trainer = Trainer::autoencoder(hook::resid_post(0), options).unwrap();
    let mut last = None;
    for step in 0..steps {
        last = Some(trainer.step(&batch(step), &batch(step)).unwrap());
    }
    (trainer.dictionary().unwrap(), last.unwrap())
}

fn number(x: &Tensor) -> f64 {
    x.double_value(&[])
}

/// At a rate of almost nothing, the first parameters are what is exported.
#[test]
fn the_first_parameters_and_the_first_threshold() {
    let (dictionary, _) = trained(TrainerOptions::new(32, Sparsity::BatchTopK(4)).rate(1e-12), 1);
    let pre = dictionary.pre_activations(&batch(0)).unwrap(); // [row, feature]
    let mean = number(&pre.mean_dim(0, false, Kind::Float).abs().max()) / number(&pre.abs().max());
    assert!(mean < 1e-4, "features are about the deviation from the mean, but their own is {mean:.1e}");
    let smallest = number(&pre.relu().flatten(0, -1).topk(4 * 64, 0, true, true).0.min());
    let threshold = number(&dictionary.threshold().unwrap().max());
    assert!(smallest > 1e-3 && (threshold - smallest).abs() < 1e-5, "{threshold} {smallest}");
}

#[test]
fn directions_keep_one_norm() {
    let (dictionary, _) = trained(TrainerOptions::new(32, Sparsity::TopK(4)).rate(1e-2), 20);
    let norms = dictionary.w_dec().unwrap().norm_scalaropt_dim(2.0, [-1i64].as_slice(), false);
    let spread = number(&(norms.max() - norms.min())) / number(&norms.max());
    assert!(spread < 1e-5, "{spread:.1e}");
}

#[test]
fn dead_features_are_counted_and_helped() {
    let options = |auxiliary| TrainerOptions::new(64, Sparsity::TopK(1)).rate(1e-3).dead_after(2).auxiliary(auxiliary);
    let (alone, without) = trained(options(0), 8);
    let (helped, with) = trained(options(8), 8);
    assert!(without.dead > 0 && without.dead < 64, "{without:?}");
    assert!(with.dead > 0 && with.dead < 64, "{with:?}");
    let differs = number(&(alone.w_enc() - helped.w_enc()).abs().max());
    assert!(differs > 1e-4, "the auxiliary loss moved nothing: {differs:.1e}");
}

#[test]
fn a_penalty_makes_jump_relu_sparser_by_its_thresholds() {
    let run =
        |coefficient| trained(TrainerOptions::new(32, Sparsity::JumpRelu { coefficient }).rate(1e-2).warm_up(1), 80);
    let ((free, plain), (sparse, penalised)) = (run(0.0), run(0.1));
    println!("L0 {} without a penalty, {} with one", plain.l0, penalised.l0);
    assert!(penalised.l0 < 0.7 * plain.l0, "{} {}", penalised.l0, plain.l0);
    let mean = |dictionary: &Dictionary| number(&dictionary.threshold().unwrap().mean(Kind::Float));
    assert!(mean(&sparse) > 1.2 * mean(&free), "{} {}", mean(&sparse), mean(&free));
}
