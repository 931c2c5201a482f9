//! What hooks are given, what they may do, and that a run says what they did: edits, patches, stopped gradients, panics.

use std::cell::RefCell;

use crate::common::{max_diff, raw, Fixture};
use rstest::rstest;
use tch::{IndexOp, Kind, Tensor};
use tch_lens::{
    autodiff, hook, ActivationCache, Error, HookFailure, HookFilter, HookPoint, HookedTransformer, Hooks, PaddingSide,
    Patch, Positions, RunOptions, Slice,
};

/// Norms before and after sublayers, none at all, after the embedding; learned, rotary and short-former positions; gates, SoLU,
/// mixtures; attention only.
const MODELS: [&str; 11] = [
    "gpt2",
    "bloom",
    "toy_no_norm",
    "toy_shortformer",
    "toy_attn_only_2l_lnpre",
    "toy_parallel",
    "toy_solu_ln",
    "llama_gqa_tied",
    "gemma2",
    "olmo2",
    "mixtral",
];

/// All weights, as they are now.
fn weights(model: &HookedTransformer) -> Vec<(String, Tensor)> {
    model.parameters().into_iter().map(|(name, weight)| (name, weight.copy())).collect()
}

#[track_caller]
fn same_weights(what: &str, model: &HookedTransformer, before: &[(String, Tensor)]) {
    for ((name, weight), (_, before)) in model.parameters().iter().zip(before) {
        assert!(weight.equal(before), "{what}: `{name}` is another");
    }
}

/// A model, tokens of its own, and the points that a hook may change.
fn open(family: &str) -> (HookedTransformer, Tensor, Vec<HookPoint>) {
    let model = raw(family);
    let tokens = Fixture::open(family).want("tokens");
    let grouped = model.config().n_heads != model.config().n_key_value_heads;
    let every = HookFilter::from(model.hook_names()).resolve(model.config()).unwrap();
    let points = every.into_iter().filter(|point| !(grouped && point.site() == hook::attn_in(0).site()));
    let points = points.collect();
    (model, tokens, points)
}

/// Something else in the first entry along the last axis: another token or expert, or a number.
fn spoil(tensor: &Tensor) {
    let mut entry = tensor.select(-1, 0);
    let _ = match tensor.kind() {
        Kind::Int64 => entry.fill_(0),
        _ => entry.fill_(7.5),
    };
}

// --- in place ---------------------------------------------------------------------------------------------------------

/// A hook that changes what it was shown is an error that says what to do, at every point, and nothing but the run is lost.
#[test]
fn an_edit_of_what_was_only_shown_is_an_error_and_changes_no_weight() {
    let mut count = 0;
    for family in MODELS {
        let (model, tokens, points) = open(family);
        let (before, kept) = (weights(&model), tokens.copy());
        let logits = model.forward(&tokens).unwrap();
        for point in points {
            let what = format!("{family}, {point}");
            let observer = Hooks::new().observe(point, |x, _| spoil(x));
            let replacer = Hooks::new().replace(point, |x, _| {
                spoil(x);
                x.shallow_clone()
            });
            for hooks in [observer, replacer] {
                let error = model.run(&tokens, RunOptions::new().hooks(hooks).cache(point)).unwrap_err();
                assert!(
                    matches!(&error, Error::Hook { name, source: HookFailure::EditedInPlace } if *name == point.to_string()),
                    "{what}: {error}"
                );
                assert!(error.to_string().contains("`Hooks::edit`"), "{error}");
                count += 1;
            }
            // Whatever a hook is given in place of it is its own.
            let _ = model.run_with_hooks(&tokens, Hooks::new().edit(point, |x, _| spoil(x))).unwrap();
            same_weights(&what, &model, &before);
            assert!(tokens.equal(&kept), "{what}: the caller's tokens are others");
        }
        assert!(model.forward(&tokens).unwrap().equal(&logits), "{family}: another run gives other logits");
    }
    println!("{count} points");
}

