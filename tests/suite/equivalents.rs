//! The page for TransformerLens' users: every line of its tables stands below, where it is compiled and, unless it needs the network,
//! run.

use tch::{Device, Kind, Tensor};
use tch_lens::heads::{detect_head, DetectHeadOptions, HeadPattern};
use tch_lens::patching::{self, PatchAxis, PatchIndex, PatchingOptions};
use tch_lens::sae::{DictionarySet, SaeOptions};
use tch_lens::weights::{SvdInterpreter, SvdMatrix};
use tch_lens::{
    autodiff, cuda_if_available, hook, AccumulateOptions, Bos, Composition, Config, DecomposeOptions,
    DictionaryOptions, FullOptions, GenerateOptions, HeadOptions, HookFilter, HookedTransformer, Hooks, KeyValueStore,
    LoadOptions, Metric, Mode, NeuronOptions, Occurrence, PaddingSide, Patch, Result, ReturnType, RunOptions,
    StepOptions, Target, TokenOptions,
};

const PAGE: &str = include_str!("../../docs/transformer_lens.md");
const TESTED: &str = include_str!("equivalents.rs");

/// Needs the hub or a GPU: compiled, never called.
#[allow(dead_code)]
fn from_elsewhere(name: &str) -> Result<()> {
    let _ = HookedTransformer::from_pretrained("gpt2-small")?;
    let _ = HookedTransformer::from_pretrained_no_processing("gpt2-small")?;
    let _ = LoadOptions::new().fold_ln(false).open(name)?;
    let _ = LoadOptions::new().kind(Kind::BFloat16).open(name)?;
    let _ = LoadOptions::new().device(cuda_if_available()).open(name)?;
    Ok(())
}

