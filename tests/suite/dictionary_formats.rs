//! Formats of dictionaries for which there is no fixture: the tests write files in the documented layout, and compare with the formulae of the
//! format's own code. Which activation a dictionary reads where only its path or another library's name says it.

use std::path::Path;

use serde_json::{json, Value};
use tch::{Device, Kind, Tensor};
use tch_lens::sae::{FeatureActivation, InputNormalization};
use tch_lens::{hook, Dictionary, DictionaryOptions, HookPoint};

use crate::common::fixtures;

const D_IN: i64 = 6;
const D_SAE: i64 = 10;
const TOLERANCE: f64 = 1e-5;

/// Numbers without a pattern, none of which is 0, the same each time.
fn numbers(size: &[i64], seed: f64) -> Tensor {
    let n: i64 = size.iter().product();
    let x = Tensor::arange(n, (Kind::Double, Device::Cpu));
    ((x * 12.9898 + seed * 78.233).sin() * 43.7585).sin().reshape(size).to_kind(Kind::Float)
}

#[track_caller]
fn compare(what: &str, dictionary: &Dictionary, x: &Tensor, acts: &Tensor, out: &Tensor) {
    let features = (dictionary.encode(x).unwrap() - acts).abs().max().double_value(&[]);
    let outputs = (dictionary.forward(x).unwrap() - out).abs().max().double_value(&[]);
    let active = acts.ne(0.0).to_kind(Kind::Float).mean(Kind::Float).double_value(&[]);
    println!("{what}: features differ by {features:.1e}, reconstructions by {outputs:.1e}; {active:.2} are active");
    assert!(features < TOLERANCE && outputs < TOLERANCE && active > 0.1 && active < 0.9, "{what}");
}

fn top_k(pre: &Tensor, k: i64) -> Tensor {
    let (values, places) = pre.topk(k, -1, true, true);
    pre.zeros_like().scatter(-1, &places, &values.relu())
}

/// What an entry of a state dict is.
enum Entry<'a> {
    Tensor(&'a Tensor),
    Text(&'a str),
    /// A dictionary of a number `k` and a text `postact_fn`.
    TopK(u8),
}

/// A file of `torch.save` in the container before torch 1.6: pickles, then the storages.
fn write_torch(path: &Path, entries: &[(&str, Entry)]) {
    let text = |to: &mut Vec<u8>, text: &str| {
        to.push(b'X');
        to.extend((text.len() as u32).to_le_bytes());
        to.extend(text.as_bytes());
    };
    let int = |to: &mut Vec<u8>, number: i64| {
        to.push(b'J');
        to.extend((number as i32).to_le_bytes());
    };
    let mut file =
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x02}(".to_vec();
    let (mut keys, mut storages) = (b"\x80\x02](".to_vec(), Vec::new());
    for (number, (name, entry)) in entries.iter().enumerate() {
        text(&mut file, name);
        match entry {
            Entry::Text(of) => text(&mut file, of),
            Entry::TopK(k) => {
                file.extend(b"}(");
                text(&mut file, "k");
                int(&mut file, i64::from(*k));
                text(&mut file, "postact_fn");
                text(&mut file, "ReLU");
                file.push(b'u');
            }
            Entry::Tensor(tensor) => {
                let (n, whole) = (tensor.numel() as i64, tensor.kind() == Kind::Int64);
                file.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
                text(&mut file, "storage");
                file.extend(if whole { &b"ctorch\nLongStorage\n"[..] } else { &b"ctorch\nFloatStorage\n"[..] });
                text(&mut file, &number.to_string());
                text(&mut file, "cpu");
                int(&mut file, n);
                file.extend(b"NtQ");
                int(&mut file, 0);
                for dimensions in [tensor.size(), tensor.stride()] {
                    file.push(b'(');
                    dimensions.iter().for_each(|of| int(&mut file, *of));
                    file.push(b't');
                }
                file.extend(b"\x89ccollections\nOrderedDict\n)RtR");
                text(&mut keys, &number.to_string());
                storages.extend((n as u64).to_le_bytes());
                match whole {
                    true => Vec::<i64>::try_from(tensor.reshape([-1]))
                        .unwrap()
                        .iter()
                        .for_each(|x| storages.extend(x.to_le_bytes())),
                    false => Vec::<f32>::try_from(tensor.reshape([-1]))
                        .unwrap()
                        .iter()
                        .for_each(|x| storages.extend(x.to_le_bytes())),
                }
            }
        }
    }
    file.extend(b"u.");
    keys.extend(b"e.");
    file.extend(keys);
    file.extend(storages);
    std::fs::write(path, file).unwrap();
}

fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, serde_json::to_vec(value).unwrap()).unwrap();
}