#[rstest]
#[case::recorded(true)]
#[case::not_recorded(false)]
fn views_count_with_and_without_gradients(#[case] recorded: bool) {
    let model = raw("gpt2");
    let _guard = autodiff(recorded);
    type Change = fn(&Tensor);
    let changes: [Change; 4] = [
        |z| drop(z.select(2, 1).zero_()),
        |z| drop(z.i((.., -1)).fill_(1.0)),
        |z| drop(z.shallow_clone().view([-1]).narrow(0, 0, 3).relu_()),
        |z| z.shallow_clone().copy_(&z.zeros_like()),
    ];
    for change in changes {
        let hooks = Hooks::new().observe(hook::z(0), |z, _| change(z));
        assert!(matches!(
            model.run_with_hooks(PROMPT, hooks),
            Err(Error::Hook { source: HookFailure::EditedInPlace, .. })
        ));
    }
    // Looking in any way is no edit.
    let hooks = Hooks::new().observe(HookFilter::All, |x, _| {
        let _ = (x.select(-1, 0).to_kind(Kind::Double) * 2.0, x.transpose(0, 1).contiguous(), x.copy().zero_());
    });
    let _ = model.run_with_hooks(PROMPT, hooks).unwrap();
}

/// A tensor that a hook kept and changed later, at another point.
#[test]
fn a_cached_entry_cannot_be_changed_from_a_later_hook() {
    let model = raw("gpt2");
    let stolen = RefCell::new(Tensor::new());
    let hooks = Hooks::new()
        .observe(hook::resid_pre(1), |x, _| *stolen.borrow_mut() = x.shallow_clone())
        .observe(hook::pattern(1), |_, _| drop(stolen.borrow().select(1, 0).zero_()));
    let error = model.run(PROMPT, RunOptions::new().hooks(hooks).cache("resid_post")).unwrap_err();
    assert!(
        matches!(&error, Error::Hook { name, source: HookFailure::EditedInPlace } if name == "blocks.0.hook_resid_post"),
        "{error}"
    );
}

const PROMPT: [i64; 5] = [5, 14, 3, 10, 9];

// --- edits ------------------------------------------------------------------------------------------------------------

/// An edit is the replacement by what it leaves, and the entries before it are what they were.
#[test]
fn an_edit_is_a_replacement_by_what_it_leaves() {
    for family in ["gpt2", "gemma2", "mixtral", "toy_parallel"] {
        let (model, tokens, points) = open(family);
        for point in points {
            let by_edit = Hooks::new().edit(point, |x, _| spoil(x));
            let by_replacement = Hooks::new().replace(point, |x, _| {
                let copy = x.copy();
                spoil(&copy);
                copy
            });
            let run = |hooks| model.run(&tokens, RunOptions::new().hooks(hooks).cache(HookFilter::All)).unwrap();
            let (ours, theirs) = (run(by_edit), run(by_replacement));
            let logits = |outcome: &tch_lens::RunOutput| outcome.logits.as_ref().unwrap().copy();
            assert_eq!(max_diff("logits", &logits(&ours), &logits(&theirs)), 0.0, "{family}, {point}");
            for (name, entry) in &ours.cache {
                assert_eq!(max_diff("entry", entry, &theirs.cache[*name]), 0.0, "{family}, {point}: {name}");
            }
            assert!(ours.cache.changed().eq([point]) && theirs.cache.changed().eq([point]), "{family}, {point}");
        }
    }
}

