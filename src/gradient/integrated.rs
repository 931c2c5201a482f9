//! Integrated gradients: a difference of a metric, shared out among the entries of an activation.

use std::f64::consts::PI;

use tch::{Kind, Tensor};

use crate::hook::{HookName, HookPoint};
use crate::metric::Metric;
use crate::run::{BackwardRules, Hooks, Patch, PatchValue};
use crate::tensor::scalar::Scalar;
use crate::text::input::{Input, Tokens};
use crate::text::tokenizer::Tokenizer;
use crate::{Error, HookedTransformer, Result, RunOptions, TokenizerError};

/// The points between baseline and activation at which an integral is evaluated, and their weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quadrature {
    /// Gauss–Legendre: exact for polynomials up to degree `2 · steps − 1`.
    #[default]
    GaussLegendre,
    /// `0, 1/n, …, (n − 1)/n`, equally weighted.
    Left,
    /// The middles of `n` equal intervals, equally weighted.
    Middle,
    /// `1/n, 2/n, …, 1`, equally weighted.
    Right,
    /// `0, 1/(n − 1), …, 1`, the ends with half of the weight.
    Trapezoid,
}

impl Quadrature {
    /// The points in `[0, 1]` and their weights, which sum to one.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] without steps, and for a trapezoid of one.
    pub fn points(self, steps: usize) -> Result<Vec<(f64, f64)>> {
        let least = if self == Quadrature::Trapezoid { 2 } else { 1 };
        if steps < least {
            return Err(Error::option_value("steps", steps, format!("this rule needs at least {least}")));
        }
        let n = steps as f64;
        let even = |shift: f64| (0..steps).map(|i| ((i as f64 + shift) / n, 1.0 / n)).collect();
        Ok(match self {
            Quadrature::GaussLegendre => gauss_legendre(steps),
            Quadrature::Left => even(0.0),
            Quadrature::Middle => even(0.5),
            Quadrature::Right => even(1.0),
            Quadrature::Trapezoid => {
                let weight = |i: usize| if i == 0 || i == steps - 1 { 0.5 } else { 1.0 };
                (0..steps).map(|i| (i as f64 / (n - 1.0), weight(i) / (n - 1.0))).collect()
            }
        })
    }
}

/// The roots of the Legendre polynomial of degree `n`, by Newton's method, and their weights, from `[−1, 1]` to `[0, 1]`.
fn gauss_legendre(n: usize) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = (0..n)
        .map(|i| {
            let mut x = (PI * (i as f64 + 0.75) / (n as f64 + 0.5)).cos();
            let mut slope = 1.0;
            for _ in 0..100 {
                let (mut before, mut value) = (1.0, x);
                for k in 2..=n {
                    let k = k as f64;
                    (before, value) = (value, ((2.0 * k - 1.0) * x * value - (k - 1.0) * before) / k);
                }
                slope = n as f64 * (x * value - before) / (x * x - 1.0);
                let step = value / slope;
                x -= step;
                if step.abs() < 1e-15 {
                    break;
                }
            }
            ((1.0 + x) / 2.0, 1.0 / ((1.0 - x * x) * slope * slope))
        })
        .collect();
    points.reverse();
    points
}

/// The settings of [`HookedTransformer::integrated_gradients`].
#[derive(Clone, Copy, Debug)]
pub struct IntegratedGradientsOptions {
    steps: usize,
    quadrature: Quadrature,
    rules: BackwardRules,
}

impl Default for IntegratedGradientsOptions {
    fn default() -> Self {
        IntegratedGradientsOptions { steps: 16, quadrature: Quadrature::default(), rules: BackwardRules::new() }
    }
}

impl IntegratedGradientsOptions {
    /// 16 steps of Gauss–Legendre.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many runs with gradients the integral takes.
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Where the integral is evaluated.
    pub fn quadrature(mut self, quadrature: Quadrature) -> Self {
        self.quadrature = quadrature;
        self
    }

    /// What the backward passes take for constant.
    pub fn backward_rules(mut self, rules: BackwardRules) -> Self {
        self.rules = rules;
        self
    }
}

