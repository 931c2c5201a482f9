//! What an analysis cannot do, it says in one sentence; and what it can do where TransformerLens raises.

use crate::common::Fixture;
use tch::{Kind, Tensor};
use tch_lens::{
    hook, AccumulateOptions, ActivationCache, Answer, Component, DecomposeOptions, FullOptions, HeadOptions,
    LoadOptions, NeuronOptions, Result, RunOptions, Target,
};

fn cache(family: &str) -> ActivationCache {
    let fixture = Fixture::open(family);
    LoadOptions::new().open(&fixture.folder).unwrap().run_with_cache(fixture.want("tokens")).unwrap().1
}

fn sentence<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_missing_entry_is_named_with_how_to_get_it() {
    let fixture = Fixture::open("gpt2");
    let model = LoadOptions::new().open(&fixture.folder).unwrap();
    let run = |select: &[&str]| model.run(fixture.want("tokens"), RunOptions::new().cache(select)).unwrap().cache;

    let cache = run(&["resid_post"]);
    assert_eq!(
        sentence(cache.decompose_resid(DecomposeOptions::new())),
        "the cache has no `hook_embed`: run again with it in the cache's filter"
    );
    let stack = run(&["resid_pre", "resid_post"]).accumulated_resid(AccumulateOptions::new()).unwrap();
    assert!(sentence(stack.apply_ln()).starts_with("the cache has no `ln_final.hook_scale`: run again"));
    let cache = run(&["z", "ln_final.hook_scale", "resid_post"]);
    let attrs = cache.logit_attrs(HeadOptions::new(), 5).unwrap(); // what it needs, and no more
    assert_eq!(attrs.labels().len(), 6);
    assert!(
        sentence(cache.logit_attrs(NeuronOptions::new(), 5)).starts_with("the cache has no `blocks.0.mlp.hook_post`")
    );
    assert!(sentence(cache.get("blocks.0.attn.hook_result")).contains("computed on request only"));
}

#[test]
fn impossible_targets_and_stacks() {
    let attn_only = cache("toy_attn_only_2l_ln");
    assert_eq!(
        sentence(attn_only.decompose_resid(DecomposeOptions::new().target(Target::Mlp(1)))),
        "the model has no MLPs: it is attention-only, so the MLP of layer 1 cannot be a target"
    );
    assert_eq!(
        sentence(attn_only.stack_neuron_results(NeuronOptions::new())),
        "the model has no neurons: it has no MLPs"
    );

    let cache = cache("gpt2");
    assert!(sentence(cache.decompose_resid(DecomposeOptions::new().target(Target::Attn(2))))
        .contains("layer 2 is out of range"));
    let normalised = cache.decompose_resid(DecomposeOptions::new().target(Target::Attn(1)).apply_ln(true)).unwrap();
    assert!(sentence(cache.logit_attrs(&normalised, 5)).contains("normalised for the attention of layer 1"));
    assert!(sentence(normalised.apply_ln()).contains("passed through a norm already"));
    let onto = Tensor::ones([24], (Kind::Float, tch::Device::Cpu));
    let projected = cache.stack_head_results(HeadOptions::new().project(&onto)).unwrap();
    assert!(sentence(cache.logit_attrs(&projected, 5)).contains("projected already"));
    let wrong = Tensor::ones([23], (Kind::Float, tch::Device::Cpu));
    for wrong in [&wrong, &wrong.unsqueeze(-1).repeat([1, 24])] {
        assert!(
            sentence(cache.stack_head_results(HeadOptions::new().project(wrong))).contains("expected [24] or [24, k]")
        );
    }
    let all = cache.decompose_resid(DecomposeOptions::new()).unwrap();
    assert!(sentence(all.concat(&normalised)).contains("the same input"));
    assert!(
        sentence(all.labelled("2_attn_out")).starts_with("the stack has no row `2_attn_out`; its 6 rows are `embed`")
    );
    assert!(sentence(all.select(|row| row.layer() == Some(7))).contains("matches no"));
}

