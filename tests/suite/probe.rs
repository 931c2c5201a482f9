//! Linear probes: the minimum of their loss, the split, the control, and what they find where it is known.

use rstest::rstest;
use tch::{Device, Kind, Tensor};
use tch_lens::probe::{ControlLabels, ProbeData, ProbeMethod, ProbeOptions, ProbeSweep};
use tch_lens::{hook, HookedTransformer, RunOptions};

use crate::common::max_diff;
use crate::common::models::{fresh, small};

/// Numbers between −1 and 1 that depend on nothing but the seed.
fn numbers(shape: &[i64], seed: i64) -> Tensor {
    let n: i64 = shape.iter().product();
    let mix = |i: i64| ((i * 2_654_435_761 + seed * 40_503) % 65_537) as f64;
    let numbers: Vec<f64> = (0..n).map(|i| (mix(i) * 12.9898).sin()).collect();
    Tensor::from_slice(&numbers).view(shape)
}

/// Points with a class that a linear map gives, but for some noise.
fn data(n: i64, d: i64, n_classes: i64) -> (Tensor, Vec<usize>) {
    let x = numbers(&[n, d], 1) * 3.0 + 0.7;
    let scores = x.matmul(&numbers(&[d, n_classes], 2)) + numbers(&[n, n_classes], 3);
    let labels = Vec::<i64>::try_from(scores.argmax(-1, false)).unwrap();
    (x, labels.into_iter().map(|label| label as usize).collect())
}

/// The gradient of the documented loss is zero at the weights that the fit gives, by libtorch's own derivative. With the penalty the loss
/// is strictly convex, so these weights are the only ones.
#[rstest]
fn the_weights_minimise_the_documented_loss(
    #[values(ProbeMethod::Logistic, ProbeMethod::Ridge)] method: ProbeMethod,
    #[values((40, 5, 2), (60, 7, 4), (12, 20, 3))] size: (i64, i64, i64),
    #[values(1e-4, 0.1)] l2: f64,
    #[values(false, true)] standardize: bool,
) {
    let (n, d, n_classes) = size;
    let (x, labels) = data(n, d, n_classes);
    let options = ProbeOptions::new().method(method).l2(l2).standardize(standardize);
    // Twice the same examples in two groups: training has each once, whichever group is the test.
    let groups = (0..2 * n).map(|i| i / n).collect();
    let twice = [labels.clone(), labels.clone()].concat();
    let data = ProbeData::new(&Tensor::cat(&[&x, &x], 0), &twice).unwrap().groups(groups).unwrap();
    let result = data.fit(&options.test_fraction(0.5)).unwrap();
    assert_eq!((result.n_train, result.n_test, result.train_accuracy), (n as usize, n as usize, result.test_accuracy));

    let mean = x.mean_dim([0i64].as_slice(), false, Kind::Double);
    let scale = if standardize { x.std_dim([0i64].as_slice(), false, false) } else { mean.ones_like() };
    let features = (&x - &mean) / &scale;
    let weights = (result.probe.weights() * &scale).set_requires_grad(true); // of the standardized activations
    let bias = (result.probe.bias() + result.probe.weights().matmul(&mean)).set_requires_grad(true);
    let scores = features.matmul(&weights.tr()) + &bias;
    let y = Tensor::from_slice(&labels.iter().map(|label| *label as i64).collect::<Vec<_>>());
    let loss = match method {
        ProbeMethod::Logistic => {
            -scores.log_softmax(-1, Kind::Double).gather(1, &y.unsqueeze(1), false).mean(Kind::Double)
        }
        ProbeMethod::Ridge => (&scores - y.one_hot(n_classes)).square().sum(Kind::Double) / (2 * n) as f64,
    };
    let gradients = Tensor::run_backward(
        &[loss + weights.square().sum(Kind::Double) * (l2 / 2.0)],
        &[&weights, &bias],
        false,
        false,
    );
    let largest = gradients.iter().map(|gradient| gradient.abs().max().double_value(&[])).fold(0.0, f64::max);
    println!("{method:?} {size:?} l2 {l2} standardized {standardize}: gradient up to {largest:.1e}");
    assert!(largest < 1e-9, "{largest}");
    // Scores are for the activations as they are.
    let off = max_diff("scores", &result.probe.scores(&x).unwrap(), &scores.detach());
    assert!(off < 1e-9, "{off}");
}

