//! Heads by what they look at, singular vectors and copying, and attention knockout.

use std::collections::BTreeMap;

use rstest::rstest;
use tch::{Kind, Tensor};
use tch_lens::heads::{
    detect_head, induction_scores, prefix_matching_scores, DetectHeadOptions, ErrorMeasure, HeadPattern, RepeatedTokens,
};
use tch_lens::weights::{SvdInterpreter, SvdMatrix};
use tch_lens::{hook, HookedTransformer, Hooks, LoadOptions, Patch, RunOptions};

use crate::common::{fixtures, max_diff, raw, read, Tally};

const TOLERANCE: f64 = 1e-4;

fn expected(name: &str) -> BTreeMap<String, Tensor> {
    read(&fixtures().join(format!("interventions/{name}.safetensors")))
}

fn toy() -> HookedTransformer {
    LoadOptions::new().no_processing().toy().unwrap()
}

fn patterns() -> [(&'static str, HeadPattern); 3] {
    [
        ("previous_token_head", HeadPattern::PreviousToken),
        ("duplicate_token_head", HeadPattern::DuplicateToken),
        ("induction_head", HeadPattern::Induction),
    ]
}

#[test]
fn the_detector_gives_transformer_lens_scores() {
    let (model, expected) = (toy(), expected("toy_heads"));
    // The first text's first word has no token of its own at the start of a text.
    let ids = |i: usize| Vec::<i64>::try_from(expected[&format!("tokens.{i}")].get(0)).unwrap();
    let texts = [ids(0), ids(1)];
    let mut tally = Tally::default();
    // TransformerLens rounds scores of absolute differences to three digits.
    let tolerance = |measure| if measure == "abs" { 5e-4 + 1e-6 } else { TOLERANCE };
    for (name, pattern) in patterns() {
        for (measure, error_measure) in [("mul", ErrorMeasure::Mul), ("abs", ErrorMeasure::Abs)] {
            let options = || DetectHeadOptions::new().error_measure(error_measure);
            for (i, text) in texts.iter().enumerate() {
                for (bos, cur) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let options = options().exclude_bos(bos == 1).exclude_current_token(cur == 1);
                    let key = format!("score.{i}.{name}.{measure}.bos{bos}.cur{cur}");
                    let ours = detect_head(&model, text.clone(), &pattern, options).unwrap();
                    tally.compare(&key, &ours, &expected[&key], tolerance(measure));
                }
            }
            let key = format!("score.list.{name}.{measure}");
            let ours = detect_head(&model, texts.to_vec(), &pattern, options()).unwrap();
            tally.compare(&key, &ours, &expected[&key], tolerance(measure));
        }
    }
    let custom = HeadPattern::Custom(expected["pattern.custom"].shallow_clone());
    let options = DetectHeadOptions::new().error_measure(ErrorMeasure::Abs);
    let ours = detect_head(&model, texts[0].clone(), &custom, options).unwrap();
    tally.compare("custom", &ours, &expected["score.0.custom.abs"], tolerance("abs"));
    let some = &expected["score.0.induction_head.mul.some_heads"];
    let heads: Vec<(i64, usize)> = (0..4i64)
        .flat_map(|layer| (0..4usize).map(move |head| (layer, head)))
        .filter(|(layer, head)| some.double_value(&[*layer, *head as i64]) != -1.0)
        .collect();
    let options = DetectHeadOptions::new().heads(heads);
    tally.compare(
        "some heads",
        &detect_head(&model, texts[0].clone(), &HeadPattern::Induction, options).unwrap(),
        some,
        TOLERANCE,
    );
    tally.finish("head detector");
}

#[rstest]
#[case("When", HeadPattern::PreviousToken, DetectHeadOptions::new().heads([(9, 0)]), "layer 9 is out of range")]
#[case("When", HeadPattern::PreviousToken, DetectHeadOptions::new().heads([(0, 9)]), "index 9 is out of range for the head axis")]
#[case("When Mary", HeadPattern::Custom(Tensor::zeros([2, 2], (Kind::Float, tch::Device::Cpu))), DetectHeadOptions::new(), "the detection pattern has shape [2, 2], expected [3, 3]")]
#[case("When Mary", HeadPattern::Custom(Tensor::ones([3, 3], (Kind::Float, tch::Device::Cpu))), DetectHeadOptions::new(), "must be lower triangular")]
fn what_cannot_be_detected_is_an_error(
    #[case] text: &str,
    #[case] pattern: HeadPattern,
    #[case] options: DetectHeadOptions,
    #[case] sentence: &str,
) {
    let error = detect_head(&toy(), text, &pattern, options).unwrap_err().to_string();
    assert!(error.contains(sentence), "{error}");
}

#[rstest]
#[case("toy")]
#[case("llama_gqa_tied")]
fn singular_vectors_are_transformer_lens_up_to_their_sign(#[case] name: &str) {
    let expected = expected(&format!("{name}_weights"));
    let mut tally = Tally::default();
    for (kind, model) in [
        ("raw", if name == "toy" { toy() } else { raw(name) }),
        (
            "processed",
            if name == "toy" {
                HookedTransformer::toy().unwrap()
            } else {
                HookedTransformer::from_pretrained(fixtures().join(name)).unwrap()
            },
        ),
    ] {
        let interpreter = SvdInterpreter::new(&model);
        for (key, theirs) in expected.iter().filter(|(key, _)| key.starts_with(&format!("{kind}.svd."))) {
            let fields: Vec<&str> = key.split('.').skip(2).collect();
            let layer: i64 = fields[1].parse().unwrap();
            let matrix = match fields[0] {
                "OV" => SvdMatrix::ov(layer, fields[2].parse().unwrap()),
                "w_in" => SvdMatrix::w_in(layer),
                _ => SvdMatrix::w_out(layer),
            };
            if fields.last() == Some(&"S") {
                tally.compare(key, &interpreter.singular_values(matrix).unwrap(), theirs, TOLERANCE);
                continue;
            }
            let ours = interpreter.get_singular_vectors(matrix, theirs.size()[2] as usize).unwrap();
            let sign = (&ours * theirs).sum_dim_intlist([0i64].as_slice(), true, None).sign();
            tally.compare(key, &(ours * sign), theirs, TOLERANCE);
        }
    }
    tally.finish(name);
}

