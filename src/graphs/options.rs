//! [`AttributionGraphOptions`]: the settings of an attribution graph.

use crate::hooked_transformer::SingleToken;
use crate::sae::{Dictionary, DictionarySet};
use crate::{Error, Result};

/// The settings of [`HookedTransformer::attribution_graph`](crate::HookedTransformer::attribution_graph).
///
/// ```
/// use tch_lens::graphs::AttributionGraphOptions;
/// let options = AttributionGraphOptions::new().logits([" Mary"]).max_nodes(200).memory(1 << 20);
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
pub struct AttributionGraphOptions {
    pub(super) transcoders: Option<DictionarySet>,
    pub(super) first_pos: Option<usize>,
    pub(super) logits: Option<Vec<SingleToken>>,
    pub(super) logit_probability: f64,
    pub(super) max_logits: usize,
    pub(super) max_nodes: Option<usize>,
    pub(super) batch_size: usize,
    pub(super) update_interval: Option<usize>,
    pub(super) heads: bool,
    pub(super) memory: Option<u64>,
}

impl Default for AttributionGraphOptions {
    fn default() -> Self {
        AttributionGraphOptions {
            transcoders: None,
            first_pos: None,
            logits: None,
            logit_probability: 0.95,
            max_logits: 10,
            max_nodes: None,
            batch_size: 64,
            update_interval: None,
            heads: false,
            memory: None,
        }
    }
}

impl AttributionGraphOptions {
    /// circuit-tracer's: the likeliest tokens that have 95 % of the probability together, at most 10; all active units.
    pub fn new() -> Self {
        AttributionGraphOptions::default()
    }

    /// The transcoders that stand for MLPs. Layers without one keep their neurons.
    pub fn transcoders(mut self, set: DictionarySet) -> Self {
        self.transcoders = Some(set);
        self
    }

    /// The first position at which features are nodes, with what transcoders leave there; before it, what MLPs add is a constant. It is 1,
    /// as in circuit-tracer: what a model does at its first token is often unlike everything else. Only with
    /// [`transcoders`](AttributionGraphOptions::transcoders).
    pub fn first_pos(mut self, pos: usize) -> Self {
        self.first_pos = Some(pos);
        self
    }

    /// The logits of these tokens, in place of the likeliest ones.
    pub fn logits<T: Into<SingleToken>>(mut self, tokens: impl IntoIterator<Item = T>) -> Self {
        self.logits = Some(tokens.into_iter().map(Into::into).collect());
        self
    }

    /// The probability that the likeliest tokens must have together: as many as reach it are nodes.
    pub fn logit_probability(mut self, probability: f64) -> Self {
        self.logit_probability = probability;
        self
    }

    /// How many of the likeliest tokens are nodes at most.
    pub fn max_logits(mut self, n: usize) -> Self {
        self.max_logits = n;
        self
    }

    /// How many units and heads are nodes at most: those with most influence on the logits. Without, all that are active.
    pub fn max_nodes(mut self, n: usize) -> Self {
        self.max_nodes = Some(n);
        self
    }

    /// How many rows are computed at once: it sets the memory of gradients, `batch_size · positions · d_model` numbers.
    pub fn batch_size(mut self, rows: usize) -> Self {
        self.batch_size = rows;
        self
    }

    /// After so many batches of rows, influences are computed again, and the next nodes are those that have most: circuit-tracer's
    /// `update_interval`, which is 4 there. Without, after every sixteenth of the nodes. The first nodes are chosen by their direct effects on
    /// the logits alone, so many nodes at a time leave out what acts through others. Only with
    /// [`max_nodes`](AttributionGraphOptions::max_nodes).
    pub fn update_interval(mut self, batches: usize) -> Self {
        self.update_interval = Some(batches);
        self
    }

    /// Whether attention heads are nodes. Paths end at a head then: what it reads through its values are the edges into it.
    pub fn heads(mut self, nodes: bool) -> Self {
        self.heads = nodes;
        self
    }

    /// The bytes of memory that edges may take; further ones lie in a temporary file. Without, all of them are in memory.
    /// [`HookedTransformer::estimate_graph`](crate::HookedTransformer::estimate_graph) says how many bytes there are.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// The transcoder of a layer.
    pub(super) fn transcoder(&self, layer: usize) -> Option<&Dictionary> {
        self.transcoders.as_ref().and_then(|set| set.of_layer(layer))
    }

    /// How many nodes are chosen at a time, of so many.
    pub(super) fn queue(&self, max_nodes: usize) -> usize {
        match self.update_interval {
            Some(batches) => batches.saturating_mul(self.batch_size),
            None => max_nodes.div_ceil(16),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.first_pos.is_some() && self.transcoders.is_none() {
            return Err(Error::setting("first_pos", "`first_pos` is of features: give `transcoders`, or leave it out"));
        }
        let counts = [
            ("batch_size", self.batch_size),
            ("update_interval", self.update_interval.unwrap_or(1)),
            ("max_logits", self.max_logits),
            ("max_nodes", self.max_nodes.unwrap_or(1)),
        ];
        if let Some((name, n)) = counts.into_iter().find(|(_, n)| *n == 0) {
            return Err(Error::option_value(name, n, "at least one is needed"));
        }
        if self.update_interval.is_some() && self.max_nodes.is_none() {
            let why = "`update_interval` is of a choice of nodes: give `max_nodes`, or leave it out";
            return Err(Error::setting("update_interval", why));
        }
        let p = self.logit_probability;
        if !(p > 0.0 && p <= 1.0) {
            return Err(Error::option_value("logit_probability", p, "a probability above 0 and up to 1 is needed"));
        }
        Ok(())
    }
}