#[test]
fn an_edit_may_fail_or_put_another_tensor_in_place() {
    let model = raw("gpt2");
    let fails = Hooks::new().edit(hook::z(0), |_, _| Err::<(), _>("no such head"));
    let error = model.run_with_hooks(PROMPT, fails).unwrap_err();
    assert_eq!(error.to_string(), "the hook at `blocks.0.attn.hook_z` failed: no such head");
    let fails =
        Hooks::new().edit(hook::z(0), |z, _| z.select(2, 1).f_copy_(&Tensor::zeros([9], (Kind::Float, z.device()))));
    assert!(matches!(model.run_with_hooks(PROMPT, fails), Err(Error::Hook { .. })));
    let replaced = Hooks::new().edit(hook::z(0), |z, _| *z = z.zeros_like());
    let zero = model.run_with_hooks(PROMPT, Hooks::new().patch(hook::z(0), Patch::zero())).unwrap();
    assert_eq!(model.run_with_hooks(PROMPT, replaced).unwrap(), zero);
    let misshapen = Hooks::new().edit(hook::z(0), |z, _| *z = z.select(0, 0));
    assert!(matches!(
        model.run_with_hooks(PROMPT, misshapen),
        Err(Error::Hook { source: HookFailure::Replacement { .. }, .. })
    ));
}

#[test]
fn a_panic_in_a_hook_is_an_error_that_names_the_point() {
    let model = raw("gpt2");
    let message = |hooks: Hooks| match model.run_with_hooks(PROMPT, hooks).unwrap_err() {
        Error::Hook { name, source: HookFailure::Panicked { message } } => format!("{name}: {message}"),
        other => panic!("{other}"),
    };
    let head = 9;
    let found = message(Hooks::new().observe(hook::z(1), |_, _| -> () { panic!("there is no head {head}") }));
    assert_eq!(found, "blocks.1.attn.hook_z: there is no head 9");
    assert_eq!(message(Hooks::new().edit("q0", |_, _| -> () { panic!("plainly") })), "blocks.0.attn.hook_q: plainly");
    assert_eq!(
        message(Hooks::new().replace("q0", |_, _| -> Tensor { std::panic::panic_any(3) })),
        "blocks.0.attn.hook_q: it did not say why"
    );
    // libtorch's bindings panic where the operation fails.
    let found = message(Hooks::new().edit(hook::z(1), |z, _| drop(z.select(2, 99).zero_())));
    assert!(found.starts_with("blocks.1.attn.hook_z: "), "{found}");
    assert!(model.forward(PROMPT).is_ok());
}

// --- patches ----------------------------------------------------------------------------------------------------------

type Edit = fn(&Tensor);

