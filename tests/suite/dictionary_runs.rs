//! Dictionaries in runs, beyond what SAELens computes: identities, interventions, gradients, generation, rows of features; and what is
//! written and trained.

use tch::{Device, Kind, Tensor};
use tch_lens::analysis::{Component, FeatureOptions, Target};
use tch_lens::dictionary_learning::{activations, evaluate, Sparsity, Trainer, TrainerOptions};
use tch_lens::sae::{
    DictionaryConfig, DictionaryWeights, FeatureActivation, InputNormalization, SaeOptions, SparseFeatures,
};
use tch_lens::{
    hook, Dictionary, DictionaryOptions, DictionarySet, HookPoint, HookedTransformer, Hooks, Patch, RunOptions,
};

use crate::common::{families, fixtures, raw};

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
const PROMPT: &str = "When Mary and John went to the shop, John gave a bag to";

fn random(size: &[i64], seed: i64) -> Tensor {
    let n: i64 = size.iter().product();
    (Tensor::arange(n, CPU) * 12.9898 + seed as f64 * 78.233).sin().mul_scalar(43758.5453).frac().reshape(size)
}

trait MulScalar {
    fn mul_scalar(&self, by: f64) -> Tensor;
}

impl MulScalar for Tensor {
    fn mul_scalar(&self, by: f64) -> Tensor {
        self * by
    }
}

/// A dictionary of random weights between two activations of a model.
fn dictionary(model: &HookedTransformer, config: DictionaryConfig, d_sae: i64) -> Dictionary {
    let width = |hook: HookPoint| -> i64 { hook.shape(model.config(), 1, 1)[2..].iter().product() };
    let (d_in, d_out) = (width(config.hook_in), width(config.hook_out));
    let threshold = config.activation == FeatureActivation::JumpRelu;
    let gated = config.activation == FeatureActivation::Gated;
    let weights = DictionaryWeights {
        w_enc: random(&[d_sae, d_in], 1) * 0.3,
        b_enc: random(&[d_sae], 2) * 0.1,
        w_dec: random(&[d_sae, d_out], 3) * 0.3,
        b_dec: random(&[d_out], 4) * 0.1,
        w_skip: config.is_transcoder().then(|| random(&[d_out, d_in], 5) * 0.05),
        threshold: threshold.then(|| random(&[d_sae], 6).abs() * 0.1),
        b_gate: gated.then(|| random(&[d_sae], 7) * 0.1),
        r_mag: gated.then(|| random(&[d_sae], 8) * 0.1),
    };
    Dictionary::new(config, weights).unwrap()
}

