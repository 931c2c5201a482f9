//! [`CircuitTask`]: a model with prompts, a metric, and an [`Ablation`].

use std::cell::OnceCell;

use tch::Tensor;

use super::circuit::Circuit;
use super::graph::CircuitGraph;
use super::senders::Activations;
use crate::config::StreamConfig;
use crate::metric::Metric;
use crate::run::BackwardRules;
use crate::text::input::{Input, Tokens};
use crate::{Error, HookedTransformer, Result, RunOptions};

/// What an edge carries that is not in a circuit.
#[derive(Debug)]
pub struct Ablation {
    source: Source,
}

#[derive(Debug)]
enum Source {
    Counterfactual(Input),
    Mean { of: Input, per_position: bool },
    Zero,
}

impl Ablation {
    /// What its sender writes on these prompts, which correspond to the task's, token by token.
    pub fn counterfactual(input: impl Into<Input>) -> Self {
        Ablation { source: Source::Counterfactual(input.into()) }
    }

    /// The mean of what its sender writes, over all tokens of these prompts but padding.
    pub fn mean(input: impl Into<Input>) -> Self {
        Ablation { source: Source::Mean { of: input.into(), per_position: false } }
    }

    /// The mean of what its sender writes at each position, over these prompts, which are as long as the task's.
    pub fn mean_per_position(input: impl Into<Input>) -> Self {
        Ablation { source: Source::Mean { of: input.into(), per_position: true } }
    }

    /// Nothing.
    pub fn zero() -> Self {
        Ablation { source: Source::Zero }
    }
}

/// A task of which a circuit is sought: a model, prompts, a metric, and what ablated edges carry.
///
/// The runs on which all methods rest are made once, by [`CircuitTask::new`].
#[derive(Debug)]
pub struct CircuitTask<'m, 'a> {
    /// Its heads have keys and values of their own.
    pub(super) model: HookedTransformer,
    pub(super) graph: CircuitGraph,
    pub(super) metric: &'m Metric<'a>,
    pub(super) tokens: Tokens,
    /// The prompts of a counterfactual ablation.
    pub(super) counterfactual: Option<Tokens>,
    pub(super) clean: Activations,
    pub(super) ablated: Activations,
    /// What each sender writes where it is ablated: `[sender, batch or 1, pos or 1, d_model]`.
    pub(super) ablated_writes: Tensor,
    pub(super) rules: BackwardRules,
    pub(super) clean_metric: f64,
    ablated_metric: OnceCell<f64>,
}

impl<'m, 'a> CircuitTask<'m, 'a> {
    /// A task: what the model does on the prompts `clean`, as `metric` measures it ([`Metric::scalar`], a mean over the prompts). Activations
    /// that the metric names are those of the [ungrouped](HookedTransformer::ungrouped) model.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`] and [`Metric::scalar`]; [`Error::Shape`] where the prompts of the ablation do not correspond to the
    /// task's; those of [`HookedTransformer::ungrouped`].
    pub fn new(
        model: &HookedTransformer,
        clean: impl Into<Input>,
        ablation: Ablation,
        metric: &'m Metric<'a>,
    ) -> Result<Self> {
        if model.config().attention.cross.is_some() {
            return Err(Error::unsupported("a circuit has no nodes for the heads of a decoder's cross-attention"));
        }
        if model.config().attention.shared_keys.values().iter().any(Option::is_some) {
            return Err(Error::unsupported(
                "a circuit has no edges into keys and values that several layers look at, as this model's do",
            ));
        }
        if model.config().attention.indexer.is_some() {
            return Err(Error::unsupported(
                "a circuit has no edges into a network that chooses keys, which this model has",
            ));
        }
        if model.config().attention.value_norm.is_some() {
            return Err(Error::unsupported("a circuit has no edges through norms of values, which this model has"));
        }
        if model.config().stream != StreamConfig::default() {
            return Err(Error::unsupported(
                "circuits need a residual stream that is the sum of what heads and MLPs write, and this model's layers multiply the stream or add embeddings to it",
            ));
        }
        let model = model.ungrouped()?;
        let graph = CircuitGraph::new(model.config());
        let tokens = model.to_tokens(clean)?;
        let points = Activations::points(&graph, model.config());
        let names = [points.clone(), metric.needs(model.config())?].concat();
        let output = model.run(&tokens, RunOptions::new().cache(names).logits_at(metric.positions().clone()))?;
        let clean_metric = metric.scalar(output.logits()?, &output.cache)?.f_double_value(&[])?;
        let clean = Activations::of_cache(&graph, &output.cache)?;
        let run = |tokens: &Tokens| {
            let cache =
                model.run(tokens, RunOptions::new().cache(points.clone()).return_type(crate::ReturnType::None))?.cache;
            Activations::of_cache(&graph, &cache)
        };
        let mut counterfactual = None;
        let ablated = match ablation.source {
            Source::Zero => clean.map(|x| Ok(x.f_zeros_like()?))?,
            Source::Counterfactual(input) => {
                let other = model.to_tokens(input)?;
                let (found, expected) = (other.ids.size(), tokens.ids.size());
                check(
                    found == expected,
                    "the counterfactual's tensor of tokens",
                    found,
                    format!("{expected:?}, as the task's"),
                )?;
                let ablated = run(&other)?;
                counterfactual = Some(other);
                ablated
            }
            Source::Mean { of, per_position } => {
                let other = model.to_tokens(of)?;
                let (found, len) = (other.ids.size(), tokens.ids.size()[1]);
                let fits = !per_position || found[1] == len;
                check(fits, "the tensor of tokens to average", found, format!("{len} positions, as the task's"))?;
                run(&other)?.mean(&other, per_position)?
            }
        };
        let ablated_writes = ablated.written(model.transformer())?;
        Ok(CircuitTask {
            graph,
            metric,
            tokens,
            counterfactual,
            clean,
            ablated,
            ablated_writes,
            rules: BackwardRules::new(),
            clean_metric,
            ablated_metric: OnceCell::new(),
            model,
        })
    }

    /// The task with other rules for the backward passes of its scores: [`BackwardRules::relp`] for relevance patching.
    pub fn backward_rules(mut self, rules: BackwardRules) -> Self {
        self.rules = rules;
        self
    }

    /// The nodes and edges of the model.
    pub fn graph(&self) -> &CircuitGraph {
        &self.graph
    }

    /// The metric of the model itself.
    pub fn clean_metric(&self) -> f64 {
        self.clean_metric
    }

    /// The metric where every edge is ablated.
    ///
    /// # Errors
    ///
    /// Those of [`CircuitTask::metric_of`].
    pub fn ablated_metric(&self) -> Result<f64> {
        if let Some(metric) = self.ablated_metric.get() {
            return Ok(*metric);
        }
        let metric = self.metric_of(&Circuit::empty(self.graph.clone()))?;
        Ok(*self.ablated_metric.get_or_init(|| metric))
    }

    /// By how much what each sender writes differs where it is ablated: `[sender, batch, pos, d_model]`.
    pub(super) fn differences(&self) -> Result<Tensor> {
        Ok(self.ablated_writes.f_sub(&self.clean.written(self.model.transformer())?)?)
    }
}

fn check(holds: bool, what: &str, found: Vec<i64>, expected: String) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(Error::Shape { what: what.into(), found, expected }),
    }
}