#[test]
fn a_probe_finds_what_is_there_and_no_more() {
    let n = 400;
    let noise = numbers(&[n, 10], 5);
    // The kind of token, of eight, and a class that entry 3 says, whatever the token is.
    let labels: Vec<usize> = (0..n).map(|i| (i * 7 / 3 % 2) as usize).collect();
    let class = Tensor::from_slice(&labels.iter().map(|label| 4.0 * *label as f64 - 2.0).collect::<Vec<_>>());
    let with = noise.copy();
    let _ = with.select(1, 3).g_add_(&class);
    for (what, features, found) in [("the class is in entry 3", &with, true), ("only noise", &noise, false)] {
        let result = ProbeData::new(features, &labels).unwrap().fit(&ProbeOptions::new().l2(0.01)).unwrap();
        println!("{what}:\n{result}");
        assert_eq!(result.n_train + result.n_test, n as usize);
        assert_eq!(result.test_accuracy > 0.95, found, "{what}");
        assert!((0.3..0.7).contains(&result.control_accuracy), "{what}: {}", result.control_accuracy);
        assert_eq!(result.selectivity(), result.test_accuracy - result.control_accuracy);
        if found {
            let direction = result.probe.direction(0, 1).unwrap();
            assert_eq!(direction.argmax(-1, false).int64_value(&[]), 3);
        }
    }
}

/// A control is a label for each kind of token: a probe that knows the token alone does as well on it, so it is not selective.
#[test]
fn a_probe_of_the_token_alone_is_not_selective() {
    let model = fresh(small());
    let rows: Vec<Vec<i64>> = (0..24).map(|row| (0..10).map(|i| (row * 5 + i * 3) % 16).collect()).collect();
    let cache = model.run(rows, RunOptions::new().cache("hook_embed")).unwrap().cache;
    let of_token = |token: i64| usize::from([3, 4, 8, 11, 13].contains(&token));
    let data = ProbeData::of_cache(&cache, "hook_embed", |example| Some(of_token(example.token))).unwrap();
    assert_eq!((data.len(), data.n_classes()), (240, 2));
    let result = data.fit(&ProbeOptions::new().l2(1e-5)).unwrap();
    println!("{result}");
    assert!(result.test_accuracy > 0.99 && result.control_accuracy > 0.99);
    // Random labels of examples cannot be known.
    let by_example = data.fit(&ProbeOptions::new().l2(1e-5).control(ControlLabels::ByExample)).unwrap();
    assert!(by_example.control_accuracy < 0.8 && by_example.test_accuracy == result.test_accuracy);
    let one_token = ProbeData::of_cache(&cache, "hook_embed", |it| (it.token == 3).then_some(it.row % 2)).unwrap();
    let error = one_token.fit(&ProbeOptions::new()).unwrap_err().to_string();
    assert!(error.contains("ControlLabels::ByExample"), "{error}");
    // The same from one seed, something else from another.
    let again = data.fit(&ProbeOptions::new().l2(1e-5)).unwrap();
    assert_eq!(again.probe.weights(), result.probe.weights());
    let other = data.fit(&ProbeOptions::new().l2(1e-5).seed(1)).unwrap();
    assert_ne!(other.probe.weights(), result.probe.weights());
}

