//! `logit_attrs` and [`Attribution`]: how much each row adds to a logit.

use std::fmt;

use tch::{Kind, Tensor};

use super::answer::Answer;
use super::full::FullRows;
use super::heads::HeadRows;
use super::neurons::NeuronRows;
use super::options::{Full, Heads, Neurons};
use super::project::Directions;
use super::rows::Rows;
use super::stack::{group, layer_name, sum_groups, ResidualStack};
use super::window::{Window, WindowOptions};
use crate::cache::ActivationCache;
use crate::component::{Component, Target};
use crate::{Error, Result};

/// How much each row adds to a logit (or a difference of two), and what of it is no row's.
///
/// `Σ rows + constants = logit`, before any cap, where the rows make up the whole stream at the unembedding. The constants are the
/// unembedding's bias, `b_U`, and the last norm's bias; after weight processing the latter is part of the former.
///
/// ```
/// use tch_lens::{analysis::{Decompose, Full}, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
/// let attrs = cache.logit_attrs(Full::new().pos(-1), " Mary")?; // heads and neurons, none of them formed
/// assert!(attrs.residual_error()? < 1e-4);
/// println!("{}", attrs.top(5)?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Debug)]
pub struct Attribution {
    /// `[component, batch, pos]`, with axes of length one where there are none.
    full: Tensor,
    rows: Vec<Component>,
    constants: Vec<(&'static str, Tensor)>,
    logit: std::result::Result<Tensor, String>,
    axes: (bool, bool),
}

/// What is attributed: rows that are there, or a recipe for rows that are then never formed.
#[derive(Debug)]
pub enum Attributed<'a> {
    /// The rows of a stack.
    Stack(&'a ResidualStack),
    /// Each head.
    Heads(Heads),
    /// Each neuron.
    Neurons(Neurons),
    /// All that there is.
    Full(Full),
}

impl<'a> From<&'a ResidualStack> for Attributed<'a> {
    fn from(stack: &'a ResidualStack) -> Self {
        Attributed::Stack(stack)
    }
}

impl From<Heads> for Attributed<'_> {
    fn from(options: Heads) -> Self {
        Attributed::Heads(options)
    }
}

impl From<Neurons> for Attributed<'_> {
    fn from(options: Neurons) -> Self {
        Attributed::Neurons(options)
    }
}

impl From<Full> for Attributed<'_> {
    fn from(options: Full) -> Self {
        Attributed::Full(options)
    }
}

impl ActivationCache {
    /// How much each row adds to the answer's logit: direct logit attribution, `[component, batch, pos]`.
    ///
    /// Each row passes through the linear part of the last norm at the scale that it had in the run, and is projected onto the
    /// answer's column of `W_U`: `attr = (x − mean) / scale · w · W_U[:, answer]`. Given [`Heads`], [`Neurons`] or [`Full`] in a
    /// stack's place, rows are projected without being formed, which needs neither `[…, heads, d_model]` nor
    /// `[…, d_mlp, d_model]`.
    ///
    /// # Errors
    ///
    /// [`Error::NotOneToken`] and [`Error::TokenOutOfRange`] for the answer, [`Error::Shape`] for answers of another number than the
    /// stack has rows or positions, [`Error::NoEntry`] for what the run did not keep.
    pub fn logit_attrs<'a>(&self, of: impl Into<Attributed<'a>>, answer: impl Into<Answer>) -> Result<Attribution> {
        let answer = answer.into();
        match of.into() {
            Attributed::Stack(stack) => self.attribute_stack(stack, &answer),
            Attributed::Heads(Heads { target, window, incl_remainder, project, .. }) => {
                refuse_projection(&project)?;
                self.attribute_rows(&HeadRows { incl_remainder }, target, window, &answer)
            }
            Attributed::Neurons(Neurons { target, window, neurons, incl_remainder, project, .. }) => {
                refuse_projection(&project)?;
                self.attribute_rows(&NeuronRows { neurons, incl_remainder }, target, window, &answer)
            }
            Attributed::Full(Full { target, window, expand_neurons, project, .. }) => {
                refuse_projection(&project)?;
                self.attribute_rows(&FullRows { expand_neurons }, target, window, &answer)
            }
        }
    }

    fn attribute_stack(&self, stack: &ResidualStack, answer: &Answer) -> Result<Attribution> {
        if !stack.is_stream {
            return Err(Error::invalid("logit_attrs needs rows of the stream, but the stack is projected already"));
        }
        if stack.is_normalized() && stack.target() != Target::Unembed {
            return Err(Error::invalid(format!(
                "logit_attrs needs rows as the unembedding reads them, but these are normalised for {}: leave out apply_ln",
                stack.target()
            )));
        }
        let size = stack.full().size();
        let (u, b) = answer.directions(self.model(), self.tokenizer().ok(), size[1], size[2])?;
        let norm = match stack.target() {
            Target::Unembed => stack.shared_norm(),
            _ => self.frozen_norm(&Target::Unembed.reach(self.model().config())?, stack.window()),
        };
        let through = Directions::through(&u, norm)?;
        let values = match stack.is_normalized() {
            true => Directions::plain(u.shallow_clone()).rows(stack.full())?,
            false => through.rows(stack.full())?,
        };
        self.attribution(values, stack.rows().to_vec(), &through, (u, b), stack.window())
    }

    fn attribute_rows(
        &self,
        rows: &dyn Rows,
        target: Target,
        window: WindowOptions,
        answer: &Answer,
    ) -> Result<Attribution> {
        let config = self.model().config();
        let reach = target.reach(config)?;
        let end = Target::Unembed.reach(config)?;
        let window = window.of(self)?;
        let components = rows.components(self, &reach)?;
        let (batch, pos) = window.size();
        let (u, b) = answer.directions(self.model(), self.tokenizer().ok(), batch, pos)?;
        let through = Directions::through(&u, self.frozen_norm(&end, &window))?;
        let values = rows.project(self, &reach, &window, &through)?; // [component, batch, pos, 1]
        self.attribution(values, components, &through, (u, b), &window)
    }

    /// An attribution of values `[component, batch, pos, 1]`.
    fn attribution(
        &self,
        values: Tensor,
        rows: Vec<Component>,
        through: &Directions,
        (u, b): (Tensor, Tensor),
        window: &Window,
    ) -> Result<Attribution> {
        let full = values.f_squeeze_dim(-1)?;
        let size = full.size();
        let all = |constant: Tensor| -> Result<Tensor> { Ok(constant.f_expand([size[1], size[2]], false)?) };
        let mut constants = vec![("b_U", all(b)?)];
        if let Some(bias) = &self.model().weights().unembed.ln_final.b {
            let bias = bias.f_to_kind(u.f_kind()?)?.f_unsqueeze(-1)?; // [d_model, 1]
            constants.push((
                "ln_final.b",
                all(u.f_mul(&bias)?.f_sum_dim_intlist([2i64].as_slice(), false, None)?.f_squeeze_dim(-1)?)?,
            ));
        }
        let end = Target::Unembed.reach(self.model().config())?;
        let logit = self.stream(&end, window).and_then(|stream| {
            let mut logit = through.rows(&stream)?.f_squeeze_dim(-1)?.f_squeeze_dim(0)?; // [batch, pos]
            for (_, constant) in &constants {
                logit = logit.f_add(constant)?;
            }
            Ok(logit)
        });
        let logit = logit.map_err(|error| error.to_string());
        Ok(Attribution { full, rows, constants, logit, axes: window.axes() })
    }
}

