//! `logit_attrs` and [`Attribution`]: how much each row adds to a logit.

use tch::Tensor;

use super::answer::Answer;
use super::frozen_head::FrozenHead;
use super::frozen_norm::FrozenNorm;
use super::interventions;
use super::labelled::{Additive, LabelledTensor, Quantity};
use super::options::{FeatureOptions, FullOptions, HeadOptions, NeuronOptions};
use super::readout::Readout;
use super::recipe::{Recipe, RowValues, StackOptions};
use super::row_form::{Directions, RowForm};
use super::stack::ResidualStack;
use super::window::{View, Window};
use crate::cache::ActivationCache;
use crate::component::{Component, Target};
use crate::hook;
use crate::tensor::columns::Columns;
use crate::{Error, Result};

/// How much each row adds to a logit (or a difference of two), `[component, batch, pos]`, and what of it is in no row.
///
/// `Σ rows + constants = logit`, before any cap, where the rows make up the whole stream at the unembedding. The constants are the
/// unembedding's bias, `b_U`, and the last norm's bias; after weight processing the latter is part of the former.
///
/// ```
/// use tch_lens::{analysis::FullOptions, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
/// let attrs = cache.logit_attrs(FullOptions::new().pos(-1), " Mary")?; // heads and neurons, none of them formed
/// assert!(attrs.residual_error()? < 1e-4);
/// println!("{}", attrs.top(5)?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
pub type Attribution = LabelledTensor<LogitShares>;

/// What the values of an [`Attribution`] are: shares of a logit.
#[derive(Debug)]
pub struct LogitShares {
    /// `[batch, pos]` each.
    constants: Vec<(&'static str, Tensor)>,
    readout: Readout,
}

impl LogitShares {
    fn map(&self, readout: Readout, change: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let constants = self.constants.iter().map(|(name, values)| Ok((*name, change(values)?)));
        Ok(LogitShares { constants: constants.collect::<Result<_>>()?, readout })
    }
}

impl Quantity for LogitShares {
    fn narrowed(&self, axis: usize, places: &Columns) -> Result<Self> {
        self.map(self.readout.narrowed(axis, places)?, |values| places.select(values, axis as i64))
    }

    fn averaged(&self, axis: usize) -> Result<Self> {
        self.map(self.readout.handle(), |values| Ok(values.f_mean_dim([axis as i64].as_slice(), true, None)?))
    }

    fn of_rows(&self, _all: bool) -> Result<Self> {
        self.map(self.readout.handle(), |values| Ok(values.shallow_clone()))
    }

    fn cells(attribution: &Attribution) -> Result<Vec<String>> {
        let values = Vec::<f64>::try_from(attribution.values().f_to_kind(tch::Kind::Double)?.f_reshape(-1)?)?;
        Ok(values.into_iter().map(|value| format!("{value:+.3}")).collect())
    }
}

impl Additive for LogitShares {}

/// What is attributed: rows of a stack, or a recipe for rows that are then never formed.
#[derive(Debug)]
pub enum Attributed<'a> {
    /// The rows of a stack.
    Stack(&'a ResidualStack),
    /// Each head.
    Heads(HeadOptions),
    /// Each neuron.
    Neurons(NeuronOptions),
    /// All that there is.
    Full(FullOptions),
    /// Each feature of the run's dictionaries.
    Features(FeatureOptions),
}

impl<'a> From<&'a ResidualStack> for Attributed<'a> {
    fn from(stack: &'a ResidualStack) -> Self {
        Attributed::Stack(stack)
    }
}

impl From<HeadOptions> for Attributed<'_> {
    fn from(options: HeadOptions) -> Self {
        Attributed::Heads(options)
    }
}

impl From<NeuronOptions> for Attributed<'_> {
    fn from(options: NeuronOptions) -> Self {
        Attributed::Neurons(options)
    }
}

impl From<FullOptions> for Attributed<'_> {
    fn from(options: FullOptions) -> Self {
        Attributed::Full(options)
    }
}

impl From<FeatureOptions> for Attributed<'_> {
    fn from(options: FeatureOptions) -> Self {
        Attributed::Features(options)
    }
}

