//! [`Resume`]: from where the run of a patch starts, and [`chunks`]: which patches run as one batch.

use crate::config::{NormPosition, StreamConfig};
use crate::hook::{self, HookPoint, Place, Site};
use crate::Config;

/// From where the run of a patch starts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Resume {
    /// The layer; absent where the run starts from tokens.
    pub(super) layer: Option<usize>,
    /// The point whose patched activation is a term of the stream that the run starts from; absent where a hook patches.
    pub(super) direct: Option<HookPoint>,
    /// The site for which attention computes otherwise than it does unobserved; absent where it does not.
    pub(super) otherwise: Option<Site>,
}

impl Resume {
    /// The latest start for a hook at a point.
    pub(super) fn hooked(point: HookPoint, config: &Config) -> Self {
        let resume = Resume::of(point, config);
        let layer = point.layer().or(resume.layer).map(|layer| config.start_for(layer));
        Resume { layer, direct: None, ..resume }
    }

    /// The latest start for a patch at a point.
    pub(super) fn of(point: HookPoint, config: &Config) -> Self {
        // A layer may look at keys of an earlier one, which the run has to pass then.
        let start = |layer: usize| config.start_for(layer.min(config.n_layers));
        let hooked = |layer: Option<usize>| Resume { layer: layer.map(start), direct: None, otherwise: None };
        let from_stream = |layer| match start(layer) == layer {
            true => Resume { layer: Some(layer), direct: Some(point), otherwise: None },
            false => Resume { layer: Some(start(layer)), direct: None, otherwise: None },
        };
        let Some(layer) = point.layer() else {
            return match point.place() {
                Place::After => hooked(Some(config.n_layers)),
                _ => hooked(None),
            };
        };
        // Where norms are in the stream, its terms do not add up to it.
        let adds_up = config.norm_position() != NormPosition::InStream && config.stream == StreamConfig::default();
        match point.site() {
            Site::ResidPre => from_stream(layer),
            Site::ResidPost if adds_up => from_stream(layer + 1),
            Site::NormalizedResidPost => from_stream(layer + 1),
            Site::MlpOut if adds_up => from_stream(layer + 1),
            Site::AttnOut if adds_up && (config.parallel_attn_mlp || config.attn_only()) => from_stream(layer + 1),
            Site::Pattern | Site::AttnScores => Resume { otherwise: Some(Site::Pattern), ..hooked(Some(layer)) },
            // Heads read streams of their own, and norms before them have an axis more.
            Site::AttnIn | Site::QInput | Site::KInput | Site::VInput => {
                Resume { otherwise: Some(Site::AttnIn), ..hooked(Some(layer)) }
            }
            Site::Result => Resume { otherwise: Some(Site::Result), ..hooked(Some(layer)) },
            _ => hooked(Some(layer)),
        }
    }

    /// The terms of the stream that the run starts from, in the order in which they are added.
    pub(super) fn terms(&self, config: &Config) -> Vec<HookPoint> {
        match (self.direct, self.layer) {
            (Some(point), _) => match (point.site(), point.layer()) {
                (Site::MlpOut | Site::AttnOut, Some(layer)) if config.attn_only() => {
                    vec![hook::attn_out(layer), hook::resid_pre(layer)]
                }
                (Site::MlpOut | Site::AttnOut, Some(layer)) if config.parallel_attn_mlp => {
                    vec![hook::attn_out(layer), hook::resid_pre(layer), hook::mlp_out(layer)]
                }
                (Site::MlpOut, Some(layer)) if config.attention.cross.is_some() => {
                    vec![point, hook::resid_mid_cross(layer)]
                }
                (Site::MlpOut, Some(layer)) => vec![point, hook::resid_mid(layer)],
                _ => vec![point],
            },
            (None, Some(layer)) if layer < config.n_layers => vec![hook::resid_pre(layer)],
            (None, Some(_)) => vec![hook::stream_after(config, -1)],
            (None, None) => Vec::new(),
        }
    }
}

/// Patches whose first columns are `firsts`, in falling order, in batches: the length of each.
///
/// A batch computes the columns from its smallest first column on, for all of its patches. What is small is the sum over batches of the
/// positions that they compute, with a fixed cost for each batch.
pub(super) fn chunks(firsts: &[i64], len: i64, rows: i64, most: usize) -> Vec<usize> {
    // Reading the weights costs as much as some positions.
    const FIXED: i64 = 48;
    let n = firsts.len();
    // The least cost of the first `i` patches, and how many of them are in its last batch.
    let mut best = vec![(0i64, 0usize); n + 1];
    for i in 1..=n {
        let positions = len - firsts[i - 1];
        let cost = |size: usize| (best[i - size].0 + FIXED + size as i64 * rows * positions, size);
        best[i] = (1..=i.min(most)).map(cost).min().unwrap_or((0, 1));
    }
    let (mut sizes, mut end) = (Vec::new(), n);
    while end > 0 {
        sizes.push(best[end].1);
        end -= best[end].1;
    }
    sizes.reverse();
    sizes
}
