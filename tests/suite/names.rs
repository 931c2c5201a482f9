//! Names of hook points: every one parses back, every short hand means what TransformerLens' `get_act_name` says, and no
//! string makes anything panic. And every point has the shape that its documentation says.

use std::cell::{Cell, RefCell};

use crate::common::{families, mechanisms, properties, raw};
use proptest::prelude::*;
use rstest::rstest;
use tch_lens::hook::{HookName, Site, Stack};
use tch_lens::{hook, Config, Error, HookFilter, HookPoint, Hooks, RunOptions};

const PROMPT: [i64; 5] = [5, 14, 3, 10, 9];

/// The shapes of all families: what a name means depends on nothing else.
fn configs() -> Vec<(Config, Vec<String>)> {
    families()
        .iter()
        .chain(&mechanisms())
        .map(|family| raw(family))
        .map(|model| (model.config().clone(), model.hook_names()))
        .collect()
}

#[test]
fn every_name_parses_to_the_point_that_prints_it() {
    let mut count = 0;
    for (config, names) in configs() {
        for name in &names {
            let point = name.resolve(&config).unwrap();
            assert_eq!(&point.to_string(), name);
            assert_eq!(point.resolve(&config).unwrap(), point);
            count += 1;
        }
        let mut points: Vec<HookPoint> = names.iter().map(|name| name.resolve(&config).unwrap()).collect();
        points.sort();
        points.dedup();
        assert_eq!(points.len(), names.len(), "every name is another point");
    }
    println!("{count} names");
}

/// TransformerLens' `get_act_name`, its aliases included.
#[rstest]
#[case("k", None, "blocks.1.attn.hook_k")]
#[case("q", None, "blocks.1.attn.hook_q")]
#[case("v", Some("attn"), "blocks.1.attn.hook_v")]
#[case("z", Some("a"), "blocks.1.attn.hook_z")]
#[case("key", None, "blocks.1.attn.hook_k")]
#[case("query", None, "blocks.1.attn.hook_q")]
#[case("value", None, "blocks.1.attn.hook_v")]
#[case("result", None, "blocks.1.attn.hook_result")]
#[case("attn", None, "blocks.1.attn.hook_pattern")]
#[case("pattern", None, "blocks.1.attn.hook_pattern")]
#[case("attn_scores", None, "blocks.1.attn.hook_attn_scores")]
#[case("attn_logits", None, "blocks.1.attn.hook_attn_scores")]
#[case("q_input", None, "blocks.1.hook_q_input")]
#[case("attn_in", None, "blocks.1.hook_attn_in")]
#[case("pre", None, "blocks.1.mlp.hook_pre")]
#[case("post", Some("m"), "blocks.1.mlp.hook_post")]
#[case("mlp_pre", None, "blocks.1.mlp.hook_pre")]
#[case("mlp_post", None, "blocks.1.mlp.hook_post")]
#[case("mlp_in", None, "blocks.1.hook_mlp_in")]
#[case("mlp_out", None, "blocks.1.hook_mlp_out")]
#[case("attn_out", None, "blocks.1.hook_attn_out")]
#[case("resid_pre", None, "blocks.1.hook_resid_pre")]
#[case("resid_mid", Some("b"), "blocks.1.hook_resid_mid")]
#[case("resid_post", None, "blocks.1.hook_resid_post")]
#[case("scale", Some("ln1"), "blocks.1.ln1.hook_scale")]
#[case("normalized", Some("ln2"), "blocks.1.ln2.hook_normalized")]
fn a_short_hand_means_its_whole_name(#[case] short: &str, #[case] within: Option<&str>, #[case] expected: &str) {
    let config = raw("gpt2").config().clone();
    let expected = expected.resolve(&config).unwrap();
    let mut found = vec![];
    match within {
        None => {
            found.extend([(short, 1).resolve(&config), (short, -1).resolve(&config)]);
            found.push(format!("{short}1").resolve(&config));
        }
        Some(within) => {
            found.extend([(short, 1, within).resolve(&config), (short, -1, within).resolve(&config)]);
            found.push(format!("{short}1{within}").resolve(&config));
        }
    }
    for found in found {
        assert_eq!(found.unwrap(), expected);
    }
}