impl ActivationCache {
    /// How much each row adds to the answer's logit: direct logit attribution, `[component, batch, pos]`.
    ///
    /// Each row passes through the linear part of the last norm at the scale that it had in the run, and is projected onto the
    /// answer's column of `W_U`: `attr = (x − mean) / scale · w · W_U[:, answer]`. The neurons of a prediction head are linear at their
    /// gates `act(x) / x` and their norm's scale in the run, and what their biases add is a constant, `head`. Given [`HeadOptions`], [`NeuronOptions`],
    /// [`FeatureOptions`] or [`FullOptions`] in place of a stack, rows are projected without being formed, which needs neither `[…, heads, d_model]` nor
    /// `[…, d_mlp, d_model]`.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] and [`Error::TokenOutOfRange`] for the answer, [`Error::Shape`] for answers of
    /// another number than there are rows of the batch or positions; [`Error::NoEntry`] and [`Error::NoPosition`] for what the run did not
    /// keep; [`Error::OtherRun`] for a stack of another run; [`Error::WrongInput`] for a stack that is projected, averaged, or normalised
    /// for another target, and for options with `apply_ln` or `project`, which a logit attribution does itself.
    pub fn logit_attrs<'a>(&self, of: impl Into<Attributed<'a>>, answer: impl Into<Answer>) -> Result<Attribution> {
        let answer = answer.into();
        match of.into() {
            Attributed::Stack(stack) => {
                self.refuse_other_run(stack)?;
                of_stack(stack, &answer)
            }
            Attributed::Heads(HeadOptions { target, apply_ln, window, incl_remainder, project }) => {
                let recipe = Recipe::Heads { incl_remainder };
                self.attribute(&recipe, StackOptions { target, apply_ln, window, project }, &answer)
            }
            Attributed::Neurons(NeuronOptions { target, apply_ln, window, neurons, incl_remainder, project }) => {
                self.refuse_without_neurons()?;
                let recipe = Recipe::Neurons { neurons, incl_remainder };
                self.attribute(&recipe, StackOptions { target, apply_ln, window, project }, &answer)
            }
            Attributed::Features(FeatureOptions { target, apply_ln, window, project }) => {
                self.attribute(&Recipe::Features, StackOptions { target, apply_ln, window, project }, &answer)
            }
            Attributed::Full(FullOptions { target, apply_ln, window, expand_neurons, project }) => {
                let recipe = Recipe::Full { expand_neurons };
                self.attribute(&recipe, StackOptions { target, apply_ln, window, project }, &answer)
            }
        }
    }

    /// An error where a stack is of another run than this cache.
    pub(crate) fn refuse_other_run(&self, stack: &ResidualStack) -> Result<()> {
        match self.is_of_run(stack.cache()) {
            true => Ok(()),
            false => Err(Error::OtherRun {
                what: "the stack and the cache",
                hint: "use the cache that the stack was made of, or the methods of the stack",
            }),
        }
    }

    fn attribute(&self, recipe: &Recipe, options: StackOptions, answer: &Answer) -> Result<Attribution> {
        let StackOptions { target, apply_ln, window, project } = options;
        if project.is_some() {
            return Err(Error::setting("project", "logit_attrs projects onto the answer: leave out `project`"));
        }
        if apply_ln {
            return Err(Error::setting(
                "apply_ln",
                "logit_attrs passes rows through the last norm: leave out `apply_ln`",
            ));
        }
        let reach = target.reach(self.model().config())?;
        let window = window.of(self)?;
        let readout = answer.readout(self, window.size())?;
        let end = UnembeddingView::new(View::new(self, &window), &readout)?;
        let mut rows = recipe.rows(&end.view, &reach, &RowForm::Projected(&end.onto))?; // [component, batch, pos, 1]
        if recipe.is_complete() && reach.target == Target::Unembed {
            end.intervene(&mut rows, false)?;
        }
        end.finish(rows)
    }
}

/// The attribution of a stack, by its own cache and window.
pub(crate) fn of_stack(stack: &ResidualStack, answer: &Answer) -> Result<Attribution> {
    if !stack.is_of_stream() {
        return Err(Error::wrong_input("logit_attrs needs rows of the stream, but the stack is projected already"));
    }
    if stack.is_normalized() && stack.target() != Target::Unembed {
        return Err(Error::wrong_input(format!(
            "logit_attrs needs rows as the unembedding reads them, but these are normalised for {}: leave out apply_ln",
            stack.target()
        )));
    }
    stack.window().refuse_average("logit_attrs")?;
    let readout = answer.readout(stack.cache(), stack.window().size())?;
    let end = UnembeddingView::new(stack.view(), &readout)?;
    let values = match stack.is_normalized() {
        true => Directions::plain(&end.direction).project(stack.values())?,
        false => end.onto.project(stack.values())?,
    };
    let mut rows = stack.row_values(values);
    if stack.is_complete() && stack.target() == Target::Unembed {
        end.intervene(&mut rows, stack.is_normalized())?;
    }
    end.finish(rows)
}

