//! [`HookedTransformer::attribution_graph`]: which rows are computed, and in which order.

use tch::{Kind as Numbers, Tensor};

use super::columns::{Kind, Order};
use super::frozen::{whole, FrozenModel};
use super::graph::{AttributionGraph, GraphLogit};
use super::influence::Edges;
use super::node::AttributionNode;
use super::options::AttributionGraphOptions;
use super::replacement::{LocalReplacement, LogitDirections, Target};
use super::rows::RowStore;
use super::units::{add_points, FeatureUnits, NeuronUnits, Units};
use super::wave::doubles;
use crate::analysis::window::View;
use crate::cache::ActivationCache;
use crate::config::AttentionDir;
use crate::hook;
use crate::hooked_transformer::SingleToken;
use crate::tensor::precision::widened;
use crate::tensor::scalar::Scalar;
use crate::text::input::Input;
use crate::{Error, HookedTransformer, Result, RunOptions};

/// How many rows are computed together at most, whatever the batch size.
const AT_ONCE: usize = 128;

/// What a graph's division by sums of edges is guarded with: circuit-tracer's number while a graph grows.
const FLOOR: f64 = 1e-8;

/// The run that a graph is of.
pub(super) struct GraphRun {
    pub(super) cache: ActivationCache,
    pub(super) ids: Vec<i64>,
    /// The logits of the last position, as the model gives them: `[d_vocab_out]`.
    pub(super) logits: Tensor,
}

/// What a graph will need, before it is made: from [`HookedTransformer::estimate_graph`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphEstimate {
    /// The sources: active units, heads where these are nodes, errors and tokens.
    pub n_sources: usize,
    /// Those of them that are active units or heads.
    pub n_active: usize,
    /// The targets whose edges are computed.
    pub n_rows: usize,
    /// The bytes of a dense matrix of edges from all sources to these targets.
    pub dense_bytes: u64,
    /// The bytes that edges take at most: of each target those from sources before it.
    pub edge_bytes: u64,
    /// The bytes of edges in memory, within [`AttributionGraphOptions::memory`].
    pub memory_bytes: u64,
    /// The bytes of edges in a temporary file at most.
    pub disk_bytes: u64,
    /// The bytes of gradients while rows are computed.
    pub working_bytes: u64,
}

