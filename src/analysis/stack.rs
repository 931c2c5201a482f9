//! [`ResidualStack`]: contributions to the residual stream, each with its name.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::frozen_norm::FrozenNorm;
use super::window::Window;
use crate::component::{Component, Target};
use crate::{Error, Result};

/// Contributions to the residual stream: a tensor that knows its rows, its axes, and what it adds up to.
///
/// ```
/// use tch_lens::{analysis::{Component, Decompose}, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
/// let stack = cache.decompose_resid(Decompose::default())?; // [component, batch, pos, d_model]
/// assert_eq!(stack.labels()[..3], ["embed", "pos_embed", "0_attn_out"]);
/// let attn = stack.row(&Component::AttnOut(0))?; // [batch, pos, d_model]
/// assert_eq!(attn, cache["blocks.0.hook_attn_out"]);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Debug)]
pub struct ResidualStack {
    /// `[component, batch, pos, d_model or directions]`, with axes of length one where there are none.
    full: Tensor,
    rows: Vec<Component>,
    target: Target,
    norm: SharedNorm,
    normed: bool,
    window: Window,
    /// Which axes there are to be seen: batch, position, and the last one.
    axes: (bool, bool, bool),
    /// The last axis is `d_model`.
    pub(crate) is_stream: bool,
}

/// The target's norm, or the sentence that says why it is not to be had.
pub(crate) type SharedNorm = Arc<Result<FrozenNorm, String>>;

/// What a stack is made of.
pub(crate) struct Parts {
    pub(crate) full: Tensor,
    pub(crate) rows: Vec<Component>,
    pub(crate) target: Target,
    pub(crate) norm: SharedNorm,
    pub(crate) axes: (bool, bool),
    pub(crate) window: Window,
}

