//! Logits processors against transformers 5.23's and TransformerLens 3.9's (`fixtures/generation`), and what is drawn.
//!
//! The fixture has logits `[3, 53]` and tokens so far `[3, 14]`; `one.*` is one processor of transformers, `combo.*` several in
//! the order in which its `generate` applies them, `tl.*` what TransformerLens' `sample_logits` samples from.

use std::collections::BTreeMap;

use tch::{IndexOp, Kind, Tensor};
use tch_lens::generate::{self, TokenHistory};
use tch_lens::{Error, Sampler, SamplingOptions};

use crate::common;

struct Reference {
    tensors: BTreeMap<String, Tensor>,
    scores: Tensor,
    histories: Vec<TokenHistory>,
}

fn reference() -> Reference {
    let tensors = common::read(&common::fixtures().join("generation/processors.safetensors"));
    let ids = Vec::<Vec<i64>>::try_from(&tensors["input_ids"]).unwrap();
    let histories = ids.iter().map(|row| TokenHistory::new(row)).collect();
    Reference { scores: tensors["scores"].shallow_clone(), histories, tensors }
}

/// Exactly the same entries are −∞, and the others differ by no more than rounding.
fn assert_same(key: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{key}");
    assert_eq!(found.isinf(), expected.isinf(), "{key}: other tokens are removed");
    let zero = |x: &Tensor| x.where_self(&x.isfinite(), &x.zeros_like());
    let worst = (zero(found) - zero(expected)).abs().max().double_value(&[]);
    assert!(worst < 2e-6, "{key}: {worst}");
}

#[test]
fn every_processor_equals_transformers() {
    let Reference { tensors, scores: s, histories: h } = reference();
    let results = [
        ("temperature_0.7", generate::temperature(&s, 0.7)),
        ("temperature_1.5", generate::temperature(&s, 1.5)),
        ("top_k_1", generate::top_k(&s, 1, 1)),
        ("top_k_10", generate::top_k(&s, 10, 1)),
        ("top_k_100", generate::top_k(&s, 100, 1)),
        ("top_k_2_ties", generate::top_k(&s, 2, 1)),
        ("top_k_3_keep_5", generate::top_k(&s, 3, 5)),
        ("top_p_0.0001", generate::top_p(&s, 0.0001, 1)),
        ("top_p_0.3", generate::top_p(&s, 0.3, 1)),
        ("top_p_0.3_keep_4", generate::top_p(&s, 0.3, 4)),
        ("top_p_0.9", generate::top_p(&s, 0.9, 1)),
        ("top_p_1.0", generate::top_p(&s, 1.0, 1)),
        ("min_p_0.1", generate::min_p(&s, 0.1, 1)),
        ("min_p_0.9", generate::min_p(&s, 0.9, 1)),
        ("min_p_0.9_keep_3", generate::min_p(&s, 0.9, 3)),
        ("typical_0.6", generate::typical_p(&s, 0.6, 1)),
        ("epsilon_0.05", generate::epsilon_cutoff(&s, 0.05, 1)),
        ("eta_0.05", generate::eta_cutoff(&s, 0.05, 1)),
        ("repetition_0.8", generate::repetition_penalty(&s, &h, 0.8)),
        ("repetition_1.3", generate::repetition_penalty(&s, &h, 1.3)),
        ("no_repeat_ngram_1", generate::no_repeat_ngrams(&s, &h, 1)),
        ("no_repeat_ngram_2", generate::no_repeat_ngrams(&s, &h, 2)),
        ("no_repeat_ngram_3", generate::no_repeat_ngrams(&s, &h, 3)),
        ("bad_words", generate::forbid_sequences(&s, &h, &[vec![3], vec![3, 7, 7], vec![1, 3, 8]])),
        ("suppress_tokens", generate::forbid_tokens(&s, &[1, 40, 2])),
        ("min_new_tokens", generate::forbid_tokens(&s, &[51])),
    ];
    let mut compared = 0;
    for (key, found) in results {
        assert_same(key, &found.unwrap(), &tensors[&format!("one.{key}")]);
        compared += 1;
    }
    // transformers gives the token that it forces a score of 0.
    let forced = generate::allow_tokens(&s, &[51]).unwrap();
    assert_eq!(forced.isinf(), tensors["one.forced_eos"].isinf());
    assert_eq!(forced.i((.., 51)), s.i((.., 51)));
    // One more is `logit_normalization`, which changes no distribution.
    assert_eq!(compared + 2, tensors.keys().filter(|key| key.starts_with("one.")).count());
}

