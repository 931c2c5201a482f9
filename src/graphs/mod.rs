//! Attribution graphs: which embeddings, units and errors make a logit, through which units (Ameisen et al. 2025, "Circuit Tracing").
//!
//! The graph is of one prompt, in the local replacement model: attention patterns, the scales of norms, gates and routers stay as they were
//! in the run, MLPs are their *units*, and everything else is linear. Units are the features of transcoders, or of a cross-layer transcoder,
//! where [`AttributionGraphOptions::transcoders`] gives one, and neurons elsewhere; without transcoders, the graph is exact, and has no
//! errors.
//!
//! | node | as a source, it adds | as a target, it reads |
//! | --- | --- | --- |
//! | token | its embedding, and what per-layer embeddings make of it | |
//! | position of an encoder | what cross-attention reads there | |
//! | feature | activation × decoder row | its pre-activation |
//! | neuron | activation × row of `W_out` | its input; in a gated MLP, what its gate multiplies |
//! | head, on request | `z W_O` | its own output along the direction that this has in the run |
//! | error | what a transcoder leaves of the MLP's output | |
//! | logit | | the logit before any cap, less the mean of all |
//!
//! An edge is the product of what the source adds with the gradient of what the target reads, along all paths that pass through no other
//! unit: a direct effect. The edges into a target, its [constants](AttributionGraph::constant) and what is
//! [left out](AttributionGraph::left_out) add up to what it reads; [`AttributionGraph::residual`] says by how much they do not.
//!
//! | question | method |
//! | --- | --- |
//! | how large will it be? | [`estimate_graph`](crate::HookedTransformer::estimate_graph) |
//! | which nodes make these logits? | [`attribution_graph`](crate::HookedTransformer::attribution_graph) |
//! | how much of it do transcoders explain? | [`AttributionGraph::scores`] |
//! | which nodes and edges matter? | [`AttributionGraph::influence`], [`AttributionGraph::prune`] |
//! | what do groups of nodes do together? | [`Supernode`], [`AttributionGraph::supernode_edges`] |
//! | is it what happens? | [`feature_intervention`](crate::HookedTransformer::feature_intervention), with a [`Freeze`] |
//! | how does it go to Neuronpedia? | [`AttributionGraph::to_json`], [`AttributionGraph::write_files`] |
//!
//! Numbers and orders are circuit-tracer's; a unit of the first position is no node there, nor here
//! ([`AttributionGraphOptions::first_pos`]). Gradients of many targets go through the layers at once, as products with the patterns and weights
//! of the run: nothing is recorded for automatic differentiation. A row of edges has those sources alone that come before its target, and
//! rows beyond [`AttributionGraphOptions::memory`] lie in a temporary file.
//!
//! Every model with an unembedding has graphs. Where values are those of an earlier layer, edges go there. A per-layer embedding is linear at
//! its gate, in what it makes of the token: an edge from the token. An encoder-decoder's graph is that of the
//! [decoder of an input](crate::HookedEncoderDecoder::decoder_of), in which each position of the encoder's output is a node.
//!
//! ```
//! use tch_lens::graphs::{AttributionGraphOptions, PruneOptions};
//! use tch_lens::HookedTransformer;
//! let model = HookedTransformer::toy()?;
//! let options = AttributionGraphOptions::new().logits([" Mary"]).heads(true).max_nodes(100);
//! let graph = model.attribution_graph("When Mary and John went to the shop, John gave a bag to", options)?;
//! for edge in graph.prune(PruneOptions::new().nodes(0.4))?.edges() {
//!     println!("{} -> {}: {:+.2}", graph.label(edge.source)?, graph.label(edge.target)?, edge.effect);
//! }
//! # Ok::<(), tch_lens::Error>(())
//! ```

mod attribute;
mod columns;
mod frozen;
mod graph;
mod influence;
mod intervene;
mod json;
mod node;
mod options;
mod prune;
mod replacement;
mod rows;
mod supernodes;
mod units;
mod wave;

pub use attribute::GraphEstimate;
pub use graph::{AttributionGraph, GraphLogit, GraphScores};
pub use intervene::{FeatureIntervention, FeatureInterventionOutput, Freeze};
pub use json::GraphFile;
pub use node::AttributionNode;
pub use options::AttributionGraphOptions;
pub use prune::{GraphEdge, PruneOptions, PrunedGraph};
pub use supernodes::Supernode;
