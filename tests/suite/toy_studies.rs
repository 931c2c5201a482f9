//! What the examples `attribution_patching` and `find_circuit` say of the toy model is so.

use tch::{Kind, Tensor};
use tch_lens::analysis::Answer;
use tch_lens::circuits::{Ablation, CircuitNode, CircuitTask, CurveOptions, EdgeMethod};
use tch_lens::gradient::AttributionPatchingOptions;
use tch_lens::{patching, BackwardRules, HookedTransformer, Metric};

const CLEAN: &str = "When Mary and John went to the shop, John gave a bag to";
const CORRUPTED: &str = "When Mary and John went to the shop, Mary gave a bag to";

/// Pearson's correlation of all entries.
fn correlation(a: &Tensor, b: &Tensor) -> f64 {
    let centered = |x: &Tensor| {
        let x = x.to_kind(Kind::Double).flatten(0, -1);
        &x - x.mean(Kind::Double)
    };
    let (a, b) = (centered(a), centered(b));
    ((&a * &b).sum(Kind::Double) / (a.norm() * b.norm())).double_value(&[])
}

#[test]
fn relevance_patching_agrees_with_exact_patches() {
    let model = HookedTransformer::toy().unwrap();
    let metric = Metric::logit_diff(" Mary", " John");
    let sites = ["resid_pre", "attn_out", "mlp_out", "z"];
    let estimated = |rules: BackwardRules| {
        let options = AttributionPatchingOptions::new().points(sites).backward_rules(rules);
        model.attribution_patching(CORRUPTED, CLEAN, &metric, options).unwrap()
    };
    let (plain, relp) = (estimated(BackwardRules::new()), estimated(BackwardRules::relp()));
    let (_, clean) = model.run_with_cache(CLEAN).unwrap();
    for site in sites {
        let sweep = match site {
            "resid_pre" => patching::get_act_patch_resid_pre,
            "attn_out" => patching::get_act_patch_attn_out,
            "mlp_out" => patching::get_act_patch_mlp_out,
            _ => patching::get_act_patch_attn_head_out_by_pos,
        };
        let exact = sweep(&model, CORRUPTED, &clean, &metric).unwrap().tensor() - plain.base_metric();
        let [plain, relp] = [&plain, &relp].map(|estimates| correlation(&exact, &estimates.by_layer(site).unwrap()));
        println!("{site}: correlation {plain:.3}, with RelP {relp:.3}");
        assert!((0.85..0.97).contains(&plain) && relp > 0.98, "{site}: {plain}, {relp}");
        if site == "attn_out" {
            let largest = exact.max().double_value(&[]);
            let estimate = |x: &Tensor| x.max().double_value(&[]) / largest;
            let (plain, relp) = (estimated(BackwardRules::new()), estimated(BackwardRules::relp()));
            let [plain, relp] = [plain, relp].map(|estimates| estimate(&estimates.by_layer(site).unwrap()));
            assert!((0.65..0.8).contains(&plain) && (0.95..1.1).contains(&relp), "{plain}, {relp}");
        }
    }
}

#[test]
fn the_circuit_of_indirect_objects_is_small_and_faithful() {
    let model = HookedTransformer::toy().unwrap();
    let names = [("Mary", "John"), ("Peter", "Anna"), ("John", "Mary"), ("Anna", "Peter")];
    let prompt = |(answer, other): (&str, &str), repeated: &str| {
        format!("When {answer} and {other} went to the shop, {repeated} gave a bag to")
    };
    let clean: Vec<String> = names.iter().map(|names| prompt(*names, names.1)).collect();
    let counterparts: Vec<String> = names.iter().map(|names| prompt(*names, names.0)).collect();
    let right = Answer::per_row_texts(names.map(|(answer, _)| format!(" {answer}")));
    let wrong = Answer::per_row_texts(names.map(|(_, other)| format!(" {other}")));
    let metric = Metric::logit_diff(right, wrong);
    let task = CircuitTask::new(&model, clean, Ablation::counterfactual(counterparts), &metric).unwrap();
    let scores = task.edge_scores(EdgeMethod::IntegratedInputs { steps: 5 }).unwrap();
    let n_edges = task.graph().n_edges();
    let circuit = scores.top_n(n_edges / 10).unwrap();
    let (kept, complete) = (task.faithfulness(&circuit).unwrap(), task.completeness(&circuit).unwrap());
    println!("{} of {n_edges} edges keep {kept:.3}, all others {:.3}", circuit.n_edges(), 1.0 - complete);
    assert!(circuit.n_edges() * 100 <= 15 * n_edges && kept >= 0.9, "{} edges, {kept}", circuit.n_edges());
    assert!((1.0 - complete).abs() < 0.05, "{complete}");
    // From a head of the first layer to all heads of the last.
    let has = |name: &str| circuit.contains(name.parse().unwrap());
    assert!(has("input->a0.h3<v>") && (0..4).all(|head| has(&format!("a3.h{head}->logits"))));
    assert_eq!(circuit.nodes().filter(|node| matches!(node, CircuitNode::Head { layer: 0, .. })).count(), 1);

    let curve = task.faithfulness_curve(&scores, CurveOptions::new()).unwrap();
    println!("{curve}\nCPR {:.3}, CMD {:.3}", curve.cpr(), curve.cmd());
    assert!(curve.cpr() > 0.9 && curve.cmd() < 0.1, "{curve}");
}