#[test]
fn settings_are_applied_in_the_order_of_transformers() {
    let Reference { tensors, scores, histories } = reference();
    let scores_of = |options: SamplingOptions| Sampler::new(&options, 53).unwrap().scores(&scores, &histories).unwrap();
    let new = SamplingOptions::new;
    // Given in another order than they are applied in.
    let all = new().min_p(0.02).top_p(0.9).top_k(20).temperature(0.8).no_repeat_ngram_size(3).repetition_penalty(1.2);
    assert_same("all", &scores_of(all), &tensors["combo.all"]);
    let penalties = SamplingOptions::greedy().no_repeat_ngram_size(2).repetition_penalty(1.5);
    assert_same("greedy_penalties", &scores_of(penalties), &tensors["combo.greedy_penalties"]);
    assert_same("k_p_t", &scores_of(new().temperature(1.4).top_k(8).top_p(0.7)), &tensors["combo.k_p_t"]);
    let typical = scores_of(new().temperature(0.6).typical_p(0.5)).log_softmax(-1, Kind::Float);
    assert_same("typical_norm", &typical, &tensors["combo.typical_norm"]);
    // A setting of 1 that transformers leaves out.
    assert_same("none", &scores_of(new().top_p(1.0).typical_p(1.0).temperature(1.0)), &scores);
}

#[test]
fn settings_equal_transformer_lens() {
    let Reference { tensors, scores, histories } = reference();
    let new = SamplingOptions::new;
    let cases = [
        ("t0.7", new().temperature(0.7)),
        ("k10", new().top_k(10)),
        ("k2_ties", new().top_k(2)),
        ("p0.3", new().top_p(0.3)),
        ("p0.9", new().top_p(0.9)),
        ("p0.8_t0.5", new().temperature(0.5).top_p(0.8)),
        ("freq0.5", new().frequency_penalty(0.5)),
        // TransformerLens subtracts after the temperature.
        ("freq2_t1.3_k15", new().frequency_penalty(2.0 * 1.3).temperature(1.3).top_k(15)),
    ];
    let mut compared = 0;
    for (key, options) in cases {
        let found = Sampler::new(&options, 53).unwrap().scores(&scores, &histories).unwrap();
        assert_same(key, &found, &tensors[&format!("tl.{key}")]);
        compared += 1;
    }
    let greedy = Sampler::new(&SamplingOptions::greedy(), 53).unwrap();
    let mut rows = [0, 1, 2].map(|row| greedy.sequence(&[0], row, 0));
    let ids = greedy.sample(&scores, &mut rows).unwrap();
    assert_eq!(ids, Vec::<i64>::try_from(&tensors["tl.t0"]).unwrap());
    assert_eq!(compared + 1, tensors.keys().filter(|key| key.starts_with("tl.")).count());
}