impl HookedTransformer {
    /// The attribution graph of a prompt: which embeddings, units and errors make which logits, through which units.
    ///
    /// See the [module](crate::graphs) for what nodes and edges are. Neurons are the units of every layer without a transcoder.
    ///
    /// ```
    /// use tch_lens::graphs::AttributionGraphOptions;
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let options = AttributionGraphOptions::new().logits([" Mary", " John"]).max_nodes(100);
    /// let graph = model.attribution_graph("When Mary and John went to the shop, John gave a bag to", options)?;
    /// assert_eq!(graph.n_selected(), 100);
    /// assert!(graph.residual()? < 1e-4); // what is missing of what targets read, relative
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`]; [`Error::Shape`] for several prompts; [`Error::Setting`] for settings out of range;
    /// [`Error::Io`] where edges do not fit into the memory that was allowed, nor on the disk; [`Error::Unsupported`] for an encoder without
    /// an unembedding.
    pub fn attribution_graph(
        &self,
        input: impl Into<Input>,
        options: AttributionGraphOptions,
    ) -> Result<AttributionGraph> {
        options.check()?;
        let run = self.graph_run(input.into(), &options)?;
        let replacement = self.local_replacement(&run.cache, &options)?;
        let (logits, of_graph) = self.graph_logits(&run, &options)?;
        let columns = &replacement.columns;
        let (n_targets, n_logits) = (columns.targets(), of_graph.len());
        let max_nodes = options.max_nodes.unwrap_or(n_targets).min(n_targets);
        let mut store = RowStore::new(options.memory);
        let mut nodes: Vec<usize> = Vec::with_capacity(max_nodes + n_logits);
        let node_of = |target: Target| match target {
            Target::Node(column) => column,
            Target::Logit(logit) => columns.len + logit,
        };
        let at_once = options.batch_size.min(AT_ONCE);
        let compute = |targets: &[Target], store: &mut RowStore, nodes: &mut Vec<usize>| {
            replacement.rows(targets, &logits, at_once, |target, row, edges| {
                nodes.push(node_of(target));
                store.push(row, edges)
            })
        };
        let of_logits: Vec<Target> = (0..n_logits).map(Target::Logit).collect();
        compute(&of_logits, &mut store, &mut nodes)?;
        let weights: Vec<(usize, f64)> =
            of_graph.iter().zip(columns.len..).map(|(logit, node)| (node, logit.probability)).collect();
        let mut visited = vec![false; n_targets];
        let mut n_visited = 0;
        while n_visited < max_nodes {
            let pending: Vec<usize> = match max_nodes == n_targets {
                true => (0..n_targets).collect(),
                false => {
                    let len = columns.len + n_logits;
                    let edges = Edges { store: &store, columns, nodes: &nodes, len };
                    let influence = edges.influence(&weights, None, FLOOR)?;
                    let queue = options.queue(max_nodes).min(max_nodes - n_visited);
                    let mut candidates: Vec<usize> = (0..n_targets).filter(|node| !visited[*node]).collect();
                    let by_influence = |a: &usize, b: &usize| influence[*b].total_cmp(&influence[*a]).then(a.cmp(b));
                    if queue < candidates.len() {
                        candidates.select_nth_unstable_by(queue, by_influence);
                        candidates.truncate(queue);
                    }
                    candidates
                }
            };
            n_visited += pending.len();
            pending.iter().for_each(|node| visited[*node] = true);
            let targets: Vec<Target> = pending.into_iter().map(Target::Node).collect();
            compute(&targets, &mut store, &mut nodes)?;
        }
        let selected: Vec<usize> = (0..n_targets).filter(|node| visited[*node]).collect();
        AttributionGraph::new(self, &run.ids, &replacement, of_graph, selected, (store, nodes), &options)
    }

    /// What [`HookedTransformer::attribution_graph`] will need with these settings, by one run of the model.
    ///
    /// ```
    /// use tch_lens::graphs::AttributionGraphOptions;
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let options = AttributionGraphOptions::new().max_nodes(100);
    /// let estimate = model.estimate_graph("When Mary and John went to the shop, John gave a bag to", options)?;
    /// assert!(estimate.edge_bytes < estimate.dense_bytes);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::attribution_graph`].
    pub fn estimate_graph(&self, input: impl Into<Input>, options: AttributionGraphOptions) -> Result<GraphEstimate> {
        options.check()?;
        let run = self.graph_run(input.into(), &options)?;
        let replacement = self.local_replacement(&run.cache, &options)?;
        let n_logits = self.graph_logits(&run, &options)?.1.len();
        let columns = &replacement.columns;
        let n_targets = columns.targets();
        let n_rows = options.max_nodes.unwrap_or(n_targets).min(n_targets);
        let reach = |target| {
            let (place, position) = replacement.place(target)?;
            Ok(columns.reach(place, position) as u64)
        };
        let mut reaches = (0..n_targets).map(|node| reach(Target::Node(node))).collect::<Result<Vec<u64>>>()?;
        reaches.sort_unstable_by_key(|n| std::cmp::Reverse(*n));
        let of_logits = n_logits as u64 * reach(Target::Logit(0))?;
        let edge_bytes = 4 * (of_logits + reaches.iter().take(n_rows).sum::<u64>());
        let memory_bytes = edge_bytes.min(options.memory.unwrap_or(u64::MAX));
        let rows = options.batch_size.min(AT_ONCE).min(n_rows + n_logits) as u64;
        let size = widened(&replacement.frozen.embed)?.f_kind()?.elt_size_in_bytes() as u64;
        // Gradients, and what they become between values and heads.
        let gradients = rows * (replacement.frozen.n_pos * self.config().d_model) as u64 * size;
        Ok(GraphEstimate {
            n_sources: columns.len,
            n_active: n_targets,
            n_rows: n_rows + n_logits,
            dense_bytes: 4 * (n_rows + n_logits) as u64 * (columns.len + n_logits) as u64,
            edge_bytes,
            memory_bytes,
            disk_bytes: edge_bytes - memory_bytes,
            working_bytes: 5 * gradients + 4 * rows * columns.len as u64,
        })
    }