#[test]
fn what_is_outside_the_blocks_needs_no_layer() {
    let config = raw("gpt2").config().clone();
    for (short, point) in [("embed", hook::embed()), ("pos_embed", hook::pos_embed()), ("tokens", hook::tokens())] {
        assert_eq!(short.resolve(&config).unwrap(), point);
        assert_eq!(format!("hook_{short}").resolve(&config).unwrap(), point);
    }
}

#[test]
fn the_functions_make_the_points_of_their_names() {
    let config = raw("llama").config().clone();
    for layer in 0..2 {
        assert_eq!((hook::q(layer).site(), hook::q(layer).layer()), (Site::Q, Some(layer)));
        assert_eq!(hook::pre_linear(layer).to_string(), format!("blocks.{layer}.mlp.hook_pre_linear"));
        assert_eq!(hook::rot_k(layer), ("rot_k", layer as i64).resolve(&config).unwrap());
        assert_eq!(hook::ln1_scale(layer), ("scale", layer as i64, "ln1").resolve(&config).unwrap());
        assert_eq!(hook::ln2_normalized(layer), ("normalized", layer as i64, "ln2").resolve(&config).unwrap());
    }
}

/// The table's order is the one in which a run fires, of every family, whichever side of a sublayer its norms are on.
#[test]
fn points_are_listed_in_the_order_in_which_they_fire() {
    for family in families().into_iter().chain(mechanisms()) {
        let model = raw(&family);
        let fired = RefCell::new(Vec::new());
        let hooks = Hooks::new().observe(model.hook_names(), |_, point| fired.borrow_mut().push(point.to_string()));
        let run = RunOptions::new().hooks(hooks).cache(model.hook_names());
        let outcome = model.run(PROMPT, run).unwrap();
        assert_eq!(*fired.borrow(), model.hook_names(), "{family}");
        let plan = model.plan(&RunOptions::new().cache(model.hook_names())).unwrap();
        assert!(plan.cached().eq(outcome.cache.keys()), "{family}");
    }
}

/// A layer is a `usize`, an `i32` or an `i64`, and may count from the end, wherever a point is named.
#[test]
fn a_layer_is_any_integer_and_may_count_from_the_end() {
    let model = raw("gpt2");
    let config = model.config();
    for (first, last) in
        [(hook::q(0usize), hook::q(1usize)), (hook::q(0i64), hook::q(1i64)), (hook::q(-2), hook::q(-1))]
    {
        assert_eq!(first.resolve(config).unwrap(), hook::q(0));
        assert_eq!(last.resolve(config).unwrap(), hook::q(1));
    }
    for name in [("q", -1).resolve(config), ("q", 1usize).resolve(config), ("q", 1i64).resolve(config)] {
        assert_eq!(name.unwrap(), hook::q(1));
    }
    assert_eq!(("scale", -1, "ln1").resolve(config).unwrap(), ("scale", 1usize, "ln1").resolve(config).unwrap());
    let fired = RefCell::new(Vec::new());
    let hooks = Hooks::new().observe([hook::z(-1), hook::z(0)], |_, point| fired.borrow_mut().push(point));
    let run = RunOptions::new().hooks(hooks).cache([hook::z(-1), hook::resid_post(-2)]);
    assert!(model.plan(&run).unwrap().is_live(hook::z(-1)) && !model.plan(&run).unwrap().is_live(hook::q(-1)));
    let cache = model.run(PROMPT, run).unwrap().cache;
    assert_eq!(*fired.borrow(), [hook::z(0), hook::z(1)]);
    assert!(cache.keys().eq([hook::resid_post(0), hook::z(1)]));
    assert_eq!(cache[hook::z(-1)], cache[("z", 1)]);
    for point in [hook::q(2), hook::q(-3), hook::q(i64::MIN), hook::q(usize::MAX)] {
        assert!(matches!(point.resolve(config), Err(Error::LayerOutOfRange { .. })), "{point}");
    }
}

