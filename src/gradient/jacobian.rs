//! [`Jacobian`]: how one activation changes with another.

use tch::Tensor;

use crate::hook::{HookName, HookPoint};
use crate::run::Order;
use crate::text::input::Input;
use crate::{autodiff, Error, HookedTransformer, Result, RunOptions};

/// The derivative of one activation of a run with respect to another one, without the matrix: its products with vectors.
///
/// Made by [`HookedTransformer::jacobian`]. It keeps what the run recorded, so one run serves many products.
#[derive(Debug)]
pub struct Jacobian {
    of: (HookPoint, Tensor),
    at: (HookPoint, Tensor),
}

impl HookedTransformer {
    /// The derivative of the activation `of` with respect to the activation `at`, in a run with these settings.
    ///
    /// ```
    /// use tch_lens::{hook, HookedTransformer, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let jacobian = model.jacobian("When Mary and John", RunOptions::new(), hook::resid_post(2), hook::resid_pre(2))?;
    /// let direction = jacobian.at().randn_like();
    /// let moved = jacobian.jvp(&direction)?; // by how much `of` moves with `at` in this direction
    /// let covector = jacobian.of().randn_like();
    /// let pulled = jacobian.vjp(&covector)?; // the gradient of `(of * covector).sum()` at `at`
    /// let (left, right) = ((moved * covector).sum(None), (pulled * direction).sum(None));
    /// assert!((left.double_value(&[]) - right.double_value(&[])).abs() < 1e-2);
    /// # use tch_lens::tch;
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`]; [`Error::Setting`] with [`RunOptions::cache`], as the two points are what is kept.
    pub fn jacobian(
        &self,
        input: impl Into<Input>,
        run: RunOptions<'_>,
        of: impl HookName,
        at: impl HookName,
    ) -> Result<Jacobian> {
        if run.keeps_activations() {
            return Err(Error::setting("cache", "the run's `cache` cannot be used: a Jacobian keeps its two points"));
        }
        let (of, at) = (of.resolve(self.config())?, at.resolve(self.config())?);
        let _recording = autodiff(true);
        let (output, _) = self.run_recorded(input.into(), run.cache([of, at]).differentiable(Order::Twice))?;
        let kept = |point: HookPoint| -> Result<(HookPoint, Tensor)> {
            let tensor = output.cache.get(point)?.shallow_clone();
            match tensor.requires_grad() {
                true => Ok((point, tensor)),
                false => Err(Error::wrong_input(format!("`{point}` holds whole numbers, which have no derivative"))),
            }
        };
        Ok(Jacobian { of: kept(of)?, at: kept(at)? })
    }
}

impl Jacobian {
    /// The activation that is differentiated.
    pub fn of(&self) -> Tensor {
        self.of.1.detach()
    }

    /// The activation with respect to which it is differentiated.
    pub fn at(&self) -> Tensor {
        self.at.1.detach()
    }

    /// The product from the left, `vᵀ J`: the gradient of `(of · vector).sum()` with respect to `at`, in its shape. By one backward pass.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] where the vector does not have the shape of `of`.
    pub fn vjp(&self, vector: &Tensor) -> Result<Tensor> {
        let _recording = autodiff(true);
        let vector = like(vector, &self.of)?;
        self.pulled(&vector, false)
    }

    /// The product from the right, `J u`: by how much `of` moves, to first order, where `at` moves by `tangent`, in the shape of `of`. By
    /// two backward passes, of which the second goes through the first.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] where the tangent does not have the shape of `at`.
    pub fn jvp(&self, tangent: &Tensor) -> Result<Tensor> {
        let _recording = autodiff(true);
        let tangent = like(tangent, &self.at)?;
        // `vᵀ J u` is linear in `v`, so its gradient there is `J u`, whatever `v` is.
        let v = self.of.1.f_detach()?.f_zeros_like()?.f_set_requires_grad(true)?;
        let pulled = self.pulled(&v, true)?;
        if !pulled.requires_grad() {
            return Ok(v.f_detach()?);
        }
        let product = pulled.f_mul(&tangent)?.f_sum(pulled.f_kind()?)?;
        let gradient = Tensor::f_run_backward(&[product], &[&v], true, false)?.remove(0);
        if gradient.defined() {
            Ok(gradient)
        } else {
            Ok(v.f_detach()?)
        }
    }

    /// `vᵀ J`; zeros where `of` does not depend on `at`.
    fn pulled(&self, v: &Tensor, create_graph: bool) -> Result<Tensor> {
        // Masked scores are −∞, and stay so.
        let of = &self.of.1;
        let finite = of.f_where_self(&of.f_isfinite()?, &of.f_detach()?.f_zeros_like()?)?;
        let product = finite.f_mul(v)?.f_sum(of.f_kind()?)?;
        let gradient = Tensor::f_run_backward(&[product], &[&self.at.1], true, create_graph)?.remove(0);
        if gradient.defined() {
            Ok(gradient)
        } else {
            Ok(self.at.1.f_detach()?.f_zeros_like()?)
        }
    }
}

/// The vector in the kind and on the device of an activation, whose shape it must have.
fn like(vector: &Tensor, (point, activation): &(HookPoint, Tensor)) -> Result<Tensor> {
    let (found, expected) = (vector.size(), activation.size());
    if found != expected {
        let what = format!("the vector for `{point}`");
        return Err(Error::Shape { what, found, expected: format!("{expected:?}, as the activation") });
    }
    Ok(vector.f_detach()?.f_to_device(activation.device())?.f_to_kind(activation.f_kind()?)?)
}
