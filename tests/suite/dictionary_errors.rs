//! Dictionaries that cannot be used, and files that hold none: one clear sentence each.

use std::path::Path;

use serde_json::{json, Value};
use tch::{Device, Kind, Tensor};
use tch_lens::sae::{DictionaryConfig, DictionaryWeights, FeatureActivation, SaeOptions};
use tch_lens::{hook, Dictionary, DictionaryOptions, HookedTransformer, RunOptions};

use crate::common::fixtures;

fn zeros(size: &[i64]) -> Tensor {
    Tensor::zeros(size, (Kind::Float, Device::Cpu))
}

fn weights(d_sae: i64, d: i64) -> DictionaryWeights {
    DictionaryWeights {
        w_enc: zeros(&[d_sae, d]),
        b_enc: zeros(&[d_sae]),
        w_dec: zeros(&[d_sae, d]),
        b_dec: zeros(&[d]),
        w_skip: None,
        threshold: None,
        b_gate: None,
        r_mag: None,
    }
}

fn at(kind: FeatureActivation) -> DictionaryConfig {
    DictionaryConfig::new(hook::resid_post(1), kind)
}

#[track_caller]
fn refused<T>(result: tch_lens::Result<T>, what: &str) {
    let error = result.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(what), "{error}\nexpected: {what}");
    assert!(!error.contains('\n'), "{error}");
}

#[test]
fn weights_that_do_not_go_together() {
    use FeatureActivation::{BatchTopK, Gated, GroupMax, JumpRelu, Relu, TopK};
    let new = |kind, change: fn(&mut DictionaryWeights)| {
        let mut weights = weights(8, 128);
        change(&mut weights);
        Dictionary::new(at(kind), weights)
    };
    assert!(new(Relu, |_| ()).is_ok());
    refused(new(Relu, |w| w.w_dec = zeros(&[7, 128])), "`W_dec` to `blocks.1.hook_resid_post` has shape [7, 128]");
    refused(new(Relu, |w| w.b_enc = zeros(&[7])), "`b_enc` has shape [7], expected [8]");
    refused(new(Relu, |w| w.w_enc = zeros(&[8])), "`W_enc` has shape [8]");
    refused(new(Relu, |w| w.b_dec = w.b_dec.to_kind(Kind::Double)), "`b_dec` is Double");
    refused(new(Relu, |w| w.w_skip = Some(zeros(&[1, 1]))), "`W_skip` has shape [1, 1]");
    refused(new(Relu, |w| w.threshold = Some(zeros(&[8]))), "of kind ReLU has no `threshold`");
    refused(new(JumpRelu, |_| ()), "of kind JumpReLU needs `threshold`");
    refused(
        new(JumpRelu, |w| w.threshold = Some(zeros(&[8]) * f64::NAN)),
        "`threshold` has entries that are NaN or infinite",
    );
    refused(new(Gated, |_| ()), "of kind gated needs `b_gate`");
    refused(new(Relu, |w| w.b_enc = zeros(&[8]) / 0.0), "`b_enc` has entries that are NaN");
    refused(new(TopK(0), |_| ()), "TopK 0 cannot choose among 8 features");
    refused(new(TopK(9), |_| ()), "TopK 9 cannot choose among 8 features");
    refused(new(GroupMax(3), |_| ()), "GroupMax 3 cannot choose among 8");
    refused(new(BatchTopK(f64::NAN), |_| ()), "BatchTopK NaN cannot choose");
    let transcoder = DictionaryConfig { hook_out: hook::mlp_out(1), ..at(Relu) };
    let narrow = DictionaryWeights { w_dec: zeros(&[8, 64]), b_dec: zeros(&[64]), ..weights(8, 128) };
    refused(Dictionary::new(transcoder, narrow), "cannot be subtracted from an input of 128");
    let sae = new(Relu, |_| ()).unwrap();
    refused(sae.encode(&zeros(&[2, 64])), "has shape [2, 64], expected […, 128]");
    refused(sae.decode(&zeros(&[2, 9])), "has shape [2, 9], expected […, 8]");
    refused(sae.decoder_rows(0, &Tensor::from_slice(&[8i64])), "features 8 to 8 are asked for, but there are 8");
    refused(sae.decoder_rows(0, &Tensor::from_slice(&[-1i64])), "features -1 to -1");
    refused(sae.decoder_rows(1, &Tensor::from_slice(&[1i64])), "it has no output 1");
    refused(new(TopK(2), |_| ()).unwrap().fold_decoder_norm(), "cannot be folded");
}

