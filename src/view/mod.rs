//! Pictures of results: pages of HTML, SVG and PNG for papers, what notebooks and terminals show. Feature `view`.
//!
//! A result implements [`Draw`]: it gives a [`Figure`], which says what is drawn. One figure gives all outputs:
//!
//! | output | item |
//! | --- | --- |
//! | a page of HTML in one file, alone or of several results | [`Page`] |
//! | SVG, PNG (feature `png`) | [`Figure::to_svg`], `Figure::to_png` |
//! | a notebook (evcxr) | [`Draw::evcxr_display`] |
//! | a terminal | [`Draw::show`]: an image where the terminal shows these ([`TerminalImages`], feature `png`), else text, which is also `println!("{figure}")` |
//! | the properties of circuitsvis' components | [`Figure::to_circuitsvis`] |
//!
//! ```
//! use tch_lens::view::{AttentionPatterns, Page};
//! use tch_lens::{patching, HookedTransformer, LensOptions, Metric};
//! let model = HookedTransformer::toy()?;
//! let clean = "When Mary and John went to the shop, John gave a bag to";
//! let (_, cache) = model.run_with_cache(clean)?;
//! let corrupted = "When Mary and John went to the shop, Mary gave a bag to";
//! let map = patching::get_act_patch_resid_pre(&model, corrupted, &cache, &Metric::logit_diff(" Mary", " John"))?;
//! let page = Page::new("Who gets the bag?")
//!     .section("Attention", &AttentionPatterns::of(&cache, 0)?)?
//!     .section("Logit lens", &cache.logit_lens(LensOptions::new())?)?
//!     .section("Which streams matter", &map)?;
//! # let folder = std::env::temp_dir().join(format!("tch-lens-view-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder).unwrap();
//! page.save(folder.join("bag.html"))?; // opens in any browser, without the network
//! # std::fs::remove_dir_all(&folder).unwrap();
//! # Ok::<(), tch_lens::Error>(())
//! ```
//!
//! # Which results
//!
//! | result | picture |
//! | --- | --- |
//! | attention patterns: [`AttentionPatterns`] | a grid of heads, each a map from queries to keys, and the tokens |
//! | [`Attribution`](crate::analysis::Attribution) | layer × head, row × position, or bars of the largest rows |
//! | [`Ranking`](crate::analysis::Ranking) | bars |
//! | [`LogitLens`](crate::analysis::LogitLens), also of a [tuned lens, a Jacobian lens or a Patchscope](crate::lens) | a table of the likeliest tokens, coloured by probability |
//! | [`Ranks`](crate::analysis::Ranks) | a table of ranks and probabilities |
//! | [`MetricMap`](crate::patching::MetricMap) | a map around the metric without a patch, or bars |
//! | [`PromptTest`](crate::PromptTest) | a table of the answers and of the likeliest tokens |
//! | [`Generated`](crate::Generated) | the token of each step, coloured by its probability or by the entropy |
//! | [`Circuit`](crate::circuits::Circuit), [`ScoredCircuit`] | nodes in layers and the edges between them |
//! | [`FaithfulnessCurve`](crate::circuits::FaithfulnessCurve) | faithfulness by the share of edges |
//! | [`IntegratedGradients`](crate::gradient::IntegratedGradients) | tokens coloured by their share |
//! | [`AttributionPatching::map`](crate::gradient::AttributionPatching::map) | estimates by layer, head and position |
//! | [`ProbeResult`](crate::probe::ProbeResult), [`ProbeSweep`](crate::probe::ProbeSweep) | accuracies of a probe and of its control |
//! | [`PrunedGraph`](crate::graphs::PrunedGraph) | tokens, heads, units, errors and logits in layers, with the largest edges between them |
//! | [`FeatureExamples`] of a dictionary's feature or a neuron | a table of its strongest tokens in their texts; as a page also the texts, a histogram and the logits that it raises |
//! | [`TokenLogProbs`] | tokens coloured by log-probability, with the likeliest tokens at each position |
//!
//! The parts are public as well, for results of your own: [`TokenStrip`], [`HeatMap`], [`Table`], [`BarChart`], [`LinePlot`] and
//! [`Graph`]. A type of yours that implements [`Draw`] goes into pages like the crate's own.
//!
//! # Pages
//!
//! A page is one file. It asks for nothing from elsewhere: its policy (`Content-Security-Policy`) forbids every request, and every
//! script but its own. Texts are data in it, never markup. It follows the light or dark setting of the system, works by keyboard (Tab
//! to a picture, arrows within it) and on a phone. Numbers lie in it as base64: attention patterns in half precision, or in 8 bits
//! where they are many ([`Precision`]); what is shown of one says how exact it is.

mod attribution_graph;
mod bar_chart;
mod circuits;
mod circuitsvis;
mod color_scale;
mod feature;
mod figure;
mod generation;
mod gradients;
mod graph;
mod heat_map;
mod html;
mod line_plot;
mod notebook;
mod patterns;
#[cfg(feature = "png")]
mod png;
mod probes;
mod results;
mod svg;
mod table;
mod terminal;
mod text;
mod token_log_probs;
mod token_strip;
mod top_tokens;
mod visible;

pub use bar_chart::BarChart;
pub use circuits::ScoredCircuit;
pub use color_scale::ColorScale;
pub use feature::{FeatureExample, FeatureExamples};
pub use figure::{Draw, Drawing, Figure};
pub use graph::{Graph, GraphNode};
pub use heat_map::{HeatMap, HeatMapAxis};
pub use html::Page;
pub use line_plot::LinePlot;
pub use patterns::{AttentionPatterns, Precision};
pub use table::Table;
pub use terminal::TerminalImages;
pub use token_log_probs::TokenLogProbs;
pub use token_strip::TokenStrip;
pub use top_tokens::TopTokens;