fn refuse_projection(project: &Option<Tensor>) -> Result<()> {
    match project {
        None => Ok(()),
        Some(_) => Err(Error::invalid("logit_attrs projects onto the answer: leave out `project`")),
    }
}

impl Attribution {
    /// The bare tensor: `[component, batch, pos]`, without the axes that were sliced off.
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

    /// What is no row's: `b_U` and, where it is not folded, `ln_final.b`; each `[batch, pos]`.
    pub fn constants(&self) -> Vec<(&'static str, Tensor)> {
        self.constants.iter().map(|(name, values)| (*name, self.seen_without_rows(values))).collect()
    }

    /// `Σ rows + constants`: `[batch, pos]`.
    ///
    /// # Errors
    ///
    /// libtorch's.
    pub fn sum(&self) -> Result<Tensor> {
        Ok(self.seen_without_rows(&self.full_sum()?))
    }

    /// The logit before any cap, from the stream itself: `[batch, pos]`.
    ///
    /// # Errors
    ///
    /// Where the run did not keep the last `resid_post`.
    pub fn logit(&self) -> Result<Tensor> {
        match &self.logit {
            Ok(logit) => Ok(self.seen_without_rows(logit)),
            Err(sentence) => Err(Error::invalid(sentence.clone())),
        }
    }

    /// The largest `|Σ rows + constants − logit|`: near zero where the rows make up the whole stream, and how much is missing where not.
    ///
    /// # Errors
    ///
    /// Where the run did not keep the last `resid_post`.
    pub fn residual_error(&self) -> Result<f64> {
        Ok(self.sum()?.f_sub(&self.logit()?)?.f_abs()?.f_max()?.f_double_value(&[])?)
    }

    /// One row of the batch.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`]; [`Error::Invalid`] where there is no such axis any more.
    pub fn batch(&self, row: i64) -> Result<Self> {
        self.at(1, row, "batch", self.axes.0)
    }

    /// One position.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`]; [`Error::Invalid`] where there is no such axis any more.
    pub fn pos(&self, position: i64) -> Result<Self> {
        self.at(2, position, "position", self.axes.1)
    }

    /// The `k` rows that add most, in descending order; of one position and batch row, which must be chosen where there are several.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where several positions or batch rows are left.
    pub fn top(&self, k: usize) -> Result<Ranking> {
        self.ranked(k, true)
    }

    /// The `k` rows that add least, in ascending order.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where several positions or batch rows are left.
    pub fn bottom(&self, k: usize) -> Result<Ranking> {
        self.ranked(k, false)
    }

    /// Heads and neurons summed by layer; the others stay as they are.
    ///
    /// # Errors
    ///
    /// libtorch's.
    pub fn by_layer(&self) -> Result<Self> {
        self.group_by(layer_name)
    }

