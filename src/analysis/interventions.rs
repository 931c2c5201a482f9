//! What hooks have changed, and which sums no longer hold because of it.
//!
//! Rows come from what the run had. Where a hook put something else in place, the parts of the stream may no longer add up to it; what
//! is missing is a row of its own, [`Component::Intervention`](crate::Component::Intervention).

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use super::window::View;
use crate::component::{Reach, Sublayer, Target};
use crate::hook::{self, HookPoint, Site};
use crate::{Error, Result, Transformer};

/// Which parts a decomposition has as rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    /// Heads, in place of what attention adds.
    pub(crate) heads: bool,
    /// Neurons, in place of what MLPs add.
    pub(crate) neurons: bool,
}

/// What is no longer the sum of its parts once a hook has changed an activation.
enum Sum {
    /// The stream: it is not what the sublayers have added.
    Stream,
    /// The stream behind the norm after a sublayer: it is not what the norm makes of its parts.
    Norm(usize, Sublayer),
    /// What a sublayer adds: it is not what its heads or neurons and its biases wrote.
    Sublayer(usize, Sublayer),
}

/// The table of what a change at a hook point breaks. Everything else is a part itself (`z`, `result`, `post`, the embeddings), comes
/// before one, or is a scale, which rows are divided by as it was left.
fn broken_sum(point: HookPoint, model: &Transformer) -> Result<Option<Sum>> {
    let Some(layer) = point.layer() else {
        let of_sum = model.behind_embeddings()?.0.is_some_and(|norm| norm.points.1.site() == point.site());
        return Ok((of_sum || point.site() == Site::FullEmbed).then_some(Sum::Stream));
    };
    let is_quotient_of = |norm: Option<crate::model::placed_norm::PlacedNorm<'_>>| {
        norm.is_some_and(|norm| norm.points.1.site() == point.site())
    };
    if point.site() == Site::MlpHookOut {
        return Ok(Some(Sum::Sublayer(layer, Sublayer::Mlp)));
    }
    if let Site::ResidPre | Site::ResidMid | Site::ResidMidCross | Site::ResidPost | Site::NormalizedResidPost =
        point.site()
    {
        return Ok(Some(Sum::Stream));
    }
    if let Site::ExpertsLnNormalized | Site::SharedLnNormalized = point.site() {
        return Ok(Some(Sum::Sublayer(layer, Sublayer::Mlp)));
    }
    let has_cross = model.config().attention.cross.is_some();
    for sublayer in Sublayer::of(model.config()) {
        // What reads the stream through a norm of the stream itself: what it reads goes past it as well.
        let reader = match sublayer {
            Sublayer::Attention if has_cross => Some(Site::CrossAttnIn),
            Sublayer::Attention | Sublayer::CrossAttention => Some(Site::MlpIn),
            Sublayer::Mlp => None,
        };
        let norm = model.norm_of_stream(layer, sublayer)?;
        if is_quotient_of(norm) || norm.is_some() && reader == Some(point.site()) {
            return Ok(Some(Sum::Norm(layer, sublayer)));
        }
        if point.site() == sublayer.out(layer).site() || is_quotient_of(model.norm_after(layer, sublayer)?) {
            return Ok(Some(Sum::Sublayer(layer, sublayer)));
        }
    }
    Ok(None)
}

/// Whether a decomposition into these parts no longer adds up to the stream at the target.
pub(crate) fn breaks(parts: Parts, view: &View, reach: &Reach) -> Result<bool> {
    let config = view.model().config();
    let stream = reach.stream(config).with_stack(config.stack);
    for point in view.cache.changed() {
        let breaks = match broken_sum(point, view.model())? {
            None => false,
            Some(Sum::Stream) => point <= stream,
            Some(Sum::Norm(layer, sublayer)) => reach.is_behind_norm(layer, sublayer),
            Some(Sum::Sublayer(layer, sublayer)) => {
                let has_rows = if sublayer.is_attention() { parts.heads } else { parts.neurons };
                has_rows && layer < reach.layers(sublayer)
            }
        };
        if breaks {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What the target reads, less its norm's bias, where a hook has changed something between the stream and there:
/// `[1, batch, pos, d_model]`.
///
/// # Errors
///
/// [`Error::HeadsReadApart`] where the heads of the target's attention read different streams; [`Error::NoEntry`] and
/// [`Error::NoPosition`] where the run did not keep what the hook left.
pub(crate) fn changed_reading(view: &View, target: Target) -> Result<Option<Tensor>> {
    let is_changed = |point: HookPoint| view.cache.is_changed(point);
    let mut input = None;
    match target {
        Target::Attn(layer) => {
            let inputs = [hook::attn_in(layer), hook::q_input(layer), hook::k_input(layer), hook::v_input(layer)];
            if let Some(point) = inputs.into_iter().find(|point| is_changed(*point)) {
                return Err(Error::HeadsReadApart { name: point.to_string() });
            }
        }
        Target::CrossAttn(layer) => input = Some(hook::cross_attn_in(layer)).filter(|point| is_changed(*point)),
        Target::Mlp(layer) if is_changed(hook::mlp_hook_in(layer)) => {
            return reading(view, hook::mlp_hook_in(layer), target).map(Some);
        }
        Target::Mlp(layer) => input = Some(hook::mlp_in(layer)).filter(|point| is_changed(*point)),
        // A prediction head comes between what the last norm gives and this point.
        Target::Unembed if is_changed(hook::unembed_in()) && view.model().head().is_none() => {
            return reading(view, hook::unembed_in(), target).map(Some);
        }
        Target::Unembed => {}
    }
    let reading = match (view.model().norm_before(target)?, input) {
        (None, None) => return Ok(None),
        (None, Some(input)) => view.get(input)?,
        (Some(norm), input) if input.is_some() || is_changed(norm.points.1) => {
            FrozenNorm::of_run(Some(norm), view)?.gain(&view.get(norm.points.1)?)?
        }
        (Some(_), _) => return Ok(None),
    };
    Ok(Some(reading.f_unsqueeze(0)?))
}

/// What a point after the target's norm shows, less the norm's bias: `[1, batch, pos, d_model]`.
fn reading(view: &View, point: HookPoint, target: Target) -> Result<Tensor> {
    let read = view.get(point)?;
    let read = match &FrozenNorm::bias_of(view.model().norm_before(target)?)? {
        Some(bias) => read.f_sub(bias)?,
        None => read,
    };
    Ok(read.f_unsqueeze(0)?)
}