/// `latents = f(W (norm(x) − pre_bias) + latent_bias)`, with a norm for TopK alone.
#[test]
fn openai_s_files_are_read() {
    let (w, b) = (numbers(&[D_SAE, D_IN], 1.0), numbers(&[D_SAE], 2.0));
    let (pre_bias, decoder) = (numbers(&[D_IN], 3.0), numbers(&[D_IN, D_SAE], 4.0));
    let (counts, statistics) = (Tensor::zeros([D_SAE], (Kind::Int64, Device::Cpu)), numbers(&[D_SAE], 5.0));
    let x = numbers(&[2, 3, D_IN], 6.0) * 2.0;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("0.pt");
    let write = |further: Vec<(&'static str, Entry<'static>)>| {
        let mut entries = vec![
            ("pre_bias", Entry::Tensor(&pre_bias)),
            ("latent_bias", Entry::Tensor(&b)),
            ("stats_last_nonzero", Entry::Tensor(&counts)),
            ("latents_activation_frequency", Entry::Tensor(&statistics)),
            ("latents_mean_square", Entry::Tensor(&statistics)),
            ("encoder.weight", Entry::Tensor(&w)),
            ("decoder.weight", Entry::Tensor(&decoder)),
        ];
        entries.extend(further);
        write_torch(&path, &entries);
    };
    let options = || DictionaryOptions::new().hook_in(hook::resid_post(1));
    let pre = |x: &Tensor| (x - &pre_bias).matmul(&w.tr()) + &b;
    let decode = |acts: &Tensor| acts.matmul(&decoder.tr()) + &pre_bias;

    write(vec![("activation", Entry::Text("TopK")), ("activation_state_dict", Entry::TopK(3))]);
    let named = options().open(&path).unwrap();
    assert_eq!(named.config().activation, FeatureActivation::TopK(3));
    assert_eq!(named.config().normalization, InputNormalization::LayerNorm);
    let mean = x.mean_dim([-1i64].as_slice(), true, Kind::Float);
    let std = (&x - &mean).std_dim([-1i64].as_slice(), true, true);
    let acts = top_k(&pre(&((&x - &mean) / (&std + 1e-5))), 3);
    compare("OpenAI, TopK", &named, &x, &acts, &(decode(&acts) * &std + &mean));
    let other = options().activation(FeatureActivation::Relu).open(&path).unwrap_err().to_string();
    assert!(other.contains("leave out `activation`"), "{other}");

    for named in [true, false] {
        write(if named { vec![("activation", Entry::Text("ReLU"))] } else { vec![] });
        let options = if named { options() } else { options().activation(FeatureActivation::Relu) };
        let acts = pre(&x).relu();
        compare("OpenAI, ReLU", &options.open(&path).unwrap(), &x, &acts, &decode(&acts));
    }
    let error = options().open(&path).unwrap_err().to_string();
    assert!(error.contains("`DictionaryOptions::activation`"), "{error}");
    write(vec![("activation", Entry::Text("Identity"))]);
    assert!(options().open(&path).unwrap_err().to_string().contains("its activation is `Identity`"));
}

