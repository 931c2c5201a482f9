//! [`Graph`]: nodes in layers, and edges between them.

use crate::{Error, Result};

/// Nodes in layers, the first at the bottom, and weighted edges: circuits and attribution graphs.
///
/// ```
/// use tch_lens::view::{Draw, Graph, GraphNode};
/// let mut graph = Graph::new("effect");
/// let input = graph.node(GraphNode::new("input", 0));
/// let head = graph.node(GraphNode::new("a2.h0", 1).detail("moves the name"));
/// let logits = graph.node(GraphNode::new("logits", 2));
/// graph.edge(input, head, 0.4)?;
/// graph.edge(head, logits, 1.7)?;
/// println!("{}", graph.figure()?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    pub(super) value_name: String,
    pub(super) nodes: Vec<GraphNode>,
    pub(super) edges: Vec<Edge>,
}

/// A node of a [`Graph`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GraphNode {
    pub(super) label: String,
    pub(super) layer: usize,
    pub(super) column: Option<usize>,
    pub(super) detail: String,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Edge {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) weight: f32,
}

impl GraphNode {
    /// A node of a layer.
    pub fn new(label: impl Into<String>, layer: usize) -> Self {
        GraphNode { label: label.into(), layer, ..GraphNode::default() }
    }

    /// Its column, such as its position in the text. Where a node of a graph has none, the nodes of each layer are spread evenly.
    pub fn column(mut self, column: usize) -> Self {
        self.column = Some(column);
        self
    }

    /// What is shown under the pointer, beside the label.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }
}

impl Graph {
    /// A graph without nodes; `value_name` says what the weights of its edges are.
    pub fn new(value_name: impl Into<String>) -> Self {
        Graph { value_name: value_name.into(), ..Graph::default() }
    }

    /// Adds a node, and returns its number.
    pub fn node(&mut self, node: GraphNode) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Adds an edge between two nodes, by their numbers.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`] for a number that no node has; [`Error::Setting`] for a weight that is not finite.
    pub fn edge(&mut self, from: usize, to: usize, weight: f32) -> Result<()> {
        for node in [from, to] {
            if node >= self.nodes.len() {
                let len = self.nodes.len() as i64;
                return Err(Error::SliceOutOfRange { slice: format!("index {node}"), axis: "node", len });
            }
        }
        if !weight.is_finite() {
            return Err(Error::option_value("weight", weight, "the weight of an edge is a finite number"));
        }
        self.edges.push(Edge { from, to, weight });
        Ok(())
    }

    /// Where each node lies: from 0 to 1 across, and its layer counted among those that there are.
    pub(super) fn places(&self) -> (Vec<(f64, usize)>, usize) {
        let mut layers: Vec<usize> = self.nodes.iter().map(|node| node.layer).collect();
        layers.sort_unstable();
        layers.dedup();
        let by_column = !self.nodes.is_empty() && self.nodes.iter().all(|node| node.column.is_some());
        let columns = self.nodes.iter().filter_map(|node| node.column).max().map_or(1, |last| last + 1);
        let place = |(index, node): (usize, &GraphNode)| {
            let same = |other: &GraphNode| other.layer == node.layer && (!by_column || other.column == node.column);
            let before = self.nodes[..index].iter().filter(|other| same(other)).count();
            let all = self.nodes.iter().filter(|other| same(other)).count();
            let within = (before as f64 + 0.5) / all as f64;
            let across = match node.column {
                Some(column) if by_column => (column as f64 + within) / columns as f64,
                _ => within,
            };
            (across, layers.binary_search(&node.layer).unwrap_or(0))
        };
        (self.nodes.iter().enumerate().map(place).collect(), layers.len())
    }
}