    /// Sums of the rows that `key` gives the same name; rows without one stay as they are.
    ///
    /// # Errors
    ///
    /// libtorch's.
    pub fn group_by<K: fmt::Display>(&self, key: impl Fn(&Component) -> Option<K>) -> Result<Self> {
        let (rows, group_of) = group(&self.rows, key);
        let full = sum_groups(&self.full, &group_of, rows.len())?;
        Ok(self.with(full, rows, |constant| Ok(constant.shallow_clone()))?.with_axes(self.axes))
    }

    /// The heads as a table: `[layer, head, batch, pos]`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where the rows are not all heads of each layer, and possibly others.
    pub fn by_head(&self) -> Result<Tensor> {
        let mut heads: Vec<(usize, usize, i64)> = Vec::new();
        for (i, row) in self.rows.iter().enumerate() {
            if let Component::Head { layer, head } = row {
                heads.push((*layer, *head, i as i64));
            }
        }
        heads.sort_unstable();
        let n_layers = heads.last().map_or(0, |(layer, ..)| layer + 1);
        let n_heads = heads.len().checked_div(n_layers).unwrap_or(0);
        let complete = heads.iter().enumerate().all(|(i, (l, h, _))| i == l * n_heads + h);
        if heads.is_empty() || !complete || heads.len() != n_layers * n_heads {
            return Err(Error::invalid("a table by head needs a row for each head of each layer"));
        }
        let order: Vec<i64> = heads.iter().map(|(.., i)| *i).collect();
        let rows = self.full.f_index_select(0, &Tensor::f_from_slice(&order)?.f_to_device(self.full.device())?)?;
        let seen = self.seen(&rows);
        let shape: Vec<i64> = [n_layers as i64, n_heads as i64].into_iter().chain(seen.size()[1..].to_vec()).collect();
        Ok(seen.f_reshape(shape)?)
    }

    fn full_sum(&self) -> Result<Tensor> {
        let mut sum = self.full.f_sum_dim_intlist([0i64].as_slice(), false, None)?;
        for (_, constant) in &self.constants {
            sum = sum.f_add(constant)?;
        }
        Ok(sum)
    }

    fn ranked(&self, k: usize, largest: bool) -> Result<Ranking> {
        let size = self.full.size();
        if size[1] * size[2] != 1 {
            return Err(Error::invalid(format!(
                "a ranking is of one position and batch row, but there are {} and {}: choose with pos(…) and batch(…)",
                size[2], size[1]
            )));
        }
        let flat = self.full.f_flatten(0, -1)?.f_to_kind(Kind::Double)?;
        let (values, indices) = flat.f_topk((k as i64).min(size[0]), 0, largest, true)?;
        let values = Vec::<f64>::try_from(values)?;
        let indices = Vec::<i64>::try_from(indices)?;
        let rows = indices.into_iter().map(|i| self.rows[i as usize].clone()).zip(values).collect();
        Ok(Ranking { rows, total: self.full_sum()?.f_double_value(&[0, 0])? })
    }

    fn at(&self, axis: i64, index: i64, name: &'static str, there: bool) -> Result<Self> {
        if !there {
            return Err(Error::invalid(format!("there is no {name} axis any more")));
        }
        let slice = crate::Slice::Index(index).keeping_axis();
        let full = slice.apply(&self.full, axis, name)?;
        let mut chosen = self.with(full, self.rows.clone(), |constant| slice.apply(constant, axis - 1, name))?;
        chosen.axes = if axis == 1 { (false, self.axes.1) } else { (self.axes.0, false) };
        Ok(chosen)
    }

    fn with(&self, full: Tensor, rows: Vec<Component>, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let constants = self.constants.iter().map(|(name, values)| Ok((*name, f(values)?))).collect::<Result<_>>()?;
        let logit = match &self.logit {
            Ok(logit) => Ok(f(logit)?),
            Err(sentence) => Err(sentence.clone()),
        };
        Ok(Attribution { full, rows, constants, logit, axes: self.axes })
    }

    fn with_axes(mut self, axes: (bool, bool)) -> Self {
        self.axes = axes;
        self
    }

    fn seen(&self, full: &Tensor) -> Tensor {
        let seen = if self.axes.1 { full.shallow_clone() } else { full.squeeze_dim(2) };
        if self.axes.0 {
            seen
        } else {
            seen.squeeze_dim(1)
        }
    }

    fn seen_without_rows(&self, full: &Tensor) -> Tensor {
        self.seen(&full.unsqueeze(0)).squeeze_dim(0)
    }
}

/// Rows in the order of what they add; prints as a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    /// What each is, and what it adds.
    pub rows: Vec<(Component, f64)>,
    /// All rows and constants together: the logit.
    pub total: f64,
}

impl fmt::Display for Ranking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|(row, _)| row.to_string().len()).max().unwrap_or(0);
        for (row, value) in &self.rows {
            writeln!(f, "{row:<width$}  {value:+8.3}")?;
        }
        write!(f, "{:<width$}  {:+8.3}", "all", self.total)
    }
}
