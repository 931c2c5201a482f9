//! How attribution graphs are drawn.

use super::figure::{Draw, Figure};
use super::graph::{Graph, GraphNode};
use crate::graphs::{AttributionNode, PrunedGraph};
use crate::Result;

impl Draw for PrunedGraph<'_> {
    /// Tokens at the bottom, above them heads, units and errors layer by layer at their positions, logits at the top. Of more edges than can be
    /// told apart, those with the largest effects are drawn.
    fn figure(&self) -> Result<Figure> {
        let graph = self.graph();
        let mut drawing = Graph::new("direct effect");
        let mut places = vec![None; graph.nodes().len()];
        let top = 4 * graph.n_layers() + 1;
        for number in self.nodes() {
            let node = graph.nodes()[number];
            let layer = match node {
                AttributionNode::Token { .. } | AttributionNode::Encoder { .. } => 0,
                AttributionNode::Head { layer, .. } => 4 * layer + 1,
                AttributionNode::Error { layer, .. } => 4 * layer + 3,
                AttributionNode::Logit { .. } => top,
                other => other.layer().map_or(0, |layer| 4 * layer + 2),
            };
            let share = 100.0 * self.cumulative_influence()[number];
            let detail = match node {
                AttributionNode::Logit { .. } | AttributionNode::Token { .. } | AttributionNode::Encoder { .. } => {
                    format!("position {}", node.pos())
                }
                _ => format!(
                    "position {}, activation {:.3}, among the nodes with {share:.0} % of the influence",
                    node.pos(),
                    graph.activation(number)?
                ),
            };
            let drawn = GraphNode::new(graph.label(number)?, layer).column(node.pos()).detail(detail);
            places[number] = Some(drawing.node(drawn));
        }
        let mut edges: Vec<_> = self.edges().iter().collect();
        edges.sort_by(|a, b| b.effect.abs().total_cmp(&a.effect.abs()));
        let left_out = edges.len().saturating_sub(EDGES);
        edges.truncate(EDGES);
        for edge in edges {
            if let (Some(from), Some(to)) = (places[edge.source], places[edge.target]) {
                drawing.edge(from, to, edge.effect as f32)?;
            }
        }
        let mut caption =
            String::from("What each node adds directly to what another one reads, with patterns and scales frozen.");
        if left_out > 0 {
            caption += &format!(" {left_out} smaller edges are not drawn.");
        }
        Ok(Figure::new("Attribution graph", drawing).with_caption(caption))
    }
}

/// The most edges that are drawn.
const EDGES: usize = 400;
