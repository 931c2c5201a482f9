//! Path patching: figures of its definition in Python, and on models of every structure those of the three runs by hand.

use rstest::rstest;
use tch::Tensor;
use tch_lens::hook::HookPart;
use tch_lens::patching::{path_patch, path_patch_together, PatchAxis, PatchIndex, PathOptions};
use tch_lens::{hook, ActivationCache, HookPoint, HookedTransformer, Hooks, Metric, Patch, RunOptions};

use crate::common::{max_diff, raw, Tally};
use crate::patching::Pair;

const TOLERANCE: f64 = 1e-4;
const SAME: f64 = 1e-5;

fn heads() -> PatchIndex {
    PatchIndex::new("z", [PatchAxis::Layer, PatchAxis::Head])
}

#[rstest]
#[case("toy_ioi_one", "noise")]
#[case("toy_ioi_one", "denoise")]
#[case("toy_ioi_two", "noise")]
#[case("llama_gqa_tied", "noise")]
fn paths_have_the_figures_of_the_definition(#[case] name: &str, #[case] direction: &str) {
    let pair = Pair::open(name);
    let (base, source) = if direction == "noise" { ("clean", "corrupted") } else { ("corrupted", "clean") };
    let (source, metric) = (pair.cache(source), pair.metric());
    let mut tally = Tally::default();
    for (freeze, options) in [("heads", PathOptions::new().through_mlps()), ("heads_mlps", PathOptions::new())] {
        let mut compare = |to: &str, receivers: PatchIndex| {
            let expected = &pair.expected[&format!("path.{direction}.{freeze}.to_{to}")];
            let tokens = pair.tokens(base);
            let map = path_patch(&pair.model, tokens, &source, &metric, &heads(), &receivers, options.clone()).unwrap();
            tally.compare(&format!("{freeze} to {to}"), &map.tensor().view_as(expected), expected, TOLERANCE);
            tally.compare("base", &map.baseline(), &pair.expected[&format!("path.{direction}.base_metric")], TOLERANCE);
        };
        compare("resid_post", PatchIndex::of([hook::resid_post(-1).into()]));
        for site in ["q", "k", "v"] {
            compare(site, PatchIndex::new(site, [PatchAxis::Layer, PatchAxis::Head]));
        }
    }
    tally.finish(&format!("{name}, {direction}"));
}

/// The three runs by hand.
fn by_hand(
    model: &HookedTransformer,
    (base, source): (&[Vec<i64>], &ActivationCache),
    metric: &Metric,
    (sender, receivers): (&HookPart, &[HookPart]),
    frozen: &[HookPart],
) -> Tensor {
    let (_, of_base) = model.run_with_cache(base.to_vec()).unwrap();
    let hooks = Hooks::new().freeze(frozen.to_vec(), &of_base).patch(sender.clone(), Patch::set(source));
    let points: Vec<HookPoint> = receivers.iter().map(HookPart::point).collect();
    let told = model.run(base.to_vec(), RunOptions::new().hooks(hooks).cache(points)).unwrap().cache;
    let hooks = Hooks::new().patch(receivers.to_vec(), Patch::set(&told));
    let output = model.run(base.to_vec(), RunOptions::new().hooks(hooks)).unwrap();
    metric.rows(output.logits().unwrap(), &output.cache).unwrap()
}

#[rstest]
#[case("gpt2")]
#[case("llama_gqa_tied")]
#[case("gpt_neox")]
#[case("olmo2")]
#[case("gemma2")]
#[case("mixtral")]
#[case("toy_attn_only_2l_ln")]
#[case("transformers/openai-gpt")]
#[case("transformers/diffllama")]
#[case("transformers/minicpm3")]
#[case("transformers/afmoe")]
#[case("transformers/laguna")]
#[case("transformers/jetmoe")]
fn path_patching_is_three_runs_by_hand(#[case] family: &str) {
    let model = raw(family);
    let n_layers = model.config().n_layers;
    let base = vec![vec![1, 5, 3, 8, 2, 9], vec![4, 4, 9, 1, 7, 2]];
    let other = vec![vec![1, 5, 6, 8, 1, 9], vec![4, 4, 9, 3, 7, 5]];
    let (_, source) = model.run_with_cache(other).unwrap();
    let metric = Metric::logit_diff(1, 3);
    let has_mlps = !model.config().attn_only();
    let heads = (0..n_layers).map(hook::z).map(HookPart::from);
    let mlps = (0..n_layers).filter(|_| has_mlps).map(hook::mlp_out).map(HookPart::from);
    let frozen: Vec<HookPart> = heads.clone().chain(mlps.clone()).collect();
    let mut senders = vec![hook::z(0).head(1), hook::z(0).pos(3), hook::embed().pos(2), hook::resid_pre(1).pos([2, 4])];
    let mut receivers = vec![
        vec![hook::q(n_layers - 1).head(0)],
        vec![hook::k(1).head(0).pos(3)],
        vec![hook::v(1).into(), hook::q(1).into()],
        vec![hook::resid_post(-1).into()],
    ];
    if has_mlps {
        senders.push(hook::mlp_out(0).into());
        receivers.push(vec![hook::mlp_in(1).into()]);
    }
    let mut tally = Tally::default();
    for receivers in &receivers {
        for (what, options, frozen) in [
            ("direct", PathOptions::new(), frozen.clone()),
            ("through MLPs", PathOptions::new().through_mlps(), heads.clone().collect()),
            ("through a head", PathOptions::new().through([hook::z(1).head(0)]), {
                // All other heads of the layer.
                let others = hook::z(1).head(1..);
                frozen.iter().filter(|part| part.point() != hook::z(1)).cloned().chain([others]).collect()
            }),
        ] {
            let index = PatchIndex::of(senders.clone());
            let map = path_patch_together(&model, base.clone(), &source, &metric, &index, receivers.clone(), options);
            let ours = map.unwrap().rows().unwrap();
            for (i, sender) in senders.iter().enumerate() {
                let expected = by_hand(&model, (&base, &source), &metric, (sender, receivers), &frozen);
                let what = format!("{family}: {sender} to {}, {what}", receivers[0]);
                tally.compare(&what, &ours.get(i as i64), &expected, SAME);
            }
        }
    }
    tally.finish(family);
}

