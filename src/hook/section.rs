//! [`Section`]: the part of the model that a run passes through.

use std::ops::Range;

use super::point::HookPoint;
use super::site::{Place, Site};
use crate::config::PositionalEmbedding;
use crate::Config;

/// The part of the model that a run passes through.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    pub(crate) start: Start,
    /// The blocks that run.
    pub(crate) layers: Range<usize>,
    /// Whether the last norm and the unembedding come after the blocks; not where the run stops at a layer.
    pub(crate) has_logits: bool,
    pub(crate) end: End,
}

/// Where a run starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Start {
    /// From token ids.
    #[default]
    Tokens,
    /// From token embeddings, to which positions are still added.
    Embeddings,
    /// From the residual stream before the first of the blocks that run.
    Stream,
}

/// Where a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// At the last hook point at which something is done.
    LastPoint,
    /// With the residual stream after the last of the blocks that run.
    Stream,
    /// With the logits.
    Logits,
}

impl Section {
    /// From tokens to logits.
    #[cfg(test)]
    pub(crate) fn whole(config: &Config) -> Self {
        Section { start: Start::Tokens, layers: 0..config.n_layers, has_logits: true, end: End::Logits }
    }

    /// Whether the run passes a point that the model has.
    pub(crate) fn reaches(&self, point: HookPoint, config: &Config) -> bool {
        self.why_unreached(point, config).is_none()
    }

    /// Why the run does not pass a point; absent where it does.
    pub(crate) fn why_unreached(&self, point: HookPoint, config: &Config) -> Option<String> {
        let Range { start: first, end: stop } = self.layers;
        let starts = || match self.start {
            Start::Embeddings => "the run starts from embeddings".to_string(),
            _ => format!("the run starts at layer {first}"),
        };
        let stops = || format!("the run stops before layer {stop}");
        let shortformer = config.positional_embedding_type() == PositionalEmbedding::Shortformer;
        match (point.place(), point.layer()) {
            (Place::Before, _) => {
                let reached = match self.start {
                    Start::Tokens => true,
                    Start::Embeddings => match point.site() {
                        Site::Tokens => false,
                        Site::EmbedLnScale | Site::EmbedLnNormalized => config.norms.after_full_embed,
                        _ => true,
                    },
                    // Short-former attention reads position embeddings in every block.
                    Start::Stream => point.site() == Site::PosEmbed && shortformer,
                };
                (!reached).then(starts)
            }
            (Place::After, _) => (!self.has_logits).then(stops),
            (_, Some(layer)) if layer < first => Some(starts()),
            (_, Some(layer)) if layer >= stop => Some(stops()),
            _ => None,
        }
    }
}
