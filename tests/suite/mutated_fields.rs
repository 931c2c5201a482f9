//! Configurations that differ from a usual one in one field, or in some at once, against transformers: what
//! `tests/fixtures/mutate_fields.py` writes. A few cases are in `tests/fixtures/mutated`: those that once differed. All others are in the
//! folder that `TCH_LENS_MUTATED` names. A field counts as it does in transformers, or is an error that names it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{fixtures, read};
use serde_json::Value;
use tch::Tensor;
use tch_lens::{Error, HookedTransformer, LoadOptions};

/// Absolute, or relative to the largest logit where that is above one.
const TOLERANCE: f64 = 1e-4;

fn folders(of: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.is_dir());
    all.sort();
    all
}

/// The logits of the checkpoint in `folder`, with the configuration in `config`.
fn logits(folder: &Path, config: &str, expected: &BTreeMap<String, Tensor>) -> tch_lens::Result<Tensor> {
    let copy = tempfile::tempdir().unwrap();
    let text = std::fs::read(folder.join(config)).unwrap();
    let fields: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    std::fs::write(copy.path().join("config.json"), text).unwrap();
    std::fs::copy(folder.join("model.safetensors"), copy.path().join("model.safetensors")).unwrap();
    let load = LoadOptions::new().no_processing();
    if fields["is_encoder_decoder"] == true {
        let model = load.open_encoder_decoder(copy.path())?;
        return model.forward(&expected["tokens"], &expected["decoder_tokens"]);
    }
    let model: HookedTransformer = load.open(copy.path())?;
    model.forward(&expected["tokens"])
}

#[test]
fn fields_count_as_in_transformers_or_are_refused() {
    let others = std::env::var_os("TCH_LENS_MUTATED").map(PathBuf::from);
    let (mut equal, mut refused, mut wrong, mut largest) = (0, BTreeMap::new(), Vec::new(), 0.0_f64);
    let families = [Some(fixtures().join("mutated")), others];
    for family in families.iter().flatten().flat_map(|cases| folders(cases)) {
        for case in folders(&family) {
            let expected = read(&case.join("expected.safetensors"));
            let mutation = std::fs::read_to_string(case.join("mutation.json")).unwrap_or_default();
            for config in ["config.json", "config_v4.json"].into_iter().filter(|name| case.join(name).is_file()) {
                let what = format!("{}, {config}: {}", case.display(), mutation.trim());
                match logits(&case, config, &expected) {
                    Err(Error::ConfigField { field, why, .. }) => {
                        let family = family.file_name().unwrap().to_string_lossy().into_owned();
                        *refused.entry(format!("{family}: {field}: {why}")).or_insert(0) += 1;
                    }
                    Err(error) => wrong.push(format!("{what}: {error}")),
                    Ok(ours) => {
                        let theirs = &expected["logits"];
                        let scale = theirs.abs().max().double_value(&[]).max(1.0);
                        let difference = if ours.size() == theirs.size() {
                            (ours - theirs).abs().max().double_value(&[]) / scale
                        } else {
                            f64::INFINITY
                        };
                        match difference < TOLERANCE {
                            true => (equal, largest) = (equal + 1, largest.max(difference)),
                            false => wrong.push(format!("{what}: differs by {difference:.1e}")),
                        }
                    }
                }
            }
        }
    }
    for (why, count) in &refused {
        println!("refused {count}: {why}");
    }
    println!("{equal} configurations equal, by {largest:.1e} at most; {} kinds refused", refused.len());
    assert_eq!(wrong, Vec::<String>::new());
}
