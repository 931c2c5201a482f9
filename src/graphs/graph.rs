//! [`AttributionGraph`]: nodes, edges and what they add up to.

use std::collections::HashMap;

use tch::{Kind as Numbers, Tensor};

use super::attribute::node_at;
use super::columns::{Columns, Kind};
use super::influence::Edges;
use super::node::AttributionNode;
use super::options::AttributionGraphOptions;
use super::replacement::LocalReplacement;
use super::rows::{visit, RowStore};
use crate::{Error, HookedTransformer, Result};

/// A logit of an attribution graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GraphLogit {
    /// The token's id.
    pub id: i64,
    /// Its probability in the run: the weight with which influence begins at it.
    pub probability: f64,
}

/// How much of a graph runs through its units rather than through errors: circuit-tracer's scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GraphScores {
    /// The influence of tokens, as a share of that of tokens and errors: paths from tokens to logits through units alone.
    pub replacement: f64,
    /// The share of all inputs that come from other nodes than errors, each target weighed by its influence.
    pub completeness: f64,
}

/// An attribution graph: direct linear effects between embeddings, units, errors and logits, at the patterns, scales and gates of one run.
///
/// Made by [`HookedTransformer::attribution_graph`]. Nodes have numbers: units by layer, position and number, then heads, errors by layer
/// and position, tokens and logits, which is circuit-tracer's order. An edge is what the source, as it was in the run, adds directly to what
/// the target reads.
#[derive(Debug)]
pub struct AttributionGraph {
    pub(super) nodes: Vec<AttributionNode>,
    pub(super) activations: Vec<f32>,
    pub(super) logits: Vec<GraphLogit>,
    pub(super) columns: Columns,
    pub(super) store: RowStore,
    /// The node of each row.
    pub(super) targets: Vec<usize>,
    /// The row of each node that is a target.
    row_of: HashMap<usize, usize>,
    pub(super) n_layers: usize,
    pub(super) ids: Vec<i64>,
    /// The tokens as text, where there is a tokenizer.
    pub(super) texts: Option<Vec<String>>,
    pub(super) logit_texts: Option<Vec<String>>,
    pub(super) prompt: Option<String>,
    n_active: usize,
}

impl AttributionGraph {
    pub(super) fn new(
        model: &HookedTransformer,
        ids: &[i64],
        replacement: &LocalReplacement<'_>,
        logits: Vec<GraphLogit>,
        selected: Vec<usize>,
        (store, rows): (RowStore, Vec<usize>),
        options: &AttributionGraphOptions,
    ) -> Result<Self> {
        let all = &replacement.columns;
        let n_active = all.targets();
        let (columns, store, targets) = match selected.len() == n_active {
            true => (all.clone(), store, rows),
            false => narrowed(all, &selected, (store, rows), options)?,
        };
        let leaves = n_active..all.len;
        let mut nodes = Vec::with_capacity(columns.len + logits.len());
        let mut activations = Vec::with_capacity(columns.len + logits.len());
        for column in selected.iter().copied().chain(leaves) {
            let (node, activation) = node_at(replacement, ids, column)?;
            nodes.push(node);
            activations.push(activation);
        }
        let pos = ids.len().saturating_sub(1);
        nodes.extend(logits.iter().map(|logit| AttributionNode::Logit { pos, id: logit.id }));
        activations.extend(logits.iter().map(|_| 0.0));
        let (mut texts, mut logit_texts, mut prompt) = (None, None, None);
        if let Ok(tokenizer) = model.tokenizer() {
            let text = |id: i64| tokenizer.decode(&[id]);
            texts = Some(ids.iter().map(|id| text(*id)).collect::<Result<_>>()?);
            logit_texts = Some(logits.iter().map(|logit| text(logit.id)).collect::<Result<_>>()?);
            prompt = Some(tokenizer.decode(ids)?);
        }
        let row_of = targets.iter().enumerate().map(|(row, node)| (*node, row)).collect();
        Ok(AttributionGraph {
            nodes,
            activations,
            logits,
            columns,
            store,
            targets,
            row_of,
            n_layers: model.config().n_layers,
            ids: ids.to_vec(),
            texts,
            logit_texts,
            prompt,
            n_active,
        })
    }

    /// All nodes, in the order of their numbers.
    pub fn nodes(&self) -> &[AttributionNode] {
        &self.nodes
    }

    /// How many layers the model has.
    pub fn n_layers(&self) -> usize {
        self.n_layers
    }

