//! Circuits: the edges between heads and MLPs that do a task, how they are found, and how faithful they are.
//!
//! A model is a [`CircuitGraph`]: the input, each head, each MLP and the logits are nodes. An edge goes from a node that writes to the
//! residual stream to a later one that reads it; a head reads three times, for its queries, keys and values. A [`CircuitTask`] is a model
//! with prompts, a metric and an [`Ablation`], which says what an edge carries that is not in a circuit.
//!
//! | question | method |
//! | --- | --- |
//! | how important is each edge? | [`CircuitTask::edge_scores`], by an [`EdgeMethod`]: EAP, EAP-IG, exact, … |
//! | how important is each node, each dimension that it writes? | [`CircuitTask::node_scores`] |
//! | which edges are the circuit? | [`EdgeScores::top_n`], [`EdgeScores::greedy`], [`EdgeScores::above`] |
//! | which nodes, which dimensions of them? | [`NodeScores::top_n`], [`NodeScores::top_n_dimensions`] |
//! | what does the model do with these edges alone? | [`CircuitTask::metric_of`], [`CircuitTask::faithfulness`] |
//! | is something missing, is something superfluous? | [`CircuitTask::completeness`], [`CircuitTask::minimality`] |
//! | how good are scores, over all sizes? | [`CircuitTask::faithfulness_curve`]: CPR and CMD of the MIB benchmark; [`EdgeScores::auroc`] |
//!
//! ```
//! use tch_lens::circuits::{Ablation, CircuitTask, EdgeMethod};
//! use tch_lens::{HookedTransformer, Metric};
//! let model = HookedTransformer::toy()?;
//! let clean = "When Mary and John went to the shop, John gave a bag to";
//! let corrupted = "When Mary and John went to the shop, Mary gave a bag to";
//! let metric = Metric::logit_diff(" Mary", " John");
//! let task = CircuitTask::new(&model, clean, Ablation::counterfactual(corrupted), &metric)?;
//! let scores = task.edge_scores(EdgeMethod::IntegratedInputs { steps: 5 })?;
//! let circuit = scores.top_n(70)?;
//! assert!(task.faithfulness(&circuit)? > 0.9);
//! # Ok::<(), tch_lens::Error>(())
//! ```
//!
//! Circuits go through all structures but one: a network that chooses the keys which heads see (DeepSeek V3.2, GLM-5) reads the stream
//! itself, and no head's edge leads to it, so such a model is [`Error::Unsupported`](crate::Error::Unsupported). The definitions:
//!
//! | structure | in a circuit |
//! | --- | --- |
//! | grouped queries | are [ungrouped](crate::HookedTransformer::ungrouped): each query head has edges to keys and values of its own |
//! | latents, with their norms | are computed for each head from what it reads |
//! | gates of heads | read what the queries read |
//! | heads that a router chooses | are nodes for each expert and head; the router's weight is a gate, so a head may lose or gain its choice by what it reads |
//! | differential heads | a pair of heads is one node |
//! | norms after a sublayer | are part of what a node writes; one after attention sees the heads of its layer together |
//! | keys and values that later layers look at, too | have edges in the layer that makes them, which lead to the heads of all |
//! | norms of values | are part of how a head reads |
//! | a mask made of values (Doge) | is part of how heads read; each query head of a group has an equal share |
//! | factors of the stream (Gemma 4, BEAM, Doge) | are part of an edge |
//! | per-layer embeddings | are nodes, `e3`; each reads the stream, and its own input by an edge from `layer_inputs` |
//! | cross-attention | has heads of its own, `c3.h1`; their queries read the stream, their keys and values the `encoder` |
//! | a bidirectional model | is as any other: edges do not know positions |
//! | norms of the stream itself (GPT-1, BERT) | are part of an edge: each receiver reads a stream of its own, normalised by itself |
//! | an encoder-decoder | is the [decoder of an input](crate::HookedEncoderDecoder::decoder_of), in which the encoder's output is one node |
//! | parallel blocks | heads and MLP of a layer do not read each other |
//! | a mixture of experts | is one node |

mod circuit;
mod cross;
mod curve;
mod edge_scores;
mod evaluate;
mod graph;
mod json;
mod linear_norm;
mod node;
mod node_scores;
mod part;
mod reaching;
mod scores;
mod senders;
mod task;

pub use circuit::Circuit;
pub use curve::{CurveOptions, FaithfulnessCurve, FaithfulnessPoint};
pub use edge_scores::EdgeMethod;
pub use graph::CircuitGraph;
pub use json::CircuitFile;
pub use node::{CircuitEdge, CircuitNode, HeadInput};
pub use node_scores::NodeMethod;
pub use scores::{EdgeScores, NodeScores};
pub use task::{Ablation, CircuitTask};