/// A patch is data for what an edit does by hand.
#[rstest]
#[case::everything(hook::z(0), Patch::zero(), |z: &Tensor| drop(z.shallow_clone().zero_()))]
#[case::head(hook::z(0), Patch::zero().head(1), |z: &Tensor| drop(z.select(2, 1).zero_()))]
#[case::head_and_position(hook::z(0), Patch::set(0.25).head(-1).pos(-1), |z: &Tensor| drop(z.i((.., -1, 2)).fill_(0.25)))]
#[case::heads(hook::q(1), Patch::scale(0.5).head([2, 0]), |q: &Tensor| for head in [0, 2] { drop(q.select(2, head).g_mul_(&Tensor::from(0.5f32))) })]
#[case::range(hook::resid_pre(1), Patch::add(2.0).pos(1..3), |x: &Tensor| drop(x.narrow(1, 1, 2).g_add_(&Tensor::from(2f32))))]
#[case::step(hook::resid_pre(1), Patch::add(2.0).pos((0, 5, 2)), |x: &Tensor| drop(x.slice(1, 0, 5, 2).g_add_(&Tensor::from(2f32))))]
#[case::query(hook::pattern(0), Patch::zero().pos(2), |x: &Tensor| drop(x.select(2, 2).zero_()))]
#[case::key(hook::pattern(0), Patch::zero().key(0).head(1), |x: &Tensor| drop(x.i((.., 1, .., 0)).zero_()))]
#[case::query_and_key(hook::attn_scores(0), Patch::set(-1e9).pos(4).key(2), |x: &Tensor| drop(x.i((.., .., 4, 2)).fill_(-1e9)))]
#[case::neuron(hook::post(1), Patch::set(3.0).neuron(5), |x: &Tensor| drop(x.select(-1, 5).fill_(3.0)))]
#[case::entries(hook::ln1_normalized(1), Patch::zero().entries(..4), |x: &Tensor| drop(x.narrow(-1, 0, 4).zero_()))]
#[case::rows(hook::mlp_out(0), Patch::zero().rows(1), |x: &Tensor| drop(x.select(0, 1).zero_()))]
#[case::lists(hook::z(1), Patch::set(1.0).rows([1, 0]).pos([4, 1, 2]).head([0]), |x: &Tensor| for pos in [1, 2, 4] { drop(x.i((.., pos, 0)).fill_(1.0)) })]
#[case::embedding(hook::pos_embed(), Patch::zero().pos(0), |x: &Tensor| drop(x.select(1, 0).zero_()))]
#[case::logits(hook::unembed_out(), Patch::set(9.0).pos(-1).entries(3), |x: &Tensor| drop(x.i((.., -1, 3)).fill_(9.0)))]
fn a_patch_is_the_edit_that_it_says(#[case] point: HookPoint, #[case] patch: Patch, #[case] edit: Edit) {
    let model = raw("gpt2");
    let rows = vec![vec![5, 14, 3, 10, 9], vec![7, 4, 12, 6, 11]];
    let run = |hooks| {
        let outcome = model.run(rows.clone(), RunOptions::new().hooks(hooks).cache(point)).unwrap();
        assert!(outcome.cache.is_changed(point));
        (outcome.logits.unwrap(), outcome.cache[point].shallow_clone())
    };
    let ours = run(Hooks::new().patch(point, patch));
    let theirs = run(Hooks::new().edit(point, |x, _| edit(x)));
    assert_eq!(ours, theirs);
    let plain = model.run(rows.clone(), RunOptions::new().cache(point)).unwrap().cache;
    assert_ne!(ours.1, plain[point], "nothing was patched");
}

/// An index drops its axis, so what another run's cache holds there fits as it is.
#[test]
fn a_tensor_is_broadcast_to_what_python_s_index_is() {
    let model = raw("gpt2");
    let rows = vec![vec![5, 14, 3, 10, 9], vec![7, 4, 12, 6, 11]];
    let (_, other) = model.run_with_cache(vec![vec![1, 2, 3, 4, 5], vec![6, 7, 8, 9, 10]]).unwrap();
    let z = &other[hook::z(0)]; // [batch, pos, head, d_head]
    let cases: Vec<(Patch, Tensor, Edit2)> = vec![
        (Patch::set(z), z.copy(), |x, v| x.shallow_clone().copy_(v)),
        (Patch::set(z.select(2, 1)).head(1), z.select(2, 1), |x, v| x.select(2, 1).copy_(v)),
        (Patch::set(z.select(1, 3)).pos(3), z.select(1, 3), |x, v| x.select(1, 3).copy_(v)),
        (Patch::set(z.i((.., 3, 1))).pos(3).head(1), z.i((.., 3, 1)), |x, v| x.i((.., 3, 1)).copy_(v)),
        (Patch::set(z.i((0, 0, 0))).head(1), z.i((0, 0, 0)), |x, v| x.select(2, 1).copy_(v)),
        (Patch::set(z.narrow(2, 0, 2)).head(0..2), z.narrow(2, 0, 2), |x, v| x.narrow(2, 0, 2).copy_(v)),
        (Patch::set(z.i((1, .., ..))).rows(0), z.i(1), |x, v| x.select(0, 0).copy_(v)),
    ];
    for (i, (patch, value, edit)) in cases.into_iter().enumerate() {
        let run = |hooks| model.run(rows.clone(), RunOptions::new().hooks(hooks).cache(hook::z(0))).unwrap();
        let ours = run(Hooks::new().patch(hook::z(0), patch));
        let theirs = run(Hooks::new().edit(hook::z(0), |x, _| edit(x, &value)));
        assert_eq!(ours.cache[hook::z(0)], theirs.cache[hook::z(0)], "case {i}");
        assert_eq!(ours.logits, theirs.logits, "case {i}");
    }
}