impl ResidualStack {
    /// Rows of the stream: `[component, batch, pos, d_model]`.
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { full, rows, target, norm, axes: (batch, pos), window } = parts;
        let axes = (batch, pos, true);
        ResidualStack { full, rows, target, norm, normed: false, window, axes, is_stream: true }
    }

    /// Rows that were projected already: `[component, batch, pos, k]`.
    pub(crate) fn projected(parts: Parts, normed: bool, keeps_last: bool) -> Self {
        let mut stack = Self::new(parts);
        stack.normed = normed;
        stack.is_stream = false;
        stack.axes.2 = keeps_last;
        stack
    }

    /// The bare tensor: `[component, batch, pos, d_model]`, without the axes that were sliced off; of a projected stack, `k` in
    /// `d_model`'s place.
    pub fn tensor(&self) -> Tensor {
        self.seen(&self.full)
    }

    /// What each row is.
    pub fn rows(&self) -> &[Component] {
        &self.rows
    }

    /// The rows' labels, TransformerLens' own.
    pub fn labels(&self) -> Vec<String> {
        self.rows.iter().map(ToString::to_string).collect()
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// What the rows add up to.
    pub fn target(&self) -> Target {
        self.target
    }

    /// Whether the rows have passed through the target's norm.
    pub fn is_normalized(&self) -> bool {
        self.normed
    }

    /// The sum of the rows, in fp32 or better: `[batch, pos, d_model]`.
    ///
    /// # Errors
    ///
    /// libtorch's.
    pub fn sum(&self) -> Result<Tensor> {
        let sum = self.full.f_sum_dim_intlist([0i64].as_slice(), true, None)?;
        Ok(self.seen(&sum).f_squeeze_dim(0)?)
    }

    /// One row: `[batch, pos, d_model]`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where the stack has no such row.
    pub fn row(&self, component: &Component) -> Result<Tensor> {
        let index = self.rows.iter().position(|row| row == component);
        let index = index.ok_or_else(|| self.no_row(&component.to_string()))?;
        Ok(self.tensor().f_select(0, index as i64)?)
    }

    /// One row by its label: `[batch, pos, d_model]`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where the stack has no such row.
    pub fn labelled(&self, label: &str) -> Result<Tensor> {
        let row = self.rows.iter().find(|row| row.to_string() == label).ok_or_else(|| self.no_row(label))?;
        self.row(row)
    }

    fn no_row(&self, label: &str) -> Error {
        let some: Vec<String> = self.rows.iter().take(4).map(|row| format!("`{row}`")).collect();
        let dots = if self.rows.len() > 4 { ", …" } else { "" };
        Error::invalid(format!("the stack has no row `{label}`; its {} rows are {}{dots}", self.len(), some.join(", ")))
    }

    /// The rows for which `keep` holds.
    ///
    /// # Errors
    ///
    /// [`Error::NothingSelected`] where it holds for none.
    pub fn select(&self, keep: impl Fn(&Component) -> bool) -> Result<Self> {
        let kept: Vec<i64> = (0..self.len()).filter(|i| keep(&self.rows[*i])).map(|i| i as i64).collect();
        if kept.is_empty() {
            return Err(Error::NothingSelected { what: "the selection of rows".into(), hint: String::new() });
        }
        let full = self.full.f_index_select(0, &Tensor::f_from_slice(&kept)?.f_to_device(self.full.device())?)?;
        let rows = kept.iter().map(|i| self.rows[*i as usize].clone()).collect();
        Ok(self.with(full, rows))
    }

    /// Sums of the rows that `key` gives the same name, in the order in which names first appear; rows without one stay as they are.
    ///
    /// ```
    /// # use tch_lens::{analysis::{Component, Heads}, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let heads = cache.stack_head_results(Heads::default())?;
    /// let by_parity = heads.group_by(|row| match row {
    ///     Component::Head { head, .. } if head % 2 == 0 => Some("even heads"),
    ///     Component::Head { .. } => Some("odd heads"),
    ///     _ => None,
    /// })?;
    /// assert_eq!(by_parity.labels(), ["even heads", "odd heads"]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// libtorch's.
    pub fn group_by<K: fmt::Display>(&self, key: impl Fn(&Component) -> Option<K>) -> Result<Self> {
        let (rows, group_of) = group(&self.rows, key);
        let full = sum_groups(&self.full, &group_of, rows.len())?;
        Ok(self.with(full, rows))
    }

    /// Heads and neurons summed by layer: rows `L0 heads`, `L0 neurons`, …; the others stay as they are.
    ///
    /// # Errors
    ///
    /// libtorch's.
    pub fn by_layer(&self) -> Result<Self> {
        self.group_by(layer_name)
    }

    /// The rows of both, of the same target and window.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where they are of different targets, or only one is normalised; [`Error::Shape`].
    pub fn concat(&self, other: &Self) -> Result<Self> {
        if self.target != other.target || self.normed != other.normed {
            return Err(Error::invalid(format!(
                "stacks can be joined where both add up to the same input, normalised or not: one is of {}{}, the other of {}{}",
                self.target,
                if self.normed { ", normalised" } else { "" },
                other.target,
                if other.normed { ", normalised" } else { "" },
            )));
        }
        if self.full.size()[1..] != other.full.size()[1..] {
            return Err(Error::Shape {
                what: "the other stack".into(),
                found: other.full.size(),
                expected: format!("rows of {:?}", &self.full.size()[1..]),
            });
        }
        let full = Tensor::f_cat(&[&self.full, &other.full], 0)?;
        let rows = self.rows.iter().chain(&other.rows).cloned().collect();
        Ok(self.with(full, rows))
    }

    /// Passes each row through the linear part of the target's norm, at the scale that it had in the run: TransformerLens'
    /// `apply_ln_to_stack`.
    ///
    /// `(x − mean) / scale · w` of a layer norm, `x / scale · w` of a root-mean-square one. The norm's bias is no part of any row.
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`]-like where the run did not keep the scale; [`Error::Invalid`] where the stack has been normalised or projected.
    pub fn apply_ln(&self) -> Result<Self> {
        if self.normed || !self.is_stream {
            let what = if self.normed { "has passed through a norm already" } else { "is projected already" };
            return Err(Error::invalid(format!("apply_ln needs rows of the stream, but the stack {what}")));
        }
        let norm = self.norm()?;
        let mut stack = self.with(norm.apply(&self.full)?, self.rows.clone());
        stack.normed = true;
        Ok(stack)
    }

    /// The same rows, normalised in another way.
    pub(crate) fn map_normed(&self, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let mut stack = self.with(f(&self.full)?, self.rows.clone());
        stack.normed = true;
        Ok(stack)
    }

    fn norm(&self) -> Result<&FrozenNorm> {
        self.norm.as_ref().as_ref().map_err(|sentence| Error::invalid(sentence.clone()))
    }

    /// `[component, batch, pos, last]`, whatever axes are to be seen.
    pub(crate) fn full(&self) -> &Tensor {
        &self.full
    }

    pub(crate) fn shared_norm(&self) -> SharedNorm {
        self.norm.clone()
    }

    /// The rows of the batch and the positions that it was made of.
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    fn seen(&self, full: &Tensor) -> Tensor {
        let mut seen = full.shallow_clone();
        for (axis, there) in [(3, self.axes.2), (2, self.axes.1), (1, self.axes.0)] {
            if !there {
                seen = seen.squeeze_dim(axis);
            }
        }
        seen
    }

    fn with(&self, full: Tensor, rows: Vec<Component>) -> Self {
        ResidualStack {
            full,
            rows,
            target: self.target,
            norm: self.norm.clone(),
            normed: self.normed,
            window: self.window.clone(),
            axes: self.axes,
            is_stream: self.is_stream,
        }
    }
}

/// The name under which a head or neuron is summed by layer.
pub(crate) fn layer_name(row: &Component) -> Option<String> {
    match row {
        Component::Head { layer, .. } => Some(format!("L{layer} heads")),
        Component::Neuron { layer, .. } | Component::ExpertNeuron { layer, .. } => Some(format!("L{layer} neurons")),
        _ => None,
    }
}

/// The rows after grouping, and which of them each row goes to.
pub(crate) fn group<K: fmt::Display>(
    rows: &[Component],
    key: impl Fn(&Component) -> Option<K>,
) -> (Vec<Component>, Vec<i64>) {
    let mut groups: Vec<Component> = Vec::new();
    let mut index: HashMap<Component, usize> = HashMap::new();
    let mut group_of = Vec::with_capacity(rows.len());
    for row in rows {
        let named = match key(row) {
            Some(name) => Component::Group(name.to_string().into()),
            None => row.clone(),
        };
        let next = groups.len();
        let at = *index.entry(named.clone()).or_insert(next);
        if at == next {
            groups.push(named);
        }
        group_of.push(at as i64);
    }
    (groups, group_of)
}

/// Sums of the rows that go to each of `n` groups.
pub(crate) fn sum_groups(rows: &Tensor, group_of: &[i64], n: usize) -> Result<Tensor> {
    let mut size = rows.size();
    size[0] = n as i64;
    let kind: Kind = rows.f_kind()?;
    let zeros = Tensor::f_zeros(size, (kind, rows.device()))?;
    Ok(zeros.f_index_add(0, &Tensor::f_from_slice(group_of)?.f_to_device(rows.device())?, rows)?)
}