fn diff(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

fn toy() -> HookedTransformer {
    HookedTransformer::toy().unwrap()
}

#[test]
fn a_plain_handle_does_not_change() {
    let model = toy();
    let sae = dictionary(&model, DictionaryConfig::new(hook::resid_post(1), FeatureActivation::TopK(4)), 40);
    let before = model.forward(PROMPT).unwrap();
    let spliced = model.with_saes([sae], SaeOptions::new()).unwrap();
    assert!(!spliced.forward(PROMPT).unwrap().equal(&before));
    assert!(model.forward(PROMPT).unwrap().equal(&before));
    assert!(spliced.without_saes().forward(PROMPT).unwrap().equal(&before));
    assert_eq!(model.config().dictionaries.len(), 0);
    assert_eq!(spliced.saes().len(), 1);
    assert_eq!(spliced.hook_names().len(), model.hook_names().len() + 6);
    // A run that needs only the first layer goes no further than it, dictionary or not.
    let run = || RunOptions::new().cache(hook::resid_post(0)).return_type(tch_lens::ReturnType::None);
    assert_eq!(spliced.run(PROMPT, run()).unwrap().cache.len(), 1);
}

/// Rows of features sum to the stream, and their attributions to the logit, on every family and at every kind of place.
#[test]
fn rows_of_features_add_up() {
    let mut worst = 0.0f64;
    let kinds =
        [FeatureActivation::Relu, FeatureActivation::JumpRelu, FeatureActivation::TopK(3), FeatureActivation::Gated];
    for (n, family) in families().into_iter().enumerate() {
        let model = raw(&family);
        let config = model.config();
        let layer = (config.n_layers - 1) as i64;
        let kind = kinds[n % kinds.len()];
        let mut configs = vec![DictionaryConfig::new(hook::attn_out(0), kind)];
        configs.push(match n % 3 {
            0 => DictionaryConfig {
                normalization: InputNormalization::LayerNorm,
                ..DictionaryConfig::new(hook::attn_out(layer), kind)
            },
            1 => DictionaryConfig {
                normalization: InputNormalization::ConstantNorm,
                ..DictionaryConfig::new(hook::resid_post(0), kind)
            },
            _ => DictionaryConfig::new(hook::resid_pre(layer), kind),
        });
        if !config.attn_only() {
            let out = hook::mlp_out(layer);
            let read = if config.parallel_attn_mlp { hook::resid_pre(layer) } else { hook::resid_mid(layer) };
            configs.push(DictionaryConfig {
                hook_out: out,
                apply_b_dec_to_input: false,
                ..DictionaryConfig::new(read, kind)
            });
        }
        configs.dedup_by_key(|config| config.hook_out);
        let saes: Vec<Dictionary> = configs.into_iter().map(|config| dictionary(&model, config, 12)).collect();
        for error in [false, true] {
            let with = match model.with_saes(saes.clone(), SaeOptions::new().error_term(error)) {
                Ok(with) => with,
                Err(error) => panic!("{family}: {error}"),
            };
            let (_, cache) =
                with.run_with_cache([[1i64, 4, 2, 7, 5], [3, 3, 6, 1, 2]].map(Vec::from).to_vec()).unwrap();
            let stack = cache.stack_feature_results(FeatureOptions::new()).unwrap();
            let resid = &cache[hook::resid_post(-1)];
            let scale = resid.abs().max().double_value(&[]).max(1.0);
            let differs = diff(&stack.sum().unwrap(), resid) / scale;
            assert!(differs < 1e-4, "{family} {error}: {differs:.1e}");
            worst = worst.max(differs);
            assert!(stack.rows().iter().any(|row| matches!(row, Component::Feature { .. })), "{family}");
            let attribution = cache.logit_attrs(FeatureOptions::new().pos(-1), 4).unwrap();
            let residual = attribution.residual_error().unwrap();
            assert!(residual < 1e-3, "{family} {error}: the attribution is off by {residual:.1e}");
        }
    }
    println!("largest relative difference: {worst:.1e}");
}

#[test]
fn features_have_labels() {
    let model = toy();
    let config = DictionaryConfig {
        hook_out: hook::mlp_out(1),
        apply_b_dec_to_input: false,
        ..DictionaryConfig::new(hook::ln2_normalized(1), FeatureActivation::TopK(2))
    };
    let spliced = model.with_saes([dictionary(&model, config, 30)], SaeOptions::new().error_term(true)).unwrap();
    let (_, cache) = spliced.run_with_cache(PROMPT).unwrap();
    let stack = cache.stack_feature_results(FeatureOptions::new().pos(-1).target(Target::Mlp(2))).unwrap();
    let labels: Vec<String> = stack.rows().iter().map(|row| row.to_string()).collect();
    let acts = cache[hook::sae_acts_post(hook::mlp_out(1))].select(1, -1).squeeze_dim(0);
    let active: Vec<i64> = Vec::try_from(acts.nonzero().reshape(-1)).unwrap();
    let mut wanted: Vec<String> =
        ["embed", "pos_embed", "0_attn_out", "0_mlp_out", "1_attn_out"].map(String::from).to_vec();
    wanted.extend(active.iter().map(|feature| format!("L1F{feature}")));
    wanted.extend(["1_mlp_out_bias", "1_mlp_out_skip", "1_mlp_out_error", "2_attn_out"].map(String::from));
    assert_eq!(labels, wanted);
    let error = model.run_with_cache(PROMPT).unwrap().1.stack_feature_results(FeatureOptions::new()).unwrap_err();
    assert!(error.to_string().contains("no dictionary"), "{error}");
}

/// The rows of a cross-layer transcoder, which writes to later layers.
#[test]
fn rows_of_a_cross_layer_transcoder_add_up() {
    let set = DictionaryOptions::new().open_set(fixtures().join("circuit_tracer/toy_clt")).unwrap();
    let model = toy().with_saes(set.dictionaries().to_vec(), SaeOptions::new()).unwrap();
    let (_, cache) = model.run_with_cache(PROMPT).unwrap();
    let stack = cache.stack_feature_results(FeatureOptions::new()).unwrap();
    let resid = &cache[hook::resid_post(-1)];
    let differs = diff(&stack.sum().unwrap(), resid) / resid.abs().max().double_value(&[]);
    assert!(differs < 1e-5, "{differs:.1e}");
    assert!(stack.rows().iter().any(|row| row.to_string().contains('→')));
}

/// A patch of a feature has the effect of its row: what flows on changes by the activation times the direction.
#[test]
fn a_patched_feature_changes_the_output_by_its_direction() {
    let model = toy();
    let out = hook::mlp_out(2);
    let sae = dictionary(&model, DictionaryConfig::new(out, FeatureActivation::JumpRelu), 30);
    for error in [false, true] {
        let spliced = model.with_saes([sae.clone()], SaeOptions::new().error_term(error)).unwrap();
        let points = || [hook::sae_acts_post(out), hook::sae_output(out), out];
        let before = spliced.run(PROMPT, RunOptions::new().cache(points())).unwrap().cache;
        let hooks = || Hooks::new().patch(hook::sae_acts_post(out).feature(7).pos(-1), Patch::set(2.5));
        let after = spliced.run(PROMPT, RunOptions::new().hooks(hooks()).cache(points())).unwrap().cache;
        let acts = before[hook::sae_acts_post(out)].select(0, 0).select(0, -1).double_value(&[7]);
        let direction = sae.decoder_rows(0, &Tensor::from_slice(&[7i64])).unwrap().squeeze_dim(0) * (2.5 - acts);
        let change = (&after[out] - &before[out]).squeeze_dim(0); // [pos, d_model]
        let n = change.size()[0];
        assert!(diff(&change.select(0, n - 1), &direction) < 1e-5);
        // With the error term, what was the activation itself is now the sum of reconstruction and error, which rounds.
        let elsewhere = change.narrow(0, 0, n - 1).abs().max().double_value(&[]);
        assert!(elsewhere <= if error { 1e-5 } else { 0.0 }, "{elsewhere:.1e}");
        assert!(after.is_changed(out));
    }
}

/// The gradient with respect to a feature is that of finite differences, and the error has one of its own.
#[test]
fn features_have_gradients() {
    let model = toy().to_kind(Kind::Double).unwrap();
    let out = hook::resid_post(1);
    let sae = dictionary(&toy(), DictionaryConfig::new(out, FeatureActivation::Relu), 30)
        .to(Kind::Double, Device::Cpu)
        .unwrap();
    let spliced = model.with_saes([sae], SaeOptions::new().error_term(true)).unwrap();
    let points = [hook::sae_acts_post(out), hook::sae_error(out), hook::resid_pre(0)];
    let metric = |logits: &Tensor| logits.select(0, 0).select(0, -1).select(0, 5).shallow_clone();
    let run = RunOptions::new().cache(points);
    let output = spliced.run_with_grad(PROMPT, run, |output| Ok(metric(output.logits()?))).unwrap();
    let gradient = output.gradients.get(hook::sae_acts_post(out)).unwrap();
    assert!(output.gradients.get(hook::sae_error(out)).unwrap().abs().max().double_value(&[]) > 0.0);
    assert!(output.gradients.get(hook::resid_pre(0)).unwrap().abs().max().double_value(&[]) > 0.0);
    // The same where nothing before them has a gradient.
    let run = RunOptions::new().cache(hook::sae_acts_post(out));
    let alone = spliced.run_with_grad(PROMPT, run, |output| Ok(metric(output.logits()?))).unwrap();
    assert!(diff(alone.gradients.get(hook::sae_acts_post(out)).unwrap(), gradient) < 1e-12);
    let step = 1e-5;
    for (pos, feature) in [(3, 2), (5, 11)] {
        let value = |by: f64| {
            let hooks = Hooks::new().edit(hook::sae_acts_post(out), move |acts, _| {
                let mut entry = acts.select(0, 0).select(0, pos).select(0, feature);
                entry += by;
            });
            metric(&spliced.run_with_hooks(PROMPT, hooks).unwrap()).double_value(&[])
        };
        let numeric = (value(step) - value(-step)) / (2.0 * step);
        let exact = gradient.double_value(&[0, pos, feature]);
        assert!((numeric - exact).abs() < 1e-6, "{numeric} {exact}");
    }
}

#[test]
fn generations_have_dictionaries() {
    let model = toy();
    let sae = dictionary(&model, DictionaryConfig::new(hook::resid_post(1), FeatureActivation::TopK(4)), 40);
    let spliced = model.with_saes([sae], SaeOptions::new()).unwrap();
    let mut tokens: Vec<i64> = Vec::try_from(spliced.to_tokens(PROMPT).unwrap().ids.squeeze_dim(0)).unwrap();
    let n = tokens.len();
    // Token by token, without a store of keys and values.
    for _ in 0..4 {
        let logits = spliced.forward(tokens.clone()).unwrap();
        tokens.push(logits.select(0, 0).select(0, -1).argmax(-1, false).int64_value(&[]));
    }
    let options = tch_lens::GenerateOptions::new().do_sample(false).stop_at_eos(false).max_new_tokens(4);
    let generated = spliced.generate_with(PROMPT, &options, tch_lens::StepOptions::new()).unwrap();
    assert_eq!(generated.rows[0].new_ids(), &tokens[n..]);
}

#[test]
fn what_is_written_is_read_again() {
    let model = toy();
    let kinds = [
        (FeatureActivation::Relu, false),
        (FeatureActivation::JumpRelu, false),
        (FeatureActivation::Gated, false),
        (FeatureActivation::TopK(3), false),
        (FeatureActivation::AbsTopK(3), false),
        (FeatureActivation::BatchTopK(2.5), false),
        (FeatureActivation::Relu, true),
        (FeatureActivation::JumpRelu, true),
    ];
    let x = random(&[2, 3, 128], 9);
    for (kind, transcoder) in kinds {
        let mut config = DictionaryConfig::new(hook::ln2_normalized(1), kind);
        if transcoder {
            config = DictionaryConfig { hook_out: hook::mlp_out(1), apply_b_dec_to_input: false, ..config };
        }
        // A file says that features are rescaled by the decoder's norms.
        config.rescale_by_decoder_norm = matches!(kind, FeatureActivation::TopK(_));
        let ours = dictionary(&model, config, 20).named("toy");
        let folder = tempfile::tempdir().unwrap();
        ours.save_saelens(folder.path()).unwrap();
        let again = DictionaryOptions::new().open(folder.path()).unwrap();
        assert_eq!(again.config(), ours.config(), "{kind}");
        assert!(diff(&again.forward(&x).unwrap(), &ours.forward(&x).unwrap()) < 1e-6, "{kind}");
    }
    for case in ["toy_plt", "toy_clt", "toy_skip_jumprelu", "llama_plt"] {
        let set = DictionaryOptions::new().open_set(fixtures().join("circuit_tracer").join(case)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        set.save_circuit_tracer(folder.path()).unwrap();
        let again = DictionaryOptions::new().open_set(folder.path()).unwrap();
        assert_eq!(again.scan(), set.scan());
        for (ours, again) in set.dictionaries().iter().zip(again.dictionaries()) {
            assert_eq!(again.config(), ours.config(), "{case}");
            assert!(again.w_enc().equal(&ours.w_enc()), "{case}");
            for output in 0..ours.outputs().len() {
                let all = Tensor::arange(ours.d_sae() as i64, (Kind::Int64, Device::Cpu));
                assert!(again.decoder_rows(output, &all).unwrap().equal(&ours.decoder_rows(output, &all).unwrap()));
            }
        }
    }
    let top_k = dictionary(&model, DictionaryConfig::new(hook::mlp_out(0), FeatureActivation::TopK(3)), 20);
    let error = DictionarySet::new(vec![top_k]).unwrap().save_circuit_tracer(tempfile::tempdir().unwrap().path());
    assert!(error.unwrap_err().to_string().contains("ReLU and JumpReLU transcoders only"));
}

#[test]
fn sparse_and_dense_are_the_same() {
    let acts = random(&[3, 4, 50], 1).relu();
    let sparse = SparseFeatures::from_dense(&acts).unwrap();
    assert!(sparse.to_dense().unwrap().equal(&acts));
    assert_eq!(sparse.size(), acts.size());
    assert_eq!(sparse.rows().unwrap().size(), [sparse.len() as i64]);
    let none = SparseFeatures::from_dense(&Tensor::zeros([2, 5], CPU)).unwrap();
    assert!(none.is_empty() && none.to_dense().unwrap().size() == [2, 5]);
    // More features than are formed at once, for each kind.
    let model = toy();
    let x = random(&[2, 3, 128], 9);
    for kind in [
        FeatureActivation::Relu,
        FeatureActivation::JumpRelu,
        FeatureActivation::Gated,
        FeatureActivation::TopK(5),
        FeatureActivation::AbsTopK(5),
        FeatureActivation::GroupMax(10),
    ] {
        let large = dictionary(&model, DictionaryConfig::new(hook::resid_pre(1), kind), 9000);
        let (dense, sparse) = (large.encode(&x).unwrap(), large.encode_sparse(&x).unwrap());
        assert!(diff(&sparse.to_dense().unwrap(), &dense) < 1e-5, "{kind}");
        let decoded = large.decode(&dense).unwrap();
        let differs = diff(&large.decode_sparse(&sparse).unwrap(), &decoded) / decoded.abs().max().double_value(&[]);
        assert!(differs < 1e-5, "{kind}: {differs:.1e}");
    }
}

/// Each kind learns to reconstruct what few directions make, and the same seeds and batches give the same dictionary.
#[test]
fn trainings_learn_repeat_and_resume() {
    let directions = random(&[24, 16], 3);
    let batch = |step: i64| {
        let acts = (random(&[256, 24], 100 + step) - 0.8).relu() * 5.0; // a tenth of them is active
        acts.matmul(&directions)
    };
    for (sparsity, least) in
        [(Sparsity::TopK(4), 0.75), (Sparsity::BatchTopK(4), 0.75), (Sparsity::JumpRelu { coefficient: 2e-3 }, 0.7)]
    {
        let new = || {
            Trainer::autoencoder(hook::resid_post(0), TrainerOptions::new(32, sparsity).steps(250).rate(4e-3).seed(5))
                .unwrap()
        };
        let mut trainer = new();
        let mut last = None;
        let file = tempfile::NamedTempFile::new().unwrap();
        while !trainer.is_done() {
            let x = batch(trainer.steps_done() as i64);
            last = Some(trainer.step(&x, &x).unwrap());
            if trainer.steps_done() == 200 {
                trainer.save(file.path()).unwrap();
            }
        }
        let last = last.unwrap();
        println!("{sparsity:?}: {last:?}");
        assert!(last.explained_variance > least, "{sparsity:?}: {last:?}");
        let mut again = new().resume(file.path()).unwrap();
        while !again.is_done() {
            let x = batch(again.steps_done() as i64);
            again.step(&x, &x).unwrap();
        }
        let (one, two) = (trainer.dictionary().unwrap(), again.dictionary().unwrap());
        assert!(one.w_enc().equal(&two.w_enc()) && one.w_dec().unwrap().equal(&two.w_dec().unwrap()));
        // What is exported computes what was trained.
        let x = batch(1000);
        let out = one.forward(&x).unwrap();
        let unexplained = ((&x - out).square().sum(Kind::Float)
            / (&x - x.mean_dim(0, true, Kind::Float)).square().sum(Kind::Float))
        .double_value(&[]);
        assert!(1.0 - unexplained > least - 0.05, "{sparsity:?}: {unexplained}");
        assert!(trainer.step(&x, &x).unwrap_err().to_string().contains("has had its 250 steps"));
    }
    let mut trainer = Trainer::autoencoder(hook::resid_post(0), TrainerOptions::new(8, Sparsity::TopK(2))).unwrap();
    assert!(trainer.dictionary().unwrap_err().to_string().contains("nothing is learned yet"));
    let x = batch(0);
    trainer.step(&x, &x).unwrap();
    assert!(trainer.step(&x, &x.narrow(1, 0, 8)).is_err());
    assert!(trainer.step(&(&x * f64::NAN), &x).unwrap_err().to_string().contains("no number"));
    assert!(Trainer::autoencoder(hook::resid_post(0), TrainerOptions::new(8, Sparsity::TopK(9))).is_err());
}

#[test]
fn evaluations_are_what_their_formulae_say() {
    let model = toy();
    let sae = dictionary(&model, DictionaryConfig::new(hook::mlp_out(1), FeatureActivation::TopK(4)), 40);
    let evaluation = evaluate(&model, [sae.clone()], [PROMPT, "The capital of France is Paris"]).unwrap();
    let of = &evaluation.dictionaries[0];
    let mut ys = Vec::new();
    for text in [PROMPT, "The capital of France is Paris"] {
        ys.push(activations(&model, hook::mlp_out(1), hook::mlp_out(1), text).unwrap().1);
    }
    let y = Tensor::cat(&ys, 0).to_kind(Kind::Double);
    let out = sae.forward(&y.to_kind(Kind::Float)).unwrap().to_kind(Kind::Double);
    let spread = (&y - y.mean_dim(0, true, Kind::Double)).square().sum(Kind::Double);
    let explained = 1.0 - ((&y - out).square().sum(Kind::Double) / spread).double_value(&[]);
    assert!((of.explained_variance - explained).abs() < 1e-5, "{} {explained}", of.explained_variance);
    let acts = sae.encode(&y.to_kind(Kind::Float)).unwrap();
    assert_eq!(of.l0, acts.count_nonzero(None).int64_value(&[]) as f64 / y.size()[0] as f64);
    assert_eq!(of.positions as i64, y.size()[0]);
    let dead: Vec<i64> = Vec::try_from(acts.count_nonzero(0).eq(0).nonzero().reshape(-1)).unwrap();
    assert_eq!(of.dead_features().unwrap(), dead);
    // One text at a time is both texts, weighted by their predicted tokens.
    let spliced = model.with_saes([sae.clone()], SaeOptions::new()).unwrap();
    let zeros = || Hooks::new().patch(hook::mlp_out(1), Patch::zero());
    let mut sums = [0.0; 3];
    for text in [PROMPT, "The capital of France is Paris"] {
        let n = (model.to_tokens(text).unwrap().ids.size()[1] - 1) as f64;
        let losses =
            [model.loss(text).unwrap(), spliced.loss(text).unwrap(), model.loss_with_hooks(text, zeros()).unwrap()];
        sums.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += n * loss);
    }
    let n = evaluation.predicted as f64;
    for (ours, sum) in [evaluation.loss, evaluation.loss_with_saes, evaluation.loss_with_zeros].into_iter().zip(sums) {
        assert!((ours - sum / n).abs() < 1e-5, "{ours} {}", sum / n);
    }
    // Texts in one batch count as they do alone: padding does not, nor do chosen features whose activation is 0.
    let all = dictionary(&model, DictionaryConfig::new(hook::mlp_out(1), FeatureActivation::TopK(40)), 40);
    let texts = vec![PROMPT, "The capital of France is Paris"];
    let apart = &evaluate(&model, [all.clone()], texts.clone()).unwrap().dictionaries[0];
    let together = &evaluate(&model, [all.clone()], [texts]).unwrap().dictionaries[0];
    assert_eq!((together.positions, together.l0), (apart.positions, apart.l0));
    assert!(together.active.equal(&apart.active));
    let acts = all.encode(&y.to_kind(Kind::Float)).unwrap();
    assert_eq!(apart.l0, acts.count_nonzero(None).int64_value(&[]) as f64 / y.size()[0] as f64);
    // Nor has such a feature a row.
    let with = model.with_saes([all], SaeOptions::new()).unwrap();
    let (_, cache) = with.run_with_cache(PROMPT).unwrap();
    let stack = cache.stack_feature_results(FeatureOptions::new().pos(-1)).unwrap();
    let rows = stack.rows().iter().filter(|row| matches!(row, Component::Feature { .. })).count() as i64;
    let last = cache[hook::sae_acts_post(hook::mlp_out(1))].select(1, -1);
    assert_eq!(rows, last.count_nonzero(None).int64_value(&[]));
    assert!(rows < 40);
    assert!(evaluate(&model, Vec::<Dictionary>::new(), [PROMPT]).is_err());
    assert!(evaluate(&model, [sae], Vec::<&str>::new()).is_err());
}

/// The transcoders that the crate carries: the model with them in place of its MLPs still finds the indirect object.
#[test]
fn the_toy_s_transcoders_keep_what_it_does() {
    let (model, set) = (toy(), DictionarySet::toy().unwrap());
    assert_eq!((set.dictionaries().len(), set.n_features()), (4, 4 * 512));
    let evaluation = evaluate(&model, set.dictionaries().to_vec(), [format!("{PROMPT} Mary")]).unwrap();
    assert!(evaluation.loss_recovered() > 0.8, "{}", evaluation.loss_recovered());
    for of in &evaluation.dictionaries {
        assert!(of.l0 < 30.0 && of.explained_variance > 0.6, "{of:?}");
    }
    let replaced = model.with_saes(set.dictionaries().to_vec(), SaeOptions::new()).unwrap();
    let logits = replaced.forward(PROMPT).unwrap();
    let next = logits.select(0, 0).select(0, -1).argmax(-1, false).int64_value(&[]);
    assert_eq!(model.to_string([next]).unwrap(), " Mary");
}
