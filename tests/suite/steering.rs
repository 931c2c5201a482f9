//! Steering vectors: what they are made of, and what adding them does.

use tch::{Kind, Tensor};
use tch_lens::steering::{SteeringMethod, SteeringOptions, SteeringVector};
use tch_lens::{hook, Hooks, RunOptions};

use crate::common::models::{fresh, in_fp64, small};
use crate::common::{max_diff, Tally};

fn pairs() -> (Vec<Vec<i64>>, Vec<Vec<i64>>) {
    (vec![vec![5, 9, 3], vec![7, 2], vec![4, 4, 8, 1]], vec![vec![5, 9, 6], vec![7, 11], vec![4, 4, 8, 2]])
}

/// The vectors of texts alone, without padding: `[text, d]`.
fn alone(model: &tch_lens::HookedTransformer, texts: &[Vec<i64>], point: tch_lens::HookPoint) -> Tensor {
    let of = |ids: &Vec<i64>| {
        let cache = model.run(&ids[..], RunOptions::new().cache(point)).unwrap().cache;
        cache[point].get(0).get(-1)
    };
    Tensor::stack(&texts.iter().map(of).collect::<Vec<_>>(), 0)
}

#[test]
fn directions_are_means_and_components_of_differences() {
    let mut tally = Tally::default();
    for (name, model) in in_fp64() {
        let (positive, negative) = pairs();
        for point in [hook::resid_post(0), hook::attn_out(0)] {
            let differences = alone(&model, &positive, point) - alone(&model, &negative, point); // [pair, d]
            let made = |method| {
                let options = SteeringOptions::new().method(method);
                SteeringVector::from_pairs(&model, point, positive.clone(), negative.clone(), options)
                    .unwrap()
                    .direction()
            };
            let mean = differences.mean_dim([0i64].as_slice(), false, Kind::Double);
            tally.compare(&format!("{name}, mean"), &made(SteeringMethod::MeanDifference), &mean, 1e-9);
            // The component is an eigenvector of the differences' second moments, with the largest eigenvalue.
            let component = made(SteeringMethod::Pca);
            let unit = &component / component.norm();
            let moments = differences.tr().matmul(&differences); // [d, d]
            let eigenvalue = unit.dot(&moments.matmul(&unit));
            tally.compare(&format!("{name}, component"), &moments.matmul(&unit), &(&unit * &eigenvalue), 1e-7);
            let largest = moments.linalg_eigvalsh("L").max();
            tally.compare(&format!("{name}, eigenvalue"), &eigenvalue, &largest, 1e-7);
            tally.compare(&format!("{name}, length"), &component.dot(&unit), &mean.dot(&unit), 1e-9);
        }
    }
    tally.finish("steering vectors");
}

/// Of several positions, their mean is compared.
#[test]
fn positions_are_averaged() {
    let model = fresh(small());
    let point = hook::resid_post(0);
    let of = |options: SteeringOptions| {
        SteeringVector::from_pairs(&model, point, [5, 9, 3], [7, 2, 6], options).unwrap().direction()
    };
    let apart = [of(SteeringOptions::new().pos(1)), of(SteeringOptions::new().pos(2))];
    let both = of(SteeringOptions::new().pos(1..));
    let off = max_diff("mean", &both, &((&apart[0] + &apart[1]) / 2.0));
    assert!(off < 1e-12 && max_diff("one", &both, &apart[0]) > 1e-3, "{off}");
}

#[test]
fn hooks_add_and_take_out_the_direction() {
    let model = fresh(small());
    let (positive, negative) = pairs();
    let point = hook::resid_post(0);
    let vector = SteeringVector::from_pairs(&model, point, positive, negative, SteeringOptions::new()).unwrap();
    let ids = [5, 9, 3, 6];
    let stream = |hooks: Hooks| model.run(ids, RunOptions::new().cache(point).hooks(hooks)).unwrap().cache;
    let plain = stream(Hooks::new());
    let steered = stream(vector.hooks(2.5, 1..).unwrap());
    let moved = (&steered[point] - &plain[point]).get(0); // [pos, d]
    let want = vector.direction() * 2.5;
    assert_eq!(moved.get(0).abs().max().double_value(&[]), 0.0);
    let off = max_diff("moved", &moved.narrow(0, 1, 3), &want.unsqueeze(0).expand([3, 24], false));
    assert!(off < 1e-12, "{off}");
    // Projections grow by the length of what was added.
    let length = want.norm().double_value(&[]);
    let grown = vector.projections(&steered).unwrap() - vector.projections(&plain).unwrap(); // [batch, pos]
    let off = (grown.narrow(1, 1, 3) - length).abs().max().double_value(&[]);
    assert!(off < 1e-12, "{off}");
    let ablated = vector.projections(&stream(vector.ablation(..))).unwrap().abs().max().double_value(&[]);
    assert!(ablated < 1e-12, "{ablated}");
    println!("moved by {length:.3}; ablated projections up to {ablated:.1e}");
    // The patch stands where hooks do.
    let by_patch = stream(Hooks::new().patch(point, vector.patch(2.5).unwrap().pos(1..)));
    assert_eq!(by_patch[point], steered[point]);
}

#[test]
fn what_cannot_be_a_direction_is_an_error() {
    let model = fresh(small());
    let made = |point: tch_lens::HookPoint, positive: Vec<Vec<i64>>, negative: Vec<Vec<i64>>| {
        SteeringVector::from_pairs(&model, point, positive, negative, SteeringOptions::new()).map(drop)
    };
    let texts = || vec![vec![1, 2], vec![3, 4]];
    let vector =
        || SteeringVector::new(hook::resid_pre(0), &Tensor::ones([24], (Kind::Double, tch::Device::Cpu))).unwrap();
    let (_, cache) = crate::common::raw("llama").run_with_cache([1, 2]).unwrap();
    let zero = Tensor::zeros([24], (Kind::Double, tch::Device::Cpu));
    let errors = [
        (made(hook::resid_pre(0), texts(), vec![vec![1, 2]]), "as many positive texts as negative ones, not 2 and 1"),
        (made(hook::resid_pre(0), texts(), texts()), "has length 0"),
        (made(hook::pattern(0), texts(), texts()), "has not one vector for each token"),
        (made(hook::z(0), texts(), texts()), "has not one vector for each token"),
        (made(hook::resid_pre(9), texts(), texts()), "layer 9 is out of range"),
        (SteeringVector::new(hook::resid_pre(0), &zero).map(drop), "has length 0"),
        (SteeringVector::new(hook::resid_pre(0), &zero.unsqueeze(0)).map(drop), "expected [d]"),
        (vector().hooks(f64::NAN, ..).map(drop), "`scale` is NaN"),
        (vector().projections(&cache).map(drop), "as the direction"),
        (
            SteeringVector::from_pairs(
                &model,
                hook::resid_pre(0),
                texts(),
                vec![vec![5, 2], vec![3, 6]],
                SteeringOptions::new().pos(7),
            )
            .map(drop),
            "index 7 is out of range",
        ),
    ];
    for (result, sentence) in errors {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}\nwithout: {sentence}");
    }
}