type Edit2 = fn(&Tensor, &Tensor);

/// Positions are token columns: the last token of each row, the positions of the logits, and never padding by chance.
#[test]
fn a_patch_selects_token_columns() {
    let model = raw("gpt2");
    let rows = || vec![vec![5i64, 14, 3, 10, 9], vec![7, 4, 12]];
    let run = |hooks: Hooks<'static>| RunOptions::new().hooks(hooks).padding_side(PaddingSide::Right);
    let point = hook::resid_post(0);
    let patched = |patch: Patch| model.run(rows(), run(Hooks::new().patch(point, patch)).cache(point));
    let last = patched(Patch::set(2.0).pos(Positions::LastToken)).unwrap().cache[point].shallow_clone();
    for (row, columns) in [(0, [false, false, false, false, true]), (1, [false, false, true, false, false])] {
        for (column, is_last) in columns.into_iter().enumerate() {
            let entry = last.i((row, column as i64));
            assert_eq!(entry.equal(&(entry.ones_like() * 2.0)), is_last, "row {row}, column {column}");
        }
    }
    let error = patched(Patch::zero().pos(-1)).unwrap_err();
    assert!(matches!(error, Error::PaddingChosen { row: 1, position: 4 }), "{error}");
    assert!(patched(Patch::zero().pos(-1).rows(0)).is_ok());
    // Where logits are formed at some positions, a column is found among those.
    let point = hook::unembed_out();
    let at = |patch: Patch| {
        let run = RunOptions::new().hooks(Hooks::new().patch(point, patch)).logits_at([3, 1]);
        model.run(PROMPT, run).map(|outcome| outcome.logits.unwrap())
    };
    let plain = model.run(PROMPT, RunOptions::new().logits_at([3, 1])).unwrap().logits.unwrap();
    let ours = at(Patch::zero().pos(1)).unwrap();
    assert_eq!(max_diff("column 3", &ours.i((.., 0)), &plain.i((.., 0))), 0.0);
    assert_eq!(ours.i((.., 1)), plain.i((.., 1)).zeros_like());
    let error = at(Patch::zero().pos(2)).unwrap_err().to_string();
    assert!(error.contains("selects position 2, of which this run forms no logits"), "{error}");
}

/// What cannot be done is said before the run: no hook fires.
#[rstest]
#[case(hook::resid_post(0), Patch::zero().head(1), "it selects heads, but the point has no head axis: it is [batch, pos, d_model]")]
#[case(hook::resid_post(0), Patch::zero().neuron(1), "it selects neurons, but the point has no neuron axis: it is [batch, pos, d_model]")]
#[case(hook::z(0), Patch::zero().key(1), "it selects keys, but the point has no key axis: it is [batch, pos, head, d_head]")]
#[case(hook::expert_post(0, 1), Patch::zero().pos(1), "it selects positions, but the point has no position axis: it is [row, d_mlp]")]
#[case(hook::expert_post(0, 1), Patch::zero().rows(0), "it selects rows of the batch, but the point has no batch axis: it is [row, d_mlp]")]
#[case(hook::z(0), Patch::zero().head(4), "index 4 is out of range for the head axis, which has 4 entries")]
#[case(hook::k(0), Patch::zero().head(2), "index 2 is out of range for the head axis, which has 2 entries")]
#[case(hook::z(0), Patch::zero().entries(99), "index 99 is out of range for the d_head axis, which has 8 entries")]
#[case(hook::expert_indices(0), Patch::set(0.5), "its value is 0.5, but the point holds whole numbers")]
#[case(
    hook::expert_indices(0),
    Patch::set(Tensor::from(0.5f32)),
    "its value is a tensor of Float, but the point holds whole numbers"
)]
#[case(
    hook::z(0),
    Patch::set(1e39),
    "its value is 1000000000000000000000000000000000000000, but Float ends at 340282346638528860000000000000000000000"
)]
#[case(hook::z(0), Patch::set(Tensor::new()), "its value is an undefined tensor")]
fn a_patch_that_cannot_be_made(#[case] point: HookPoint, #[case] patch: Patch, #[case] why: &str) {
    let model = raw("mixtral");
    let fired = RefCell::new(0);
    let hooks = Hooks::new().observe(HookFilter::All, |_, _| *fired.borrow_mut() += 1).patch(point, patch);
    let error = model.plan(&RunOptions::new().hooks(hooks)).unwrap_err();
    assert!(matches!(error, Error::Patch { .. }));
    assert_eq!(error.to_string(), format!("the patch at `{point}` cannot be made: {why}"));
    assert_eq!(*fired.borrow(), 0);
}