#[test]
fn dictionaries_that_do_not_fit_the_model() {
    let model = HookedTransformer::toy().unwrap();
    let with = |config: DictionaryConfig, weights: DictionaryWeights| {
        model.with_saes([Dictionary::new(config, weights).unwrap()], SaeOptions::new())
    };
    let relu = FeatureActivation::Relu;
    refused(with(at(relu), weights(8, 64)), "is 128 wide in this model, and the dictionary 64");
    refused(with(DictionaryConfig::new(hook::resid_post(9), relu), weights(8, 128)), "layer 9 is out of range");
    refused(with(DictionaryConfig::new(hook::rot_q(0), relu), weights(8, 128)), "its positions are not rotary");
    refused(
        with(DictionaryConfig::new(hook::pattern(0), relu), weights(8, 128)),
        "must be [batch, pos, d], or have heads",
    );
    refused(with(DictionaryConfig::new(hook::z(0), relu), weights(8, 128)), "or have heads that are flattened");
    let backwards = DictionaryConfig { hook_out: hook::mlp_out(0), ..DictionaryConfig::new(hook::mlp_out(1), relu) };
    refused(with(backwards, weights(8, 128)), "which is computed later");
    refused(with(at(FeatureActivation::BatchTopK(2.0)), weights(8, 128)), "compares all positions of a batch");
    let double = Dictionary::new(at(relu), weights(8, 128)).unwrap().to(Kind::Double, Device::Cpu).unwrap();
    refused(model.with_saes([double], SaeOptions::new()), "in a model of Float on Cpu it must be Float on Cpu");
    let sae = Dictionary::new(at(relu), weights(8, 128)).unwrap();
    refused(
        model.with_saes([sae.clone(), sae.clone()], SaeOptions::new()),
        "another one reconstructs this activation already",
    );
    let spliced = model.with_saes([sae], SaeOptions::new()).unwrap();
    refused(spliced.save_pretrained(tempfile::tempdir().unwrap().path()), "dictionaries are attached");
    refused(model.run_with_cache_of([1, 2], "sae_acts_post"), "no dictionary is attached");
    refused(
        model.run_with_cache_of([1, 2], hook::sae_acts_post(hook::resid_post(0))),
        "no dictionary is attached there",
    );
    assert_eq!(spliced.run_with_cache_of([1, 2], "sae_acts_post").unwrap().1.len(), 1);
    refused(
        spliced.run_with_cache_of([1, 2], "blocks.1.hook_resid_post.hook_sae_act_post"),
        "the nearest is `blocks.1.hook_resid_post.hook_sae_acts_post`",
    );
    // A run that starts behind what a transcoder reads.
    let config = DictionaryConfig { hook_out: hook::mlp_out(2), ..DictionaryConfig::new(hook::resid_pre(1), relu) };
    let late = with(config, weights(8, 128)).unwrap();
    let resid = zeros(&[1, 3, 128]);
    refused(
        late.run(&resid, RunOptions::new().start_at_layer(2)),
        "the dictionary at `blocks.2.hook_mlp_out` reads it",
    );
}

/// A copy of a case's folder, with changes to its configuration and its weights' bytes.
fn changed(case: &str, config: &str, change: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&fixtures().join("sae").join(case), folder.path());
    let path = folder.path().join(config);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(&path, json.to_string()).unwrap();
    folder
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