/// What reads rows of the stream at the unembedding.
struct UnembeddingView<'a> {
    view: View<'a>,
    readout: &'a Readout,
    /// The readout's direction as that of what the last norm gives: `[batch or 1, pos or 1, d_model, 1]`.
    direction: Tensor,
    /// What the biases of a prediction head add: `[batch, pos]`.
    of_head: Option<Tensor>,
    /// The direction, through the last norm as it was in the run.
    onto: Directions,
    /// What the last norm adds, whatever it reads: `[d_model]`.
    bias: Option<Tensor>,
}

impl<'a> UnembeddingView<'a> {
    fn new(view: View<'a>, readout: &'a Readout) -> Result<Self> {
        let norm = view.model().norm_before(Target::Unembed)?;
        let bias = FrozenNorm::bias_of(norm)?;
        let head = FrozenHead::of_run(&view)?;
        let (direction, of_head) = match &head {
            Some(head) => (head.pull_back(readout.direction())?, Some(head.constant(readout.direction())?)),
            None => (readout.direction().shallow_clone(), None),
        };
        let onto = Directions::through(&direction, FrozenNorm::of_run(norm, &view)?)?;
        Ok(UnembeddingView { view, readout, direction, of_head, onto, bias })
    }

    /// Adds what hooks have changed between the stream and the logits to rows that make up the whole stream. Normalised rows have what
    /// was changed before the unembedding already.
    fn intervene(&self, rows: &mut RowValues, normalized: bool) -> Result<()> {
        let View { cache, .. } = self.view;
        let in_head = [hook::head_ln_scale(), hook::head_ln_normalized(), hook::unembed_in()];
        let changed = in_head.into_iter().find(|point| cache.is_changed(*point));
        if let (Some(_), Some(changed)) = (&self.of_head, changed) {
            let (changed, needed) = (changed.to_string(), hook::unembed_out().to_string());
            return Err(Error::ChangedOnTheWay { changed, needed });
        }
        let reading = interventions::changed_reading(&self.view, Target::Unembed)?;
        if reading.is_none() && !cache.is_changed(hook::unembed_out()) {
            return Ok(());
        }
        let stream = self.view.stream(&Target::Unembed.reach(cache.model().config())?)?;
        let from_stream = self.onto.project(&stream)?; // [1, batch, pos, 1]
        let read = match &reading {
            Some(reading) => Directions::plain(&self.direction).project(reading)?,
            None => from_stream.shallow_clone(),
        };
        if reading.is_some() && !normalized {
            rows.intervene(&read.f_sub(&from_stream)?)?;
        }
        let mut logit = read.f_squeeze_dim(-1)?.f_squeeze_dim(0)?; // [batch, pos]
        for (_, constant) in self.constants()? {
            logit = logit.f_add(&constant)?;
        }
        match self.readout.changed_logit(&self.view, &logit)? {
            Some(change) => rows.intervene(&change.f_unsqueeze(0)?.f_unsqueeze(-1)?),
            None => Ok(()),
        }
    }

    /// What of the logit is in no row: `[batch, pos]` each.
    fn constants(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let (batch, pos) = self.view.window.size();
        let mut constants = vec![("b_U", self.readout.bias().f_expand([batch, pos], false)?)];
        if let Some(of_head) = &self.of_head {
            constants.push(("head", of_head.f_expand([batch, pos], false)?));
        }
        if let Some(bias) = &self.bias {
            let direction = self.direction.f_squeeze_dim(-1)?; // [batch or 1, pos or 1, d_model]
            let product = direction.f_mul(bias)?.f_sum_dim_intlist([-1i64].as_slice(), false, None)?;
            constants.push(("ln_final.b", product.f_expand([batch, pos], false)?));
        }
        Ok(constants)
    }