#[test]
fn the_lines_of_the_page_run() -> Result<()> {
    let model = HookedTransformer::toy()?;
    let _ = HookedTransformer::init(Config::new(2, 64, 4, 100, 32), 0)?;
    let _ = model.config().n_layers;
    let _ = model.config().d_mlp();
    let _ = model.to(Device::Cpu)?;
    let _ = model.state_dict()?;
    let _ = model.hook_names();
    {
        let _no_grad = autodiff(false);
    }

    let text = "When Mary and John went to the shop, John gave a bag to";
    let tokens = model.to_tokens("Mary and John")?;
    let _ = model.to_tokens_with(text, TokenOptions::new().prepend_bos(Bos::No))?;
    let _ = model.to_tokens_with(text, TokenOptions::new().truncate(true))?;
    let ids = [1, 2, 3];
    let _ = model.to_string(ids)?;
    let _ = model.to_str_tokens(text)?;
    let _ = model.get_token_position(" Mary", text, Occurrence::First)?;
    let _ = model.test_prompt(text, [" Mary"])?;
    let token = model.to_single_token(" Mary")?;
    assert_eq!(model.to_single_str_token(token)?, " Mary");

    let _ = model.forward(&tokens)?;
    let _ = model.loss(&tokens)?;
    let _ = model.run(&tokens, RunOptions::new().return_type(ReturnType::Both))?;
    let _ = model.run(&tokens, RunOptions::new().return_type(ReturnType::LossPerToken))?;
    let _ = model.run(&tokens, RunOptions::new().stop_at_layer(2))?.resid;
    let (_logits, cache) = model.run_with_cache(&tokens)?;
    let resid = cache[hook::resid_pre(2)].shallow_clone();
    let _ = model.run(&resid, RunOptions::new().start_at_layer(2))?;
    let mut store = KeyValueStore::new(&model, 1, 16)?;
    let _ = model.run(&tokens, RunOptions::new().past(&mut store))?;
    let _ = model.run_with_grad(&tokens, RunOptions::new().return_type(ReturnType::Loss), |output| {
        Ok(output.loss_tensor()?.shallow_clone())
    })?;
    let _ = model.ungrouped()?;
    let _ = model.generate_text(text, &GenerateOptions::new().max_new_tokens(20))?;
    let _ = model.generate(&tokens, &GenerateOptions::new().do_sample(false))?.tokens;
    let _ = model.generate(&tokens, &GenerateOptions::new().temperature(0.8).top_k(5))?;
    let _ = model.generate(&tokens, &GenerateOptions::new().top_p(0.9).freq_penalty(1.5))?;
    let _ = model.generate(&tokens, &GenerateOptions::new().stop_at_eos(false))?;
    let _ = model.generate(&tokens, &GenerateOptions::new().eos_token_id([3, 5]))?;
    let _ = model.generate(&tokens, &GenerateOptions::new().use_past_kv_cache(false))?;
    let texts = ["Mary", "Mary and John"];
    let _ = model.generate(texts, &GenerateOptions::new().padding_side(PaddingSide::Left).prepend_bos(Bos::No))?;
    let _ = model.generation(&tokens, &GenerateOptions::new(), StepOptions::new())?;
    let hooks = Hooks::new().patch(hook::z(0), Patch::zero());
    let _ = model.generate_with(&tokens, &GenerateOptions::new(), StepOptions::new().hooks(hooks))?;
    let _ = model.run_with_cache_of(&tokens, "hook_embed")?;
    let _ = model.run_with_cache_of(&tokens, HookFilter::names(|name| name.ends_with("hook_z")))?;
    let _ = model.run(&tokens, RunOptions::new().cache(HookFilter::All).pos(-1))?.cache;
    let name = "blocks.1.attn.hook_z";
    let _ = model.run_with_hooks(&tokens, Hooks::new().replace(name, |z, _point| z * 0.5))?;
    let _ = Hooks::new().replace_gradient(name, |gradient, _point| gradient * 0.5);
    let hooks = Hooks::new().edit(hook::z(3), |z, _point| {
        let _ = z.select(2, 1).zero_();
    });
    let _ = model.run_with_hooks(&tokens, hooks)?;
    assert_eq!(hook::k(2).to_string(), "blocks.2.attn.hook_k");
    let _ = model.with_hooks(Hooks::new().replace(name, |z, _point| z * 0.5));

    let clean = model.run_with_cache(&tokens)?.1;
    let metric = Metric::logit_diff(" Mary", " John");
    let _ = patching::get_act_patch_resid_pre(&model, &tokens, &clean, &metric)?;
    let _ = patching::get_act_patch_attn_head_out_all_pos(&model, &tokens, &clean, &metric)?;
    let _ = patching::get_act_patch_block_every(&model, &tokens, &clean, &metric)?;
    #[rustfmt::skip]
    let _ = patching::activation_patch(&model, &tokens, &clean, &metric, &PatchIndex::new("z", [PatchAxis::Layer, PatchAxis::Head]), PatchingOptions::new())?;
    let _ = detect_head(&model, text, &HeadPattern::Induction, DetectHeadOptions::new())?;
    let _ = SvdInterpreter::new(&model).get_singular_vectors(SvdMatrix::ov(2, 1), 3)?;

    let _: &Tensor = &cache["blocks.0.attn.hook_q"];
    let _: &Tensor = &cache[("q", 0)];
    let _: &Tensor = &cache[("scale", 1, "ln1")];
    let _: &Tensor = &cache[("resid_post", -1)];
    assert!(cache.contains("q0"));
    let _ = cache.keys();
    let _ = cache.clone().remove_batch_dim()?;
    let _ = cache.clone().apply_slice_to_batch_dim(0)?;
    let _ = cache.clone().to(Device::Cpu)?;
    let mut cache = cache;
    cache.compute_head_results()?;

    let stack = cache.decompose_resid(DecomposeOptions::new())?;
    let _ = cache.decompose_resid(DecomposeOptions::new().target(Target::attn(2)).mode(Mode::Attn))?;
    let _ = cache.decompose_resid(DecomposeOptions::new().target(Target::mlp(2)))?;
    let _ = cache.accumulated_resid(AccumulateOptions::new().apply_ln(true).pos(-1))?;
    let _ = cache.stack_head_results(HeadOptions::new().pos(-1))?;
    let _ = cache.stack_neuron_results(NeuronOptions::new().neurons(0..8).pos(-1))?;
    let _ = cache.get_full_resid_decomposition(FullOptions::new().expand_neurons(false))?;
    let _ = cache.stack_activation("z", None)?;
    let _ = stack.apply_ln()?;
    let _ = cache.logit_attrs(&stack, " Mary")?;
    let attrs = cache.logit_attrs(&stack, (" Mary", " John"))?;
    let _ = stack.labels();
    let _ = attrs.pos(-1)?.batch(0)?.top(1)?;

    let saes = DictionarySet::toy()?.dictionaries().to_vec();
    let sae = &saes[2];
    let x = Tensor::ones([1, 2, sae.d_in() as i64], (Kind::Float, Device::Cpu));
    let features = sae.encode(&x)?;
    let _ = sae.decode(&features)?;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    sae.save_saelens(folder)?;
    let again = DictionaryOptions::new().open(folder)?;
    assert!(again.encode(&x)?.allclose(&features, 1e-5, 1e-6, false));
    let _ = model.with_saes([sae.clone()], SaeOptions::new())?;
    let _ = model.with_saes([sae.clone()], SaeOptions::new().error_term(true))?;
    let _ = model.with_saes(saes.clone(), SaeOptions::new())?.forward(&tokens)?;
    let (_, cache_of_features) = model.with_saes(saes.clone(), SaeOptions::new())?.run_with_cache(&tokens)?;
    let spliced = model.with_saes(saes, SaeOptions::new())?;
    let name = "blocks.2.hook_mlp_out.hook_sae_acts_post";
    let _ = spliced.run_with_hooks(&tokens, Hooks::new().replace(name, |acts, _point| acts * 2.0))?;
    {
        let cache = cache_of_features;
        assert!(cache[name].equal(&cache[hook::sae_acts_post(hook::mlp_out(2))]));
        let _ = &cache[hook::sae_acts_post(hook::mlp_out(2))];
    }
    let hooks = Hooks::new().patch(hook::sae_acts_post(hook::mlp_out(2)).feature(7), Patch::zero());
    let _ = spliced.run_with_hooks(&tokens, hooks)?;
    assert!(spliced.without_saes().saes().is_empty());

    let _ = model.w_e()?;
    let _ = model.w_u()?;
    let _ = model.w_q(..)?;
    let _ = model.w_q(2)?;
    let _ = model.b_out(0)?;
    let _ = model.qk(..)?;
    let _ = model.ov(0)?;
    let _ = model.ov(..)?.svd()?;
    let _ = model.all_composition_scores(Composition::K)?;
    let _ = model.all_head_labels();
    let _ = model.accumulated_bias(Target::attn(2), true)?;
    let _ = model.tokens_to_residual_directions(" Mary")?;
    Ok(())
}

#[test]
fn every_line_of_the_page_is_one_of_these() {
    let without_space = |text: &str| text.split_whitespace().collect::<String>(); // rustfmt breaks long lines
    let tested = without_space(TESTED);
    let mut count = 0;
    for line in PAGE.lines().filter(|line| line.starts_with("| `")) {
        let line = line.replace("\\|", "\u{1}");
        let cell = line.trim_matches('|').split('|').nth(1).unwrap_or_else(|| panic!("no second cell: {line}")).trim();
        let ours = cell.trim_matches('`').replace('\u{1}', "|");
        assert!(tested.contains(&without_space(&ours)), "the page says `{ours}`, which no test runs");
        count += 1;
    }
    assert!(count >= 60, "the page has only {count} lines");
}