#[test]
fn a_cache_gives_its_real_tokens() {
    let model = fresh(small());
    let tokens = vec![vec![5, 9, 3, 6], vec![7, 2]]; // the second is padded
    let run = || RunOptions::new().cache(["resid_post", "z"]);
    let cache = model.run(tokens.clone(), run()).unwrap().cache;
    let seen = std::cell::RefCell::new(Vec::new());
    let data = ProbeData::of_cache(&cache, hook::z(1), |example| {
        seen.borrow_mut().push((example.row, example.token));
        (example.token != 9).then_some(example.row)
    })
    .unwrap();
    assert_eq!(seen.into_inner(), [(0, 5), (0, 9), (0, 3), (0, 6), (1, 7), (1, 2)]);
    assert_eq!(data.len(), 5);
    let sweep =
        ProbeSweep::fit(&cache, "resid_post", |example| Some((example.token % 2) as usize), &ProbeOptions::new())
            .unwrap();
    assert_eq!(
        sweep.rows.iter().map(|(point, _)| *point).collect::<Vec<_>>(),
        [hook::resid_post(0), hook::resid_post(1)]
    );
    assert_eq!(sweep.rows[0].1.n_train + sweep.rows[0].1.n_test, 6);
    assert!([2, 4].contains(&sweep.rows[0].1.n_test), "a row is on one side");
}

/// Training and test have different groups, whatever the share; a class that the training does not have is not known in the test.
#[test]
fn groups_stay_apart() {
    let x = numbers(&[40, 3], 4);
    let labels: Vec<usize> = (0..40).map(|i| i / 20).collect();
    let groups: Vec<i64> = (0..40).map(|i| i / 20).collect();
    let options = || ProbeOptions::new().method(ProbeMethod::Ridge).l2(0.1).control(ControlLabels::ByExample);
    for fraction in [0.01, 0.5, 0.99] {
        let data = ProbeData::new(&x, &labels).unwrap().groups(groups.clone()).unwrap();
        let result = data.fit(&options().test_fraction(fraction)).unwrap();
        assert_eq!((result.n_train, result.n_test), (20, 20), "{fraction}");
        assert_eq!((result.train_accuracy, result.test_accuracy, result.majority_accuracy), (1.0, 0.0, 0.0));
    }
}

#[test]
fn what_a_probe_cannot_do_is_an_error() {
    let x = || numbers(&[6, 2], 1);
    let labels = [0, 1, 0, 1, 0, 1];
    let fit = |options: ProbeOptions| ProbeData::new(&x(), &labels).and_then(|data| data.fit(&options)).map(drop);
    let model: HookedTransformer = fresh(small());
    let (_, cache) = model.run_with_cache([5, 9, 3]).unwrap();
    let errors = [
        (ProbeData::new(&x(), &labels[..4]).map(drop), "expected [4, d]"),
        (ProbeData::new(&x(), &[0; 6]).map(drop), "the labels have 1"),
        (ProbeData::new(&x(), &[0, 2, 0, 2, 0, 2]).map(drop), "no example has 1"),
        (ProbeData::new(&(x() / 0.0), &labels).map(drop), "infinite entries or NaN"),
        (ProbeData::new(&x(), &labels).and_then(|data| data.groups(vec![0; 5])).map(drop), "as many groups, not 5"),
        (
            ProbeData::new(&x(), &labels).and_then(|data| data.groups(vec![0; 6])?.fit(&ProbeOptions::new())).map(drop),
            "at least two groups",
        ),
        (fit(ProbeOptions::new().l2(0.0)), "`l2` is 0"),
        (fit(ProbeOptions::new().test_fraction(1.0)), "`test_fraction` is 1"),
        (ProbeData::of_cache(&cache, "blocks.0.attn.hook_pattern", |_| Some(0)).map(drop), "begins with [batch, pos]"),
        (ProbeData::of_cache(&cache, "blocks.0.hook_resid_port", |_| Some(0)).map(drop), "the nearest is"),
    ];
    for (result, sentence) in errors {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}\nwithout: {sentence}");
    }
    let (x, labels) = data(30, 2, 2);
    let probe = ProbeData::new(&x, &labels).unwrap().fit(&ProbeOptions::new()).unwrap().probe;
    assert!(probe.direction(0, 2).unwrap_err().to_string().contains("class axis"));
    assert!(probe.scores(&Tensor::zeros([3], (Kind::Double, Device::Cpu))).unwrap_err().to_string().contains("[…, 2]"));
}