    fn finish(&self, rows: RowValues) -> Result<Attribution> {
        let shares = LogitShares { constants: self.constants()?, readout: self.readout.handle() };
        let (cache, window): (&ActivationCache, &Window) = (self.view.cache, self.view.window);
        Ok(LabelledTensor::new(rows, cache.clone(), window.clone(), false, shares))
    }
}

impl Attribution {
    /// What is in no row: `b_U` and, where it is not folded, `ln_final.b`; each `[batch, pos]`.
    pub fn constants(&self) -> Vec<(&'static str, Tensor)> {
        let dropped = |values: &Tensor| self.without_rows(values).unwrap_or_else(|_| values.shallow_clone());
        self.quantity().constants.iter().map(|(name, values)| (*name, dropped(values))).collect()
    }

    /// `Σ rows + constants`: `[batch, pos]`.
    ///
    /// # Errors
    ///
    /// Those of libtorch.
    pub fn sum(&self) -> Result<Tensor> {
        self.without_rows(&self.whole_sum()?)
    }

    /// The logit before any cap, of the run itself: `[batch, pos]`; of an average, its mean.
    ///
    /// From the run's own logits, `unembed.hook_out`, where the cache has them; else from `unembed.hook_in`; else from the last
    /// `resid_post`, through the last norm at that stream's own scale. The kept scale, by which the attribution divides, plays no part.
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`] and [`Error::NoPosition`] where the cache has none of these; [`Error::ChangedOnTheWay`] where a hook changed
    /// something between what the cache has and the logits.
    pub fn logit(&self) -> Result<Tensor> {
        self.without_rows(&self.logit_of_run()?)
    }

    /// The largest `|Σ rows + constants − logit|`, with the [`logit`](Attribution::logit) of the run itself: near zero where the rows make
    /// up the whole stream, and how much is missing where they do not. The run's logits are as exact as its weights' kind.
    ///
    /// # Errors
    ///
    /// Those of [`Attribution::logit`].
    pub fn residual_error(&self) -> Result<f64> {
        let error = self.whole_sum()?.f_sub(&self.logit_of_run()?)?.f_abs()?;
        match error.numel() {
            0 => Ok(0.0),
            _ => Ok(error.f_max()?.f_double_value(&[])?),
        }
    }

    /// The heads as a table: `[layer, head, batch, pos]`.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] where the rows are not all heads of each layer, and possibly others.
    pub fn by_head(&self) -> Result<Tensor> {
        let mut heads: Vec<(usize, usize, i64)> = Vec::new();
        for (i, row) in self.rows().iter().enumerate() {
            if let Component::Head { layer, head } = row {
                heads.push((*layer, *head, i as i64));
            }
        }
        heads.sort_unstable();
        let n_layers = heads.last().map_or(0, |(layer, ..)| layer + 1);
        let n_heads = heads.len().checked_div(n_layers).unwrap_or(0);
        let complete = heads.iter().enumerate().all(|(i, (l, h, _))| i == l * n_heads + h);
        if heads.is_empty() || !complete || heads.len() != n_layers * n_heads {
            return Err(Error::wrong_input("a table by head needs a row for each head of each layer"));
        }
        let order: Vec<i64> = heads.iter().map(|(.., i)| *i).collect();
        let order = Tensor::f_from_slice(&order)?.f_to_device(self.values().device())?;
        let heads = self.without_dropped_axes(&self.values().f_index_select(0, &order)?)?;
        let shape: Vec<i64> = [n_layers as i64, n_heads as i64].into_iter().chain(heads.size()[1..].to_vec()).collect();
        Ok(heads.f_reshape(shape)?)
    }

    /// `[batch, pos]`
    pub(crate) fn whole_sum(&self) -> Result<Tensor> {
        let mut sum = self.values().f_sum_dim_intlist([0i64].as_slice(), false, None)?.f_squeeze_dim(-1)?;
        for (_, constant) in &self.quantity().constants {
            sum = sum.f_add(constant)?;
        }
        Ok(sum)
    }

    /// `[batch, pos]`
    fn logit_of_run(&self) -> Result<Tensor> {
        self.window().average(self.quantity().readout.of_run(&self.view())?)
    }

    /// `[batch, pos]` without the axes that the result does not have.
    fn without_rows(&self, values: &Tensor) -> Result<Tensor> {
        Ok(self.without_dropped_axes(&values.f_unsqueeze(0)?.f_unsqueeze(-1)?)?.f_squeeze_dim(0)?)
    }
}