#[test]
fn answers_of_other_shapes() {
    let cache = cache("gpt2"); // 2 rows of 7 positions
    let stack = cache.decompose_resid(DecomposeOptions::new()).unwrap();
    let of = |answer: Answer| sentence(cache.logit_attrs(&stack, answer));
    assert_eq!(of(Answer::per_row([1, 2, 3])), "the answers per row has shape [3], expected [2]");
    assert_eq!(of(Answer::per_position([1, 2])), "the answers per position has shape [2], expected [7]");
    let halves = Tensor::full([2, 7], 0.5, (Kind::Float, tch::Device::Cpu));
    let found = of(Answer::per_row_and_position(&halves));
    assert_eq!(found, "the tensor of answers, of kind Float, has shape [2, 7], expected whole numbers");
    assert!(of(Answer::per_row_and_position(&Tensor::zeros([7, 2], (Kind::Int64, tch::Device::Cpu))))
        .contains("expected [2, 7]"));
    assert!(of(96.into()).contains("token id 96 is out of range"));
    assert!(of("word".into()).contains("no tokenizer"));
    let attrs = cache.logit_attrs(&stack, 5).unwrap();
    assert!(sentence(attrs.top(3)).contains("choose with pos(…) and batch(…)"));
    assert!(sentence(attrs.pos(-1).unwrap().pos(0)).contains("no position axis any more"));
    assert!(sentence(attrs.pos(7)).contains("out of range for the position axis"));
    assert_eq!(attrs.pos(-1).unwrap().batch(0).unwrap().top(3).unwrap().rows.len(), 3);
    assert!(sentence(attrs.by_head()).contains("a row for each head"));
}

#[test]
fn a_cache_without_its_batch_dimension() {
    let with = cache("llama_gqa_tied");
    let without = with.clone().apply_slice_to_batch_dim(1).unwrap();
    let options = || FullOptions::new().pos(2).apply_ln(true);
    let ours = without.get_full_resid_decomposition(options()).unwrap().tensor();
    let theirs = with.get_full_resid_decomposition(options().batch(1)).unwrap().tensor();
    assert_eq!(ours.size(), theirs.size());
    assert!((ours - theirs).abs().max().double_value(&[]) < 1e-6);
    assert!(sentence(without.decompose_resid(DecomposeOptions::new().batch(0))).contains("no batch dimension"));
    assert!(sentence(without.apply_slice_to_batch_dim(0)).contains("no batch dimension"));
}

#[test]
fn rows_grouped_selected_and_joined_keep_their_sum() {
    let mut cache = cache("gpt2");
    let full = cache.get_full_resid_decomposition(FullOptions::new()).unwrap();
    let by_layer = full.by_layer().unwrap();
    assert_eq!(by_layer.labels(), ["L0 heads", "L1 heads", "L0 neurons", "L1 neurons", "embed", "pos_embed", "bias"]);
    let close = |a: Tensor, b: Tensor| assert!((a - b).abs().max().double_value(&[]) < 1e-5);
    close(by_layer.sum().unwrap(), full.sum().unwrap());
    let is_head = |row: &Component| matches!(row, Component::Head { .. });
    let (heads, rest) = (full.select(is_head).unwrap(), full.select(|row| !is_head(row)).unwrap());
    close(heads.concat(&rest).unwrap().sum().unwrap(), full.sum().unwrap());
    let attrs = cache.logit_attrs(FullOptions::new(), 5).unwrap();
    close(attrs.by_layer().unwrap().sum().unwrap(), attrs.sum().unwrap());
    let table = cache.logit_attrs(HeadOptions::new().pos(-1), 5).unwrap().by_head().unwrap();
    assert_eq!(table.size(), [2, 3, 2]); // [layer, head, batch]

    cache.compute_head_results().unwrap();
    let keys: Vec<_> = cache.keys().collect();
    let z = keys.iter().position(|key| *key == hook::z(0)).unwrap();
    assert_eq!(keys[z + 1], hook::result(0));
    let row = heads.row(&Component::Head { layer: 1, head: 2 }).unwrap();
    close(row, cache[hook::result(1)].select(2, 2));
}