    /// Runs the model on one prompt, and keeps what a graph is made of.
    pub(super) fn graph_run(&self, input: Input, options: &AttributionGraphOptions) -> Result<GraphRun> {
        let tokens = self.to_tokens(input)?;
        let size = tokens.ids.size();
        if size[0] != 1 {
            let what = "the tensor of an attribution graph's prompts".into();
            return Err(Error::Shape { what, found: size, expected: "one prompt, [1, pos]".into() });
        }
        if tokens.mask.is_some() {
            return Err(Error::wrong_input(
                "an attribution graph is of a prompt without padding: give the prompt alone",
            ));
        }
        let ids = tokens.rows()?.remove(0);
        let model = self.transformer();
        let mut points = FrozenModel::points(model)?;
        points.push(hook::unembed_out());
        if let Some(set) = &options.transcoders {
            add_points(&mut points, FeatureUnits::points(model, set)?);
        }
        for layer in (0..self.config().n_layers).filter(|layer| options.transcoder(*layer).is_none()) {
            add_points(&mut points, NeuronUnits::points(model, layer)?);
        }
        if options.heads {
            add_points(&mut points, (0..self.config().n_layers).map(hook::z));
        }
        let output = self.run(&tokens, RunOptions::new().cache(points).logits_at(-1))?;
        let logits = widened(&output.logits()?.f_reshape([-1i64])?)?;
        Ok(GraphRun { cache: output.cache, ids, logits })
    }