/// What depends on the input is said once that is known, still before anything is computed.
#[rstest]
#[case(hook::z(0), Patch::zero().pos(7))]
#[case(hook::z(0), Patch::zero().rows(2))]
#[case(hook::z(0), Patch::zero().pos(3..3))]
#[case(hook::z(0), Patch::zero().pos(100..))]
#[case(hook::z(0), Patch::zero().head(Vec::<i64>::new()))]
#[case(hook::pattern(0), Patch::zero().key(9))]
#[case(hook::z(0), Patch::set(Tensor::ones([3], (Kind::Float, tch::Device::Cpu))))]
#[case(hook::z(0), Patch::set(Tensor::ones([1, 5, 3, 8], (Kind::Float, tch::Device::Cpu))).head(1))]
fn a_patch_that_does_not_fit_the_input(#[case] point: HookPoint, #[case] patch: Patch) {
    let model = raw("gpt2");
    let fired = RefCell::new(0);
    let hooks = Hooks::new().observe(hook::embed(), |_, _| *fired.borrow_mut() += 1).patch(point, patch);
    let error = model.run(PROMPT, RunOptions::new().hooks(hooks)).unwrap_err();
    assert!(matches!(error, Error::Patch { .. } | Error::SliceOutOfRange { .. }), "{error}");
    assert_eq!(*fired.borrow(), 0, "{error}");
}

/// A mixture's experts are chosen by hand.
#[test]
fn whole_numbers_are_patched_with_whole_numbers() {
    let model = raw("mixtral");
    let hooks = Hooks::new().patch(hook::expert_indices(0), Patch::set(1.0).entries(0).pos(0));
    let run = RunOptions::new().hooks(hooks).cache("expert_indices");
    let indices = model.run(PROMPT, run).unwrap().cache[hook::expert_indices(0)].shallow_clone();
    assert_eq!((indices.kind(), indices.int64_value(&[0, 0, 0])), (Kind::Int64, 1));
}

#[test]
fn a_patch_of_one_head_s_keys_in_grouped_queries_is_of_its_group() {
    let model = raw("llama_gqa_tied");
    assert_eq!(model.config().n_key_value_heads, 2);
    let hooks = Hooks::new().patch(hook::k(0), Patch::zero().head(1));
    let cache = model.run(PROMPT, RunOptions::new().hooks(hooks).cache(hook::k(0))).unwrap().cache;
    assert_eq!(cache[hook::k(0)].select(2, 1).abs().max().double_value(&[]), 0.0);
    assert!(cache[hook::k(0)].select(2, 0).abs().max().double_value(&[]) > 0.0);
}

// --- gradients --------------------------------------------------------------------------------------------------------

/// The gradient of the last logit with respect to a weight.
fn gradient(model: &HookedTransformer, weight: &str, hooks: Hooks) -> Tensor {
    let (_, weight) = model.parameters().into_iter().find(|(name, _)| name == weight).unwrap();
    let mut weight = weight.set_requires_grad(true);
    weight.zero_grad();
    let _guard = autodiff(true);
    model.run_with_hooks(PROMPT, hooks).unwrap().i((0, -1, 3)).backward();
    let gradient = weight.grad();
    let gradient = if gradient.defined() { gradient.copy() } else { weight.zeros_like() };
    let _ = weight.set_requires_grad(false);
    gradient
}

