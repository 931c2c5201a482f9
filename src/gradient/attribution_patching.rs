//! Attribution patching: the effects of many patches, estimated from two runs and one backward pass.

use indexmap::IndexMap;
use tch::Tensor;

use super::integrated::str_tokens;
use crate::hook::{Extent, HookFilter, HookName, HookPoint};
use crate::metric::Metric;
use crate::run::backward::is_differentiable;
use crate::run::BackwardRules;
use crate::tensor::precision::widened;
use crate::text::input::{Input, Tokens};
use crate::text::tokenizer::Tokenizer;
use crate::{Config, Error, HookedTransformer, Result, RunOptions};

/// The settings of [`HookedTransformer::attribution_patching`].
#[derive(Default)]
pub struct AttributionPatchingOptions<'a> {
    points: Option<HookFilter<'a>>,
    rules: BackwardRules,
}

impl<'a> AttributionPatchingOptions<'a> {
    /// All points that fire by default, with plain gradients.
    pub fn new() -> Self {
        Self::default()
    }

    /// The points at which patches are estimated.
    pub fn points(mut self, points: impl Into<HookFilter<'a>>) -> Self {
        self.points = Some(points.into());
        self
    }

    /// What the backward pass takes for constant: [`BackwardRules::relp`] makes it relevance patching.
    pub fn backward_rules(mut self, rules: BackwardRules) -> Self {
        self.rules = rules;
        self
    }
}

/// First-order estimates of what patches do to a metric: `(source − base) · ∂metric/∂activation`, at the base run.
///
/// Made by [`HookedTransformer::attribution_patching`]. An estimate of several entries is the sum of theirs, so the axes of the stream and
/// of heads' entries are summed: a point has estimates `[batch, pos]`, `[batch, pos, head]`, `[batch, pos, neuron]`, or of scores and
/// patterns `[batch, head, query, key]`.
#[derive(Debug)]
pub struct AttributionPatching {
    entries: IndexMap<HookPoint, Tensor>,
    base: f64,
    source: f64,
    config: Config,
    /// The base's tokens.
    tokens: Tokens,
    tokenizer: Option<Tokenizer>,
}

impl AttributionPatching {
    /// The base's tokens of a row of the batch as text, padding included.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Missing`](crate::TokenizerError::Missing); [`Error::NoBatchRow`].
    pub fn to_str_tokens(&self, row: usize) -> Result<Vec<String>> {
        str_tokens(&self.tokens, self.tokenizer.as_ref(), row)
    }

    /// How many rows the batch has.
    pub fn n_rows(&self) -> i64 {
        self.tokens.ids.size()[0]
    }

    /// The estimates at a point.
    ///
    /// # Errors
    ///
    /// The name's own; [`Error::NoEntry`] where the point was not selected.
    pub fn get(&self, name: impl HookName) -> Result<&Tensor> {
        let point = name.resolve(&self.config)?;
        self.entries.get(&point).ok_or_else(|| Error::NoEntry {
            name: point.to_string(),
            how: "select it with `AttributionPatchingOptions::points`".into(),
        })
    }