    /// The frozen model of a run, with the units of each layer.
    pub(super) fn local_replacement<'r>(
        &'r self,
        cache: &'r ActivationCache,
        options: &AttributionGraphOptions,
    ) -> Result<LocalReplacement<'r>> {
        let frozen = FrozenModel::of_run(cache, self.encoder_output())?;
        let window = whole(cache)?;
        let view = View::new(cache, &window);
        let n_layers = self.config().n_layers;
        let features = match &options.transcoders {
            Some(set) => FeatureUnits::of_run(cache.model(), set, &view, options.first_pos.unwrap_or(1))?,
            None => (0..n_layers).map(|_| None).collect(),
        };
        let mut units: Vec<Option<Box<dyn Units + 'r>>> = Vec::with_capacity(n_layers);
        for (layer, features) in features.into_iter().enumerate() {
            units.push(match features {
                Some(features) => Some(Box::new(features)),
                None => {
                    let neurons = NeuronUnits::of_run(cache.model(), layer, &view)?;
                    neurons.map(|neurons| Box::new(neurons) as Box<dyn Units + 'r>)
                }
            });
        }
        let heads = match options.heads {
            true => {
                let each = frozen.layers.iter().enumerate().map(|(layer, frozen)| {
                    frozen.attention.results(&view.get(hook::z(layer))?) // [pos, head, d_model]
                });
                Some(each.collect::<Result<Vec<_>>>()?)
            }
            false => None,
        };
        let causal = self.config().attention.direction == AttentionDir::Causal;
        let order = Order { parallel: self.config().parallel_attn_mlp, causal };
        let n_pos = (frozen.n_pos, frozen.encoder_positions());
        let columns = LocalReplacement::columns_of(&units, heads.as_deref(), n_pos, order);
        Ok(LocalReplacement { frozen, units, heads, columns })
    }

    /// The logits that are nodes.
    pub(super) fn graph_logits(
        &self,
        run: &GraphRun,
        options: &AttributionGraphOptions,
    ) -> Result<(LogitDirections, Vec<GraphLogit>)> {
        let d_vocab = self.config().d_vocab_out;
        let probabilities = run.logits.f_to_kind(Numbers::Double)?.f_softmax(-1, Numbers::Double)?;
        let ids: Vec<i64> = match &options.logits {
            Some(tokens) => {
                let id = |token: &SingleToken| match token {
                    SingleToken::Text(text) => self.to_single_token(text),
                    SingleToken::Id(id) => Ok(*id),
                };
                tokens.iter().map(id).collect::<Result<_>>()?
            }
            None => {
                let n = options.max_logits.min(d_vocab) as i64;
                let (top, ids) = probabilities.f_topk(n, -1, true, true)?;
                let (top, ids) = (doubles(&top)?, Vec::<i64>::try_from(ids.f_to_device(tch::Device::Cpu)?)?);
                let mut sum = 0.0;
                let fewer = top.iter().take_while(|p| {
                    sum += **p;
                    sum < options.logit_probability
                });
                let n = fewer.count() + 1;
                ids.into_iter().take(n).collect()
            }
        };
        if ids.is_empty() {
            return Err(Error::option_value("logits", "empty", "name at least one token"));
        }
        if let Some(id) = ids.iter().find(|id| !(0..d_vocab as i64).contains(id)) {
            return Err(Error::TokenOutOfRange { id: *id, d_vocab });
        }
        for (i, id) in ids.iter().enumerate() {
            if ids[..i].contains(id) {
                return Err(Error::option_value("logits", id, "a token is a node once"));
            }
        }
        let chosen = Tensor::f_from_slice(&ids)?.f_to_device(self.device())?;
        let unembedding = self.transformer().unembedding()?;
        let mean = |x: &Tensor| -> Result<Tensor> { Ok(widened(x)?.f_mean_dim([0i64].as_slice(), true, None)?) };
        let rows = widened(&unembedding.weight.f_index_select(0, &chosen)?)?;
        let directions = rows.f_sub(&mean(&unembedding.weight)?)?; // [logit, d_model]
        let centred =
            |x: &Tensor| -> Result<Vec<f64>> { doubles(&widened(&x.f_index_select(0, &chosen)?)?.f_sub(&mean(x)?)?) };
        let biases = match &unembedding.bias {
            Some(bias) => centred(bias)?,
            None => vec![0.0; ids.len()],
        };
        let before_cap = run.cache.get(hook::unembed_out())?.f_reshape([-1i64])?;
        let values = centred(&before_cap)?;
        let of_ids = doubles(&probabilities.f_index_select(0, &chosen)?)?;
        let logits = ids.iter().zip(of_ids).map(|(id, probability)| GraphLogit { id: *id, probability });
        Ok((LogitDirections { directions, biases, values }, logits.collect()))
    }
}

/// The nodes of all sources, by their numbers.
pub(super) fn node_at(
    replacement: &LocalReplacement<'_>,
    ids: &[i64],
    column: usize,
) -> Result<(AttributionNode, f32)> {
    let Some((kind, group, index)) = replacement.columns.locate(column) else {
        return Err(Error::Internal("a graph's source is in no group"));
    };
    let pos = group.position(index);
    Ok(match kind {
        Kind::Encoder => (AttributionNode::Encoder { pos: index }, 0.0),
        Kind::Units(layer) => match &replacement.units[layer] {
            Some(units) => (units.node(index, pos), units.table().activations[index]),
            None => return Err(Error::Internal("a layer without units has one in a graph")),
        },
        Kind::Heads(layer) => {
            let per_position = group.len() / replacement.frozen.n_pos.max(1);
            let head = index % per_position.max(1);
            let written = replacement.heads.as_ref().map(|heads| heads[layer].f_get(pos as i64)?.f_get(head as i64));
            let value = match written.transpose()? {
                Some(written) => written.norm_over(&[-1], false)?.f_double_value(&[])?,
                None => 0.0,
            };
            (AttributionNode::Head { layer, pos, head }, value as f32)
        }
        Kind::Errors(layer) => (AttributionNode::Error { layer, pos }, 0.0),
        Kind::Tokens => (AttributionNode::Token { pos, id: ids.get(pos).copied().unwrap_or(-1) }, 0.0),
    })
}