/// Gradients end at a point, on request or not; the values stay.
#[rstest]
#[case(hook::pattern(1))]
#[case(hook::z(1))]
#[case(hook::result(1))]
#[case(hook::ln2_scale(1))]
#[case(hook::q_input(1))]
#[case(hook::attn_out(1))]
#[case(hook::mlp_in(1))]
fn a_stopped_gradient_is_that_of_a_constant(#[case] point: HookPoint) {
    let model = raw("gpt2");
    let plain = model.forward(PROMPT).unwrap();
    let stopped = model.run_with_hooks(PROMPT, Hooks::new().stop_gradient(point)).unwrap();
    assert!(max_diff("logits", &plain, &stopped) <= 2e-5);
    let detached = || Hooks::new().replace(point, |x, _| x.detach());
    let weight = "blocks.0.mlp.out.weight";
    let ours = gradient(&model, weight, Hooks::new().stop_gradient(point));
    let theirs = gradient(&model, weight, detached());
    assert!(max_diff("gradient", &ours, &theirs) <= 1e-6, "{point}");
    let whole = gradient(&model, weight, Hooks::new());
    assert!(max_diff("gradient", &ours, &whole) > 1e-4, "{point}: the gradient flows on");
}

#[test]
fn a_stopped_gradient_is_no_change() {
    let model = raw("gpt2");
    let cache =
        model.run(PROMPT, RunOptions::new().hooks(Hooks::new().stop_gradient("pattern")).cache("z")).unwrap().cache;
    assert_eq!(cache.changed().count(), 0);
}

// --- what a run says it did -------------------------------------------------------------------------------------------

#[test]
fn a_run_says_where_it_was_changed() {
    let model = raw("gpt2");
    let hooks = Hooks::new()
        .observe(HookFilter::All, |_, _| {})
        .replace(hook::z(0), |z, _| z.shallow_clone())
        .replace(hook::z(1), |_, _| None)
        .edit(hook::mlp_out(1), |_, _| {})
        .patch("pattern", Patch::scale(1.0));
    let plan = model.plan(&RunOptions::new().hooks(Hooks::new().replace(hook::z(-1), |_, _| None))).unwrap();
    assert!(plan.is_changed(("z", 1)) && !plan.is_changed(hook::z(0))); // it may be
    let cache = model.run(PROMPT, RunOptions::new().hooks(hooks)).unwrap().cache;
    let changed = [hook::pattern(0), hook::z(0), hook::pattern(1), hook::mlp_out(1)];
    assert!(cache.changed().eq(changed) && cache.is_empty());
    assert!(cache.is_changed("pattern0") && !cache.is_changed(hook::z(-1)));
    let kept: ActivationCache = cache.clone().apply_slice_to_batch_dim(Slice::from(0..1)).unwrap();
    assert!(kept.changed().eq(changed));
}

/// At every point.
#[test]
fn a_patch_by_the_run_s_own_values_changes_nothing() {
    for family in ["gpt2", "llama_gqa_tied", "olmo2", "mixtral", "toy_shortformer"] {
        let (model, tokens, points) = open(family);
        let every = model.run(&tokens, RunOptions::new().cache(model.hook_names())).unwrap();
        for point in points {
            let value = &every.cache[point];
            let hooks = Hooks::new().patch(point, Patch::set(value));
            let outcome = model.run(&tokens, RunOptions::new().hooks(hooks).cache(point)).unwrap();
            assert_eq!(max_diff("entry", &outcome.cache[point], value), 0.0, "{family}, {point}");
            let diff = max_diff("logits", &outcome.logits.unwrap(), every.logits.as_ref().unwrap());
            assert!(diff <= 1e-4, "{family}, {point}: {diff:.1e}");
        }
    }
}
