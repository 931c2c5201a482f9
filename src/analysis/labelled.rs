//! [`LabelledTensor`]: values of rows, batch and positions that know what they are of. What stacks, attributions and lenses share.

use std::collections::HashMap;
use std::fmt;

use tch::Tensor;

use super::recipe::RowValues;
use super::window::{View, Window};
use crate::cache::ActivationCache;
use crate::component::Component;
use crate::model::Transformer;
use crate::tensor::columns::Columns;
use crate::tensor::slice::Slice;
use crate::text::positions::Positions;
use crate::{Error, Result};

/// Values with named rows, of rows of the batch and positions of one run.
///
/// Three kinds of values share it: [`ResidualStack`](super::ResidualStack), [`Attribution`](super::Attribution) and
/// [`LogitLens`](super::LogitLens). Each carries the cache that it is of, and prints as a table.
#[derive(Debug)]
pub struct LabelledTensor<Q> {
    /// `[row, batch, pos, last]`, with axes of length one where the result has none.
    values: Tensor,
    rows: Vec<Component>,
    cache: ActivationCache,
    window: Window,
    has_last_axis: bool,
    quantity: Q,
}

/// What the values of a [`LabelledTensor`] are, with what goes with them.
pub trait Quantity: Sized {
    /// The same of the entries at these places of an axis: 0 for the batch, 1 for positions.
    #[doc(hidden)]
    fn narrowed(&self, axis: usize, places: &Columns) -> Result<Self>;
    /// The same once an axis, 0 for the batch and 1 for positions, is averaged.
    #[doc(hidden)]
    fn averaged(&self, axis: usize) -> Result<Self>;
    /// The same of other rows: some of those that there were, or sums of all of them.
    #[doc(hidden)]
    fn of_rows(&self, all: bool) -> Result<Self>;
    /// A cell of a table for each row, batch row and position, in this order.
    #[doc(hidden)]
    fn cells(values: &LabelledTensor<Self>) -> Result<Vec<String>>;
}

/// Quantities whose rows, batch rows and positions may be added up and averaged.
pub trait Additive: Quantity {}

impl<Q: Quantity> LabelledTensor<Q> {
    pub(crate) fn new(
        RowValues { components, values }: RowValues,
        cache: ActivationCache,
        window: Window,
        has_last_axis: bool,
        quantity: Q,
    ) -> Self {
        LabelledTensor { values, rows: components, cache, window, has_last_axis, quantity }
    }

    /// The bare tensor, `[row, batch, pos, …]`, without the axes that were sliced off or averaged.
    pub fn tensor(&self) -> Tensor {
        // Axes of length one go, which cannot fail.
        self.without_dropped_axes(&self.values).unwrap_or_else(|_| self.values.shallow_clone())
    }

    /// What each row is.
    pub fn rows(&self) -> &[Component] {
        &self.rows
    }