/// The integrated gradients of a metric at a hook point (Sundararajan, Taly and Yan 2017).
///
/// Made by [`HookedTransformer::integrated_gradients`].
#[derive(Debug)]
pub struct IntegratedGradients {
    point: HookPoint,
    values: Tensor,
    metric: Tensor,
    baseline_metric: Tensor,
    tokens: Tokens,
    tokenizer: Option<Tokenizer>,
}

impl IntegratedGradients {
    /// The tokens of a row of the batch as text, padding included.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Missing`]; [`Error::NoBatchRow`].
    pub fn to_str_tokens(&self, row: usize) -> Result<Vec<String>> {
        str_tokens(&self.tokens, self.tokenizer.as_ref(), row)
    }

    /// The point.
    pub fn point(&self) -> HookPoint {
        self.point
    }

    /// The share of every entry of the activation, in its shape.
    pub fn tensor(&self) -> &Tensor {
        &self.values
    }

    /// The share of each position: `[batch, pos]`, the sum over all other axes.
    ///
    /// # Errors
    ///
    /// libtorch's own, where memory runs out.
    pub fn by_position(&self) -> Result<Tensor> {
        let axis = self.point.axes().position.map_or(1, |axis| axis as i64);
        Ok(self.values.f_movedim_int(axis, 1)?.f_flatten(2, -1)?.f_sum_dim_intlist([2i64].as_slice(), false, None)?)
    }

    /// The metric of each row in the run as it is: `[batch]`.
    pub fn metric(&self) -> &Tensor {
        &self.metric
    }

    /// The metric of each row in the run with the baseline at the point: `[batch]`.
    pub fn baseline_metric(&self) -> &Tensor {
        &self.baseline_metric
    }

    /// By how much the shares of a row do not sum to the difference of its metrics, `sum − (metric − baseline_metric)`: `[batch]`. Exact
    /// integrals sum to it; the error says whether there were enough steps.
    ///
    /// # Errors
    ///
    /// libtorch's own, where memory runs out.
    pub fn completeness_error(&self) -> Result<Tensor> {
        let sums = self.values.f_flatten(1, -1)?.f_sum_dim_intlist([1i64].as_slice(), false, None)?;
        Ok(sums.f_sub(&self.metric.f_sub(&self.baseline_metric)?)?)
    }
}

impl HookedTransformer {
    /// Shares out the difference that an activation makes to a metric, against a baseline in its place:
    /// `(x − x') ∫₀¹ ∂metric/∂x (x' + α (x − x')) dα`, entry by entry.
    ///
    /// The metric is that of each row ([`Metric::rows`]), so the shares of a row sum to its difference. The baseline is a number, or a tensor
    /// that broadcasts to the activation, such as that of a corrupted run.
    ///
    /// ```
    /// use tch_lens::{gradient::IntegratedGradientsOptions, hook, HookedTransformer, Metric};
    /// let model = HookedTransformer::toy()?;
    /// let (clean, corrupted) = ("When Mary and John went to the shop, John gave a bag to", "When Mary and John went to the shop, Mary gave a bag to");
    /// let (_, cache) = model.run_with_cache_of(corrupted, "hook_embed")?;
    /// let metric = Metric::logit_diff(" Mary", " John");
    /// let options = IntegratedGradientsOptions::new().steps(40);
    /// let shares = model.integrated_gradients(clean, hook::embed(), &cache["hook_embed"], &metric, options)?;
    /// assert!(shares.completeness_error()?.abs().max().double_value(&[]) < 0.05);
    /// let by_position = shares.by_position()?; // [batch, pos]: only the name that differs has a share
    /// assert_eq!(by_position.abs().argmax(-1, false).int64_value(&[0]), 10);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run_with_grad`] and [`Metric::rows`]; [`Error::Setting`] for steps; [`Error::WrongInput`] for an
    /// expert's point, whose rows depend on the run; [`Error::Patch`] for a baseline that does not broadcast.
    pub fn integrated_gradients(
        &self,
        input: impl Into<Input>,
        point: impl HookName,
        baseline: impl Into<PatchValue>,
        metric: &Metric<'_>,
        options: IntegratedGradientsOptions,
    ) -> Result<IntegratedGradients> {
        let point = point.resolve(self.config())?;
        if point.expert().is_some() {
            let why = format!("`{point}` has the rows that are routed to an expert, which are others in each run");
            return Err(Error::wrong_input(why));
        }
        let tokens = self.to_tokens(input)?;
        let plain = self.measured(&tokens, Hooks::new(), point, metric)?;
        let based = self.measured(&tokens, Hooks::new().patch(point, Patch::set(baseline.into())), point, metric)?;
        let difference = plain.activation.f_sub(&based.activation)?;
        let mut sum = difference.f_zeros_like()?;
        for (at, weight) in options.quadrature.points(options.steps)? {
            let between = based.activation.f_add(&difference.mul_number(at)?)?;
            let needs = metric.needs(self.config())?;
            let run = RunOptions::new()
                .cache([needs, vec![point]].concat())
                .hooks(Hooks::new().patch(point, Patch::set(between)))
                .backward_rules(options.rules);
            let scalar = |run: &crate::RunOutput| {
                let rows = metric.rows(run.logits()?, &run.cache)?;
                Ok(rows.f_sum(rows.f_kind()?)?)
            };
            let output = self.run_with_grad(&tokens, run, scalar)?;
            sum = sum.f_add(&output.gradients.get(point)?.mul_number(weight)?)?;
        }
        Ok(IntegratedGradients {
            point,
            values: difference.f_mul(&sum)?,
            metric: plain.metric,
            baseline_metric: based.metric,
            tokenizer: self.tokenizer().ok().cloned(),
            tokens,
        })
    }

