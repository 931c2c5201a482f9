//! [`ResidualStack`]: contributions to the residual stream, each with its name.

use tch::{Kind, Tensor};

use super::answer::Answer;
use super::attribution::Attribution;
use super::frozen_norm::FrozenNorm;
use super::interventions;
use super::labelled::{Additive, LabelledTensor, Quantity};
use crate::component::Target;
use crate::tensor::columns::Columns;
use crate::{Error, Result};

/// Contributions to the residual stream: a tensor `[component, batch, pos, d_model]` that knows its rows, its axes, what it adds up to,
/// and the cache that it is of.
///
/// ```
/// use tch_lens::{analysis::{Component, DecomposeOptions}, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
/// let stack = cache.decompose_resid(DecomposeOptions::new())?; // [component, batch, pos, d_model]
/// assert_eq!(stack.labels()[..3], ["embed", "pos_embed", "0_attn_out"]);
/// let attn = stack.row(&Component::AttnOut(0))?; // [batch, pos, d_model]
/// assert_eq!(attn, cache["blocks.0.hook_attn_out"]);
/// let attrs = stack.logit_attrs(" Mary")?; // [component, batch, pos]
/// assert!(attrs.residual_error()? < 1e-4);
/// # Ok::<(), tch_lens::Error>(())
/// ```
pub type ResidualStack = LabelledTensor<Contributions>;

/// What the values of a [`ResidualStack`] are: what rows have written to the stream, or that projected.
#[derive(Debug)]
pub struct Contributions {
    target: Target,
    normalized: bool,
    /// The rows add up to the stream at the target, or, normalised, to what the target reads.
    complete: bool,
    /// What the rows were projected onto; absent where the last axis is `d_model`.
    directions: Option<Tensor>,
}

impl Contributions {
    /// Rows of the stream.
    pub(crate) fn of_stream(target: Target, complete: bool) -> Self {
        Contributions { target, normalized: false, complete, directions: None }
    }

    /// The same rows, projected.
    pub(crate) fn projected(self, directions: Tensor, normalized: bool) -> Self {
        Contributions { directions: Some(directions), normalized, ..self }
    }

    fn handle(&self) -> Self {
        Contributions { directions: self.directions.as_ref().map(Tensor::shallow_clone), ..*self }
    }
}

impl Quantity for Contributions {
    fn narrowed(&self, _axis: usize, _places: &Columns) -> Result<Self> {
        Ok(self.handle())
    }

    fn averaged(&self, _axis: usize) -> Result<Self> {
        Ok(self.handle())
    }

    fn of_rows(&self, all: bool) -> Result<Self> {
        Ok(Contributions { complete: self.complete && all, ..self.handle() })
    }

    /// The length of each row.
    fn cells(stack: &ResidualStack) -> Result<Vec<String>> {
        let squares = stack.values().f_square()?.f_sum_dim_intlist([3i64].as_slice(), false, Kind::Double)?;
        let lengths = Vec::<f64>::try_from(squares.f_sqrt()?.f_reshape(-1)?)?;
        Ok(lengths.into_iter().map(|length| format!("{length:.3}")).collect())
    }
}

impl Additive for Contributions {}

impl ResidualStack {
    /// What the rows add up to.
    pub fn target(&self) -> Target {
        self.quantity().target
    }

    /// Whether the rows have passed through the target's norm.
    pub fn is_normalized(&self) -> bool {
        self.quantity().normalized
    }

    /// Whether the rows are of the stream, and not projected.
    pub(crate) fn is_of_stream(&self) -> bool {
        self.quantity().directions.is_none()
    }

    /// Whether the rows add up to the stream at the target, or, normalised, to what the target reads.
    pub(crate) fn is_complete(&self) -> bool {
        self.quantity().complete
    }

    /// The sum of the rows, in fp32 or better: `[batch, pos, d_model]`.
    ///
    /// # Errors
    ///
    /// Those of libtorch.
    pub fn sum(&self) -> Result<Tensor> {
        let sum = self.values().f_sum_dim_intlist([0i64].as_slice(), true, None)?;
        Ok(self.without_dropped_axes(&sum)?.f_squeeze_dim(0)?)
    }