    /// The rows' labels, those of TransformerLens.
    pub fn labels(&self) -> Vec<String> {
        self.rows.iter().map(ToString::to_string).collect()
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The token columns that the values are of.
    pub fn positions(&self) -> &Columns {
        self.window.columns()
    }

    /// The cache that the values are of.
    pub fn cache(&self) -> &ActivationCache {
        &self.cache
    }

    /// One row: `[batch, pos, …]`.
    ///
    /// # Errors
    ///
    /// [`Error::NoRow`].
    pub fn row(&self, component: &Component) -> Result<Tensor> {
        let index = self.rows.iter().position(|row| row == component);
        let index = index.ok_or_else(|| self.no_row(&component.to_string()))?;
        Ok(self.tensor().f_select(0, index as i64)?)
    }

    /// One row by its label: `[batch, pos, …]`.
    ///
    /// # Errors
    ///
    /// [`Error::NoRow`].
    pub fn labelled(&self, label: &str) -> Result<Tensor> {
        let row = self.rows.iter().find(|row| row.to_string() == label).ok_or_else(|| self.no_row(label))?;
        self.row(row)
    }

    fn no_row(&self, label: &str) -> Error {
        let some: Vec<String> = self.rows.iter().take(4).map(|row| format!("`{row}`")).collect();
        let dots = if self.rows.len() > 4 { ", …" } else { "" };
        Error::NoRow { label: label.into(), count: self.rows.len(), rows: format!("{}{dots}", some.join(", ")) }
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
        let values = self.values.f_index_select(0, &Tensor::f_from_slice(&kept)?.f_to_device(self.values.device())?)?;
        let components = kept.iter().map(|i| self.rows[*i as usize].clone()).collect();
        self.with_rows(RowValues { components, values }, kept.len() == self.len())
    }

    /// Some positions, as token columns, of those that the values are of; an index drops the axis.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`], [`Error::NoPosition`], [`Error::PaddingChosen`]; [`Error::NoAxis`] where there is no such axis any
    /// more.
    pub fn pos(&self, positions: impl Into<Positions>) -> Result<Self> {
        let (window, places) = self.window.narrowed_pos(&positions.into(), &self.cache)?;
        self.narrowed(window, 1, &places)
    }

    /// Some rows of the batch, by their numbers in the cache, of those that the values are of; an index drops the axis.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`], [`Error::NoBatchRow`]; [`Error::NoAxis`] where there is no such axis any more.
    pub fn batch(&self, rows: impl Into<Slice>) -> Result<Self> {
        let (window, places) = self.window.narrowed_batch(&rows.into(), &self.cache)?;
        self.narrowed(window, 0, &places)
    }

    fn narrowed(&self, window: Window, axis: usize, places: &Columns) -> Result<Self> {
        let by_batch = self.values.f_movedim_int(0, 2)?; // [batch, pos, row, last]
        let values = places.select(&by_batch, axis as i64)?.f_movedim_int(2, 0)?;
        Ok(LabelledTensor {
            values,
            rows: self.rows.clone(),
            cache: self.cache.clone(),
            window,
            has_last_axis: self.has_last_axis,
            quantity: self.quantity.narrowed(axis, places)?,
        })
    }

    // --- what the quantities build on -------------------------------------------------------------

    pub(crate) fn quantity(&self) -> &Q {
        &self.quantity
    }

    /// `[row, batch, pos, last]`, whatever axes the result has.
    pub(crate) fn values(&self) -> &Tensor {
        &self.values
    }

    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    pub(crate) fn view(&self) -> View<'_> {
        View::new(&self.cache, &self.window)
    }

    pub(crate) fn model(&self) -> &Transformer {
        self.cache.model()
    }

    /// The values of one position and batch row, `[row, last]`; an error where there are several.
    pub(crate) fn of_one_position(&self, what: &str) -> Result<Tensor> {
        let size = self.values.size();
        if size[1] * size[2] != 1 {
            return Err(Error::SeveralPositions { what: what.into(), positions: size[2], rows: size[1] });
        }
        Ok(self.values.f_view([size[0], size[3]])?)
    }

    /// `[row, batch, pos, last]` without the axes that the result does not have.
    pub(crate) fn without_dropped_axes(&self, values: &Tensor) -> Result<Tensor> {
        let values = if self.has_last_axis { values.shallow_clone() } else { values.f_squeeze_dim(3)? };
        self.window.drop_axes(&values)
    }

    /// Other rows of the same window.
    pub(crate) fn with_rows(&self, rows: RowValues, all: bool) -> Result<Self> {
        let quantity = self.quantity.of_rows(all)?;
        Ok(LabelledTensor::new(rows, self.cache.clone(), self.window.clone(), self.has_last_axis, quantity))
    }

    /// The same rows with other values.
    pub(crate) fn row_values(&self, values: Tensor) -> RowValues {
        RowValues { components: self.rows.clone(), values }
    }
}

