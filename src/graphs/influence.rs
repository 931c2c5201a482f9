//! Influence: how much of what reaches the logits comes through each node.

use super::columns::Columns;
use super::rows::{visit, RowStore};
use crate::Result;

/// Edges with their targets, so that influence passes along them in one go.
pub(super) struct Edges<'g> {
    pub(super) store: &'g RowStore,
    pub(super) columns: &'g Columns,
    /// The node of each row: a source, or a logit, which are numbered after all sources.
    pub(super) nodes: &'g [usize],
    /// How many nodes there are.
    pub(super) len: usize,
}

impl Edges<'_> {
    /// The rows, each after all rows that it passes influence on to.
    pub(super) fn downwards(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.store.len()).collect();
        order.sort_by_key(|row| std::cmp::Reverse(self.store.row(*row).place));
        order
    }

    /// The influence of each node: a node passes its influence on to what it reads in proportion to the absolute values of the edges.
    /// `weights` are the nodes where it begins (they do not count as influence); of nodes that are not in `keep`, nothing is passed.
    /// `floor` is what an edge is divided by at least.
    pub(super) fn influence(&self, weights: &[(usize, f64)], keep: Option<&[bool]>, floor: f64) -> Result<Vec<f64>> {
        let mut influence = vec![0.0; self.len];
        let mut given = vec![0.0; self.len];
        weights.iter().for_each(|(node, weight)| given[*node] += weight);
        let kept = |node: usize| keep.is_none_or(|keep| keep[node]);
        for row in self.downwards() {
            let node = self.nodes[row];
            let arriving: f64 = influence[node] + given[node];
            if arriving == 0.0 || !kept(node) {
                continue;
            }
            self.store.with(row, |row, edges| {
                let sum = match keep {
                    None => edges.iter().map(|edge| f64::from(edge.abs())).sum::<f64>(),
                    Some(keep) => {
                        let mut sum = 0.0;
                        visit(row, edges, self.columns, |source, edge| {
                            sum += if keep[source] { f64::from(edge.abs()) } else { 0.0 };
                        });
                        sum
                    }
                };
                let share = arriving / sum.max(floor);
                visit(row, edges, self.columns, |source, edge| {
                    if kept(source) {
                        influence[source] += share * f64::from(edge.abs());
                    }
                });
            })?;
        }
        Ok(influence)
    }
}

/// The score above which (itself included) scores have a fraction of their sum together.
pub(super) fn threshold(mut scores: Vec<f64>, fraction: f64) -> f64 {
    scores.sort_by(|a, b| b.total_cmp(a));
    let total: f64 = scores.iter().sum();
    let mut sum = 0.0;
    for score in &scores {
        sum += score;
        if sum >= fraction * total {
            return *score;
        }
    }
    scores.last().copied().unwrap_or(0.0)
}