/// dictionary_learning's classes whose weights are those of `torch.nn.Linear`.
#[test]
fn dictionary_learning_s_files_are_read() {
    let (w, b) = (numbers(&[D_SAE, D_IN], 1.0), numbers(&[D_SAE], 2.0));
    let (b_dec, decoder) = (numbers(&[D_IN], 3.0), numbers(&[D_IN, D_SAE], 4.0));
    let (k, threshold) = (Tensor::from_slice(&[3i64]).squeeze(), Tensor::from_slice(&[0.4f32]).squeeze());
    let x = numbers(&[2, 3, D_IN], 6.0);
    let pre = (&x - &b_dec).matmul(&w.tr()) + &b;
    let unbiased = x.matmul(&w.tr()) + &b;
    let norms = decoder.norm_scalaropt_dim(2.0, [0i64].as_slice(), false); // [feature]
    for (class, bias) in [
        ("AutoEncoder", "bias"),
        ("AutoEncoderNew", "decoder.bias"),
        ("AutoEncoderTopK", "b_dec"),
        ("BatchTopKSAE", "b_dec"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let trainer = json!({"dict_class": class, "layer": 1, "submodule_name": "resid_post_layer_1", "k": 3, "lm_name": "toy",
                   "trainer_class": "T", "lr": 1e-4, "activation_dim": D_IN, "dict_size": D_SAE, "device": "cuda:0", "seed": 0});
        let write = |trainer: &Value| {
            write_json(&folder.path().join("config.json"), &json!({"trainer": trainer, "buffer": {}}))
        };
        write(&trainer);
        let mut entries = vec![
            ("encoder.weight", Entry::Tensor(&w)),
            ("encoder.bias", Entry::Tensor(&b)),
            ("decoder.weight", Entry::Tensor(&decoder)),
            (bias, Entry::Tensor(&b_dec)),
        ];
        if !class.starts_with("AutoEncoder") || class == "AutoEncoderTopK" {
            entries.extend([("k", Entry::Tensor(&k)), ("threshold", Entry::Tensor(&threshold))]);
        }
        write_torch(&folder.path().join("ae.pt"), &entries);
        let dictionary = DictionaryOptions::new().open(folder.path()).unwrap();
        assert_eq!(dictionary.hook_in(), hook::resid_post(1));
        let acts = match class {
            "AutoEncoder" => pre.relu() * &norms,
            "AutoEncoderNew" => unbiased.relu(),
            "AutoEncoderTopK" => top_k(&pre, 3),
            _ => &pre * pre.gt(0.4).to_kind(Kind::Float),
        };
        // The library gives the directions of this class norm 1.
        let decoder = if class == "AutoEncoder" { &decoder / &norms } else { decoder.shallow_clone() };
        compare(class, &dictionary, &x, &acts, &(acts.matmul(&decoder.tr()) + &b_dec));
        for (field, value, wanted) in [
            ("dict_size", json!(11), "dict_size"),
            ("normalize_input", json!(true), "does not know the fields trainer.normalize_input"),
            ("dict_class", json!("CrossCoder"), "this class is not supported"),
        ] {
            let mut changed = trainer.clone();
            changed[field] = value;
            write(&changed);
            let error = DictionaryOptions::new().open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}

/// Llama Scope: inputs are scaled to the norm `√d` on average, and so is what the output is divided by. The authors' library folds the factors into
/// the weights, then the norms of the decoder's rows, and compares the threshold with what comes of that.
#[test]
fn llama_scope_s_files_are_read() {
    let (w, b) = (numbers(&[D_SAE, D_IN], 1.0), numbers(&[D_SAE], 2.0));
    let (b_dec, decoder) = (numbers(&[D_IN], 3.0), numbers(&[D_IN, D_SAE], 4.0));
    let x = numbers(&[2, 3, D_IN], 6.0);
    let base = json!({
        "hook_point_in": "blocks.1.hook_resid_post", "hook_point_out": "blocks.1.hook_resid_post", "d_model": D_IN,
        "d_sae": D_SAE, "device": "cuda", "dtype": "torch.bfloat16", "expansion_factor": 8, "top_k": 3, "lp": 1,
        "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 3.0, "out": 4.0},
        "act_fn": "jumprelu", "jump_relu_threshold": 0.5, "sparsity_include_decoder_norm": true,
        "use_decoder_bias": true, "apply_decoder_bias_to_pre_encoder": false, "use_glu_encoder": false
    });
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("checkpoints")).unwrap();
    let tensors =
        [("encoder.weight", &w), ("encoder.bias", &b), ("decoder.weight", &decoder), ("decoder.bias", &b_dec)];
    Tensor::write_safetensors(&tensors, folder.path().join("checkpoints/final.safetensors")).unwrap();
    let open = |changes: &[(&str, Value)]| {
        let mut fields = base.clone();
        changes.iter().for_each(|(field, value)| fields[*field] = value.clone());
        write_json(&folder.path().join("hyperparams.json"), &fields);
        DictionaryOptions::new().open(folder.path())
    };
    let root = (D_IN as f64).sqrt();
    let norms = |decoder: &Tensor| decoder.norm_scalaropt_dim(2.0, [0i64].as_slice(), false); // [feature]
    for (by_norm, dataset) in [(false, true), (true, true), (true, false)] {
        let norm = if dataset { "dataset-wise" } else { "token-wise" };
        let opened = |further: &[(&str, Value)]| {
            let changes = [("sparsity_include_decoder_norm", json!(by_norm)), ("norm_activation", json!(norm))];
            open(&[&changes, further].concat()).unwrap()
        };
        let (into, out_of) = if dataset { (root / 3.0, root / 4.0) } else { (1.0, 1.0) };
        // Each activation's own factor, of a norm that is undone.
        let own = match dataset {
            true => Tensor::ones([2, 3, 1], (Kind::Float, Device::Cpu)),
            false => x.norm_scalaropt_dim(2.0, [-1i64].as_slice(), true).reciprocal() * root,
        };
        let rows = &decoder * (into / out_of);
        let scale = if by_norm { norms(&rows) } else { Tensor::ones([D_SAE], (Kind::Float, Device::Cpu)) };
        let pre = |x: &Tensor| (x.matmul(&w.tr()) + &b / into) * &scale;
        let out = |acts: &Tensor| (acts.matmul(&(&rows / &scale).tr()) + &b_dec / out_of) / &own;
        let normal = &x * &own;
        let jump = &pre(&normal) * pre(&normal).gt(0.5).to_kind(Kind::Float);
        compare("Llama Scope", &opened(&[]), &x, &jump, &out(&jump));
        let top = top_k(&pre(&normal), 3);
        compare(
            "Llama Scope, TopK",
            &opened(&[("act_fn", json!("topk")), ("jump_relu_threshold", json!(0.0))]),
            &x,
            &top,
            &out(&top),
        );
        let converted = opened(&[("act_fn", json!("topk"))]);
        compare("Llama Scope, TopK with a threshold", &converted, &x, &jump, &out(&jump));
        let centred = pre(&(&normal - &b_dec / out_of)).relu();
        let plain = opened(&[("act_fn", json!("relu")), ("apply_decoder_bias_to_pre_encoder", json!(true))]);
        compare("Llama Scope, ReLU", &plain, &x, &centred, &out(&centred));
    }
    for (field, value, wanted) in [
        ("jump_relu_threshold", json!(-0.1), "must not be negative"),
        ("d_sae", json!(11), "hyperparams.json says [11, 6]"),
        ("use_glu_encoder", json!(true), "use_glu_encoder"),
        ("norm_activation", json!("batch-wise"), "batch-wise"),
        ("dataset_average_activation_norm", json!({"in": 0.0, "out": 1.0}), "positive"),
        ("act_fn", json!("gelu"), "not supported"),
        ("circular", json!(1), "does not know the fields circular"),
    ] {
        let error = open(&[(field, value)]).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

/// Gemma Scope's files do not say what they read: the names of the repository and of the folders do.
#[test]
fn gemma_scope_s_paths_name_hooks() {
    let same = |point: HookPoint| (point, point);
    for (repository, case, layer, (read, out)) in [
        ("gemma-scope-2b-pt-res", "gemma_scope_res", 12, same(hook::resid_post(12))),
        ("gemma-scope-9b-it-res", "gemma_scope_res", 31, same(hook::resid_post(31))),
        ("gemma-scope-2b-pt-mlp", "gemma_scope_mlp", 3, same(hook::mlp_out(3))),
        ("gemma-scope-2b-pt-att", "gemma_scope_att", 0, same(hook::z(0))),
        ("gemma-scope-2b-pt-transcoders", "gemma_scope_transcoder", 5, (hook::ln2_normalized(5), hook::mlp_out(5))),
    ] {
        let from = fixtures().join("sae").join(case).join("layer_1/width_16k");
        let from = std::fs::read_dir(from).unwrap().next().unwrap().unwrap().path().join("params.npz");
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(repository).join(format!("layer_{layer}/width_16k/average_l0_8"));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(from, folder.join("params.npz")).unwrap();
        let dictionary = DictionaryOptions::new().open(&folder).unwrap();
        assert_eq!((dictionary.hook_in(), dictionary.hook_out()), (read, out), "{repository}");
        assert_eq!(dictionary.config().flatten_heads, read == hook::z(0), "{repository}");
    }
}

/// Gemma Scope 2 names activations by transformers' modules.
#[test]
fn gemma_scope_2_s_names_are_hooks() {
    let from = fixtures().join("sae/gemma_scope2_resid_post/resid_post");
    let from = std::fs::read_dir(from).unwrap().next().unwrap().unwrap().path();
    let fields: Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    let open = |name: &str| {
        let (folder, mut fields) = (tempfile::tempdir().unwrap(), fields.clone());
        fields["hf_hook_point_in"] = json!(name);
        write_json(&folder.path().join("config.json"), &fields);
        std::fs::copy(from.join("params.safetensors"), folder.path().join("params.safetensors")).unwrap();
        DictionaryOptions::new().open(folder.path())
    };
    for (name, point) in [
        ("model.layers.7.output", hook::resid_post(7)),
        ("model.layers.7.input", hook::resid_pre(7)),
        ("model.layers.0.post_attention_layernorm.output", hook::attn_out(0)),
        ("model.layers.12.pre_feedforward_layernorm.output", hook::mlp_hook_in(12)),
        ("model.layers.12.post_feedforward_layernorm.output", hook::mlp_out(12)),
    ] {
        let dictionary = open(name).unwrap();
        assert_eq!((dictionary.hook_in(), dictionary.hook_out()), (point, point), "{name}");
    }
    let error = open("model.layers.7.mlp.up_proj.output").unwrap_err().to_string();
    assert!(error.contains("give it with `DictionaryOptions::hook_in`"), "{error}");
}
