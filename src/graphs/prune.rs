//! [`PrunedGraph`]: the nodes and edges that most influence passes through.

use super::graph::AttributionGraph;
use super::influence::{threshold, Edges};
use super::node::AttributionNode;
use crate::{Error, Result};

/// How much influence a pruned graph keeps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PruneOptions {
    nodes: f64,
    edges: f64,
}

impl Default for PruneOptions {
    fn default() -> Self {
        PruneOptions { nodes: 0.8, edges: 0.98 }
    }
}

impl PruneOptions {
    /// circuit-tracer's: the nodes with 80 % of the influence together, and the edges between them with 98 %.
    pub fn new() -> Self {
        PruneOptions::default()
    }

    /// The share of the influence of all nodes that those which are kept have together.
    pub fn nodes(mut self, share: f64) -> Self {
        self.nodes = share;
        self
    }

    /// The share of the influence of all edges between them that those which are kept have together.
    pub fn edges(mut self, share: f64) -> Self {
        self.edges = share;
        self
    }

    pub(super) fn node_share(&self) -> f64 {
        self.nodes
    }
}

/// An edge of a graph.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GraphEdge {
    /// The number of the node that writes.
    pub source: usize,
    /// The number of the node that reads.
    pub target: usize,
    /// The direct effect.
    pub effect: f64,
}

/// The nodes and edges of a graph that most influence passes through.
///
/// Made by [`AttributionGraph::prune`], as circuit-tracer's `prune_graph` does.
#[derive(Debug)]
pub struct PrunedGraph<'g> {
    graph: &'g AttributionGraph,
    kept: Vec<bool>,
    edges: Vec<GraphEdge>,
    cumulative: Vec<f64>,
}

impl AttributionGraph {
    /// The nodes and edges that most influence passes through. Tokens and logits stay; of units and heads those that keep an edge from others
    /// and one to others, of errors those that keep one to others.
    ///
    /// ```
    /// use tch_lens::graphs::{AttributionGraphOptions, PruneOptions};
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let options = AttributionGraphOptions::new().logits([" Mary"]).max_nodes(100);
    /// let graph = model.attribution_graph("When Mary and John went to the shop, John gave a bag to", options)?;
    /// let pruned = graph.prune(PruneOptions::new().nodes(0.5))?;
    /// assert!(pruned.nodes().count() < graph.nodes().len());
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for shares that are not between 0 and 1; [`Error::Io`] where edges on disk cannot be read.
    pub fn prune(&self, options: PruneOptions) -> Result<PrunedGraph<'_>> {
        for (name, share) in [("nodes", options.nodes), ("edges", options.edges)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::option_value(name, share, "a share of the influence is between 0 and 1"));
            }
        }
        let influence = self.influence()?;
        let least = threshold(influence.clone(), options.nodes);
        let stays = |node: usize| {
            use AttributionNode::{Encoder, Logit, Token};
            matches!(self.nodes[node], Token { .. } | Encoder { .. } | Logit { .. })
        };
        let mut kept: Vec<bool> = influence.iter().map(|score| *score >= least).collect();
        (0..kept.len()).filter(|node| stays(*node)).for_each(|node| kept[node] = true);
        let (mut edges, scores) = self.scored_edges(&kept)?;
        let least = threshold(scores.clone(), options.edges);
        let mut scores = scores.into_iter();
        edges.retain(|_| scores.next().is_some_and(|score| score >= least));
        loop {
            let (mut reads, mut writes) = (vec![false; kept.len()], vec![false; kept.len()]);
            for edge in &edges {
                (reads[edge.target], writes[edge.source]) = (true, true);
            }
            let lonely = |node: &usize| {
                let needs_inputs = *node < self.n_selected();
                kept[*node] && !stays(*node) && (!writes[*node] || needs_inputs && !reads[*node])
            };
            let gone: Vec<usize> = (0..kept.len()).filter(lonely).collect();
            gone.iter().for_each(|node| kept[*node] = false);
            edges.retain(|edge| kept[edge.source] && kept[edge.target]);
            if gone.is_empty() {
                break;
            }
        }
        edges.sort_by_key(|edge| (edge.target, edge.source));
        let cumulative = cumulative(&influence);
        Ok(PrunedGraph { graph: self, kept, edges, cumulative })
    }

    /// The edges between nodes that are kept, with the influence that passes along each.
    fn scored_edges(&self, kept: &[bool]) -> Result<(Vec<GraphEdge>, Vec<f64>)> {
        let all: Edges<'_> = self.edges();
        let weights = self.weights();
        let mut influence = all.influence(&weights, Some(kept), 1e-10)?;
        weights.iter().for_each(|(node, weight)| influence[*node] += weight);
        let (mut edges, mut scores) = (Vec::new(), Vec::new());
        for (row, target) in self.targets.iter().enumerate().filter(|(_, target)| kept[**target]) {
            let start = edges.len();
            let mut sum = 0.0;
            self.store.for_each(row, &self.columns, |source, edge| {
                if kept[source] {
                    sum += f64::from(edge.abs());
                    edges.push(GraphEdge { source, target: *target, effect: f64::from(edge) });
                }
            })?;
            let share = influence[*target] / sum.max(1e-10);
            scores.extend(edges[start..].iter().map(|edge| edge.effect.abs() * share));
        }
        Ok((edges, scores))
    }
}

impl<'g> PrunedGraph<'g> {
    /// The graph that it is of.
    pub fn graph(&self) -> &'g AttributionGraph {
        self.graph
    }

    /// The numbers of the nodes that are kept.
    pub fn nodes(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.kept.len()).filter(|node| self.kept[*node])
    }

    /// Whether a node is kept; `false` for a number beyond the nodes.
    pub fn contains(&self, node: usize) -> bool {
        self.kept.get(node).copied().unwrap_or(false)
    }

    /// The edges that are kept, by target and source.
    pub fn edges(&self) -> &[GraphEdge] {
        &self.edges
    }

    /// For each node of the graph, the share of all influence that it has together with all nodes that have more: the `influence` of
    /// circuit-tracer's files.
    pub fn cumulative_influence(&self) -> &[f64] {
        &self.cumulative
    }
}

fn cumulative(influence: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..influence.len()).collect();
    order.sort_by(|a, b| influence[*b].total_cmp(&influence[*a]));
    let total: f64 = influence.iter().sum();
    let mut shares = vec![0.0; influence.len()];
    let mut sum = 0.0;
    for node in order {
        sum += influence[node];
        shares[node] = sum / total;
    }
    shares
}