/// What senders tell is kept for some of them at a time, where the budget is small.
#[test]
fn a_budget_changes_no_figure() {
    let model = raw("gpt2");
    let base = vec![vec![1i64, 5, 3, 8, 2, 9], vec![4, 4, 9, 1, 7, 2]];
    let (_, source) = model.run_with_cache(vec![vec![1i64, 5, 6, 8, 1, 9], vec![4, 4, 9, 3, 7, 5]]).unwrap();
    let metric = Metric::logit_diff(1, 3);
    let senders = PatchIndex::new("z", [PatchAxis::Layer, PatchAxis::Pos, PatchAxis::Head]);
    let receivers = [hook::q(1), hook::k(1), hook::v(1), hook::mlp_in(1), hook::resid_pre(1), hook::resid_post(-1)];
    let receivers = PatchIndex::of(receivers.map(HookPart::from));
    let map = |options: PathOptions| {
        path_patch(&model, base.clone(), &source, &metric, &senders, &receivers, options).unwrap().rows().unwrap()
    };
    let (whole, parts) = (map(PathOptions::new()), map(PathOptions::new().budget(250_000)));
    assert_eq!(whole.size(), parts.size());
    assert!(max_diff("paths within a small budget", &parts, &whole) < SAME);
}

#[test]
fn paths_of_all_kinds_add_up_to_the_whole_effect() {
    // Through every node, a path from the stream is a patch of the stream.
    let model = raw("gpt2");
    let base = vec![vec![1, 5, 3, 8, 2, 9]];
    let (_, source) = model.run_with_cache(vec![vec![1i64, 5, 6, 8, 1, 9]]).unwrap();
    let metric = Metric::logit_diff(1, 3);
    let nodes: Vec<HookPart> = (0..2).flat_map(|l| [hook::z(l).into(), hook::mlp_out(l).into()]).collect();
    let sender = PatchIndex::of([hook::resid_pre(0).pos(2)]);
    let receiver = PatchIndex::of([hook::resid_post(-1).into()]);
    let options = PathOptions::new().through(nodes).budget(1 << 20);
    let map = path_patch(&model, base.clone(), &source, &metric, &sender, &receiver, options).unwrap();
    let hooks = Hooks::new().patch(hook::resid_pre(0).pos(2), Patch::set(&source));
    let output = model.run(base, RunOptions::new().hooks(hooks)).unwrap();
    let expected = metric.scalar(output.logits().unwrap(), &output.cache).unwrap();
    assert!(max_diff("whole", &map.tensor().view([]), &expected) < SAME);
}

#[rstest]
#[case([hook::q(0).head(1)], [hook::resid_post(-1).into()], PathOptions::new(), "the hook at `blocks.0.attn.hook_q` cannot act: a sender is a part that writes to the stream")]
#[case([hook::z(0).head(1)], [hook::z(1).into()], PathOptions::new(), "the hook at `blocks.1.attn.hook_z` cannot act: a receiver is a part that reads the stream")]
#[case([hook::z(0).head(1)], [hook::q(1).into()], PathOptions::new().through([hook::q(1).into()]), "the hook at `blocks.1.attn.hook_q` cannot act: paths go through heads")]
fn what_is_no_path_is_an_error(
    #[case] sender: [HookPart; 1],
    #[case] receiver: [HookPart; 1],
    #[case] options: PathOptions,
    #[case] sentence: &str,
) {
    let model = raw("gpt2");
    let (_, source) = model.run_with_cache(vec![1i64, 2, 3]).unwrap();
    let (senders, receivers) = (PatchIndex::of(sender), PatchIndex::of(receiver));
    let error = path_patch(&model, vec![1i64, 2, 4], &source, &Metric::logit(1), &senders, &receivers, options);
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with(sentence), "{error}");
}