#[test]
fn singular_vectors_that_there_are_not_are_errors() {
    let model = toy();
    let interpreter = SvdInterpreter::new(&model);
    let sentence = |of, num| interpreter.get_singular_vectors(of, num).unwrap_err().to_string();
    assert!(sentence(SvdMatrix::ov(0, 7), 1).contains("index 7 is out of range for the head axis"));
    assert!(sentence(SvdMatrix::w_in(7), 1).contains("layer 7 is out of range"));
    assert!(sentence(SvdMatrix::w_out(0), 1000).contains("the matrix has 128 singular vectors"));
    let error = SvdInterpreter::new(&raw("mixtral")).singular_values(SvdMatrix::w_in(0)).unwrap_err().to_string();
    assert!(error.starts_with("the model has no"), "{error}");
}

#[test]
fn copying_scores_are_eigenvalues_of_the_whole_circuit() {
    for model in [raw("gpt2"), raw("llama_gqa_tied")] {
        let scores = model.copying_scores().unwrap();
        let (w_e, w_u) = (model.w_e().unwrap(), model.w_u().unwrap());
        let mut tally = Tally::default();
        for layer in 0..model.config().n_layers as i64 {
            for head in 0..model.config().n_heads as i64 {
                let ov = model.w_v(layer).unwrap().get(head).matmul(&model.w_o(layer).unwrap().get(head));
                let whole = w_e.matmul(&ov).matmul(&w_u).to_kind(Kind::Double);
                let eigenvalues = whole.linalg_eigvals();
                let expected = eigenvalues.real().sum(Kind::Double) / eigenvalues.abs().sum(Kind::Double);
                let ours = scores.get(layer).get(head);
                tally.compare(&format!("L{layer}H{head}"), &ours, &expected.to_kind(Kind::Float), 1e-3);
            }
        }
        tally.finish("copying");
    }
}

#[test]
fn induction_heads_of_the_toy_have_high_scores_and_twice_repeated_tokens_one_definition() {
    let model = toy();
    let is_word = |id: &i64| {
        let text = model.to_string([*id]).unwrap();
        text.len() > 2 && text.starts_with(' ') && text.trim().chars().all(char::is_lowercase)
    };
    let words: Vec<i64> = (0..1047).filter(is_word).collect();
    let tokens = || RepeatedTokens::new().len(6).rows(16).among(words.clone());
    let induction = induction_scores(&model, tokens()).unwrap();
    assert_eq!(induction.size(), [4, 4]);
    assert!(induction.max().double_value(&[]) > 0.5, "{induction}");
    let prefix = prefix_matching_scores(&model, tokens()).unwrap();
    assert!(max_diff("twice", &induction, &prefix) < 1e-6);
    let four = prefix_matching_scores(&model, tokens().times(4)).unwrap();
    assert!(four.ge_tensor(&induction_scores(&model, tokens().times(4)).unwrap()).all().int64_value(&[]) == 1);
    assert_eq!(induction, induction_scores(&model, tokens()).unwrap());
    assert_ne!(induction, induction_scores(&model, tokens().seed(1)).unwrap());
    let sentence = |tokens| induction_scores(&model, tokens).unwrap_err().to_string();
    assert!(sentence(tokens().times(1)).contains("times"));
    assert!(sentence(RepeatedTokens::new().len(2000)).contains("there are only 1046 tokens to repeat"));
    assert!(sentence(RepeatedTokens::new().len(500)).contains("context"));
}

#[rstest]
#[case("gpt2")]
#[case("llama_gqa_tied")]
#[case("gpt_oss")]
fn knocked_out_attention_is_a_renormalised_pattern(#[case] family: &str) {
    let model = raw(family);
    let tokens = vec![vec![1i64, 5, 3, 8, 2], vec![4, 4, 9, 1, 7]];
    let hooks = Hooks::new().knock_out_attention([0, 1], [3, 4], [1, 2]);
    let cache = model.run(tokens.clone(), RunOptions::new().hooks(hooks).cache("pattern")).unwrap().cache;
    let (_, plain) = model.run_with_cache_of(tokens.clone(), "pattern").unwrap();
    let (ours, theirs) = (&cache[hook::pattern(0)], plain[hook::pattern(0)].copy());
    assert_eq!(ours.slice(2, 3, 5, 1).slice(3, 1, 3, 1).abs().max().double_value(&[]), 0.0);
    assert!(max_diff("others", &ours.slice(2, 0, 3, 1), &theirs.slice(2, 0, 3, 1)) < 1e-6);
    // The rest keeps its proportions.
    let rest = |pattern: &Tensor| pattern.select(2, 4).slice(2, 3, 5, 1) / pattern.select(2, 4).slice(2, 3, 4, 1);
    assert!(max_diff("rest", &rest(ours), &rest(&theirs)) < 1e-4);
    let blind = Hooks::new().patch(hook::attn_scores(0).pos(0).key(0), Patch::set(f64::NEG_INFINITY));
    if family != "gpt_oss" {
        let error = model.run_with_hooks(tokens, blind).unwrap_err().to_string();
        assert!(error.contains("blocks.0.attn.hook_attn_scores") && error.contains("look at nothing"), "{error}");
    }
}