    /// What a node is called: the text of a token or logit where there is a tokenizer, else `L1F27`, `L1N27`, `L1H2`, `error 1`.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] for a number beyond the nodes.
    pub fn label(&self, node: usize) -> Result<String> {
        self.check(node)?;
        let text = |texts: &Option<Vec<String>>, place: usize, id: i64| {
            texts.as_ref().and_then(|texts| texts.get(place).cloned()).unwrap_or_else(|| id.to_string())
        };
        Ok(match self.nodes[node] {
            AttributionNode::Token { pos, id } => text(&self.texts, pos, id),
            AttributionNode::Logit { id, .. } => text(&self.logit_texts, node - self.columns.len, id),
            other => other.to_string().split('@').next().unwrap_or_default().to_string(),
        })
    }

    /// The number of a node; `None` where the graph does not have it.
    pub fn index_of(&self, node: AttributionNode) -> Option<usize> {
        self.nodes.iter().position(|other| *other == node)
    }

    /// The logits that are nodes, in the order of their numbers.
    pub fn logits(&self) -> &[GraphLogit] {
        &self.logits
    }

    /// The tokens of the prompt.
    pub fn tokens(&self) -> &[i64] {
        &self.ids
    }

    /// How many units and heads are nodes. They have the first numbers.
    pub fn n_selected(&self) -> usize {
        self.columns.targets()
    }

    /// How many units and heads were active in the run.
    pub fn n_active(&self) -> usize {
        self.n_active
    }

    /// The activation of a unit (of an expert's neuron, by the router's weight), or the length of what a head writes; 0 for other nodes.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] for a number beyond the nodes.
    pub fn activation(&self, node: usize) -> Result<f64> {
        self.check(node)?;
        Ok(f64::from(self.activations[node]))
    }

    /// The edges into a node, as the numbers of sources and their effects; empty for nodes that are no targets.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] for a number beyond the nodes; [`Error::Io`] where edges on disk cannot be read.
    pub fn edges_into(&self, node: usize) -> Result<Vec<(usize, f32)>> {
        self.check(node)?;
        let mut edges = Vec::new();
        if let Some(row) = self.row_of.get(&node) {
            self.store.for_each(*row, &self.columns, |source, edge| edges.push((source, edge)))?;
        }
        Ok(edges)
    }

    /// The edge from a node to another; 0 where there is none.
    ///
    /// # Errors
    ///
    /// Those of [`AttributionGraph::edges_into`].
    pub fn edge(&self, source: usize, target: usize) -> Result<f64> {
        self.check(source)?;
        let edges = self.edges_into(target)?;
        Ok(edges.iter().find(|(of, _)| *of == source).map_or(0.0, |(_, edge)| f64::from(*edge)))
    }

    /// The edges as a dense matrix, `[target, source]` over all nodes: circuit-tracer's `adjacency_matrix`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if memory runs out; [`Error::Io`] where edges on disk cannot be read.
    pub fn adjacency(&self) -> Result<Tensor> {
        let n = self.nodes.len();
        let matrix = Tensor::f_zeros([n as i64, n as i64], (Numbers::Float, tch::Device::Cpu))?;
        for (row, target) in self.targets.iter().enumerate() {
            let mut line = vec![0.0f32; n];
            self.store.for_each(row, &self.columns, |source, edge| line[source] = edge)?;
            matrix.f_select(0, *target as i64)?.f_copy_(&Tensor::f_from_slice(&line)?)?;
        }
        Ok(matrix)
    }

    /// What a target reads in the run: the pre-activation of a unit, the length of what a head writes, a logit less the mean of all logits.
    /// `None` for nodes that are no targets.
    pub fn value(&self, node: usize) -> Option<f64> {
        self.row_of.get(&node).map(|row| self.store.row(*row).value)
    }

    /// What constants add to what a target reads: its own bias, those of the model and of transcoders, position embeddings, and all that is no
    /// node at a position without nodes. `None` for nodes that are no targets.
    pub fn constant(&self, node: usize) -> Option<f64> {
        self.row_of.get(&node).map(|row| self.store.row(*row).constant)
    }

    /// What active units and heads that are no nodes add to what a target reads. `None` for nodes that are no targets.
    pub fn left_out(&self, node: usize) -> Option<f64> {
        self.row_of.get(&node).map(|row| self.store.row(*row).left_out)
    }

    /// By how much the sums fail: the largest difference, over all targets, between what a target reads and the sum of its edges, its constants
    /// and what is left out, relative to the sum of their absolute values.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where edges on disk cannot be read.
    #[must_use = "the sums may fail"]
    pub fn residual(&self) -> Result<f64> {
        let mut worst: f64 = 0.0;
        for row in 0..self.store.len() {
            let relative = self.store.with(row, |row, edges| {
                let (mut sum, mut size) = (row.constant + row.left_out, row.constant.abs() + row.left_out.abs());
                for edge in edges {
                    sum += f64::from(*edge);
                    size += f64::from(edge.abs());
                }
                (sum - row.value).abs() / size.max(row.value.abs()).max(f64::MIN_POSITIVE)
            })?;
            worst = if relative.is_nan() { f64::NAN } else { worst.max(relative) };
        }
        Ok(worst)
    }