#[test]
fn files_of_another_kind() {
    let open = |path: &Path| DictionaryOptions::new().open(path);
    type Case = (&'static str, fn(&mut Value), &'static str);
    let cases: [Case; 11] = [
        ("toy_standard", |json| json["architecture"] = json!("quantum"), "config field `architecture` is quantum"),
        ("toy_standard", |json| json["normalize_activations"] = json!("softmax"), "`normalize_activations` is softmax"),
        ("toy_standard", |json| json["reshape_activations"] = json!("hook_q"), "`reshape_activations` is hook_q"),
        ("toy_standard", |json| json["new_field"] = json!(1), "does not know the fields new_field"),
        ("toy_standard", |json| json["metadata"]["hook_name"] = json!("blocks.1.hook_nothing"), "names no hook point"),
        ("toy_standard", |json| json["metadata"]["hook_head_index"] = json!(2), "a single head"),
        ("toy_standard", |json| json["d_in"] = json!(64), "says d_in 64"),
        ("toy_topk", |json| json["k"] = json!(0), "`k` is 0"),
        ("toy_topk", |json| json["k"] = json!(2.5), "must be a whole number"),
        ("toy_topk", |json| json["architecture"] = json!("jumprelu"), "does not know the fields k"),
        ("toy_transcoder", |json| json["metadata"]["hook_name_out"] = Value::Null, "a transcoder needs it"),
    ];
    for (case, change, what) in cases {
        refused(open(changed(case, "cfg.json", change).path()), what);
    }
    // A transcoder subtracts nothing unless its file says so; an old file's dictionary does.
    let silent = |json: &mut Value| drop(json.as_object_mut().unwrap().remove("apply_b_dec_to_input"));
    assert!(!open(changed("toy_transcoder", "cfg.json", silent).path()).unwrap().config().apply_b_dec_to_input);
    assert!(open(changed("toy_standard", "cfg.json", silent).path()).unwrap().config().apply_b_dec_to_input);
    // Thresholds may be there as logarithms, and no tensor is left out without a word.
    let jump = fixtures().join("sae/toy_hook_z_jumprelu");
    let with = |name: &str, make: &dyn Fn(&Tensor) -> Tensor, keeps: bool| {
        let folder = tempfile::tempdir().unwrap();
        copy(&jump, folder.path());
        let path = folder.path().join("sae_weights.safetensors");
        let mut tensors: Vec<(String, Tensor)> = Tensor::read_safetensors(&path).unwrap();
        let threshold = tensors.iter().find(|(name, _)| name == "threshold").unwrap().1.shallow_clone();
        tensors.retain(|(name, _)| keeps || name != "threshold");
        tensors.push((name.into(), make(&threshold)));
        Tensor::write_safetensors(&tensors, &path).unwrap();
        DictionaryOptions::new().open(folder.path())
    };
    let plain = DictionaryOptions::new().open(&jump).unwrap().threshold().unwrap();
    let logarithms = with("log_threshold", &|threshold| threshold.log(), false).unwrap().threshold().unwrap();
    assert!((logarithms - plain).abs().max().double_value(&[]) < 1e-6);
    refused(with("hidden", &|threshold| threshold.copy(), true), "no dictionary of this kind uses its tensors hidden");
    let skip = |json: &mut Value| json["skip_connection"] = json!(true);
    let sparsify = DictionaryOptions::new().hook_in(hook::resid_post(1));
    let folder = changed("sparsify_topk/layers.1", "cfg.json", skip);
    refused(sparsify.open(folder.path()), "which `W_skip` contradicts");
    refused(open(tempfile::tempdir().unwrap().path()), "no dictionary of a known format is here");
    refused(open(&fixtures().join("circuit_tracer/toy_plt")), "read it with `open_set`");
    let activation = DictionaryOptions::new().activation(FeatureActivation::Relu);
    refused(activation.open(fixtures().join("sae/toy_standard")), "`activation` has no effect");
    let gemma = fixtures().join("sae/gemma_scope_res/layer_1/width_16k/average_l0_8");
    refused(open(&gemma), "give it with `DictionaryOptions::hook_in`");
}

#[test]
fn files_that_are_cut_short_or_lack_something() {
    for (case, file, within) in [
        ("toy_standard", "sae_weights.safetensors", ""),
        ("gemma_scope_res", "params.npz", "layer_1/width_16k/average_l0_8"),
        ("sparsify_topk", "sae.safetensors", "layers.1"),
    ] {
        let from = fixtures().join("sae").join(case).join(within);
        let whole = std::fs::read(from.join(file)).unwrap();
        for len in [0, 1, 7, 100, whole.len() / 2, whole.len() - 1] {
            let folder = tempfile::tempdir().unwrap();
            copy(&from, folder.path());
            std::fs::write(folder.path().join(file), &whole[..len]).unwrap();
            let options = DictionaryOptions::new().hook_in(hook::resid_post(1));
            let error = options.open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(file) && !error.contains('\n'), "{case} {len}: {error}");
        }
    }
    let set = fixtures().join("circuit_tracer/toy_plt");
    let open = |change: &dyn Fn(&Path)| {
        let folder = tempfile::tempdir().unwrap();
        copy(&set, folder.path());
        change(folder.path());
        DictionaryOptions::new().open_set(folder.path())
    };
    refused(
        open(&|folder| std::fs::remove_file(folder.join("layer_1.safetensors")).unwrap()),
        "there is no `layer_1.safetensors`, but files of later layers",
    );
    let yaml = |text: &'static str| open(&move |folder| std::fs::write(folder.join("config.yaml"), text).unwrap());
    refused(
        yaml("model_kind: diffusion\nfeature_input_hook: hook_mlp_in\nfeature_output_hook: hook_mlp_out"),
        "`model_kind` is `diffusion`",
    );
    refused(yaml("model_kind: transcoder_set\nfeature_input_hook: hook_mlp_in"), "`feature_output_hook` is ``");
    refused(
        yaml("feature_input_hook: hook_mlp_in\nfeature_output_hook: hook_mlp_out\nlearned: yes"),
        "field `learned` is unknown",
    );
    refused(yaml("a:\n  b: c"), "is indented");
    refused(open(&|folder| std::fs::remove_file(folder.join("config.yaml")).unwrap()), "config.yaml");
    let clt = fixtures().join("circuit_tracer/toy_clt");
    let folder = tempfile::tempdir().unwrap();
    copy(&clt, folder.path());
    std::fs::remove_file(folder.path().join("W_enc_3.safetensors")).unwrap();
    refused(DictionaryOptions::new().open_set(folder.path()), "writes to 4 layers, but 3 have an encoder");
}
