//! Processing changes no log-probability, and gives TransformerLens' activations where TransformerLens' changes none.

use crate::common::{families, processed_like_transformer_lens, shaped_like, Fixture, Tally};
use tch::{Kind, Tensor};
use tch_lens::{HookedTransformer, LoadOptions, ReturnType, RunOptions};

const TOLERANCE: f64 = 1e-4;

fn log_probs(model: &HookedTransformer, tokens: &Tensor) -> Tensor {
    model.forward(tokens).unwrap().log_softmax(-1, Kind::Double)
}

#[test]
fn no_step_changes_a_log_probability() {
    let (mut single, mut double) = (Tally::default(), Tally::default());
    for family in families() {
        let fixture = Fixture::open(&family);
        let tokens = fixture.want("tokens");
        let of = |load: LoadOptions| log_probs(&load.open(&fixture.folder).unwrap(), &tokens);
        let raw = of(LoadOptions::new().no_processing());
        single.compare(&family, &of(LoadOptions::new()), &raw, TOLERANCE);

        // In fp64 nothing hides behind rounding.
        let none = || LoadOptions::new().no_processing().kind(Kind::Double);
        let raw = of(none());
        let settings = [
            ("default", LoadOptions::new().kind(Kind::Double)),
            ("fold_ln", none().fold_ln(true)),
            ("center_writing_weights", none().center_writing_weights(true)),
            ("center_unembed", none().center_unembed(true)),
            ("fold_value_biases", none().fold_value_biases(true)),
            ("all five", LoadOptions::new().kind(Kind::Double).refactor_factored_attn_matrices(true)),
        ];
        for (name, load) in settings {
            double.compare(&format!("{family}, {name}"), &of(load), &raw, 1e-9);
        }
    }
    single.finish("log-probabilities, processed against raw, fp32");
    double.finish("log-probabilities, each step against raw, fp64");
}

#[test]
fn activations_are_transformer_lens_own() {
    let mut tally = Tally::default();
    for family in families() {
        let fixture = Fixture::open(&family);
        let model = processed_like_transformer_lens(&fixture).open(&fixture.folder).unwrap();
        let prefix = "processed.cache.";
        let keys = fixture.keys(prefix);
        let names: Vec<&str> = keys.iter().map(|key| &key[prefix.len()..]).collect();
        let run = RunOptions::new().cache(names.clone()).return_type(ReturnType::None);
        let cache = model.run(fixture.want("tokens"), run).unwrap().cache;
        for (key, name) in keys.iter().zip(names) {
            if matches!(family.as_str(), "olmo2" | "olmo3") && name == "unembed.hook_in" {
                continue; // TransformerLens leaves the last norm of these as it is, gain and all
            }
            let theirs = fixture.want(key);
            let point = cache.keys().find(|point| point.to_string() == name).unwrap();
            let ours = shaped_like(cache.get(name).unwrap(), &theirs, point, &model);
            tally.compare(&format!("{family} {key}"), &ours, &theirs, TOLERANCE);
        }
    }
    tally.finish("processed activations");
}

#[test]
fn the_report_says_what_was_left_out() {
    let report = |family: &str| -> Vec<String> {
        let model = LoadOptions::new().open(Fixture::open(family).folder).unwrap();
        model.processing().iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        report("gpt2"),
        ["fold_ln done", "center_writing_weights done", "center_unembed done", "fold_value_biases done"]
    );
    assert_eq!(report("llama")[1], "center_writing_weights left out: the norms do not take the mean off");
    assert_eq!(
        report("toy_solu_ln_final_rms")[1],
        "center_writing_weights left out: the last norm does not take the mean off"
    );
}
