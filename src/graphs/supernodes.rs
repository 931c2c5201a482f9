//! [`Supernode`]: several nodes as one.

use tch::Tensor;

use super::graph::AttributionGraph;
use super::intervene::FeatureIntervention;
use super::node::AttributionNode;
use crate::{Error, Result};

/// Nodes of a graph that are looked at as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supernode {
    /// What it is called.
    pub name: String,
    /// The numbers of its nodes.
    pub members: Vec<usize>,
}

impl Supernode {
    /// These nodes, under a name.
    pub fn new(name: impl Into<String>, members: impl Into<Vec<usize>>) -> Self {
        Supernode { name: name.into(), members: members.into() }
    }
}

impl AttributionGraph {
    /// The edges between supernodes: `[target, source]`, the sum of the edges from the members of one to those of another, which is what the
    /// source adds to all that the target's members read together.
    ///
    /// ```
    /// use tch_lens::graphs::{AttributionGraphOptions, AttributionNode, Supernode};
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let options = AttributionGraphOptions::new().logits([" Mary", " John"]).max_nodes(50);
    /// let graph = model.attribution_graph("When Mary and John went to the shop, John gave a bag to", options)?;
    /// let all = 0..graph.nodes().len();
    /// let tokens: Vec<usize> = all.clone().filter(|n| matches!(graph.nodes()[*n], AttributionNode::Token { .. })).collect();
    /// let logits: Vec<usize> = all.filter(|n| matches!(graph.nodes()[*n], AttributionNode::Logit { .. })).collect();
    /// let edges = graph.supernode_edges(&[Supernode::new("tokens", tokens), Supernode::new("logits", logits)])?;
    /// assert_eq!(edges.size(), [2, 2]);
    /// assert_eq!(edges.double_value(&[0, 1]), 0.0); // nothing goes from logits to tokens
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] for a node that does not exist or is in two supernodes; [`Error::Io`] where edges on disk cannot be read.
    pub fn supernode_edges(&self, supernodes: &[Supernode]) -> Result<Tensor> {
        let mut of = vec![None; self.nodes.len()];
        for (number, supernode) in supernodes.iter().enumerate() {
            for member in &supernode.members {
                self.check(*member)?;
                if of[*member].replace(number).is_some() {
                    return Err(Error::wrong_input(format!(
                        "`{}` is in two supernodes, or twice in one",
                        self.nodes[*member]
                    )));
                }
            }
        }
        let n = supernodes.len();
        let mut sums = vec![0.0f64; n * n];
        for (row, target) in self.targets.iter().enumerate() {
            let Some(target) = of[*target] else { continue };
            self.store.for_each(row, &self.columns, |source, edge| {
                if let Some(source) = of[source] {
                    sums[target * n + source] += f64::from(edge);
                }
            })?;
        }
        Ok(Tensor::f_from_slice(&sums)?.f_view([n as i64, n as i64])?)
    }

    /// The interventions that give each feature of a supernode a multiple of the activation that it has in the run: 0 takes them away.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] for a node that does not exist, or that is no feature.
    pub fn interventions(&self, supernode: &Supernode, factor: f64) -> Result<Vec<FeatureIntervention>> {
        let intervention = |member: &usize| {
            let value = factor * self.activation(*member)?;
            match self.nodes[*member] {
                AttributionNode::Feature { layer, pos, feature } => {
                    Ok(FeatureIntervention { layer, pos, feature, value })
                }
                other => Err(Error::wrong_input(format!(
                    "`{other}` of the supernode `{}` is no feature: an intervention is on features",
                    supernode.name
                ))),
            }
        };
        supernode.members.iter().map(intervention).collect()
    }
}