    /// The estimates of a site in all layers, summed over the rows of the batch: `[layer, pos]`, `[layer, pos, head]`, `[layer, pos, neuron]`
    /// or `[layer, head, query, key]`. As the metric is a mean over rows, this is the effect on that mean.
    ///
    /// ```
    /// use tch_lens::{gradient::AttributionPatchingOptions, HookedTransformer, Metric};
    /// let model = HookedTransformer::toy()?;
    /// let (clean, corrupted) = ("When Mary and John went to the shop, John gave a bag to", "When Mary and John went to the shop, Mary gave a bag to");
    /// let metric = Metric::logit_diff(" Mary", " John");
    /// let options = AttributionPatchingOptions::new().points(["resid_pre", "z"]);
    /// let estimates = model.attribution_patching(corrupted, clean, &metric, options)?;
    /// assert_eq!(estimates.by_layer("resid_pre")?.size(), [4, 15]); // [layer, pos]
    /// assert_eq!(estimates.by_layer("z")?.size(), [4, 15, 4]); // [layer, pos, head]
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`AttributionPatching::get`].
    pub fn by_layer(&self, site: &str) -> Result<Tensor> {
        let layers = (0..self.config.n_layers).map(|layer| {
            let estimates = self.get((site, layer))?;
            Ok(estimates.f_sum_dim_intlist([0i64].as_slice(), false, None)?)
        });
        Ok(Tensor::f_stack(&layers.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// The points, in the order in which they fire.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = HookPoint> + '_ {
        self.entries.keys().copied()
    }

    /// The metric of the base run.
    pub fn base_metric(&self) -> f64 {
        self.base
    }

    /// The metric of the source run.
    pub fn source_metric(&self) -> f64 {
        self.source
    }
}

impl HookedTransformer {
    /// Estimates what patching each activation of a run by that of another would do to a metric (Nanda 2023; Syed et al. 2023): two forward
    /// passes and one backward pass for all patches together.
    ///
    /// `base` is the run that would be patched, `source` the one that activations come from. To find what restores an answer, the base is
    /// corrupted and the source clean; to find what breaks it, the other way round. The metric is [`Metric::scalar`], a mean over rows.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run_with_grad`] and [`Metric::scalar`]; [`Error::Shape`] where the inputs have different shapes;
    /// [`Error::WrongInput`] for an expert's point, as experts get other tokens in each run.
    pub fn attribution_patching(
        &self,
        base: impl Into<Input>,
        source: impl Into<Input>,
        metric: &Metric<'_>,
        options: AttributionPatchingOptions<'_>,
    ) -> Result<AttributionPatching> {
        let (base, source) = (self.to_tokens(base)?, self.to_tokens(source)?);
        if base.ids.size() != source.ids.size() {
            let (found, expected) = (source.ids.size(), format!("{:?}, as the base's", base.ids.size()));
            return Err(Error::Shape { what: "the source's tensor of tokens".into(), found, expected });
        }
        let points = self.estimated(options.points)?;
        let names = || Ok::<_, Error>([points.clone(), metric.needs(self.config())?].concat());
        let from = self.run(&source, RunOptions::new().cache(names()?))?;
        let run = RunOptions::new().cache(names()?).backward_rules(options.rules);
        let onto = self.run_with_grad(&base, run, |run| metric.scalar(run.logits()?, &run.cache))?;
        let mut entries = IndexMap::with_capacity(points.len());
        for point in points {
            let gradient = onto.gradients.get(point)?;
            let difference = widened(from.cache.get(point)?)?.f_sub(&widened(onto.run.cache.get(point)?)?)?;
            // Masked scores are −∞ in both runs.
            let difference = difference.f_nan_to_num(Some(0.0), Some(0.0), Some(0.0))?;
            let product = difference.f_mul(&widened(gradient)?)?;
            let estimates = match point.extents(self.config()).last() {
                Some(Extent::Key | Extent::EncoderPos | Extent::DMlp | Extent::Expert) => product,
                _ => product.f_sum_dim_intlist([-1i64].as_slice(), false, None)?,
            };
            entries.insert(point, estimates);
        }
        let source = metric.scalar(from.logits()?, &from.cache)?.f_double_value(&[])?;
        let (config, tokenizer) = (self.config().clone(), self.tokenizer().ok().cloned());
        Ok(AttributionPatching { entries, base: onto.value, source, config, tokens: base, tokenizer })
    }

    /// The points of a filter that have the same entries in both runs; by default, all that fire by default.
    fn estimated(&self, points: Option<HookFilter<'_>>) -> Result<Vec<HookPoint>> {
        let has_gradient = |point: &HookPoint| is_differentiable(point.kind(self.kind()));
        let chosen = match &points {
            Some(points) => points.resolve(self.config())?,
            None => {
                let points = HookFilter::All.resolve(self.config())?;
                points.into_iter().filter(|point| point.expert().is_none() && has_gradient(point)).collect()
            }
        };
        if let Some(point) = chosen.iter().find(|point| !has_gradient(point)) {
            return Err(Error::wrong_input(format!("`{point}` holds whole numbers, which have no gradient")));
        }
        match chosen.iter().find(|point| point.expert().is_some()) {
            Some(point) => Err(Error::wrong_input(format!(
                "`{point}` has the rows that are routed to an expert, which are others in each run: select `hook_mlp_out`"
            ))),
            None => Ok(chosen),
        }
    }
}
