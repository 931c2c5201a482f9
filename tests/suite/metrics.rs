//! Metrics: the ready-made ones equal what is computed by hand, and everything that cannot be computed is an error.

use rstest::rstest;
use tch::{Kind, Tensor};
use tch_lens::{hook, Answer, HookedTransformer, Metric, PaddingSide, Positions, RunOptions, Tokens};

use crate::common::{max_diff, raw, Tally};

const TOLERANCE: f64 = 1e-5;

fn tokens() -> Vec<Vec<i64>> {
    vec![vec![1, 5, 3, 8, 2], vec![4, 4, 9, 1, 7], vec![6, 2, 2, 3, 3]]
}

fn run(model: &HookedTransformer) -> tch_lens::RunOutput {
    model.run(tokens(), RunOptions::new().cache("pattern")).unwrap()
}

fn answers() -> (Answer, Answer) {
    (Answer::per_row([3, 1, 2]), Answer::per_row([5, 5, 0]))
}

/// Logits of one id for each row at one position: `[batch]`.
fn at(scores: &Tensor, pos: i64, ids: [i64; 3]) -> Tensor {
    scores.select(1, pos).gather(1, &Tensor::from_slice(&ids).view([3, 1]), false).squeeze_dim(1)
}

#[test]
fn ready_made_metrics_are_what_they_say() {
    let model = raw("gpt2");
    let output = run(&model);
    let logits = output.logits().unwrap();
    let (probs, log_probs) = (logits.softmax(-1, Kind::Float), logits.log_softmax(-1, Kind::Float));
    let (correct, incorrect) = ([3, 1, 2], [5, 5, 0]);
    let other = model.forward(vec![vec![7i64, 7, 7, 7, 7]; 3]).unwrap();
    let p = other.softmax(-1, Kind::Float);
    let divergence = (&p * (p.log() - &log_probs)).sum_dim_intlist([-1i64].as_slice(), false, None); // [batch, pos]
    let mut tally = Tally::default();
    let mut compare = |what: &str, metric: Metric, expected: Tensor| {
        let rows = metric.rows(logits, &output.cache).unwrap();
        tally.compare(what, &rows, &expected, TOLERANCE);
        let scalar = metric.scalar(logits, &output.cache).unwrap();
        tally.compare(&format!("mean {what}"), &scalar, &expected.mean(None), TOLERANCE);
    };
    let pair = || Answer::from(answers());
    compare(
        "logit_diff",
        Metric::logit_diff(answers().0, answers().1),
        at(logits, 4, correct) - at(logits, 4, incorrect),
    );
    compare("logit", Metric::logit(answers().0), at(logits, 4, correct));
    compare("logit of a pair", Metric::logit(pair()), at(logits, 4, correct) - at(logits, 4, incorrect));
    compare("prob", Metric::prob(answers().0), at(&probs, 4, correct));
    compare("prob of a pair", Metric::prob(pair()), at(&probs, 4, correct) - at(&probs, 4, incorrect));
    compare("log_prob", Metric::log_prob(answers().1), at(&log_probs, 4, incorrect));
    compare("one id for all", Metric::logit(6), logits.select(1, -1).select(1, 6));
    compare("at a position", Metric::logit(6).pos(1), logits.select(1, 1).select(1, 6));
    let mean = (logits.select(1, 1) + logits.select(1, 3)).select(1, 6) / 2.0;
    compare("at two positions", Metric::logit(6).pos([1, 3]), mean);
    let by_position = (logits.select(1, 1).select(1, 2) + logits.select(1, 3).select(1, 9)) / 2.0;
    compare("an id for each position", Metric::logit(Answer::per_position([2, 9])).pos([1, 3]), by_position);
    compare("kl_div", Metric::kl_div(&other), divergence.select(1, -1));
    compare("kl_div from the last position", Metric::kl_div(&other.narrow(1, 4, 1)), divergence.select(1, -1));
    compare(
        "kl_div at all positions",
        Metric::kl_div(&other).pos(..),
        divergence.mean_dim([1i64].as_slice(), false, None),
    );
    compare("a function", Metric::new(|logits| logits.select(1, 2).select(1, 3)), logits.select(1, 2).select(1, 3));
    let chosen = Metric::new(|logits| logits.select(1, 0).select(1, 3)).pos(2);
    compare("a function of a position", chosen, logits.select(1, 2).select(1, 3));
    let pattern = output.cache[hook::pattern(1)].select(1, 0).select(1, 4).select(1, 2);
    let metric =
        Metric::with_cache("pattern", |_, cache| cache[hook::pattern(1)].select(1, 0).select(1, 4).select(1, 2));
    compare("a function of the cache", metric, pattern);
    tally.finish("metrics by hand");
}

#[test]
fn a_normalized_metric_is_one_in_the_clean_run_and_zero_in_the_corrupted_run() {
    let model = raw("gpt2");
    let output = run(&model);
    let logits = output.logits().unwrap();
    let value = Metric::logit(6).rows(logits, &output.cache).unwrap();
    let corrupted = Tensor::from_slice(&[1.0, -2.0, 3.0]);
    let metric = Metric::logit(6).normalized(2.0, &corrupted);
    let rows = metric.rows(logits, &output.cache).unwrap();
    let expected = (&value - &corrupted) / (Tensor::from(2.0) - &corrupted);
    assert!(max_diff("normalized", &rows, &expected) < TOLERANCE);
    let metric = Metric::logit(6).normalized(&value, 7.0);
    assert!(
        max_diff("clean", &metric.rows(logits, &output.cache).unwrap(), &Tensor::from_slice(&[1f32, 1.0, 1.0]))
            < TOLERANCE
    );
}

