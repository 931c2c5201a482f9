//! What goes wrong in runs with gradients ends them with an error that names the place, and leaves the model as it was.

use rstest::rstest;
use tch::{Kind, Tensor};
use tch_lens::{hook, Error, HookedTransformer, Hooks, Result, RunOptions, RunOutput};

const PROMPT: &str = "When Mary and John went to the shop";

fn sum(output: &RunOutput) -> Result<Tensor> {
    Ok(output.logits()?.sum(None))
}

fn failure(model: &HookedTransformer, run: RunOptions<'_>) -> Error {
    model.run_with_grad(PROMPT, run, sum).unwrap_err()
}

fn hooks_that_fail(case: &str) -> Hooks<'static> {
    let point = hook::resid_mid(2);
    match case {
        "panics" => Hooks::new().observe_gradient(point, |_, _| -> () { panic!("a bad hook") }),
        "panics in the forward pass" => Hooks::new().observe(point, |_, _| -> () { panic!("a bad hook") }),
        "fails" => Hooks::new().observe_gradient(point, |_, _| Err::<(), _>("a bad hook")),
        "shape" => Hooks::new().replace_gradient(point, |g, _| g.select(0, 0)),
        "kind" => Hooks::new().replace_gradient(point, |g, _| g.to_kind(Kind::Double)),
        "device" => Hooks::new().replace_gradient(point, |g, _| g.to_device(tch::Device::Mps)),
        "NaN" => Hooks::new().replace_gradient(point, |g, _| g * f64::NAN),
        "undefined" => Hooks::new().replace_gradient(point, |_, _| Tensor::new()),
        "in place" => Hooks::new().observe_gradient(point, |g, _| drop(g.shallow_clone().zero_())),
        other => panic!("{other}"),
    }
}

#[rstest]
#[case("panics", "the hook at `blocks.2.hook_resid_mid` panicked: a bad hook")]
#[case("panics in the forward pass", "the hook at `blocks.2.hook_resid_mid` panicked: a bad hook")]
#[case("fails", "the hook at `blocks.2.hook_resid_mid` failed: a bad hook")]
#[case("shape", "the hook at `blocks.2.hook_resid_mid` returned Float [9, 128] on Cpu, but must return what it replaces: Float [1, 9, 128] on Cpu")]
#[case("kind", "the hook at `blocks.2.hook_resid_mid` returned Double [1, 9, 128] on Cpu, but must return what it replaces: Float [1, 9, 128] on Cpu")]
#[case("device", "the hook at `blocks.2.hook_resid_mid` panicked: ")]
#[case("NaN", "the hook at `blocks.2.hook_resid_mid` left NaN where there were numbers")]
#[case("undefined", "the hook at `blocks.2.hook_resid_mid` returned an undefined tensor")]
#[case("in place", "the hook at `blocks.2.hook_resid_mid` changed in place a tensor that it was only shown")]
fn a_hook_that_fails_ends_the_run_and_is_named(#[case] case: &str, #[case] expected: &str) {
    let model = HookedTransformer::toy().unwrap();
    let before = model.forward(PROMPT).unwrap();
    let gradients = || model.run_with_grad(PROMPT, RunOptions::new(), sum).unwrap().gradients;
    let expected_gradient = gradients()["hook_embed"].copy();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let model = model.clone();
            scope.spawn(move || {
                for _ in 0..3 {
                    let error = failure(&model, RunOptions::new().hooks(hooks_that_fail(case))).to_string();
                    assert!(error.contains(expected), "{error}");
                }
            });
        }
    });
    assert_eq!(model.forward(PROMPT).unwrap(), before);
    assert_eq!(gradients()["hook_embed"], expected_gradient);
    assert!(model.parameters().into_iter().all(|(_, weight)| !weight.requires_grad()));
}

#[test]
fn a_number_that_cannot_be_differentiated_is_refused() {
    let model = HookedTransformer::toy().unwrap();
    let of = |f: fn(&RunOutput) -> Result<Tensor>| {
        model.run_with_grad(PROMPT, RunOptions::new(), f).unwrap_err().to_string()
    };
    let cases: [(&str, String); 6] = [
        (
            "the number to differentiate has shape [1, 9, 1047], expected one entry",
            of(|o| Ok(o.logits()?.shallow_clone())),
        ),
        (
            "the number to differentiate depends on nothing that the run keeps",
            of(|o| Ok(o.logits()?.detach().sum(None))),
        ),
        ("the number to differentiate is NaN: it must be finite", of(|o| Ok(o.logits()?.sum(None) * f64::NAN))),
        ("the hook at `the scalar whose gradient was asked for` panicked: no number", of(|_| panic!("no number"))),
        ("the run did not compute a loss", of(|o| Ok(o.loss_tensor()?.shallow_clone()))),
        ("the number to differentiate has shape [], expected one entry", of(|_| Ok(Tensor::new()))),
    ];
    for (expected, found) in cases {
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn settings_without_effect_are_refused() {
    let model = HookedTransformer::toy().unwrap();
    let hooks = || Hooks::new().observe_gradient("z", |_, _| ());
    let error = model.run_with_hooks(PROMPT, hooks()).unwrap_err().to_string();
    assert!(error.contains("the hook on the gradient at `blocks.0.attn.hook_z` cannot act"), "{error}");
    let error = failure(&model, RunOptions::new().hooks(Hooks::new().observe_gradient("hook_tokens", |_, _| ())));
    assert!(error.to_string().contains("whole numbers have no gradient"), "{error}");
    let error = failure(&model, RunOptions::new().cache("z").budget(1 << 30));
    assert!(error.to_string().contains("gradients need the activations in memory"), "{error}");
    let error = model.jacobian(PROMPT, RunOptions::new().cache("z"), hook::z(0), hook::z(1)).unwrap_err();
    assert!(error.to_string().contains("a Jacobian keeps its two points"), "{error}");
    let error = model.jacobian(PROMPT, RunOptions::new(), hook::z(0), hook::tokens()).unwrap_err();
    assert!(error.to_string().contains("holds whole numbers"), "{error}");
    let jacobian = model.jacobian(PROMPT, RunOptions::new(), hook::z(1), hook::z(0)).unwrap();
    let wrong = Tensor::zeros([2, 3], (Kind::Float, tch::Device::Cpu));
    let error = jacobian.jvp(&wrong).unwrap_err().to_string();
    assert!(
        error.contains("the vector for `blocks.0.attn.hook_z` has shape [2, 3], expected [1, 9, 4, 32]"),
        "{error}"
    );
    assert!(jacobian.vjp(&wrong).is_err());
}