    /// The rows of both, of the same run, target and window.
    ///
    /// # Errors
    ///
    /// [`Error::OtherRun`]; [`Error::OtherWindow`] where they are of other batch rows or positions; [`Error::WrongInput`] where they are of
    /// different targets, only one is normalised, or they are projected onto different directions.
    pub fn concat(&self, other: &Self) -> Result<Self> {
        let (ours, theirs) = (self.quantity(), other.quantity());
        if self.target() != other.target() || self.is_normalized() != other.is_normalized() {
            let normalized = |stack: &Self| if stack.is_normalized() { ", normalised" } else { "" };
            return Err(Error::wrong_input(format!(
                "stacks can be joined where both add up to the same input, normalised or not: one is of {}{}, the other of {}{}",
                self.target(),
                normalized(self),
                other.target(),
                normalized(other),
            )));
        }
        if !self.cache().is_of_run(other.cache()) {
            return Err(Error::OtherRun { what: "the stacks", hint: "make both of one cache" });
        }
        if !self.window().is_of_the_same(other.window(), [self.cache(), other.cache()]) {
            return Err(Error::OtherWindow {
                ours: self.positions().to_string(),
                theirs: other.positions().to_string(),
            });
        }
        let same = match (&ours.directions, &theirs.directions) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => ours.size() == theirs.size() && ours.f_equal(theirs)?,
            _ => false,
        };
        if !same {
            return Err(Error::wrong_input(
                "stacks can be joined where both are projected onto the same directions, or neither is",
            ));
        }
        let values = Tensor::f_cat(&[self.values(), other.values()], 0)?;
        let components = self.rows().iter().chain(other.rows()).cloned().collect();
        self.with_rows(super::recipe::RowValues { components, values }, false)
    }

    /// Passes each row through the linear part of the target's norm, at the scale that it had in the run: TransformerLens'
    /// `apply_ln_to_stack`.
    ///
    /// `(x − mean) / scale · w` of a layer norm, `x / scale · w` of a root-mean-square one. The norm's bias is no part of any row. Where
    /// a hook changed what the target reads after the stream, the rest of a whole decomposition is its row `intervention`.
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`] and [`Error::NoPosition`] where the run did not keep the scale; [`Error::HeadsReadApart`];
    /// [`Error::WrongInput`] where the stack is normalised, projected or averaged already.
    pub fn apply_ln(&self) -> Result<Self> {
        if self.is_normalized() || !self.is_of_stream() {
            let what = if self.is_normalized() { "has passed through a norm already" } else { "is projected already" };
            return Err(Error::wrong_input(format!("apply_ln needs rows of the stream, but the stack {what}")));
        }
        self.window().refuse_average("apply_ln")?;
        let view = self.view();
        let norm = FrozenNorm::of_run(self.model().norm_before(self.target())?, &view)?;
        let mut rows = self.row_values(norm.apply(self.values())?);
        if self.is_complete()
            && let Some(reading) = interventions::changed_reading(&view, self.target())?
        {
            let stream = view.stream(&self.target().reach(self.model().config())?)?;
            rows.intervene(&reading.f_sub(&norm.apply(&stream)?)?)?;
        }
        self.normalized(rows)
    }

    /// The same rows, normalised.
    pub(crate) fn normalized(&self, rows: super::recipe::RowValues) -> Result<Self> {
        let quantity = Contributions { normalized: true, ..self.quantity().handle() };
        Ok(LabelledTensor::new(rows, self.cache().clone(), self.window().clone(), true, quantity))
    }

    /// How much each row adds to the answer's logit: [`ActivationCache::logit_attrs`](crate::ActivationCache::logit_attrs) of this
    /// stack.
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::logit_attrs`](crate::ActivationCache::logit_attrs).
    pub fn logit_attrs(&self, answer: impl Into<Answer>) -> Result<Attribution> {
        super::attribution::of_stack(self, &answer.into())
    }
}