#[test]
fn numbers_in_names_have_one_form() {
    let config = raw("mixtral").config().clone();
    for name in ["blocks.01.attn.hook_q", "blocks.+1.attn.hook_q", "q01", "blocks.1.mlp.experts.00.hook_pre"] {
        assert!(matches!(name.resolve(&config), Err(Error::UnknownHook { .. })), "{name}");
    }
    for name in ["blocks.7.attn.hook_q", "blocks.7.mlp.experts.1.hook_pre", "q7"] {
        assert!(matches!(name.resolve(&config), Err(Error::LayerOutOfRange { .. })), "{name}");
    }
    let stack = hook::q(0).with_stack(Stack::Encoder);
    for name in [stack.to_string(), "encoder.0.attn.hook_q".into(), "blocks.1.mlp.experts.99.hook_pre".into()] {
        assert!(matches!(name.resolve(&config), Err(Error::HookNotInModel { .. })), "{name}");
    }
    assert!(matches!(stack.resolve(&config), Err(Error::HookNotInModel { .. })));
}

/// What takes a function from layers to points takes these functions.
#[test]
fn a_function_of_a_layer_is_a_value() {
    let at: [fn(usize) -> HookPoint; 3] = [hook::z, hook::q_norm_scale, hook::ln2_post_normalized];
    let names = at.map(|point| point(1).to_string());
    assert_eq!(names, ["blocks.1.attn.hook_z", "blocks.1.attn.q_norm.hook_scale", "blocks.1.ln2_post.hook_normalized"]);
    assert_eq!(hook::expert_pre(0usize, 3).to_string(), "blocks.0.mlp.experts.3.hook_pre");
}

/// No name is long, so a long one is looked up in no table and compared no further than a name goes.
#[test]
fn a_hostile_name_is_an_error_with_a_nearest_one() {
    let config = raw("mixtral").config().clone();
    let long = |part: &str| part.repeat(100_000 / part.len());
    for text in [long("blocks."), long("9"), long("q"), format!("blocks.{}.attn.hook_q", long("1")), long("é")] {
        let named =
            [text.resolve(&config), (text.as_str(), 0).resolve(&config), ("scale", 0, text.as_str()).resolve(&config)];
        for error in named.map(|found| found.unwrap_err()) {
            assert!(
                matches!(&error, Error::UnknownHook { nearest, .. } if nearest.resolve(&config).is_ok()),
                "{error}"
            );
            assert!(error.to_string().len() < 1000);
        }
    }
}

/// Text that is anything, or looks like a name.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-z0-9_.]{0,40}",
        "(blocks\\.)?[0-9]{0,25}\\.?(attn|mlp|ln1|ln2|mlp\\.experts\\.[0-9]{1,25})?\\.?(hook_)?[a-z_]{0,12}[0-9]{0,25}",
    ]
}

/// A real name with one character changed, added or taken away.
fn mistyped() -> impl Strategy<Value = (String, String)> {
    let names: Vec<String> = raw("llama").hook_names();
    (prop::sample::select(names), any::<prop::sample::Index>(), 0..3, any::<char>()).prop_map(|(name, at, how, c)| {
        let mut chars: Vec<char> = name.chars().collect();
        let at = at.index(chars.len());
        match how {
            0 => chars[at] = c,
            1 => chars.insert(at, c),
            _ => drop(chars.remove(at)),
        }
        (name, chars.into_iter().collect())
    })
}