#[test]
fn presence_biases_and_stop_tokens() {
    let scores = Tensor::from_slice2(&[[1.0f32, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]);
    let histories = [TokenHistory::new(&[3, 3, 9, 1]), TokenHistory::new(&[0])]; // 9: no output token
    let found = generate::presence_penalty(&scores, &histories, 0.5).unwrap();
    assert_eq!(found, Tensor::from_slice2(&[[1.0f32, 1.5, 3.0, 3.5], [0.5, 2.0, 3.0, 4.0]]));
    let found = generate::frequency_penalty(&scores, &histories, 0.5).unwrap();
    assert_eq!(found, Tensor::from_slice2(&[[1.0f32, 1.5, 3.0, 3.0], [0.5, 2.0, 3.0, 4.0]]));
    let found = generate::bias_tokens(&scores, &[(0, 2.0), (2, -1.0), (0, 0.5)]).unwrap();
    assert_eq!(found, Tensor::from_slice2(&[[3.5f32, 2.0, 2.0, 4.0], [3.5, 2.0, 2.0, 4.0]]));
    let found = generate::allow_tokens(&scores, &[1, 3]).unwrap();
    assert_eq!(found.isfinite(), Tensor::from_slice2(&[[false, true, false, true], [false, true, false, true]]));
    assert_eq!(found.i((.., 1)), scores.i((.., 1)));

    let outside =
        |result: tch_lens::Result<Tensor>| matches!(result, Err(Error::TokenOutOfRange { id: 4, d_vocab: 4 }));
    assert!(outside(generate::bias_tokens(&scores, &[(4, 1.0)])));
    assert!(outside(generate::allow_tokens(&scores, &[4])));
    assert!(outside(generate::forbid_tokens(&scores, &[4])));
    assert!(outside(generate::forbid_sequences(&scores, &histories, &[vec![1, 4]])));
    let shape = |result: tch_lens::Result<Tensor>| matches!(result, Err(Error::Shape { .. }));
    assert!(shape(generate::presence_penalty(&scores, &histories[..1], 0.5)));
    assert!(shape(generate::repetition_penalty(&scores.i(0), &histories, 1.5)));
    assert!(shape(generate::top_k(&Tensor::zeros([2, 0], (Kind::Float, scores.device())), 1, 1)));
}

/// Counts of 10⁵ draws from one distribution, each of a row of its own.
fn draws(options: SamplingOptions, logits: &Tensor) -> Vec<f64> {
    let (d_vocab, batch) = (logits.size()[0], 1000);
    let sampler = Sampler::new(&options, d_vocab as usize).unwrap();
    let logits = logits.expand([batch, d_vocab], false);
    let mut rows: Vec<_> = (0..batch).map(|row| sampler.sequence(&[0], row as usize, 0)).collect();
    let mut counts = vec![0.0; d_vocab as usize];
    for _ in 0..100 {
        for id in sampler.sample(&logits, &mut rows).unwrap() {
            counts[id as usize] += 1.0;
        }
    }
    counts
}

#[test]
fn what_is_drawn_passes_a_chi_square_test() {
    let Reference { scores, .. } = reference();
    let logits = scores.i(1);
    let new = SamplingOptions::new;
    for (seed, options) in [
        (0, new()),
        (2, new().temperature(2.5)),
        (3, new().temperature(0.7).top_k(9)),
        (4, new().temperature(2.0).top_p(0.9)),
    ] {
        let sampler = Sampler::new(&options, 53).unwrap();
        let kept = sampler.scores(&logits.unsqueeze(0), &[TokenHistory::new(&[0])]).unwrap();
        let expected = Vec::<f64>::try_from(kept.i(0).softmax(-1, Kind::Double) * 1e5).unwrap();
        let counts = draws(options.clone().seed(seed), &logits);
        // Tokens expected fewer than ten times are counted together; impossible ones never come.
        let (mut rare, mut chi_square, mut cells) = ((0.0, 0.0), 0.0, 0.0);
        for (&count, &expected) in counts.iter().zip(&expected) {
            assert!(expected > 0.0 || count == 0.0, "an excluded token was drawn");
            if expected >= 10.0 {
                chi_square += (count - expected) * (count - expected) / expected;
                cells += 1.0;
            } else {
                rare = (rare.0 + count, rare.1 + expected);
            }
        }
        if rare.1 >= 5.0 {
            chi_square += (rare.0 - rare.1) * (rare.0 - rare.1) / rare.1;
            cells += 1.0;
        }
        // Wilson and Hilferty's normal approximation: |z| < 3.3 for 999 seeds of 1000.
        let k: f64 = cells - 1.0;
        let z = ((chi_square / k).cbrt() - (1.0 - 2.0 / (9.0 * k))) / (2.0 / (9.0 * k)).sqrt();
        assert!(k >= 7.0 && z.abs() < 3.3, "seed {seed}: chi square {chi_square} of {k}, z {z}");
    }
}

#[test]
fn a_row_draws_the_same_in_any_batch() {
    let Reference { scores, .. } = reference();
    let sampler = Sampler::new(&SamplingOptions::new().temperature(3.0).seed(11), 53).unwrap();
    let run = |which: &[usize]| {
        let mut rows: Vec<_> = which.iter().map(|&row| sampler.sequence(&[0], row, 2)).collect();
        let index: Vec<i64> = which.iter().map(|&row| row as i64).collect();
        let logits = scores.index_select(0, &Tensor::from_slice(&index));
        let steps: Vec<Vec<i64>> = (0..20).map(|_| sampler.sample(&logits, &mut rows).unwrap()).collect();
        (0..which.len()).map(|row| steps.iter().map(|step| step[row]).collect()).collect::<Vec<Vec<i64>>>()
    };
    let together = run(&[0, 1, 2]);
    assert_eq!(run(&[2, 0]), [together[2].clone(), together[0].clone()]);
    assert_eq!(run(&[1]), [together[1].clone()]);
    // Another seed, row or sample draws otherwise, libtorch's generator changes nothing.
    tch::manual_seed(5);
    assert_eq!(run(&[0, 1, 2]), together);
    let ids = |seed, row, sample| {
        let sampler = Sampler::new(&SamplingOptions::new().temperature(3.0).seed(seed), 53).unwrap();
        let mut rows = [sampler.sequence(&[0], row, sample)];
        (0..20).map(|_| sampler.sample(&scores.i(0..1), &mut rows).unwrap()[0]).collect::<Vec<_>>()
    };
    assert_eq!(ids(11, 0, 2), together[0]);
    assert!([ids(12, 0, 2), ids(11, 1, 2), ids(11, 0, 3)].iter().all(|other| *other != together[0]));
}

#[test]
fn a_row_without_candidates_is_an_error() {
    let bad = |value: f32| Tensor::from_slice2(&[[0.0f32, 1.0], [value, value]]);
    for options in [SamplingOptions::new(), SamplingOptions::greedy()] {
        let sampler = Sampler::new(&options, 2).unwrap();
        let sample = |logits: &Tensor| {
            let mut rows = [0, 1].map(|row| sampler.sequence(&[0], row, 0));
            sampler.sample(logits, &mut rows)
        };
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = sample(&bad(value)).unwrap_err();
            let sentence = "row 1 has no token to choose from: every one is excluded, or its logits are not numbers";
            assert_eq!(error.to_string(), sentence);
        }
        // Half precision is widened, and one excluded token is no error.
        assert_eq!(sample(&Tensor::from_slice2(&[[-1e9f32, 1.0], [f32::NEG_INFINITY, 0.0]])).unwrap(), [1, 1]);
        assert_eq!(sample(&(bad(-9.0) * 4).to_kind(Kind::BFloat16)).unwrap()[0], 1);
        assert!(matches!(sample(&Tensor::zeros([2, 3], (Kind::Float, tch::Device::Cpu))), Err(Error::Shape { .. })));
        assert!(matches!(sample(&Tensor::zeros([1, 2], (Kind::Float, tch::Device::Cpu))), Err(Error::Shape { .. })));
    }
    let all = SamplingOptions::greedy().forbid_tokens([0]).allow_tokens([0]);
    let sampler = Sampler::new(&all, 2).unwrap();
    let error = sampler.sample(&Tensor::from_slice2(&[[0.0f32, 1.0]]), &mut [sampler.sequence(&[0], 0, 0)]);
    assert!(matches!(error, Err(Error::NoCandidate { row: 0 })));
}
