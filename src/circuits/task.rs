//! [`CircuitTask`]: a model with prompts, a metric, and an [`Ablation`].

use std::cell::OnceCell;

use tch::Tensor;

use super::circuit::Circuit;
use super::graph::CircuitGraph;
use super::senders::Activations;
use crate::metric::Metric;
use crate::model::EncoderOutput;
use crate::run::BackwardRules;
use crate::text::input::{Input, Tokens};
use crate::{Error, HookedTransformer, Result, RunOptions};

/// What an edge carries that is not in a circuit.
#[derive(Debug)]
pub struct Ablation {
    source: Source,
    encoder_output: Option<EncoderOutput>,
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
        Ablation::of(Source::Counterfactual(input.into()))
    }

    /// The mean of what its sender writes, over all tokens of these prompts but padding.
    pub fn mean(input: impl Into<Input>) -> Self {
        Ablation::of(Source::Mean { of: input.into(), per_position: false })
    }

    /// The mean of what its sender writes at each position, over these prompts, which are as long as the task's.
    pub fn mean_per_position(input: impl Into<Input>) -> Self {
        Ablation::of(Source::Mean { of: input.into(), per_position: true })
    }

    /// Nothing.
    pub fn zero() -> Self {
        Ablation::of(Source::Zero)
    }

    fn of(source: Source) -> Self {
        Ablation { source, encoder_output: None }
    }

    /// For a decoder with cross-attention, what its encoder gives in the ablation's prompts. Without, these are read with the encoder's output
    /// of the task.
    ///
    /// ```
    /// # use tch_lens::{Config, HookedEncoderDecoder, HookedTransformer};
    /// use tch_lens::circuits::{Ablation, CircuitTask, EdgeMethod};
    /// use tch_lens::Metric;
    /// # let encoder = Config::new(2, 16, 2, 50, 12).encoder();
    /// # let decoder = HookedTransformer::init(Config::new(2, 16, 2, 50, 12).decoder_of(&encoder), 1)?;
    /// # let model = HookedEncoderDecoder::new(HookedTransformer::init(encoder, 0)?, decoder, Some(0))?;
    /// let decoder = model.decoder_of([8, 2, 30, 5, 1])?; // reads the encoder's output for this input
    /// let ablation = Ablation::counterfactual([0, 7, 4]).encoder_output(model.encode([8, 2, 31, 5, 1])?);
    /// let metric = Metric::logit_diff(9, 10);
    /// let task = CircuitTask::new(&decoder, [0, 7, 4], ablation, &metric)?;
    /// let scores = task.edge_scores(EdgeMethod::Gradient)?;
    /// // How important is what head 1 of layer 0 reads of the encoder for its values?
    /// println!("{}", scores.get("encoder->c0.h1<v>".parse()?)?);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn encoder_output(mut self, output: EncoderOutput) -> Self {
        self.encoder_output = Some(output);
        self
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
    /// The model and the prompts of a counterfactual ablation.
    pub(super) counterfactual: Option<(HookedTransformer, Tokens)>,
    pub(super) clean: Activations,
    pub(super) ablated: Activations,
    /// What each sender writes to the stream where it is ablated: `[sender, batch or 1, pos or 1, d_model]`.
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
        if model.config().attention.indexer.is_some() {
            return Err(Error::unsupported(
                "a circuit has no edges into a network that chooses keys, which this model has",
            ));
        }
        let model = model.ungrouped()?;
        let graph = CircuitGraph::new(model.config());
        let tokens = model.to_tokens(clean)?;
        let points = Activations::points(&graph, model.config());
        let names = [points.clone(), metric.needs(model.config())?].concat();
        let output = model.run(&tokens, RunOptions::new().cache(names).logits_at(metric.positions().clone()))?;
        let clean_metric = metric.scalar(output.logits()?, &output.cache)?.f_double_value(&[])?;
        let clean = Activations::of_cache(&graph, &output.cache, model.encoder_output())?;
        let Ablation { source, encoder_output } = ablation;
        let other_model = match encoder_output {
            None => model.clone(),
            Some(_) if matches!(source, Source::Zero) => {
                let why = "an ablation to zero reads no encoder's output: leave out `encoder_output`";
                return Err(Error::setting("encoder_output", why));
            }
            Some(output) => model.with_encoder_output(output)?,
        };
        let run = |tokens: &Tokens| {
            let run = RunOptions::new().cache(points.clone()).return_type(crate::ReturnType::None);
            Activations::of_cache(&graph, &other_model.run(tokens, run)?.cache, other_model.encoder_output())
        };
        let mut counterfactual = None;
        let ablated = match source {
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
                counterfactual = Some((other_model.clone(), other));
                ablated
            }
            Source::Mean { of, per_position } => {
                let other = model.to_tokens(of)?;
                let (found, len) = (other.ids.size(), tokens.ids.size()[1]);
                let fits = !per_position || found[1] == len;
                check(fits, "the tensor of tokens to average", found, format!("{len} positions, as the task's"))?;
                let mask = other_model.encoder_output().and_then(EncoderOutput::mask);
                run(&other)?.mean(&other, mask, per_position)?
            }
        };
        let encoded = [&clean, &ablated].map(|of| of.encoder.as_ref().map_or(Vec::new(), Tensor::size));
        if let [[_, expected, _], [_, found, _]] = encoded.each_ref().map(Vec::as_slice) {
            let fits = found == expected || *found == 1;
            let expected = format!("{expected} positions, as the task's");
            check(fits, "the ablation's output of the encoder", encoded[1].clone(), expected)?;
        }
        let masks = [&model, &other_model].map(|model| model.encoder_output().and_then(EncoderOutput::mask));
        let same = match masks {
            [Some(mask), Some(other)] => mask.size() == other.size() && mask.f_equal(other)?,
            [mask, other] => mask.is_none() && other.is_none(),
        };
        if counterfactual.is_some() && !same {
            return Err(Error::wrong_input(
                "the ablation's output of the encoder has padding elsewhere than the task's: give inputs of the same lengths",
            ));
        }
        let ablated_writes = ablated.written(&graph, model.transformer())?;
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

    /// By how much what each sender writes to the stream differs where it is ablated: `[sender, batch, pos, d_model]`.
    pub(super) fn differences(&self) -> Result<Tensor> {
        Ok(self.ablated_writes.f_sub(&self.clean.written(&self.graph, self.model.transformer())?)?)
    }
}

fn check(holds: bool, what: &str, found: Vec<i64>, expected: String) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(Error::Shape { what: what.into(), found, expected }),
    }
}