    /// The influence of each node on the logits: a logit's is its probability, passed on by every target to its sources in proportion to
    /// the absolute values of the edges. Influence that arrives at a logit itself is none. circuit-tracer's `compute_node_influence`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where edges on disk cannot be read.
    pub fn influence(&self) -> Result<Vec<f64>> {
        self.edges().influence(&self.weights(), None, 1e-10)
    }

    /// circuit-tracer's `compute_graph_scores`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where edges on disk cannot be read.
    pub fn scores(&self) -> Result<GraphScores> {
        let influence = self.influence()?;
        let is_error = |node: usize| matches!(self.nodes[node], AttributionNode::Error { .. });
        let total = |of: fn(&AttributionNode) -> bool| -> f64 {
            self.nodes.iter().zip(&influence).filter(|(node, _)| of(node)).map(|(_, influence)| influence).sum()
        };
        let tokens = total(|node| matches!(node, AttributionNode::Token { .. } | AttributionNode::Encoder { .. }));
        let errors = total(|node| matches!(node, AttributionNode::Error { .. }));
        let mut output = influence.clone();
        self.weights().iter().for_each(|(node, weight)| output[*node] += weight);
        // A node without edges has no errors among them.
        let mut complete: f64 = output.iter().sum();
        let all = complete;
        for (row, target) in self.targets.iter().enumerate() {
            let (mut of_errors, mut sum) = (0.0, 0.0);
            self.store.for_each(row, &self.columns, |source, edge| {
                let size = f64::from(edge.abs());
                sum += size;
                of_errors += if is_error(source) { size } else { 0.0 };
            })?;
            complete -= output[*target] * of_errors / sum.max(1e-10);
        }
        Ok(GraphScores { replacement: tokens / (tokens + errors), completeness: complete / all })
    }

    /// The bytes of edges in memory, and those in a temporary file.
    pub fn edge_bytes(&self) -> (u64, u64) {
        self.store.bytes()
    }

    pub(super) fn weights(&self) -> Vec<(usize, f64)> {
        self.logits.iter().zip(self.columns.len..).map(|(logit, node)| (node, logit.probability)).collect()
    }

    pub(super) fn edges(&self) -> Edges<'_> {
        Edges { store: &self.store, columns: &self.columns, nodes: &self.targets, len: self.nodes.len() }
    }

    pub(super) fn check(&self, node: usize) -> Result<()> {
        match node < self.nodes.len() {
            true => Ok(()),
            false => Err(Error::wrong_input(format!("node {node} is beyond the graph's {} nodes", self.nodes.len()))),
        }
    }
}

/// The rows with the selected units and heads alone as sources; what the others add is summed.
fn narrowed(
    all: &Columns,
    selected: &[usize],
    (store, rows): (RowStore, Vec<usize>),
    options: &AttributionGraphOptions,
) -> Result<(Columns, RowStore, Vec<usize>)> {
    let n_targets = all.targets();
    let mut place = vec![usize::MAX; all.len];
    selected.iter().copied().chain(n_targets..all.len).enumerate().for_each(|(new, old)| place[old] = new);
    let groups = all.groups.iter().map(|(kind, group)| {
        let starts = match kind {
            Kind::Errors(_) | Kind::Tokens | Kind::Encoder => group.starts.clone(),
            Kind::Units(_) | Kind::Heads(_) => {
                let before = |at: usize| selected.partition_point(|column| *column < group.first + at);
                group.starts.iter().map(|start| before(*start) - before(0)).collect()
            }
        };
        (*kind, starts)
    });
    let columns = Columns::new(groups, all.order);
    let mut narrow = RowStore::new(options.memory);
    for index in 0..store.len() {
        let (row, edges) = store.with(index, |row, edges| {
            let mut row = row.clone();
            let mut kept = vec![0.0f32; columns.reach(row.place, row.position)];
            let mut starts: Vec<(usize, usize)> = Vec::new();
            let mut start = 0;
            for (group, n) in columns.support(row.place, row.position) {
                starts.push((group.first, start));
                start += n;
            }
            visit(&row.clone(), edges, all, |source, edge| match place[source] {
                usize::MAX => row.left_out += f64::from(edge),
                new => {
                    let at = starts.partition_point(|(first, _)| *first <= new).saturating_sub(1);
                    if let Some((first, start)) = starts.get(at) {
                        kept[start + new - first] = edge;
                    }
                }
            });
            (row, kept)
        })?;
        narrow.push(row, edges)?;
    }
    let moved = rows.into_iter().map(|node| if node < all.len { place[node] } else { node - all.len + columns.len });
    let moved = moved.collect();
    Ok((columns, narrow, moved))
}