impl<Q: Additive> LabelledTensor<Q> {
    /// Sums of the rows that `key` gives the same name, in the order in which names first appear; rows without one stay as they are.
    ///
    /// ```
    /// # use tch_lens::{analysis::{Component, HeadOptions}, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let heads = cache.stack_head_results(HeadOptions::default())?;
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
    /// Those of libtorch.
    pub fn group_by<K: fmt::Display>(&self, key: impl Fn(&Component) -> Option<K>) -> Result<Self> {
        let (components, group_of) = group(&self.rows, key);
        let mut size = self.values.size();
        size[0] = components.len() as i64;
        let zeros = Tensor::f_zeros(size, (self.values.f_kind()?, self.values.device()))?;
        let index = Tensor::f_from_slice(&group_of)?.f_to_device(self.values.device())?;
        let values = zeros.f_index_add(0, &index, &self.values)?;
        self.with_rows(RowValues { components, values }, true)
    }

    /// Heads and neurons summed by layer: rows `L0 heads`, `L0 neurons`, …; the others stay as they are.
    ///
    /// # Errors
    ///
    /// Those of libtorch.
    pub fn by_layer(&self) -> Result<Self> {
        self.group_by(|row| match row {
            Component::Head { layer, .. } => Some(format!("L{layer} heads")),
            Component::Neuron { layer, .. } | Component::ExpertNeuron { layer, .. } => {
                Some(format!("L{layer} neurons"))
            }
            _ => None,
        })
    }

    /// The mean over the rows of the batch, whose axis goes.
    ///
    /// ```
    /// # use tch_lens::{analysis::HeadOptions, Answer, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// let prompts = ["When Mary and John went to the shop, John gave a bag to", "When Mary and John went to the shop, Mary gave a bag to"];
    /// let (_, cache) = model.run_with_cache(prompts)?;
    /// let answers = Answer::per_row_texts([" Mary", " John"]).versus(Answer::per_row_texts([" John", " Mary"]));
    /// let mean = cache.logit_attrs(HeadOptions::new().pos(-1), answers)?.mean_batch()?;
    /// println!("{}", mean.top(3)?);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::PaddingChosen`] where padding would count; [`Error::NoAxis`] where there is no such axis any more.
    pub fn mean_batch(&self) -> Result<Self> {
        self.averaged(self.window.averaged_batch(&self.cache)?, 0)
    }

    /// The mean over the positions, whose axis goes.
    ///
    /// # Errors
    ///
    /// [`Error::PaddingChosen`] where padding would count; [`Error::NoAxis`] where there is no such axis any more.
    pub fn mean_pos(&self) -> Result<Self> {
        self.averaged(self.window.averaged_pos(&self.cache)?, 1)
    }

    fn averaged(&self, window: Window, axis: usize) -> Result<Self> {
        Ok(LabelledTensor {
            values: self.values.f_mean_dim([axis as i64 + 1].as_slice(), true, None)?,
            rows: self.rows.clone(),
            cache: self.cache.clone(),
            window,
            has_last_axis: self.has_last_axis,
            quantity: self.quantity.averaged(axis)?,
        })
    }
}

/// The rows after grouping, and which of them each row goes to.
fn group<K: fmt::Display>(rows: &[Component], key: impl Fn(&Component) -> Option<K>) -> (Vec<Component>, Vec<i64>) {
    let mut groups: Vec<Component> = Vec::new();
    let mut index: HashMap<Component, usize> = HashMap::new();
    let mut group_of = Vec::with_capacity(rows.len());
    for row in rows {
        let named = match key(row) {
            Some(name) => Component::Group(name.to_string().into()),
            None => row.clone(),
        };
        let next = groups.len();
        let group = *index.entry(named.clone()).or_insert(next);
        if group == next {
            groups.push(named);
        }
        group_of.push(group as i64);
    }
    (groups, group_of)
}