#[test]
fn a_metric_is_at_the_last_token_of_each_row_and_of_the_logits_that_there_are() {
    let model = raw("gpt2");
    let rows = [vec![1, 5, 3, 8, 2], vec![4, 4, 9]];
    let tokens = || Tokens::padded(&rows, 0, PaddingSide::Right).unwrap();
    let metric = Metric::logit(6);
    let whole = model.run(tokens(), RunOptions::new()).unwrap();
    let all = metric.rows(whole.logits().unwrap(), &whole.cache).unwrap();
    let last = model.run(tokens(), RunOptions::new().logits_at(metric.positions().clone())).unwrap();
    assert_eq!(last.logits().unwrap().size()[1], 1);
    let same = metric.rows(last.logits().unwrap(), &last.cache).unwrap();
    let alone: Vec<Tensor> =
        rows.iter().map(|row| model.forward(row.clone()).unwrap().select(1, -1).select(1, 6)).collect();
    let alone = Tensor::cat(&alone, 0);
    assert!(max_diff("whole", &all, &alone) < TOLERANCE && max_diff("last", &same, &alone) < TOLERANCE);
    let error = Metric::logit(6).pos(1).rows(last.logits().unwrap(), &last.cache).unwrap_err().to_string();
    assert!(error.starts_with("the metric cannot be computed: it needs the logits at position 1"), "{error}");
    let error = Metric::logit(6).pos(-1).rows(whole.logits().unwrap(), &whole.cache).unwrap_err().to_string();
    assert!(error.contains("is padding"), "{error}");
    assert!(Metric::logit(6)
        .pos(Positions::from(-1).with_padding())
        .rows(whole.logits().unwrap(), &whole.cache)
        .is_ok());
}

#[test]
fn a_metric_passes_gradients() {
    let model = raw("gpt2");
    let output = run(&model);
    let leaf = output.logits().unwrap().detach().set_requires_grad(true);
    let metric = Metric::log_prob((6, 3)).normalized(3.0, 1.0);
    let scalar = metric.scalar(&leaf, &output.cache).unwrap();
    assert_eq!(scalar.dim(), 0);
    let gradient = Tensor::run_backward(&[&scalar], &[&leaf], false, false).remove(0);
    // A difference of log-probabilities is one of logits.
    let expected = Tensor::zeros_like(&leaf);
    let _ = expected.select(1, -1).select(1, 6).fill_(1.0 / 6.0);
    let _ = expected.select(1, -1).select(1, 3).fill_(-1.0 / 6.0);
    assert!(max_diff("gradient", &gradient, &expected) < TOLERANCE);
}

#[rstest]
#[case::wrong_shape(Metric::new(|logits| logits.select(1, 0)), "the metric cannot be computed: its function returned shape [3, ")]
#[case::wrong_kind(Metric::new(|logits| logits.select(1, 0).argmax(-1, false)), "the metric cannot be computed: its function returned a tensor of kind Int64")]
#[case::undefined(Metric::new(|_| Tensor::new()), "the metric cannot be computed: its function returned an undefined tensor")]
#[case::panics(Metric::new(|_| -> Tensor { panic!("no reason") }), "the metric cannot be computed: its function panicked: no reason")]
#[case::fails(Metric::new(|_| Err::<Tensor, _>("no luck")), "the metric failed: no luck")]
#[case::one_value(Metric::new(|logits| logits.mean(None)), "the metric cannot be computed: its function returns one value for all 3 rows")]
#[case::other_logits(Metric::kl_div(&Tensor::zeros([2, 5, 7], (Kind::Float, tch::Device::Cpu))), "the metric cannot be computed: the logits of its divergence have shape [2, 5, 7]")]
#[case::no_logits(Metric::kl_div(&Tensor::new()), "the metric cannot be computed: the logits of its divergence have shape []")]
#[case::rows(Metric::logit(Answer::per_row([1, 2])), "the answers per row has shape [2], expected [3]")]
#[case::vocabulary(Metric::logit(100_000), "token id 100000 is out of range")]
#[case::text(Metric::logit(" Mary"), "this model has no tokenizer")]
#[case::positions(Metric::logit(1).pos(9), "index 9 is out of range for the position axis")]
#[case::no_positions(Metric::logit(1).pos(9..), "the metric cannot be computed: its positions select none of the input's")]
#[case::same_values(Metric::logit(1).normalized(2.0, 2.0), "the metric cannot be computed: row 0 has the value 2 in the clean and in the corrupted run")]
#[case::infinite(Metric::logit(1).normalized(f64::INFINITY, 2.0), "the metric cannot be computed: the values of row 0")]
#[case::wrong_baseline(Metric::logit(1).normalized(Tensor::from_slice(&[1.0, 2.0]), 2.0), "the metric cannot be computed: its value in the clean run is of shape [2]")]
fn what_cannot_be_measured_is_an_error(#[case] metric: Metric, #[case] sentence: &str) {
    let model = raw("gpt2");
    let output = run(&model);
    let error = metric.rows(output.logits().unwrap(), &output.cache).unwrap_err().to_string();
    assert!(error.starts_with(sentence), "{error}");
}

#[test]
fn logits_of_another_run_are_an_error() {
    let model = raw("gpt2");
    let output = run(&model);
    let logits = output.logits().unwrap().narrow(0, 0, 2);
    let error = Metric::logit(1).scalar(&logits, &output.cache).unwrap_err().to_string();
    assert!(error.starts_with("the metric's tensor of logits has shape [2, 5, "), "{error}");
    let error = Metric::with_cache("q", |_, cache| cache.get(hook::q(0)).map(|q| q.mean(None)));
    let error = error.scalar(output.logits().unwrap(), &output.cache).unwrap_err().to_string();
    assert!(error.starts_with("the metric failed: the cache has no `blocks.0.attn.hook_q`"), "{error}");
}