    fn measured(&self, tokens: &Tokens, hooks: Hooks<'_>, point: HookPoint, metric: &Metric<'_>) -> Result<Measured> {
        let names = [metric.needs(self.config())?, vec![point]].concat();
        let output = self.run(tokens, RunOptions::new().cache(names).hooks(hooks))?;
        let activation = output.cache.get(point)?.shallow_clone();
        if activation.f_kind()? == Kind::Int64 {
            return Err(Error::wrong_input(format!("`{point}` holds whole numbers, which have no gradient")));
        }
        Ok(Measured { metric: metric.rows(output.logits()?, &output.cache)?, activation })
    }
}

/// The tokens of a row of a batch as text.
pub(super) fn str_tokens(tokens: &Tokens, tokenizer: Option<&Tokenizer>, row: usize) -> Result<Vec<String>> {
    let tokenizer = tokenizer.ok_or(TokenizerError::Missing)?;
    let rows = tokens.ids.size()[0];
    if row as i64 >= rows {
        return Err(Error::NoBatchRow { row: row as i64, held: format!("0 to {}", rows - 1) });
    }
    let ids = Vec::<i64>::try_from(tokens.ids.f_select(0, row as i64)?)?;
    Ok(ids.into_iter().map(|id| tokenizer.text_or_number(id)).collect())
}

/// A run's activation, and its metric of each row.
struct Measured {
    activation: Tensor,
    metric: Tensor,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_integrates_a_line_and_gauss_a_polynomial() {
        for rule in
            [Quadrature::GaussLegendre, Quadrature::Left, Quadrature::Middle, Quadrature::Right, Quadrature::Trapezoid]
        {
            for steps in 2..40 {
                let points = rule.points(steps).unwrap();
                assert_eq!(points.len(), steps);
                let integral = |f: fn(f64) -> f64| points.iter().map(|(x, w)| w * f(*x)).sum::<f64>();
                assert!((integral(|_| 1.0) - 1.0).abs() < 1e-13, "{rule:?}, {steps}");
                let bound = if matches!(rule, Quadrature::Left | Quadrature::Right) { 0.5 / steps as f64 } else { 0.0 };
                assert!((integral(|x| x) - 0.5).abs() < bound + 1e-13, "{rule:?}, {steps}");
            }
        }
        let points = Quadrature::GaussLegendre.points(5).unwrap();
        let integral: f64 = points.iter().map(|(x, w)| w * x.powi(9)).sum();
        assert!((integral - 0.1).abs() < 1e-14, "{integral}");
        assert!(Quadrature::Trapezoid.points(1).is_err() && Quadrature::Left.points(0).is_err());
    }
}