#[test]
fn no_string_makes_a_name_panic() {
    let configs = configs();
    proptest!(properties(), |(which in any::<prop::sample::Index>(), text in text(), layer in any::<i64>(), within in text())| {
        let (config, names) = &configs[which.index(configs.len())];
        let results = [
            text.resolve(config),
            (text.as_str(), layer).resolve(config),
            (text.as_str(), layer, within.as_str()).resolve(config),
        ];
        for result in results {
            match result {
                Ok(point) => prop_assert!(names.contains(&point.to_string()), "{} is none of this model's", point),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
        let _ = HookFilter::from(text).resolve(config).map(|points| assert!(!points.is_empty()));
    });
}

/// One slip leads to the name that was meant, or to one as near.
#[test]
fn a_mistyped_name_leads_back() {
    let config = raw("llama").config().clone();
    let (found, all) = (Cell::new(0), Cell::new(0));
    proptest!(properties(), |((meant, typed) in mistyped())| {
        match typed.resolve(&config) {
            Ok(point) => prop_assert!(point.to_string() == meant || typed != meant),
            Err(Error::UnknownHook { nearest, .. }) => {
                all.set(all.get() + 1);
                found.set(found.get() + i32::from(nearest == meant));
                prop_assert!(nearest.resolve(&config).is_ok());
            }
            Err(Error::LayerOutOfRange { .. } | Error::HookNotInModel { .. }) => {}
            Err(other) => prop_assert!(false, "{}", other),
        }
    });
    println!("{} of {} slips lead to the name that was meant", found.get(), all.get());
    assert!(found.get() * 10 >= all.get() * 9);
}

#[test]
fn a_selection_by_names_is_those_names() {
    for family in ["gpt2", "gemma2", "mixtral"] {
        let model = raw(family);
        let names = model.hook_names();
        let chosen = prop::sample::subsequence(names.clone(), 1..=names.len()).prop_shuffle();
        proptest!(properties(), |(chosen in chosen)| {
            let select = HookFilter::from(chosen.clone());
            let points = select.resolve(model.config()).unwrap();
            prop_assert_eq!(points.iter().map(ToString::to_string).collect::<Vec<_>>(), chosen.clone());
            // A run keeps just those, in whichever order they were said.
            let mut kept: Vec<_> = model.plan(&RunOptions::new().cache(select)).unwrap().cached().collect();
            let mut said = points;
            kept.sort();
            said.sort();
            prop_assert_eq!(kept, said);
        });
    }
}

/// The shape that the documentation of every point gives, of every family.
#[test]
fn every_point_has_its_documented_shape() {
    let (batch, pos) = (2, 5);
    let rows: Vec<Vec<i64>> = vec![vec![5, 14, 3, 10, 9], vec![7, 4, 12, 6, 11]];
    let mut count = 0;
    for family in families() {
        let model = raw(&family);
        let c = model.config();
        let n = |n: usize| n as i64;
        let (heads, kv, d_head) = (n(c.n_heads), n(c.n_key_value_heads), n(c.d_head));
        let (d_model, d_mlp) = (n(c.d_model), n(c.d_mlp()));
        let cache = model.run(rows.clone(), RunOptions::new().cache(model.hook_names())).unwrap().cache;
        for (point, tensor) in &cache {
            let each = |last: &[i64]| [&[batch, pos], last].concat();
            let over_all_heads = matches!(c.qk_norm(), Some(tch_lens::config::QkNorm::AllHeads(_)));
            let of_heads = |heads, width| match over_all_heads {
                true => each(&[if width == 1 { 1 } else { heads * width }]),
                false => each(&[heads, width]),
            };
            use Site::*;
            let expected = match point.site() {
                Tokens => each(&[]),
                UnembedOut => each(&[n(c.d_vocab_out)]),
                EmbedLnScale | LnFinalScale | HeadLnScale => each(&[1]),
                ExpertGate | ExpertPre | ExpertPost => {
                    assert_eq!((tensor.dim(), tensor.size()[1]), (2, d_mlp), "{family}, {point}");
                    continue;
                }
                AttnIn | QInput | Result => each(&[heads, d_model]),
                KInput | VInput => each(&[kv, d_model]),
                Q | RotQ | Z => each(&[heads, d_head]),
                K | V | RotK => each(&[kv, d_head]),
                QNormScale => of_heads(heads, 1),
                QNormNormalized => of_heads(heads, d_head),
                KNormScale => of_heads(kv, 1),
                KNormNormalized => of_heads(kv, d_head),
                AttnScores | Pattern => vec![batch, heads, pos, pos],
                Ln1Scale | Ln1PostScale | Ln2Scale | Ln2PostScale | MlpLnScale => each(&[1]),
                Pre | PreLinear | Mid | MlpLnNormalized | Post => each(&[d_mlp]),
                ExpertWeights => each(&[n(c.experts().unwrap().num_experts)]),
                ExpertIndices => each(&[n(c.experts().unwrap().experts_per_token)]),
                _ => each(&[d_model]),
            };
            assert_eq!(tensor.size(), expected, "{family}, {point}");
            let axes = point.axes();
            assert_eq!(axes.batch.map(|axis| expected[axis]), Some(batch), "{family}, {point}");
            assert_eq!(axes.position.map(|axis| expected[axis]), Some(pos), "{family}, {point}");
            assert!(axes.head.is_none_or(|axis| [heads, kv].contains(&expected[axis])), "{family}, {point}");
            count += 1;
        }
    }
    println!("{count} shapes");
}
